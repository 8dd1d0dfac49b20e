//! One live line for each job on a terminal, plain lines elsewhere. All of it on standard error.

use std::collections::BTreeMap;
use std::io::Write;

use buildyard_types::RunId;
use buildyard_types::api::{EventView, JobView, RunView};

use super::jobs;
use crate::output::Ui;
use crate::terminal;

/// Assumed where the terminal does not say.
const DEFAULT_SIZE: (usize, usize) = (80, 24);

/// What is on the screen.
pub(crate) struct Live {
    ui: Ui,
    drawn: usize,
}

impl Live {
    /// Nothing is drawn yet.
    pub(crate) fn new(ui: Ui) -> Self {
        Self { ui, drawn: 0 }
    }

    /// Draws the runs anew; nothing where lines cannot be redrawn.
    pub(crate) fn show(&mut self, runs: &BTreeMap<RunId, RunView>) {
        if !self.ui.live || self.ui.json() {
            return;
        }
        let (columns, rows) = terminal_size().unwrap_or(DEFAULT_SIZE);
        let lines = lines(runs.values(), columns, rows.saturating_sub(2).max(1));
        let mut out = String::new();
        self.erase(&mut out);
        for line in &lines {
            out.push_str(line);
            out.push('\n');
        }
        self.drawn = lines.len();
        write(&out);
    }

    /// Says what happened, where no lines are redrawn.
    pub(crate) fn event(&mut self, event: &EventView) {
        if !self.ui.live && !self.ui.json() {
            self.ui.progress(&event.sentence);
        }
    }

    /// Says something above the live lines.
    pub(crate) fn say(&mut self, text: &str) {
        let mut out = String::new();
        self.erase(&mut out);
        out.push_str(&terminal::line(text));
        out.push('\n');
        write(&out);
    }

    /// Takes the live lines away: the summary says how it ended.
    pub(crate) fn end(&mut self) {
        let mut out = String::new();
        self.erase(&mut out);
        write(&out);
    }

    fn erase(&mut self, out: &mut String) {
        if self.drawn > 0 {
            // To the first drawn line, and everything below it away.
            out.push_str(&format!("\x1b[{}F\x1b[J", self.drawn));
            self.drawn = 0;
        }
    }
}

fn write(text: &str) {
    // Standard error may be closed; the verdict is still worth waiting for.
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}

/// Columns and rows of the terminal behind standard error.
fn terminal_size() -> Option<(usize, usize)> {
    let size = rustix::termios::tcgetwinsize(std::io::stderr()).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col.into(), size.ws_row.into()))
}

/// The lines to draw: at most `rows`, none wider than `columns`. What is finished makes way first.
fn lines<'r>(runs: impl Iterator<Item = &'r RunView>, columns: usize, rows: usize) -> Vec<String> {
    let mut all = Vec::new();
    for run in runs {
        all.push((true, format!("{} {}: {}", run.id, run.pipeline, run.sentence)));
        let width = run.jobs.iter().map(|job| job.name.chars().count()).max().unwrap_or(0);
        all.extend(run.jobs.iter().map(|job| (job.outcome.is_none(), job_line(job, width))));
    }
    let mut hidden = 0;
    if all.len() > rows {
        let finished = all.iter().filter(|(wanted, _)| !wanted).count();
        let surplus = (all.len() + 1).saturating_sub(rows).min(finished);
        all.retain(|(wanted, _)| {
            let hide = !wanted && hidden < surplus;
            hidden += usize::from(hide);
            !hide
        });
        let room = rows.saturating_sub(1);
        hidden += all.len().saturating_sub(room);
        all.truncate(room);
    }
    let mut lines: Vec<String> = all.iter().map(|(_, text)| cut(text, columns)).collect();
    if hidden > 0 {
        lines.push(cut(&format!("… and {hidden} more"), columns));
    }
    lines
}

fn job_line(job: &JobView, width: usize) -> String {
    format!("  {:<width$}  {:>8}  {}", job.name, jobs::time(job), job.sentence)
}

/// A safe line that does not wrap: a wrapped line would be counted as one and leave its rest on the screen.
fn cut(text: &str, columns: usize) -> String {
    let safe = terminal::line(text);
    // Wide characters take two columns; counting every non-ASCII one as wide errs on the short side.
    let mut used = 0;
    safe.chars()
        .take_while(|c| {
            used += if c.is_ascii() { 1 } else { 2 };
            used < columns
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_never_wraps() {
        assert_eq!(cut("abcdef", 4), "abc");
        assert_eq!(cut("日本語", 6), "日本");
        assert_eq!(cut("a\x1b[2Jb", 80), "a\\x1b[2Jb");
    }
}
