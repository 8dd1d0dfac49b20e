//! How large a pipeline file and its parts may be. Whoever pushes a commit writes the file, so every part that
//! costs the farm memory or time has a bound, and each bound says why it is where it is.

/// Largest file that is read. Real pipelines are a few KiB; a larger one is generated or an attack.
pub const MAX_FILE_BYTES: usize = 1024 * 1024;
/// Most pipeline files of one commit. Each becomes a run of its own.
pub const MAX_PIPELINE_FILES: usize = 100;
/// Most words, strings and signs of a file. Bounds the memory of reading to a few times that of the file.
pub(crate) const MAX_TOKENS: usize = 200_000;
/// Deepest nesting of `[` and `{`. Real files need four; the reader's recursion is bounded by it.
pub(crate) const MAX_NESTING: u32 = 16;
/// Most parts of a dotted key. `jobs.test.steps.env.NAME` has five.
pub(crate) const MAX_KEY_PARTS: usize = 16;
/// Most mistakes that are shown at once. Nobody reads the hundred-and-first before mending the first.
pub const MAX_DIAGNOSTICS: usize = 100;
/// Longest source line that a diagnostic carries, in characters. A longer one is left out of the frame.
pub(crate) const MAX_SHOWN_LINE: usize = 1_000;
/// Longest word of the file that a message repeats, in characters.
pub(crate) const MAX_SHOWN_WORD: usize = 64;

/// Most jobs of one pipeline. The scheduler keeps each in memory until its run ends.
pub const MAX_JOBS: usize = 1_000;
/// Largest sum of the jobs of one pipeline, as JSON. Each job gets its own copy of `[defaults]`, so that a file of
/// 100 KiB could become 64 MiB in the database, in the scheduler's memory and in every answer about the run.
pub const MAX_PIPELINE_BYTES: usize = 8 * 1024 * 1024;
/// Most steps of one job.
pub const MAX_STEPS: usize = 200;
/// Most jobs that one job may need.
pub const MAX_NEEDS: usize = 200;
/// Most artifacts of one job.
pub const MAX_ARTIFACTS: usize = 50;
/// Most globs of one artifact.
pub const MAX_GLOBS: usize = 100;
/// Most variables of one `env` table.
pub const MAX_ENV_VARIABLES: usize = 200;
/// Largest `env` table: names and values together. Defaults, job and step add up to at most three of these, a
/// tenth of what Linux hands to a new process.
pub const MAX_ENV_BYTES: usize = 64 * 1024;
/// Longest script. The shell gets it as one argument, of which Linux takes 128 KiB; longer ones belong in a
/// file of the repository.
pub const MAX_SCRIPT_BYTES: usize = 64 * 1024;
/// Longest name of a pipeline, job or artifact. They stand in container names, URLs and commit statuses.
pub const MAX_NAME_BYTES: usize = 64;
/// Longest name of a step. It is only shown.
pub const MAX_STEP_NAME_CHARS: usize = 100;
/// Longest image name; the engine's own limit is 255 for the name and 128 for the tag.
pub const MAX_IMAGE_BYTES: usize = 512;
/// Longest path or glob. Linux takes 4,096 with the folder before it.
pub const MAX_PATH_BYTES: usize = 1_024;
