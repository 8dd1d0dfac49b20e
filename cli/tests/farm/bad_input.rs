//! What users get wrong: a clear error that names the place and the remedy, and the right exit status.

use crate::harness::{Farm, IMAGE, said};
use buildyard_types::Verdict;

#[test]
fn bad_pipeline_files_are_refused_with_their_diagnostics_on_the_run() {
    let Some(farm) = Farm::start() else { return };
    let too_long = format!("name = \"long\"\n# {}\n", "x".repeat(1 << 20));
    let cycle = format!(
        "name = \"c\"\n[defaults]\nimage = \"{IMAGE}\"\n[jobs.a]\nneeds = [\"b\"]\nrun = \"true\"\n[jobs.b]\nneeds = [\"a\"]\nrun = \"true\"\n"
    );
    let labels = format!(
        "name = \"l\"\n[jobs.a]\nimage = \"{IMAGE}\"\nlabels = \"os=linux && gpu\"\nrun = \"true\"\n"
    );
    for (name, text, said_of_it) in [
        ("too-long", too_long.as_str(), "1048576"),
        ("unparsable", "name = \"x\n[jobs.a]\n", "pipeline.toml"),
        ("cycle", &cycle, "a"),
        ("labels", &labels, "gpu"),
    ] {
        let view = farm.verdict_of(&farm.repository(name, text, &[]));
        assert_eq!(view.verdict, Some(Verdict::Refused), "{name}: {}", view.sentence);
        let all: String = view.diagnostics.iter().map(ToString::to_string).collect();
        assert!(all.contains(said_of_it), "{name}: {all}");
        let shown = farm.run(&["runs", "show", &view.id.to_string()]);
        assert!(String::from_utf8_lossy(&shown.stdout).contains("pipeline.toml"), "{name}: {}", said(&shown));
    }
}

#[test]
fn an_image_without_a_shell_or_that_does_not_exist_is_named() {
    let Some(farm) = Farm::start_with("[scheduler]\nretry_backoff = \"100ms\"\n") else { return };
    for image in ["buildyard-test/noshell:1", "buildyard-test/there-is-no-such-image:9"] {
        let pipeline =
            format!("name = \"i\"\n[jobs.a]\nimage = \"{image}\"\nnetwork = \"none\"\nrun = \"true\"\n");
        let view =
            farm.verdict_of(&farm.repository(image.rsplit(['/', ':']).nth(1).unwrap_or("i"), &pipeline, &[]));
        assert_ne!(view.verdict, Some(Verdict::Passed), "{image}");
        assert!(view.jobs[0].sentence.contains(image), "{image}: {}", view.jobs[0].sentence);
    }
}

#[test]
fn malformed_ids_unknown_things_and_wrong_usage_have_their_exit_codes() {
    let Some(farm) = Farm::start() else { return };
    for (arguments, code) in [
        (&["runs", "show", "ran-1"][..], 2),
        (&["runs", "show", "run-999"], 2),
        (&["logs", "job-1-x"], 2),
        (&["frobnicate"], 2),
        (&["trigger", "/there/is/no/such/folder"], 2),
    ] {
        let output = farm.run(arguments);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {}", said(&output));
        assert!(!output.stderr.is_empty(), "{arguments:?} says why");
    }
}

#[test]
fn without_a_coordinator_the_exit_is_3_in_one_line() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_buildyard"))
        .args(["status", "--coordinator", "http://127.0.0.1:1"])
        .env("BUILDYARD_DATA_DIR", folder.path())
        .output()
        .expect("buildyard starts");
    assert_eq!(output.status.code(), Some(3), "{}", said(&output));
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(text.trim_end().lines().count(), 1, "{text}");
    assert!(text.contains("buildyard up"), "{text}");
}
