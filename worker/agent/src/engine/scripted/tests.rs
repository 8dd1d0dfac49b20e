//! The fake against the contract, and the faults that only it can play.

use std::time::Duration;

use super::super::contract::{self, Host};
use super::*;

struct Fake {
    engine: ScriptedEngine,
    instance: Instance,
}

const IMAGE: &str = "buildyard-test/busybox:1";

impl Fake {
    fn new() -> Option<Self> {
        let engine = ScriptedEngine::new(|spec| match spec.entrypoint[0].as_str() {
            "exit-7" => Program::Exits(7),
            "eat-memory" => Program::RunsOutOfMemory,
            "missing" => Program::Missing,
            _ => Program::Runs,
        });
        engine.hold_image(ScriptedImage::plain(IMAGE));
        Some(Self { engine, instance: Instance::new("contract") })
    }
}

impl Host for Fake {
    fn engine(&self) -> &dyn Engine {
        &self.engine
    }

    fn instance(&self) -> &Instance {
        &self.instance
    }

    fn image(&self) -> &str {
        IMAGE
    }

    fn command(&self, program: contract::Program) -> Vec<String> {
        let word = match program {
            contract::Program::Sleeps => "sleep",
            contract::Program::ExitsWith7 => "exit-7",
            contract::Program::EatsMemory => "eat-memory",
            contract::Program::Missing => "missing",
        };
        vec![word.to_owned()]
    }
}

crate::engine_contract!(Fake::new());

#[tokio::test]
async fn faults_are_met_one_after_the_other() {
    let engine = Fake::new().expect("always there").engine;
    engine.script(CallKind::Image, Fault::Fails("disk".into()));
    engine.script(CallKind::Image, Fault::TimesOut);
    assert!(matches!(engine.image(IMAGE).await, Err(EngineError::Failed { .. })));
    engine.ping().await.expect("other calls meet nothing");
    assert!(matches!(engine.image(IMAGE).await, Err(EngineError::Timeout { .. })));
    engine.image(IMAGE).await.expect("and then all is well");
    let subjects: Vec<_> = engine.calls().iter().map(|call| call.kind).collect();
    assert_eq!(subjects, [CallKind::Image, CallKind::Ping, CallKind::Image, CallKind::Image]);
}

#[tokio::test]
async fn a_pull_finds_what_the_registry_has() {
    let engine = Fake::new().expect("always there").engine;
    assert!(matches!(engine.pull("debian:12").await, Err(EngineError::ImageUnknown { .. })));
    engine.offer_image(ScriptedImage::plain("debian:12"));
    engine.script(CallKind::Pull, Fault::PullFails("no route to host".into()));
    assert!(matches!(engine.pull("debian:12").await, Err(EngineError::PullFailed { .. })));
    engine.pull("debian:12").await.expect("the second time");
    engine.image("debian:12").await.expect("it is held now");
}

#[tokio::test]
async fn who_waits_learns_that_the_engine_went_away() {
    let engine = ScriptedEngine::new(|_| Program::Played(std::sync::Arc::new(|_| {})));
    engine.hold_image(ScriptedImage::plain(IMAGE));
    let fake = Fake { engine: engine.clone(), instance: Instance::new("away") };
    let id = contract::started(&fake, "away", contract::Program::Sleeps).await;
    let waiting = tokio::spawn({
        let (engine, id) = (engine.clone(), id.clone());
        async move { engine.wait(&id).await }
    });
    while !engine.calls().iter().any(|call| call.kind == CallKind::Wait) {
        tokio::task::yield_now().await;
    }
    engine.go_away();
    assert!(matches!(waiting.await.expect("no panic"), Err(EngineError::Unavailable { .. })));
    engine.end(&id, 3, false);
    engine.come_back();
    assert_eq!(engine.wait(&id).await.expect("the end was kept").code, 3);
}

#[tokio::test(start_paused = true)]
async fn a_slow_call_is_slow_and_then_carried_out() {
    let engine = Fake::new().expect("always there").engine;
    engine.script(CallKind::Ping, Fault::Slow(Duration::from_secs(9)));
    let begin = tokio::time::Instant::now();
    engine.ping().await.expect("slow, but answered");
    assert_eq!(begin.elapsed(), Duration::from_secs(9));
}

#[tokio::test]
async fn a_played_container_is_told_of_its_end() {
    let (told, mut ended) = tokio::sync::mpsc::channel(1);
    let engine = ScriptedEngine::new(move |_| {
        let told = told.clone();
        Program::Played(std::sync::Arc::new(move |running: Running| {
            let told = told.clone();
            tokio::spawn(async move {
                running.ended().await;
                told.send(running.spec.name.clone()).await
            });
        }))
    });
    engine.hold_image(ScriptedImage::plain(IMAGE));
    let fake = Fake { engine: engine.clone(), instance: Instance::new("played") };
    let id = contract::started(&fake, "one", contract::Program::Sleeps).await;
    engine.remove(&id).await.expect("remove");
    assert_eq!(ended.recv().await.as_deref(), Some("played-one"));
}
