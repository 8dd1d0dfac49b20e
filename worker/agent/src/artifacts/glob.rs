//! Patterns of paths: `*`, `?` and `[a-z]` within a name, `**` over any number of folders, a leading `!` takes
//! out again. Of several patterns the last that matches decides. A pattern that matches a folder takes all of it.
//!
//! A pattern is followed folder by folder as a set of places in it, so the work for a path grows with its
//! length times the pattern's and no pattern can make it explode.

/// Longest pattern that is read, in bytes.
pub const MAX_PATTERN_BYTES: usize = 4_096;

/// Why a text is not a pattern.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the pattern `{pattern}` {reason}")]
pub struct PatternError {
    pattern: String,
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// `**`
    Any,
    /// One name.
    Name(Vec<Atom>),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Atom {
    One(char),
    AnyOne,
    AnyMany,
    Class { negated: bool, ranges: Vec<(char, char)> },
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    negated: bool,
    parts: Vec<Part>,
}

/// An ordered list of patterns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Patterns(Vec<Pattern>);

/// How far each pattern matched a folder: the places reached in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Progress(Vec<Places>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Places {
    /// The pattern matched a folder above: everything below is its own.
    Whole,
    /// `places[i]`: the parts before `i` are matched.
    At(Vec<bool>),
}

impl Places {
    fn of(places: Vec<bool>) -> Self {
        if places.last() == Some(&true) { Places::Whole } else { Places::At(places) }
    }
}

impl Patterns {
    /// Reads a list of patterns.
    pub fn new<'p>(texts: impl IntoIterator<Item = &'p String>) -> Result<Self, PatternError> {
        texts.into_iter().map(|text| Pattern::new(text)).collect::<Result<_, _>>().map(Self)
    }

    /// Nothing is matched yet: the workspace itself.
    pub fn start(&self) -> Progress {
        let start = |pattern: &Pattern| {
            let mut places = vec![false; pattern.parts.len() + 1];
            places[0] = true;
            pattern.skip_any(&mut places);
            Places::of(places)
        };
        Progress(self.0.iter().map(start).collect())
    }

    /// One name further down.
    pub fn step(&self, from: &Progress, name: &str) -> Progress {
        let step = |(pattern, places): (&Pattern, &Places)| match places {
            Places::Whole => Places::Whole,
            Places::At(places) => pattern.step(places, name),
        };
        Progress(self.0.iter().zip(&from.0).map(step).collect())
    }

    /// Whether a path with this progress is taken.
    pub fn takes(&self, at: &Progress) -> bool {
        let last = self.0.iter().zip(&at.0).rev().find(|(_, places)| matches!(places, Places::Whole));
        last.is_some_and(|(pattern, _)| !pattern.negated)
    }

    /// Whether anything below a folder with this progress can be taken.
    pub fn may_take_below(&self, at: &Progress) -> bool {
        self.0.iter().zip(&at.0).any(|(pattern, places)| {
            !pattern.negated
                && match places {
                    Places::Whole => true,
                    Places::At(places) => places.contains(&true),
                }
        })
    }
}

impl Pattern {
    fn new(text: &str) -> Result<Self, PatternError> {
        let fail = |reason| PatternError { pattern: text.chars().take(80).collect(), reason };
        if text.len() > MAX_PATTERN_BYTES {
            return Err(fail("is longer than 4096 bytes"));
        }
        let (negated, rest) = match text.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        if rest.starts_with('/') {
            return Err(fail("starts with `/`; patterns are below the workspace"));
        }
        let mut parts = Vec::new();
        for part in rest.split('/') {
            match part {
                // `./out/` means `out`.
                "" | "." => {}
                ".." => return Err(fail("leaves the workspace with `..`")),
                "**" => parts.push(Part::Any),
                name => parts.push(Part::Name(atoms(name).ok_or_else(|| fail("has a `[` without its `]`"))?)),
            }
        }
        if rest.is_empty() {
            return Err(fail("is empty"));
        }
        Ok(Self { negated, parts })
    }

    /// `**` may stand for nothing: what is reached before it is reached behind it.
    fn skip_any(&self, places: &mut [bool]) {
        for (index, part) in self.parts.iter().enumerate() {
            if places[index] && *part == Part::Any {
                places[index + 1] = true;
            }
        }
    }

    fn step(&self, from: &[bool], name: &str) -> Places {
        let mut places = vec![false; from.len()];
        for (index, part) in self.parts.iter().enumerate() {
            if !from[index] {
                continue;
            }
            match part {
                Part::Any => places[index] = true,
                Part::Name(atoms) => places[index + 1] |= matches(atoms, name),
            }
        }
        self.skip_any(&mut places);
        Places::of(places)
    }
}

fn atoms(text: &str) -> Option<Vec<Atom>> {
    let mut atoms = Vec::new();
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        atoms.push(match c {
            '?' => Atom::AnyOne,
            '*' => {
                // `a**b` means `a*b`.
                while chars.next_if_eq(&'*').is_some() {}
                Atom::AnyMany
            }
            '[' => class(&mut chars)?,
            c => Atom::One(c),
        });
    }
    Some(atoms)
}

fn class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Atom> {
    let negated = chars.next_if(|c| matches!(c, '!' | '^')).is_some();
    let mut ranges = Vec::new();
    loop {
        let low = chars.next()?;
        // A `]` in the first place is meant as itself.
        if low == ']' && !ranges.is_empty() {
            return Some(Atom::Class { negated, ranges });
        }
        let mut high = low;
        if chars.peek() == Some(&'-') {
            let mut ahead = chars.clone();
            ahead.next();
            if let Some(end) = ahead.next().filter(|end| *end != ']') {
                high = end;
                *chars = ahead;
            }
        }
        ranges.push((low, high));
    }
}

/// Matches one name. On a mismatch only the last `*` is widened: an earlier one could not do better.
fn matches(atoms: &[Atom], name: &str) -> bool {
    let name: Vec<char> = name.chars().collect();
    let (mut atom, mut at) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while at < name.len() {
        let fits = match atoms.get(atom) {
            Some(Atom::AnyMany) => {
                star = Some((atom, at));
                atom += 1;
                continue;
            }
            Some(Atom::AnyOne) => true,
            Some(Atom::One(c)) => *c == name[at],
            Some(Atom::Class { negated, ranges }) => {
                ranges.iter().any(|(low, high)| (low..=high).contains(&&name[at])) != *negated
            }
            None => false,
        };
        if fits {
            (atom, at) = (atom + 1, at + 1);
        } else if let Some((star_atom, star_at)) = star {
            star = Some((star_atom, star_at + 1));
            (atom, at) = (star_atom + 1, star_at + 1);
        } else {
            return false;
        }
    }
    atoms[atom..].iter().all(|atom| *atom == Atom::AnyMany)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the patterns take a path, asked as the walk asks: folder by folder.
    fn takes(patterns: &[&str], path: &str) -> bool {
        let texts: Vec<String> = patterns.iter().map(|text| (*text).to_owned()).collect();
        let patterns = Patterns::new(&texts).unwrap();
        let mut at = patterns.start();
        for name in path.split('/') {
            if !patterns.may_take_below(&at) {
                return false;
            }
            at = patterns.step(&at, name);
        }
        patterns.takes(&at)
    }

    #[test]
    fn patterns_take_what_they_say() {
        for (patterns, yes, no) in [
            (&["out/**"][..], &["out/a", "out/b/c"][..], &["out2/a", "a/out/b"][..]),
            (&["out"], &["out", "out/a/b"], &["outer"]),
            (&["./out/"], &["out/a"], &["a"]),
            (&["**/*.o"], &["a.o", "x/y/a.o"], &["a.c", "x/a.o.c"]),
            (&["a/**/z"], &["a/z", "a/b/z", "a/b/c/z"], &["a/b", "b/a/z"]),
            (&["*"], &["a", "a/b"], &[]),
            (&["**"], &["a", "a/b/c"], &[]),
            (&["."], &["a/b"], &[]),
            (&["*.tar.gz"], &["a.tar.gz", ".tar.gz"], &["a.tar", "b/a.tar.gz"]),
            (&["v?.[0-9]"], &["v1.2", "vx.9"], &["v1.x", "v12.3"]),
            (&["[!a-c]x"], &["dx"], &["ax", "bx"]),
            (&["[]a]"], &["]", "a"], &["b"]),
            (&["[a-]"], &["a", "-"], &["b"]),
            (&["out/**", "!out/tmp/**"], &["out/a", "out/tmp2/b"], &["out/tmp/x", "out/tmp/y/z"]),
            (&["out/**", "!**/*.o", "out/keep.o"], &["out/a", "out/keep.o"], &["out/b.o"]),
            (&["!a", "a"], &["a"], &["b"]),
            (&["!a"], &[], &["a", "b"]),
            (&["ä*"], &["äb"], &["ab"]),
        ] {
            for path in yes {
                assert!(takes(patterns, path), "{patterns:?} should take {path}");
            }
            for path in no {
                assert!(!takes(patterns, path), "{patterns:?} should not take {path}");
            }
        }
    }

    #[test]
    fn folders_without_a_chance_are_not_entered() {
        let patterns = Patterns::new(&["src/*.c".to_owned(), "!src/x/**".to_owned()]).unwrap();
        let start = patterns.start();
        assert!(patterns.may_take_below(&patterns.step(&start, "src")));
        assert!(!patterns.may_take_below(&patterns.step(&start, "node_modules")));
    }

    #[test]
    fn what_is_no_pattern_is_named() {
        for (text, reason) in
            [("/etc/*", "below the workspace"), ("a/../b", ".."), ("[a", "`]`"), ("", "empty")]
        {
            let error = Patterns::new(&[text.to_owned()]).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }

    #[test]
    fn no_pattern_explodes() {
        // Exponential for a matcher that tries every split; here 2,000 × 4,000 steps.
        let name = "a".repeat(4_000);
        assert!(!matches(&atoms(&"*a".repeat(1_000)).unwrap(), &format!("{name}b")));
        let deep = vec!["a"; 500].join("/");
        assert!(!takes(&[&format!("{}b", "**/a/".repeat(400))], &deep));
    }
}
