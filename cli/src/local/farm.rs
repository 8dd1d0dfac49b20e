//! A farm of one run and one worker, in memory. Order of needs, what is skipped, placement by resources and the
//! verdict come from the scheduler that the coordinator uses, so that both say the same. Pure: the caller carries
//! attempts out and says what became of them.

use std::collections::{BTreeMap, BTreeSet};

use buildyard_scheduler::lifecycle::job::JobState;
use buildyard_scheduler::lifecycle::run::RunState;
use buildyard_scheduler::{Compiled, Core, Decision, Input, Record, Reply, Settings, Snapshot, State};
use buildyard_types::job::{Diagnostic, Pipeline};
use buildyard_types::worker::{
    AttemptProgress, AttemptReport, Capacity, EndReport, Offer, SessionId, SourceRef, SyncResponse,
};
use buildyard_types::{
    AttemptId, Epoch, Fence, JobId, LabelExpr, Millis, Outcome, RunId, Timestamp, Verdict, WorkerId,
};

const WORKER: WorkerId = WorkerId(1);
const SESSION: SessionId = SessionId { number: 1, nonce: 0 };

/// The run and what is known of it.
pub(crate) struct LocalFarm {
    core: Core,
    run: RunId,
    offer: Offer,
    sequence: u64,
    held: BTreeMap<AttemptId, (Fence, AttemptProgress)>,
    names: Vec<String>,
    outcomes: BTreeMap<JobId, Outcome>,
    ended: Option<(Verdict, Vec<Diagnostic>)>,
}

/// How a run ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// The sum of its jobs.
    pub(crate) verdict: Verdict,
    /// Why it was refused; empty otherwise.
    pub(crate) diagnostics: Vec<Diagnostic>,
}

/// Leases mean nothing here, where worker and scheduler are one process; they must only never run out.
fn settings() -> Settings {
    let never = Millis::from_mins(60 * 24 * 365);
    Settings {
        lease_ms: never,
        // Whoever waits at a terminal rather repeats it than waits for three back-offs.
        max_attempts: 1,
        stop_slack_ms: never,
        prepare_limit_ms: never,
        ..Settings::default()
    }
}

impl LocalFarm {
    /// A run of this pipeline on a worker of this capacity.
    pub(crate) fn begin(
        mut pipeline: Pipeline,
        source: SourceRef,
        capacity: Capacity,
        now: Timestamp,
    ) -> Self {
        for job in &mut pipeline.jobs {
            // This machine is the only one there is, whatever the file asks for.
            job.labels = LabelExpr::Any;
        }
        let state = State::from_snapshot(Epoch(1), settings(), Snapshot::default(), now);
        let offer = Offer { capacity, ..Offer::default() };
        let mut farm = Self {
            core: Core::new(state),
            run: RunId(1),
            offer: offer.clone(),
            sequence: 0,
            held: BTreeMap::new(),
            names: pipeline.jobs.iter().map(|job| job.name.clone()).collect(),
            outcomes: BTreeMap::new(),
            ended: None,
        };
        let name = "this machine".to_owned();
        farm.decide(Input::Enrol { worker: WORKER, name, pools: BTreeSet::new(), offer }, now);
        let file = pipeline.file.clone();
        let requested_by = "by `buildyard run`".to_owned();
        let submitted = farm.decide(Input::Submit { source, file, requested_by, key: None }, now);
        if let Reply::Run(run) = submitted {
            farm.run = run;
        }
        let (run, result) = (farm.run, Compiled::Pipeline(pipeline));
        farm.decide(Input::Compiled { run, result }, now);
        farm
    }

    /// What to begin and to stop now.
    pub(crate) fn sync(&mut self, now: Timestamp) -> SyncResponse {
        self.sequence += 1;
        let report = |(attempt, (fence, state)): (&AttemptId, &(Fence, AttemptProgress))| AttemptReport {
            attempt: *attempt,
            fence: *fence,
            state: state.clone(),
        };
        let input = Input::Sync {
            worker: WORKER,
            session: SESSION,
            sequence: self.sequence,
            offer: self.offer.clone(),
            attempts: self.held.iter().map(report).collect(),
        };
        self.decide(Input::Tick, now);
        let response = match self.decide(input, now) {
            Reply::Sync { response, .. } => response,
            // The worker was enrolled at the beginning, and nobody else has a session.
            Reply::Done | Reply::Run(_) | Reply::Rejected(_) => {
                SyncResponse { lease_ms: Millis(0), run: Vec::new(), stop: Vec::new(), forget: Vec::new() }
            }
        };
        for order in &response.run {
            self.held.insert(order.attempt, (order.fence, AttemptProgress::Preparing));
        }
        for attempt in &response.forget {
            self.held.remove(attempt);
        }
        response
    }

    /// An attempt ended, and nothing is left of it.
    pub(crate) fn ended(&mut self, attempt: AttemptId, report: EndReport) {
        if let Some((_, state)) = self.held.get_mut(&attempt) {
            *state = AttemptProgress::Ended { report: Box::new(report), removed: true };
        }
    }

    /// Somebody wants it to end.
    pub(crate) fn cancel(&mut self, by: &str, now: Timestamp) {
        let by = by.to_owned();
        self.decide(Input::CancelRun { run: self.run, by }, now);
    }

    /// The name of a job.
    pub(crate) fn name(&self, job: JobId) -> &str {
        self.names.get(job.index.0 as usize).map_or("?", String::as_str)
    }

    /// The jobs that ended, in file order.
    pub(crate) fn outcomes(&self) -> impl Iterator<Item = (&str, &Outcome)> {
        self.outcomes.iter().map(|(job, outcome)| (self.name(*job), outcome))
    }

    /// How it ended, once nothing is left of any attempt.
    pub(crate) fn end(&self) -> Option<End> {
        let (verdict, diagnostics) = self.ended.as_ref().filter(|_| self.held.is_empty())?;
        Some(End { verdict: *verdict, diagnostics: diagnostics.clone() })
    }

    fn decide(&mut self, input: Input, now: Timestamp) -> Reply {
        let Decision { records, reply, .. } = self.core.decide(input, now);
        for record in records {
            self.note(record);
        }
        reply
    }

    fn note(&mut self, record: Record) {
        match record {
            Record::JobChanged { job, state: JobState::Finished { outcome, .. } } => {
                self.outcomes.insert(job, outcome);
            }
            Record::RunChanged { state: RunState::Finished { verdict, .. }, .. } => {
                self.ended = Some((verdict, Vec::new()));
            }
            Record::RunChanged { state: RunState::Refused { diagnostics, .. }, .. } => {
                self.ended = Some((Verdict::Refused, diagnostics));
            }
            Record::RunCreated { .. }
            | Record::RunCompiled { .. }
            | Record::RunChanged { .. }
            | Record::JobChanged { .. }
            | Record::AttemptCreated { .. }
            | Record::AttemptStarted { .. }
            | Record::AttemptChanged { .. }
            | Record::WorkerChanged { .. }
            | Record::WorkerRemoved { .. } => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use buildyard_types::ByteSize;
    use buildyard_types::worker::Usage;

    use super::*;

    const ROOM: Capacity = Capacity {
        slots: 2,
        cpu_millis: 4_000,
        memory: ByteSize::from_gib(8),
        disk: ByteSize::from_gib(100),
    };

    fn farm(text: &str) -> LocalFarm {
        let pipeline = buildyard_pipelines::compile("pipeline.toml", text.as_bytes()).unwrap();
        let source = SourceRef { repository: "here".into(), commit: "0".repeat(40), ref_name: None };
        LocalFarm::begin(pipeline, source, ROOM, Timestamp(1_000_000))
    }

    fn report(outcome: Outcome) -> EndReport {
        EndReport {
            outcome,
            steps: Vec::new(),
            usage: Usage::default(),
            notes: Vec::new(),
            image_digest: None,
        }
    }

    /// Plays the run; a job whose name begins with `bad` fails. Gives the order in which jobs began, and how
    /// many ran at once at most.
    fn play(farm: &mut LocalFarm) -> (Vec<String>, usize) {
        let mut now = Timestamp(1_000_000);
        let (mut begun, mut together) = (Vec::new(), 0);
        for _ in 0..100 {
            now = now + Millis(10);
            let response = farm.sync(now);
            let orders = response.run;
            together = together.max(farm.held.len());
            begun.extend(orders.iter().map(|order| order.spec.name.clone()));
            for order in orders {
                let outcome = match order.spec.name.starts_with("bad") {
                    true => Outcome::Failed { step: "run".into(), exit_code: 3 },
                    false => Outcome::Passed,
                };
                farm.ended(order.attempt, report(outcome));
            }
            if farm.end().is_some() {
                return (begun, together);
            }
        }
        panic!("the run does not end: {begun:?}");
    }

    fn pipeline(jobs: &str) -> String {
        format!("[defaults]\nimage = \"debian:12\"\nlabels = \"arch=riscv64 && gpu\"\n{jobs}")
    }

    #[test]
    fn needs_are_kept_and_what_needs_a_failure_is_skipped() {
        let mut farm = farm(&pipeline(
            "[jobs.last]\nneeds = [\"first\"]\nrun = \"true\"\n[jobs.first]\nrun = \"true\"\n\
             [jobs.bad]\nrun = \"exit 3\"\n[jobs.after]\nneeds = [\"bad\"]\nrun = \"true\"\n",
        ));
        let (begun, _) = play(&mut farm);
        assert_eq!(begun, ["first", "bad", "last"]);
        assert_eq!(farm.end().map(|end| end.verdict), Some(Verdict::Failed));
        let skipped = farm.outcomes().find(|(name, _)| *name == "after").map(|(_, outcome)| outcome);
        assert!(matches!(skipped, Some(Outcome::Skipped { .. })), "{skipped:?}");
    }

    #[test]
    fn no_more_jobs_run_at_once_than_there_is_room_for() {
        let jobs: String = (0..6).map(|n| format!("[jobs.j{n}]\nrun = \"true\"\n")).collect();
        let (begun, together) = play(&mut farm(&pipeline(&jobs)));
        assert_eq!((begun.len(), together), (6, 2));
    }

    #[test]
    fn a_job_that_is_too_large_for_this_machine_is_refused() {
        let farm = farm(&pipeline("[jobs.big]\nrun = \"true\"\nresources = { memory = \"64GiB\" }\n"));
        let end = farm.end().unwrap();
        assert_eq!(end.verdict, Verdict::Refused);
        assert!(end.diagnostics[0].to_string().contains("big"), "{:?}", end.diagnostics);
    }

    #[test]
    fn cancelling_stops_what_runs_and_begins_nothing_new() {
        let mut farm =
            farm(&pipeline("[jobs.a]\nrun = \"true\"\n[jobs.b]\nneeds = [\"a\"]\nrun = \"true\"\n"));
        let now = Timestamp(1_000_100);
        let begun = farm.sync(now).run;
        farm.cancel("by hand", now);
        let stops = farm.sync(now).stop;
        assert_eq!(stops.len(), 1);
        farm.ended(begun[0].attempt, report(Outcome::Cancelled { by: "by hand".into() }));
        let (after, _) = play(&mut farm);
        assert!(after.is_empty(), "{after:?}");
        assert_eq!(farm.end().map(|end| end.verdict), Some(Verdict::Cancelled));
    }
}
