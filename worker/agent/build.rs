//! Builds `buildyard-init` as a static program and hands its path to `init_binary.rs`, which takes it in.
//!
//! It has to run in any image, whatever libc that holds, so it cannot be an ordinary binary of the workspace.
//! The build is a cargo of its own with a target directory of its own: two cargos on one directory would wait
//! for each other.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What the outer build may have set for itself, and what would change the inner one: flags of the workspace's
/// own programs, another target directory (a deadlock on its lock), and clippy, which stands in for rustc and
/// leaves no program behind.
const NOT_INHERITED: [&str; 9] = [
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_BUILD_TARGET_DIR",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_MAKEFLAGS",
    "CARGO_TARGET_DIR",
    "MAKEFLAGS",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTFLAGS",
];

/// Small, because it is kept in the worker and mapped in every container; fast, because every byte of every log
/// goes through it.
const PROFILE: [(&str, &str); 6] = [
    ("OPT_LEVEL", "3"),
    ("LTO", "true"),
    ("CODEGEN_UNITS", "1"),
    ("PANIC", "abort"),
    ("STRIP", "true"),
    ("DEBUG", "false"),
];

fn main() {
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let init = manifest_dir.parent().expect("the worker is in a folder beside init").join("init");
    for path in ["src", "Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", init.join(path).display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    let program = build(&init, &PathBuf::from(variable("OUT_DIR")).join("init"));
    println!("cargo::rustc-env=BUILDYARD_INIT={}", program.display());
}

fn build(init: &Path, target_dir: &Path) -> PathBuf {
    let target = variable("TARGET");
    let mut cargo = Command::new(variable("CARGO"));
    for (name, _) in env::vars_os() {
        let name_text = name.to_string_lossy();
        let of_target = name_text.starts_with("CARGO_TARGET_") && name_text.ends_with("_RUSTFLAGS");
        if of_target || name_text.starts_with("CARGO_PROFILE_") || NOT_INHERITED.contains(&&*name_text) {
            cargo.env_remove(&name);
        }
    }
    for (key, value) in PROFILE {
        cargo.env(format!("CARGO_PROFILE_RELEASE_{key}"), value);
    }
    // `RUSTFLAGS` wins over every flag in configuration files. Frozen: the outer build has settled the lock file
    // and fetched what init needs, so this one works without a network and changes nothing.
    cargo
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .args(["build", "--release", "--frozen", "--quiet", "--bin", "buildyard-init"])
        .arg("--manifest-path")
        .arg(init.join("Cargo.toml"))
        .args(["--target", &target])
        .arg("--target-dir")
        .arg(target_dir);
    let status =
        cargo.status().unwrap_or_else(|error| panic!("could not run cargo for buildyard-init: {error}"));
    assert!(status.success(), "buildyard-init did not build for {target}: {status}");
    target_dir.join(target).join("release/buildyard-init")
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| panic!("cargo sets {name} for build scripts: {error}"))
}
