//! The invariants can fail: each of them notices a state, or a record, that is wrong.

use std::collections::BTreeSet;

use buildyard_scheduler::invariants::{OF_RECORD, OF_STATE, broken_by, broken_in};
use buildyard_scheduler::lifecycle::attempt::{Attempt, AttemptState, decided_end};
use buildyard_scheduler::lifecycle::job::{Job, JobState};
use buildyard_scheduler::lifecycle::run::RunState;
use buildyard_scheduler::{Input, Record, State};
use buildyard_types::outcome::InfraCause;
use buildyard_types::{Fence, Outcome, RunId, Timestamp, Verdict, WorkerId};

use crate::farm::{Farm, capacity, infra, job, labelled, needing};

const RUN: RunId = RunId(1);

/// One job on a worker, one queued, one waiting, one over.
fn farm() -> Farm {
    let mut farm = Farm::new();
    farm.worker_of("", capacity(2, 8));
    let run = farm.run(vec![job("over"), job("placed"), job("queued"), needing("waiting", &["queued"])]);
    assert_eq!(run, RUN);
    let failed = farm.ended(run.job(0).attempt(1), Outcome::Passed, false);
    let running = farm.runs(run.job(1).attempt(1), 0);
    farm.sync(WorkerId(1), &[failed, running]);
    farm
}

fn set(state: &mut State, job: u32, to: JobState) {
    if let Some(job) = state.jobs.get_mut(&RUN.job(job)) {
        job.state = to;
    }
}

fn attempt(state: &State, job: u32) -> Attempt {
    state.attempts[&RUN.job(job).attempt(1)].clone()
}

fn names(state: &State) -> BTreeSet<&'static str> {
    broken_in(state).iter().map(|broken| broken.name).collect()
}

#[test]
fn each_truth_about_a_state_can_be_broken() {
    type Harm = fn(&mut State);
    let harms: [(&str, Harm); 13] = [
        ("a job has at most one live attempt", |state| {
            let second = Attempt { id: RUN.job(1).attempt(2), fence: Fence(90), ..attempt(state, 1) };
            state.attempts.insert(second.id, second);
        }),
        ("a job on a worker is held by a live attempt, and no other job is", |state| {
            set(state, 1, JobState::Queued { since: Timestamp(0), not_before: Timestamp(0) });
        }),
        ("a waiting job has a need that is open, and none that failed", |state| {
            let ended = Timestamp(0);
            set(state, 2, JobState::Finished { outcome: Outcome::Passed, started: None, ended });
        }),
        ("a job is queued or placed only after all that it needs passed", |state| {
            set(state, 3, JobState::Queued { since: Timestamp(0), not_before: Timestamp(0) });
        }),
        ("a job is skipped only if something that it needs did not pass", |state| {
            let (outcome, ended) = (Outcome::Skipped { reason: "for fun".into() }, Timestamp(0));
            set(state, 3, JobState::Finished { outcome, started: None, ended });
        }),
        ("attempts are counted from 1 without gaps and never beyond the limit", |state| {
            if let Some(job) = state.jobs.get_mut(&RUN.job(1)) {
                job.attempts = 4;
            }
        }),
        ("fences are unique and below the next", |state| state.next_fence = Fence(1)),
        ("a run is over exactly when its jobs are", |state| {
            if let Some(run) = state.runs.get_mut(&RUN) {
                run.state = RunState::Received;
            }
        }),
        ("the verdict is the sum of the jobs", |state| {
            if let Some(run) = state.runs.get_mut(&RUN) {
                run.state = RunState::Finished { verdict: Verdict::Failed, reason: None, at: Timestamp(0) };
            }
        }),
        ("what is over leaves nothing behind", |state| {
            state.runs.remove(&RUN);
        }),
        ("an attempt that is not removed has a worker", |state| state.workers.clear()),
        ("keys are bounded", |state| {
            state.keys.insert("stray".into(), RUN);
        }),
        ("the index is what the state implies", |state| {
            state.jobs.remove(&RUN.job(2));
        }),
    ];
    for (name, harm) in harms {
        let mut state = farm().core.state().clone();
        assert_eq!(names(&state), BTreeSet::new());
        harm(&mut state);
        assert!(names(&state).contains(name), "{name} was not noticed, only {:?}", names(&state));
    }
    let tested: BTreeSet<&str> = harms.iter().map(|(name, _)| *name).collect();
    assert_eq!(tested, OF_STATE.iter().map(|(name, _)| *name).collect(), "none is left out");
}

/// The farm of above with a worker that has no room, and a job that only that worker may take.
fn farm_with_a_picky_job(cancelled: bool) -> (State, WorkerId) {
    let mut farm = farm();
    let full = farm.worker_of("gpu", capacity(0, 0));
    if cancelled {
        farm.decide(Input::CancelJob { job: RUN.job(1), by: "by admin".into() });
    }
    let mut state = farm.core.state().clone();
    let picky = Job {
        id: RUN.job(4),
        spec: labelled("picky", "gpu"),
        needs: Vec::new(),
        state: JobState::Queued { since: Timestamp(0), not_before: Timestamp(0) },
        attempts: 0,
    };
    state.jobs.insert(picky.id, picky);
    (state, full)
}

#[test]
fn each_truth_about_a_record_can_be_broken() {
    let now = Timestamp(0);
    let (state, full) = farm_with_a_picky_job(false);
    let queue_again = || {
        let state = JobState::Queued { since: now, not_before: now };
        Record::JobChanged { job: RUN.job(1), state }
    };
    let place = |job: u32, worker: WorkerId, fence: u64| Record::AttemptCreated {
        attempt: Attempt {
            id: RUN.job(job).attempt(1),
            worker,
            fence: Fence(fence),
            placed_at: now,
            started_at: None,
            state: AttemptState::Live,
        },
    };
    let finished = JobState::Finished { outcome: Outcome::Passed, started: None, ended: now };
    let ended_again = AttemptState::Ended { report: decided_end(infra(InfraCause::Engine)), at: now };
    let records = [
        ("finished is final", Record::JobChanged { job: RUN.job(0), state: finished }),
        (
            "the first end of an attempt is its end",
            Record::AttemptChanged { attempt: RUN.job(0).attempt(1), state: ended_again },
        ),
        ("only what the farm did is tried again", queue_again()),
        ("a cancelled job does not come back", queue_again()),
        ("capacity is never exceeded", place(2, full, 50)),
        ("an attempt is given to a worker that matches", place(4, WorkerId(1), 50)),
        ("fences grow", place(2, WorkerId(1), 1)),
        ("run numbers grow", Record::RunCreated { run: state.runs[&RUN].clone() }),
    ];
    for (name, record) in &records {
        let (state, _) = farm_with_a_picky_job(*name == "a cancelled job does not come back");
        let broken: Vec<&str> = broken_by(&state, record).iter().map(|broken| broken.name).collect();
        assert!(broken.contains(name), "{name} was not noticed, only {broken:?}");
    }
    let tested: BTreeSet<&str> = records.iter().map(|(name, _)| *name).collect();
    assert_eq!(tested, OF_RECORD.iter().map(|(name, _)| *name).collect(), "none is left out");
}
