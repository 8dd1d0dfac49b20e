//! An attempt's log on the worker's disk: the buffer between init's frames and the coordinator.
//!
//! Two files. `spool` holds log records as they are stored everywhere (`buildyard_types::log`); `mark` says up
//! to which byte and which of init's frames the spool is good. Records are written first, the mark second, and
//! only what the mark covers is acknowledged to init or sent to the coordinator. So after `kill -9` between
//! any two writes the spool is cut back to its mark, init sends everything behind it again, and no line is
//! lost or doubled. Nothing is synced to the disk: a killed process leaves its writes with the kernel, and a
//! power cut takes the container along, so all that it can cost is the end of a log whose attempt is an
//! `infra` anyway.
//!
//! The size is bounded by the log cap of the attempt; the memory by [`BATCH_BYTES`].

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

use buildyard_types::log::Record;

/// Records are written to the file at the latest when so many bytes of them have gathered.
pub const BATCH_BYTES: usize = 256 * 1024;
const MARK_BYTES: usize = 16;

/// The writing end. One task owns it.
#[derive(Debug)]
pub struct Spool {
    file: File,
    mark: File,
    /// Bytes covered by the mark.
    length: u64,
    /// The newest of init's frames that the mark covers.
    sequence: u64,
    /// Bytes of the file, at least `length`.
    written: u64,
    /// Records that are not in the file yet.
    batch: Vec<u8>,
}

/// The reading end, for the upload.
#[derive(Debug)]
pub struct SpoolReader {
    file: File,
}

impl Spool {
    /// Opens the spool of an attempt in its folder, or makes an empty one. What the mark does not cover is cut
    /// off.
    pub fn open(folder: &Path) -> io::Result<Self> {
        let open = |name: &str| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false).mode(0o600);
            options.open(folder.join(name))
        };
        let file = open("spool")?;
        let mark = open("mark")?;
        let mut bytes = [0; MARK_BYTES];
        let (sequence, length) = match mark.read_exact_at(&mut bytes, 0) {
            Ok(()) => split(bytes),
            // No mark: nothing was acknowledged yet.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => (0, 0),
            Err(error) => return Err(error),
        };
        if file.metadata()?.len() < length {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "the spool is shorter than its mark; the host lost power while the attempt ran",
            ));
        }
        file.set_len(length)?;
        let mut spool = Self { file, mark, length, sequence, written: length, batch: Vec::new() };
        io::Seek::seek(&mut spool.file, io::SeekFrom::Start(length))?;
        Ok(spool)
    }

    /// Another handle on the same bytes.
    pub fn reader(&self) -> io::Result<SpoolReader> {
        Ok(SpoolReader { file: self.file.try_clone()? })
    }

    /// Bytes that are good: they may be sent.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The newest of init's frames that is in the spool; 0 before the first.
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// Bytes of all records, those that are not good yet included.
    pub fn pending_length(&self) -> u64 {
        self.written + self.batch.len() as u64
    }

    /// Adds a record. It counts from the next [`commit`](Self::commit) on.
    pub fn append(&mut self, record: &Record<'_>) -> io::Result<()> {
        record.write_to(&mut self.batch);
        if self.batch.len() >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    /// Makes everything added so far good, and with it init's frames up to `sequence`. Gives the length.
    pub fn commit(&mut self, sequence: u64) -> io::Result<u64> {
        self.flush()?;
        self.mark.write_all_at(&join(sequence, self.written), 0)?;
        self.sequence = sequence;
        self.length = self.written;
        Ok(self.length)
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.batch.is_empty() {
            return Ok(());
        }
        self.file.write_all(&self.batch)?;
        self.written += self.batch.len() as u64;
        self.batch.clear();
        Ok(())
    }
}

impl SpoolReader {
    /// Opens the spool of an attempt whose writer is gone.
    pub fn open(folder: &Path) -> io::Result<Self> {
        Ok(Self { file: File::open(folder.join("spool"))? })
    }

    /// Fills `out` from `offset` on, with `length` bytes at most. The caller keeps within what is good.
    pub fn read(&self, offset: u64, length: usize, out: &mut Vec<u8>) -> io::Result<()> {
        out.clear();
        out.resize(length, 0);
        let mut filled = 0;
        while filled < length {
            match self.file.read_at(&mut out[filled..], offset + filled as u64)? {
                0 => break,
                count => filled += count,
            }
        }
        out.truncate(filled);
        Ok(())
    }
}

fn join(sequence: u64, length: u64) -> [u8; MARK_BYTES] {
    let mut bytes = [0; MARK_BYTES];
    bytes[..8].copy_from_slice(&sequence.to_le_bytes());
    bytes[8..].copy_from_slice(&length.to_le_bytes());
    bytes
}

fn split(bytes: [u8; MARK_BYTES]) -> (u64, u64) {
    let mut halves = [[0; 8]; 2];
    halves[0].copy_from_slice(&bytes[..8]);
    halves[1].copy_from_slice(&bytes[8..]);
    (u64::from_le_bytes(halves[0]), u64::from_le_bytes(halves[1]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildyard_types::Timestamp;
    use buildyard_types::log::{RecordKind, read_record, whole_prefix};

    fn line(number: u64) -> String {
        format!("line {number}\n")
    }

    fn append(spool: &mut Spool, number: u64) {
        let text = line(number);
        let record =
            Record { kind: RecordKind::Stdout, step: 0, at: Timestamp(number), payload: text.as_bytes() };
        spool.append(&record).unwrap();
    }

    fn lines(folder: &Path, length: u64) -> Vec<String> {
        let mut bytes = Vec::new();
        SpoolReader::open(folder).unwrap().read(0, length as usize, &mut bytes).unwrap();
        assert_eq!(whole_prefix(&bytes), bytes.len());
        let mut found = Vec::new();
        let mut rest = &bytes[..];
        while let Some((record, taken)) = read_record(rest).unwrap() {
            found.push(String::from_utf8(record.payload.to_vec()).unwrap());
            rest = &rest[taken..];
        }
        found
    }

    #[test]
    fn what_the_mark_does_not_cover_is_sent_again_and_counts_once() {
        let temp = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(temp.path()).unwrap();
        assert_eq!((spool.length(), spool.sequence()), (0, 0));
        append(&mut spool, 1);
        append(&mut spool, 2);
        let good = spool.commit(2).unwrap();
        // Killed here: frame 3 reached the file, its mark did not.
        append(&mut spool, 3);
        spool.flush().unwrap();
        drop(spool);

        let mut spool = Spool::open(temp.path()).unwrap();
        assert_eq!((spool.length(), spool.sequence()), (good, 2));
        append(&mut spool, 3);
        append(&mut spool, 4);
        let length = spool.commit(4).unwrap();
        assert_eq!(lines(temp.path(), length), [line(1), line(2), line(3), line(4)]);
    }

    #[test]
    fn a_large_batch_reaches_the_file_before_its_commit_but_is_not_good_yet() {
        let temp = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(temp.path()).unwrap();
        let mut number = 0;
        while spool.written == 0 {
            append(&mut spool, number);
            number += 1;
        }
        assert!(spool.batch.capacity() <= 2 * BATCH_BYTES);
        assert_eq!(spool.length(), 0);
        let length = spool.commit(number).unwrap();
        assert_eq!(lines(temp.path(), length).len() as u64, number);
    }

    #[test]
    fn a_spool_shorter_than_its_mark_is_named() {
        let temp = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(temp.path()).unwrap();
        append(&mut spool, 1);
        spool.commit(1).unwrap();
        drop(spool);
        File::create(temp.path().join("spool")).unwrap();
        assert_eq!(Spool::open(temp.path()).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
