//! What a worker offers and what a job requires.
//!
//! A worker has *facts*, found by the worker itself (`os=linux`, `arch=amd64`), and *pools*, granted by the
//! coordinator (`trusted`, `gpu`). A job requires an expression over both: `os=linux && (gpu || !slow)`.
//! The language has no loops and its text is bounded, so that reading and matching always end at once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Longest expression that is read, in bytes. Holds for what was written and for the form in which it is kept.
pub const MAX_EXPRESSION_BYTES: usize = 4_096;
/// Deepest nesting of `!` and brackets that is read. Holds for both forms too.
pub const MAX_DEPTH: usize = 64;

/// What a worker offers.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Labels {
    /// Found by the worker: `os` is `linux`.
    pub facts: BTreeMap<String, String>,
    /// Granted by the coordinator.
    pub pools: BTreeSet<String>,
}

/// What a job requires of its worker. Serialises as its text.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LabelExpr {
    /// Every worker will do. Written as an empty text.
    Any,
    /// `key=value`
    Fact(String, String),
    /// A bare name.
    Pool(String),
    /// `!x`
    Not(Box<LabelExpr>),
    /// `x && y`
    All(Vec<LabelExpr>),
    /// `x || y`
    Either(Vec<LabelExpr>),
}

/// Where and why an expression cannot be read. The offset counts bytes from the start of the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message} (at character {offset} of the label expression)")]
pub struct LabelError {
    /// What was found and what was expected.
    pub message: String,
    /// Where.
    pub offset: usize,
}

impl Labels {
    /// Whether the worker offers what the expression asks.
    pub fn satisfy(&self, expr: &LabelExpr) -> bool {
        expr.holds(&self.facts, &self.pools)
    }

    /// The parts of the expression that keep this worker from matching; empty when it matches.
    pub fn missing<'e>(&self, expr: &'e LabelExpr) -> Vec<&'e LabelExpr> {
        if self.satisfy(expr) {
            return Vec::new();
        }
        match expr {
            LabelExpr::All(parts) => parts.iter().flat_map(|part| self.missing(part)).collect(),
            LabelExpr::Any
            | LabelExpr::Fact(..)
            | LabelExpr::Pool(_)
            | LabelExpr::Not(_)
            | LabelExpr::Either(_) => vec![expr],
        }
    }
}

impl LabelExpr {
    /// Whether it holds for these facts and pools.
    pub fn holds(&self, facts: &BTreeMap<String, String>, pools: &BTreeSet<String>) -> bool {
        match self {
            LabelExpr::Any => true,
            LabelExpr::Fact(key, value) => facts.get(key) == Some(value),
            LabelExpr::Pool(name) => pools.contains(name),
            LabelExpr::Not(inner) => !inner.holds(facts, pools),
            LabelExpr::All(parts) => parts.iter().all(|part| part.holds(facts, pools)),
            LabelExpr::Either(parts) => parts.iter().any(|part| part.holds(facts, pools)),
        }
    }
}

impl fmt::Display for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let facts = self.facts.iter().map(|(key, value)| format!("{key}={value}"));
        let all: Vec<String> = facts.chain(self.pools.iter().cloned()).collect();
        f.write_str(&all.join(" "))
    }
}

impl fmt::Display for LabelExpr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let join = |parts: &[LabelExpr], by: &str| {
            let wrapped = parts.iter().map(|part| match part {
                LabelExpr::All(_) | LabelExpr::Either(_) => format!("({part})"),
                LabelExpr::Any | LabelExpr::Fact(..) | LabelExpr::Pool(_) | LabelExpr::Not(_) => {
                    part.to_string()
                }
            });
            wrapped.collect::<Vec<_>>().join(by)
        };
        match self {
            LabelExpr::Any => Ok(()),
            LabelExpr::Fact(key, value) => write!(f, "{key}={value}"),
            LabelExpr::Pool(name) => f.write_str(name),
            LabelExpr::Not(inner) => write!(f, "!{}", join(std::slice::from_ref(inner), "")),
            LabelExpr::All(parts) => f.write_str(&join(parts, " && ")),
            LabelExpr::Either(parts) => f.write_str(&join(parts, " || ")),
        }
    }
}

/// Whether a text may stand as a fact's key or value, or a pool's name.
pub fn is_name(text: &str) -> bool {
    !text.is_empty() && text.len() <= 128 && text.bytes().all(is_name_byte)
}

fn is_name_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'/' | b':' | b'+')
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
    depth: usize,
}

impl<'t> Reader<'t> {
    fn fail<T>(&self, message: impl Into<String>) -> Result<T, LabelError> {
        Err(LabelError { message: message.into(), offset: self.at })
    }

    fn skip_blanks(&mut self) {
        let rest = &self.text[self.at..];
        self.at += rest.len() - rest.trim_start().len();
    }

    fn take(&mut self, token: &str) -> bool {
        self.skip_blanks();
        let found = self.text[self.at..].starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn name(&mut self) -> Option<&'t str> {
        let rest = &self.text[self.at..];
        let length = rest.bytes().take_while(|byte| is_name_byte(*byte)).count();
        self.at += length;
        (length > 0).then(|| &rest[..length])
    }

    fn either(&mut self) -> Result<LabelExpr, LabelError> {
        let mut parts = vec![self.all()?];
        while self.take("||") {
            parts.push(self.all()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { LabelExpr::Either(parts) })
    }

    fn all(&mut self) -> Result<LabelExpr, LabelError> {
        let mut parts = vec![self.one()?];
        while self.take("&&") {
            parts.push(self.one()?);
        }
        Ok(if parts.len() == 1 { parts.remove(0) } else { LabelExpr::All(parts) })
    }

    fn one(&mut self) -> Result<LabelExpr, LabelError> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.fail(format!("nested deeper than {MAX_DEPTH} levels"));
        }
        let read = if self.take("!") {
            LabelExpr::Not(Box::new(self.one()?))
        } else if self.take("(") {
            let inner = self.either()?;
            if !self.take(")") {
                return self.fail("expected `)`");
            }
            inner
        } else {
            self.term()?
        };
        self.depth -= 1;
        Ok(read)
    }

    fn term(&mut self) -> Result<LabelExpr, LabelError> {
        self.skip_blanks();
        let Some(key) = self.name() else {
            return match self.text[self.at..].chars().next() {
                None => self.fail("the expression ends where a label was expected"),
                Some(found) => self
                    .fail(format!("expected a label such as `os=linux` or a pool's name, found `{found}`")),
            };
        };
        if self.text[self.at..].starts_with("==") {
            return self.fail("a fact is written `key=value`, with one `=`");
        }
        if !self.text[self.at..].starts_with('=') {
            return Ok(LabelExpr::Pool(key.to_owned()));
        }
        self.at += 1;
        match self.name() {
            Some(value) => Ok(LabelExpr::Fact(key.to_owned(), value.to_owned())),
            None => self.fail(format!("expected a value after `{key}=`, without blanks")),
        }
    }
}

impl FromStr for LabelExpr {
    type Err = LabelError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let read = Reader::whole(text)?;
        // Blanks and brackets of the form that is kept make it longer and deeper than what was written, and what
        // is kept must be readable: a row that is not keeps the coordinator from starting.
        match Reader::whole(&read.to_string()) {
            Ok(_) => Ok(read),
            Err(LabelError { message, .. }) => {
                let message = format!("{message} once blanks and brackets are written out");
                Err(LabelError { message, offset: 0 })
            }
        }
    }
}

impl Reader<'_> {
    fn whole(text: &str) -> Result<LabelExpr, LabelError> {
        let mut reader = Reader { text, at: 0, depth: 0 };
        if text.len() > MAX_EXPRESSION_BYTES {
            return reader.fail(format!("longer than {MAX_EXPRESSION_BYTES} bytes"));
        }
        if text.trim().is_empty() {
            return Ok(LabelExpr::Any);
        }
        let read = reader.either()?;
        reader.skip_blanks();
        if reader.at < text.len() {
            let hint = "expected `&&`, `||` or the end";
            return match text[reader.at..].chars().next() {
                Some(found @ ('&' | '|')) => reader.fail(format!("{hint}; `{found}` is written twice")),
                Some(found) => reader.fail(format!("{hint}, found `{found}`")),
                None => reader.fail(hint),
            };
        }
        Ok(read)
    }
}

impl Serialize for LabelExpr {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for LabelExpr {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn worker() -> Labels {
        let facts = [("os", "linux"), ("arch", "amd64")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        Labels { facts: facts.into(), pools: ["gpu".to_owned()].into() }
    }

    #[test]
    fn expressions_mean_what_they_say() {
        for (text, expected) in [
            ("", true),
            ("os=linux", true),
            ("os=linux && arch=arm64", false),
            ("os=linux && (arch=arm64 || gpu)", true),
            ("!gpu || arch=amd64 && os=linux", true),
            ("!(gpu)", false),
            ("!!gpu", true),
        ] {
            let expr: LabelExpr = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(worker().satisfy(&expr), expected, "{text}");
        }
    }

    #[test]
    fn errors_name_the_place() {
        for (text, offset) in [
            ("os=", 3),
            ("os==linux", 2),
            ("os=linux & gpu", 9),
            ("(gpu", 4),
            ("gpu)", 3),
            ("&& gpu", 0),
            ("gpu ||", 6),
        ] {
            assert_eq!(text.parse::<LabelExpr>().map_err(|error| error.offset), Err(offset), "{text}");
        }
        assert!("!".repeat(4_000).parse::<LabelExpr>().is_err(), "deep nesting is refused, not followed");
        assert!("x".repeat(5_000).parse::<LabelExpr>().is_err());
    }

    #[test]
    fn what_would_be_kept_in_a_form_that_cannot_be_read_is_refused() {
        let many = vec!["os=linux"; 400].join("||");
        assert!(many.len() <= MAX_EXPRESSION_BYTES);
        let deep = (0..MAX_DEPTH - 1).fold("a".to_owned(), |inner, _| format!("(b && {inner} || c)"));
        for (text, said) in [(many, "longer than"), (deep, "nested deeper than")] {
            let error = text.parse::<LabelExpr>().unwrap_err();
            assert!(error.message.starts_with(said), "{error}");
        }
        let just_fits = vec!["os=linux"; 341].join("||").parse::<LabelExpr>().unwrap();
        assert_eq!(just_fits.to_string().parse(), Ok(just_fits));
    }

    #[test]
    fn what_is_missing_is_named_part_by_part() {
        let expr: LabelExpr = "os=linux && arch=arm64 && big".parse().unwrap();
        let missing: Vec<String> = worker().missing(&expr).iter().map(ToString::to_string).collect();
        assert_eq!(missing, ["arch=arm64", "big"]);
    }

    fn expressions() -> impl Strategy<Value = LabelExpr> {
        let leaf = prop_oneof![
            ("[a-z]{1,4}", "[a-z0-9.]{1,4}").prop_map(|(key, value)| LabelExpr::Fact(key, value)),
            "[a-z]{1,4}".prop_map(LabelExpr::Pool),
        ];
        leaf.prop_recursive(4, 24, 3, |inner| {
            prop_oneof![
                inner.clone().prop_map(|x| LabelExpr::Not(Box::new(x))),
                proptest::collection::vec(inner.clone(), 2..4).prop_map(LabelExpr::All),
                proptest::collection::vec(inner, 2..4).prop_map(LabelExpr::Either),
            ]
        })
    }

    proptest! {
        #[test]
        fn an_expression_reads_back_what_it_writes(expr in expressions()) {
            prop_assert_eq!(expr.to_string().parse::<LabelExpr>(), Ok(expr));
        }

        #[test]
        fn what_was_read_reads_back_from_its_json(
            parts in proptest::collection::vec("[!(]{0,3}[ab](=x)?[)]{0,3}(&&|[|][|])", 1..1_400)
        ) {
            let text = parts.concat();
            if let Ok(expr) = text.trim_end_matches(['&', '|']).parse::<LabelExpr>() {
                let json = serde_json::to_string(&expr).unwrap();
                prop_assert_eq!(serde_json::from_str::<LabelExpr>(&json).unwrap(), expr);
            }
        }

        #[test]
        fn no_text_makes_the_reader_panic(text in "\\PC{0,60}") {
            let _ = text.parse::<LabelExpr>();
        }

        #[test]
        fn nothing_is_missing_exactly_when_it_matches(expr in expressions()) {
            prop_assert_eq!(worker().missing(&expr).is_empty(), worker().satisfy(&expr));
        }
    }
}
