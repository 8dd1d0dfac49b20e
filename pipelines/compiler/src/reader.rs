//! Takes values out of the tree, and says so when they are not what the reference table promises.

use crate::document::{Document, Entry, Node, Origin, Table, TableId, Value};
use crate::problem::{Code, Problems, Source, Span, quote};
use crate::reference::{self, Key, Scope, Status};
use crate::suggest::Suggester;

/// What is needed to read a part of the file and to say what is wrong with it.
pub(crate) struct Reader<'s> {
    pub(crate) source: &'s Source<'s>,
    pub(crate) document: &'s Document,
    pub(crate) problems: Problems,
    pub(crate) suggester: Suggester,
    /// Whether the file was read without mistakes of writing. If not, what seems to be missing may stand in a
    /// part that was not understood, so nothing is said to be missing.
    pub(crate) is_whole: bool,
}

/// The value of a known key.
#[derive(Clone, Copy)]
pub(crate) struct Field<'s> {
    pub(crate) key: &'static Key,
    pub(crate) key_span: Span,
    pub(crate) node: &'s Node,
}

/// The elements of a list, however it is written. `at` is what to underline for an element as a whole.
pub(crate) struct Element<'s> {
    pub(crate) node: ElementNode<'s>,
    pub(crate) at: Span,
}

/// An element of a list of tables.
pub(crate) enum ElementNode<'s> {
    /// One that is a table.
    Table(&'s Table),
    /// One of `[ … ]` that is something else.
    Other(&'s Node),
}

impl<'s> Reader<'s> {
    /// Records a problem. The words are made only if it will be shown.
    pub(crate) fn report(
        &mut self,
        span: Span,
        code: Code,
        words: impl FnOnce(&mut Self) -> (String, Option<String>),
    ) {
        if self.problems.is_full() {
            return self.problems.count_one_more();
        }
        let (message, help) = words(self);
        self.problems.add(span, code, message, help);
    }

    pub(crate) fn table(&self, id: TableId) -> &'s Table {
        self.document.table(id)
    }

    /// The value of a key of the reference table, if it is written.
    pub(crate) fn field(&self, table: &'s Table, scope: Scope, name: &str) -> Option<Field<'s>> {
        let key = reference::find(scope, name).expect("every key that is read stands in the reference table");
        let entry = table.get(name)?;
        Some(Field { key, key_span: entry.key_span, node: &entry.node })
    }

    pub(crate) fn wrong_type(&mut self, field: Field<'_>, node: &Node) {
        if matches!(node.value, Value::Bad) {
            return;
        }
        self.report(node.span, Code::WrongType, |_| {
            let (kind, found) = (field.key.kind, node.value.describe());
            let message = format!("expected {kind} for `{}`, found {found}", field.key.name);
            (message, Some(format!("for example `{}`", field.key.example)))
        });
    }

    /// The text of a field. Every string of the file that means something is taken out here, so that `${{` and
    /// NUL are seen wherever they stand.
    pub(crate) fn text(&mut self, field: Field<'s>) -> Option<&'s str> {
        self.text_of(field, field.node)
    }

    /// The text of one element of a field, or of the field itself.
    pub(crate) fn text_of(&mut self, field: Field<'s>, node: &'s Node) -> Option<&'s str> {
        let Value::Text(text) = &node.value else {
            self.wrong_type(field, node);
            return None;
        };
        self.plain(text, node.span)
    }

    /// The text, unless it holds what no string of a pipeline can hold.
    pub(crate) fn plain(&mut self, text: &'s str, span: Span) -> Option<&'s str> {
        if let Some(at) = text.find("${{") {
            let end = text[at..].find("}}").map_or(text.len(), |length| at + length + 2);
            let place = self.inside(span, at, end - at);
            self.report(place, Code::UnsupportedExpression, |_| {
                let help = "write the value itself; in a script, use an environment variable".to_owned();
                ("`${{ }}` is not carried out by this version".to_owned(), Some(help))
            });
            return None;
        }
        if let Some(at) = text.find('\0') {
            let place = self.inside(span, at, 1);
            self.report(place, Code::BadText, |_| ("a text cannot hold the character NUL".to_owned(), None));
            return None;
        }
        Some(text)
    }

    /// The place of a part of a string's *content* in the file.
    pub(crate) fn inside(&self, span: Span, offset: usize, length: usize) -> Span {
        let raw = self.source.slice(span);
        let start = raw_offset(raw, offset);
        let end = raw_offset(raw, offset + length).max(start);
        Span::new(span.start + start, span.start + end)
    }

    /// A table behind a field, inline or by header.
    pub(crate) fn table_of(&mut self, field: Field<'s>) -> Option<&'s Table> {
        let table = field.node.value.as_table();
        if table.is_none() {
            self.wrong_type(field, field.node);
        }
        table.map(|id| self.table(id))
    }

    /// The elements of a list of tables, written either way.
    pub(crate) fn elements(&mut self, field: Field<'s>) -> Option<Vec<Element<'s>>> {
        let document = self.document;
        if let Value::Tables(list) = &field.node.value {
            let element = |(id, at): &(TableId, Span)| Element {
                node: ElementNode::Table(document.table(*id)),
                at: *at,
            };
            return Some(list.iter().map(element).collect());
        }
        let nodes = self.array(field)?;
        let element = |node: &'s Node| {
            let part = node.value.as_table().map(|id| ElementNode::Table(document.table(id)));
            Element { node: part.unwrap_or(ElementNode::Other(node)), at: node.span }
        };
        Some(nodes.iter().map(element).collect())
    }

    /// The values of `[ … ]`.
    pub(crate) fn array(&mut self, field: Field<'s>) -> Option<&'s [Node]> {
        let Value::Array(nodes) = &field.node.value else {
            self.wrong_type(field, field.node);
            return None;
        };
        Some(nodes)
    }

    pub(crate) fn boolean(&mut self, field: Field<'s>) -> Option<bool> {
        let Value::Boolean(value) = field.node.value else {
            self.wrong_type(field, field.node);
            return None;
        };
        Some(value)
    }

    /// One of a few words.
    pub(crate) fn word<T: Copy>(&mut self, field: Field<'s>, known: &[(&'static str, T)]) -> Option<T> {
        let text = self.text(field)?;
        if let Some((_, meaning)) = known.iter().find(|(word, _)| *word == text) {
            return Some(*meaning);
        }
        self.report(field.node.span, Code::UnknownValue, |reader| {
            let message =
                format!("expected {} for `{}`, found {}", field.key.kind, field.key.name, quote(text));
            let near = reader.suggester.nearest(text, known.iter().map(|(word, _)| *word));
            let help = match near {
                Some(word) => format!("did you mean `\"{word}\"`?"),
                None => format!("for example `{}`", field.key.example),
            };
            (message, Some(help))
        });
        None
    }

    /// Records every key of a table that this version does not carry out.
    pub(crate) fn check_keys(&mut self, table: &'s Table, scope: Scope, where_from: &Surroundings<'_>) {
        for entry in &table.entries {
            match reference::find(scope, &entry.key).map(|key| key.status) {
                Some(Status::Now) => {}
                Some(Status::Later) => self.unsupported(entry),
                None => self.unknown_key(table, scope, entry, where_from),
            }
        }
    }

    fn unsupported(&mut self, entry: &Entry) {
        self.report(entry.key_span, Code::UnsupportedKey, |_| {
            let name = quote(&entry.key);
            (format!("{name} is not carried out by this version of Buildyard"), Some("remove it".to_owned()))
        });
    }

    fn unknown_key(&mut self, table: &Table, scope: Scope, entry: &Entry, where_from: &Surroundings<'_>) {
        if self.problems.is_full() {
            return self.problems.count_one_more();
        }
        let outer = scope.around().iter().find_map(|around| reference::find(*around, &entry.key));
        let job_key = reference::find(Scope::Job, &entry.key);
        if [outer, job_key].into_iter().flatten().any(|key| key.status == Status::Later) {
            return self.unsupported(entry);
        }
        if let Some(key) = outer.filter(|_| matches!(table.origin, Origin::Header | Origin::Element)) {
            return self.misplaced(scope, entry, key, where_from);
        }
        self.report(entry.key_span, Code::UnknownKey, |reader| {
            let message = format!("{} is no key of {}", quote(&entry.key), scope.noun());
            (message, Some(reader.help_for_unknown(scope, &entry.key)))
        });
    }

    fn help_for_unknown(&mut self, scope: Scope, word: &str) -> String {
        if let Some(hint) = reference::hint(scope, word) {
            return hint.to_owned();
        }
        if let Some(near) = self.suggester.nearest(word, reference::names(scope)) {
            return format!("did you mean `{near}`?");
        }
        let known: Vec<String> = reference::names(scope).map(|name| format!("`{name}`")).collect();
        format!("the keys of {} are {}", scope.noun(), known.join(", "))
    }

    /// A key of the surrounding table that TOML put into this one, because it stands below its header.
    fn misplaced(&mut self, scope: Scope, entry: &Entry, key: &Key, where_from: &Surroundings<'_>) {
        let code = if scope == Scope::Step { Code::JobKeyInStep } else { Code::KeyInWrongTable };
        self.report(entry.key_span, code, |reader| {
            let name = quote(&entry.key);
            let header = where_from.header;
            let message = format!(
                "{name} is a key of {}, but below `{header}` every key belongs to {}",
                key.scope.noun(),
                scope.noun()
            );
            let line = where_from.first.map(|span| reader.source.line(span.start));
            let above = line.map_or_else(String::new, |line| format!(" on line {line}"));
            (message, Some(format!("move it up, above the first `{header}`{above}")))
        });
    }
}

/// What stands around a table, for the words about a key in the wrong place.
pub(crate) struct Surroundings<'h> {
    /// The header of the table: `[[jobs.test.steps]]`.
    pub(crate) header: &'h str,
    /// Where the first such header stands.
    pub(crate) first: Option<Span>,
}

/// Where a byte of a string's content stands in its raw form, which has quotes and may have escapes.
fn raw_offset(raw: &str, content_offset: usize) -> usize {
    let quotes =
        ["'''", "\"\"\"", "'", "\""].into_iter().find(|quotes| raw.starts_with(quotes)).unwrap_or("");
    let mut at = quotes.len();
    if quotes.len() == 3 {
        let rest = &raw[at..];
        at += if rest.starts_with("\r\n") { 2 } else { usize::from(rest.starts_with('\n')) };
    }
    let has_escapes = quotes.starts_with('"');
    let mut content = 0;
    while content < content_offset {
        let Some(sign) = raw[at..].chars().next() else { break };
        let (raw_length, content_length) = if sign == '\\' && has_escapes {
            escape_lengths(&raw[at..])
        } else {
            (sign.len_utf8(), sign.len_utf8())
        };
        at += raw_length;
        content += content_length;
    }
    at.min(raw.len())
}

/// Bytes of an escape as it is written, and of the character that it stands for.
fn escape_lengths(raw: &str) -> (usize, usize) {
    let digits = match raw[1..].chars().next() {
        Some('x') => 2,
        Some('u') => 4,
        Some('U') => 8,
        Some(sign) if sign.is_whitespace() => {
            let blank = raw[1..].len() - raw[1..].trim_start().len();
            return (1 + blank, 0);
        }
        Some(sign) => return (1 + sign.len_utf8(), 1),
        None => return (1, 0),
    };
    let code = raw.get(2..2 + digits).and_then(|hex| u32::from_str_radix(hex, 16).ok());
    (2 + digits, code.and_then(char::from_u32).map_or(1, char::len_utf8))
}

#[cfg(test)]
mod tests {
    use super::raw_offset;

    #[test]
    fn places_inside_strings_are_found_behind_quotes_and_escapes() {
        for (raw, content, expected) in [
            ("'abc'", 2, 3),
            ("\"abc\"", 0, 1),
            ("\"a\\tbc\"", 2, 4),
            ("\"\\u00e4b\"", 2, 7),
            ("'a\\tb'", 2, 3),
            ("'''\nab'''", 1, 5),
            ("\"\"\"a\\\n  b\"\"\"", 1, 4),
            ("\"äb\"", 2, 3),
            ("'a'", 9, 3),
        ] {
            assert_eq!(raw_offset(raw, content), expected, "{raw} {content}");
        }
    }
}
