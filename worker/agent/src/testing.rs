//! Values that several tests need.

use buildyard_types::job::{CheckoutSpec, JobUser, NetworkMode, Resources, Shell, StepSpec};
use buildyard_types::worker::{AttemptOrder, EndReport, SourceRef, Usage};
use buildyard_types::{AttemptId, ByteSize, Fence, JobSpec, LabelExpr, Millis, Outcome};

/// Says that a test cannot run here. Where everything is to be run, that is a failure.
pub(crate) fn skipped(why: &str) {
    assert!(std::env::var_os("BUILDYARD_REQUIRE_ENGINE").is_none(), "not run: {why}");
    eprintln!("skipped: {why}");
}

/// A job of one step.
pub(crate) fn job() -> JobSpec {
    JobSpec {
        name: "unit".into(),
        image: "c-toolchain:12".into(),
        labels: LabelExpr::Any,
        needs: Vec::new(),
        env: [("LANGUAGE".to_owned(), "en".to_owned())].into(),
        steps: vec![step("tests", "make check")],
        resources: Resources {
            cpu_millis: 1_000,
            memory: ByteSize::from_mib(512),
            pids: 256,
            disk: ByteSize::from_gib(1),
        },
        timeout_ms: Millis::from_mins(30),
        queue_timeout_ms: Millis::from_mins(120),
        artifacts: Vec::new(),
        network: NetworkMode::None,
        user: JobUser::Build,
        checkout: CheckoutSpec { depth: None, tags: false },
    }
}

/// A step without anything special.
pub(crate) fn step(name: &str, run: &str) -> StepSpec {
    StepSpec {
        name: name.into(),
        run: run.into(),
        shell: Shell::Sh,
        dir: String::new(),
        env: Default::default(),
        timeout_ms: None,
    }
}

/// An order of that job.
pub(crate) fn order(attempt: AttemptId) -> AttemptOrder {
    AttemptOrder {
        attempt,
        fence: Fence(attempt.job.run.0 * 10),
        spec: job(),
        source: SourceRef {
            repository: "https://git.example/team/app.git".into(),
            commit: "5e1c309dae7f45e0f39b1bf3ac3cd9db12e7d689".into(),
            ref_name: Some("refs/heads/main".into()),
        },
        pipeline: "app".into(),
        log_cap: ByteSize::from_mib(64),
    }
}

/// A report with nothing but an outcome.
pub(crate) fn report(outcome: Outcome) -> EndReport {
    EndReport { outcome, steps: Vec::new(), usage: Usage::default(), notes: Vec::new(), image_digest: None }
}
