//! The scheduler's transaction.

use std::sync::Arc;

use buildyard_scheduler::Record;
use buildyard_scheduler::lifecycle::attempt::AttemptState;
use buildyard_scheduler::lifecycle::job::JobState;
use buildyard_scheduler::lifecycle::run::RunState;
use buildyard_types::{Epoch, Outcome, RunId, Timestamp, WorkerId};
use tokio::task::JoinSet;

use super::Maker;
use super::sample::*;
use crate::{AuditLine, Batch, RunQuery, Store, StoreError, Token, TokenKind};

pub(super) async fn a_fresh_store_is_empty(maker: &dyn Maker) {
    let store = maker.fresh().await;
    let snapshot = store.load().await.unwrap();
    assert_eq!((snapshot.last_run, snapshot.last_fence), (0, 0));
    assert!(snapshot.runs.is_empty() && snapshot.workers.is_empty() && snapshot.keys.is_empty());
    assert_eq!(store.last_event().await.unwrap(), 0);
    assert_eq!(store.run(RunId(1)).await.unwrap(), None);
    assert_eq!(store.attempt(RunId(1).job(0).attempt(1)).await.unwrap(), None);
    assert!(store.runs(&RunQuery { limit: 10, ..RunQuery::default() }).await.unwrap().is_empty());
    store.ping().await.unwrap();
}

fn admin(hash: &str) -> Token {
    let expires_at = Some(Timestamp(9_000));
    Token {
        hash: hash.into(),
        name: "ann".into(),
        kind: TokenKind::Admin,
        created_at: Timestamp(1),
        expires_at,
    }
}

fn line(subject: &str) -> AuditLine {
    AuditLine { at: Timestamp(7), actor: "ann".into(), act: "run.cancel".into(), subject: subject.into() }
}

fn full_batch(number: u64) -> Batch {
    let mut records = live_run(number);
    records.push(Record::WorkerChanged { worker: worker(WORKER) });
    Batch {
        at: Timestamp(4_000),
        records,
        events: vec![event(Some(number), "one"), event(None, "two")],
        tokens: vec![admin("aa")],
        audit: vec![line("run-1")],
    }
}

pub(super) async fn a_commit_is_kept_whole(maker: &dyn Maker) {
    let store = maker.fresh().await;
    let epoch = store.begin_epoch().await.unwrap();
    let events = store.commit(epoch, &full_batch(1)).await.unwrap();
    let store = maker.reopen(store).await;

    let expected = buildyard_scheduler::lifecycle::run::Run {
        pipeline: Some("cjson".into()),
        state: RunState::Active,
        ..run(1)
    };
    assert_eq!(store.run(RunId(1)).await.unwrap(), Some(expected));
    let jobs = store.jobs(RunId(1)).await.unwrap();
    let id = RunId(1).job(0).attempt(1);
    assert_eq!(jobs.len(), 1);
    assert_eq!(jobs[0].spec, spec("job 0"));
    assert_eq!(jobs[0].state, JobState::Assigned { attempt: id, worker: WORKER });
    assert_eq!(jobs[0].attempts, 1, "the attempt was counted");
    let attempts = store.attempts(RunId(1)).await.unwrap();
    assert_eq!(attempts.len(), 1);
    assert_eq!(attempts[0].0.started_at, Some(Timestamp(2_500)));
    assert_eq!(Some(&attempts[0]), store.attempt(id).await.unwrap().as_ref());
    assert_eq!(store.load().await.unwrap().workers, [worker(WORKER)]);
    assert_eq!(store.events(0, None, 10).await.unwrap(), events);
    assert_eq!(store.token("aa").await.unwrap(), Some(admin("aa")));
    assert_eq!(store.audit(10).await.unwrap(), [line("run-1")]);
}

pub(super) async fn a_commit_that_fails_leaves_nothing(maker: &dyn Maker) {
    let store = maker.fresh().await;
    let epoch = commit(&*store, live_run(1)).await;
    let unknown_job = Record::JobChanged { job: RunId(1).job(7), state: queued(1) };
    let unknown_run = Record::RunChanged { run: RunId(9), state: RunState::Active };
    let unknown_attempt =
        Record::AttemptChanged { attempt: RunId(1).job(0).attempt(5), state: AttemptState::Live };
    for unknown in [unknown_job, unknown_run, unknown_attempt] {
        let mut bad = full_batch(2);
        bad.records.push(unknown);
        let refused = store.commit(epoch, &bad).await;
        assert!(matches!(refused, Err(StoreError::Conflict(_))), "{refused:?}");
    }
    let snapshot = store.load().await.unwrap();
    assert_eq!((snapshot.last_run, snapshot.last_fence), (1, 1));
    assert_eq!(snapshot.runs.len(), 1);
    assert!(snapshot.workers.is_empty());
    assert_eq!(store.last_event().await.unwrap(), 0);
    assert_eq!(store.token("aa").await.unwrap(), None);
    assert!(store.audit(10).await.unwrap().is_empty());
    store.commit(epoch, &full_batch(2)).await.unwrap();
}

pub(super) async fn committing_again_changes_nothing_more(maker: &dyn Maker) {
    let store = maker.fresh().await;
    let records =
        [live_run(1), over(1, 5_000), vec![Record::WorkerChanged { worker: worker(WORKER) }]].concat();
    let epoch = commit(&*store, records.clone()).await;
    let before = format!("{:?}", look(&*store).await);
    for _ in 0..2 {
        store.commit(epoch, &batch(records.clone())).await.unwrap();
        assert_eq!(format!("{:?}", look(&*store).await), before);
    }
}

async fn look(store: &dyn Store) -> impl std::fmt::Debug {
    let run = RunId(1);
    let answers = (store.run(run).await.unwrap(), store.jobs(run).await.unwrap());
    (answers, store.attempts(run).await.unwrap(), store.load().await.unwrap())
}

pub(super) async fn the_last_record_about_a_thing_counts(maker: &dyn Maker) {
    let store = maker.fresh().await;
    let id = RunId(1).job(0).attempt(1);
    let other = WorkerId(7);
    let records = [
        live_run(1),
        vec![
            Record::WorkerChanged { worker: worker(WORKER) },
            Record::WorkerChanged { worker: worker(other) },
            Record::AttemptChanged { attempt: id, state: ended(4_500) },
            Record::JobChanged { job: id.job, state: job_passed(4_500) },
            Record::JobChanged { job: id.job, state: queued(4_600) },
            Record::WorkerRemoved { worker: other },
        ],
    ];
    commit(&*store, records.concat()).await;
    assert_eq!(store.jobs(RunId(1)).await.unwrap()[0].state, queued(4_600));
    assert_eq!(store.attempt(id).await.unwrap().unwrap().0.state, ended(4_500));
    assert_eq!(store.load().await.unwrap().workers, [worker(WORKER)]);
}

pub(super) async fn an_epoch_that_is_over_commits_nothing(maker: &dyn Maker) {
    let store = maker.fresh().await;
    let old = store.begin_epoch().await.unwrap();
    let store = maker.reopen(store).await;
    let new = store.begin_epoch().await.unwrap();
    assert!(new > old);
    for wrong in [old, Epoch(new.0 + 1)] {
        let refused = store.commit(wrong, &full_batch(1)).await;
        match refused {
            Err(StoreError::EpochOver { ours, newest }) => assert_eq!((ours, newest), (wrong, new)),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(store.run(RunId(1)).await.unwrap(), None);
    assert_eq!(store.last_event().await.unwrap(), 0);
    store.commit(new, &full_batch(1)).await.unwrap();
}

pub(super) async fn commits_at_once_are_all_kept_and_their_events_have_no_gap(maker: &dyn Maker) {
    const COMMITS: u64 = 64;
    let store = maker.fresh().await;
    let epoch = store.begin_epoch().await.unwrap();
    let mut calls = JoinSet::new();
    for number in 1..=COMMITS {
        let store = Arc::clone(&store);
        calls.spawn(async move {
            let mut batch = full_batch(number);
            // Every fourth one fails, in the midst of the others.
            if number % 4 == 0 {
                batch.records.push(Record::RunChanged { run: RunId(9_999), state: RunState::Active });
            }
            (number, store.commit(epoch, &batch).await)
        });
    }
    let mut told = Vec::new();
    while let Some(done) = calls.join_next().await {
        let (number, result) = done.unwrap();
        assert_eq!(result.is_ok(), number % 4 != 0, "{number}: {result:?}");
        assert_eq!(store.run(RunId(number)).await.unwrap().is_some(), result.is_ok());
        told.extend(result.unwrap_or_default());
    }
    told.sort_by_key(|event| event.sequence);
    let store = maker.reopen(store).await;
    assert_eq!(store.events(0, None, 1_000).await.unwrap(), told);
    let numbers: Vec<u64> = told.iter().map(|event| event.sequence).collect();
    assert_eq!(numbers, (1..=COMMITS / 4 * 3 * 2).collect::<Vec<_>>());
}

pub(super) async fn a_large_batch_is_one_commit(maker: &dyn Maker) {
    const RUNS: u64 = 1_000;
    let store = maker.fresh().await;
    let mut records: Vec<Record> = (1..=RUNS).flat_map(live_run).collect();
    records.extend((1..=RUNS).flat_map(|number| over(number, 5_000)));
    let mut large = batch(records);
    large.events = (1..=RUNS).map(|number| event(Some(number), "done")).collect();
    assert_eq!(large.records.len(), 10_000);
    let epoch = store.begin_epoch().await.unwrap();
    let events = store.commit(epoch, &large).await.unwrap();
    assert_eq!(events.last().map(|event| event.sequence), Some(RUNS));
    for number in [1, RUNS / 2, RUNS] {
        let run = store.run(RunId(number)).await.unwrap().unwrap();
        assert_eq!(run.state, run_passed(5_000));
        assert_eq!(store.jobs(run.id).await.unwrap()[0].state, job_passed(5_000));
        assert_eq!(store.attempts(run.id).await.unwrap()[0].0.state, removed(5_000));
    }
    assert_eq!(store.load().await.unwrap().last_fence, RUNS);
}

pub(super) async fn a_removed_worker_loses_its_credential(maker: &dyn Maker) {
    let store = maker.fresh().await;
    let other = WorkerId(1);
    let token = |hash: &str, worker| Token { kind: TokenKind::Worker(worker), ..admin(hash) };
    let epoch = commit(&*store, vec![Record::WorkerChanged { worker: worker(WORKER) }]).await;
    store.add_token(&token("aa", WORKER)).await.unwrap();
    store.add_token(&token("bb", other)).await.unwrap();
    store.commit(epoch, &batch(vec![Record::WorkerRemoved { worker: WORKER }])).await.unwrap();
    assert_eq!(store.token("aa").await.unwrap(), None);
    assert_eq!(store.token("bb").await.unwrap(), Some(token("bb", other)));
    assert!(store.load().await.unwrap().workers.is_empty());
    // One that enrols again under the same id has a new credential from the same transaction.
    let mut again = batch(vec![
        Record::WorkerRemoved { worker: WORKER },
        Record::WorkerChanged { worker: worker(WORKER) },
    ]);
    again.tokens = vec![token("cc", WORKER)];
    store.commit(epoch, &again).await.unwrap();
    assert_eq!(store.token("cc").await.unwrap(), Some(token("cc", WORKER)));
}

pub(super) async fn a_scheduler_gets_what_is_not_over_and_nothing_else(maker: &dyn Maker) {
    let store = maker.fresh().await;
    let mut records: Vec<Record> = (1..=5).flat_map(live_run).collect();
    // Run 1 is over; run 2 is final but its attempt is not removed; run 3 is live; run 4 was refused; run 5
    // has a second attempt that is left over.
    records.extend(over(1, 5_000));
    records.extend(over(2, 5_000).into_iter().take(3));
    records.push(Record::RunCreated { run: run(6) });
    records.push(Record::RunChanged { run: RunId(6), state: refused(5_000) });
    records.extend(over(5, 5_000));
    let second = RunId(5).job(0).attempt(2);
    records.push(Record::AttemptCreated { attempt: attempt(second, 50) });
    let outcome = Outcome::Cancelled { by: "by admin".into() };
    let state = AttemptState::Ended { report: report(outcome), at: Timestamp(5_000) };
    records.push(Record::AttemptChanged { attempt: second, state });
    commit(&*store, records).await;
    let store = maker.reopen(store).await;
    let snapshot = store.load().await.unwrap();
    let ids = |runs: &[u64]| runs.iter().copied().map(RunId).collect::<Vec<_>>();
    assert_eq!(snapshot.runs.iter().map(|run| run.id).collect::<Vec<_>>(), ids(&[2, 3, 4, 5]));
    assert_eq!(snapshot.jobs.iter().map(|job| job.id.run).collect::<Vec<_>>(), ids(&[2, 3, 4, 5]));
    let attempts: Vec<RunId> = snapshot.attempts.iter().map(|attempt| attempt.id.run()).collect();
    assert_eq!(attempts, ids(&[2, 3, 4, 5, 5]));
    assert_eq!((snapshot.last_run, snapshot.last_fence), (6, 50));
    assert_eq!(store.run(RunId(6)).await.unwrap().unwrap().state, refused(5_000));
    let job = store.jobs(RunId(5)).await.unwrap().remove(0);
    assert_eq!(job.attempts, 2);
}

pub(super) async fn keys_of_requesters_lead_to_their_newest_run(maker: &dyn Maker) {
    let store = maker.fresh().await;
    let keyed = |number: u64, key: &str| {
        let run = buildyard_scheduler::lifecycle::run::Run { key: Some(key.into()), ..run(number) };
        Record::RunCreated { run }
    };
    commit(&*store, vec![keyed(1, "a"), keyed(2, "b"), Record::RunCreated { run: run(3) }, keyed(4, "a")])
        .await;
    let store = maker.reopen(store).await;
    let keys = store.load().await.unwrap().keys;
    assert_eq!(keys, [("a".to_owned(), RunId(4)), ("b".to_owned(), RunId(2))]);
}
