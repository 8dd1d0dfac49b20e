//! What the worker was ordered to do, on disk before anything of it is made.
//!
//! One file that only grows, a line of JSON for each change, synced before the call returns: a restarted
//! worker reads in it which containers, workspaces and spools are its own. A torn last line (a power cut in
//! the middle of a write) is dropped, since nothing was made on its account. The file is rewritten when most
//! of it speaks of attempts that are forgotten, so its size stays within [`COMPACT_BYTES`] plus what is held.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use buildyard_session::JournalEntry;
use buildyard_types::AttemptId;
use buildyard_types::worker::{AttemptOrder, EndReport};
use serde::{Deserialize, Serialize};

use crate::data::write_synced;

/// Size from which the file is rewritten, if less than half of it is of use.
pub const COMPACT_BYTES: u64 = 1 << 20;

/// Why the journal cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// The system refused.
    #[error("could not {doing} the journal {}", path.display())]
    Io {
        /// What was attempted.
        doing: &'static str,
        /// Which file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A line other than the last cannot be read. The worker must not guess what is its own.
    #[error("line {line} of the journal {} is damaged", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
        /// What the parser said.
        #[source]
        source: serde_json::Error,
    },
}

#[derive(Serialize, Deserialize)]
#[serde(tag = "change", rename_all = "snake_case")]
enum Change {
    Begun { order: Box<AttemptOrder> },
    Ended { attempt: AttemptId, report: Box<EndReport> },
    Forgotten { attempt: AttemptId },
}

/// The open journal.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    file: File,
    entries: BTreeMap<AttemptId, JournalEntry>,
    /// Bytes of the file.
    length: u64,
    /// Bytes that a rewritten file would have, about.
    live: u64,
}

impl Journal {
    /// Opens the journal and reads what it holds.
    pub fn open(path: &Path) -> Result<Self, JournalError> {
        let fail = |doing| move |source| JournalError::Io { doing, path: path.to_owned(), source };
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(path);
        let file = file.map_err(fail("open"))?;
        let bytes = std::fs::read(path).map_err(fail("read"))?;
        let mut journal = Self { path: path.to_owned(), file, entries: BTreeMap::new(), length: 0, live: 0 };
        // A line counts once its end is there: `whole` leaves out a torn one.
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        for (index, line) in bytes[..whole].split_inclusive(|byte| *byte == b'\n').enumerate() {
            let change = serde_json::from_slice(line).map_err(|source| JournalError::Damaged {
                path: path.to_owned(),
                line: index + 1,
                source,
            })?;
            journal.take(change, line.len() as u64);
        }
        // Ends are held cut down, so that what is held may be shorter than its lines.
        journal.live =
            journal.entries.values().cloned().flat_map(lines_of).map(|line| line.len() as u64).sum();
        if whole < bytes.len() {
            journal.file.set_len(whole as u64).map_err(fail("cut"))?;
            journal.file.sync_all().map_err(fail("sync"))?;
        }
        Ok(journal)
    }

    /// What is held, in the order of attempts.
    pub fn entries(&self) -> impl Iterator<Item = &JournalEntry> {
        self.entries.values()
    }

    /// Whether an attempt is on record.
    pub fn holds(&self, attempt: AttemptId) -> bool {
        self.entries.contains_key(&attempt)
    }

    /// Puts an order on record. When this returns, it is on the disk.
    pub fn begin(&mut self, order: &AttemptOrder) -> Result<(), JournalError> {
        self.append(Change::Begun { order: Box::new(order.clone()) })
    }

    /// Puts the end of an attempt on record, whose log and artifacts are with the coordinator.
    pub fn end(&mut self, attempt: AttemptId, report: &EndReport) -> Result<(), JournalError> {
        if !self.holds(attempt) {
            return Ok(());
        }
        self.append(Change::Ended { attempt, report: Box::new(report.clone()) })
    }

    /// Drops an attempt. Dropping one that is not held does nothing.
    pub fn forget(&mut self, attempt: AttemptId) -> Result<(), JournalError> {
        if !self.holds(attempt) {
            return Ok(());
        }
        self.append(Change::Forgotten { attempt })
    }

    fn append(&mut self, change: Change) -> Result<(), JournalError> {
        let line = line(&change);
        let written = self.file.write_all(&line).and_then(|()| self.file.sync_data());
        if let Err(source) = written {
            // What was written of the line must not become part of a later one. If this fails too, the next
            // start finds a torn line in the middle and says so.
            let _ = self.file.set_len(self.length);
            return Err(JournalError::Io { doing: "write", path: self.path.clone(), source });
        }
        self.take(change, line.len() as u64);
        if self.length > COMPACT_BYTES && self.live < self.length / 2 {
            self.compact()?;
        }
        Ok(())
    }

    fn take(&mut self, change: Change, length: u64) {
        self.length += length;
        match change {
            Change::Begun { order } => {
                self.live += length;
                let attempt = order.attempt;
                self.entries.insert(attempt, JournalEntry { order: *order, ended: None });
            }
            Change::Ended { attempt, mut report } => {
                self.live += length;
                // An earlier version kept them as long as the job liked.
                report.cut_down();
                if let Some(entry) = self.entries.get_mut(&attempt) {
                    entry.ended = Some(*report);
                }
            }
            Change::Forgotten { attempt } => {
                if let Some(entry) = self.entries.remove(&attempt) {
                    let size: usize = lines_of(entry).iter().map(Vec::len).sum();
                    self.live = self.live.saturating_sub(size as u64);
                }
            }
        }
    }

    fn compact(&mut self) -> Result<(), JournalError> {
        let fail = |doing| {
            let path = self.path.clone();
            move |source| JournalError::Io { doing, path, source }
        };
        let bytes: Vec<u8> = self.entries.values().cloned().flat_map(lines_of).flatten().collect();
        write_synced(&self.path, &bytes, 0o600).map_err(fail("rewrite"))?;
        self.file = OpenOptions::new().append(true).open(&self.path).map_err(fail("open"))?;
        self.length = bytes.len() as u64;
        self.live = self.length;
        Ok(())
    }
}

fn line(change: &Change) -> Vec<u8> {
    let mut line = serde_json::to_vec(change).expect("orders and reports hold nothing that JSON cannot");
    line.push(b'\n');
    line
}

fn lines_of(entry: JournalEntry) -> Vec<Vec<u8>> {
    let attempt = entry.order.attempt;
    let begun = line(&Change::Begun { order: Box::new(entry.order) });
    let ended = entry.ended.map(|report| line(&Change::Ended { attempt, report: Box::new(report) }));
    std::iter::once(begun).chain(ended).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{order, report};
    use buildyard_types::{Outcome, RunId};

    fn attempt(number: u64) -> AttemptId {
        RunId(number).job(0).attempt(1)
    }

    #[test]
    fn what_is_on_record_is_there_after_a_restart() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("journal");
        let mut journal = Journal::open(&path).unwrap();
        for number in 1..=3 {
            journal.begin(&order(attempt(number))).unwrap();
        }
        journal.end(attempt(2), &report(Outcome::Passed)).unwrap();
        journal.forget(attempt(3)).unwrap();
        journal.forget(attempt(9)).unwrap();

        let again = Journal::open(&path).unwrap();
        let entries: Vec<_> = again.entries().cloned().collect();
        let one = JournalEntry { order: order(attempt(1)), ended: None };
        let two = JournalEntry { order: order(attempt(2)), ended: Some(report(Outcome::Passed)) };
        assert_eq!(entries, [one, two]);
        assert!(again.holds(attempt(1)) && !again.holds(attempt(3)));
    }

    #[test]
    fn an_endless_end_of_an_earlier_version_is_held_cut_down() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("journal");
        let mut journal = Journal::open(&path).unwrap();
        journal.begin(&order(attempt(1))).unwrap();
        let mut endless = report(Outcome::Passed);
        endless.notes = vec!["n".repeat(32 * 1024); 500];
        journal.end(attempt(1), &endless).unwrap();

        let mut again = Journal::open(&path).unwrap();
        let entry = again.entries().next().unwrap().clone();
        let size: usize = lines_of(entry).iter().map(Vec::len).sum();
        assert!(size < 32 * 1024, "{size}");
        assert_eq!(again.live, size as u64);
        again.forget(attempt(1)).unwrap();
        assert!(std::fs::metadata(&path).unwrap().len() < COMPACT_BYTES, "and its line goes");
    }

    #[test]
    fn a_torn_last_line_is_dropped_wherever_it_was_cut() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("journal");
        let mut journal = Journal::open(&path).unwrap();
        journal.begin(&order(attempt(1))).unwrap();
        let first = journal.length as usize;
        journal.begin(&order(attempt(2))).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        for cut in [first, first + 1, first + 100, bytes.len() - 1] {
            std::fs::write(&path, &bytes[..cut]).unwrap();
            let mut journal = Journal::open(&path).unwrap();
            assert!(journal.holds(attempt(1)) && !journal.holds(attempt(2)), "cut at {cut}");
            journal.begin(&order(attempt(3))).unwrap();
            assert!(Journal::open(&path).unwrap().holds(attempt(3)), "cut at {cut}");
        }
    }

    #[test]
    fn damage_before_the_last_line_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("journal");
        std::fs::write(&path, "{\"change\":\"begun\"\n").unwrap();
        let error = Journal::open(&path).unwrap_err();
        assert!(matches!(error, JournalError::Damaged { line: 1, .. }), "{error}");
    }

    #[test]
    fn the_file_does_not_grow_with_what_is_forgotten() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("journal");
        let mut journal = Journal::open(&path).unwrap();
        journal.begin(&order(attempt(1))).unwrap();
        let mut number = 2;
        let mut written = 0;
        while written < 3 * COMPACT_BYTES {
            let before = journal.length;
            journal.begin(&order(attempt(number))).unwrap();
            journal.forget(attempt(number)).unwrap();
            written += journal.length.saturating_sub(before);
            number += 1;
        }
        let size = std::fs::metadata(&path).unwrap().len();
        assert!(size <= COMPACT_BYTES + 4_096, "{size}");
        let again = Journal::open(&path).unwrap();
        assert_eq!(again.entries().count(), 1);
        assert_eq!(again.live, journal.live);
    }
}
