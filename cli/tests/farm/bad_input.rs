//! What users get wrong: a clear error that names the place and the remedy, and the right exit status.

use crate::harness::{Farm, IMAGE, said};
use buildyard_types::{Outcome, Verdict};

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
    // What is wrong by code, and a word that the message must not lack.
    for (name, text, code, said_of_it) in [
        ("too-long", too_long.as_str(), "file-too-large", "1048576"),
        ("unparsable", "name = \"x\n[jobs.a]\n", "unclosed", "pipeline.toml:1:8"),
        ("cycle", &cycle, "needs-cycle", "a -> b -> a"),
        ("labels", &labels, "no-worker-matches", "gpu"),
    ] {
        let view = farm.verdict_of(&farm.repository(name, text, &[]));
        assert_eq!(view.verdict, Some(Verdict::Refused), "{name}: {}", view.sentence);
        assert!(view.jobs.iter().all(|job| job.attempts.is_empty()), "{name}: nothing of it ran");
        let all: String = view.diagnostics.iter().map(ToString::to_string).collect();
        let codes: Vec<&str> = view.diagnostics.iter().map(|diagnostic| diagnostic.code.as_str()).collect();
        assert_eq!(codes.first(), Some(&code), "{name}: {all}");
        assert!(all.contains(said_of_it), "{name}: {all}");
        let shown = farm.run(&["runs", "show", &view.id.to_string()]);
        assert!(String::from_utf8_lossy(&shown.stdout).contains("pipeline.toml"), "{name}: {}", said(&shown));
    }
}

#[test]
fn an_image_without_a_shell_or_that_does_not_exist_is_named() {
    let Some(farm) = Farm::start_with("[scheduler]\nretry_backoff = \"100ms\"\n") else { return };
    for (image, expected) in [
        ("buildyard-test/noshell:1", "refused"),
        ("buildyard-test/there-is-no-such-image:9", "infra (pull failed)"),
    ] {
        let pipeline = format!(
            "name = \"i\"\n[jobs.a]\nimage = \"{image}\"\nnetwork = \"none\"\nresources = {{ disk = \"256MiB\" }}\nrun = \"true\"\n"
        );
        let view =
            farm.verdict_of(&farm.repository(image.rsplit(['/', ':']).nth(1).unwrap_or("i"), &pipeline, &[]));
        // Neither is the job's fault, so neither may be called failed.
        let Some(outcome) = view.jobs.first().and_then(|job| job.outcome.as_ref()) else {
            panic!("{image}: {}: {:?}", view.sentence, view.diagnostics);
        };
        let cause = match outcome {
            Outcome::Infra { cause, .. } => format!("infra ({cause})"),
            other => other.class().to_owned(),
        };
        assert_eq!(cause, expected, "{image}: {outcome}");
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
