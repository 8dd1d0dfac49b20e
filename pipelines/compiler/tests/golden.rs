//! Golden cases: each `diagnostics/NAME.toml` is compiled, and what is said about it must be `NAME.txt`.
//!
//! `BUILDYARD_BLESS=1` writes the `.txt` files anew; read what changed before you commit it.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its own files should end")]
#![expect(clippy::disallowed_methods, reason = "tests read the files that the compiler may not")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use buildyard_pipelines::{Code, render, understand};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/diagnostics")
}

fn files(ending: &str) -> BTreeSet<String> {
    let all = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    all.filter_map(|name| name.strip_suffix(ending).map(str::to_owned)).collect()
}

#[test]
fn every_case_says_what_it_should() {
    let bless = std::env::var_os("BUILDYARD_BLESS").is_some();
    let mut wrong = Vec::new();
    for case in files(".toml") {
        let input = fs::read(folder().join(format!("{case}.toml"))).unwrap();
        let said = format!("{}\n", render(&understand("pipeline.toml", &input).diagnostics));
        let expected_path = folder().join(format!("{case}.txt"));
        if bless {
            fs::write(&expected_path, &said).unwrap();
        }
        let expected = fs::read_to_string(&expected_path).unwrap_or_default();
        if said != expected {
            wrong.push(format!("== {case}: expected\n{expected}\n== but it said\n{said}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_file_is_forgotten() {
    assert_eq!(files(".toml"), files(".txt"), "each case has an input and an expected text");
    let known = files(".toml").len() + files(".txt").len();
    assert_eq!(fs::read_dir(folder()).unwrap().count(), known, "only .toml and .txt files stand here");
}

/// Codes whose input is no readable file of a few lines; `tests/limits.rs` has them.
const ELSEWHERE: [Code; 4] = [Code::FileTooLarge, Code::PipelineTooLarge, Code::TooMany, Code::MoreMistakes];

#[test]
fn every_code_has_a_case() {
    let said: String = files(".txt")
        .iter()
        .map(|case| fs::read_to_string(folder().join(format!("{case}.txt"))).unwrap())
        .collect();
    for code in Code::ALL.iter().filter(|code| !ELSEWHERE.contains(code)) {
        assert!(said.contains(&format!("error[{}]:", code.as_str())), "no case says {}", code.as_str());
    }
}
