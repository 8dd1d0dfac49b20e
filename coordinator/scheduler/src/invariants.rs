//! Named truths about the whole state, and about each record.
//!
//! The same predicates serve unit tests, property tests, the simulation and debug assertions. Each says what is
//! broken, on which id, so that a failing seed can be read.

use std::collections::BTreeSet;

use buildyard_types::{Fence, JobId, Outcome, Verdict, WorkerId};

use crate::lifecycle::attempt::{Attempt, AttemptState};
use crate::lifecycle::job::{Job, JobState};
use crate::lifecycle::run::RunState;
use crate::record::Record;
use crate::state::{MAX_KEYS, State};

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Broken {
    /// The truth that is none.
    pub name: &'static str,
    /// On what.
    pub detail: String,
}

impl std::fmt::Display for Broken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "broken: {}: {}", self.name, self.detail)
    }
}

/// What is wrong, or nothing.
pub type Check = Result<(), String>;

/// A truth about a state, with its name.
pub type OfState = (&'static str, fn(&State) -> Check);

/// A truth about a record, with its name.
pub type OfRecord = (&'static str, fn(&State, &Record) -> Check);

/// Truths about a state between two decisions.
pub const OF_STATE: &[OfState] = &[
    ("a job has at most one live attempt", one_live_attempt),
    ("a job on a worker is held by a live attempt, and no other job is", held_by_live_attempt),
    ("a waiting job has a need that is open, and none that failed", waiting_for_something),
    ("a job is queued or placed only after all that it needs passed", needs_passed_first),
    ("a job is skipped only if something that it needs did not pass", skipped_for_a_need),
    ("attempts are counted from 1 without gaps and never beyond the limit", attempts_counted),
    ("fences are unique and below the next", fences_unique),
    ("a run is over exactly when its jobs are", run_over_with_its_jobs),
    ("the verdict is the sum of the jobs", verdict_is_the_sum),
    ("what is over leaves nothing behind", nothing_left_behind),
    ("an attempt that is not removed has a worker", attempt_has_worker),
    ("keys are bounded", keys_bounded),
    ("the index is what the state implies", index_in_step),
];

/// Truths about a record, seen against the state that it is applied to.
pub const OF_RECORD: &[OfRecord] = &[
    ("finished is final", finished_is_final),
    ("the first end of an attempt is its end", first_end_counts),
    ("only what the farm did is tried again", only_farm_faults_again),
    ("a cancelled job does not come back", cancelled_stays_cancelled),
    ("capacity is never exceeded", capacity_kept),
    ("an attempt is given to a worker that matches", labels_respected),
    ("fences grow", fences_grow),
    ("run numbers grow", run_numbers_grow),
];

/// Every truth about the state that does not hold.
pub fn broken_in(state: &State) -> Vec<Broken> {
    let check = |(name, check): &OfState| check(state).err().map(|detail| Broken { name, detail });
    OF_STATE.iter().filter_map(check).collect()
}

/// Every truth that a record breaks, were it applied to this state.
pub fn broken_by(before: &State, record: &Record) -> Vec<Broken> {
    let check = |(name, check): &OfRecord| check(before, record).err().map(|detail| Broken { name, detail });
    OF_RECORD.iter().filter_map(check).collect()
}

fn all<T>(items: impl IntoIterator<Item = T>, check: impl Fn(T) -> Check) -> Check {
    items.into_iter().try_for_each(check)
}

fn that(holds: bool, detail: impl FnOnce() -> String) -> Check {
    if holds { Ok(()) } else { Err(detail()) }
}

fn one_live_attempt(state: &State) -> Check {
    let mut seen: BTreeSet<JobId> = BTreeSet::new();
    for attempt in state.attempts.values().filter(|attempt| attempt.state.is_live()) {
        that(seen.insert(attempt.id.job), || format!("{} and an earlier one", attempt.id))?;
    }
    Ok(())
}

fn held_by_live_attempt(state: &State) -> Check {
    all(state.attempts.values().filter(|attempt| attempt.state.is_live()), |attempt| {
        let held = state.jobs.get(&attempt.id.job).and_then(|job| job.state.live());
        that(held == Some((attempt.id, attempt.worker)), || format!("{} holds {held:?}", attempt.id))
    })?;
    all(state.jobs.values(), |job| match job.state.live() {
        Some((id, worker)) => {
            let held = state.attempts.get(&id);
            let good = held.is_some_and(|held| held.state.is_live() && held.worker == worker);
            that(good, || format!("{} is {} by {id}, which is {held:?}", job.id, job.state.name()))
        }
        None => Ok(()),
    })
}

fn waiting_for_something(state: &State) -> Check {
    let waiting = |job: &&Job| job.state == JobState::Waiting;
    all(state.jobs.values().filter(waiting), |job| {
        let outcomes: Vec<Option<&Outcome>> = job.needs.iter().map(|need| outcome_of(state, *need)).collect();
        let open = outcomes.iter().any(Option::is_none);
        let failed = outcomes.iter().flatten().any(|outcome| **outcome != Outcome::Passed);
        that(open && !failed, || format!("{}: {outcomes:?}", job.id))
    })
}

fn needs_passed_first(state: &State) -> Check {
    let begun = |job: &&Job| match &job.state {
        JobState::Queued { .. }
        | JobState::Assigned { .. }
        | JobState::Running { .. }
        | JobState::Stopping { .. } => true,
        JobState::Waiting => false,
        JobState::Finished { .. } => job.attempts > 0,
    };
    all(state.jobs.values().filter(begun), |job| {
        let open = job.needs.iter().find(|need| outcome_of(state, **need) != Some(&Outcome::Passed));
        that(open.is_none(), || format!("{} is {} and needs {open:?}", job.id, job.state.name()))
    })
}

fn skipped_for_a_need(state: &State) -> Check {
    let skipped = |job: &&Job| matches!(job.state.outcome(), Some(Outcome::Skipped { .. }));
    all(state.jobs.values().filter(skipped), |job| {
        let red = |need: &JobId| outcome_of(state, *need).is_some_and(|outcome| *outcome != Outcome::Passed);
        that(job.needs.iter().any(red), || format!("{} needs {:?}", job.id, job.needs))
    })
}

fn outcome_of(state: &State, job: JobId) -> Option<&Outcome> {
    state.jobs.get(&job).and_then(|job| job.state.outcome())
}

fn attempts_counted(state: &State) -> Check {
    all(state.jobs.values(), |job| {
        let numbers: Vec<u32> = state.attempts_at(job.id).map(|attempt| attempt.id.number.0).collect();
        let expected: Vec<u32> = (1..=job.attempts).collect();
        that(numbers == expected && job.attempts <= state.settings.max_attempts, || {
            format!("{} counts {} and has {numbers:?}", job.id, job.attempts)
        })
    })
}

fn fences_unique(state: &State) -> Check {
    let mut seen: BTreeSet<Fence> = BTreeSet::new();
    all(state.attempts.values().map(|attempt| (attempt.id, attempt.fence)), |(id, fence)| {
        that(fence < state.next_fence, || format!("{id} has {fence:?}"))
    })?;
    for attempt in state.attempts.values() {
        that(seen.insert(attempt.fence), || format!("{} shares {:?}", attempt.id, attempt.fence))?;
    }
    Ok(())
}

fn run_over_with_its_jobs(state: &State) -> Check {
    all(state.runs.values(), |run| {
        let open = state.jobs_of(run.id).filter(|job| job.state.outcome().is_none()).count();
        let jobs = state.jobs_of(run.id).count();
        let good = match run.state {
            RunState::Received | RunState::AwaitingApproval { .. } | RunState::Refused { .. } => jobs == 0,
            RunState::Active => open > 0,
            RunState::Finished { .. } => open == 0,
        };
        that(good, || format!("{} is {} with {open} of {jobs} jobs open", run.id, run.state.name()))
    })
}

fn verdict_is_the_sum(state: &State) -> Check {
    all(state.runs.values(), |run| match &run.state {
        RunState::Finished { verdict, reason: None, .. } => {
            let sum = Verdict::of(state.jobs_of(run.id).filter_map(|job| job.state.outcome()));
            that(sum == *verdict, || format!("{} is {verdict}, its jobs say {sum}", run.id))
        }
        RunState::Finished { reason: Some(_), .. }
        | RunState::Received
        | RunState::Refused { .. }
        | RunState::AwaitingApproval { .. }
        | RunState::Active => Ok(()),
    })
}

fn nothing_left_behind(state: &State) -> Check {
    all(state.runs.values().filter(|run| run.state.is_final()), |run| {
        let left = state.attempts_of(run.id).filter(|attempt| !attempt.state.is_removed()).count();
        that(left > 0, || format!("{} is over and still here", run.id))
    })?;
    all(state.jobs.keys(), |job| {
        that(state.runs.contains_key(&job.run), || format!("{job} without its run"))
    })?;
    all(state.attempts.keys(), |attempt| {
        that(state.jobs.contains_key(&attempt.job), || format!("{attempt} without its job"))
    })
}

fn attempt_has_worker(state: &State) -> Check {
    all(state.attempts.values().filter(|attempt| !attempt.state.is_removed()), |attempt| {
        that(state.workers.contains_key(&attempt.worker), || format!("{}", attempt.id))
    })
}

fn keys_bounded(state: &State) -> Check {
    let both = (state.keys.len(), state.key_of_run.len());
    that(both.0 <= MAX_KEYS && both.0 == both.1, || format!("{both:?}"))
}

fn index_in_step(state: &State) -> Check {
    state.index.differs_from(state).map_or(Ok(()), Err)
}

fn finished_is_final(before: &State, record: &Record) -> Check {
    match record {
        Record::JobChanged { job, .. } => {
            let outcome = before.jobs.get(job).and_then(|job| job.state.outcome());
            that(outcome.is_none(), || format!("{job} had ended: {outcome:?}"))
        }
        Record::RunChanged { run, .. } => {
            let over = before.runs.get(run).is_some_and(|run| run.state.is_final());
            that(!over, || format!("{run} was over"))
        }
        Record::RunCreated { .. }
        | Record::RunCompiled { .. }
        | Record::AttemptCreated { .. }
        | Record::AttemptStarted { .. }
        | Record::AttemptChanged { .. }
        | Record::WorkerChanged { .. }
        | Record::WorkerRemoved { .. } => Ok(()),
    }
}

fn first_end_counts(before: &State, record: &Record) -> Check {
    let Record::AttemptChanged { attempt, state } = record else {
        return Ok(());
    };
    let Some(known) = before.attempts.get(attempt) else {
        return Err(format!("{attempt} is not known"));
    };
    match (&known.state, state) {
        (AttemptState::Live, AttemptState::Ended { .. } | AttemptState::Removed { .. }) => Ok(()),
        (AttemptState::Ended { .. }, AttemptState::Removed { .. }) => {
            that(known.state.report() == state.report(), || format!("{attempt} ended in two ways"))
        }
        (AttemptState::Live | AttemptState::Ended { .. }, AttemptState::Live)
        | (AttemptState::Ended { .. }, AttemptState::Ended { .. })
        | (
            AttemptState::Removed { .. },
            AttemptState::Live | AttemptState::Ended { .. } | AttemptState::Removed { .. },
        ) => Err(format!("{attempt} from {} to {}", known.state.name(), state.name())),
    }
}

fn last_attempt(state: &State, job: JobId) -> Option<&Attempt> {
    state.attempts_at(job).last()
}

fn only_farm_faults_again(before: &State, record: &Record) -> Check {
    let Record::JobChanged { job, state: JobState::Queued { .. } } = record else {
        return Ok(());
    };
    let Some(last) = last_attempt(before, *job) else {
        return Ok(());
    };
    let outcome = last.state.report().map(|report| &report.outcome);
    let farm = matches!(outcome, Some(Outcome::Infra { .. }));
    that(farm, || format!("{job} is queued again after {outcome:?}"))
}

fn cancelled_stays_cancelled(before: &State, record: &Record) -> Check {
    let Record::JobChanged { job, state: JobState::Queued { .. } } = record else {
        return Ok(());
    };
    match before.jobs.get(job).map(|job| &job.state) {
        Some(JobState::Stopping { outcome, .. }) => {
            that(!matches!(outcome, Outcome::Cancelled { .. }), || format!("{job} was {outcome}"))
        }
        Some(
            JobState::Waiting
            | JobState::Queued { .. }
            | JobState::Assigned { .. }
            | JobState::Running { .. }
            | JobState::Finished { .. },
        )
        | None => Ok(()),
    }
}

fn capacity_kept(before: &State, record: &Record) -> Check {
    with_new_attempt(before, record, |attempt, job, worker| {
        let share = crate::demand::Share::of(&job.spec);
        let free = crate::demand::minus(before.workers[&worker].offer.capacity, before.used(worker));
        that(share.fits(&free), || format!("{} needs {share}, there is {free:?}", attempt.id))
    })
}

fn labels_respected(before: &State, record: &Record) -> Check {
    with_new_attempt(before, record, |attempt, job, worker| {
        let known = &before.workers[&worker];
        let good = known.labels().satisfy(&job.spec.labels) && !known.cordoned && known.offer.unfit.is_none();
        that(good, || format!("{} on {}", attempt.id, known.name))
    })
}

fn with_new_attempt(
    before: &State,
    record: &Record,
    check: impl Fn(&Attempt, &Job, WorkerId) -> Check,
) -> Check {
    let Record::AttemptCreated { attempt } = record else {
        return Ok(());
    };
    match (before.jobs.get(&attempt.id.job), before.workers.contains_key(&attempt.worker)) {
        (Some(job), true) => check(attempt, job, attempt.worker),
        (None, true | false) | (Some(_), false) => Err(format!("{} of nothing, or on nobody", attempt.id)),
    }
}

fn fences_grow(before: &State, record: &Record) -> Check {
    match record {
        Record::AttemptCreated { attempt } => {
            that(attempt.fence >= before.next_fence, || format!("{} has {:?}", attempt.id, attempt.fence))
        }
        Record::RunCreated { .. }
        | Record::RunCompiled { .. }
        | Record::RunChanged { .. }
        | Record::JobChanged { .. }
        | Record::AttemptStarted { .. }
        | Record::AttemptChanged { .. }
        | Record::WorkerChanged { .. }
        | Record::WorkerRemoved { .. } => Ok(()),
    }
}

fn run_numbers_grow(before: &State, record: &Record) -> Check {
    match record {
        Record::RunCreated { run } => that(run.id >= before.next_run, || format!("{} again", run.id)),
        Record::RunCompiled { .. }
        | Record::RunChanged { .. }
        | Record::JobChanged { .. }
        | Record::AttemptCreated { .. }
        | Record::AttemptStarted { .. }
        | Record::AttemptChanged { .. }
        | Record::WorkerChanged { .. }
        | Record::WorkerRemoved { .. } => Ok(()),
    }
}
