//! Every way in which a job ends, on the farm and by `buildyard run`.

use std::process::Command;

use crate::harness::{Farm, IMAGE, said, wait_for};
use buildyard_types::{Outcome, Verdict};

/// Name, what stands in the job beside the image, and how it must end.
type Case = (&'static str, &'static str, fn(&Outcome) -> bool);

const CASES: &[Case] = &[
    ("passes", "run = 'echo fine'", |outcome| *outcome == Outcome::Passed),
    (
        "exit-code",
        "run = 'exit 7'",
        |outcome| matches!(outcome, Outcome::Failed { exit_code: 7, step } if step == "run"),
    ),
    ("own-kill", "run = 'kill -9 $$'", |outcome| matches!(outcome, Outcome::Failed { exit_code: 137, .. })),
    ("time-limit", "run = 'sleep 600'\ntimeout = '2s'", |outcome| {
        matches!(outcome, Outcome::TimedOut { .. })
    }),
    ("memory", "resources = { memory = '32MiB' }\nrun = 'head -c 200000000 /dev/zero | tail'", |outcome| {
        matches!(outcome, Outcome::OutOfMemory { .. })
    }),
    (
        "disk-bytes",
        "resources = { disk = '16MiB' }\nrun = 'dd if=/dev/zero of=big bs=1M count=64'",
        |outcome| matches!(outcome, Outcome::DiskQuota { .. }),
    ),
];

fn pipeline(body: &str) -> String {
    format!("name = \"case\"\n[jobs.case]\nimage = \"{IMAGE}\"\nnetwork = \"none\"\n{body}\n")
}

#[test]
fn each_way_of_ending_has_its_own_name() {
    let Some(farm) = Farm::start() else { return };
    for (name, body, expected) in CASES {
        let view = farm.verdict_of(&farm.repository(name, &pipeline(body), &[]));
        let outcome = view.jobs[0].outcome.as_ref().expect("a finished job has an outcome");
        assert!(expected(outcome), "{name}: {outcome}");
        assert_eq!(view.jobs[0].attempts.len(), 1, "{name}: what a job does is not tried again");
    }
}

#[test]
fn a_job_that_floods_for_ever_is_cut_at_its_cap() {
    let Some(farm) = Farm::start_with("[scheduler]\nlog_cap = \"8MiB\"\n") else { return };
    let view = farm.verdict_of(&farm.repository("flood", &pipeline("run = 'yes flood'"), &[]));
    let job = &view.jobs[0];
    assert!(matches!(job.outcome, Some(Outcome::LogCap { .. })), "{:?}", job.outcome);
    let kept = job.attempts[0].log_length;
    assert!((7 << 20..=8 << 20).contains(&kept), "{kept} bytes are kept of a log capped at 8 MiB");
}

#[test]
fn a_cancelled_job_ends_although_it_ignores_the_signal() {
    let Some(farm) = Farm::start_with("[scheduler]\nstop_grace = \"1s\"\n") else { return };
    let body = "run = '''\ntrap \"\" TERM\necho started\nwhile true; do sleep 1; done\n'''";
    let run = farm.trigger(&farm.repository("stubborn", &pipeline(body), &[]));
    wait_for("the first line", || {
        let view = farm.show(&run);
        (view.jobs.first()?.attempts.first()?.log_length > 0 && farm.log(&view).contains("started"))
            .then_some(())
    });
    let output = farm.run(&["runs", "cancel", &run.id.to_string()]);
    assert!(output.status.success(), "{}", said(&output));
    let view = farm.finished(&run);
    assert_eq!(view.verdict, Some(Verdict::Cancelled), "{}", view.sentence);
}

#[test]
fn needs_are_kept_and_artifacts_come_back() {
    let Some(farm) = Farm::start() else { return };
    let pipeline = format!(
        "name = \"graph\"\n[defaults]\nimage = \"{IMAGE}\"\nnetwork = \"none\"\n\
         [jobs.a]\nrun = \"true\"\n[jobs.bad]\nrun = \"exit 3\"\n[jobs.after]\nneeds = [\"bad\"]\nrun = \"true\"\n\
         [jobs.pack]\nneeds = [\"a\"]\nartifacts = [{{ name = \"out\", paths = [\"out/**\"] }}]\n\
         run = \"mkdir -p out/deep; echo hello > out/deep/file; ln -s /etc/shadow out/link\"\n"
    );
    let view = farm.verdict_of(&farm.repository("graph", &pipeline, &[]));
    let outcome =
        |name: &str| view.jobs.iter().find(|job| job.name == name).and_then(|job| job.outcome.clone());
    assert_eq!(outcome("pack"), Some(Outcome::Passed));
    assert!(matches!(outcome("after"), Some(Outcome::Skipped { .. })), "{:?}", outcome("after"));
    assert_eq!(view.verdict, Some(Verdict::Failed));

    let out = farm.path("fetched");
    let target = out.to_str().expect("a temporary path is UTF-8");
    let output = farm.run(&["artifacts", "get", &view.id.to_string(), "--out", target]);
    assert!(output.status.success(), "{}", said(&output));
    let found = Command::new("find").args([target, "-type", "f"]).output().expect("find runs");
    let found = String::from_utf8_lossy(&found.stdout).into_owned();
    assert_eq!(found.lines().count(), 1, "only the regular file came: {found}");
    assert!(found.trim_end().ends_with("out/deep/file"), "{found}");
}

#[test]
fn run_and_the_farm_agree() {
    let Some(farm) = Farm::start() else { return };
    for (name, body, _) in CASES {
        let checkout = farm.repository(&format!("both-{name}"), &pipeline(body), &[]);
        let on_the_farm = farm.verdict_of(&checkout);
        let local = farm
            .command(&["run", "--output", "json"])
            .current_dir(&checkout)
            .output()
            .expect("buildyard starts");
        let text = String::from_utf8_lossy(&local.stdout);
        let local_view: serde_json::Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{name}: {error}: {}", said(&local)));
        let outcome = serde_json::to_value(&on_the_farm.jobs[0].outcome).expect("an outcome is JSON");
        assert_eq!(local_view["jobs"][0]["outcome"], outcome, "{name}");
    }
}

#[test]
fn run_and_the_farm_agree_on_several_pipeline_files() {
    let Some(farm) = Farm::start() else { return };
    let pipeline = |name: &str, run: &str| {
        format!(
            "name = \"{name}\"\n[jobs.{name}]\nimage = \"{IMAGE}\"\nnetwork = \"none\"\nresources = {{ disk = \"256MiB\" }}\nrun = \"{run}\"\n"
        )
    };
    let mistaken = "[jobs.x]\nrn = \"true\"\n".to_owned();
    for (what, files, code) in [
        ("one-is-mistaken", [pipeline("b", "true"), mistaken.clone()], 4),
        ("one-fails", [pipeline("b", "exit 3"), mistaken], 1),
        ("all-pass", [pipeline("b", "true"), pipeline("c", "true")], 0),
    ] {
        let folder = farm.path(what);
        std::fs::create_dir_all(folder.join(".buildyard")).expect("a folder for pipelines");
        let [b, c] = files;
        let repository = farm.repository(
            what,
            &pipeline("a", "true"),
            &[(".buildyard/b.toml", &b), (".buildyard/c.toml", &c)],
        );
        let path = repository.to_str().expect("a temporary path is UTF-8");
        let there = farm.run(&["trigger", path, "--follow"]);
        assert_eq!(there.status.code(), Some(code), "{what} on the farm: {}", said(&there));
        let here = farm.command(&["run"]).current_dir(&repository).output().expect("buildyard starts");
        assert_eq!(here.status.code(), Some(code), "{what} here: {}", said(&here));
        assert!(String::from_utf8_lossy(&here.stdout).contains("a: passed"), "{what}: {}", said(&here));
    }
}
