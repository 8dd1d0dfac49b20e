//! Plays the commands of a transcript and writes down what happened.

use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::coordinator::Coordinator;

/// What the commands find.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scene {
    /// An empty folder, no coordinator.
    Bare,
    /// A git checkout with pipeline files, no coordinator.
    Checkout,
    /// A canned coordinator, found as the one of this machine.
    Farm,
}

/// Plays every command of a transcript and gives the transcript as it should be.
pub(crate) fn play(scene: Scene, written: &str) -> String {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let coordinator = (scene == Scene::Farm).then(|| Coordinator::start(&folder.path().join("data")));
    if scene == Scene::Checkout {
        make_checkout(&folder.path().join("work"));
    } else {
        std::fs::create_dir_all(folder.path().join("work")).expect("a folder to stand in");
    }
    std::fs::write(folder.path().join("wrong.token"), "adm-some-other-token\n").expect("a file is written");
    let mut played = String::new();
    for line in written.lines() {
        if let Some(command) = line.strip_prefix("$ buildyard") {
            played.push_str(line);
            played.push('\n');
            let output = run(folder.path(), command);
            write_down(&output, &mut played);
        } else if line.starts_with("# ") {
            played.push_str(line);
            played.push('\n');
        }
    }
    let mut replacements = vec![(folder.path().display().to_string(), "/TMP".to_owned())];
    if let Some(coordinator) = &coordinator {
        replacements.push((coordinator.url(), "http://COORDINATOR".to_owned()));
    }
    replacements.iter().fold(played, |text, (from, to)| text.replace(from, to))
}

/// The exit status of a command whose output nobody reads, as in `… | head -n1`.
pub(crate) fn status_without_a_reader(scene: Scene, arguments: &str) -> Option<i32> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::create_dir_all(folder.path().join("work")).expect("a folder to stand in");
    let _coordinator = (scene == Scene::Farm).then(|| Coordinator::start(&folder.path().join("data")));
    if scene == Scene::Checkout {
        make_checkout(&folder.path().join("work"));
    }
    std::fs::write(folder.path().join("wrong.token"), "adm-some-other-token\n").expect("a file is written");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let status = command(folder.path(), arguments).stdout(writer).stderr(Stdio::null()).status();
    status.expect("buildyard starts").code()
}

fn run(folder: &Path, arguments: &str) -> Output {
    command(folder, arguments).output().expect("buildyard starts")
}

fn command(folder: &Path, arguments: &str) -> Command {
    let arguments = words(arguments);
    let mut command = Command::new(env!("CARGO_BIN_EXE_buildyard"));
    command.args(arguments).current_dir(folder.join("work")).stdin(Stdio::null());
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("HOME", folder).env("XDG_CONFIG_HOME", folder.join("config"));
    command.env("BUILDYARD_DATA_DIR", folder.join("data"));
    // Nothing above the folder is a checkout of the commands.
    command.env("GIT_CEILING_DIRECTORIES", folder);
    command
}

/// Words between blanks; single quotes keep blanks.
fn words(text: &str) -> Vec<String> {
    let mut words = Vec::new();
    for (index, piece) in text.split('\'').enumerate() {
        if index % 2 == 1 {
            words.push(piece.to_owned());
        } else {
            words.extend(piece.split_whitespace().map(str::to_owned));
        }
    }
    words
}

fn write_down(output: &Output, played: &mut String) {
    played.push_str(&String::from_utf8_lossy(&output.stdout));
    if !played.ends_with('\n') {
        played.push('\n');
    }
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        played.push_str(&format!("! {line}\n"));
    }
    match output.status.code() {
        Some(0) => {}
        Some(code) => played.push_str(&format!("? {code}\n")),
        None => played.push_str("? signal\n"),
    }
    played.push('\n');
}

fn make_checkout(folder: &Path) {
    std::fs::create_dir_all(folder.join(".buildyard")).expect("a folder for pipelines");
    let write = |name: &str, text: &str| std::fs::write(folder.join(name), text).expect("a file is written");
    write("pipeline.toml", "name = \"good\"\n[jobs.test]\nimage = \"debian:12\"\nrun = \"make test\"\n");
    write(
        ".buildyard/bad.toml",
        "[jobs.test]\nimage = \"debian:12\"\nrn = \"make test\"\nneeds = [\"tset\"]\n[jobs.tests]\nimage = \"debian:12\"\nrun = \"true\"\n",
    );
    let init = Command::new("git").args(["init", "--quiet"]).arg(folder).status();
    assert!(init.expect("git runs").success(), "git init");
}

/// The first lines that differ.
pub(crate) fn difference(written: &str, played: &str) -> String {
    let (old, new): (Vec<_>, Vec<_>) = (written.lines().collect(), played.lines().collect());
    let same = old.iter().zip(&new).take_while(|(old, new)| old == new).count();
    let show = |lines: &[&str], mark: &str| -> String {
        lines.iter().skip(same).take(8).map(|line| format!("  {mark} {line}\n")).collect()
    };
    format!("  at line {}\n{}{}", same + 1, show(&old, "-"), show(&new, "+"))
}
