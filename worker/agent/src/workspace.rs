//! The folders of an attempt that are its to write: workspace, home and /tmp, under one hard cap.
//!
//! A sparse file with an ext4 inside, mounted by loop: on hosts without quotas it is the only cap on bytes and
//! inodes that a job cannot argue with. Where loop mounts are not to be had, plain folders that are watched.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use buildyard_types::{AttemptId, ByteSize};

use crate::engine::{ContainerDetails, Mount, Owner};

/// Where a job finds its checkout.
pub const WORKSPACE: &str = "/workspace";
/// Where a job finds its home.
pub const HOME: &str = "/home/build";

/// How the size of workspaces is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskCap {
    /// By a file system of its own.
    Hard,
    /// By counting every now and then.
    Watched,
}

/// Why a workspace could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum WorkspaceError {
    /// A file or folder could not be handled.
    #[error("could not {action} {path}")]
    Io {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A system tool said no.
    #[error("could not {action} {path}: {message}")]
    Tool {
        /// What was attempted.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the tool said.
        message: String,
    },
}

/// What is used of a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUsage {
    /// Bytes in use.
    pub bytes: u64,
    /// Bytes that can be used.
    pub bytes_limit: u64,
    /// Files and folders in use.
    pub inodes: u64,
    /// Files and folders that can be made.
    pub inodes_limit: u64,
}

/// What a sweep took away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Swept {
    /// Attempts whose workspace was removed.
    pub removed: Vec<String>,
    /// What could not be removed, and why.
    pub failed: Vec<String>,
}

/// The workspaces of one worker, at `<data>/attempts/<attempt>/disk`.
#[derive(Debug, Clone)]
pub struct Workspaces {
    attempts: PathBuf,
    cap: DiskCap,
}

/// The workspace of one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workspace {
    disk: PathBuf,
    limit: ByteSize,
    cap: DiskCap,
}

impl Workspaces {
    /// Finds out whether loop mounts work here, and sees to the folder.
    pub async fn open(data_dir: &Path) -> Result<Self, WorkspaceError> {
        Ok(Self { attempts: data_dir.join("attempts"), cap: DiskCap::Hard })
    }

    /// How the size is held here.
    pub fn cap(&self) -> DiskCap {
        self.cap
    }

    /// Makes an empty workspace. One that is left of an earlier try is removed first.
    pub async fn make(
        &self,
        _attempt: AttemptId,
        _owner: Owner,
        _disk: ByteSize,
    ) -> Result<Workspace, WorkspaceError> {
        unimplemented!("{:?}", self.attempts)
    }

    /// The workspace of an attempt as an earlier process of this worker left it; `None` if it is not there or not
    /// mounted.
    pub async fn adopt(
        &self,
        _attempt: AttemptId,
        _disk: ByteSize,
    ) -> Result<Option<Workspace>, WorkspaceError> {
        unimplemented!()
    }

    /// Takes a workspace away. One that does not exist is fine. Containers that use it must be gone before.
    pub async fn remove(&self, _attempt: AttemptId) -> Result<(), WorkspaceError> {
        unimplemented!()
    }

    /// Takes away what belongs to none of the attempts named: mounts, loop devices, files.
    pub async fn sweep(&self, _keep: &BTreeSet<AttemptId>) -> Result<Swept, WorkspaceError> {
        unimplemented!()
    }
}

impl Workspace {
    /// The checkout, on the host. Owned by the job's user.
    pub fn workspace(&self) -> PathBuf {
        self.disk.join("workspace")
    }

    /// The home, on the host. Owned by the job's user.
    pub fn home(&self) -> PathBuf {
        self.disk.join("home")
    }

    /// How its size is held.
    pub fn cap(&self) -> DiskCap {
        self.cap
    }

    /// The mounts of the container: workspace, home and /tmp.
    pub fn mounts(&self) -> Vec<Mount> {
        let mount = |folder: &str, target: &str| Mount {
            source: self.disk.join(folder),
            target: target.to_owned(),
            read_only: false,
        };
        vec![mount("workspace", WORKSPACE), mount("home", HOME), mount("tmp", "/tmp")]
    }

    /// What is used of it. Blocks on the file system.
    pub fn usage(&self) -> Result<DiskUsage, WorkspaceError> {
        unimplemented!("{}", self.limit)
    }
}

impl DiskUsage {
    /// Whether a write of the job will have failed for lack of room.
    pub fn is_full(&self) -> bool {
        self.bytes >= self.bytes_limit || self.inodes >= self.inodes_limit
    }
}

/// Watches the folder that takes what a container writes outside its mounts.
#[derive(Debug)]
pub struct RootWatch {
    roots: Vec<PathBuf>,
    limit: ByteSize,
}

/// What a look at a container's root found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootUsage {
    /// Within the limit as far as was seen.
    Within {
        /// Bytes of the last whole look, where there was one.
        bytes: Option<u64>,
    },
    /// More than the limit.
    Over {
        /// Bytes counted so far; there may be more.
        bytes: u64,
    },
}

impl RootWatch {
    /// Watches what a container writes outside its mounts; `None` if it is not known where that goes.
    pub fn of(container: &ContainerDetails, limit: ByteSize) -> Option<Self> {
        let upper = container.upper_dir.clone()?;
        Some(Self { roots: [vec![upper], container.other_dirs.clone()].concat(), limit })
    }

    /// Looks once, with bounded work: a large root takes several calls. Call it about once a second, on a thread
    /// that may block.
    pub fn look(&mut self) -> RootUsage {
        unimplemented!("{:?} {}", self.roots, self.limit)
    }
}
