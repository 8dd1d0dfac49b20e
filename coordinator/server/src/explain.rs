//! The one door for "why": one sentence first, then facts, then what to do next. Pure.

use buildyard_scheduler::lifecycle::attempt::{Attempt, AttemptState};
use buildyard_scheduler::lifecycle::job::{Job, JobState};
use buildyard_scheduler::lifecycle::run::RunState;
use buildyard_store::LogState;
use buildyard_types::api::{Explanation, Liveness, WorkerView};
use buildyard_types::{AttemptId, Fault, JobId, Outcome, Verdict};

use crate::sentences::{count, ended, fault_sentence, short};
use crate::views::{Live, Whole, culprit, job_sentence, run_sentence};

/// Most jobs that an explanation of a run lists.
const MAX_JOBS: usize = 20;

/// Why a run is as it is.
pub(crate) fn run(whole: &Whole, live: &Live) -> Explanation {
    let run = &whole.run;
    let mut details = vec![format!(
        "{} of {} at {}, {}",
        run.file,
        run.source.repository,
        short(&run.source.commit),
        run.requested_by
    )];
    let mut next = Vec::new();
    let mut fault = None;
    match &run.state {
        RunState::Received => next.push(format!("buildyard watch {}", run.id)),
        RunState::AwaitingApproval { .. } => {}
        RunState::Refused { diagnostics, .. } => {
            fault = Some(Fault::Job);
            details.extend(diagnostics.iter().map(ToString::to_string));
            next.push(format!("mend {} and push again; `buildyard check` finds the same mistakes", run.file));
        }
        RunState::Active => {
            details.extend(unfinished(whole, live));
            next.push(format!("buildyard watch {}", run.id));
        }
        RunState::Finished { verdict, .. } => {
            fault = Some(match culprit(&whole.jobs, *verdict) {
                Some((_, outcome)) => outcome.fault(),
                None if *verdict == Verdict::Infra => Fault::Farm,
                None => Fault::Nobody,
            });
            details.extend(
                fault.filter(|fault| *fault != Fault::Nobody).map(|fault| fault_sentence(fault).into()),
            );
            details.extend(not_passed(whole));
            if let Some((job, _)) = culprit(&whole.jobs, *verdict) {
                next.push(format!("buildyard explain {}", job.id));
                next.push(format!("buildyard logs {}", job.id));
            }
        }
    }
    let sentence = format!("{} {}.", run.id, run_sentence(run, &whole.jobs));
    Explanation { subject: run.id.to_string(), sentence, fault, details, next }
}

fn unfinished(whole: &Whole, live: &Live) -> Vec<String> {
    let open = whole.jobs.iter().filter(|job| job.state.outcome().is_none());
    open.take(MAX_JOBS).map(|job| format!("`{}` {}", job.spec.name, job_sentence(job, live))).collect()
}

fn not_passed(whole: &Whole) -> Vec<String> {
    let with_outcome = whole.jobs.iter().filter_map(|job| Some((job, job.state.outcome()?)));
    let bad = with_outcome.filter(|(_, outcome)| **outcome != Outcome::Passed);
    bad.take(MAX_JOBS).map(|(job, outcome)| format!("`{}` {}", job.spec.name, ended(outcome))).collect()
}

/// Why a job is as it is. `tail` holds the last lines of its newest attempt's log.
pub(crate) fn job(whole: &Whole, job: &Job, live: &Live, tail: &[String]) -> Explanation {
    let mut details = Vec::new();
    let mut next = Vec::new();
    let mut fault = None;
    let id = job.id;
    match &job.state {
        JobState::Waiting => details.extend(whole_needs(whole, job, live)),
        JobState::Queued { .. } => {
            let wants = job.spec.labels.to_string();
            let wants =
                if wants.is_empty() { "any worker".to_owned() } else { format!("a worker with {wants}") };
            details.push(format!("it asks for {wants}, {}", resources(job)));
            next.push("buildyard workers".to_owned());
        }
        JobState::Assigned { .. } | JobState::Running { .. } | JobState::Stopping { .. } => {
            next.push(format!("buildyard logs -f {id}"));
        }
        JobState::Finished { outcome, .. } => {
            fault = Some(outcome.fault());
            details.push(fault_sentence(outcome.fault()).to_owned());
            details.extend(last_lines(tail));
            next.extend(remedy(id, &job.spec.image, outcome));
        }
    }
    let attempts: Vec<_> = whole.attempts_at(id).collect();
    details.extend(attempts.iter().map(|(attempt, _)| attempt_line(attempt, live)));
    let sentence = format!("job `{}` of {} {}.", job.spec.name, id.run, job_sentence(job, live));
    Explanation { subject: id.to_string(), sentence, fault, details, next }
}

fn whole_needs(whole: &Whole, job: &Job, live: &Live) -> Vec<String> {
    let needed = job.needs.iter().filter_map(|id| whole.job(*id));
    let open = needed.filter(|needed| needed.state.outcome().is_none());
    open.map(|needed| format!("`{}` {}", needed.spec.name, job_sentence(needed, live))).collect()
}

fn resources(job: &Job) -> String {
    let asked = &job.spec.resources;
    format!("{} cpu, {} memory, {} disk", asked.cpu_millis as f64 / 1_000.0, asked.memory, asked.disk)
}

fn last_lines(tail: &[String]) -> Option<String> {
    (!tail.is_empty()).then(|| format!("the last lines of its log:\n  {}", tail.join("\n  ")))
}

fn attempt_line(attempt: &Attempt, live: &Live) -> String {
    let worker = live.workers.get(&attempt.worker).cloned().unwrap_or_else(|| attempt.worker.to_string());
    let how = match &attempt.state {
        AttemptState::Live => "is under way".to_owned(),
        AttemptState::Ended { report, .. } | AttemptState::Removed { report, .. } => ended(&report.outcome),
    };
    format!("{} on worker {worker} {how}", attempt.id)
}

/// What to do about an outcome.
fn remedy(job: JobId, image: &str, outcome: &Outcome) -> Vec<String> {
    let logs = format!("buildyard logs {job}");
    match outcome {
        Outcome::Passed | Outcome::Cancelled { .. } => Vec::new(),
        Outcome::Failed { step, .. } => {
            vec![
                format!("buildyard logs {job} --step '{step}'"),
                "buildyard run, for the same on this machine".into(),
            ]
        }
        Outcome::TimedOut { .. } => {
            vec![logs, "raise `timeout` in the pipeline file, or find what hangs".into()]
        }
        Outcome::OutOfMemory { .. } => {
            vec!["raise `resources.memory`, or build with fewer jobs at once".into()]
        }
        Outcome::DiskQuota { .. } => {
            vec!["raise `resources.disk`, or remove what is no longer needed".into()]
        }
        Outcome::LogCap { .. } => {
            vec![logs, "print less, or write to a file and keep it as an artifact".into()]
        }
        Outcome::Skipped { .. } => vec![format!("buildyard explain {}", job.run)],
        Outcome::Refused { .. } => vec!["mend what the sentence names, and push again".into()],
        Outcome::Infra { cause, .. } => {
            let mut next =
                vec![format!("buildyard trigger the commit again; the farm tried `{image}` on its own")];
            next.push(format!("tell the build team: {cause}"));
            next
        }
    }
}

/// Why an attempt is as it is.
pub(crate) fn attempt(
    whole: &Whole,
    id: AttemptId,
    known: &(Attempt, LogState),
    live: &Live,
    tail: &[String],
) -> Explanation {
    let (attempt, log) = known;
    let mut details = Vec::new();
    let mut fault = None;
    if let Some(report) = attempt.state.report() {
        fault = Some(report.outcome.fault());
        details.push(fault_sentence(report.outcome.fault()).to_owned());
        for step in &report.steps {
            let code = step.exit_code.map_or("cut off".to_owned(), |code| format!("exit code {code}"));
            details.push(format!("step `{}`: {code} after {}", step.name, step.duration_ms));
        }
        details.extend(report.notes.iter().cloned());
        details.extend(last_lines(tail));
        if log.dropped {
            details.push("its log was dropped after retention.logs".to_owned());
        } else if log.sha256.is_none() {
            details.push("its log was not closed; it may miss its end".to_owned());
        }
    }
    let name = whole.job(id.job).map(|job| job.spec.name.clone()).unwrap_or_default();
    let sentence = format!("{} (job `{name}`).", attempt_line(attempt, live));
    let next = vec![format!("buildyard explain {}", id.job), format!("buildyard logs {id}")];
    Explanation { subject: id.to_string(), sentence, fault, details, next }
}

/// Why a worker does or does not work.
pub(crate) fn worker(view: &WorkerView) -> Explanation {
    let name = &view.name;
    let mut details = vec![format!("it offers {}", view.labels)];
    let mut next = Vec::new();
    let held = count(view.attempts.len(), "attempt");
    let (sentence, fault) = match (view.liveness, view.cordoned, &view.unfit) {
        (Liveness::Quiet, ..) => {
            next.push(format!(
                "see whether `buildyard serve worker` runs on {name} and reaches the coordinator"
            ));
            (format!("worker {name} does not answer"), Some(Fault::Farm))
        }
        (Liveness::Unknown, ..) => {
            (format!("worker {name} has not called since the coordinator started"), Some(Fault::Farm))
        }
        (_, true, _) => {
            next.push(format!("buildyard workers uncordon {}", view.id));
            (format!("worker {name} was cordoned and gets no new attempts"), None)
        }
        (_, false, Some(why)) => (format!("worker {name} takes no attempts: {why}"), Some(Fault::Farm)),
        (_, false, None) => (format!("worker {name} is fit and holds {held}"), None),
    };
    let (used, all) = (view.used, view.capacity);
    details.push(format!(
        "{} of {} slots are in use, {} of {} memory",
        used.slots, all.slots, used.memory, all.memory
    ));
    details.extend(view.attempts.iter().map(|attempt| format!("it holds {attempt}")));
    Explanation { subject: view.id.to_string(), sentence: format!("{sentence}."), fault, details, next }
}
