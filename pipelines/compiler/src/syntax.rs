//! Says in Buildyard's words what the TOML parser did not understand.
//!
//! The parser's own words are used where we have no better ones, so that a newer parser with new errors still
//! gives a sentence. What a string or a bare value lacks is found by looking at it, not at the parser's words.

use toml_parser::{Expected, ParseError};

use crate::limits::{MAX_NESTING, MAX_SHOWN_WORD};
use crate::problem::{Code, Problems, Source, Span, quote, shorten};

/// Records the errors of the file's structure. The answer is where an unclosed bracket begins to swallow the rest
/// of the file: errors behind it follow from it and are left out.
pub(crate) fn explain_structure(
    errors: &[ParseError],
    source: &Source<'_>,
    problems: &mut Problems,
) -> Option<usize> {
    let unclosed = errors.iter().filter(|error| is_unclosed_value(error));
    let swallowed_from = unclosed.filter_map(|error| error.context()).map(|open| open.start()).min();
    if let Some(start) = swallowed_from {
        let bracket = source.slice(Span::new(start, start + 1));
        let (what, closing) = if bracket == "{" { ("table", "}") } else { ("list", "]") };
        let message = format!("this {what} is never closed");
        let help = format!("close it with `{closing}`");
        problems.add_once_a_line(source, Span::new(start, start + 1), Code::Unclosed, message, Some(help));
    }
    if let Some(from) = swallowed_from {
        problems.ignore_behind(from);
    }
    for error in errors.iter().filter(|error| !is_unclosed_value(error)) {
        if problems.is_full() {
            problems.count_one_more();
            continue;
        }
        explain_error(error, place(error), source, problems);
    }
    swallowed_from
}

fn is_unclosed_value(error: &ParseError) -> bool {
    matches!(error.description(), "unclosed array" | "unclosed inline table")
}

fn place(error: &ParseError) -> Span {
    error.unexpected().or(error.context()).map_or(Span::new(0, 0), Span::from)
}

fn explain_error(error: &ParseError, at: Span, source: &Source<'_>, problems: &mut Problems) {
    let found = found_at(source.text, at.start);
    let word = Span::new(at.start, (at.start + word_at(source.text, at.start).len()).max(at.end));
    let (span, code, message, help) = match error.description() {
        "unclosed table" | "unclosed array table" => {
            let brackets = if error.description() == "unclosed table" { "`]`" } else { "`]]`" };
            let message = format!("expected {brackets} at the end of this header, found {found}");
            (
                word,
                Code::Syntax,
                message,
                Some("a name with blanks or signs in it stands in quotes".to_owned()),
            )
        }
        "key with no value" | "missing value for key" => {
            let before = line_before(source.text, at.start);
            let (start, key) = (at.start - before.len(), before.trim_end());
            let message = format!("expected `=` and a value after {}, found {found}", quote(key));
            (Span::new(start, start + key.len()), Code::Syntax, message, None)
        }
        "unexpected key or value" => {
            let message = format!("expected the end of the line, found {found}");
            (word, Code::Syntax, message, Some("each key stands on a line of its own".to_owned()))
        }
        "missing comma between array elements" => {
            (word, Code::Syntax, format!("expected `,` or `]` in this list, found {found}"), None)
        }
        "missing comma between key-value pairs" => {
            (word, Code::Syntax, format!("expected `,` or `}}` in this table, found {found}"), None)
        }
        "extra comma in array" | "extra comma in inline table" => {
            (at, Code::Syntax, "there is a comma too many".to_owned(), None)
        }
        "unexpected `=` in array" => {
            let help = "a list holds values; keys with values stand in `{ … }`".to_owned();
            (at, Code::Syntax, "expected a value or `]`, found `=`".to_owned(), Some(help))
        }
        "cannot recurse further; max recursion depth met" => {
            (at, Code::TooComplex, format!("brackets nest deeper than {MAX_NESTING} levels"), None)
        }
        "invalid comment character" => {
            (at, Code::Syntax, "a comment cannot hold control characters".to_owned(), None)
        }
        other => {
            let message = match expectation(error) {
                Some(expected) => format!("{other}: expected {expected}, found {found}"),
                None => format!("{other}: found {found}"),
            };
            (word, Code::Syntax, message, None)
        }
    };
    problems.add_once_a_line(source, span, code, message, help);
}

fn expectation(error: &ParseError) -> Option<String> {
    let words = error.expected()?.iter().map(|expected| match expected {
        Expected::Literal("\n") => "the end of the line".to_owned(),
        Expected::Literal(text) => format!("`{text}`"),
        Expected::Description(text) => (*text).to_owned(),
        _ => "something else".to_owned(),
    });
    let words: Vec<String> = words.collect();
    (!words.is_empty()).then(|| words.join(" or "))
}

/// The word at a place, or its beginning: a hostile word may be as long as the file.
fn word_at(text: &str, at: usize) -> &str {
    let rest = text.get(at..).unwrap_or("");
    let end = rest
        .char_indices()
        .enumerate()
        .find(|(count, (_, sign))| *count > MAX_SHOWN_WORD || sign.is_whitespace());
    &rest[..end.map_or(rest.len(), |(_, (at, _))| at)]
}

fn found_at(text: &str, at: usize) -> String {
    let rest = text.get(at..).unwrap_or("");
    match rest.chars().next() {
        None => "the end of the file".to_owned(),
        Some('\n' | '\r') => "the end of the line".to_owned(),
        Some(' ' | '\t') => "a blank".to_owned(),
        Some(_) => quote(word_at(text, at)),
    }
}

/// What stands between the start of the line, or the last bracket or comma, and a place.
fn line_before(text: &str, at: usize) -> &str {
    let before = text.get(..at).unwrap_or("");
    let start = before.rfind(['\n', '{', ',']).map_or(0, |at| at + 1);
    before[start..].trim_start()
}

/// Records what is wrong with one part of a key.
pub(crate) fn explain_key(
    error: &ParseError,
    span: Span,
    quoted: bool,
    source: &Source<'_>,
    problems: &mut Problems,
) {
    let raw = source.slice(span);
    if quoted {
        return explain_string(error, span, source, problems);
    }
    if raw.is_empty() {
        let message = format!("expected a key, found {}", found_at(source.text, span.start));
        return problems.add_once_a_line(source, span, Code::Syntax, message, None);
    }
    let strange =
        error.unexpected().map(Span::from).and_then(|at| raw.get(at.start.wrapping_sub(span.start)..));
    let strange = strange.and_then(|rest| rest.chars().next());
    let message = match strange {
        Some(sign) => format!("{} cannot stand in the key {}", quote(&sign.to_string()), quote(raw)),
        None => format!("{} cannot be a key", quote(raw)),
    };
    let help =
        format!("letters, digits, `-` and `_` can; anything else needs quotes: `\"{}\"`", shorten(raw));
    problems.add_once_a_line(source, span, Code::Syntax, message, Some(help));
}

/// Records what is wrong with a value that is neither list nor table.
pub(crate) fn explain_scalar(
    error: &ParseError,
    span: Span,
    quoted: bool,
    source: &Source<'_>,
    problems: &mut Problems,
) {
    if quoted {
        return explain_string(error, span, source, problems);
    }
    let raw = source.slice(span);
    let (message, help) = if raw.is_empty() {
        (format!("expected a value, found {}", found_at(source.text, span.start)), None)
    } else if raw.eq_ignore_ascii_case("true") || raw.eq_ignore_ascii_case("false") {
        let lower = raw.to_ascii_lowercase();
        (format!("{} is not a value", quote(raw)), Some(format!("booleans are lowercase: `{lower}`")))
    } else if raw.contains(['"', '\'', '\\']) {
        let help = "text begins and ends with the same quote".to_owned();
        (format!("{} is not a value", quote(raw)), Some(help))
    } else {
        let help = format!("text stands in quotes: `\"{}\"`", shorten(raw));
        (format!("{} is not a value", quote(raw)), Some(help))
    };
    problems.add_once_a_line(source, span, Code::Syntax, message, help);
}

/// Records a number that the parser let through although it has no digits, such as `0x`.
pub(crate) fn explain_number(span: Span, source: &Source<'_>, problems: &mut Problems) {
    let message = format!("{} is not a value", quote(source.slice(span)));
    problems.add_once_a_line(source, span, Code::Syntax, message, None);
}

fn delimiter(raw: &str) -> &'static str {
    ["'''", "\"\"\"", "'", "\""].into_iter().find(|quotes| raw.starts_with(quotes)).unwrap_or("\"")
}

fn explain_string(error: &ParseError, span: Span, source: &Source<'_>, problems: &mut Problems) {
    let raw = source.slice(span);
    let quotes = delimiter(raw);
    let inner = raw.strip_prefix(quotes).unwrap_or(raw);
    let at = error.unexpected().map_or(0, |at| at.start().saturating_sub(span.start));
    let ends_in_escape = quotes == "\"" && at + 1 == raw.len() && raw[..at].ends_with('\\');
    if !inner.ends_with(quotes) || ends_in_escape {
        return explain_unclosed(quotes, span, source, problems);
    }
    let before = raw.get(..at).unwrap_or("");
    let sign = raw.get(at..).and_then(|rest| rest.chars().next());
    let escape = before.rfind('\\').filter(|start| is_escape_head(&before[*start..]));
    if let Some(start) = escape {
        let head = before.len() - start;
        let length = if head > 1 { head } else { 1 + sign.map_or(0, char::len_utf8) };
        let place = Span::new(span.start + start, span.start + start + length);
        let message = format!("{} is no escape that TOML knows", quote(source.slice(place)));
        let help = literal_instead(quotes, inner);
        return problems.add_once_a_line(source, place, Code::InvalidEscape, message, Some(help));
    }
    let place = Span::new(span.start + at, span.start + at + sign.map_or(0, char::len_utf8));
    let (message, help) = match sign {
        Some('\r') => ("a carriage return must be followed by a newline".to_owned(), None),
        Some(sign) if sign.is_control() => {
            let escape = format!("\\u{:04X}", u32::from(sign));
            let help = format!("in a string with `\"` it is written `{escape}`");
            ("a string cannot hold this control character".to_owned(), Some(help))
        }
        Some(_) | None => (error.description().to_owned(), None),
    };
    problems.add_once_a_line(source, place, Code::Syntax, message, help);
}

/// Whether a text is a backslash and what an error can leave behind it: nothing, or the start of `\uXXXX`.
fn is_escape_head(text: &str) -> bool {
    let mut rest = text[1..].chars();
    match rest.next() {
        None => true,
        Some('x' | 'u' | 'U') => rest.all(|c| c.is_ascii_hexdigit()),
        Some(_) => false,
    }
}

fn explain_unclosed(quotes: &str, span: Span, source: &Source<'_>, problems: &mut Problems) {
    let (place, message, help) = if quotes.len() == 3 {
        let place = Span::new(span.start, span.start + 3);
        (place, "this string is never closed", format!("close it with `{quotes}`"))
    } else {
        let help =
            format!("close it with `{quotes}`; a text of several lines stands between `'''` and `'''`");
        (span, "this string is not closed on its line", help)
    };
    problems.add_once_a_line(source, place, Code::Unclosed, message, Some(help));
}

/// What to write instead of a string whose backslashes are meant as they stand.
fn literal_instead(quotes: &str, inner: &str) -> String {
    let text = inner.strip_suffix(quotes).unwrap_or(inner);
    if quotes.len() == 3 {
        return "between `'''` and `'''` a backslash means itself; between `\"\"\"` it is written `\\\\`"
            .to_owned();
    }
    let plain = !text.contains('\'') && !text.contains("\\\\") && text.chars().count() < MAX_SHOWN_WORD;
    if plain {
        format!("in single quotes a backslash means itself: `'{}'`", shorten(text))
    } else {
        "in single quotes a backslash means itself; in double quotes it is written `\\\\`".to_owned()
    }
}
