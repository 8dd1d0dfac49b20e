//! The pipeline files of a checkout, read and compiled as the coordinator does it.

use std::io::Read;
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

/// Compiles the pipeline files of a checkout: `pipeline.toml` and `.buildyard/*.toml`.
pub(crate) fn compile_checkout(root: &Path) -> Result<Vec<Compiled>> {
    let files = files_of(root)?;
    if files.is_empty() {
        return Err(CliError::usage(format!("{} holds no pipeline.toml", root.display()))
            .hint("two lines make one: `[jobs.test]` with an `image`, and `run = \"make test\"`"));
    }
    check_count(&files).map_err(|error| CliError::usage(error.to_string()))?;
    files.into_iter().map(|file| compile_file(&root.join(&file), file)).collect()
}

/// Compiles one file under the name that is shown.
pub(crate) fn compile_file(path: &Path, shown: String) -> Result<Compiled> {
    let bytes = read(path)?;
    let result = compile(&shown, &bytes);
    Ok(Compiled { file: shown, result })
}

fn files_of(root: &Path) -> Result<Vec<String>> {
    let mut paths = Vec::new();
    if root.join(MAIN_FILE).is_file() {
        paths.push(MAIN_FILE.to_owned());
    }
    let folder: PathBuf = root.join(FOLDER);
    match std::fs::read_dir(&folder) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => return Err(CliError::file("list", &folder, error)),
        Ok(entries) => {
            for entry in entries {
                let entry = entry.map_err(|error| CliError::file("list", &folder, error))?;
                // A name that is no UTF-8 cannot be one of a pipeline: it would have no name in the API.
                if let (true, Ok(name)) = (entry.path().is_file(), entry.file_name().into_string()) {
                    paths.push(format!("{FOLDER}{name}"));
                }
            }
        }
    }
    Ok(pipeline_files(paths.iter().map(String::as_str)))
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let cannot = |error| CliError::file("read", path, error);
    let file = std::fs::File::open(path).map_err(cannot)?;
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
