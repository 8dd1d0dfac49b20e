//! The rules of what a job may do, and the page that promises it.

use buildyard_types::job::{CheckoutSpec, StepSpec};
use buildyard_types::worker::SourceRef;
use buildyard_types::{ByteSize, Fence, LabelExpr, Millis, RunId};

use super::*;

fn image() -> ImageFacts {
    ImageFacts {
        engine_ref: "sha256:00".into(),
        config_digest: Some("sha256:00".into()),
        os: "linux".into(),
        arch: "amd64".into(),
        env: [
            ("PATH", "/opt/bin:/bin"),
            ("HOME", "/root"),
            ("TZ", "Europe/Berlin"),
            ("CI", "false"),
            ("CC", "gcc"),
        ]
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .into(),
        owner: Owner { uid: 1234, gid: 1235 },
        user_name: "node".into(),
        has_shell: true,
        passwd: "/data/images/00/passwd".into(),
        group: "/data/images/00/group".into(),
    }
}

fn job(user: JobUser, network: NetworkMode) -> JobSpec {
    JobSpec {
        name: "unit".into(),
        image: "gcc:12".into(),
        labels: LabelExpr::Any,
        needs: Vec::new(),
        env: [("HOME", "/elsewhere"), ("BUILDYARD_RUN", "run-666"), ("A", "job")]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into(),
        steps: Vec::<StepSpec>::new(),
        resources: Resources {
            cpu_millis: 1_500,
            memory: ByteSize::from_mib(512),
            pids: 64,
            disk: ByteSize::from_gib(1),
        },
        timeout_ms: Millis::from_mins(30),
        queue_timeout_ms: Millis::from_mins(30),
        artifacts: Vec::new(),
        network,
        user,
        checkout: CheckoutSpec { depth: None, tags: false },
    }
}

fn order(spec: JobSpec) -> AttemptOrder {
    AttemptOrder {
        attempt: RunId(42).job(3).attempt(2),
        fence: Fence(9),
        spec,
        source: SourceRef {
            repository: "https://forge.example/team/x".into(),
            commit: "c0ffee".into(),
            ref_name: Some("refs/heads/feature/a".into()),
        },
        pipeline: "ci".into(),
        log_cap: ByteSize::from_mib(1),
    }
}

const ALL: Policy = Policy { allow_root: true, allow_host_network: true };

fn made(user: JobUser, network: NetworkMode) -> ContainerSpec {
    let profile = judge(&job(user, network), &image(), "amd64", &ALL).expect("allowed");
    let instance = Instance::new("wkr-1");
    let parts = Parts {
        instance: &instance,
        name: "att-42-3-2".into(),
        resources: &job(user, network).resources,
        entrypoint: vec!["/init".into()],
        mounts: vec![Mount { source: "/data/ws".into(), target: WORKSPACE.into(), read_only: false }],
        egress: ContainerNetwork::Named("byd-123456".into()),
    };
    container(&profile, &image(), parts)
}

#[test]
fn policy_says_who_may_be_root_and_who_the_host() {
    let none = Policy::default();
    let root_only = Policy { allow_root: true, ..none };
    let host_only = Policy { allow_host_network: true, ..none };
    for (user, network, policy, expected) in [
        (JobUser::Build, NetworkMode::None, none, None),
        (JobUser::Build, NetworkMode::Egress, none, None),
        (JobUser::Root, NetworkMode::None, none, Some(Refusal::Root)),
        (JobUser::Root, NetworkMode::None, host_only, Some(Refusal::Root)),
        (JobUser::Root, NetworkMode::Egress, root_only, None),
        (JobUser::Build, NetworkMode::Host, none, Some(Refusal::HostNetwork)),
        (JobUser::Build, NetworkMode::Host, root_only, Some(Refusal::HostNetwork)),
        (JobUser::Build, NetworkMode::Host, host_only, None),
        (JobUser::Root, NetworkMode::Host, ALL, None),
    ] {
        let found = judge(&job(user, network), &image(), "amd64", &policy).err();
        assert_eq!(found, expected, "{user:?} {network:?} {policy:?}");
    }
}

#[test]
fn an_image_that_cannot_run_is_named() {
    let job = job(JobUser::Build, NetworkMode::None);
    let shell_less = ImageFacts { has_shell: false, ..image() };
    let text = judge(&job, &shell_less, "amd64", &ALL).expect_err("no shell").to_string();
    assert!(text.contains("gcc:12") && text.contains("/bin/sh"), "{text}");
    let text = judge(&job, &image(), "arm64", &ALL).expect_err("other machine").to_string();
    assert!(text.contains("gcc:12") && text.contains("amd64") && text.contains("arm64"), "{text}");
}

#[test]
fn ordinary_jobs_have_no_rights_and_an_account() {
    let spec = made(JobUser::Build, NetworkMode::None);
    assert_eq!(spec.user, Owner { uid: 1234, gid: 1235 });
    assert!(spec.capabilities.is_empty() && spec.env.is_empty());
    assert_eq!(spec.network, ContainerNetwork::None);
    let read_only: Vec<&str> =
        spec.mounts.iter().filter(|mount| mount.read_only).map(|mount| mount.target.as_str()).collect();
    assert_eq!(read_only, ["/etc/passwd", "/etc/group"]);
    assert_eq!(spec.limits, Limits { cpu_millis: 1_500, memory: ByteSize::from_mib(512), pids: 64 });
    assert_eq!(spec.labels.get("buildyard.worker").map(String::as_str), Some("wkr-1"));
}

#[test]
fn root_has_six_rights_and_the_images_accounts() {
    let spec = made(JobUser::Root, NetworkMode::Egress);
    assert_eq!(spec.user, Owner { uid: 0, gid: 0 });
    let names: Vec<&str> = spec.capabilities.iter().map(|capability| capability.as_str()).collect();
    assert_eq!(names, ["CHOWN", "DAC_OVERRIDE", "FOWNER", "SETUID", "SETGID", "KILL"]);
    assert!(spec.mounts.iter().all(|mount| !mount.target.starts_with("/etc")), "{:?}", spec.mounts);
    assert_eq!(spec.network, ContainerNetwork::Named("byd-123456".into()));
    assert_eq!(made(JobUser::Build, NetworkMode::Host).network, ContainerNetwork::Host);
}

#[test]
fn variables_have_the_precedence_that_is_promised() {
    let job = job(JobUser::Build, NetworkMode::None);
    let profile = judge(&job, &image(), "amd64", &ALL).expect("allowed");
    let step = [("A", "step"), ("CI", "no"), ("TZ", "Asia/Tokyo")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let env = environment(&order(job), &step.into(), &image(), &profile);
    for (name, value) in [
        ("CI", "true"),
        ("HOME", "/elsewhere"),
        ("USER", "node"),
        ("PATH", "/opt/bin:/bin"),
        ("LANG", "C.UTF-8"),
        ("TZ", "Asia/Tokyo"),
        ("CC", "gcc"),
        ("A", "step"),
        ("BUILDYARD_RUN", "run-42"),
        ("BUILDYARD_JOB", "job-42-3"),
        ("BUILDYARD_ATTEMPT", "att-42-3-2"),
        ("BUILDYARD_ATTEMPT_NUMBER", "2"),
        ("BUILDYARD_BRANCH", "feature/a"),
        ("BUILDYARD_TAG", ""),
        ("BUILDYARD_WORKSPACE", "/workspace"),
        ("BUILDYARD_CPUS", "2"),
        ("BUILDYARD_MEMORY_BYTES", "536870912"),
    ] {
        assert_eq!(env.get(name).map(String::as_str), Some(value), "{name}");
    }
    assert!(VARIABLES.iter().all(|variable| env.contains_key(variable.name)), "{env:?}");
}

#[test]
fn the_page_promises_what_the_table_holds() {
    let page = include_str!("../../../../docs/execution-contract.md");
    let row = |line: &str| -> Option<[String; 3]> {
        let cells: Vec<&str> = line.strip_prefix("| `")?.strip_suffix(" |")?.splitn(3, " | ").collect();
        let [name, whose, value] = cells.try_into().ok()?;
        Some([name.trim_end_matches('`').to_owned(), whose.to_owned(), value.to_owned()])
    };
    let variables = page.split("\n## Variables\n").nth(1).expect("the page has that section");
    let promised: Vec<[String; 3]> = variables.lines().filter_map(row).collect();
    let held: Vec<[String; 3]> = VARIABLES
        .iter()
        .map(|variable| {
            let whose = match variable.precedence {
                Precedence::ImageFirst => "image",
                Precedence::FarmFirst => "farm",
                Precedence::Fixed => "fixed",
            };
            [variable.name, whose, variable.meaning].map(str::to_owned)
        })
        .collect();
    assert_eq!(promised, held);
}
