//! What people and programs read: tables, sentences, JSON. Data goes to standard output, progress to standard
//! error. Everything that came from elsewhere passes [`crate::terminal`] on its way.

use std::io::{IsTerminal, Write};
use std::time::{SystemTime, UNIX_EPOCH};

use buildyard_types::api::RunView;
use buildyard_types::{Outcome, Timestamp, Verdict};
use serde::Serialize;

use crate::exit::{CliError, Result};
use crate::terminal::{self, Colours};

/// For whom the output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people.
    Text,
    /// For programs: the API's views.
    Json,
}

/// What is known of the two outputs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ui {
    /// For whom.
    pub(crate) format: Format,
    /// Whether standard output shows colours.
    pub(crate) colour: bool,
    /// Whether standard error is a terminal whose lines can be redrawn.
    pub(crate) live: bool,
}

/// The colours used, by what they say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tone {
    /// It went well.
    Good,
    /// It went wrong, and its author has to mend it.
    Bad,
    /// Somebody should look.
    Warn,
    /// It goes on, or does not matter.
    Dim,
}

impl Ui {
    /// Looks at the outputs and the environment.
    pub(crate) fn detect(format: Format) -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        let able = std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self {
            format,
            colour: wanted && able && std::io::stdout().is_terminal(),
            live: able && std::io::stderr().is_terminal(),
        }
    }

    /// Whether programs read the output.
    pub(crate) fn json(&self) -> bool {
        self.format == Format::Json
    }

    /// What becomes of colours in a log.
    pub(crate) fn log_colours(&self) -> Colours {
        if self.colour { Colours::Pass } else { Colours::Strip }
    }

    /// Colours a text that is safe already.
    pub(crate) fn paint(&self, tone: Tone, text: &str) -> String {
        if !self.colour {
            return text.to_owned();
        }
        let code = match tone {
            Tone::Good => 32,
            Tone::Bad => 31,
            Tone::Warn => 33,
            Tone::Dim => 2,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// Tells people of a change as soon as it is made; programs get all of them at the end.
    pub(crate) fn changed(&self, change: &Change) {
        if !self.json() {
            self.progress(&change.sentence);
        }
    }

    /// Gives programs the changes.
    pub(crate) fn all_changed(&self, changes: &[Change]) -> Result {
        if self.json() { print_one_or_several(changes) } else { Ok(()) }
    }

    /// A line on standard error. Nobody listening is no reason to stop.
    pub(crate) fn progress(&self, text: &str) {
        let _ = writeln!(std::io::stderr().lock(), "{}", terminal::line(text));
    }
}

/// A line of text on standard output. The text must be safe already.
pub(crate) fn print(text: &str) -> Result {
    Ok(writeln!(std::io::stdout().lock(), "{text}")?)
}

/// A document on standard output.
pub(crate) fn print_json<T: Serialize>(value: &T) -> Result {
    let text = serde_json::to_string_pretty(value)
        .map_err(|error| CliError::farm("cannot write the answer as JSON").because(error))?;
    print(&harmless_json(&text))
}

/// One document where one thing was asked for, a list of them where it is several.
pub(crate) fn print_one_or_several<T: Serialize>(values: &[T]) -> Result {
    match values {
        [one] => print_json(one),
        several => print_json(&several),
    }
}

/// What a command changed, or would change. The document that programs get; people get the sentence.
#[derive(Debug, Serialize)]
pub(crate) struct Change {
    /// The id of what was changed.
    pub(crate) subject: String,
    /// `cancel`, `cordon`, `uncordon` or `remove`.
    pub(crate) change: &'static str,
    /// Whether nothing was changed, because nobody wanted more than to know.
    pub(crate) dry_run: bool,
    /// The same in words.
    pub(crate) sentence: String,
}

/// One JSON document in one line, without its end.
pub(crate) fn json_line<T: Serialize>(value: &T) -> Result<String> {
    let text = serde_json::to_string(value)
        .map_err(|error| CliError::farm("cannot write the answer as JSON").because(error))?;
    Ok(harmless_json(&text))
}

/// JSON may hold DEL, C1 and direction controls as they are; a terminal obeys some of them. Outside strings
/// they cannot occur, so writing them as `\uXXXX` changes nothing for a reader.
fn harmless_json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\n' || terminal::line(c.encode_utf8(&mut [0; 4])).chars().eq([c]) {
            out.push(c);
        } else {
            let mut units = [0; 2];
            for unit in c.encode_utf16(&mut units) {
                out.push_str(&format!("\\u{unit:04x}"));
            }
        }
    }
    out
}

/// Columns of text, as wide as they need to be. Cells are made safe here.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with its headings.
    pub(crate) fn new(headings: &[&str]) -> Self {
        Self { rows: vec![headings.iter().map(|text| (*text).to_owned()).collect()] }
    }

    /// Adds a row.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().map(|cell| terminal::line(&cell)).collect());
    }

    /// The table as text without a last line feed.
    pub(crate) fn render(&self) -> String {
        let columns = self.rows[0].len();
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max()
        };
        let widths: Vec<usize> = (0..columns).map(|column| width(column).unwrap_or(0)).collect();
        let lines = self.rows.iter().map(|row| {
            let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:<width$}"));
            cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
        });
        lines.collect::<Vec<_>>().join("\n")
    }
}

/// Now, for showing how long ago something was.
pub(crate) fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Until then people count in hours; after it they want the day.
const AGO_LIMIT_MS: u64 = 48 * 3_600_000;

/// How long ago: `just now`, `4m 05s ago`; the day where it is longer ago.
pub(crate) fn ago(then: Timestamp, now: Timestamp) -> String {
    let passed = now.since(then);
    match passed.0 {
        0..1_000 => "just now".to_owned(),
        1_000..=AGO_LIMIT_MS => format!("{passed} ago"),
        _ => utc(then).chars().take("2026-01-31".len()).collect(),
    }
}

/// A moment as people write it, in UTC.
pub(crate) fn utc(at: Timestamp) -> String {
    let seconds = i64::try_from(at.0 / 1_000).unwrap_or(i64::MAX);
    match jiff::Timestamp::from_second(seconds) {
        Ok(moment) => moment.to_string(),
        Err(_) => format!("{} ms after 1970", at.0),
    }
}

/// The first characters of a commit.
pub(crate) fn short_commit(commit: &str) -> String {
    commit.chars().take(10).collect()
}

/// What a branch or tag is called: `refs/heads/main` is `main`.
pub(crate) fn short_ref(name: &str) -> &str {
    name.strip_prefix("refs/heads/").or_else(|| name.strip_prefix("refs/tags/")).unwrap_or(name)
}

/// The word for where a run is, with its tone.
pub(crate) fn run_word(run: &RunView) -> (Tone, String) {
    match run.verdict {
        Some(verdict) => (verdict_tone(verdict), verdict.to_string()),
        None => (Tone::Dim, run.state.to_string()),
    }
}

/// The tone of a verdict.
pub(crate) fn verdict_tone(verdict: Verdict) -> Tone {
    match verdict {
        Verdict::Passed => Tone::Good,
        Verdict::Failed | Verdict::Refused => Tone::Bad,
        Verdict::Cancelled => Tone::Dim,
        Verdict::Infra => Tone::Warn,
    }
}

/// The tone of an outcome.
pub(crate) fn outcome_tone(outcome: &Outcome) -> Tone {
    match outcome {
        Outcome::Skipped { .. } => Tone::Dim,
        other => verdict_tone(Verdict::of([other])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_lines_up_and_its_cells_are_harmless() {
        let mut table = Table::new(&["ID", "NAME", "NOTE"]);
        table.row(["run-1".into(), "é\x1b[2J".into(), String::new()]);
        table.row(["run-200".into(), "b".into(), "c".into()]);
        assert_eq!(table.render(), "ID       NAME      NOTE\nrun-1    é\\x1b[2J\nrun-200  b         c");
    }

    #[test]
    fn json_on_a_terminal_moves_nothing() {
        let text = serde_json::to_string("a\u{9b}2J\u{202e}b\u{e0041}\n").unwrap();
        let harmless = harmless_json(&text);
        assert!(harmless.is_ascii(), "{harmless}");
        assert_eq!(serde_json::from_str::<String>(&harmless).unwrap(), "a\u{9b}2J\u{202e}b\u{e0041}\n");
    }

    #[test]
    fn times_read_well() {
        assert_eq!(utc(Timestamp(1_700_000_000_123)), "2023-11-14T22:13:20Z");
        assert_eq!(ago(Timestamp(5_000), Timestamp(5_100)), "just now");
        assert_eq!(ago(Timestamp(5_000), Timestamp(250_000)), "4m 05s ago");
        assert_eq!(ago(Timestamp(1_700_000_000_123), Timestamp(1_800_000_000_000)), "2023-11-14");
    }
}
