//! What must not stand in the tree.

use std::path::{Path, PathBuf};
use std::process::Command;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every file that git tracks.
fn tracked() -> Vec<PathBuf> {
    let output =
        Command::new("git").arg("-C").arg(root()).args(["ls-files", "-z"]).output().expect("git runs");
    assert!(output.status.success(), "the tree is a git checkout");
    output
        .stdout
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(|name| PathBuf::from(String::from_utf8(name.to_vec()).expect("tracked names are UTF-8")))
        .filter(|name| root().join(name).is_file())
        .collect()
}

fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(root().join(path)).expect("a tracked file is readable"))
        .into_owned()
}

fn rust_sources() -> impl Iterator<Item = PathBuf> {
    tracked().into_iter().filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
}

#[test]
fn no_source_file_grew_beyond_one_idea() {
    let long: Vec<_> = rust_sources()
        .map(|path| (read(&path).lines().count(), path))
        .filter(|(lines, _)| *lines > 900)
        .collect();
    assert!(long.is_empty(), "split these by idea: {long:?}");
}

#[test]
fn no_unfinished_place_is_left() {
    // Assembled here, so that this file does not find itself.
    let words = [
        ["to", "do!("].concat(),
        ["unimple", "mented!("].concat(),
        ["FIX", "ME"].concat(),
        ["TO", "DO"].concat(),
    ];
    let mut found = Vec::new();
    for path in rust_sources() {
        let text = read(&path);
        found.extend(
            words
                .iter()
                .filter(|word| text.contains(*word))
                .map(|word| format!("{}: {word}", path.display())),
        );
    }
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn every_script_stops_at_its_first_error() {
    for path in tracked() {
        let text = read(&path);
        if text.starts_with("#!") && text.lines().next().is_some_and(|line| line.ends_with("sh")) {
            let strict = text.lines().take(40).any(|line| line.starts_with("set -e"));
            assert!(strict || path.starts_with("pipelines/examples"), "{} does not `set -e`", path.display());
        }
    }
}

#[test]
fn only_the_crates_that_must_speak_to_the_kernel_hold_unsafe_code() {
    let allowed = ["worker/init/", "worker/agent/", "cli/", "tests/", "coordinator/server/"];
    let marker = ["uns", "afe "].concat();
    for path in rust_sources() {
        let name = path.to_string_lossy().into_owned();
        let has =
            read(&path).lines().any(|line| !line.trim_start().starts_with("//") && line.contains(&marker));
        assert!(!has || allowed.iter().any(|prefix| name.starts_with(prefix)), "{name} holds unsafe code");
    }
}
