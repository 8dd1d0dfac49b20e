//! Bombs and bounds: what is too large is refused, with its place, and cheaply.

use std::fmt::Write;

use buildyard_pipelines::limits::{
    MAX_ARTIFACTS, MAX_DIAGNOSTICS, MAX_ENV_BYTES, MAX_ENV_VARIABLES, MAX_FILE_BYTES, MAX_GLOBS, MAX_JOBS,
    MAX_NEEDS, MAX_PIPELINE_BYTES, MAX_SCRIPT_BYTES, MAX_STEPS,
};
use buildyard_pipelines::{compile, order, understand};
use buildyard_types::job::Diagnostic;

/// A name, a limit, and a file that uses so much of it.
type Case<'a> = (&'a str, usize, &'a dyn Fn(usize) -> String);

const HEAD: &str = "[defaults]\nimage = \"debian:12\"\n";

fn mistakes(text: &str) -> Vec<Diagnostic> {
    understand("pipeline.toml", text.as_bytes()).diagnostics
}

/// The codes of what is said, each once in a row.
fn codes(text: &str) -> Vec<String> {
    let mut codes: Vec<String> = mistakes(text).into_iter().map(|diagnostic| diagnostic.code).collect();
    codes.dedup();
    codes
}

fn repeated(count: usize, part: impl Fn(usize) -> String) -> String {
    (0..count).map(part).collect()
}

#[test]
fn a_file_may_be_as_large_as_its_limit_and_no_larger() {
    let body = format!("{HEAD}[jobs.a]\nrun = \"make\"\n#");
    let largest = format!("{body}{}", "x".repeat(MAX_FILE_BYTES - body.len()));
    assert!(compile("pipeline.toml", largest.as_bytes()).is_ok());
    let refused = mistakes(&format!("{largest}x"));
    assert_eq!(refused.len(), 1);
    assert_eq!((refused[0].code.as_str(), refused[0].line), ("file-too-large", 0));
}

#[test]
fn counts_are_bounded() {
    let jobs = |count| format!("{HEAD}{}", repeated(count, |n| format!("[jobs.j{n}]\nrun = \"make\"\n")));
    let steps =
        |count| format!("{HEAD}{}", repeated(count, |_| "[[jobs.a.steps]]\nrun = \"make\"\n".to_owned()));
    let needs = |count| {
        let names = repeated(count, |n| format!("\"j{n}\","));
        format!("{}[jobs.last]\nrun = \"make\"\nneeds = [{names}]\n", jobs(count))
    };
    let env = |count| {
        let variables = repeated(count, |n| format!("V{n} = \"\"\n"));
        format!("{HEAD}[jobs.a]\nrun = \"make\"\n[jobs.a.env]\n{variables}")
    };
    let artifacts = |count| {
        let list = repeated(count, |n| format!("[[jobs.a.artifacts]]\nname = \"n{n}\"\npaths = [\"x\"]\n"));
        format!("{HEAD}[jobs.a]\nrun = \"make\"\n{list}")
    };
    let globs = |count| {
        let list = repeated(count, |n| format!("\"g{n}\","));
        format!("{HEAD}[jobs.a]\nrun = \"make\"\nartifacts = [{{ name = \"n\", paths = [{list}] }}]\n")
    };
    let cases: [Case<'_>; 6] = [
        ("jobs", MAX_JOBS, &jobs),
        ("steps", MAX_STEPS, &steps),
        ("needs", MAX_NEEDS, &needs),
        ("env", MAX_ENV_VARIABLES, &env),
        ("artifacts", MAX_ARTIFACTS, &artifacts),
        ("globs", MAX_GLOBS, &globs),
    ];
    for (what, most, make) in cases {
        assert_eq!(codes(&make(most)), Vec::<String>::new(), "{what} at the limit");
        assert_eq!(codes(&make(most + 1)), ["too-many"], "{what} beyond it");
    }
}

#[test]
fn lengths_are_bounded() {
    let run = |length| format!("{HEAD}[jobs.a]\nrun = \"{}\"\n", "x".repeat(length));
    let env = |length| format!("{HEAD}[jobs.a]\nrun = \"make\"\nenv.V = \"{}\"\n", "x".repeat(length - 1));
    let name = |length| format!("{HEAD}[jobs.{}]\nrun = \"make\"\n", "x".repeat(length));
    let image = |length| format!("[jobs.a]\nrun = \"make\"\nimage = \"{}\"\n", "x".repeat(length));
    let dir = |length| format!("{HEAD}[[jobs.a.steps]]\nrun = \"make\"\ndir = \"{}\"\n", "x".repeat(length));
    let labels = |length| format!("{HEAD}[jobs.a]\nrun = \"make\"\nlabels = \"{}\"\n", "x".repeat(length));
    let cases: [Case<'_>; 6] = [
        ("out-of-range", MAX_SCRIPT_BYTES, &run),
        ("out-of-range", MAX_ENV_BYTES, &env),
        ("bad-name", 64, &name),
        ("bad-image", 512, &image),
        ("bad-path", 1_024, &dir),
        ("bad-labels", 4_096, &labels),
    ];
    for (code, most, make) in cases {
        assert_eq!(codes(&make(most)), Vec::<String>::new(), "{code} at the limit");
        assert_eq!(codes(&make(most + 1)), [code], "{code} beyond it");
    }
}

/// Files that are made to cost much. Each is answered, and in words that somebody can read.
#[test]
fn bombs_are_refused_with_a_place() {
    let near = MAX_FILE_BYTES - 200;
    let bombs = [
        ("square brackets", format!("x = {}", "[".repeat(near))),
        ("closed square brackets", format!("x = {}{}", "[".repeat(near / 2), "]".repeat(near / 2))),
        ("curly brackets", format!("x = {}", "{a=".repeat(near / 3))),
        ("mixed brackets", format!("x = {}", "[{a=".repeat(near / 4))),
        ("dotted key", format!("{}a = 1", "a.".repeat(near / 2))),
        ("dotted header", format!("[{}a]", "a.".repeat(near / 2))),
        ("headers without an end", "[a\n".repeat(near / 3)),
        ("headers", repeated(near / 12, |n| format!("[a{n:07}]\n"))),
        ("element headers", "[[a]]\n".repeat(near / 6)),
        ("keys", repeated(near / 12, |n| format!("a{n:07}=1\n"))),
        ("one key again and again", "a=1\n".repeat(near / 4)),
        ("keys without values", "a\n".repeat(near / 2)),
        ("commas", format!("x = [{}]", ",".repeat(near))),
        ("values without commas", format!("x = [{}]", "1 ".repeat(near / 2))),
        ("escapes", format!("x = \"{}\"", "\\.".repeat(near / 2))),
        ("control characters", format!("x = \"{}\"", "\u{1}".repeat(near))),
        ("quotes", "\"".repeat(near)),
        ("a long line of mistakes", format!("x = {{ {} }}", "a = 1, ".repeat(near / 7))),
        ("labels", format!("[jobs.a]\nlabels = \"{}\"", "(".repeat(near))),
        (
            "unknown needs",
            format!("[jobs.a]\nneeds = [{}]", repeated(near / 12, |n| format!("\"n{n:07}\","))),
        ),
        ("carriage returns", "\r".repeat(near)),
        ("nothing but dots", ".".repeat(near)),
        ("one bare key", format!("{}=1", "a".repeat(near))),
        ("one bare table", format!("[{}]", "a".repeat(near))),
    ];
    for (what, bomb) in bombs {
        let said = mistakes(&bomb);
        assert!(!said.is_empty(), "{what}");
        assert!(said.len() <= MAX_DIAGNOSTICS + 1, "{what}: {}", said.len());
        assert!(said[0].line > 0, "{what}: {}", said[0]);
        let shown: usize = said.iter().map(|diagnostic| diagnostic.to_string().len()).sum();
        assert!(shown < 500_000, "{what}: {shown} bytes of diagnostics");
    }
}

#[test]
fn defaults_that_are_copied_into_many_jobs_are_bounded_together() {
    let file = |jobs| {
        let value = "x".repeat(MAX_ENV_BYTES - 1);
        let jobs = repeated(jobs, |n| format!("[jobs.j{n}]\nrun = \"make\"\n"));
        format!("{HEAD}env = {{ V = \"{value}\" }}\n{jobs}")
    };
    let pipeline =
        compile("pipeline.toml", file(100).as_bytes()).expect("100 copies are well below the bound");
    assert!(serde_json::to_vec(&pipeline).expect("it is JSON").len() <= MAX_PIPELINE_BYTES);
    let refused = understand("pipeline.toml", file(MAX_JOBS).as_bytes());
    let codes: Vec<&str> = refused.diagnostics.iter().map(|diagnostic| diagnostic.code.as_str()).collect();
    assert_eq!(codes, ["pipeline-too-large"]);
    assert!(refused.diagnostics[0].line > 0);
    assert_eq!(refused.pipeline.jobs, [], "what is refused takes no memory");
}

#[test]
fn labels_that_could_not_be_read_back_are_a_diagnostic() {
    let labels = vec!["os=linux"; 400].join("||");
    assert_eq!(codes(&format!("{HEAD}[jobs.a]\nrun = \"make\"\nlabels = \"{labels}\"\n")), ["bad-labels"]);
}

#[test]
fn what_is_beyond_the_hundredth_mistake_is_counted() {
    let text = format!("{HEAD}[jobs.a]\nrun = \"make\"\n{}", repeated(150, |n| format!("wrong{n} = 1\n")));
    let said = mistakes(&text);
    assert_eq!(said.len(), MAX_DIAGNOSTICS + 1);
    let last = said.last().map(|diagnostic| (diagnostic.code.as_str(), diagnostic.message.as_str()));
    assert_eq!(last, Some(("more-mistakes", "50 more mistakes are not shown")));
}

#[test]
fn a_chain_of_a_thousand_jobs_is_followed() {
    let mut text = HEAD.to_owned();
    for n in 0..MAX_JOBS {
        let need = (n + 1) % MAX_JOBS;
        writeln!(text, "[jobs.j{n}]\nrun = \"make\"\nneeds = [\"j{need}\"]")
            .expect("a string takes any text");
    }
    let said = mistakes(&text);
    assert_eq!(said.len(), 1);
    assert!(said[0].message.contains("j0 -> j1 -> j2"), "{}", said[0]);
    assert!(said[0].message.contains("… 980 more … -> j0"), "{}", said[0]);

    let open = text.replacen("needs = [\"j1\"]", "", 1);
    let pipeline = compile("pipeline.toml", open.as_bytes()).expect("the circle is open now");
    let order = order(&pipeline.jobs).expect("there is an order");
    assert_eq!((order[0], order[1], order[999]), (0, 999, 1));
}

#[test]
fn a_line_too_long_to_show_is_left_out_of_the_frame() {
    let text = format!("{HEAD}[jobs.a]\nrun = \"make\"\nenv = {{ A = \"{}\", B = 1 }}\n", "x".repeat(5_000));
    let said = mistakes(&text);
    assert_eq!(said.len(), 1);
    assert_eq!((said[0].line, said[0].column, said[0].source.as_str()), (5, 5_021, ""));
}
