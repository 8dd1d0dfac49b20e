//! The bytes that a job wrote, untouched: the stored records without their headers.

use std::io::Write;

use buildyard_types::AttemptId;
use buildyard_types::log::{RecordKind, read_record};

use super::printer::StepChoice;
use crate::client::Client;
use crate::exit::{CliError, Result};

/// Takes the stored form of a log, however it is cut, and gives the output in it.
#[derive(Debug, Default)]
pub(crate) struct Unpacker {
    pending: Vec<u8>,
    choice: StepChoice,
    wanted: Vec<u16>,
}

impl Unpacker {
    /// An unpacker of the steps that are wanted.
    pub(crate) fn new(choice: StepChoice) -> Self {
        Self { choice, ..Self::default() }
    }

    /// Adds bytes and appends the output in the records that they complete.
    pub(crate) fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) -> Result {
        self.pending.extend_from_slice(bytes);
        let mut at = 0;
        loop {
            let record = read_record(&self.pending[at..])
                .map_err(|error| CliError::farm("cannot understand the log").because(error))?;
            let Some((record, length)) = record else { break };
            match record.kind {
                RecordKind::StepStart => {
                    if let StepChoice::Named(name) = &self.choice
                        && name.as_bytes() == record.payload
                    {
                        self.wanted.push(record.step);
                    }
                }
                RecordKind::Stdout | RecordKind::Stderr => {
                    if self.choice == StepChoice::All || self.wanted.contains(&record.step) {
                        out.extend_from_slice(record.payload);
                    }
                }
                RecordKind::StepEnd | RecordKind::Note => {}
            }
            at += length;
        }
        self.pending.drain(..at);
        Ok(())
    }
}

/// Writes what an attempt has written so far to standard output.
pub(crate) async fn copy(client: &Client, attempt: AttemptId, choice: StepChoice) -> Result {
    let mut unpacker = Unpacker::new(choice);
    let query = [("format", "raw".to_owned())];
    let mut response = client.open(&["attempts", &attempt.to_string(), "log"], &query).await?;
    let mut stdout = std::io::stdout();
    while let Some(chunk) = client.chunk(&mut response).await? {
        let mut out = Vec::new();
        unpacker.push(&chunk, &mut out)?;
        stdout.write_all(&out)?;
    }
    Ok(stdout.flush()?)
}

#[cfg(test)]
mod tests {
    use buildyard_types::Timestamp;
    use buildyard_types::log::Record;

    use super::*;

    #[test]
    fn only_output_comes_out_byte_for_byte_at_any_cut() {
        let mut stored = Vec::new();
        for (kind, step, payload) in [
            (RecordKind::StepStart, 0, &b"build"[..]),
            (RecordKind::Stdout, 0, b"a\xff\x1b[2J"),
            (RecordKind::StepEnd, 0, b"0"),
            (RecordKind::StepStart, 1, b"test"),
            (RecordKind::Stderr, 1, b"\0b"),
            (RecordKind::Note, 1, b"note"),
        ] {
            Record { kind, step, at: Timestamp(1), payload }.write_to(&mut stored);
        }
        for cut in 0..stored.len() {
            for (choice, expected) in
                [(StepChoice::All, &b"a\xff\x1b[2J\0b"[..]), (StepChoice::Named("test".into()), b"\0b")]
            {
                let mut unpacker = Unpacker::new(choice);
                let mut out = Vec::new();
                unpacker.push(&stored[..cut], &mut out).unwrap();
                unpacker.push(&stored[cut..], &mut out).unwrap();
                assert_eq!(out, expected, "cut at {cut}");
            }
        }
    }
}
