//! Whatever stands in the file: the compiler answers, its places are in the file, and what it lets through is whole.
//!
//! `BUILDYARD_FUZZ_CASES` sets how many files each property sees; release work uses 1000000.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its own files should end")]
#![expect(clippy::disallowed_methods, reason = "tests read the files that the compiler may not")]

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::sync::LazyLock;

use buildyard_pipelines::limits::MAX_DIAGNOSTICS;
use buildyard_pipelines::{Code, order, understand};
use buildyard_types::job::{Diagnostic, Pipeline};
use proptest::prelude::*;
use proptest::sample::{Index, select};

/// Cases of each property, 20,000 together.
const CASES: u32 = 5_000;

fn config() -> ProptestConfig {
    let asked = std::env::var("BUILDYARD_FUZZ_CASES").ok().and_then(|text| text.parse().ok());
    ProptestConfig {
        cases: asked.unwrap_or(CASES),
        failure_persistence: None,
        max_shrink_iters: 20_000,
        ..ProptestConfig::default()
    }
}

/// Every golden input and every example: what mutations start from.
static SEEDS: LazyLock<Vec<String>> = LazyLock::new(|| {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let golden = fs::read_dir(here.join("tests/diagnostics")).unwrap().map(|entry| entry.unwrap().path());
    let golden = golden.filter(|path| path.extension().is_some_and(|ending| ending == "toml"));
    let examples = fs::read_dir(here.join("../examples")).unwrap().map(|entry| entry.unwrap().path());
    let examples = examples.filter(|path| path.is_dir()).map(|folder| folder.join("pipeline.toml"));
    let mut files: Vec<_> = golden.chain(examples).collect();
    files.sort();
    files.into_iter().filter_map(|path| fs::read_to_string(path).ok()).collect()
});

const FRAGMENTS: &[&str] = &[
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "=",
    ",",
    ".",
    "#",
    "\n",
    "\n",
    "\n",
    " ",
    "\t",
    "\r\n",
    "\r",
    "\"",
    "'",
    "\"\"\"",
    "'''",
    "\\",
    "\\u00e4",
    "\\.",
    "\\\n",
    "${{ x }}",
    "\u{0}",
    "\u{7f}",
    "\u{feff}",
    "\u{202e}",
    "ä",
    "🚢",
    "jobs",
    "jobs.a",
    "[jobs.a]\n",
    "[jobs.b]\n",
    "[[jobs.a.steps]]\n",
    "[jobs.a.env]\n",
    "[defaults]\n",
    "name",
    "image",
    "image = \"debian:12\"\n",
    "run = \"make\"\n",
    "run",
    "steps = []\n",
    "steps",
    "needs = [\"a\"]\n",
    "needs = [\"b\", \"a\"]\n",
    "env = { A = \"1\" }\n",
    "env.A = \"2\"\n",
    "timeout",
    "labels = \"os=linux\"\n",
    "labels = \"(a && \\tb\"\n",
    "artifacts",
    "matrix",
    "0x",
    "1_000",
    "-1",
    "1.5",
    "nan",
    "99999999999999999999",
    "true",
    "True",
    "1979-05-27",
    "1979-05-27T07:32:00Z",
    "07:32",
    "\"\"",
    "''",
];

fn toml_like() -> impl Strategy<Value = String> {
    proptest::collection::vec(select(FRAGMENTS), 0..60).prop_map(|parts| parts.concat())
}

#[derive(Debug, Clone)]
enum Mutation {
    Remove(Index, Index),
    Repeat(Index, Index),
    Insert(Index, &'static str),
    Replace(Index, char),
    SwapLines(Index, Index),
}

fn mutations() -> impl Strategy<Value = Vec<Mutation>> {
    let one = prop_oneof![
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Mutation::Remove(from, to)),
        (any::<Index>(), any::<Index>()).prop_map(|(from, to)| Mutation::Repeat(from, to)),
        (any::<Index>(), select(FRAGMENTS)).prop_map(|(at, text)| Mutation::Insert(at, text)),
        (any::<Index>(), any::<char>()).prop_map(|(at, sign)| Mutation::Replace(at, sign)),
        (any::<Index>(), any::<Index>()).prop_map(|(one, other)| Mutation::SwapLines(one, other)),
    ];
    proptest::collection::vec(one, 1..8)
}

fn mutated(text: &str, mutations: &[Mutation]) -> String {
    let mut signs: Vec<char> = text.chars().collect();
    for mutation in mutations {
        let length = signs.len() + 1;
        match mutation {
            Mutation::Remove(from, to) => {
                let (from, to) = (from.index(length), to.index(length));
                signs.drain(from.min(to)..from.max(to).min(from.min(to) + 40));
            }
            Mutation::Repeat(from, to) => {
                let (from, to) = (from.index(length), to.index(length));
                let part: Vec<char> = signs[from.min(to)..from.max(to).min(from.min(to) + 200)].to_vec();
                signs.splice(from.max(to)..from.max(to), part);
            }
            Mutation::Insert(at, text) => {
                let at = at.index(length);
                signs.splice(at..at, text.chars());
            }
            Mutation::Replace(at, sign) => {
                if let Some(old) = signs.get_mut(at.index(length)) {
                    *old = *sign;
                }
            }
            Mutation::SwapLines(one, other) => {
                let text: String = signs.iter().collect();
                let mut lines: Vec<&str> = text.split('\n').collect();
                let (one, other) = (one.index(lines.len()), other.index(lines.len()));
                lines.swap(one, other);
                signs = lines.join("\n").chars().collect();
            }
        }
    }
    signs.into_iter().collect()
}

/// What holds for every file.
fn check(bytes: &[u8]) -> Result<(), TestCaseError> {
    let understood = understand("pipeline.toml", bytes);
    prop_assert!(understood.diagnostics.len() <= MAX_DIAGNOSTICS + 1);
    let text = String::from_utf8_lossy(bytes);
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let lines: Vec<&str> = text.split('\n').collect();
    for diagnostic in &understood.diagnostics {
        check_place(diagnostic, &lines)?;
    }
    let places: Vec<(u32, u32)> =
        understood.diagnostics.iter().filter(|d| d.line > 0).map(|d| (d.line, d.column)).collect();
    prop_assert!(places.is_sorted(), "in the order of the file: {places:?}");
    if understood.diagnostics.is_empty() {
        check_pipeline(&understood.pipeline)?;
    }
    check_against_toml(bytes, &understood.diagnostics)
}

fn check_place(diagnostic: &Diagnostic, lines: &[&str]) -> Result<(), TestCaseError> {
    prop_assert!(Code::ALL.iter().any(|code| code.as_str() == diagnostic.code), "{}", diagnostic.code);
    prop_assert!(!diagnostic.message.is_empty());
    let shown = diagnostic.to_string();
    prop_assert!(shown.chars().all(|c| !c.is_control() || matches!(c, '\n' | '\t')), "{shown:?}");
    prop_assert!(shown.lines().count() <= 6, "a frame has six lines:\n{shown}");
    if diagnostic.line == 0 {
        return Ok(());
    }
    let line = lines.get(diagnostic.line as usize - 1);
    prop_assert!(line.is_some(), "line {} of {}", diagnostic.line, lines.len());
    let width = line.unwrap().trim_end_matches('\r').chars().count();
    let last = diagnostic.column as usize + diagnostic.length as usize - 1;
    prop_assert!(diagnostic.column >= 1 && diagnostic.length >= 1);
    // One place behind the line is where something is missing.
    prop_assert!(
        last <= width.max(diagnostic.column as usize) && diagnostic.column as usize <= width + 1,
        "{shown}"
    );
    Ok(())
}

fn check_pipeline(pipeline: &Pipeline) -> Result<(), TestCaseError> {
    prop_assert!(!pipeline.jobs.is_empty() && !pipeline.name.is_empty());
    let names: BTreeSet<&str> = pipeline.jobs.iter().map(|job| job.name.as_str()).collect();
    prop_assert_eq!(names.len(), pipeline.jobs.len());
    prop_assert!(order(&pipeline.jobs).is_some());
    for job in &pipeline.jobs {
        prop_assert!(!job.image.is_empty() && !job.steps.is_empty());
        prop_assert!(job.steps.iter().all(|step| !step.run.trim().is_empty()));
        let steps: BTreeSet<&str> = job.steps.iter().map(|step| step.name.as_str()).collect();
        prop_assert_eq!(steps.len(), job.steps.len());
        prop_assert!(job.timeout_ms.0 > 0 && job.queue_timeout_ms.0 > 0 && job.resources.cpu_millis > 0);
        let written = serde_json::to_string(job).unwrap();
        prop_assert_eq!(&serde_json::from_str::<buildyard_types::JobSpec>(&written).unwrap(), job);
    }
    Ok(())
}

/// Codes that say "this is no TOML". [`Code::TooComplex`] is ours alone.
const NO_TOML: [Code; 5] =
    [Code::Syntax, Code::Unclosed, Code::InvalidEscape, Code::DuplicateKey, Code::ListWrittenTwice];

/// Our tree and that of the `toml` crate agree on what is TOML.
fn check_against_toml(bytes: &[u8], said: &[Diagnostic]) -> Result<(), TestCaseError> {
    let Ok(text) = std::str::from_utf8(bytes) else {
        prop_assert!(said.iter().any(|diagnostic| diagnostic.code == Code::NotUtf8.as_str()));
        return Ok(());
    };
    match text.parse::<toml::Table>() {
        // Dates are read no further than that they are dates; no key takes one.
        Err(error) => prop_assert!(!said.is_empty(), "toml says: {error}"),
        Ok(_) => {
            let wrong = said.iter().find(|d| NO_TOML.iter().any(|code| code.as_str() == d.code));
            prop_assert!(wrong.is_none(), "toml reads it, we say: {}", wrong.unwrap());
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        check(&bytes)?;
    }

    #[test]
    fn anything_like_toml_is_answered(text in toml_like()) {
        check(text.as_bytes())?;
    }

    #[test]
    fn mutated_pipelines_are_answered(seed in any::<Index>(), mutations in mutations()) {
        check(mutated(seed.get::<String>(&SEEDS), &mutations).as_bytes())?;
    }

    #[test]
    fn pipelines_cut_off_anywhere_are_answered(seed in any::<Index>(), at in any::<Index>(), tail in toml_like()) {
        let bytes = seed.get::<String>(&SEEDS).as_bytes();
        let mut cut = bytes[..at.index(bytes.len() + 1)].to_vec();
        cut.extend_from_slice(tail.as_bytes());
        check(&cut)?;
    }
}
