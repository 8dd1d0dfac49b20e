//! Artifacts: kept once under their name.

use buildyard_types::worker::ArtifactFile;
use buildyard_types::{RunId, Timestamp};

use super::Maker;
use super::sample::*;
use crate::{Artifact, StoreError};

pub(super) fn file(path: &str, content: u64) -> ArtifactFile {
    ArtifactFile {
        path: path.into(),
        size: content * 1_000,
        sha256: format!("{content:064x}"),
        executable: content % 2 == 1,
    }
}

pub(super) fn artifact(run: u64, name: &str, files: Vec<ArtifactFile>) -> Artifact {
    let (created_at, expires_at) = (Timestamp(3_000), Timestamp(9_000));
    Artifact { attempt: by(run).attempt, name: name.into(), files, created_at, expires_at }
}

pub(super) async fn an_artifact_is_kept_and_found(maker: &dyn Maker) {
    let store = maker.fresh().await;
    commit(&*store, [live_run(1), live_run(2)].concat()).await;
    let many = (0..500).map(|number| file(&format!("obj/{number:04}.o"), number)).collect();
    let bin = artifact(1, "bin", vec![file("out/cjson", 7), file("out/größe '\"", 8)]);
    let objects = artifact(1, "obj", many);
    let empty = artifact(1, "empty", Vec::new());
    let other_run = artifact(2, "bin", vec![file("out/cjson", 9)]);
    for kept in [&objects, &bin, &empty] {
        store.put_artifact(by(1), kept).await.unwrap();
    }
    store.put_artifact(by(2), &other_run).await.unwrap();
    let store = maker.reopen(store).await;
    assert_eq!(store.artifacts(RunId(1)).await.unwrap(), [bin, empty, objects]);
    assert_eq!(store.artifacts(RunId(2)).await.unwrap(), [other_run]);
    assert!(store.artifacts(RunId(3)).await.unwrap().is_empty());
}

pub(super) async fn an_artifact_that_is_sent_again_is_accepted(maker: &dyn Maker) {
    let store = maker.fresh().await;
    commit(&*store, live_run(1)).await;
    let first = artifact(1, "bin", vec![file("a", 1), file("b", 2)]);
    store.put_artifact(by(1), &first).await.unwrap();
    let later = Artifact { created_at: Timestamp(4_000), expires_at: Timestamp(10_000), ..first.clone() };
    store.put_artifact(by(1), &later).await.unwrap();
    assert_eq!(store.artifacts(RunId(1)).await.unwrap(), [first]);
}

pub(super) async fn an_artifact_that_contradicts_is_refused(maker: &dyn Maker) {
    let store = maker.fresh().await;
    commit(&*store, live_run(1)).await;
    let first = artifact(1, "bin", vec![file("a", 1), file("b", 2)]);
    store.put_artifact(by(1), &first).await.unwrap();
    let others = [
        vec![file("a", 1)],
        vec![file("a", 1), file("b", 3)],
        vec![file("a", 1), file("c", 2)],
        vec![file("a", 1), file("b", 2), file("c", 3)],
    ];
    // Lists that could not be kept as what they are.
    let broken = [vec![file("b", 2), file("a", 1)], vec![file("a", 1), file("a", 1)]];
    let named = |name: &'static str| move |files| artifact(1, name, files);
    for wrong in others.into_iter().map(named("bin")).chain(broken.into_iter().map(named("new"))) {
        let refused = store.put_artifact(by(1), &wrong).await;
        assert!(matches!(refused, Err(StoreError::Conflict(_))), "{wrong:?}: {refused:?}");
    }
    assert_eq!(store.artifacts(RunId(1)).await.unwrap(), [first]);
}
