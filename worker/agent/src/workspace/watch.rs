//! Counting what an attempt writes where no file system of its own caps it.
//!
//! The tree that is counted belongs to a job that may be changing it, or fighting the count. So every folder is opened
//! beneath its root without following links or crossing into another file system, each look does a bounded amount of
//! work and goes on where the last one stopped, and what cannot be counted counts as too much.

use std::ffi::{CString, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use buildyard_types::ByteSize;
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use super::{DiskCap, Workspace, image_file};
use crate::engine::ContainerDetails;
use crate::host::{self, Room};

/// Entries that one look counts: about 30 ms of work.
const ENTRIES_PER_LOOK: usize = 20_000;
/// Folders that may wait for their turn. A job with more of them has more inodes than any limit allows.
const MAX_PENDING: usize = 200_000;

/// Watches what a container writes where nothing else caps it: its own root, the volumes of its image, and the
/// workspace where that has no file system of its own.
#[derive(Debug)]
pub struct DiskWatch {
    roots: Vec<PathBuf>,
    limit: Used,
    walk: Option<Walk>,
    /// What the last whole round counted.
    last: Option<Used>,
    budget: usize,
}

/// What was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Used {
    bytes: u64,
    /// Files and folders, by their names: an empty one takes no byte, but an inode of the host.
    entries: u64,
}

impl Used {
    fn exceeds(self, limit: Used) -> bool {
        self.bytes > limit.bytes || self.entries > limit.entries
    }

    /// Whether this is what leaves a file system without room for the host and for others.
    fn crowds_out(self, room: Room) -> bool {
        (room.is_low_on_bytes() && self.bytes > room.free.0)
            || (room.is_low_on_inodes() && self.entries > room.inodes_free)
    }
}

/// What a look found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootUsage {
    /// Within the limit as far as was seen.
    Within {
        /// Bytes of the last whole round, where there was one.
        bytes: Option<u64>,
    },
    /// More than the limit, or built so that it cannot be counted.
    Over {
        /// Bytes counted so far; there may be more.
        bytes: u64,
    },
    /// Within the limit, and yet the host runs out of room by it.
    HostFull,
}

/// One round over all roots.
#[derive(Debug)]
struct Walk {
    /// A root's number and a folder below it.
    pending: Vec<(usize, PathBuf)>,
    used: Used,
}

/// What one folder did to the count.
enum Step {
    Counted,
    Uncountable,
}

impl DiskWatch {
    /// Watches a container and its workspace.
    pub fn new(container: &ContainerDetails, workspace: &Workspace) -> Self {
        let mut roots = container.other_dirs.clone();
        roots.extend(container.upper_dir.clone());
        match workspace.cap {
            DiskCap::Hard => {}
            DiskCap::Watched => roots.push(workspace.disk.clone()),
        }
        Self::over(roots, workspace.limit)
    }

    fn over(roots: Vec<PathBuf>, limit: ByteSize) -> Self {
        // As many files as a workspace of that size has room for.
        let limit = Used { bytes: limit.0, entries: image_file::inodes(limit.0) };
        Self { roots, limit, walk: None, last: None, budget: ENTRIES_PER_LOOK }
    }

    /// Looks once, with bounded work: a large tree takes several calls for a round. Call it about once a second, on a
    /// thread that may block.
    pub fn look(&mut self) -> RootUsage {
        let rooms = self.roots.iter().filter_map(|root| host::room(root).ok()).collect::<Vec<_>>();
        self.look_beside(&rooms)
    }

    /// A job may fill the host faster than it is counted, so the room that is left counts as well.
    fn look_beside(&mut self, rooms: &[Room]) -> RootUsage {
        let start = || Walk {
            pending: (0..self.roots.len()).map(|root| (root, PathBuf::new())).collect(),
            used: Used::default(),
        };
        let mut walk = self.walk.take().unwrap_or_else(start);
        let mut budget = self.budget;
        while let Some((root, folder)) = walk.pending.pop() {
            let step = walk.count(&self.roots, root, &folder, &mut budget);
            if matches!(step, Step::Uncountable)
                || walk.used.exceeds(self.limit)
                || walk.pending.len() > MAX_PENDING
            {
                return RootUsage::Over { bytes: walk.used.bytes };
            }
            if budget == 0 {
                break;
            }
        }
        let used = walk.used;
        if rooms.iter().any(|room| used.crowds_out(*room)) {
            return RootUsage::HostFull;
        }
        if walk.pending.is_empty() {
            self.last = Some(used);
        } else {
            self.walk = Some(walk);
        }
        RootUsage::Within { bytes: self.last.map(|used| used.bytes) }
    }
}

impl Walk {
    /// Counts the entries of one folder and puts its folders on the list. A folder is counted whole, so that no place
    /// in the middle of it has to be kept; one with more entries than a look may count uses up the look.
    fn count(&mut self, roots: &[PathBuf], root: usize, folder: &Path, budget: &mut usize) -> Step {
        let opened = match open_beneath(&roots[root], folder) {
            Ok(opened) => opened,
            // Deeper than a path can be: no build needs that, and nothing in there could be counted.
            Err(Errno::NAMETOOLONG) => return Step::Uncountable,
            // Gone meanwhile, a link by now, or another file system's: nothing of ours to count.
            Err(_) => return Step::Counted,
        };
        let Ok(entries) = rustix::fs::Dir::read_from(&opened) else { return Step::Counted };
        for entry in entries.flatten() {
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            *budget = budget.saturating_sub(1);
            self.used.entries += 1;
            let Ok(found) = rustix::fs::statat(&opened, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            // A file with several names is counted in parts, one part for each of them.
            let blocks = u64::try_from(found.st_blocks).unwrap_or(0);
            let names = u64::from(found.st_nlink.max(1) as u32);
            if FileType::from_raw_mode(found.st_mode) == FileType::Directory {
                self.used.bytes = self.used.bytes.saturating_add(blocks * 512);
                self.pending.push((root, folder.join(OsStr::from_bytes(name.to_bytes()))));
            } else {
                self.used.bytes = self.used.bytes.saturating_add(blocks * 512 / names);
            }
            if self.pending.len() > MAX_PENDING {
                return Step::Uncountable;
            }
        }
        Step::Counted
    }
}

/// Opens a folder below a root such that no link on the way, put there in the wrong moment, leads anywhere else.
fn open_beneath(root: &Path, folder: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let root = rustix::fs::open(root, flags, Mode::empty())?;
    if folder.as_os_str().is_empty() {
        return Ok(root);
    }
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_XDEV
        | ResolveFlags::NO_MAGICLINKS;
    let path = CString::new(folder.as_os_str().as_bytes()).map_err(|_| Errno::INVAL)?;
    rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(root: &Path, limit: u64) -> DiskWatch {
        DiskWatch::over(vec![root.to_owned()], ByteSize(limit))
    }

    fn write(path: &Path, bytes: usize) {
        std::fs::write(path, vec![1; bytes]).expect("a file can be written");
    }

    #[test]
    fn a_tree_is_counted_and_its_limit_noticed() {
        let tree = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(tree.path().join("a/b")).expect("folders");
        write(&tree.path().join("a/b/x"), 100_000);
        let RootUsage::Within { bytes: Some(bytes) } = watch(tree.path(), 1 << 20).look() else {
            panic!("small trees are counted at once");
        };
        assert!((100_000..200_000).contains(&bytes), "{bytes}");
        write(&tree.path().join("a/y"), 1 << 20);
        assert!(matches!(watch(tree.path(), 1 << 20).look(), RootUsage::Over { bytes } if bytes > 1 << 20));
    }

    #[test]
    fn empty_files_count_as_files() {
        let tree = tempfile::tempdir().expect("a folder");
        let mut watch = watch(tree.path(), 1 << 20);
        let inodes = watch.limit.entries;
        for number in 0..inodes {
            write(&tree.path().join(number.to_string()), 0);
        }
        assert!(matches!(watch.look(), RootUsage::Within { bytes: Some(_) }));
        write(&tree.path().join("one more"), 0);
        assert!(matches!(watch.look(), RootUsage::Over { .. }));
    }

    #[test]
    fn a_job_that_fills_the_host_is_told_from_one_over_its_limit() {
        let gib = 1 << 30;
        let room = |free: u64, inodes_free: u64| Room {
            free: ByteSize(free),
            whole: ByteSize(100 * gib),
            inodes_free,
            inodes: 6_000_000,
        };
        let tree = tempfile::tempdir().expect("a folder");
        for number in 0..100 {
            write(&tree.path().join(number.to_string()), 10_000);
        }
        let mut watch = watch(tree.path(), 50 * gib);
        for (room, full) in [
            (room(50 * gib, 3_000_000), false),
            // Others fill it, not this one.
            (room(100 << 20, 3_000_000), false),
            (room(50 * gib, 1_000), false),
            (room(100_000, 3_000_000), true),
            (room(50 * gib, 90), true),
            // A file system without a fixed number of inodes.
            (Room { inodes: 0, ..room(50 * gib, 0) }, false),
        ] {
            let found = watch.look_beside(&[room]);
            assert_eq!(matches!(found, RootUsage::HostFull), full, "{room:?}: {found:?}");
        }
    }

    #[test]
    fn links_lead_nowhere() {
        let tree = tempfile::tempdir().expect("a folder");
        let elsewhere = tempfile::tempdir().expect("a folder");
        write(&elsewhere.path().join("big"), 1 << 20);
        std::os::unix::fs::symlink(elsewhere.path(), tree.path().join("link")).expect("a link");
        assert!(matches!(watch(tree.path(), 100_000).look(), RootUsage::Within { bytes: Some(_) }));
        // Nor does a folder that became a link after it was put on the list.
        let through = open_beneath(tree.path(), Path::new("link"));
        assert!(through.is_err());
        let out = open_beneath(tree.path(), Path::new("../"));
        assert!(out.is_err());
    }

    #[test]
    fn a_look_does_bounded_work_and_the_next_goes_on() {
        let tree = tempfile::tempdir().expect("a folder");
        for number in 0..10 {
            let folder = tree.path().join(number.to_string());
            std::fs::create_dir(&folder).expect("a folder");
            write(&folder.join("x"), 10_000);
        }
        let mut watch = watch(tree.path(), 1 << 30);
        watch.budget = 4;
        assert_eq!(watch.look(), RootUsage::Within { bytes: None }, "the first look does not get through");
        let mut looks = 1;
        let bytes = loop {
            looks += 1;
            if let RootUsage::Within { bytes: Some(bytes) } = watch.look() {
                break bytes;
            }
        };
        assert!(bytes >= 100_000 && (3..=12).contains(&looks), "{bytes} bytes in {looks} looks");
    }

    #[test]
    fn what_is_too_deep_to_count_counts_as_too_much() {
        let tree = tempfile::tempdir().expect("a folder");
        let mut at =
            rustix::fs::open(tree.path(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty()).expect("open");
        let name = "d".repeat(200);
        for _ in 0..30 {
            rustix::fs::mkdirat(&at, name.as_str(), Mode::RWXU).expect("mkdir");
            at = rustix::fs::openat(&at, name.as_str(), OFlags::RDONLY | OFlags::DIRECTORY, Mode::empty())
                .expect("open");
        }
        let mut watch = watch(tree.path(), 1 << 30);
        assert!(matches!(watch.look(), RootUsage::Over { .. }));
        super::super::remove_tree(tree.path()).expect("and it can be removed all the same");
        assert!(!tree.path().exists());
    }

    #[test]
    fn holes_and_second_names_do_not_count() {
        let tree = tempfile::tempdir().expect("a folder");
        let sparse = std::fs::File::create(tree.path().join("sparse")).expect("a file");
        sparse.set_len(1 << 40).expect("a long file");
        write(&tree.path().join("one"), 100_000);
        for number in 0..9 {
            std::fs::hard_link(tree.path().join("one"), tree.path().join(number.to_string()))
                .expect("a second name");
        }
        let RootUsage::Within { bytes: Some(bytes) } = watch(tree.path(), 1 << 30).look() else {
            panic!("within")
        };
        assert!(bytes < 300_000, "{bytes}");
    }
}
