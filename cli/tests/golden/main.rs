//! Golden transcripts: what the binary prints and how it ends, against a canned coordinator.
//!
//! Each file below `tests/golden/` is one transcript. A line that begins with `$ buildyard` is a command; what follows is
//! its standard output, its standard error (each line behind `! `) and, where it is not 0, its exit status (`? 1`).
//! `BUILDYARD_BLESS=1 cargo test -p buildyard --test golden` writes the transcripts anew; the diff is then to be read.

mod canned;
mod coordinator;
mod transcript;

use std::path::{Path, PathBuf};

use transcript::Scene;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

/// Every transcript, by name, and the scene it is played in. The test of each checks that the list is whole.
const TRANSCRIPTS: &[(&str, Scene)] = &[
    ("help", Scene::Bare),
    ("usage-errors", Scene::Bare),
    ("no-coordinator", Scene::Bare),
    ("config", Scene::Bare),
    ("check", Scene::Checkout),
    ("listing", Scene::Farm),
    ("listing-json", Scene::Farm),
    ("verdicts", Scene::Farm),
    ("logs", Scene::Farm),
    ("explain", Scene::Farm),
    ("problems", Scene::Farm),
    ("workers", Scene::Farm),
    ("artifacts", Scene::Farm),
];

#[test]
fn transcripts_are_as_written() {
    let bless = std::env::var_os("BUILDYARD_BLESS").is_some();
    let mut wrong = Vec::new();
    for (name, scene) in TRANSCRIPTS {
        let path = folder().join(format!("{name}.txt"));
        let written =
            std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let played = transcript::play(*scene, &written);
        if bless {
            std::fs::write(&path, &played).expect("the transcript is written");
        } else if played != written {
            wrong.push(format!("{name}:\n{}", transcript::difference(&written, &played)));
        }
    }
    assert!(wrong.is_empty(), "{}\n(BUILDYARD_BLESS=1 writes them anew)", wrong.join("\n"));
}

#[test]
fn a_reader_who_left_changes_no_verdict() {
    for (scene, command, status) in [
        (Scene::Farm, "watch 43", 1),
        (Scene::Farm, "watch 43 --output json", 1),
        (Scene::Farm, "watch 44", 4),
        (Scene::Farm, "watch 41", 0),
        (Scene::Farm, "trigger / --follow", 1),
        (Scene::Checkout, "check", 1),
        (Scene::Farm, "runs", 0),
    ] {
        assert_eq!(transcript::status_without_a_reader(scene, command), Some(status), "{command}");
    }
}

#[test]
fn the_time_that_trigger_is_given_holds_while_it_asks_too() {
    // Connections are taken by the kernel, and nobody ever answers.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let url = format!("http://{}", silent.local_addr().expect("it has an address"));
    let command =
        format!("trigger / --follow --timeout 300ms --token-file ../wrong.token --coordinator {url}");
    assert_eq!(transcript::status_without_a_reader(Scene::Bare, &command), Some(6));
}

#[test]
fn no_transcript_is_forgotten() {
    let mut on_disk: Vec<String> = std::fs::read_dir(folder())
        .expect("tests/golden is there")
        .map(|entry| entry.expect("it can be listed").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "txt"))
        .map(|path| path.file_stem().expect("a file has a name").to_string_lossy().into_owned())
        .collect();
    let mut listed: Vec<String> = TRANSCRIPTS.iter().map(|(name, _)| (*name).to_owned()).collect();
    on_disk.sort();
    listed.sort();
    assert_eq!(on_disk, listed);
}
