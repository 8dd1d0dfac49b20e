//! Runs: accepted, read, refused, cancelled, over.

use std::collections::BTreeMap;

use buildyard_types::job::{Diagnostic, Pipeline};
use buildyard_types::worker::SourceRef;
use buildyard_types::{JobId, JobSpec, Outcome, RunId, Verdict};

use super::Deciding;
use crate::input::{Rejection, Reply};
use crate::lifecycle::job::{Job, JobEvent, JobState};
use crate::lifecycle::run::{Run, RunEvent, RunState};
use crate::record::{Compiled, Record};
use crate::refusal::refusals;

impl Deciding<'_> {
    pub(super) fn submit(
        &mut self,
        source: SourceRef,
        file: String,
        requested_by: String,
        key: Option<String>,
    ) -> Reply {
        if let Some(run) = key.as_ref().and_then(|key| self.state.keys.get(key)) {
            return Reply::Run(*run);
        }
        let limit = self.state.settings.max_runs;
        if self.state.runs.len() >= limit {
            return Reply::Rejected(Rejection::TooManyRuns { limit });
        }
        let id = self.state.next_run;
        let run = Run {
            id,
            file,
            pipeline: None,
            source,
            requested_by,
            key,
            created_at: self.now,
            state: RunState::Received,
        };
        self.push(Record::RunCreated { run });
        Reply::Run(id)
    }

    /// A run that was cancelled in the meantime, or compiled twice after a restart, does not mind.
    pub(super) fn compiled(&mut self, run: RunId, result: Compiled) -> Reply {
        let Some(known) = self.state.runs.get(&run) else {
            return Reply::Rejected(self.no_run(run));
        };
        match known.state {
            RunState::Received => {}
            RunState::Refused { .. }
            | RunState::AwaitingApproval { .. }
            | RunState::Active
            | RunState::Finished { .. } => return Reply::Done,
        }
        match result {
            Compiled::Pipeline(pipeline) => {
                let diagnostics = refusals(self.state, &pipeline);
                if diagnostics.is_empty() {
                    self.activate(run, pipeline);
                } else {
                    self.refuse(run, diagnostics);
                }
            }
            Compiled::Refused(diagnostics) => self.refuse(run, diagnostics),
            Compiled::SourceFailed(reason) => {
                self.run_event(run, RunEvent::Finish { verdict: Verdict::Infra, reason: Some(reason) });
            }
        }
        Reply::Done
    }

    fn refuse(&mut self, run: RunId, diagnostics: Vec<Diagnostic>) {
        self.run_event(run, RunEvent::Refuse { diagnostics });
    }

    fn activate(&mut self, run: RunId, pipeline: Pipeline) {
        let ids: BTreeMap<&str, JobId> =
            (0..).zip(&pipeline.jobs).map(|(index, job)| (&*job.name, run.job(index))).collect();
        let needs_of =
            |job: &JobSpec| job.needs.iter().filter_map(|need| ids.get(&**need).copied()).collect();
        let needs: Vec<Vec<JobId>> = pipeline.jobs.iter().map(needs_of).collect();
        let jobs = (0..).zip(pipeline.jobs).zip(needs).map(|((index, spec), needs)| {
            let state = if needs.is_empty() {
                JobState::Queued { since: self.now, not_before: self.now }
            } else {
                JobState::Waiting
            };
            Job { id: run.job(index), spec, needs, state, attempts: 0 }
        });
        let record = Record::RunCompiled { run, pipeline: pipeline.name, jobs: jobs.collect() };
        self.push(record);
        self.run_event(run, RunEvent::Activate);
        self.finish_run(run);
    }

    pub(super) fn cancel_run(&mut self, run: RunId, by: String) -> Reply {
        let Some(known) = self.state.runs.get(&run) else {
            return Reply::Rejected(self.no_run(run));
        };
        match known.state {
            RunState::Received | RunState::AwaitingApproval { .. } => {
                let reason = Some(format!("cancelled {by}"));
                self.run_event(run, RunEvent::Finish { verdict: Verdict::Cancelled, reason });
                Reply::Done
            }
            RunState::Active => {
                self.cancel_jobs(run, &by);
                Reply::Done
            }
            RunState::Refused { .. } | RunState::Finished { .. } => {
                Reply::Rejected(Rejection::AlreadyFinished(run.to_string()))
            }
        }
    }

    fn cancel_jobs(&mut self, run: RunId, by: &str) {
        let jobs: Vec<(JobId, bool)> =
            self.state.jobs_of(run).map(|job| (job.id, job.state.live().is_some())).collect();
        let outcome = || Outcome::Cancelled { by: by.to_owned() };
        for (job, live) in jobs {
            if live {
                self.stop_job(job, outcome());
            } else {
                // Not by way of `finish_job`: it would call dependents skipped that are cancelled as well.
                self.job_event(job, JobEvent::Finish { outcome: outcome(), started: self.first_start(job) });
            }
        }
        self.finish_run(run);
    }

    /// Ends a run whose jobs are all finished.
    pub(super) fn finish_run(&mut self, run: RunId) {
        let open = self.state.index.open.get(&run).copied().unwrap_or_default();
        let active = self.state.runs.get(&run).is_some_and(|known| match known.state {
            RunState::Active => true,
            RunState::Received
            | RunState::Refused { .. }
            | RunState::AwaitingApproval { .. }
            | RunState::Finished { .. } => false,
        });
        if active && open.jobs == 0 {
            let verdict = Verdict::of(self.state.jobs_of(run).filter_map(|job| job.state.outcome()));
            self.run_event(run, RunEvent::Finish { verdict, reason: None });
        }
    }

    fn run_event(&mut self, run: RunId, event: RunEvent) {
        let after = self.state.runs.get(&run).and_then(|known| known.state.on(event, self.now));
        if let Some(state) = after {
            self.push(Record::RunChanged { run, state });
        }
    }

    pub(super) fn no_run(&self, run: RunId) -> Rejection {
        if self.was_given(run) { Rejection::AlreadyFinished(run.to_string()) } else { Rejection::NoRun(run) }
    }

    /// Runs that are over are not kept here, but their numbers are known.
    pub(super) fn was_given(&self, run: RunId) -> bool {
        run.0 > 0 && run < self.state.next_run
    }
}
