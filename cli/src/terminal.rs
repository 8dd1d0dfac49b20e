//! What may reach a terminal. Text of the coordinator, of a log or of a repository is somebody else's: it must
//! not move the cursor, set a title, write the clipboard or turn lines around.
//!
//! Only line feeds, tabs and (where asked for) colours pass. Everything else that is not plain text is shown
//! as its escape: `\x1b`, `\u{202e}`. Nothing is dropped silently except colours where none are wanted.

/// Longest colour sequence that is understood. A longer one is shown escaped.
const SEQUENCE_LIMIT: usize = 48;
const RESET: &str = "\x1b[0m";

/// What happens to colour sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Colours {
    /// They pass; each line that used one ends with a reset.
    Pass,
    /// They are left out.
    Strip,
}

/// Where the filter is inside a sequence.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Text,
    /// A carriage return that may belong to a line feed.
    Return,
    /// An ESC byte.
    Escape,
    /// `ESC [` and these characters.
    Sequence(String),
}

/// Makes text safe, piece by piece: a sequence may be cut over two pieces.
#[derive(Debug, Clone)]
pub(crate) struct EscapeFilter {
    colours: Colours,
    state: State,
    coloured: bool,
}

impl EscapeFilter {
    /// A filter at the start of a text.
    pub(crate) fn new(colours: Colours) -> Self {
        Self { colours, state: State::Text, coloured: false }
    }

    /// Appends the safe form of `text` to `out`.
    pub(crate) fn push(&mut self, text: &str, out: &mut String) {
        for c in text.chars() {
            self.push_char(c, out);
        }
    }

    /// Ends the text: shows what was cut off, and takes back a colour that was left on.
    pub(crate) fn finish(&mut self, out: &mut String) {
        self.flush_pending(out);
        self.reset(out);
    }

    fn push_char(&mut self, c: char, out: &mut String) {
        match std::mem::replace(&mut self.state, State::Text) {
            State::Text => self.plain(c, out),
            State::Return if c == '\n' => self.plain(c, out),
            State::Return => {
                out.push_str("\\r");
                self.plain(c, out);
            }
            State::Escape if c == '[' => self.state = State::Sequence(String::new()),
            State::Escape => {
                show(out, '\x1b');
                self.plain(c, out);
            }
            State::Sequence(mut seen) => match c {
                '0'..='9' | ';' | ':' if seen.len() < SEQUENCE_LIMIT => {
                    seen.push(c);
                    self.state = State::Sequence(seen);
                }
                'm' if is_colour(&seen) => self.colour(&seen, out),
                _ => {
                    show_sequence(out, &seen);
                    self.plain(c, out);
                }
            },
        }
    }

    fn plain(&mut self, c: char, out: &mut String) {
        match c {
            '\r' => self.state = State::Return,
            '\x1b' => self.state = State::Escape,
            '\n' => {
                self.reset(out);
                out.push('\n');
            }
            '\t' => out.push('\t'),
            c if is_hazard(c) => show(out, c),
            c => out.push(c),
        }
    }

    fn colour(&mut self, parameters: &str, out: &mut String) {
        if self.colours == Colours::Pass {
            out.push_str("\x1b[");
            out.push_str(parameters);
            out.push('m');
            self.coloured = !matches!(parameters, "" | "0");
        }
    }

    fn reset(&mut self, out: &mut String) {
        if std::mem::take(&mut self.coloured) {
            out.push_str(RESET);
        }
    }

    fn flush_pending(&mut self, out: &mut String) {
        match std::mem::replace(&mut self.state, State::Text) {
            State::Text => {}
            State::Return => out.push_str("\\r"),
            State::Escape => show(out, '\x1b'),
            State::Sequence(seen) => show_sequence(out, &seen),
        }
    }
}

/// One line without any control character: for names, sentences and table cells.
pub(crate) fn line(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push(' '),
            c if is_hazard(c) => show(&mut out, c),
            c => out.push(c),
        }
    }
    out
}

/// Several lines without any other control character: for diagnostics.
pub(crate) fn block(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut filter = EscapeFilter::new(Colours::Strip);
    filter.push(text, &mut out);
    filter.finish(&mut out);
    out
}

fn show(out: &mut String, c: char) {
    let code = u32::from(c);
    let text = if code < 0x80 { format!("\\x{code:02x}") } else { format!("\\u{{{code:x}}}") };
    out.push_str(&text);
}

fn show_sequence(out: &mut String, parameters: &str) {
    show(out, '\x1b');
    out.push('[');
    out.push_str(parameters);
}

/// Control characters, and those that change the direction or hide text.
fn is_hazard(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{61c}' | '\u{200b}' | '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}'
            | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}')
}

/// Whether the parameters of an SGR sequence set only colours, weight, slant and lines. Blinking and hidden
/// text do not pass.
fn is_colour(parameters: &str) -> bool {
    let mut codes = parameters.split([';', ':']);
    while let Some(code) = codes.next() {
        match code.parse::<u16>() {
            Err(_) if code.is_empty() => {}
            Ok(38 | 48) => {
                // An extended colour: `5;n` or `2;r;g;b`, whose numbers are not codes of their own.
                let count = match codes.next() {
                    Some("5") => 1,
                    Some("2") => 3,
                    _ => return false,
                };
                if !(0..count).all(|_| codes.next().is_some_and(|number| number.parse::<u8>().is_ok())) {
                    return false;
                }
            }
            Ok(0..=4 | 7 | 9 | 22..=24 | 27 | 29..=37 | 39..=47 | 49 | 90..=97 | 100..=107) => {}
            Ok(_) | Err(_) => return false,
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn filtered(colours: Colours, pieces: &[&str]) -> String {
        let mut filter = EscapeFilter::new(colours);
        let mut out = String::new();
        for piece in pieces {
            filter.push(piece, &mut out);
        }
        filter.finish(&mut out);
        out
    }

    #[test]
    fn only_colours_pass() {
        let rows = [
            ("plain\ttext\r\nnext\n", "plain\ttext\nnext\n"),
            ("\x1b[31mred\x1b[0m", "\x1b[31mred\x1b[0m"),
            ("\x1b[31mred\nnext", "\x1b[31mred\x1b[0m\nnext"),
            ("\x1b[38;5;200mx\x1b[m", "\x1b[38;5;200mx\x1b[m"),
            ("\x1b[38;2;1;2;3mx\x1b[0m", "\x1b[38;2;1;2;3mx\x1b[0m"),
            ("\x1b[38;2;1m", "\\x1b[38;2;1m"),
            ("\x1b[8mhidden", "\\x1b[8mhidden"),
            ("\x1b[2J\x1b[H", "\\x1b[2J\\x1b[H"),
            ("\x1b]0;title\x07", "\\x1b]0;title\\x07"),
            ("\x1b]52;c;aGk=\x1b\\", "\\x1b]52;c;aGk=\\x1b\\"),
            ("50%\r100%", "50%\\r100%"),
            ("a\u{202e}b\u{2066}c", "a\\u{202e}b\\u{2066}c"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("\0\x08\x7f", "\\x00\\x08\\x7f"),
            ("é 日本 👍", "é 日本 👍"),
        ];
        for (input, expected) in rows {
            assert_eq!(filtered(Colours::Pass, &[input]), expected, "{input:?}");
        }
    }

    #[test]
    fn colours_are_left_out_where_none_are_wanted() {
        assert_eq!(filtered(Colours::Strip, &["\x1b[1;31mred\x1b[0m\n"]), "red\n");
    }

    #[test]
    fn a_line_stays_one_line() {
        assert_eq!(line("a\nb\rc\td\x1b[31m"), "a\\nb\\rc d\\x1b[31m");
    }

    fn is_safe(text: &str) -> bool {
        let mut rest = text;
        while let Some(at) = rest.find('\x1b') {
            let Some(body) = rest[at + 1..].strip_prefix('[') else { return false };
            let Some((parameters, tail)) = body.split_once('m') else { return false };
            if !is_colour(parameters) || rest[..at].chars().any(|c| is_hazard(c) && c != '\n' && c != '\t') {
                return false;
            }
            rest = tail;
        }
        !rest.chars().any(|c| is_hazard(c) && c != '\n' && c != '\t')
    }

    proptest! {
        #[test]
        fn whatever_comes_in_the_output_is_safe_and_no_cut_changes_it(
            text in "([\\x00-\\x7f]|\\PC|\u{1b}\\[[0-9;]{0,6}[mJ]){0,40}",
            cut in 0usize..40,
        ) {
            let whole = filtered(Colours::Pass, &[&text]);
            prop_assert!(is_safe(&whole), "{whole:?}");
            let at = text.char_indices().nth(cut).map_or(text.len(), |(at, _)| at);
            prop_assert_eq!(filtered(Colours::Pass, &[&text[..at], &text[at..]]), whole);
            prop_assert!(!filtered(Colours::Strip, &[&text]).contains('\x1b'));
        }
    }
}
