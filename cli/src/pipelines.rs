//! The pipeline files of a checkout, read and compiled as the coordinator does it.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use buildyard_pipelines::{FOLDER, MAIN_FILE, check_count, compile, pipeline_files};
use buildyard_types::job::{Diagnostic, Pipeline};

use crate::exit::{CliError, Result};

/// Far above what a pipeline file may hold; a larger one is not even read to be refused.
const READ_LIMIT_BYTES: u64 = 16 << 20;

/// One file and what the compiler says of it.
pub(crate) struct Compiled {
    /// As the user or the repository names it.
    pub(crate) file: String,
    /// The pipeline, or every mistake.
    pub(crate) result: std::result::Result<Pipeline, Vec<Diagnostic>>,
}

/// Whether a link is followed to the file. The farm reads commits, in which a link is no pipeline file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Links {
    Follow,
    Refuse,
}

/// Compiles the pipeline files of a checkout: `pipeline.toml` and `.buildyard/*.toml`.
pub(crate) fn compile_checkout(root: &Path) -> Result<Vec<Compiled>> {
    let files = files_of(root)?;
    if files.is_empty() {
        let none = CliError::usage(format!("{} holds no pipeline.toml", root.display()));
        return Err(match root.join(MAIN_FILE).is_symlink() {
            true => none
                .hint("the one there is a link, which the farm does not follow: put the file itself there"),
            false => {
                none.hint("two lines make one: `[jobs.test]` with an `image`, and `run = \"make test\"`")
            }
        });
    }
    check_count(&files).map_err(|error| CliError::usage(error.to_string()))?;
    files.into_iter().map(|file| compile_one(&root.join(&file), file, Links::Refuse)).collect()
}

/// Compiles a file that the user named, under the name that is shown.
pub(crate) fn compile_file(path: &Path, shown: String) -> Result<Compiled> {
    compile_one(path, shown, Links::Follow)
}

fn compile_one(path: &Path, shown: String, links: Links) -> Result<Compiled> {
    let bytes = read(path, links)?;
    let result = compile(&shown, &bytes);
    Ok(Compiled { file: shown, result })
}

fn files_of(root: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    let is_plain = |path: &Path| path.symlink_metadata().is_ok_and(|found| found.is_file());
    if is_plain(&root.join(MAIN_FILE)) {
        paths.push(MAIN_FILE.to_owned());
    }
    // Without the slash at its end, behind which a link to a folder would be one.
    let folder: PathBuf = root.join(FOLDER.trim_end_matches('/'));
    if folder.is_symlink() {
        return Ok(pipeline_files(paths.iter().map(String::as_str)));
    }
    match std::fs::read_dir(&folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(CliError::file("list", &folder, error)),
        Ok(entries) => {
            for entry in entries {
                let entry = entry.map_err(|error| CliError::file("list", &folder, error))?;
                // A name that is no UTF-8 cannot be one of a pipeline: it would have no name in the API.
                if let (true, Ok(name)) = (is_plain(&entry.path()), entry.file_name().into_string()) {
                    paths.push(format!("{FOLDER}{name}"));
                }
            }
        }
    }
    Ok(pipeline_files(paths.iter().map(String::as_str)))
}

fn read(path: &Path, links: Links) -> Result<Vec<u8>> {
    let cannot = |error| CliError::file("read", path, error);
    let mut options = std::fs::OpenOptions::new();
    if links == Links::Refuse {
        options.custom_flags(libc::O_NOFOLLOW);
    }
    let file = options.read(true).open(path).map_err(cannot)?;
    let length = file.metadata().map_err(cannot)?.len();
    if length > READ_LIMIT_BYTES {
        return Err(CliError::usage(format!(
            "{} has {length} bytes; that is no pipeline file",
            path.display()
        )));
    }
    let mut bytes = Vec::new();
    file.take(READ_LIMIT_BYTES).read_to_end(&mut bytes).map_err(cannot)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_link_is_no_pipeline_file_as_on_the_farm() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        std::fs::write(at("real.toml"), "[jobs.a]\nimage = \"debian:12\"\nrun = \"true\"\n").unwrap();
        std::fs::create_dir(at("real")).unwrap();
        std::fs::copy(at("real.toml"), at("real/inner.toml")).unwrap();
        symlink("real.toml", at("pipeline.toml")).unwrap();
        symlink("real", at(".buildyard")).unwrap();
        let Err(error) = compile_checkout(root.path()) else { panic!("links were followed") };
        assert!(error.hint.unwrap().contains("link"));
        std::fs::remove_file(at(".buildyard")).unwrap();
        std::fs::create_dir(at(".buildyard")).unwrap();
        symlink("../real.toml", at(".buildyard/linked.toml")).unwrap();
        std::fs::copy(at("real.toml"), at(".buildyard/plain.toml")).unwrap();
        let files: Vec<String> =
            compile_checkout(root.path()).unwrap().into_iter().map(|one| one.file).collect();
        assert_eq!(files, [".buildyard/plain.toml"]);
        // Who names a file means what it leads to.
        assert!(compile_file(&at("pipeline.toml"), "x".into()).unwrap().result.is_ok());
    }
}
