//! What is wrong, before it is shown: a place in bytes, a kind, and words. The places become lines and columns at
//! the very end, for the few problems that are kept.

use std::collections::BTreeSet;

use buildyard_types::job::Diagnostic;

use crate::limits::{MAX_DIAGNOSTICS, MAX_SHOWN_LINE, MAX_SHOWN_WORD};

/// A part of the file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl Span {
    pub(crate) const fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }
}

impl From<toml_parser::Span> for Span {
    fn from(span: toml_parser::Span) -> Self {
        Self::new(span.start(), span.end())
    }
}

macro_rules! codes {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal,)+) => {
        /// The kinds of mistakes. Their texts are stable: programs may match them.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Code { $($(#[doc = $doc])+ $name,)+ }

        impl Code {
            /// Every code, in the order of the documentation.
            pub const ALL: &'static [Code] = &[$(Code::$name,)+];

            /// The text that diagnostics carry.
            pub const fn as_str(self) -> &'static str {
                match self { $(Code::$name => $text,)+ }
            }

            /// What the code means, in one sentence.
            pub fn meaning(self) -> &'static str {
                match self { $(Code::$name => concat!($($doc),+).trim(),)+ }
            }
        }
    };
}

codes! {
    /// The file is larger than 1 MiB.
    FileTooLarge = "file-too-large",
    /// The jobs together, each with its share of `[defaults]`, are larger than is kept.
    PipelineTooLarge = "pipeline-too-large",
    /// The file holds bytes that are no UTF-8.
    NotUtf8 = "not-utf8",
    /// The file has more parts, or nests deeper, than is read.
    TooComplex = "too-complex",
    /// The file is no TOML.
    Syntax = "syntax",
    /// A string, array or inline table has no end.
    Unclosed = "unclosed",
    /// A backslash in a string with `"` begins no escape that TOML knows.
    InvalidEscape = "invalid-escape",
    /// A key or table is written twice.
    DuplicateKey = "duplicate-key",
    /// A list is written as `key = [...]` and as `[[...key]]`.
    ListWrittenTwice = "list-written-twice",
    /// A key that nothing reads.
    UnknownKey = "unknown-key",
    /// A key that a later version will carry out.
    UnsupportedKey = "unsupported-key",
    /// `${{ }}`, which a later version will carry out.
    UnsupportedExpression = "unsupported-expression",
    /// A key of a job that stands below a step's header, and so belongs to the step.
    JobKeyInStep = "job-key-in-step",
    /// A key that stands below the header of another table than it belongs to.
    KeyInWrongTable = "key-in-wrong-table",
    /// A value of another type than the key takes.
    WrongType = "wrong-type",
    /// One of a few words was expected.
    UnknownValue = "unknown-value",
    /// A number or length outside its bounds.
    OutOfRange = "out-of-range",
    /// More of something than is read.
    TooMany = "too-many",
    /// A text that is empty, too long, or holds characters that cannot be used.
    BadText = "bad-text",
    /// A name that is not of the form that names have.
    BadName = "bad-name",
    /// A name that is used twice where names must differ.
    DuplicateName = "duplicate-name",
    /// A text that is no image name.
    BadImage = "bad-image",
    /// A label expression that cannot be read.
    BadLabels = "bad-labels",
    /// A text that is no duration.
    BadDuration = "bad-duration",
    /// A text that is no size.
    BadSize = "bad-size",
    /// A path that leaves the workspace.
    BadPath = "bad-path",
    /// A variable whose name a shell cannot use.
    BadVariable = "bad-variable",
    /// A pipeline without jobs.
    NoJobs = "no-jobs",
    /// A key that has to be there is not.
    MissingKey = "missing-key",
    /// Neither the job nor `[defaults]` names an image.
    MissingImage = "missing-image",
    /// A job or step without a command.
    MissingRun = "missing-run",
    /// A job with both `run` and `steps`.
    RunAndSteps = "run-and-steps",
    /// A command without a word in it.
    EmptyRun = "empty-run",
    /// `needs` names a job that does not exist.
    UnknownJob = "unknown-job",
    /// `needs` names the same job twice.
    DuplicateNeed = "duplicate-need",
    /// Jobs that need each other in a circle.
    NeedsCycle = "needs-cycle",
    /// There are more mistakes than are shown.
    MoreMistakes = "more-mistakes",
}

/// One thing that is wrong.
#[derive(Debug)]
pub(crate) struct Problem {
    /// `None` where the whole file is meant.
    pub(crate) span: Option<Span>,
    pub(crate) code: Code,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

/// The problems found so far: at most [`MAX_DIAGNOSTICS`] are kept, the others counted.
#[derive(Debug, Default)]
pub(crate) struct Problems {
    kept: Vec<Problem>,
    more: usize,
    /// Lines with a mistake of writing. A second one on such a line mostly follows from the first.
    misread_lines: BTreeSet<usize>,
    /// Where an unclosed bracket begins to swallow the file. What seems wrong behind it follows from it.
    swallowed_from: Option<usize>,
}

impl Problems {
    /// Whether a further problem would only be counted, so that it is not worth wording it.
    pub(crate) fn is_full(&self) -> bool {
        self.kept.len() >= MAX_DIAGNOSTICS
    }

    /// Lets every further problem behind a place go.
    pub(crate) fn ignore_behind(&mut self, offset: usize) {
        self.swallowed_from = Some(offset);
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    pub(crate) fn add(&mut self, span: Span, code: Code, message: impl Into<String>, help: Option<String>) {
        self.push(Problem { span: Some(span), code, message: message.into(), help });
    }

    /// Adds a mistake of writing, unless its line has one.
    pub(crate) fn add_once_a_line(
        &mut self,
        source: &Source<'_>,
        span: Span,
        code: Code,
        message: impl Into<String>,
        help: Option<String>,
    ) {
        if self.misread_lines.insert(source.line(span.start)) {
            self.add(span, code, message, help);
        }
    }

    pub(crate) fn push(&mut self, problem: Problem) {
        let place = problem.span.map(|span| span.start);
        let is_swallowed = place.zip(self.swallowed_from).is_some_and(|(at, from)| at > from);
        if is_swallowed {
            return;
        }
        if self.is_full() {
            self.more += 1;
        } else {
            self.kept.push(problem);
        }
    }

    /// Counts a problem that was not worded because of [`Problems::is_full`].
    pub(crate) fn count_one_more(&mut self) {
        self.more += 1;
    }

    /// The diagnostics in the order of their places.
    pub(crate) fn into_diagnostics(mut self, source: &Source<'_>) -> Vec<Diagnostic> {
        self.kept.sort_by_key(|problem| problem.span);
        let mut shown: Vec<Diagnostic> = self.kept.iter().map(|problem| source.diagnostic(problem)).collect();
        if self.more > 0 {
            let message = format!("{} more mistakes are not shown", self.more);
            let help = Some("mend the first ones and check again".to_owned());
            shown.push(source.diagnostic(&Problem { span: None, code: Code::MoreMistakes, message, help }));
        }
        shown
    }
}

/// The text of a file, and where its lines begin.
pub(crate) struct Source<'t> {
    pub(crate) file: &'t str,
    pub(crate) text: &'t str,
    line_starts: Vec<usize>,
}

impl<'t> Source<'t> {
    pub(crate) fn new(file: &'t str, text: &'t str) -> Self {
        let breaks = text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(at, _)| at + 1);
        Self { file, text, line_starts: std::iter::once(0).chain(breaks).collect() }
    }

    /// The line of an offset, counted from 1.
    pub(crate) fn line(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= offset)
    }

    /// The text of a line that is counted from 1, without its end.
    fn line_text(&self, line: usize) -> &'t str {
        let start = self.line_starts[line - 1];
        let end = self.line_starts.get(line).copied().unwrap_or(self.text.len());
        self.text[start..end].trim_end_matches(['\n', '\r'])
    }

    pub(crate) fn slice(&self, span: Span) -> &'t str {
        self.text.get(span.start..span.end).unwrap_or("")
    }

    fn diagnostic(&self, problem: &Problem) -> Diagnostic {
        let (line, column, length, source) = match problem.span {
            None => (0, 0, 0, String::new()),
            Some(span) => self.frame(span),
        };
        Diagnostic {
            file: harmless(self.file),
            line: as_u32(line),
            column: as_u32(column),
            length: as_u32(length),
            source,
            code: problem.code.as_str().to_owned(),
            message: harmless(&problem.message),
            help: problem.help.as_deref().map(harmless),
        }
    }

    /// Line, column, length and text of what is underlined; of a part that spans lines, its first line.
    fn frame(&self, span: Span) -> (usize, usize, usize, String) {
        let line = self.line(span.start);
        let text = self.line_text(line);
        let from = text.floor_char_boundary(span.start - self.line_starts[line - 1]);
        let to = text.floor_char_boundary(span.end.max(span.start) - self.line_starts[line - 1]).max(from);
        let column = text[..from].chars().count() + 1;
        // A word may be as long as the file, and whoever shows it prints one `^` for each character.
        let length = text[from..to].chars().take(MAX_SHOWN_LINE).count().max(1);
        let shown = if column + length <= MAX_SHOWN_LINE {
            harmless(&text.chars().take(MAX_SHOWN_LINE).collect::<String>())
        } else {
            String::new()
        };
        (line, column, length, shown)
    }
}

fn as_u32(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

/// Text of the file, fit for a terminal: whoever wrote the file must not move the cursor or turn the writing
/// direction of whoever reads the diagnostic. One character stands for one, so columns hold.
fn harmless(text: &str) -> String {
    let plain = |c: char| match c {
        '\t' => c,
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        _ if c.is_control() => '\u{fffd}',
        _ => c,
    };
    text.chars().map(plain).collect()
}

/// A word of the file inside a message: in backticks, shortened, fit for a terminal and for one line.
pub(crate) fn quote(word: &str) -> String {
    format!("`{}`", shorten(word))
}

/// The same without backticks.
pub(crate) fn shorten(word: &str) -> String {
    let shown: String = harmless(&word.chars().take(MAX_SHOWN_WORD).collect::<String>()).replace('\t', " ");
    if word.chars().nth(MAX_SHOWN_WORD).is_some() { format!("{shown}…") } else { shown }
}
