//! What was acknowledged is there after a power cut, and nothing is acknowledged after a failed sync.
//!
//! The store runs in a child process under `shim/power_cut.c`, which keeps what a disk would hold. Killing a
//! process alone shows nothing: the kernel still has every byte that was written.

#![expect(clippy::unwrap_used, reason = "a test says by a panic what is not as expected")]

mod common;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use buildyard_store::{Store, StoreError};
use buildyard_store_sqlite::SqliteStore;
use buildyard_types::RunId;
use common::{begin, by, chunk, end, outcome};

/// Where the child keeps its database.
const FOLDER: &str = "BUILDYARD_TEST_FOLDER";
/// Says that the child may commit no more runs than this.
const LIMIT: u64 = 400;

/// Commits runs and says so after each acknowledgement, on standard output: `begun 1`, `log 1`, `over 1`.
/// After a refusal it tries on, so that a wrong acknowledgement would be seen.
#[tokio::test]
#[ignore = "runs as a child of the other tests"]
async fn child() {
    let Some(folder) = std::env::var_os(FOLDER) else {
        panic!("{FOLDER} is not set: this is only for the other tests to run");
    };
    let store = SqliteStore::open(&Path::new(&folder).join("farm.db")).await.unwrap();
    let epoch = store.begin_epoch().await.unwrap();
    let say = |what: &str, number: u64, result: Result<(), StoreError>| match result {
        Ok(()) => println!("\n{what} {number}"),
        Err(StoreError::Unavailable { retry, .. }) => println!("\nrefused {number} {retry}"),
        Err(other) => println!("\nunexpected {other:?}"),
    };
    for number in 1..=LIMIT {
        say("begun", number, store.commit(epoch, &begin(number)).await.map(drop));
        say("log", number, store.append_log(by(number), &chunk(number)).await.map(drop));
        say("over", number, store.commit(epoch, &end(number)).await.map(drop));
    }
    println!("\nping {}", store.ping().await.is_ok());
}

/// The shim, compiled. `None`, with a notice, where there is no C compiler.
fn shim(folder: &Path) -> Option<PathBuf> {
    let library = folder.join("power_cut.so");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/shim/power_cut.c");
    let built = Command::new("cc")
        .args(["-Wall", "-Wextra", "-Werror", "-O1", "-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .arg("-ldl")
        .status();
    match built {
        Ok(status) if status.success() => Some(library),
        Ok(status) => panic!("{} does not compile: {status}", source.display()),
        Err(error) => {
            eprintln!("skipped: no C compiler ({error})");
            None
        }
    }
}

struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Running {
    fn start(shim: &Path, work: &Path, keeps: &Path, fails: Option<u64>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "child", "--ignored", "--nocapture", "--test-threads=1"]);
        command.env(FOLDER, work).env("LD_PRELOAD", shim).env("POWER_CUT_KEEPS", keeps);
        if let Some(syncs) = fails {
            command.env("POWER_CUT_FAILS", syncs.to_string());
        }
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// What it says, without the lines of the test harness.
    fn next(&mut self) -> Option<Vec<String>> {
        loop {
            let words: Vec<String> = self.lines.next()?.unwrap().split(' ').map(str::to_owned).collect();
            if ["begun", "log", "over", "refused", "unexpected", "ping"].contains(&words[0].as_str()) {
                return Some(words);
            }
        }
    }

    /// By its own id: it is a child that nobody has waited for.
    fn kill(mut self) -> Vec<Vec<String>> {
        self.child.kill().unwrap();
        // What it had said before.
        let rest = std::iter::from_fn(|| self.next()).collect();
        self.child.wait().unwrap();
        rest
    }
}

/// Holds what was acknowledged against what is there.
async fn assert_kept(folder: &Path, acknowledged: &[Vec<String>]) {
    let store = SqliteStore::open(&folder.join("farm.db")).await.unwrap();
    for words in acknowledged {
        let number: u64 = words[1].parse().unwrap();
        let run = store.run(RunId(number)).await.unwrap();
        let run = run.unwrap_or_else(|| panic!("{words:?} was acknowledged, and the run is not there"));
        match words[0].as_str() {
            "begun" => assert_eq!(run.pipeline.as_deref(), Some("cjson")),
            "log" => assert_eq!(store.log_chunks(by(number).attempt, 0, 2).await.unwrap(), [chunk(number)]),
            "over" => {
                assert!(run.state.is_final(), "{words:?}");
                let jobs = store.jobs(run.id).await.unwrap();
                assert_eq!(jobs[0].state.outcome(), Some(&outcome(number)));
            }
            other => panic!("{other}"),
        }
    }
    store.close().await.unwrap();
}

#[tokio::test]
async fn what_was_acknowledged_survives_a_power_cut() {
    const ROUNDS: u64 = 20;
    let folder = tempfile::tempdir().unwrap();
    let Some(shim) = shim(folder.path()) else { return };
    let mut kept = 0;
    for round in 0..ROUNDS {
        let (work, keeps) =
            (folder.path().join(format!("work{round}")), folder.path().join(format!("keeps{round}")));
        std::fs::create_dir(&work).unwrap();
        std::fs::create_dir(&keeps).unwrap();
        let mut running = Running::start(&shim, &work, &keeps, None);
        // A different moment in each round, and never the same kind of commit twice in a row.
        let mut acknowledged: Vec<_> =
            (0..5 + round * 7).map(|_| running.next().expect("the child ended by itself")).collect();
        acknowledged.extend(running.kill());
        assert_kept(&keeps, &acknowledged).await;
        kept += acknowledged.len();
    }
    println!("power cut: {ROUNDS} rounds, {kept} acknowledged, 0 lost");
    assert!(kept > 1_000);
}

#[tokio::test]
async fn nothing_is_acknowledged_after_a_failed_sync() {
    let folder = tempfile::tempdir().unwrap();
    let Some(shim) = shim(folder.path()) else { return };
    for syncs in [40, 41, 42, 43, 44, 45, 60, 100, 150] {
        let (work, keeps) =
            (folder.path().join(format!("work{syncs}")), folder.path().join(format!("keeps{syncs}")));
        std::fs::create_dir(&work).unwrap();
        std::fs::create_dir(&keeps).unwrap();
        let mut running = Running::start(&shim, &work, &keeps, Some(syncs));
        let said: Vec<_> = std::iter::from_fn(|| running.next()).collect();
        assert!(running.child.wait().unwrap().success());
        let is_refused = |words: &&Vec<String>| words[0] == "refused";
        let first = said.iter().position(|words| words[0] == "refused").expect("a sync failed");
        let (good, bad) = said.split_at(first);
        let (last, bad) = bad.split_last().unwrap();
        assert_eq!(last[..], ["ping", "false"], "a store that failed says so");
        assert_eq!(
            bad.iter().filter(is_refused).count(),
            bad.len(),
            "acknowledged after a failed sync: {bad:?}"
        );
        assert!(bad.iter().all(|words| words[2] == "false"), "waiting does not help: {bad:?}");
        assert!(good.len() > 10, "{syncs} syncs made only {} commits", good.len());
        assert_kept(&keeps, good).await;
        // What the kernel has is at least as good, and the store goes on there.
        assert_kept(&work, good).await;
    }
}
