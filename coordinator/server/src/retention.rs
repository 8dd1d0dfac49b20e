//! Drops what is too old, and what no row names.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use buildyard_store::{RetentionPolicy, Store, StoreError};
use buildyard_types::{AttemptId, Millis, Timestamp};

use crate::app::App;
use crate::app::closed;
use crate::data_dir::{DataDir, DataDirError};
use crate::error::chain;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// How often the disk is looked at.
const LOOK: Duration = Duration::from_secs(60);
/// Below the watermark sweeps come this often; what is too old may be all that fills the disk.
const LOW_EVERY: Millis = Millis::from_mins(5);
/// The search for objects that no row names reads every folder; so do the mirrors' repacking and pruning.
const ORPHANS_EVERY: Millis = Millis::from_mins(24 * 60);
/// The first search begins so long after the start, which a farm that is started anew each day reaches, too.
const ORPHANS_FIRST: Millis = Millis::from_mins(10);
/// A clock that stands so far beyond the newest event at the start may be wrong,
const LEAP: Millis = Millis::from_mins(7 * 24 * 60);
/// and what is dropped does not come back: people get this long to see the warning.
const DOUBT: Millis = Millis::from_mins(6 * 60);
/// An object without a row is being uploaded, or its worker died; after this long it is the latter.
const ORPHAN_AGE: Duration = Duration::from_secs(24 * 60 * 60);
/// A content may be uploaded again just when its last artifact is dropped; that must not cost the new one.
const FRESH_CONTENT: Duration = Duration::from_secs(60 * 60);
/// Runs in one transaction, so that the driver does not wait for long.
const BATCH: u32 = 100;
/// Files looked at in one search. More of them wait for the next.
const MAX_FILES: usize = 1_000_000;
/// Rows of a log that are compared with its files at one time.
const PAGE: u32 = 4_096;

/// Runs until the process ends.
pub(crate) async fn sweep_task(app: Arc<App>) {
    let mut closing = app.closing.clone();
    let mut last = Timestamp(0);
    let mut next_orphans = app.clock.now() + ORPHANS_FIRST;
    loop {
        let now = app.clock.now();
        if let Some(why) = doubt(&app, now) {
            if last == Timestamp(0) {
                tracing::warn!(why, "nothing is dropped for now");
                last = now;
            }
            tokio::select! {
                () = closed(&mut closing) => return,
                () = tokio::time::sleep(LOOK) => continue,
            }
        }
        let every = match app.disk_low() {
            None => app.config.retention.sweep_every_ms,
            Some(why) => {
                tracing::warn!(why, "the disk is nearly full: new runs are refused");
                LOW_EVERY.min(app.config.retention.sweep_every_ms)
            }
        };
        if now.since(last) >= every {
            last = now;
            forget_doubt(&app.dir);
            if let Err(error) = sweep(&app, now).await {
                tracing::warn!(error = %chain(&*error), "a sweep was not finished");
            }
        }
        if now >= next_orphans {
            next_orphans = now + ORPHANS_EVERY;
            if let Err(error) = sweep_orphans(&app, ORPHAN_AGE).await {
                tracing::warn!(error = %chain(&*error), "the search for orphans was not finished");
            }
        }
        tokio::select! {
            () = closed(&mut closing) => return,
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// The newest event whose time is to be believed. A clock that leapt goes on writing events, which the next start must
/// not take for old times: as long as there is doubt, the last event before the leap is kept in a file.
pub(crate) fn trusted_newest(
    dir: &DataDir,
    newest: Option<Timestamp>,
    now: Timestamp,
) -> Result<Option<Timestamp>, DataDirError> {
    let file = dir.clock_doubt();
    let kept = dir.read(&file)?.and_then(|text| text.trim().parse().ok()).map(Timestamp);
    let trusted = kept.or(newest);
    match trusted.filter(|trusted| now.since(*trusted) > LEAP) {
        Some(trusted) => dir.write_private(&file, &format!("{}\n", trusted.0))?,
        None => forget_doubt(dir),
    }
    Ok(trusted)
}

/// The clock is trusted again. A file that stays costs some hours of waiting at the next start.
fn forget_doubt(dir: &DataDir) {
    let _ = std::fs::remove_file(dir.clock_doubt());
}

/// Why the clock is not trusted with dropping things, as a sentence for people.
pub(crate) fn doubt(app: &App, now: Timestamp) -> Option<String> {
    doubt_of(app.newest_at_start?, app.started, now)
}

fn doubt_of(newest: Timestamp, started: Timestamp, now: Timestamp) -> Option<String> {
    let (leap, alive) = (started.since(newest), now.since(started));
    (leap > LEAP && alive < DOUBT).then(|| {
        let days = leap.0 / (24 * 60 * 60_000);
        let left = Millis(DOUBT.0 - alive.0);
        format!(
            "the clock stands {days} days after the newest event on record: if it is wrong, stop the coordinator \
             and set it; nothing is dropped for the next {left}"
        )
    })
}

/// Drops what is too old. Rows go first: an object that is left over is found later, a row without its object
/// would be a hole.
pub(crate) async fn sweep(app: &App, now: Timestamp) -> Result<u64, Failure> {
    let retention = &app.config.retention;
    let policy = RetentionPolicy {
        runs_before: now - retention.runs_ms,
        logs_before: now - retention.logs_ms,
        artifacts_before: now,
        batch: BATCH,
    };
    let mut runs = 0;
    loop {
        let swept = app.store.sweep(&policy).await?;
        for object in &swept.log_objects {
            app.blobs.delete(object).await?;
            app.blobs.tidy_log_folder(object);
        }
        for sha256 in &swept.blobs {
            app.blobs.delete_content_if_older(sha256, FRESH_CONTENT).await?;
        }
        runs += swept.runs;
        if !swept.more || *app.closing.borrow() {
            break;
        }
    }
    if runs > 0 {
        tracing::info!(runs, "old runs were dropped");
    }
    Ok(runs)
}

/// Drops objects that no row names, and commits of runs that are gone. Gives how many files went.
pub(crate) async fn sweep_orphans(app: &Arc<App>, age: Duration) -> Result<usize, Failure> {
    let mut gone = 0;
    let files = old_files(app, "logs", age).await?;
    let mut by_attempt = BTreeMap::<Option<AttemptId>, BTreeSet<String>>::new();
    for file in files {
        let attempt = file.split('/').nth(1).and_then(|folder| folder.parse().ok());
        by_attempt.entry(attempt).or_default().insert(file);
    }
    for (attempt, files) in by_attempt {
        let unnamed = match attempt {
            None => Ok(files),
            Some(attempt) => without_rows(&*app.store, attempt, files, PAGE).await,
        };
        match unnamed {
            Ok(files) => {
                for file in files {
                    app.blobs.remove_file(&file)?;
                    gone += 1;
                }
            }
            Err(error) => {
                let attempt_id = attempt.map(tracing::field::display);
                tracing::warn!(attempt_id, error = %chain(&error), "the files of a log are left as they are");
            }
        }
    }
    gone += sweep_contents(app, age).await?;
    sweep_mirrors(app).await?;
    Ok(gone)
}

/// Those of a log's files that none of its rows names. Nothing is known before the last row was seen: a file may
/// be the end of a long log.
pub(crate) async fn without_rows(
    store: &dyn Store,
    attempt: AttemptId,
    mut files: BTreeSet<String>,
    page: u32,
) -> Result<BTreeSet<String>, StoreError> {
    let mut at = 0;
    loop {
        let rows = store.log_chunks(attempt, at, page).await?;
        for row in &rows {
            files.remove(&row.object);
            at = row.offset + row.length;
        }
        if rows.len() < page as usize {
            return Ok(files);
        }
    }
}

async fn sweep_contents(app: &Arc<App>, age: Duration) -> Result<usize, Failure> {
    let mut gone = 0;
    let files = old_files(app, "artifacts", age).await?;
    for files in files.chunks(500) {
        let (contents, staged): (Vec<_>, Vec<_>) =
            files.iter().partition(|file| file.rsplit('/').next().is_some_and(crate::blobs::is_sha256));
        let hash = |file: &&String| file.rsplit('/').next().unwrap_or_default().to_owned();
        let unused = app.store.unused_blobs(&contents.iter().map(hash).collect::<Vec<_>>()).await?;
        for sha256 in &unused {
            app.blobs.delete_content_if_older(sha256, age).await?;
        }
        for file in &staged {
            app.blobs.remove_file(file)?;
        }
        gone += unused.len() + staged.len();
    }
    Ok(gone)
}

async fn old_files(app: &Arc<App>, folder: &'static str, age: Duration) -> Result<Vec<String>, Failure> {
    let blobs = app.blobs.clone();
    Ok(tokio::task::spawn_blocking(move || blobs.older_than(folder, age, MAX_FILES)).await??)
}

async fn sweep_mirrors(app: &App) -> Result<(), Failure> {
    let mut gone = BTreeSet::new();
    for run in app.mirrors.runs().await? {
        if app.store.run(run).await?.is_none() {
            gone.insert(run);
        }
    }
    Ok(app.mirrors.tend(gone).await?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_leapt_ahead_drops_nothing_for_some_hours() {
        let (day, hour) = (24 * 60 * 60_000, 60 * 60_000);
        let newest = Timestamp(1_000 * day);
        for (days, hours, doubted) in
            [(0, 0, false), (6, 0, false), (8, 0, true), (8, 5, true), (8, 7, false), (9_000, 0, true)]
        {
            let started = newest + Millis(days * day);
            let now = started + Millis(hours * hour);
            assert_eq!(doubt_of(newest, started, now).is_some(), doubted, "{days} days, {hours} h");
        }
        let temp = tempfile::tempdir().unwrap();
        let dir = DataDir::open(temp.path()).unwrap();
        let wrong = newest + Millis(365 * day);
        assert_eq!(trusted_newest(&dir, Some(newest), wrong).unwrap(), Some(newest));
        // Events of the wrong clock were written, and it was started again.
        let again = wrong + Millis(hour);
        assert_eq!(
            trusted_newest(&dir, Some(wrong), again).unwrap(),
            Some(newest),
            "the doubt outlives a restart"
        );
        let right = newest + Millis(hour);
        assert_eq!(trusted_newest(&dir, Some(wrong), right).unwrap(), Some(newest));
        assert!(!dir.clock_doubt().exists(), "the clock is back");
        let back = Timestamp(10 * day);
        assert_eq!(doubt_of(newest, back, back), None, "in the past nothing is too old");
    }
}
