//! Where the log of a local job goes: through the same printer as the farm's logs.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use buildyard_types::api::LogLine;
use buildyard_types::log::{Record, RecordKind};
use buildyard_worker::local::Sink;

use crate::logs::printer::{Printer, StepChoice};
use crate::output::Ui;

/// Prints the records of one job.
pub(crate) struct Output {
    printer: Printer,
    decoder: Decoder,
    to_stderr: bool,
    reader_left: Arc<AtomicBool>,
}

impl Output {
    /// Prints behind a prefix, if there is one. Sets `reader_left` once nobody reads the output.
    pub(crate) fn new(ui: Ui, prefix: Option<String>, reader_left: Arc<AtomicBool>) -> Self {
        let printer = Printer::new(ui, prefix, StepChoice::All);
        // Programs get their document on standard output; the log is progress to them.
        Self { printer, decoder: Decoder::default(), to_stderr: ui.json(), reader_left }
    }

    /// Ends the text.
    pub(crate) fn finish(&mut self) {
        let mut out = String::new();
        self.printer.finish(&mut out);
        self.write(&out);
    }

    fn write(&self, text: &str) {
        if text.is_empty() {
            return;
        }
        let written = if self.to_stderr {
            std::io::stderr().lock().write_all(text.as_bytes())
        } else {
            let mut stdout = std::io::stdout().lock();
            stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush())
        };
        if written.is_err() {
            self.reader_left.store(true, Ordering::Relaxed);
        }
    }
}

impl Sink for Output {
    fn record(&mut self, record: &Record<'_>) {
        let text = match record.kind {
            RecordKind::Stdout | RecordKind::Stderr => self.decoder.decode(record.payload),
            RecordKind::StepStart | RecordKind::StepEnd | RecordKind::Note => {
                String::from_utf8_lossy(record.payload).into_owned()
            }
        };
        let line = LogLine { kind: record.kind.as_str().to_owned(), step: record.step, at: record.at, text };
        let mut out = String::new();
        self.printer.push(&line, &mut out);
        self.write(&out);
    }
}

/// Makes text of bytes that may be cut in the middle of a character. What is no UTF-8 is replaced.
#[derive(Debug, Default)]
struct Decoder {
    /// The beginning of a character: at most three bytes.
    begun: Vec<u8>,
}

impl Decoder {
    fn decode(&mut self, bytes: &[u8]) -> String {
        let mut all = std::mem::take(&mut self.begun);
        all.extend_from_slice(bytes);
        let mut text = String::with_capacity(all.len());
        let mut rest = all.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(good) => {
                    text.push_str(good);
                    return text;
                }
                Err(error) => {
                    let (good, bad) = rest.split_at(error.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(good));
                    match error.error_len() {
                        // The character may go on with the next bytes.
                        None => {
                            self.begun = bad.to_vec();
                            return text;
                        }
                        Some(length) => {
                            text.push(char::REPLACEMENT_CHARACTER);
                            rest = &bad[length..];
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_cut_changes_a_text() {
        let whole = "aé日👍\u{fffd}z".as_bytes();
        for cut in 0..=whole.len() {
            let mut decoder = Decoder::default();
            let text = decoder.decode(&whole[..cut]) + &decoder.decode(&whole[cut..]);
            assert_eq!(text.as_bytes(), whole, "cut at {cut}");
        }
    }

    #[test]
    fn what_is_no_text_is_replaced_and_never_kept_for_long() {
        let mut decoder = Decoder::default();
        assert_eq!(decoder.decode(b"a\xff\xfeb\xc3"), "a\u{fffd}\u{fffd}b");
        assert_eq!(decoder.decode(b"x"), "\u{fffd}x");
        for _ in 0..100 {
            decoder.decode(b"\xf0\x9f\x91");
            assert!(decoder.begun.len() <= 3);
        }
    }
}
