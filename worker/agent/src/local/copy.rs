//! A copy of somebody's checkout as it stands: tracked and unignored files, with what is not committed yet, and a
//! `.git` at the same commit.
//!
//! Git runs as the checkout's owner, so that neither its configuration nor its hooks run as root. Files are read
//! without following links on the way.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Output;

use async_trait::async_trait;
use buildyard_types::job::CheckoutSpec;
use buildyard_types::worker::SourceRef;
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, openat, readlinkat, statat};

use super::source_ref;
use crate::engine::Owner;
use crate::executor::Source;
use crate::source::{self, Origin, SourceError, is_commit_id, run_as_owner};

/// Most files of a checkout.
const MAX_FILES: usize = 1_000_000;
/// The commit of a checkout without commits.
const NO_COMMIT: &str = "0000000000000000000000000000000000000000";

/// Why a folder cannot be copied as a checkout.
#[derive(Debug, thiserror::Error)]
pub enum CheckoutError {
    /// It is no git repository, or git will not say.
    #[error("{} is not in a git repository: {message}", folder.display())]
    NoRepository {
        /// The folder.
        folder: PathBuf,
        /// What git said.
        message: String,
    },
    /// Git could not be run.
    #[error("git could not be run in {}; install it (apt-get install git)", folder.display())]
    Git {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Somebody's checkout.
#[derive(Debug, Clone)]
pub struct Checkout {
    root: PathBuf,
    git_dir: PathBuf,
    owner: Owner,
    source: SourceRef,
    has_commit: bool,
    spec: CheckoutSpec,
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).trim_end_matches('\n').to_owned()
}

fn path(bytes: &[u8]) -> PathBuf {
    let bytes = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

impl Checkout {
    /// Finds the checkout that a folder lies in. Blocks on git.
    pub fn find(folder: &Path) -> Result<Self, CheckoutError> {
        let git = |arguments: &[&str]| {
            run_as_owner(folder, arguments)
                .map_err(|source| CheckoutError::Git { folder: folder.to_owned(), source })
        };
        let top = git(&["rev-parse", "--show-toplevel"])?;
        if !top.status.success() {
            let message = String::from_utf8_lossy(&top.stderr).trim().to_owned();
            return Err(CheckoutError::NoRepository { folder: folder.to_owned(), message });
        }
        let root = path(&top.stdout);
        let common = git(&["rev-parse", "--path-format=absolute", "--git-common-dir"])?;
        let head = text(&git(&["rev-parse", "--verify", "--quiet", "HEAD"])?);
        let has_commit = is_commit_id(&head);
        let branch = git(&["symbolic-ref", "--quiet", "HEAD"])?;
        let ref_name = Some(text(&branch)).filter(|name| !name.is_empty());
        let owner = fs::metadata(&root)
            .map(|found| Owner { uid: found.uid(), gid: found.gid() })
            .map_err(|source| CheckoutError::Git { folder: root.clone(), source })?;
        let commit = if has_commit { head } else { NO_COMMIT.to_owned() };
        Ok(Self {
            git_dir: path(&common.stdout),
            owner,
            source: source_ref(&root, commit, ref_name),
            root,
            has_commit,
            spec: CheckoutSpec { depth: None, tags: true },
        })
    }

    /// The same checkout with as much history as a job asks for.
    pub(super) fn with_history(&self, spec: &CheckoutSpec) -> Self {
        Self { spec: spec.clone(), ..self.clone() }
    }

    /// Its top folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whose it is.
    pub fn owner(&self) -> Owner {
        self.owner
    }

    /// Its commit and branch.
    pub fn source(&self) -> &SourceRef {
        &self.source
    }

    /// Tracked and unignored files, below the top folder.
    fn files(&self) -> Result<Vec<PathBuf>, SourceError> {
        let doing = "list the files of the checkout";
        let arguments = ["ls-files", "-z", "--cached", "--others", "--exclude-standard", "--deduplicate"];
        let output = run_as_owner(&self.root, &arguments).map_err(SourceError::NoGit)?;
        if !output.status.success() {
            let message = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            return Err(SourceError::Git { doing, message });
        }
        let names = output.stdout.split(|byte| *byte == 0).filter(|name| !name.is_empty());
        let files: Vec<PathBuf> =
            names.map(|name| PathBuf::from(std::ffi::OsStr::from_bytes(name))).collect();
        if files.len() > MAX_FILES {
            return Err(SourceError::Git { doing, message: format!("it has more than {MAX_FILES} files") });
        }
        Ok(files)
    }

    /// Copies every file. Blocks.
    fn copy(&self, workspace: &Path, owner: Owner) -> Result<(), SourceError> {
        let fail = |path: &Path| {
            let path = path.to_owned();
            move |source| SourceError::Io { doing: "copy", path, source }
        };
        let open = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = openat(CWD, &self.root, open, Mode::empty());
        let root = root.map_err(|error| fail(&self.root)(error.into()))?;
        for file in self.files()? {
            copy_one(&root, &file, workspace, owner).map_err(fail(&self.root.join(&file)))?;
        }
        Ok(())
    }
}

/// Opens the folder of a file, through folders only.
fn folder_of(root: &OwnedFd, file: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut folder = openat(root, ".", flags, Mode::empty())?;
    for part in file.parent().unwrap_or(Path::new("")) {
        folder = openat(&folder, part, flags, Mode::empty())?;
    }
    Ok(folder)
}

fn make_folders(workspace: &Path, file: &Path, owner: Owner) -> io::Result<()> {
    let mut path = workspace.to_owned();
    for part in file.parent().unwrap_or(Path::new("")) {
        path.push(part);
        match fs::DirBuilder::new().mode(0o755).create(&path) {
            Ok(()) => std::os::unix::fs::lchown(&path, Some(owner.uid), Some(owner.gid))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn copy_one(root: &OwnedFd, file: &Path, workspace: &Path, owner: Owner) -> io::Result<()> {
    let Some(name) = file.file_name() else { return Ok(()) };
    // Deleted, and not committed yet.
    let folder = match folder_of(root, file) {
        Ok(folder) => folder,
        Err(error) if is_absent(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    let stat = match statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(error) if is_absent(&error.into()) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let target = workspace.join(file);
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => {
            make_folders(workspace, file, owner)?;
            let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let mut from = File::from(openat(&folder, name, flags, Mode::empty())?);
            let mode = if stat.st_mode & 0o100 != 0 { 0o755 } else { 0o644 };
            let mut to = fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&target)?;
            io::copy(&mut from, &mut to)?;
            to.set_permissions(fs::Permissions::from_mode(mode))?;
            std::os::unix::fs::fchown(&to, Some(owner.uid), Some(owner.gid))
        }
        FileType::Symlink => {
            make_folders(workspace, file, owner)?;
            let link = readlinkat(&folder, name, Vec::new())?;
            std::os::unix::fs::symlink(std::ffi::OsStr::from_bytes(link.as_bytes()), &target)?;
            std::os::unix::fs::lchown(&target, Some(owner.uid), Some(owner.gid))
        }
        // A submodule or another repository in this one; the farm leaves them empty too.
        FileType::Directory => Ok(()),
        FileType::Fifo
        | FileType::Socket
        | FileType::CharacterDevice
        | FileType::BlockDevice
        | FileType::Unknown => Ok(()),
    }
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

#[async_trait]
impl Source for Checkout {
    async fn fetch(&self) -> Result<(), SourceError> {
        Ok(())
    }

    async fn fill(&self, workspace: &Path, owner: Owner) -> Result<(), SourceError> {
        if self.has_commit {
            let checkout = source::Checkout { source: &self.source, spec: &self.spec, owner };
            source::transfer_history(
                Origin { git_dir: &self.git_dir, owner: self.owner },
                workspace,
                checkout,
            )
            .await?;
        }
        let (this, workspace) = (self.clone(), workspace.to_owned());
        let copied = tokio::task::spawn_blocking(move || this.copy(&workspace, owner)).await;
        copied.unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()))
    }
}
