//! The stored form of an attempt's log: a sequence of records, each with its step, stream and time.
//!
//! A log is bytes with an offset, so that any part of it can be sent again and any reader can resume. Status
//! never travels inside the output: a job that prints a record's bytes prints just bytes of an output record.
//!
//! ```text
//! u32 payload length | u8 kind | u8 0 | u16 step | u64 milliseconds since 1970     (little endian)
//! payload
//! ```

use crate::time::Timestamp;

/// Bytes in front of each payload.
pub const HEADER_BYTES: usize = 16;
/// Longest payload of one record. Longer output is cut into several records.
pub const MAX_PAYLOAD_BYTES: usize = 64 * 1024;

/// What a record is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordKind {
    /// Bytes that the step wrote to standard output.
    Stdout,
    /// Bytes that the step wrote to standard error.
    Stderr,
    /// A step begins; the payload is its name.
    StepStart,
    /// A step ended; the payload is its exit code in decimal.
    StepEnd,
    /// A sentence by the farm itself; never made from what the job printed.
    Note,
}

/// One record of a log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'p> {
    /// What it is about.
    pub kind: RecordKind,
    /// The step it belongs to, counted from 0 in the job's order.
    pub step: u16,
    /// When the worker saw it.
    pub at: Timestamp,
    /// Its content.
    pub payload: &'p [u8],
}

/// Why bytes are not a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The kind's number is unknown.
    #[error("log record of unknown kind {0}")]
    Kind(u8),
    /// The payload is longer than a record may be.
    #[error("log record of {0} bytes; at most {MAX_PAYLOAD_BYTES} are allowed")]
    TooLong(usize),
}

impl RecordKind {
    fn code(self) -> u8 {
        match self {
            RecordKind::Stdout => 1,
            RecordKind::Stderr => 2,
            RecordKind::StepStart => 3,
            RecordKind::StepEnd => 4,
            RecordKind::Note => 5,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Self::Stdout, Self::Stderr, Self::StepStart, Self::StepEnd, Self::Note]
            .into_iter()
            .find(|kind| kind.code() == code)
    }

    /// The name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            RecordKind::Stdout => "stdout",
            RecordKind::Stderr => "stderr",
            RecordKind::StepStart => "step_start",
            RecordKind::StepEnd => "step_end",
            RecordKind::Note => "note",
        }
    }
}

impl Record<'_> {
    /// Appends the record to `out`. A payload beyond [`MAX_PAYLOAD_BYTES`] becomes several records.
    pub fn write_to(&self, out: &mut Vec<u8>) {
        let mut rest = self.payload;
        loop {
            let (now, later) = rest.split_at(rest.len().min(MAX_PAYLOAD_BYTES));
            out.extend_from_slice(&(now.len() as u32).to_le_bytes());
            out.extend_from_slice(&[self.kind.code(), 0]);
            out.extend_from_slice(&self.step.to_le_bytes());
            out.extend_from_slice(&self.at.0.to_le_bytes());
            out.extend_from_slice(now);
            if later.is_empty() {
                return;
            }
            rest = later;
        }
    }
}

/// Reads the first record of `bytes` and how many bytes it took; `None` when it is not all there yet.
pub fn read_record(bytes: &[u8]) -> Result<Option<(Record<'_>, usize)>, LogError> {
    let Some((header, rest)) = bytes.split_first_chunk::<HEADER_BYTES>() else {
        return Ok(None);
    };
    let [l0, l1, l2, l3, kind, _, s0, s1, time @ ..] = *header;
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    if length > MAX_PAYLOAD_BYTES {
        return Err(LogError::TooLong(length));
    }
    let kind = RecordKind::from_code(kind).ok_or(LogError::Kind(kind))?;
    let Some(payload) = rest.get(..length) else {
        return Ok(None);
    };
    let step = u16::from_le_bytes([s0, s1]);
    let at = Timestamp(u64::from_le_bytes(time));
    Ok(Some((Record { kind, step, at, payload }, HEADER_BYTES + length)))
}

/// Length of the longest prefix of `bytes` that consists of whole records. Used after a crash, where the last
/// record of a spool may be torn.
pub fn whole_prefix(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Ok(Some((_, length))) = read_record(&bytes[at..]) {
        at += length;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn records_read_back_at_any_split(payload in proptest::collection::vec(any::<u8>(), 0..300), step: u16, at: u64, cut in 0usize..316) {
            let record = Record { kind: RecordKind::Stderr, step, at: Timestamp(at), payload: &payload };
            let mut bytes = Vec::new();
            record.write_to(&mut bytes);
            prop_assert_eq!(read_record(&bytes), Ok(Some((record, bytes.len()))));
            let cut = cut.min(bytes.len() - 1);
            prop_assert_eq!(read_record(&bytes[..cut]), Ok(None));
            prop_assert_eq!(whole_prefix(&bytes[..cut]), 0);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = read_record(&bytes);
        }
    }

    #[test]
    fn a_long_payload_becomes_several_records() {
        let payload = vec![b'x'; MAX_PAYLOAD_BYTES * 2 + 1];
        let mut bytes = Vec::new();
        Record { kind: RecordKind::Stdout, step: 0, at: Timestamp(1), payload: &payload }
            .write_to(&mut bytes);
        assert_eq!(bytes.len(), payload.len() + 3 * HEADER_BYTES);
        assert_eq!(whole_prefix(&bytes), bytes.len());
    }
}
