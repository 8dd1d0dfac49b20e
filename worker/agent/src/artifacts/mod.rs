//! Finds the files that a job wants kept, and hands them on.
//!
//! The job is dead by then, but what it left behind is hostile all the same: no link is followed, nothing but
//! regular files is opened, every folder is entered through the one above it, and counts and bytes are bounded.

pub mod glob;

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use buildyard_types::job::ArtifactSpec;
use buildyard_types::size::rounded;
use buildyard_types::worker::{ArtifactFile, ArtifactManifest};
use buildyard_types::{ByteSize, Millis};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, openat, statat};
use sha2::{Digest as _, Sha256};
use tokio::time::sleep;

use crate::backoff::Backoff;
use crate::client::{ArtifactStore, ClientError};
use glob::{PatternError, Patterns, Progress};

/// Deepest folder that is looked into.
const MAX_DEPTH: usize = 128;
/// Files and folders that are looked at for one artifact.
const MAX_ENTRIES: usize = 1_000_000;
/// Notes about single files of one artifact; more of them say nothing more.
const MAX_NOTES: usize = 10;
/// Characters of a path that a note shows. A job can make paths of 32 KiB.
const MAX_SHOWN_CHARS: usize = 200;

/// How much one attempt may keep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArtifactLimits {
    /// Files of one artifact.
    pub files: usize,
    /// Bytes of all artifacts together.
    pub bytes: ByteSize,
}

impl Default for ArtifactLimits {
    /// Enough for the packages of a large project; a mistaken `**` over a build tree is cut.
    fn default() -> Self {
        Self { files: 10_000, bytes: ByteSize::from_gib(2) }
    }
}

/// Why artifacts were not kept.
#[derive(Debug, thiserror::Error)]
pub enum ArtifactError {
    /// The job's own doing: nothing was found where something is required, or too much.
    #[error("{0}")]
    Job(String),
    /// A pattern cannot be read.
    #[error("artifact `{name}`")]
    Pattern {
        /// The artifact.
        name: String,
        /// What is wrong.
        #[source]
        source: PatternError,
    },
    /// The workspace could not be read.
    #[error("could not read {} for artifact `{name}`", path.display())]
    Io {
        /// The artifact.
        name: String,
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The coordinator did not take it.
    #[error("artifact `{name}` could not be handed over")]
    Store {
        /// The artifact.
        name: String,
        /// Why.
        #[source]
        source: ClientError,
    },
}

/// A file that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Below the workspace.
    pub path: String,
    /// Its length.
    pub size: u64,
    /// Whether its owner may execute it.
    pub executable: bool,
}

/// What is kept of one attempt.
#[derive(Debug)]
pub struct Collection {
    root: OwnedFd,
    artifacts: Vec<(String, Millis, Vec<Found>)>,
    /// What was left out and why, in sentences.
    pub notes: Vec<String>,
}

impl Collection {
    /// Names of the artifacts with the files that were found.
    pub fn artifacts(&self) -> impl Iterator<Item = (&str, &[Found])> {
        self.artifacts.iter().map(|(name, _, files)| (name.as_str(), files.as_slice()))
    }
}

/// Looks for the files of all artifacts. Blocks on the file system.
pub fn collect(
    workspace: &Path,
    specs: &[ArtifactSpec],
    limits: ArtifactLimits,
) -> Result<Collection, ArtifactError> {
    let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let root = openat(CWD, workspace, open, Mode::empty()).map_err(|error| ArtifactError::Io {
        name: specs.first().map(|spec| spec.name.clone()).unwrap_or_default(),
        path: workspace.to_owned(),
        source: error.into(),
    })?;
    let mut collection = Collection { root, artifacts: Vec::new(), notes: Vec::new() };
    let mut bytes = 0;
    for spec in specs {
        let patterns = Patterns::new(&spec.paths)
            .map_err(|source| ArtifactError::Pattern { name: spec.name.clone(), source })?;
        let mut walk = Walk::new(&spec.name, &patterns, limits);
        let start = patterns.start();
        walk.folder(collection.root.as_fd(), &start, 0)?;
        bytes += walk.found.iter().map(|file| file.size).sum::<u64>();
        if bytes > limits.bytes.0 {
            return Err(ArtifactError::Job(format!(
                "the artifacts hold {} up to artifact `{}`; a job may keep {}",
                rounded(bytes),
                spec.name,
                limits.bytes
            )));
        }
        let (mut files, notes) = (walk.found, walk.notes);
        collection.notes.extend(notes);
        if files.is_empty() {
            let sentence = format!("artifact `{}`: no file matches {}", spec.name, spec.paths.join(" "));
            if spec.required {
                return Err(ArtifactError::Job(sentence));
            }
            collection.notes.push(sentence);
            continue;
        }
        files.sort_by(|a, b| a.path.cmp(&b.path));
        collection.artifacts.push((spec.name.clone(), spec.keep_ms, files));
    }
    Ok(collection)
}

/// Notes that a file of an artifact is left out, if there is room for it.
fn note(notes: &mut Vec<String>, name: &str, what: &str, why: &str) {
    if notes.len() < MAX_NOTES {
        notes.push(format!("artifact `{name}`: `{}` is left out: {why}", shortened(what)));
    }
}

/// Both ends of a path: where it begins, and the name that it is about.
fn shortened(path: &str) -> Cow<'_, str> {
    let chars = path.chars().count();
    if chars <= MAX_SHOWN_CHARS {
        return path.into();
    }
    let half = MAX_SHOWN_CHARS / 2;
    let start: String = path.chars().take(half).collect();
    let end: String = path.chars().skip(chars - half).collect();
    format!("{start}…{end}").into()
}

struct Walk<'w> {
    name: &'w str,
    patterns: &'w Patterns,
    limits: ArtifactLimits,
    /// Names from the workspace down to here, with a `/` behind each.
    path: String,
    found: Vec<Found>,
    notes: Vec<String>,
    entries: usize,
}

impl<'w> Walk<'w> {
    fn new(name: &'w str, patterns: &'w Patterns, limits: ArtifactLimits) -> Self {
        let (path, found, notes) = (String::new(), Vec::new(), Vec::new());
        Self { name, patterns, limits, path, found, notes, entries: 0 }
    }

    fn note(&mut self, what: &str, why: &str) {
        note(&mut self.notes, self.name, what, why);
    }

    fn folder(
        &mut self,
        folder: std::os::fd::BorrowedFd<'_>,
        at: &Progress,
        depth: usize,
    ) -> Result<(), ArtifactError> {
        let entries = Dir::read_from(folder).map_err(|error| self.io_error(error.into()))?;
        for entry in entries {
            let entry = entry.map_err(|error| self.io_error(error.into()))?;
            if matches!(entry.file_name().to_bytes(), b"." | b"..") {
                continue;
            }
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(ArtifactError::Job(format!(
                    "artifact `{}`: its patterns lead through more than {MAX_ENTRIES} files; name the folder that \
                     holds the artifact",
                    self.name
                )));
            }
            let Ok(name) = entry.file_name().to_str() else {
                if self.patterns.may_take_below(at) {
                    let shown = entry.file_name().to_string_lossy();
                    self.note(&format!("{}{shown}", self.path), "its name is no UTF-8");
                }
                continue;
            };
            // The coordinator takes no list with such a name in it, since it could not be shown or unpacked safely.
            if name.contains(|c: char| c.is_control() || c == '\\') {
                if self.patterns.may_take_below(at) {
                    let shown = format!("{}{}", self.path, name.escape_debug());
                    self.note(&shown, "its name holds control characters or a backslash");
                }
                continue;
            }
            // The job's own history is an artifact only for who asks for it by name.
            if depth == 0 && name == ".git" {
                continue;
            }
            self.entry(folder, name, &self.patterns.step(at, name), depth)?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        folder: std::os::fd::BorrowedFd<'_>,
        name: &str,
        at: &Progress,
        depth: usize,
    ) -> Result<(), ArtifactError> {
        let taken = self.patterns.takes(at);
        if !taken && !self.patterns.may_take_below(at) {
            return Ok(());
        }
        let path = format!("{}{name}", self.path);
        let stat = match statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(error) => {
                self.note(&path, &io::Error::from(error).to_string());
                return Ok(());
            }
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory if depth >= MAX_DEPTH => self.note(&path, "it lies too deep"),
            FileType::Directory => {
                let open = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let below = openat(folder, name, open, Mode::empty());
                let below = below.map_err(|error| self.io_error(error.into()))?;
                let length = self.path.len();
                self.path.push_str(name);
                self.path.push('/');
                self.folder(below.as_fd(), at, depth + 1)?;
                self.path.truncate(length);
            }
            FileType::RegularFile if taken => {
                if self.found.len() == self.limits.files {
                    return Err(ArtifactError::Job(format!(
                        "artifact `{}` has more than {} files; pack them into one",
                        self.name, self.limits.files
                    )));
                }
                let size = stat.st_size as u64;
                self.found.push(Found { path, size, executable: stat.st_mode & 0o100 != 0 });
            }
            FileType::RegularFile => {}
            FileType::Symlink if taken => self.note(&path, "it is a link"),
            FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown
                if taken =>
            {
                self.note(&path, "it is no regular file");
            }
            FileType::Symlink
            | FileType::Fifo
            | FileType::Socket
            | FileType::CharacterDevice
            | FileType::BlockDevice
            | FileType::Unknown => {}
        }
        Ok(())
    }

    fn io_error(&self, source: io::Error) -> ArtifactError {
        ArtifactError::Io { name: self.name.to_owned(), path: PathBuf::from(&self.path), source }
    }
}

/// Opens a file below the workspace again, through folders only.
fn open_below(root: &OwnedFd, path: &str) -> io::Result<File> {
    let mut folder: Option<OwnedFd> = None;
    let (above, name) = path.rsplit_once('/').map_or(("", path), |(above, name)| (above, name));
    for part in above.split('/').filter(|part| !part.is_empty()) {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let from = folder.as_ref().unwrap_or(root);
        folder = Some(openat(from, part, flags, Mode::empty())?);
    }
    // A named pipe in its place must not hold up the worker.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(openat(folder.as_ref().unwrap_or(root), name, flags, Mode::empty())?);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "no regular file"))
    }
}

fn hash(file: &mut File) -> io::Result<(String, u64)> {
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 128 * 1024];
    let mut size = 0;
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok((format!("{:x}", hash.finalize()), size)),
            count => {
                hash.update(&buffer[..count]);
                size += count as u64;
            }
        }
    }
}

/// Finds and hands over everything. Gives what was left out, in sentences.
pub async fn keep_all(
    workspace: &Path,
    specs: &[ArtifactSpec],
    limits: ArtifactLimits,
    store: &dyn ArtifactStore,
) -> Result<Vec<String>, ArtifactError> {
    let (folder, list) = (workspace.to_owned(), specs.to_owned());
    let found = tokio::task::spawn_blocking(move || collect(&folder, &list, limits)).await;
    let mut collection = found.map_err(|error| ArtifactError::Io {
        name: specs.first().map(|spec| spec.name.clone()).unwrap_or_default(),
        path: workspace.to_owned(),
        source: io::Error::other(error),
    })??;
    keep(&mut collection, store).await?;
    Ok(collection.notes)
}

/// Hands everything over: each file's content under its hash, then the lists.
pub async fn keep(collection: &mut Collection, store: &dyn ArtifactStore) -> Result<(), ArtifactError> {
    for (name, keep_ms, files) in &collection.artifacts {
        let mut kept = Vec::with_capacity(files.len());
        let mut notes = Vec::new();
        for found in files {
            let fail =
                |source| ArtifactError::Io { name: name.clone(), path: PathBuf::from(&found.path), source };
            let opened =
                open_below(&collection.root, &found.path).and_then(|file| Ok((file.try_clone()?, file)));
            let (again, mut file) = match opened {
                Ok(files) => files,
                Err(error) => {
                    note(&mut notes, name, &found.path, &error.to_string());
                    continue;
                }
            };
            let hashed = tokio::task::spawn_blocking(move || hash(&mut file)).await;
            let (sha256, size) = hashed.map_err(io::Error::other).and_then(|hashed| hashed).map_err(fail)?;
            put_blob(store, name, &sha256, size, &again).await?;
            kept.push(ArtifactFile { path: found.path.clone(), size, sha256, executable: found.executable });
        }
        collection.notes.extend(notes);
        let manifest = ArtifactManifest { files: kept, keep_ms: *keep_ms };
        let mut backoff = Backoff::default();
        loop {
            match store.put_manifest(name, &manifest).await {
                Ok(()) => break,
                Err(error) if error.is_temporary() => sleep(backoff.next()).await,
                Err(source) => return Err(ArtifactError::Store { name: name.clone(), source }),
            }
        }
    }
    Ok(())
}

async fn put_blob(
    store: &dyn ArtifactStore,
    name: &str,
    sha256: &str,
    size: u64,
    file: &File,
) -> Result<(), ArtifactError> {
    let mut backoff = Backoff::default();
    loop {
        let file = file.try_clone().and_then(|mut file| io::Seek::rewind(&mut file).map(|()| file));
        let file =
            file.map_err(|source| ArtifactError::Io { name: name.to_owned(), path: sha256.into(), source })?;
        match store.put_blob(sha256, size, file).await {
            Ok(()) => return Ok(()),
            Err(error) if error.is_temporary() => sleep(backoff.next()).await,
            Err(source) => return Err(ArtifactError::Store { name: name.to_owned(), source }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use std::collections::BTreeMap;
    use std::fs;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::sync::Mutex;

    fn spec(name: &str, paths: &[&str], required: bool) -> ArtifactSpec {
        let paths = paths.iter().map(|path| (*path).to_owned()).collect();
        ArtifactSpec { name: name.into(), paths, required, keep_ms: Millis(1) }
    }

    fn workspace(files: &[(&str, &str)]) -> tempfile::TempDir {
        let temp = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = temp.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        temp
    }

    fn paths(collection: &Collection) -> Vec<(String, Vec<String>)> {
        let paths = |files: &[Found]| files.iter().map(|file| file.path.clone()).collect();
        collection.artifacts().map(|(name, files)| (name.to_owned(), paths(files))).collect()
    }

    /// Keeps what is handed over; the first calls fail.
    #[derive(Default)]
    struct Kept {
        failing: Mutex<u32>,
        blobs: Mutex<BTreeMap<String, Vec<u8>>>,
        manifests: Mutex<BTreeMap<String, ArtifactManifest>>,
    }

    impl Kept {
        fn fail(&self) -> Result<(), ClientError> {
            let mut failing = self.failing.lock().unwrap();
            if *failing == 0 {
                return Ok(());
            }
            *failing -= 1;
            Err(ClientError::Unavailable { doing: "keep", detail: "away".into() })
        }
    }

    #[async_trait]
    impl ArtifactStore for Kept {
        async fn put_blob(&self, sha256: &str, size: u64, mut file: File) -> Result<(), ClientError> {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            self.fail()?;
            assert_eq!(bytes.len() as u64, size);
            self.blobs.lock().unwrap().insert(sha256.to_owned(), bytes);
            Ok(())
        }

        async fn put_manifest(&self, name: &str, manifest: &ArtifactManifest) -> Result<(), ClientError> {
            self.fail()?;
            self.manifests.lock().unwrap().insert(name.to_owned(), manifest.clone());
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn files_reach_the_store_under_their_hash() {
        let temp = workspace(&[("out/a", "same"), ("out/b", "same"), ("out/c/d", "other"), ("src/x", "no")]);
        fs::set_permissions(temp.path().join("out/b"), fs::Permissions::from_mode(0o755)).unwrap();
        let specs = [spec("bin", &["out/**"], true), spec("none", &["nothing/*"], false)];
        let mut collection = collect(temp.path(), &specs, ArtifactLimits::default()).unwrap();
        let store = Kept { failing: Mutex::new(3), ..Kept::default() };
        keep(&mut collection, &store).await.unwrap();

        let manifests = store.manifests.lock().unwrap();
        let files = &manifests["bin"].files;
        let found: Vec<_> =
            files.iter().map(|file| (file.path.as_str(), file.size, file.executable)).collect();
        assert_eq!(found, [("out/a", 4, false), ("out/b", 4, true), ("out/c/d", 5, false)]);
        assert_eq!(store.blobs.lock().unwrap()[&files[2].sha256], b"other");
        assert_eq!(files[0].sha256, files[1].sha256);
        assert_eq!(manifests.len(), 1);
        assert_eq!(collection.notes, ["artifact `none`: no file matches nothing/*"]);
    }

    #[test]
    fn links_devices_and_history_are_left_out() {
        let temp = workspace(&[("out/a", "a"), (".git/config", "x"), ("secret/key", "k")]);
        symlink("/etc/passwd", temp.path().join("out/link")).unwrap();
        symlink("/etc", temp.path().join("etc")).unwrap();
        symlink("../secret", temp.path().join("out/loop")).unwrap();
        let pipe = temp.path().join("out/pipe");
        rustix::fs::mknodat(CWD, &pipe, FileType::Fifo, Mode::RWXU, 0).unwrap();
        let specs = [spec("all", &["**", "!secret"], true)];
        let collection = collect(temp.path(), &specs, ArtifactLimits::default()).unwrap();
        assert_eq!(paths(&collection), [("all".to_owned(), vec!["out/a".to_owned()])]);
        assert_eq!(collection.notes.len(), 4, "{:?}", collection.notes);
        for (path, from) in [("etc/passwd", &collection.root), ("out/pipe", &collection.root)] {
            assert!(open_below(from, path).is_err(), "{path}");
        }
    }

    #[test]
    fn notes_about_a_deep_tree_of_links_are_short_and_few() {
        let temp = tempfile::tempdir().unwrap();
        let mut at = openat(CWD, temp.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        for _ in 0..100 {
            let name = "d".repeat(250);
            rustix::fs::mkdirat(&at, name.as_str(), Mode::RWXU).unwrap();
            at = openat(&at, name.as_str(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).unwrap();
        }
        for number in 0..50 {
            rustix::fs::symlinkat("/etc/passwd", &at, format!("link{number}")).unwrap();
        }
        let specs: Vec<_> = (0..50).map(|number| spec(&format!("a{number}"), &["**"], false)).collect();
        let collection = collect(temp.path(), &specs, ArtifactLimits::default()).unwrap();
        assert!(collection.notes[0].contains("ddd…ddd"), "{}", collection.notes[0]);
        assert!(collection.notes[0].ends_with("is left out: it is a link"), "{}", collection.notes[0]);
        let mut report = crate::testing::report(buildyard_types::Outcome::Passed);
        report.notes = collection.notes;
        assert!(report.notes.iter().map(String::len).sum::<usize>() < 256 * 1024);
        report.cut_down();
        assert!(serde_json::to_vec(&report).unwrap().len() < 64 * 1024);
    }

    #[test]
    fn names_that_cannot_be_listed_are_left_out() {
        let temp = workspace(&[("out/a", "a"), ("out/b\nc", "b"), ("out/d\\e", "d")]);
        let specs = [spec("all", &["out/**"], true)];
        let collection = collect(temp.path(), &specs, ArtifactLimits::default()).unwrap();
        assert_eq!(paths(&collection), [("all".to_owned(), vec!["out/a".to_owned()])]);
        assert!(collection.notes.len() == 2 && collection.notes.iter().all(|note| !note.contains('\n')));
    }

    #[test]
    fn a_workspace_that_is_a_link_is_not_entered() {
        let temp = workspace(&[("real/a", "a")]);
        symlink(temp.path().join("real"), temp.path().join("w")).unwrap();
        let specs = [spec("all", &["**"], true)];
        let error = collect(&temp.path().join("w"), &specs, ArtifactLimits::default()).unwrap_err();
        assert!(matches!(error, ArtifactError::Io { .. }), "{error}");
    }

    #[test]
    fn what_the_job_did_wrong_is_the_jobs() {
        let temp = workspace(&[("out/a", "12345"), ("out/b", "12345")]);
        let limits = |files, bytes| ArtifactLimits { files, bytes: ByteSize(bytes) };
        for (specs, limits, says) in [
            (spec("bin", &["nothing/*"], true), limits(10, 100), "no file matches nothing/*"),
            (spec("bin", &["out/*"], false), limits(1, 100), "more than 1 files"),
            (spec("bin", &["out/*"], false), limits(10, 9), "10 B"),
        ] {
            match collect(temp.path(), &[specs], limits) {
                Err(ArtifactError::Job(sentence)) => assert!(sentence.contains(says), "{sentence}"),
                other => panic!("{other:?}"),
            }
        }
    }
}
