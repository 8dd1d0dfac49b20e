//! Writing below a folder whose content somebody else may have prepared. Artifacts are fetched by whoever may read
//! the farm, often by root, often into a checkout, and a repository can hold `artifacts/test/bin -> /root/.ssh`.
//! So every part below the folder is opened without following links.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, mkdirat, openat, renameat, unlinkat};
use rustix::io::Errno;

/// A folder that is written below.
#[derive(Debug)]
pub(crate) struct Beneath {
    folder: OwnedFd,
}

/// Whether the folder itself may be a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Root {
    /// The user named it, and knows what it is.
    Named,
    /// It has its usual name, so that whoever made the current folder may have made it too.
    Usual,
}

/// A file that has no name of its own yet. Dropped before [`Partial::keep`], it is gone; so an interrupt leaves
/// nothing either.
#[derive(Debug)]
pub(crate) struct Partial {
    folder: OwnedFd,
    name: String,
    is_kept: bool,
}

impl Beneath {
    /// Opens a folder, and makes it and those above it where they are missing.
    pub(crate) fn open(path: &Path, root: Root) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        let follow = match root {
            Root::Named => OFlags::empty(),
            Root::Usual => OFlags::NOFOLLOW,
        };
        Ok(Self { folder: openat(CWD, path, FOLDER | follow, Mode::empty())? })
    }

    /// The folder of this relative path, made where it is missing. No part of it may be a link.
    fn folder(&self, path: &Path) -> io::Result<OwnedFd> {
        let mut folder = self.folder.try_clone()?;
        for part in path {
            match mkdirat(&folder, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error.into()),
            }
            folder = openat(&folder, part, FOLDER | OFlags::NOFOLLOW, Mode::empty())?;
        }
        Ok(folder)
    }

    /// Makes a folder of this relative path, which must not lead through a link.
    pub(crate) fn make(&self, path: &Path) -> io::Result<()> {
        self.folder(path).map(drop)
    }

    /// Begins a file in the folder of this relative path.
    pub(crate) fn begin(&self, folder: &Path, executable: bool) -> io::Result<(Partial, File)> {
        let folder = self.folder(folder)?;
        let name = format!(".buildyard-{:016x}.part", rand::random::<u64>());
        let mode = Mode::from_raw_mode(if executable { 0o755 } else { 0o644 });
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(&folder, &name, flags, mode)?;
        Ok((Partial { folder, name, is_kept: false }, file.into()))
    }
}

const FOLDER: OFlags = OFlags::DIRECTORY.union(OFlags::CLOEXEC);

impl Partial {
    /// Gives the file its name, in the place of a file or link of that name.
    pub(crate) fn keep(mut self, name: &str) -> io::Result<()> {
        renameat(&self.folder, &self.name, &self.folder, name)?;
        self.is_kept = true;
        Ok(())
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if !self.is_kept {
            // The error that is on its way out says more than a failed clean-up would.
            let _ = unlinkat(&self.folder, &self.name, AtFlags::empty());
        }
    }
}

/// Whether an error means that a link, or something else that is no folder, stands in the way.
pub(crate) fn is_link(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::LOOP | Errno::NOTDIR))
}

/// The folder of each of several runs: the pipeline's name, or what is unique of the run where two share it. One
/// run needs none.
pub(crate) fn folders<'r>(runs: &[(&'r str, &'r str)]) -> Vec<&'r Path> {
    let name_is_unique = |name: &str| runs.iter().filter(|(other, _)| *other == name).count() == 1;
    let folder = |(name, unique): &(&'r str, &'r str)| match runs.len() {
        1 => Path::new(""),
        _ if name_is_unique(name) => Path::new(*name),
        _ => Path::new(*unique),
    };
    runs.iter().map(folder).collect()
}

/// A path that stays below the folder it is joined to, by its words alone.
pub(crate) fn stays_below(path: &str) -> Option<PathBuf> {
    let inside = Path::new(path).components().all(|part| matches!(part, std::path::Component::Normal(_)));
    (!path.is_empty() && !path.contains('\0') && inside).then(|| path.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::os::unix::fs::symlink;

    use super::*;

    fn put(beneath: &Beneath, folder: &str, name: &str) -> io::Result<()> {
        let (partial, mut file) = beneath.begin(Path::new(folder), false)?;
        file.write_all(b"new")?;
        partial.keep(name)
    }

    #[test]
    fn no_link_below_the_folder_is_followed() {
        let place = tempfile::tempdir().unwrap();
        let (out, secret) = (place.path().join("out"), place.path().join("secret"));
        std::fs::create_dir_all(out.join("test")).unwrap();
        std::fs::create_dir(&secret).unwrap();
        std::fs::write(secret.join("keys"), "old").unwrap();
        symlink(&secret, out.join("test/bin")).unwrap();
        symlink(secret.join("keys"), out.join("test/file")).unwrap();
        let beneath = Beneath::open(&out, Root::Usual).unwrap();
        assert!(is_link(&put(&beneath, "test/bin", "keys").unwrap_err()));
        assert!(is_link(&put(&beneath, "test/bin/deeper", "keys").unwrap_err()));
        // A link in the place of the file itself makes way.
        put(&beneath, "test", "file").unwrap();
        assert_eq!(std::fs::read_to_string(out.join("test/file")).unwrap(), "new");
        assert_eq!(std::fs::read_to_string(secret.join("keys")).unwrap(), "old");
        assert_eq!(std::fs::read_dir(&secret).unwrap().count(), 1);
    }

    #[test]
    fn only_a_folder_that_was_named_may_be_a_link() {
        let place = tempfile::tempdir().unwrap();
        let link = place.path().join("artifacts");
        std::fs::create_dir(place.path().join("real")).unwrap();
        symlink("real", &link).unwrap();
        assert!(is_link(&Beneath::open(&link, Root::Usual).unwrap_err()));
        put(&Beneath::open(&link, Root::Named).unwrap(), "a", "b").unwrap();
        assert!(place.path().join("real/a/b").is_file());
    }

    #[test]
    fn a_file_that_is_not_kept_is_gone() {
        let place = tempfile::tempdir().unwrap();
        let beneath = Beneath::open(place.path(), Root::Usual).unwrap();
        drop(beneath.begin(Path::new(""), false).unwrap());
        assert_eq!(std::fs::read_dir(place.path()).unwrap().count(), 0);
    }

    #[test]
    fn several_runs_have_a_folder_each() {
        assert_eq!(folders(&[("a", "run-1")]), [Path::new("")]);
        let several = [("a", "run-1"), ("b", "run-2"), ("a", "run-3")];
        assert_eq!(folders(&several), ["run-1", "b", "run-3"].map(Path::new));
    }

    #[test]
    fn no_name_leaves_the_folder() {
        for path in ["out/deep/file", "a..b", "..."] {
            assert_eq!(stays_below(path).as_deref(), Some(Path::new(path)));
        }
        for path in ["", "/etc/shadow", "../x", "a/../../x", "./a", "a\0b"] {
            assert_eq!(stays_below(path), None, "{path}");
        }
    }
}
