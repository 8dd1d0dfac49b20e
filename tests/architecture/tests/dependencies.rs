//! What may depend on what. A rule that only people keep is kept until the first busy week.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package};

/// Every crate of the workspace, and the crates of the workspace that it may use. Adding an arrow means adding
/// it here, where a reviewer sees it.
const MAY_USE: &[(&str, &[&str])] = &[
    ("buildyard-types", &[]),
    ("buildyard-pipelines", &["buildyard-types"]),
    ("buildyard-scheduler", &["buildyard-types"]),
    ("buildyard-session", &["buildyard-types"]),
    ("buildyard-init", &[]),
    ("buildyard-store", &["buildyard-types", "buildyard-scheduler"]),
    ("buildyard-store-sqlite", &["buildyard-types", "buildyard-scheduler", "buildyard-store"]),
    (
        "buildyard-coordinator",
        &[
            "buildyard-types",
            "buildyard-pipelines",
            "buildyard-scheduler",
            "buildyard-store",
            "buildyard-store-sqlite",
        ],
    ),
    ("buildyard-worker", &["buildyard-types", "buildyard-session", "buildyard-init"]),
    (
        "buildyard",
        &[
            "buildyard-types",
            "buildyard-pipelines",
            "buildyard-scheduler",
            "buildyard-coordinator",
            "buildyard-worker",
        ],
    ),
];

/// Crates that decide and never wait: their whole closure of dependencies is held to this.
const PURE: &[&str] = &["buildyard-types", "buildyard-pipelines", "buildyard-scheduler", "buildyard-session"];

/// Things that wait, touch the machine, or make randomness.
const IMPURE: &[&str] = &[
    "tokio",
    "async-std",
    "axum",
    "hyper",
    "reqwest",
    "bollard",
    "git2",
    "sqlx",
    "rand",
    "getrandom",
    "rustix",
    "nix",
];

/// Libraries that one crate alone may know, so that replacing them stays a local change.
const OWNERS: &[(&str, &[&str])] = &[
    ("axum", &["buildyard-coordinator"]),
    ("bollard", &["buildyard-worker"]),
    ("git2", &["buildyard-coordinator"]),
    ("object_store", &["buildyard-coordinator"]),
    ("sqlx", &["buildyard-store-sqlite"]),
    ("clap", &["buildyard"]),
];

/// Never in the tree, whoever asks for them: TLS is rustls with ring.
const BANNED: &[&str] = &["aws-lc-sys", "aws-lc-rs", "openssl-sys", "openssl", "native-tls"];

/// What dependencies may be licensed under; the same list stands in `deny.toml`.
const LICENCES: &[&str] = &[
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "ISC",
    "MIT-0",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
    "0BSD",
];

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn metadata() -> Metadata {
    MetadataCommand::new()
        .manifest_path(root().join("Cargo.toml"))
        // Not offline: the crates of other platforms are in the lock file and, on a fresh machine, not yet here.
        .other_options(vec!["--locked".into()])
        .exec()
        .expect("cargo metadata reads the workspace")
}

fn is_test_crate(name: &str) -> bool {
    name.starts_with("buildyard-test-")
}

/// Names of the direct dependencies of a package, development ones left out.
fn direct(package: &Package) -> BTreeSet<&str> {
    package
        .dependencies
        .iter()
        .filter(|dependency| dependency.kind != DependencyKind::Development)
        .map(|dependency| dependency.name.as_str())
        .collect()
}

/// Names of everything that a package pulls in by normal dependencies.
fn closure<'m>(metadata: &'m Metadata, start: &Package) -> BTreeSet<&'m str> {
    let resolve = metadata.resolve.as_ref().expect("metadata holds the resolved graph");
    let nodes: BTreeMap<_, _> = resolve.nodes.iter().map(|node| (&node.id, node)).collect();
    let mut seen = BTreeSet::new();
    let mut names = BTreeSet::new();
    let mut todo = vec![&start.id];
    while let Some(id) = todo.pop() {
        if !seen.insert(id) {
            continue;
        }
        for dependency in &nodes[id].deps {
            let normal = dependency.dep_kinds.iter().any(|kind| kind.kind == DependencyKind::Normal);
            if normal {
                names.insert(metadata[&dependency.pkg].name.as_str());
                let id = &nodes.get_key_value(&dependency.pkg).expect("a resolved package has a node").0;
                todo.push(id);
            }
        }
    }
    names
}

#[test]
fn crates_use_only_the_crates_that_they_may() {
    let metadata = metadata();
    let allowed: BTreeMap<&str, &[&str]> = MAY_USE.iter().copied().collect();
    let mut wrong = Vec::new();
    for package in metadata.workspace_packages() {
        if is_test_crate(&package.name) {
            continue;
        }
        let Some(may_use) = allowed.get(package.name.as_str()) else {
            wrong.push(format!("{} has no row in MAY_USE", package.name));
            continue;
        };
        let ours = direct(package).into_iter().filter(|name| name.starts_with("buildyard"));
        wrong.extend(
            ours.filter(|name| !may_use.contains(name)).map(|name| format!("{} uses {name}", package.name)),
        );
    }
    assert!(wrong.is_empty(), "forbidden arrows: {wrong:#?}");
}

#[test]
fn pure_crates_know_nothing_that_waits() {
    let metadata = metadata();
    let packages = metadata.workspace_packages();
    for name in PURE {
        let package = packages.iter().find(|package| package.name == *name).expect("a pure crate exists");
        let found: Vec<_> =
            closure(&metadata, package).into_iter().filter(|name| IMPURE.contains(name)).collect();
        assert!(found.is_empty(), "{name} pulls in {found:?}");
    }
}

#[test]
fn a_library_with_an_owner_is_known_to_its_owner_alone() {
    let metadata = metadata();
    for (library, owners) in OWNERS {
        let users: Vec<_> = metadata
            .workspace_packages()
            .into_iter()
            .filter(|package| direct(package).contains(library) && !is_test_crate(&package.name))
            .map(|package| package.name.to_string())
            .collect();
        assert!(users.iter().all(|user| owners.contains(&user.as_str())), "{library} is used by {users:?}");
    }
}

#[test]
fn nothing_of_openssl_or_aws_lc_is_in_the_tree() {
    let metadata = metadata();
    let found: Vec<_> = metadata
        .packages
        .iter()
        .map(|package| package.name.as_str())
        .filter(|name| BANNED.contains(name))
        .collect();
    assert!(found.is_empty(), "{found:?}");
}

#[test]
fn every_dependency_has_a_licence_that_we_accept() {
    let metadata = metadata();
    let acceptable = |expression: &str| {
        // `A OR B`: one side must do. `A AND B`: both. Old crates write a slash for OR.
        let expression = expression.replace('/', " OR ").replace(['(', ')'], "");
        expression
            .split(" OR ")
            .any(|side| side.split(" AND ").all(|licence| LICENCES.contains(&licence.trim())))
    };
    let wrong: Vec<_> = metadata
        .packages
        .iter()
        .filter(|package| !package.license.as_deref().is_some_and(acceptable))
        .map(|package| format!("{}: {:?}", package.name, package.license))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn every_crate_inherits_the_lints() {
    for package in metadata().workspace_packages() {
        let text = std::fs::read_to_string(&package.manifest_path).expect("a manifest is readable");
        let section = text.split("[lints]").nth(1).unwrap_or_default();
        assert!(
            section.trim_start().starts_with("workspace = true"),
            "{} does not inherit the lints",
            package.name
        );
    }
}

#[test]
fn the_map_names_every_crate() {
    let map = std::fs::read_to_string(root().join("ARCHITECTURE.md")).expect("ARCHITECTURE.md is readable");
    for package in metadata().workspace_packages() {
        if !is_test_crate(&package.name) {
            assert!(
                map.contains(&format!("`{}`", package.name)),
                "ARCHITECTURE.md does not name {}",
                package.name
            );
        }
    }
}
