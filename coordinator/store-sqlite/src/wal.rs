//! Looks through the write-ahead log before SQLite does, for damage that SQLite takes for the log's end.
//!
//! SQLite reads the log up to the first frame whose checksum is wrong and forgets the rest. After a power cut
//! that is right: the rest was being written. It is wrong when a frame in the middle went bad, since commits
//! behind it were synced and acknowledged. The two can be told apart: with `synchronous=FULL` each commit is
//! synced before the next one begins, so behind a torn frame there is at most one commit of the same log.
//! (A fresh log begins at each start of the store, so what one crash tore is not there at the next.)
//!
//! The format: <https://www.sqlite.org/fileformat2.html#the_write_ahead_log>.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

const HEADER_BYTES: usize = 32;
const FRAME_HEADER_BYTES: usize = 24;
const MAGIC: u32 = 0x377f_0682;

/// What the log looks like.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Finding {
    /// It is whole, or torn where a power cut tears it.
    Good,
    /// Acknowledged commits stand behind bytes that are not what was written.
    Damaged(String),
}

fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// SQLite's running checksum over pairs of words.
struct Checksum {
    big_endian: bool,
    sums: (u32, u32),
}

impl Checksum {
    fn add(&mut self, bytes: &[u8]) {
        let read = if self.big_endian { u32::from_be_bytes } else { u32::from_le_bytes };
        for pair in bytes.chunks_exact(8) {
            let first = read([pair[0], pair[1], pair[2], pair[3]]);
            let second = read([pair[4], pair[5], pair[6], pair[7]]);
            self.sums.0 = self.sums.0.wrapping_add(first).wrapping_add(self.sums.1);
            self.sums.1 = self.sums.1.wrapping_add(second).wrapping_add(self.sums.0);
        }
    }

    fn is_at(&self, bytes: &[u8], at: usize) -> bool {
        self.sums == (word(bytes, at), word(bytes, at + 4))
    }
}

/// Fills the buffer, or says that the file ends before.
fn fill(file: &mut impl Read, buffer: &mut [u8]) -> io::Result<bool> {
    match file.read_exact(buffer) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

/// Reads a log through. A log that is not there is good.
pub(crate) fn examine(path: &Path) -> io::Result<Finding> {
    match File::open(path) {
        Ok(file) => examine_bytes(BufReader::with_capacity(1 << 16, file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Finding::Good),
        Err(error) => Err(error),
    }
}

fn examine_bytes(mut file: impl Read) -> io::Result<Finding> {
    let mut header = [0; HEADER_BYTES];
    if !fill(&mut file, &mut header)? {
        return Ok(Finding::Good);
    }
    let magic = word(&header, 0);
    let mut checksum = Checksum { big_endian: magic & 1 == 1, sums: (0, 0) };
    checksum.add(&header[..24]);
    let page_bytes = word(&header, 8) as usize;
    let sane = magic & !1 == MAGIC && page_bytes.is_power_of_two() && (512..=65_536).contains(&page_bytes);
    if !sane || !checksum.is_at(&header, 24) {
        // SQLite syncs the header before the first frame, so a torn one has no frames; but a crash may leave
        // a file that grew and was not filled.
        return Ok(match header.iter().all(|byte| *byte == 0) {
            true => Finding::Good,
            false => Finding::Damaged("the header of its write-ahead log is broken".into()),
        });
    }
    let mut frame = vec![0; FRAME_HEADER_BYTES + page_bytes];
    let (mut whole, mut broken, mut commits_behind) = (0_u64, false, 0_u64);
    while fill(&mut file, &mut frame)? {
        let same_log = frame[8..16] == header[16..24];
        if !broken {
            checksum.add(&frame[..8]);
            checksum.add(&frame[FRAME_HEADER_BYTES..]);
            broken = !same_log || !checksum.is_at(&frame, 16);
        }
        if broken {
            let is_commit = word(&frame, 4) != 0;
            commits_behind += u64::from(same_log && is_commit);
        } else {
            whole += 1;
        }
    }
    Ok(match commits_behind {
        0 | 1 => Finding::Good,
        commits => Finding::Damaged(format!(
            "frame {} of its write-ahead log is broken, and {commits} commits stand behind it",
            whole + 1
        )),
    })
}
