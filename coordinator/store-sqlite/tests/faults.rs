//! A database that is locked, a disk that is full, a second coordinator.

#![expect(clippy::unwrap_used, reason = "a test says by a panic what is not as expected")]

mod common;

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use buildyard_store::{Store, StoreError};
use buildyard_store_sqlite::{Fault, OpenError, SqliteStore};
use buildyard_types::RunId;
use common::{begin, end, everything};

fn fault(error: &StoreError) -> (&Fault, bool) {
    match error {
        StoreError::Unavailable { source, retry, .. } => (source.downcast_ref().unwrap(), *retry),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_second_coordinator_is_told_who_has_the_database() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("farm.db");
    let store = SqliteStore::open(&path).await.unwrap();
    let refused = SqliteStore::open(&path).await.unwrap_err();
    assert!(matches!(refused, OpenError::InUse { .. }), "{refused:?}");
    let text = refused.to_string();
    assert!(text.contains("farm.db") && text.contains(&format!("process {}", std::process::id())), "{text}");
    // The first one was not disturbed, and whoever comes after it gets the database.
    let epoch = store.begin_epoch().await.unwrap();
    store.commit(epoch, &begin(1)).await.unwrap();
    store.close().await.unwrap();
    let closed = store.commit(epoch, &begin(2)).await.unwrap_err();
    assert!(matches!(fault(&closed), (Fault::Closed, false)), "{closed:?}");
    let next = SqliteStore::open(&path).await.unwrap();
    assert!(next.run(RunId(1)).await.unwrap().is_some());
    next.close().await.unwrap();
}

#[tokio::test]
async fn nobody_else_can_read_the_files() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("farm.db");
    let store = SqliteStore::open(&path).await.unwrap();
    store.begin_epoch().await.unwrap();
    let modes = || {
        let files = fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap());
        files
            .map(|file| (file.file_name(), file.metadata().unwrap().permissions().mode() & 0o777))
            .collect::<Vec<_>>()
    };
    assert_eq!(modes().len(), 4, "{:?}", modes());
    assert!(modes().iter().all(|(_, mode)| *mode == 0o600), "{:?}", modes());
    store.close().await.unwrap();
    // One that was copied without care is protected again.
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let store = SqliteStore::open(&path).await.unwrap();
    assert!(modes().iter().all(|(_, mode)| *mode == 0o600), "{:?}", modes());
    store.close().await.unwrap();
}

#[tokio::test]
async fn a_folder_that_is_not_there_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let error = SqliteStore::open(&folder.path().join("no/farm.db")).await.unwrap_err();
    assert!(matches!(error, OpenError::File { .. }), "{error:?}");
    assert!(error.to_string().contains("no/farm.db"), "{error}");
}

#[tokio::test]
async fn a_lock_of_another_process_is_waited_for_and_then_said() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("farm.db");
    let store = SqliteStore::open(&path).await.unwrap();
    let epoch = store.begin_epoch().await.unwrap();
    let shell = Command::new("sqlite3").arg(&path).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
    let mut shell = match shell {
        Ok(shell) => shell,
        Err(error) => return eprintln!("skipped: no sqlite3 program ({error})"),
    };
    let (mut ask, mut answers) =
        (shell.stdin.take().unwrap(), BufReader::new(shell.stdout.take().unwrap()).lines());
    writeln!(ask, "BEGIN EXCLUSIVE; SELECT 'locked';").unwrap();
    assert_eq!(answers.next().unwrap().unwrap(), "locked");

    // Several wait together, and each is told by itself that it may try again.
    let (one, two, three) = (begin(1), begin(2), begin(3));
    let waiting =
        tokio::join!(store.commit(epoch, &one), store.commit(epoch, &two), store.commit(epoch, &three));
    for result in [waiting.0, waiting.1, waiting.2] {
        let error = result.unwrap_err();
        assert!(matches!(fault(&error), (Fault::Locked(_), true)), "{error:?}");
    }
    // Questions are answered all the while, and nothing of the refused writes stays.
    store.ping().await.unwrap();
    assert_eq!(store.run(RunId(1)).await.unwrap(), None);

    writeln!(ask, "ROLLBACK;").unwrap();
    drop(ask);
    assert!(shell.wait().unwrap().success());
    store.commit(epoch, &one).await.unwrap();
    assert!(store.run(RunId(1)).await.unwrap().is_some());
    store.close().await.unwrap();
}

/// A file system of its own, of a fixed size.
struct SmallDisk {
    folder: tempfile::TempDir,
}

impl SmallDisk {
    /// `None`, with a notice, where one cannot be made.
    fn make(size: &str) -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let disk = Self { folder };
        let image = disk.folder.path().join("image");
        fs::create_dir(disk.path()).unwrap();
        let run = |program: &str, args: &[&str]| {
            let output = Command::new(program).args(args).output();
            output.map_err(|error| error.to_string()).and_then(|output| match output.status.success() {
                true => Ok(()),
                false => Err(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
            })
        };
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let made = run("truncate", &["-s", size, &text(&image)])
            .and_then(|()| run("mkfs.ext4", &["-q", "-m", "0", &text(&image)]))
            .and_then(|()| run("mount", &["-o", "loop", &text(&image), &text(&disk.path())]));
        match made {
            Ok(()) => Some(disk),
            Err(error) => {
                eprintln!("skipped: no small disk can be made here ({error})");
                None
            }
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("disk")
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Also when the mount never came to be: then this fails, and there is nothing to undo.
        let _ = Command::new("umount").arg(self.path()).stderr(Stdio::null()).status();
    }
}

/// Takes all the room that is left.
fn fill(path: &Path) {
    let mut file = fs::File::create(path).unwrap();
    let block = [7; 4_096];
    while file.write_all(&block).is_ok() {}
    let _ = file.sync_all();
}

#[tokio::test]
async fn a_full_disk_refuses_and_loses_nothing_and_the_store_goes_on_when_there_is_room() {
    let Some(disk) = SmallDisk::make("32M") else { return };
    let path = disk.path().join("farm.db");
    let filler = disk.path().join("filler");
    let store = SqliteStore::open(&path).await.unwrap();
    let epoch = store.begin_epoch().await.unwrap();
    let mut number = 0;
    for round in 0..20 {
        fill(&filler);
        // The log has some room of its own until it must grow.
        number += 1;
        let mut waiting = vec![end(number), begin(number)];
        let (before, refused) = loop {
            let before = everything(&store).await.unwrap();
            let next = waiting.last().unwrap();
            if let Err(refused) = store.commit(epoch, next).await {
                break (before, refused);
            }
            waiting.pop();
            if waiting.is_empty() {
                number += 1;
                waiting = vec![end(number), begin(number)];
            }
        };
        assert!(matches!(fault(&refused), (Fault::Full(_), true)), "round {round}: {refused:?}");
        assert_eq!(
            everything(&store).await.unwrap(),
            before,
            "round {round}: a refused write left something"
        );
        fs::remove_file(&filler).unwrap();
        // The same store, the same calls.
        while let Some(next) = waiting.pop() {
            store.commit(epoch, &next).await.unwrap();
        }
    }
    let before = everything(&store).await.unwrap();
    store.close().await.unwrap();
    let store = SqliteStore::open(&path).await.unwrap();
    assert_eq!(everything(&store).await.unwrap(), before);
    store.close().await.unwrap();
    println!("disk full: 20 rounds, {number} runs, 0 acknowledged and lost");
}
