//! Which files of a commit are pipelines.

use crate::limits::MAX_PIPELINE_FILES;

/// The pipeline file at the root of a repository.
pub const MAIN_FILE: &str = "pipeline.toml";
/// The folder of further pipeline files.
pub const FOLDER: &str = ".buildyard/";

/// A commit holds more pipeline files than are read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the commit holds {found} pipeline files; at most {MAX_PIPELINE_FILES} are read")]
pub struct TooManyPipelines {
    /// How many there are.
    pub found: usize,
}

/// The pipeline files among the paths of a commit: `pipeline.toml` first, then `.buildyard/*.toml` by name. Each
/// is a pipeline, and each pipeline a run of its own. Subfolders, names that begin with a dot and names with control
/// characters are left alone.
/// Before runs are made of them, [`check_count`] says whether there are too many.
pub fn pipeline_files<'p>(paths: impl IntoIterator<Item = &'p str>) -> Vec<String> {
    let mut found: Vec<&str> = paths.into_iter().filter(|path| is_pipeline(path)).collect();
    found.sort_by_key(|path| (*path != MAIN_FILE, *path));
    found.dedup();
    found.into_iter().map(str::to_owned).collect()
}

/// Refuses a commit whose pipeline files would make more runs than one push may.
///
/// # Errors
///
/// If there are more than [`MAX_PIPELINE_FILES`].
pub fn check_count(files: &[String]) -> Result<(), TooManyPipelines> {
    if files.len() > MAX_PIPELINE_FILES { Err(TooManyPipelines { found: files.len() }) } else { Ok(()) }
}

/// Whether a path of a repository is that of a pipeline file.
pub fn is_pipeline(path: &str) -> bool {
    let in_folder = path.strip_prefix(FOLDER).and_then(|name| name.strip_suffix(".toml"));
    // The name stands in sentences and logs, where a line end would begin a forged line.
    let strange = |name: &str| name.contains(|c: char| c == '/' || c.is_control());
    path == MAIN_FILE
        || in_folder.is_some_and(|name| !name.is_empty() && !name.starts_with('.') && !strange(name))
}

/// A file's name without folder and ending, which is the pipeline's name where none is written.
pub(crate) fn stem(path: &str) -> &str {
    let name = path.rsplit('/').next().unwrap_or(path);
    name.strip_suffix(".toml").unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipeline_files_are_found_in_order() {
        let paths = [
            ".buildyard/nightly.toml",
            "src/pipeline.toml",
            ".buildyard/docs/deep.toml",
            ".buildyard/.hidden.toml",
            ".buildyard/x\nERROR forged.toml",
            ".buildyard/\x1b[2J.toml",
            ".buildyard/.toml",
            ".buildyard/notes.md",
            "pipeline.toml",
            ".buildyard/docs.toml",
            "pipeline.toml.orig",
        ];
        assert_eq!(
            pipeline_files(paths),
            ["pipeline.toml", ".buildyard/docs.toml", ".buildyard/nightly.toml"]
        );
        assert!(pipeline_files(["README.md"]).is_empty());
    }

    #[test]
    fn too_many_are_refused_and_counted() {
        let paths: Vec<String> = (0..101).map(|number| format!(".buildyard/{number}.toml")).collect();
        let files = pipeline_files(paths.iter().map(String::as_str));
        assert_eq!(check_count(&files), Err(TooManyPipelines { found: 101 }));
        assert_eq!(check_count(&files[..100]), Ok(()));
    }
}
