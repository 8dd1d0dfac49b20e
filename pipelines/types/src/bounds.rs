//! How much a worker says about the end of an attempt, at most.
//!
//! Much of it is the job's own words: names of steps and of files. The worker cuts it down before it keeps or sends it,
//! the coordinator before it believes it, both with what is here. Refusing it would keep the attempt alive for ever.

use crate::outcome::{Outcome, TimeLimit};
use crate::size::ByteSize;
use crate::worker::EndReport;

/// Longest sentence.
pub const MAX_TEXT_CHARS: usize = 1_000;
/// Longest name of a step.
pub const MAX_NAME_CHARS: usize = 200;
/// Notes of one attempt.
pub const MAX_NOTES: usize = 50;
/// All notes of one attempt together.
pub const MAX_NOTES_CHARS: usize = 10_000;
/// Steps of one attempt.
pub const MAX_STEPS: usize = 1_000;

/// Cuts a text down, and takes out what would steer a terminal or a page.
pub fn cut(text: &mut String, chars: usize) {
    let hostile = |c: char| c.is_control() && c != '\n' && c != '\t';
    if text.chars().nth(chars).is_some() || text.contains(hostile) {
        *text = text.chars().take(chars).map(|c| if hostile(c) { '\u{fffd}' } else { c }).collect();
    }
}

impl EndReport {
    /// Cuts everything down that can be long.
    pub fn cut_down(&mut self) {
        cut_outcome(&mut self.outcome);
        self.steps.truncate(MAX_STEPS);
        self.steps.iter_mut().for_each(|step| cut(&mut step.name, MAX_NAME_CHARS));
        cut_notes(&mut self.notes);
        if let Some(digest) = &mut self.image_digest {
            cut(digest, MAX_NAME_CHARS);
        }
    }
}

fn cut_notes(notes: &mut Vec<String>) {
    notes.truncate(MAX_NOTES);
    notes.iter_mut().for_each(|note| cut(note, MAX_TEXT_CHARS));
    let mut chars = 0;
    let within = notes.iter().take_while(|note| {
        chars += note.chars().count();
        chars <= MAX_NOTES_CHARS
    });
    let within = within.count();
    notes.truncate(within);
}

fn cut_outcome(outcome: &mut Outcome) {
    match outcome {
        Outcome::Passed => {}
        Outcome::Failed { step, exit_code: _ } => cut(step, MAX_NAME_CHARS),
        Outcome::TimedOut { limit, after_ms: _ } => match limit {
            TimeLimit::Step { step } => cut(step, MAX_NAME_CHARS),
            TimeLimit::Job | TimeLimit::Queue => {}
        },
        Outcome::OutOfMemory { step, limit: ByteSize(_) }
        | Outcome::DiskQuota { step, limit: ByteSize(_) }
        | Outcome::LogCap { step, limit: ByteSize(_) } => {
            if let Some(step) = step {
                cut(step, MAX_NAME_CHARS);
            }
        }
        Outcome::Cancelled { by } => cut(by, MAX_TEXT_CHARS),
        Outcome::Skipped { reason } | Outcome::Refused { reason } => cut(reason, MAX_TEXT_CHARS),
        Outcome::Infra { cause: _, detail } => cut(detail, MAX_TEXT_CHARS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::Usage;

    fn report(outcome: Outcome, notes: Vec<String>) -> EndReport {
        EndReport { outcome, steps: Vec::new(), usage: Usage::default(), notes, image_digest: None }
    }

    #[test]
    fn an_end_is_cut_down() {
        let outcome = Outcome::Failed { step: "\x1b[2Jx".repeat(1_000), exit_code: 1 };
        let mut report = report(outcome, vec!["n".repeat(5_000); 5_000]);
        report.cut_down();
        assert_eq!(report.notes.len(), MAX_NOTES_CHARS / MAX_TEXT_CHARS);
        assert_eq!(report.notes[0].len(), MAX_TEXT_CHARS);
        match &report.outcome {
            Outcome::Failed { step, .. } => {
                assert!(step.chars().count() == MAX_NAME_CHARS && !step.contains('\x1b'), "{step}");
            }
            other => panic!("{other}"),
        }
        let once = report.clone();
        report.cut_down();
        assert_eq!(report, once, "cutting twice changes nothing");
    }

    #[test]
    fn short_notes_are_counted() {
        let mut report = report(Outcome::Passed, vec!["n".into(); 5_000]);
        report.cut_down();
        assert_eq!(report.notes.len(), MAX_NOTES);
    }
}
