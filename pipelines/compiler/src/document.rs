//! A TOML file as a tree in file order, in which every key and value knows its place.
//!
//! The signs are read by `toml_parser`; the tree is ours, because a compiler needs what TOML libraries do not give
//! together: file order, the place where a key was *first* written, every mistake instead of the first one, and a
//! tree of what was understood around them. A value that could not be read is [`Value::Bad`]: whoever meets one
//! says nothing about it, since its mistake is on record already.
//!
//! Tables sit in one list and are named by their index there, so that no file makes the tree deep in memory.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::num::IntErrorKind;

use toml_parser::ParseError;
use toml_parser::decoder::ScalarKind;
use toml_parser::parser::{Event, EventKind, RecursionGuard, ValidateWhitespace};

use crate::limits::{MAX_DIAGNOSTICS, MAX_KEY_PARTS, MAX_NESTING, MAX_TOKENS};
use crate::problem::{Code, Problems, Source, Span, quote};
use crate::syntax;

/// Names a table of a [`Document`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TableId(usize);

/// A file that was read.
#[derive(Debug)]
pub(crate) struct Document {
    tables: Vec<Table>,
}

/// Keys in file order.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) origin: Origin,
    pub(crate) entries: Vec<Entry>,
    by_name: BTreeMap<String, usize>,
}

/// How a table came to be. TOML's rules about writing a table twice hang on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// The file itself.
    Root,
    /// Passed through by a longer header: `jobs` in `[jobs.test]`.
    Implicit,
    /// `[jobs.test]`
    Header,
    /// One element of `[[jobs.test.steps]]`.
    Element,
    /// Made by a dotted key: `env` in `env.CFLAGS = "-O2"`.
    Dotted,
    /// `{ … }`
    Inline,
}

/// A key and its value.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) key: String,
    /// Where the key was first written.
    pub(crate) key_span: Span,
    pub(crate) node: Node,
}

/// A value and its place.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) span: Span,
    pub(crate) value: Value,
}

/// What a key can hold.
#[derive(Debug)]
pub(crate) enum Value {
    /// It could not be read; the problem is on record.
    Bad,
    Text(String),
    /// `None` where it does not fit in 64 bits.
    Integer(Option<i64>),
    Float(f64),
    Boolean(bool),
    Date,
    /// `[ … ]`
    Array(Vec<Node>),
    /// `[[ … ]]`, element by element; each with the place of its header.
    Tables(Vec<(TableId, Span)>),
    Table(TableId),
}

impl Value {
    pub(crate) fn as_table(&self) -> Option<TableId> {
        if let Value::Table(id) = self { Some(*id) } else { None }
    }

    /// How a message speaks of it: "found an integer".
    pub(crate) fn describe(&self) -> &'static str {
        match self {
            Value::Bad => "something unreadable",
            Value::Text(_) => "a string",
            Value::Integer(_) => "an integer",
            Value::Float(_) => "a decimal number",
            Value::Boolean(_) => "a boolean",
            Value::Date => "a date",
            Value::Array(_) => "an array",
            Value::Tables(_) => "an array of tables",
            Value::Table(_) => "a table",
        }
    }
}

impl Document {
    pub(crate) fn root(&self) -> &Table {
        &self.tables[0]
    }

    pub(crate) fn table(&self, id: TableId) -> &Table {
        &self.tables[id.0]
    }

    fn add(&mut self, origin: Origin) -> TableId {
        self.tables.push(Table { origin, entries: Vec::new(), by_name: BTreeMap::new() });
        TableId(self.tables.len() - 1)
    }

    fn insert(&mut self, table: TableId, key: Key, node: Node) {
        let table = &mut self.tables[table.0];
        table.by_name.insert(key.text.clone(), table.entries.len());
        table.entries.push(Entry { key: key.text, key_span: key.span, node });
    }

    fn entry_mut(&mut self, table: TableId, key: &str) -> Option<&mut Entry> {
        let table = &mut self.tables[table.0];
        table.by_name.get(key).map(|at| &mut table.entries[*at])
    }
}

impl Table {
    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        self.by_name.get(key).map(|at| &self.entries[*at])
    }
}

/// One part of a key.
struct Key {
    text: String,
    span: Span,
}

/// Keeps the first errors and lets the rest go: a file of a megabyte can hold half a million.
struct Errors(Vec<ParseError>);

impl toml_parser::ErrorSink for Errors {
    fn report_error(&mut self, error: ParseError) {
        if self.0.len() <= MAX_DIAGNOSTICS {
            self.0.push(error);
        }
    }
}

/// Reads a file. What is wrong with it goes to the problems; what could be understood is the answer.
pub(crate) fn parse(source: &Source<'_>, problems: &mut Problems) -> Document {
    let mut document = Document { tables: Vec::new() };
    let root = document.add(Origin::Root);
    let toml = toml_parser::Source::new(source.text);
    if let Some(token) = toml.lex().nth(MAX_TOKENS) {
        let message = format!("the file has more than {MAX_TOKENS} parts");
        problems.add(
            token.span().into(),
            Code::TooComplex,
            message,
            Some("split it into several".to_owned()),
        );
        return document;
    }
    let tokens = toml.lex().into_vec();
    let mut events = Vec::with_capacity(tokens.len());
    let mut errors = Errors(Vec::new());
    let mut checked = ValidateWhitespace::new(&mut events, toml);
    let mut guarded = RecursionGuard::new(&mut checked, MAX_NESTING);
    toml_parser::parser::parse_document(&tokens, &mut guarded, &mut errors);
    let unclosed_from = syntax::explain_structure(&errors.0, source, problems);
    let mut builder = Builder { source, toml, events: &events, at: 0, document, current: root, problems };
    builder.file();
    let mut document = builder.document;
    if let Some(from) = unclosed_from {
        forget_after(&mut document, from);
    }
    document
}

/// A bracket without an end swallows the rest of the file; what seems to stand there means nothing.
fn forget_after(document: &mut Document, offset: usize) {
    for table in &mut document.tables {
        for entry in &mut table.entries {
            if entry.node.span.end >= offset {
                entry.node.value = Value::Bad;
            }
        }
    }
}

struct Builder<'a> {
    source: &'a Source<'a>,
    toml: toml_parser::Source<'a>,
    events: &'a [Event],
    at: usize,
    document: Document,
    /// The table of the header above.
    current: TableId,
    problems: &'a mut Problems,
}

impl Builder<'_> {
    fn peek(&self) -> Option<Event> {
        self.events.get(self.at).copied()
    }

    fn next(&mut self) -> Option<Event> {
        let event = self.peek();
        self.at += usize::from(event.is_some());
        event
    }

    /// Goes over blanks. Signs that made no sense are on record as errors, and are gone over too.
    fn skip_blanks(&mut self) {
        while let Some(EventKind::Whitespace | EventKind::Error) = self.peek().map(|event| event.kind()) {
            self.at += 1;
        }
    }

    fn file(&mut self) {
        while let Some(event) = self.next() {
            match event.kind() {
                EventKind::StdTableOpen => self.header(false),
                EventKind::ArrayTableOpen => self.header(true),
                EventKind::SimpleKey => {
                    self.at -= 1;
                    self.key_value(self.current);
                }
                EventKind::StdTableClose
                | EventKind::ArrayTableClose
                | EventKind::InlineTableOpen
                | EventKind::InlineTableClose
                | EventKind::ArrayOpen
                | EventKind::ArrayClose
                | EventKind::KeySep
                | EventKind::KeyValSep
                | EventKind::Scalar
                | EventKind::ValueSep
                | EventKind::Whitespace
                | EventKind::Comment
                | EventKind::Newline
                | EventKind::Error => {}
            }
        }
    }

    /// A table that hangs nowhere: takes the keys below a header that could not be understood.
    fn nowhere(&mut self) -> TableId {
        self.document.add(Origin::Header)
    }

    fn header(&mut self, is_element: bool) {
        self.skip_blanks();
        let path = self.path();
        self.skip_blanks();
        let closing = if is_element { EventKind::ArrayTableClose } else { EventKind::StdTableClose };
        let closed = self.peek().is_some_and(|event| event.kind() == closing);
        let table = match path {
            Some((parents, last)) if closed => self.descend(TableId(0), &parents, false).and_then(|parent| {
                if is_element { self.open_element(parent, last) } else { self.open_table(parent, last) }
            }),
            Some(_) | None => None,
        };
        self.current = match table {
            Some(table) => table,
            None => self.nowhere(),
        };
    }

    fn open_table(&mut self, parent: TableId, key: Key) -> Option<TableId> {
        let Some(entry) = self.document.entry_mut(parent, &key.text) else {
            let table = self.document.add(Origin::Header);
            let span = key.span;
            self.document.insert(parent, key, Node { span, value: Value::Table(table) });
            return Some(table);
        };
        let first = entry.key_span;
        if let Value::Table(table) = entry.node.value {
            let origin = &mut self.document.tables[table.0].origin;
            if *origin == Origin::Implicit {
                *origin = Origin::Header;
                return Some(table);
            }
        }
        self.written_twice(&key, first, "put all its keys below one header");
        None
    }

    fn open_element(&mut self, parent: TableId, key: Key) -> Option<TableId> {
        let span = key.span;
        let element = self.document.add(Origin::Element);
        let Some(entry) = self.document.entry_mut(parent, &key.text) else {
            self.document.insert(parent, key, Node { span, value: Value::Tables(vec![(element, span)]) });
            return Some(element);
        };
        let first = entry.key_span;
        if let Value::Tables(elements) = &mut entry.node.value {
            elements.push((element, span));
            return Some(element);
        }
        if let Value::Array(_) = entry.node.value {
            let line = self.source.line(first.start);
            let name = quote(&key.text);
            self.problems.add(
                span,
                Code::ListWrittenTwice,
                format!("{name} is already a list in brackets on line {line}, to which `[[…]]` cannot add"),
                Some(format!("remove the list on line {line}, or write all of it there")),
            );
        } else {
            self.written_twice(&key, first, "keep one of the two");
        }
        None
    }

    fn written_twice(&mut self, key: &Key, first: Span, help: &str) {
        if self.problems.is_full() {
            return self.problems.count_one_more();
        }
        let line = self.source.line(first.start);
        let message = format!("{} is already written on line {line}", quote(&key.text));
        self.problems.add(key.span, Code::DuplicateKey, message, Some(help.to_owned()));
    }

    /// Walks along the parents of a header or of a dotted key, and makes what is not there yet.
    fn descend(&mut self, mut table: TableId, path: &[Key], dotted: bool) -> Option<TableId> {
        for key in path {
            let Some(entry) = self.document.entry_mut(table, &key.text) else {
                let made = self.document.add(if dotted { Origin::Dotted } else { Origin::Implicit });
                let own = Key { text: key.text.clone(), span: key.span };
                self.document.insert(table, own, Node { span: key.span, value: Value::Table(made) });
                table = made;
                continue;
            };
            let first = entry.key_span;
            if let Value::Bad = entry.node.value {
                return None;
            }
            let next = match &entry.node.value {
                // A longer header below `[[x]]` means the last element.
                Value::Tables(elements) if !dotted => elements.last().map(|(element, _)| *element),
                other => other.as_table(),
            };
            let open = next.filter(|inner| self.may_be_extended(*inner, dotted));
            let Some(open) = open else {
                let line = self.source.line(first.start);
                let message = format!(
                    "{} is already written on line {line} and cannot be added to from here",
                    quote(&key.text)
                );
                let help = "write all of it in one place".to_owned();
                self.problems.add(key.span, Code::DuplicateKey, message, Some(help));
                return None;
            };
            table = open;
        }
        Some(table)
    }

    /// TOML's rules: an inline table is whole as it stands; a dotted key adds only to what dotted keys made, or
    /// to what no header has opened yet.
    fn may_be_extended(&mut self, table: TableId, dotted: bool) -> bool {
        let origin = &mut self.document.tables[table.0].origin;
        match *origin {
            Origin::Inline => false,
            Origin::Root | Origin::Header | Origin::Element => !dotted,
            Origin::Dotted => true,
            Origin::Implicit => {
                if dotted {
                    *origin = Origin::Dotted;
                }
                true
            }
        }
    }

    /// Reads a key with its dots. `None` if a part of it makes no sense; the problem is on record.
    fn path(&mut self) -> Option<(Vec<Key>, Key)> {
        let mut parts = Vec::new();
        let mut good = true;
        let mut too_long = None;
        while let Some(event) = self.peek() {
            if event.kind() != EventKind::SimpleKey {
                break;
            }
            self.at += 1;
            match self.key(event) {
                Some(key) if parts.len() >= MAX_KEY_PARTS => too_long = too_long.or(Some(key.span)),
                Some(key) => parts.push(key),
                None => good = false,
            }
            let after_key = self.at;
            self.skip_blanks();
            if self.peek().is_none_or(|event| event.kind() != EventKind::KeySep) {
                self.at = after_key;
                break;
            }
            self.at += 1;
            self.skip_blanks();
        }
        if let Some(span) = too_long {
            let message = format!("this key has more than {MAX_KEY_PARTS} parts");
            self.problems.add(span, Code::TooComplex, message, None);
            return None;
        }
        let last = parts.pop();
        last.filter(|_| good).map(|last| (parts, last))
    }

    fn key(&mut self, event: Event) -> Option<Key> {
        let raw = self.toml.get(event)?;
        let mut text = Cow::Borrowed("");
        let mut failed: Option<ParseError> = None;
        raw.decode_key(&mut text, &mut failed);
        let span = Span::from(event.span());
        match failed {
            None => Some(Key { text: text.into_owned(), span }),
            Some(error) => {
                syntax::explain_key(&error, span, event.encoding().is_some(), self.source, self.problems);
                None
            }
        }
    }

    fn key_value(&mut self, table: TableId) {
        let path = self.path();
        self.skip_blanks();
        let node = if self.peek().is_some_and(|event| event.kind() == EventKind::KeyValSep) {
            self.at += 1;
            self.value()
        } else {
            // Its value is missing, which is on record; that the key is there keeps others from missing it.
            let end = self.events.get(self.at.saturating_sub(1)).map_or(0, |event| event.span().end());
            Node { span: Span::new(end, end), value: Value::Bad }
        };
        let Some((parents, key)) = path else { return };
        let dotted = !parents.is_empty();
        let Some(table) = self.descend(table, &parents, dotted) else { return };
        match self.document.entry_mut(table, &key.text) {
            None => self.document.insert(table, key, node),
            Some(entry) => {
                let first = entry.key_span;
                if matches!(entry.node.value, Value::Tables(_)) && matches!(node.value, Value::Array(_)) {
                    let line = self.source.line(first.start);
                    let name = quote(&key.text);
                    let message = format!("{name} is already written as `[[…]]` on line {line}");
                    let help = "keep one of the two forms".to_owned();
                    self.problems.add(key.span, Code::ListWrittenTwice, message, Some(help));
                } else {
                    self.written_twice(&key, first, "keep one of the two");
                }
            }
        }
    }

    fn value(&mut self) -> Node {
        self.skip_blanks();
        let event = self.peek();
        match event.map(|event| (event, event.kind())) {
            Some((event, EventKind::Scalar)) => {
                self.at += 1;
                self.scalar(event)
            }
            Some((event, EventKind::ArrayOpen)) => {
                self.at += 1;
                self.array(event)
            }
            Some((event, EventKind::InlineTableOpen)) => {
                self.at += 1;
                self.inline_table(event)
            }
            Some((event, _)) => {
                Node { span: Span::new(event.span().start(), event.span().start()), value: Value::Bad }
            }
            None => {
                Node { span: Span::new(self.source.text.len(), self.source.text.len()), value: Value::Bad }
            }
        }
    }

    fn scalar(&mut self, event: Event) -> Node {
        let span = Span::from(event.span());
        let Some(raw) = self.toml.get(event) else { return Node { span, value: Value::Bad } };
        let mut text = Cow::Borrowed("");
        let mut failed: Option<ParseError> = None;
        let kind = raw.decode_scalar(&mut text, &mut failed);
        if let Some(error) = failed {
            syntax::explain_scalar(&error, span, event.encoding().is_some(), self.source, self.problems);
            return Node { span, value: Value::Bad };
        }
        let value = match kind {
            ScalarKind::String => Value::Text(text.into_owned()),
            ScalarKind::Boolean(value) => Value::Boolean(value),
            ScalarKind::DateTime => Value::Date,
            ScalarKind::Float => Value::Float(text.parse().unwrap_or(f64::NAN)),
            ScalarKind::Integer(radix) => match i64::from_str_radix(&text, radix.value()) {
                Ok(number) => Value::Integer(Some(number)),
                Err(error)
                    if matches!(error.kind(), IntErrorKind::PosOverflow | IntErrorKind::NegOverflow) =>
                {
                    Value::Integer(None)
                }
                Err(_) => {
                    syntax::explain_number(span, self.source, self.problems);
                    Value::Bad
                }
            },
        };
        Node { span, value }
    }

    fn array(&mut self, open: Event) -> Node {
        let mut elements = Vec::new();
        let mut end = open.span().end();
        while let Some(event) = self.peek() {
            end = event.span().end();
            match event.kind() {
                EventKind::ArrayClose => {
                    self.at += 1;
                    break;
                }
                EventKind::Scalar | EventKind::ArrayOpen | EventKind::InlineTableOpen => {
                    elements.push(self.value());
                }
                EventKind::StdTableOpen
                | EventKind::StdTableClose
                | EventKind::ArrayTableOpen
                | EventKind::ArrayTableClose
                | EventKind::InlineTableClose
                | EventKind::SimpleKey
                | EventKind::KeySep
                | EventKind::KeyValSep
                | EventKind::ValueSep
                | EventKind::Whitespace
                | EventKind::Comment
                | EventKind::Newline
                | EventKind::Error => self.at += 1,
            }
        }
        Node { span: Span::new(open.span().start(), end), value: Value::Array(elements) }
    }

    fn inline_table(&mut self, open: Event) -> Node {
        let table = self.document.add(Origin::Inline);
        let mut end = open.span().end();
        while let Some(event) = self.peek() {
            end = event.span().end();
            match event.kind() {
                EventKind::InlineTableClose => {
                    self.at += 1;
                    break;
                }
                EventKind::SimpleKey => self.key_value(table),
                EventKind::StdTableOpen
                | EventKind::StdTableClose
                | EventKind::ArrayTableOpen
                | EventKind::ArrayTableClose
                | EventKind::InlineTableOpen
                | EventKind::ArrayOpen
                | EventKind::ArrayClose
                | EventKind::KeySep
                | EventKind::KeyValSep
                | EventKind::Scalar
                | EventKind::ValueSep
                | EventKind::Whitespace
                | EventKind::Comment
                | EventKind::Newline
                | EventKind::Error => self.at += 1,
            }
        }
        Node { span: Span::new(open.span().start(), end), value: Value::Table(table) }
    }
}
