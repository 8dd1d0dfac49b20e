//! How a command ends: one error type, one table of exit codes.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use buildyard_types::Verdict;
use buildyard_types::api::Problem;

use crate::terminal;

/// What kind of trouble it is. The exit code follows from this alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The answer is no: a run failed, a file has findings, something needed is missing. Said already.
    Negative,
    /// The command line, a configuration file or an id is wrong, or names nothing.
    Usage,
    /// No coordinator answers.
    Unreachable,
    /// A policy or a permission forbids it.
    Refused,
    /// The farm failed, or could not find out.
    Farm,
    /// `--timeout` ran out.
    Timeout,
    /// The user stopped it.
    Interrupted,
    /// Nobody reads the output any more. Ends commands that only print; an answer by exit status outlives it, see
    /// [`answer`].
    BrokenPipe,
}

impl Kind {
    /// The exit code, as DESIGN and docs/cli.md list them.
    pub(crate) fn code(self) -> u8 {
        match self {
            Kind::BrokenPipe => 0,
            Kind::Negative => 1,
            Kind::Usage => 2,
            Kind::Unreachable => 3,
            Kind::Refused => 4,
            Kind::Farm => 5,
            Kind::Timeout => 6,
            Kind::Interrupted => 130,
        }
    }

    /// Stable code, title and HTTP-like status of the problem document for errors that arise here.
    fn problem(self) -> (&'static str, &'static str, u16) {
        match self {
            Kind::Negative => ("negative-verdict", "The verdict is negative", 200),
            Kind::Usage => ("usage", "The command cannot be understood", 400),
            Kind::Unreachable => ("coordinator-unreachable", "No coordinator answers", 503),
            Kind::Refused => ("refused", "Not allowed", 403),
            Kind::Farm => ("farm-fault", "The farm failed", 500),
            Kind::Timeout => ("timeout", "The time given ran out", 504),
            Kind::Interrupted => ("interrupted", "Interrupted", 499),
            Kind::BrokenPipe => ("broken-pipe", "Nobody reads the output", 499),
        }
    }
}

/// Why a command did not end well.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct CliError {
    /// Decides the exit code.
    pub(crate) kind: Kind,
    /// What was attempted, on which path or id; empty where everything was said.
    pub(crate) message: String,
    /// What to do next.
    pub(crate) hint: Option<String>,
    /// What the coordinator said.
    pub(crate) problem: Option<Box<Problem>>,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Result of a command.
pub(crate) type Result<T = ()> = std::result::Result<T, CliError>;

impl CliError {
    /// An error of a kind.
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), hint: None, problem: None, source: None }
    }

    /// The command line or a file is wrong.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// The farm failed.
    pub(crate) fn farm(message: impl Into<String>) -> Self {
        Self::new(Kind::Farm, message)
    }

    /// The answer is no, and has been printed.
    pub(crate) fn negative() -> Self {
        Self::new(Kind::Negative, "")
    }

    /// Ends with a code, everything having been printed.
    pub(crate) fn silent(kind: Kind) -> Self {
        Self::new(kind, "")
    }

    /// Adds what to do next.
    pub(crate) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Adds the cause.
    pub(crate) fn because(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// No coordinator answers at `url`. Told in one line, whatever the cause.
    pub(crate) fn unreachable(url: &str, reason: &str) -> Self {
        Self::new(Kind::Unreachable, format!("cannot reach the coordinator at {url}: {reason}"))
            .hint("start it with `buildyard up`")
    }

    /// A file could not be read or written. Permission is a refusal; anything else is the caller's to mend.
    pub(crate) fn file(attempt: &str, path: &Path, error: std::io::Error) -> Self {
        let kind = match error.kind() {
            std::io::ErrorKind::PermissionDenied => Kind::Refused,
            _ => Kind::Usage,
        };
        Self::new(kind, format!("cannot {attempt} {}: {error}", path.display()))
    }

    /// What the coordinator answered.
    pub(crate) fn problem(problem: Problem) -> Self {
        let kind = match problem.status {
            401 | 403 => Kind::Refused,
            400..=499 if problem.status != 408 && problem.status != 429 => Kind::Usage,
            _ => Kind::Farm,
        };
        let message = if problem.detail.is_empty() { &problem.title } else { &problem.detail };
        Self {
            kind,
            message: message.clone(),
            hint: problem.hint.clone(),
            source: None,
            problem: Some(Box::new(problem)),
        }
    }

    /// The error as a problem document.
    pub(crate) fn to_problem(&self) -> Problem {
        if let Some(problem) = &self.problem {
            return (**problem).clone();
        }
        let (code, title, status) = self.kind.problem();
        Problem {
            code: code.into(),
            title: title.into(),
            status,
            detail: self.full_message(),
            hint: self.hint.clone(),
            request_id: None,
        }
    }

    /// The message and its causes in one line.
    fn full_message(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }

    /// Says on standard error what went wrong and gives the exit code.
    pub(crate) fn report(&self, json: bool) -> ExitCode {
        let mut stderr = std::io::stderr().lock();
        // Standard error may be closed; there is nobody left to tell.
        let _ = self.write(&mut stderr, json);
        ExitCode::from(self.kind.code())
    }

    fn write(&self, out: &mut impl Write, json: bool) -> std::io::Result<()> {
        if self.message.is_empty() || self.kind == Kind::BrokenPipe {
            return Ok(());
        }
        if json {
            let text = serde_json::to_string(&self.to_problem()).map_err(std::io::Error::other)?;
            return writeln!(out, "{text}");
        }
        write!(out, "error: {}", terminal::line(&self.full_message()))?;
        if let Some(hint) = &self.hint {
            let joint = if self.kind == Kind::Unreachable { "; " } else { "\nhint: " };
            write!(out, "{joint}{}", terminal::line(hint))?;
        }
        writeln!(out)?;
        if let Some(id) = self.problem.as_ref().and_then(|problem| problem.request_id.as_ref()) {
            writeln!(out, "request: {}", terminal::line(id))?;
        }
        Ok(())
    }
}

impl From<std::io::Error> for CliError {
    /// For writes to standard output: everything else names its path.
    fn from(error: std::io::Error) -> Self {
        if error.kind() == std::io::ErrorKind::BrokenPipe {
            return CliError::silent(Kind::BrokenPipe);
        }
        CliError::farm("cannot write the output").because(error)
    }
}

/// The verdict as a result of a command that answers by its exit status.
pub(crate) fn by_verdict(verdict: Verdict) -> Result {
    match verdict {
        Verdict::Passed => Ok(()),
        Verdict::Failed | Verdict::Cancelled => Err(CliError::silent(Kind::Negative)),
        Verdict::Refused => Err(CliError::silent(Kind::Refused)),
        Verdict::Infra => Err(CliError::silent(Kind::Farm)),
    }
}

/// The end of a command that answers by its exit status. That its reader left while it printed changes nothing
/// about the answer: `buildyard watch | head -n1` must not end well because the run failed at length.
pub(crate) fn answer(printed: Result, answer: Result) -> Result {
    match printed {
        Err(error) if error.kind != Kind::BrokenPipe => Err(error),
        Ok(()) | Err(_) => answer,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_who_left_changes_no_answer() {
        let left = || Err(CliError::silent(Kind::BrokenPipe));
        let code = |result: Result| result.err().map_or(0, |error| error.kind.code());
        assert_eq!(code(answer(left(), by_verdict(Verdict::Failed))), 1);
        assert_eq!(code(answer(left(), by_verdict(Verdict::Passed))), 0);
        assert_eq!(code(answer(Ok(()), by_verdict(Verdict::Infra))), 5);
        assert_eq!(code(answer(Err(CliError::farm("disk full")), by_verdict(Verdict::Failed))), 5);
    }

    fn problem(status: u16) -> Problem {
        Problem {
            code: "x".into(),
            title: "X".into(),
            status,
            detail: "run-9 is not known".into(),
            hint: Some("list them".into()),
            request_id: None,
        }
    }

    #[test]
    fn the_status_of_a_problem_decides_the_exit_code() {
        let rows = [(400, 2), (401, 4), (403, 4), (404, 2), (409, 2), (429, 5), (500, 5), (503, 5), (507, 5)];
        for (status, code) in rows {
            assert_eq!(CliError::problem(problem(status)).kind.code(), code, "{status}");
        }
    }

    #[test]
    fn a_verdict_is_an_exit_code() {
        let code = |verdict| by_verdict(verdict).err().map_or(0, |error| error.kind.code());
        let verdicts =
            [Verdict::Passed, Verdict::Failed, Verdict::Refused, Verdict::Infra, Verdict::Cancelled];
        assert_eq!(verdicts.map(code), [0, 1, 4, 5, 1]);
    }

    #[test]
    fn an_error_is_one_line_a_hint_and_no_control_characters() {
        let mut out = Vec::new();
        let error = CliError::usage("cannot read \x1b]0;x\x07").hint("look\nthere");
        error.write(&mut out, false).unwrap();
        assert_eq!(
            String::from_utf8(out).unwrap(),
            "error: cannot read \\x1b]0;x\\x07\nhint: look\\nthere\n"
        );
    }

    #[test]
    fn as_json_an_error_is_a_problem_document() {
        let mut out = Vec::new();
        CliError::problem(problem(404)).write(&mut out, true).unwrap();
        let read: Problem = serde_json::from_slice(&out).unwrap();
        assert_eq!(read, problem(404));
    }
}
