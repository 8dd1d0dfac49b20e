//! Every example is a pipeline, and the documentation says what the reference table says.

#![expect(clippy::unwrap_used, reason = "a test that cannot read its own files should end")]
#![expect(clippy::disallowed_methods, reason = "tests read the files that the compiler may not")]

use std::fs;
use std::path::{Path, PathBuf};

use buildyard_pipelines::reference::{self, KEYS, Scope, Status};
use buildyard_pipelines::{Code, compile, order, render, understand};
use buildyard_types::time::HumanDuration;

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

#[test]
fn every_example_compiles_and_is_described() {
    let folder = repository().join("pipelines/examples");
    let readme = fs::read_to_string(folder.join("README.md")).unwrap();
    let mut seen = 0;
    for entry in fs::read_dir(&folder).unwrap().map(Result::unwrap).filter(|entry| entry.path().is_dir()) {
        let name = entry.file_name().into_string().unwrap();
        let text = fs::read(entry.path().join("pipeline.toml")).unwrap();
        let pipeline =
            compile("pipeline.toml", &text).unwrap_or_else(|said| panic!("{name}:\n{}", render(&said)));
        assert!(order(&pipeline.jobs).is_some(), "{name}");
        assert!(readme.contains(&format!("| `{name}` |")), "{name} is missing in README.md");
        for job in &pipeline.jobs {
            let image = format!("`{}`", job.image);
            assert!(readme.contains(&image), "{name}: README.md does not name the image {image}");
        }
        seen += 1;
    }
    assert!(seen >= 4, "only {seen} examples were found");
}

/// A file in which a line stands in a table of a scope, and which is otherwise whole.
fn file_with(scope: Scope, line: &str) -> String {
    let job = "[jobs.lint]\nimage = \"debian:12\"\nrun = \"make lint\"\n";
    let rest = |has: &str, part: &str| {
        if line.starts_with(&format!("{has} ")) { String::new() } else { format!("{part}\n") }
    };
    let image = rest("image", "image = \"debian:12\"");
    match scope {
        Scope::Pipeline => format!("{line}\n{job}"),
        Scope::Defaults => format!("{job}[defaults]\n{line}\n"),
        Scope::Job if line.starts_with("run ") || line.starts_with("steps ") => {
            format!("{job}[jobs.x]\n{image}{line}\n")
        }
        Scope::Job => format!("{job}[jobs.x]\n{image}run = \"make\"\n{line}\n"),
        Scope::Step => {
            format!(
                "[[jobs.x.steps]]\n{}{line}\n[jobs.x]\nimage = \"debian:12\"\n",
                rest("run", "run = \"make\"")
            )
        }
        Scope::Need => {
            let needed = if line.starts_with("job ") { "" } else { "job = \"lint\", " };
            format!("{job}[jobs.x]\n{image}run = \"make\"\nneeds = [{{ {needed}{line} }}]\n")
        }
        Scope::Timeout => format!("{job}timeout = {{ {line} }}\n"),
        Scope::Resources => format!("{job}resources = {{ {line} }}\n"),
        Scope::Checkout => format!("{job}checkout = {{ {line} }}\n"),
        Scope::Artifact => {
            let (name, paths) = (rest("name", "name = \"a\""), rest("paths", "paths = [\"out\"]"));
            format!("{job}[[jobs.lint.artifacts]]\n{name}{paths}{line}\n")
        }
    }
}

#[test]
fn every_key_of_the_table_is_read_as_the_table_says() {
    for key in KEYS.iter().filter(|key| key.status == Status::Now) {
        let good = file_with(key.scope, key.example);
        assert_eq!(render(&understand("p.toml", good.as_bytes()).diagnostics), "no mistakes", "{good}");
        // No key takes a date: if one is accepted, the key is not read.
        let bad = file_with(key.scope, &format!("{} = 1979-05-27", key.name));
        let said = understand("p.toml", bad.as_bytes()).diagnostics;
        let wrong = said.iter().find(|diagnostic| diagnostic.code == Code::WrongType.as_str());
        let wrong = wrong.unwrap_or_else(|| panic!("{} of {:?} is not read:\n{bad}", key.name, key.scope));
        assert!(
            wrong.message.contains(key.kind) || wrong.message.contains("a duration in quotes"),
            "{wrong}"
        );
    }
}

#[test]
fn every_later_key_is_refused_by_its_own_diagnostic() {
    for key in KEYS.iter().filter(|key| key.status == Status::Later) {
        let text = file_with(key.scope, &format!("{} = {{ a = \"${{{{ x }}}}\" }}", key.name));
        let said = understand("p.toml", text.as_bytes()).diagnostics;
        let codes: Vec<&str> = said.iter().map(|diagnostic| diagnostic.code.as_str()).collect();
        assert_eq!(codes, ["unsupported-key"], "{text}");
    }
}

#[test]
fn the_defaults_of_the_table_are_those_that_jobs_get() {
    let text =
        "[jobs.a]\nimage = \"debian:12\"\nrun = \"make\"\nartifacts = [{ name = \"a\", paths = [\"x\"] }]\n";
    let job = compile("nightly.toml", text.as_bytes()).unwrap().jobs.remove(0);
    let duration = |ms| HumanDuration(ms).to_string();
    for (scope, name, value) in [
        (Scope::Timeout, "job", duration(job.timeout_ms)),
        (Scope::Timeout, "queue", duration(job.queue_timeout_ms)),
        (Scope::Resources, "cpus", (job.resources.cpu_millis as f64 / 1_000.0).to_string()),
        (Scope::Resources, "memory", job.resources.memory.to_string()),
        (Scope::Resources, "pids", job.resources.pids.to_string()),
        (Scope::Resources, "disk", job.resources.disk.to_string()),
        (Scope::Checkout, "depth", job.checkout.depth.unwrap().to_string()),
        (Scope::Checkout, "tags", job.checkout.tags.to_string()),
        (Scope::Artifact, "keep", duration(job.artifacts[0].keep_ms)),
        (Scope::Artifact, "required", job.artifacts[0].required.to_string()),
        (Scope::Defaults, "network", word(&job.network)),
        (Scope::Defaults, "user", word(&job.user)),
        (Scope::Defaults, "shell", word(&job.steps[0].shell)),
    ] {
        let key = reference::find(scope, name).unwrap();
        assert_eq!(key.default, format!("`{value}`"), "{name} of {scope:?}");
    }
    assert_eq!((job.labels.to_string().as_str(), job.steps[0].name.as_str()), ("", "run"));
}

fn word(value: &impl serde::Serialize) -> String {
    serde_json::to_string(value).unwrap().replace('"', "")
}

/// The part of the documentation between two marks, as it should be.
fn generated() -> String {
    let mut codes = String::from("| code | meaning |\n|---|---|\n");
    for code in Code::ALL {
        codes.push_str(&format!("| `{}` | {} |\n", code.as_str(), code.meaning()));
    }
    format!("{}### Diagnostics\n\n{codes}", reference::markdown())
}

const BEGIN: &str = "<!-- generated from pipelines/compiler/src/reference.rs: begin -->\n";
const END: &str = "<!-- generated: end -->";

#[test]
fn the_documentation_holds_the_table() {
    let path = repository().join("docs/pipeline.md");
    let page = fs::read_to_string(&path).unwrap();
    let (before, rest) = page.split_once(BEGIN).unwrap();
    let (_, after) = rest.split_once(END).unwrap();
    let expected = format!("{before}{BEGIN}\n{}\n{END}{after}", generated());
    if std::env::var_os("BUILDYARD_BLESS").is_some() {
        fs::write(&path, &expected).unwrap();
    } else {
        assert!(
            page == expected,
            "docs/pipeline.md differs from the table: run this test with BUILDYARD_BLESS=1"
        );
    }
}

#[test]
fn the_examples_of_the_documentation_compile() {
    let page = fs::read_to_string(repository().join("docs/pipeline.md")).unwrap();
    let mut seen = 0;
    for part in page.split("```toml\n").skip(1) {
        let text = part.split("```").next().unwrap();
        let said = understand("pipeline.toml", text.as_bytes()).diagnostics;
        assert_eq!(render(&said), "no mistakes", "{text}");
        seen += 1;
    }
    assert!(seen >= 3, "only {seen} examples were found");
}
