//! The form in which people read a log. Pure: records in, safe text out.

use std::collections::BTreeMap;

use buildyard_types::api::LogLine;

use crate::output::{Tone, Ui};
use crate::terminal::{self, EscapeFilter};

/// A line without an end is cut here, so that a prefix can be put before each line in bounded memory.
const LINE_LIMIT_BYTES: usize = 64 * 1024;

/// Which steps to show.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum StepChoice {
    /// All of them.
    #[default]
    All,
    /// The one of this name.
    Named(String),
}

/// Turns the records of one attempt into text.
pub(crate) struct Printer {
    ui: Ui,
    filter: EscapeFilter,
    prefix: Option<String>,
    choice: StepChoice,
    names: BTreeMap<u16, String>,
    line: String,
}

impl Printer {
    /// A printer that puts `prefix` before each line, if there is one.
    pub(crate) fn new(ui: Ui, prefix: Option<String>, choice: StepChoice) -> Self {
        Self {
            ui,
            filter: EscapeFilter::new(ui.log_colours()),
            prefix: prefix.map(|text| terminal::line(&text)),
            choice,
            names: BTreeMap::new(),
            line: String::new(),
        }
    }

    /// Appends the text of a record to `out`.
    pub(crate) fn push(&mut self, record: &LogLine, out: &mut String) {
        if record.kind == "step_start" {
            self.names.insert(record.step, record.text.clone());
        }
        if !self.is_wanted(record) {
            return;
        }
        match record.kind.as_str() {
            "stdout" | "stderr" => self.output(&record.text, out),
            "step_start" => self.marker(&format!("== step {}", record.text), out),
            "step_end" => self.marker(&self.end_text(record), out),
            // `note`, and whatever a newer coordinator says.
            _ => self.marker(&format!("== {}", record.text), out),
        }
    }

    /// Ends the text: a last line without an end gets one.
    pub(crate) fn finish(&mut self, out: &mut String) {
        self.filter.finish(&mut self.line);
        if !self.line.is_empty() {
            self.line.push('\n');
        }
        self.emit_lines(out);
    }

    fn is_wanted(&self, record: &LogLine) -> bool {
        match &self.choice {
            StepChoice::All => true,
            StepChoice::Named(name) => self.names.get(&record.step) == Some(name),
        }
    }

    fn end_text(&self, record: &LogLine) -> String {
        let name = self.names.get(&record.step).map(String::as_str).unwrap_or("step");
        match record.text.as_str() {
            "0" => format!("== step {name} passed"),
            code => format!("== step {name} ended with exit code {code}"),
        }
    }

    fn output(&mut self, text: &str, out: &mut String) {
        self.filter.push(text, &mut self.line);
        self.emit_lines(out);
    }

    /// A line by the farm. It begins a line of its own, and is told from the job's output by its tone alone:
    /// nothing reads it back.
    fn marker(&mut self, text: &str, out: &mut String) {
        self.finish(out);
        self.line.push_str(&self.ui.paint(Tone::Dim, &terminal::line(text)));
        self.line.push('\n');
        self.emit_lines(out);
    }

    /// Moves what is ready: whole lines where each gets a prefix, everything elsewhere.
    fn emit_lines(&mut self, out: &mut String) {
        let Some(prefix) = &self.prefix else {
            // A line that goes on later needs its line end from `finish`; so only its end is kept.
            let keep = self.line.rfind('\n').map_or(0, |at| at + 1);
            out.push_str(&self.line[..keep]);
            self.line.drain(..keep);
            if self.line.len() > LINE_LIMIT_BYTES {
                out.push_str(&std::mem::take(&mut self.line));
            }
            return;
        };
        // One walk and one removal: a record of short lines must not be moved to the front for each of them.
        let keep = self.line.rfind('\n').map_or(0, |at| at + 1);
        for line in self.line[..keep].split_inclusive('\n') {
            out.push_str(prefix);
            out.push_str(line);
        }
        self.line.drain(..keep);
        if self.line.len() > LINE_LIMIT_BYTES {
            out.push_str(prefix);
            out.push_str(&std::mem::take(&mut self.line));
            out.push('\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use buildyard_types::Timestamp;

    use super::*;
    use crate::output::Format;

    const UI: Ui = Ui { format: Format::Text, colour: false, live: false };

    fn record(kind: &str, step: u16, text: &str) -> LogLine {
        LogLine { kind: kind.into(), step, at: Timestamp(0), text: text.into() }
    }

    fn check(prefix: Option<&str>, choice: StepChoice, records: &[LogLine], expected: &str) {
        let mut printer = Printer::new(UI, prefix.map(Into::into), choice);
        let mut out = String::new();
        records.iter().for_each(|record| printer.push(record, &mut out));
        printer.finish(&mut out);
        assert_eq!(out, expected);
    }

    fn two_steps() -> Vec<LogLine> {
        vec![
            record("note", 0, "prepared in 20ms"),
            record("step_start", 0, "build"),
            record("stdout", 0, "a\nhalf "),
            record("stderr", 0, "line\x1b[2J"),
            record("step_end", 0, "0"),
            record("step_start", 1, "test"),
            record("stdout", 1, "b\n"),
            record("step_end", 1, "2"),
        ]
    }

    #[test]
    fn output_and_markers_stand_on_lines_of_their_own() {
        check(
            None,
            StepChoice::All,
            &two_steps(),
            "== prepared in 20ms\n== step build\na\nhalf line\\x1b[2J\n== step build passed\n\
             == step test\nb\n== step test ended with exit code 2\n",
        );
    }

    #[test]
    fn a_prefix_stands_before_every_line() {
        let records = [record("stdout", 0, "a\nb"), record("stdout", 0, "c\nd")];
        check(Some("lint | "), StepChoice::All, &records, "lint | a\nlint | bc\nlint | d\n");
    }

    #[test]
    fn one_step_alone_can_be_shown() {
        let expected = "== step test\nb\n== step test ended with exit code 2\n";
        check(None, StepChoice::Named("test".into()), &two_steps(), expected);
    }

    #[test]
    fn a_line_without_an_end_is_kept_in_bounded_memory() {
        let mut printer = Printer::new(UI, Some("x | ".into()), StepChoice::All);
        let mut out = String::new();
        for _ in 0..100 {
            printer.push(&record("stdout", 0, &"y".repeat(10_000)), &mut out);
            assert!(printer.line.len() <= LINE_LIMIT_BYTES + 10_000);
        }
        assert!(out.len() > 900_000);
    }
}
