//! What happened, told in sentences: records become the events that people read. Pure.

use std::collections::BTreeMap;

use buildyard_scheduler::lifecycle::attempt::AttemptState;
use buildyard_scheduler::lifecycle::job::JobState;
use buildyard_scheduler::lifecycle::run::{Run, RunState};
use buildyard_scheduler::lifecycle::worker::Worker;
use buildyard_scheduler::{Record, SettledRun, State};
use buildyard_types::api::EventView;
use buildyard_types::{AttemptId, Fault, JobId, Outcome, RunId, Timestamp, Verdict, WorkerId};

/// Tells records as events. It remembers what it last told of each worker, since a record says only what
/// *is*, and people want to hear what changed.
#[derive(Debug, Default)]
pub(crate) struct Narrator {
    workers: BTreeMap<WorkerId, Told>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Told {
    name: String,
    cordoned: bool,
    unfit: Option<String>,
}

impl From<&Worker> for Told {
    fn from(worker: &Worker) -> Self {
        Self { name: worker.name.clone(), cordoned: worker.cordoned, unfit: worker.offer.unfit.clone() }
    }
}

/// First characters of a commit: enough to tell commits of one repository apart.
pub(crate) fn short(commit: &str) -> &str {
    commit.get(..10).unwrap_or(commit)
}

/// "1 job", "3 jobs".
pub(crate) fn count(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

/// Characters with control characters as their escapes: names and reasons come from others, and a line end in one of
/// them would begin a line of its own in a log.
pub(crate) fn one_line(characters: impl Iterator<Item = char>) -> String {
    let mut line = String::new();
    for character in characters {
        if character.is_control() {
            line.extend(character.escape_default());
        } else {
            line.push(character);
        }
    }
    line
}

/// Where a record plays: the farm with the record applied, and the runs that left it just then.
pub(crate) struct Scene<'s> {
    pub(crate) state: &'s State,
    pub(crate) settled: &'s [SettledRun],
}

impl Scene<'_> {
    fn job_name(&self, job: JobId) -> String {
        let settled = || self.settled.iter().flat_map(|run| &run.jobs).find(|known| known.id == job);
        match self.state.jobs.get(&job).or_else(settled) {
            Some(known) => format!("job `{}`", known.spec.name),
            None => job.to_string(),
        }
    }

    fn worker_of(&self, attempt: AttemptId) -> Option<WorkerId> {
        let settled = || self.settled.iter().flat_map(|run| &run.attempts).find(|known| known.id == attempt);
        self.state.attempts.get(&attempt).or_else(settled).map(|known| known.worker)
    }
}

/// Which event a record is, before it is dressed up.
struct Event {
    kind: &'static str,
    run: Option<RunId>,
    job: Option<JobId>,
    worker: Option<WorkerId>,
    sentence: String,
}

fn of_run(kind: &'static str, run: RunId, sentence: String) -> Option<Event> {
    Some(Event { kind, run: Some(run), job: None, worker: None, sentence })
}

fn of_job(kind: &'static str, job: JobId, worker: Option<WorkerId>, sentence: String) -> Option<Event> {
    Some(Event { kind, run: Some(job.run), job: Some(job), worker, sentence })
}

fn of_worker(kind: &'static str, worker: WorkerId, sentence: String) -> Option<Event> {
    Some(Event { kind, run: None, job: None, worker: Some(worker), sentence })
}

impl Narrator {
    /// Takes note of the workers that are on record.
    pub(crate) fn new<'w>(workers: impl IntoIterator<Item = &'w Worker>) -> Self {
        Self { workers: workers.into_iter().map(|worker| (worker.id, Told::from(worker))).collect() }
    }

    /// The event that a record is, if people should hear of it.
    pub(crate) fn tell(&mut self, scene: &Scene<'_>, record: &Record, at: Timestamp) -> Option<EventView> {
        let event = match record {
            Record::RunCreated { run } => created(run),
            Record::RunCompiled { run, pipeline, jobs } => {
                of_run("run.compiled", *run, format!("{run} is `{pipeline}`, {}", count(jobs.len(), "job")))
            }
            Record::RunChanged { run, state: now } => run_changed(*run, now),
            Record::JobChanged { job, state: now } => self.job_changed(scene, *job, now),
            // The job's own record beside it says the same.
            Record::AttemptCreated { .. } | Record::AttemptStarted { .. } => None,
            Record::AttemptChanged { attempt, state: now } => self.attempt_changed(scene, *attempt, now),
            Record::WorkerChanged { worker } => self.worker_changed(worker),
            Record::WorkerRemoved { worker } => {
                let name = self.workers.remove(worker).map(|told| told.name);
                let name = name.unwrap_or_else(|| worker.to_string());
                of_worker("worker.removed", *worker, format!("worker {name} was removed"))
            }
        }?;
        let Event { kind, run, job, worker, sentence } = event;
        let sentence = one_line(sentence.chars());
        Some(EventView { sequence: 0, at, kind: kind.to_owned(), run, job, worker, sentence })
    }

    fn worker_name(&self, worker: WorkerId) -> String {
        self.workers.get(&worker).map_or_else(|| worker.to_string(), |told| told.name.clone())
    }

    fn job_changed(&self, scene: &Scene<'_>, job: JobId, now: &JobState) -> Option<Event> {
        let name = scene.job_name(job);
        match now {
            JobState::Waiting => None,
            JobState::Queued { .. } => of_job("job.queued", job, None, format!("{name} waits for a worker")),
            JobState::Assigned { worker, .. } => {
                let text = format!("{name} goes to worker {}", self.worker_name(*worker));
                of_job("job.assigned", job, Some(*worker), text)
            }
            JobState::Running { worker, .. } => {
                let text = format!("{name} runs on worker {}", self.worker_name(*worker));
                of_job("job.running", job, Some(*worker), text)
            }
            JobState::Stopping { worker, outcome, .. } => {
                let text = format!("{name} is being stopped: {outcome}");
                of_job("job.stopping", job, Some(*worker), text)
            }
            JobState::Finished { outcome, .. } => {
                of_job("job.finished", job, None, format!("{name} {}", ended(outcome)))
            }
        }
    }

    fn attempt_changed(&self, scene: &Scene<'_>, attempt: AttemptId, now: &AttemptState) -> Option<Event> {
        let job = attempt.job;
        let worker = scene.worker_of(attempt);
        match now {
            AttemptState::Live => None,
            AttemptState::Ended { report, .. } => {
                let name = scene.job_name(job);
                let text = format!("{attempt} of {name} {}", ended(&report.outcome));
                of_job("attempt.ended", job, worker, text)
            }
            AttemptState::Removed { .. } => {
                let text = format!("container and workspace of {attempt} are gone");
                of_job("attempt.removed", job, worker, text)
            }
        }
    }

    fn worker_changed(&mut self, worker: &Worker) -> Option<Event> {
        let now = Told::from(worker);
        let before = self.workers.insert(worker.id, now.clone());
        let name = &now.name;
        let Some(before) = before else {
            let text = format!("worker {name} joined with {}", worker.labels());
            return of_worker("worker.joined", worker.id, text);
        };
        if before.cordoned != now.cordoned {
            let (kind, text) = if now.cordoned {
                ("worker.cordoned", format!("worker {name} takes no new attempts: it was cordoned"))
            } else {
                ("worker.uncordoned", format!("worker {name} takes attempts again"))
            };
            return of_worker(kind, worker.id, text);
        }
        if before.unfit == now.unfit {
            // Another image, another free byte: no news to people.
            return None;
        }
        match &now.unfit {
            Some(why) => {
                of_worker("worker.unfit", worker.id, format!("worker {name} takes no attempts: {why}"))
            }
            None => of_worker("worker.fit", worker.id, format!("worker {name} is fit again")),
        }
    }
}

fn created(run: &Run) -> Option<Event> {
    let commit = short(&run.source.commit);
    let text = format!("{} of {} at {commit}, {}", run.file, run.source.repository, run.requested_by);
    of_run("run.received", run.id, format!("{}: {text}", run.id))
}

fn run_changed(run: RunId, now: &RunState) -> Option<Event> {
    match now {
        // Told when it was created, and when it was compiled.
        RunState::Received | RunState::Active => None,
        RunState::AwaitingApproval { .. } => {
            of_run("run.awaiting_approval", run, format!("{run} waits for an approval"))
        }
        RunState::Refused { diagnostics, .. } => {
            of_run("run.refused", run, format!("{run} was refused: {}", mistakes(diagnostics)))
        }
        RunState::Finished { verdict, reason, .. } => {
            let reason = reason.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
            of_run("run.finished", run, format!("{run} {}{reason}", verdict_clause(*verdict)))
        }
    }
}

/// The verdict as the rest of a sentence, with whose fault it is.
pub(crate) fn verdict_clause(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Passed => "passed",
        Verdict::Failed => "failed",
        Verdict::Refused => "was refused",
        Verdict::Cancelled => "was cancelled",
        Verdict::Infra => "could not be finished by the farm",
    }
}

/// An outcome as the rest of a sentence; a farm fault is said to be one.
pub(crate) fn ended(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Cancelled { .. } | Outcome::Skipped { .. } | Outcome::Refused { .. } => {
            format!("was {outcome}")
        }
        Outcome::Infra { .. } => format!("met a farm fault, {outcome}"),
        Outcome::Passed
        | Outcome::Failed { .. }
        | Outcome::TimedOut { .. }
        | Outcome::OutOfMemory { .. }
        | Outcome::DiskQuota { .. }
        | Outcome::LogCap { .. } => outcome.to_string(),
    }
}

/// Whose fault it is, as a sentence.
pub(crate) fn fault_sentence(fault: Fault) -> &'static str {
    match fault {
        Fault::Nobody => "Nobody is at fault.",
        Fault::Job => "The fault is in the job, not in the farm.",
        Fault::Farm => "The fault is the farm's, not the job's.",
    }
}

/// How many mistakes there are, and the first.
pub(crate) fn mistakes(diagnostics: &[buildyard_types::job::Diagnostic]) -> String {
    match diagnostics.split_first() {
        None => "its file cannot be used".to_owned(),
        Some((first, rest)) => {
            let place = if first.line == 0 { String::new() } else { format!(" (line {})", first.line) };
            let more = if rest.is_empty() { String::new() } else { format!(", and {} more", rest.len()) };
            format!("{}{place}{more}", first.message)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_is_one_line_whatever_stands_in_it() {
        assert_eq!(one_line("größe is fit".chars()), "größe is fit");
        assert_eq!(
            one_line("x\nERROR forged\r\x1b[2J\u{85}".chars()),
            "x\\nERROR forged\\r\\u{1b}[2J\\u{85}"
        );
    }
}
