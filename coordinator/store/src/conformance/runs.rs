//! Lists for people: runs, events, acts.

use buildyard_scheduler::Record;
use buildyard_scheduler::lifecycle::run::Run;
use buildyard_types::{RunId, Timestamp};

use super::Maker;
use super::sample::*;
use crate::{AuditLine, RunQuery, Store};

async fn numbers(store: &dyn Store, query: &RunQuery) -> Vec<u64> {
    store.runs(query).await.unwrap().iter().map(|run| run.id.0).collect()
}

fn page(limit: u32) -> RunQuery {
    RunQuery { limit, ..RunQuery::default() }
}

pub(super) async fn runs_come_newest_first_in_pages(maker: &dyn Maker) {
    let store = maker.fresh().await;
    commit(&*store, (1..=450).map(|number| Record::RunCreated { run: run(number) }).collect()).await;
    assert_eq!(numbers(&*store, &page(3)).await, [450, 449, 448]);
    assert!(numbers(&*store, &page(0)).await.is_empty());
    let mut seen = Vec::new();
    let mut query = page(u32::MAX);
    loop {
        let found = numbers(&*store, &query).await;
        assert!(found.len() <= 200, "{} runs on a page", found.len());
        let Some(last) = found.last() else { break };
        query.before = Some(RunId(*last));
        seen.extend(found);
    }
    assert_eq!(seen, (1..=450).rev().collect::<Vec<_>>());
    let first = store.runs(&RunQuery { before: Some(RunId(2)), ..page(10) }).await.unwrap();
    assert_eq!(first, [run(1)]);
}

pub(super) async fn runs_are_found_by_repository_and_commit(maker: &dyn Maker) {
    let store = maker.fresh().await;
    let of = |number, repository: &str, commit: &str| {
        let mut run: Run = run(number);
        run.source.repository = repository.into();
        run.source.commit = commit.into();
        Record::RunCreated { run }
    };
    let records = vec![
        of(1, "a", "abc000"),
        of(2, "a", "abd000"),
        of(3, "b", "abc000"),
        of(4, "b", "ffffff"),
        of(5, "a", "abcfff"),
        of(6, "A", "0abc00"),
    ];
    commit(&*store, records).await;
    let repository = |name: &str| RunQuery { repository: Some(name.into()), ..page(10) };
    let commit = |prefix: &str| RunQuery { commit: Some(prefix.into()), ..page(10) };
    assert_eq!(numbers(&*store, &repository("a")).await, [5, 2, 1]);
    assert_eq!(numbers(&*store, &repository("A")).await, [6]);
    assert!(numbers(&*store, &repository("%")).await.is_empty());
    assert_eq!(numbers(&*store, &commit("abc")).await, [5, 3, 1]);
    assert_eq!(numbers(&*store, &commit("abc000")).await, [3, 1]);
    assert_eq!(numbers(&*store, &commit("f")).await, [4]);
    assert!(numbers(&*store, &commit("abc0000")).await.is_empty());
    assert!(numbers(&*store, &commit("ab%")).await.is_empty());
    let both = RunQuery { repository: Some("a".into()), ..commit("ab") };
    assert_eq!(numbers(&*store, &both).await, [5, 2, 1]);
    assert_eq!(numbers(&*store, &RunQuery { before: Some(RunId(5)), limit: 1, ..both }).await, [2]);
}

pub(super) async fn events_come_in_order_from_any_number(maker: &dyn Maker) {
    let store = maker.fresh().await;
    let epoch = store.begin_epoch().await.unwrap();
    let mut told = Vec::new();
    for number in 1..=10 {
        let mut batch = batch(Vec::new());
        batch.events =
            vec![event(Some(number % 2), &format!("event {number}")), event(None, "a worker joined")];
        told.extend(store.commit(epoch, &batch).await.unwrap());
    }
    assert!(told.iter().map(|event| event.sequence).eq(1..=20));
    let store = maker.reopen(store).await;
    assert_eq!(store.last_event().await.unwrap(), 20);
    for after in 0..=20 {
        let from = &told[after as usize..];
        assert_eq!(store.events(after, None, 100).await.unwrap(), from);
        assert_eq!(store.events(after, None, 3).await.unwrap(), from[..from.len().min(3)]);
        let of_run: Vec<_> = from.iter().filter(|event| event.run == Some(RunId(1))).cloned().collect();
        assert_eq!(store.events(after, Some(RunId(1)), 100).await.unwrap(), of_run);
    }
    assert!(store.events(u64::MAX, None, 100).await.unwrap().is_empty());
    assert!(store.events(0, Some(RunId(9)), 100).await.unwrap().is_empty());
}

pub(super) async fn acts_on_record_come_newest_first(maker: &dyn Maker) {
    let store = maker.fresh().await;
    let epoch = store.begin_epoch().await.unwrap();
    let line = |number: u64| AuditLine {
        at: Timestamp(number),
        actor: "ann".into(),
        act: "run.cancel".into(),
        subject: format!("run-{number}"),
    };
    for number in [1, 3] {
        let mut batch = batch(Vec::new());
        batch.audit = vec![line(number), line(number + 1)];
        store.commit(epoch, &batch).await.unwrap();
    }
    let store = maker.reopen(store).await;
    assert_eq!(store.audit(3).await.unwrap(), [line(4), line(3), line(2)]);
    assert_eq!(store.audit(100).await.unwrap().len(), 4);
}
