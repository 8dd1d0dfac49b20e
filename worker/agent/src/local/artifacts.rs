//! Artifacts of local jobs: files in a folder.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use buildyard_types::worker::ArtifactManifest;

use crate::client::{ArtifactStore, ClientError};
use crate::engine::Owner;

/// Puts each artifact into a folder of its name, in the place of what was there.
///
/// It is written by root into a folder that the job's repository may have prepared, links included. So everything
/// is first made in a fresh folder of our own, and only renamed into place.
pub(super) struct Folder {
    folder: Option<PathBuf>,
    owner: Owner,
    parts: Mutex<Option<PathBuf>>,
}

fn failed(path: &Path, source: io::Error) -> ClientError {
    ClientError::File { path: path.to_owned(), source }
}

impl Folder {
    /// A folder for artifacts that will belong to this owner; without one they are dropped.
    pub(super) fn new(folder: Option<PathBuf>, owner: Owner) -> Self {
        Self { folder, owner, parts: Mutex::new(None) }
    }

    /// The fresh folder, made at its first use.
    fn parts(&self, folder: &Path) -> io::Result<PathBuf> {
        let mut parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(parts) = &*parts {
            return Ok(parts.clone());
        }
        match fs::DirBuilder::new().mode(0o755).create(folder) {
            Ok(()) => self.own(folder)?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                if !fs::symlink_metadata(folder)?.is_dir() {
                    return Err(io::Error::new(io::ErrorKind::NotADirectory, "no folder, or a link to one"));
                }
            }
            Err(error) => return Err(error),
        }
        let made = tempfile::Builder::new().prefix(".buildyard-").tempdir_in(folder)?.keep();
        *parts = Some(made.clone());
        Ok(made)
    }

    fn own(&self, path: &Path) -> io::Result<()> {
        std::os::unix::fs::lchown(path, Some(self.owner.uid), Some(self.owner.gid))
    }

    fn make_dirs(&self, root: &Path, below: &Path) -> io::Result<()> {
        let mut path = root.to_owned();
        for part in below {
            path.push(part);
            match fs::DirBuilder::new().mode(0o755).create(&path) {
                Ok(()) => self.own(&path)?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn place(&self, folder: &Path, name: &str, manifest: &ArtifactManifest) -> io::Result<()> {
        let parts = self.parts(folder)?;
        let made = parts.join(format!("artifact-{name}"));
        fs::DirBuilder::new().mode(0o755).create(&made)?;
        self.own(&made)?;
        for file in &manifest.files {
            let target = made.join(&file.path);
            self.make_dirs(&made, Path::new(&file.path).parent().unwrap_or(Path::new("")))?;
            // Two files of one content are two files.
            fs::copy(parts.join(&file.sha256), &target)?;
            let mode = if file.executable { 0o755 } else { 0o644 };
            fs::set_permissions(&target, fs::Permissions::from_mode(mode))?;
            self.own(&target)?;
        }
        let target = folder.join(name);
        match fs::symlink_metadata(&target) {
            Ok(there) if there.is_dir() => fs::remove_dir_all(&target)?,
            Ok(_) => fs::remove_file(&target)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
        fs::rename(made, target)
    }

    /// Removes the fresh folder.
    pub(super) fn close(self) -> io::Result<()> {
        match self.parts.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some(parts) => fs::remove_dir_all(parts),
            None => Ok(()),
        }
    }
}

#[async_trait]
impl ArtifactStore for Folder {
    async fn put_blob(&self, sha256: &str, _: u64, mut file: File) -> Result<(), ClientError> {
        let Some(folder) = &self.folder else { return Ok(()) };
        let parts = self.parts(folder).map_err(|error| failed(folder, error))?;
        let path = parts.join(sha256);
        let target = path.clone();
        let copied = tokio::task::spawn_blocking(move || {
            let mut target = File::create(target)?;
            io::copy(&mut file, &mut target)
        });
        let copied = copied.await.map_err(io::Error::other).and_then(|copied| copied);
        copied.map(drop).map_err(|error| failed(&path, error))
    }

    async fn put_manifest(&self, name: &str, manifest: &ArtifactManifest) -> Result<(), ClientError> {
        let Some(folder) = &self.folder else { return Ok(()) };
        self.place(folder, name, manifest).map_err(|error| failed(&folder.join(name), error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildyard_types::Millis;
    use buildyard_types::worker::ArtifactFile;

    fn me() -> Owner {
        Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
    }

    async fn keep(folder: &Path, name: &str, files: &[(&str, &str)]) -> Result<(), ClientError> {
        let store = Folder::new(Some(folder.to_owned()), me());
        let mut list = Vec::new();
        for (path, text) in files {
            let source = folder.with_extension("source");
            fs::write(&source, text).unwrap();
            let sha256 = format!("{:064x}", text.len());
            store.put_blob(&sha256, text.len() as u64, File::open(source).unwrap()).await?;
            let executable = path.ends_with(".sh");
            list.push(ArtifactFile { path: (*path).into(), size: text.len() as u64, sha256, executable });
        }
        store.put_manifest(name, &ArtifactManifest { files: list, keep_ms: Millis(1) }).await?;
        store.close().map_err(|error| failed(folder, error))
    }

    #[tokio::test]
    async fn an_artifact_replaces_the_one_before() {
        let temp = tempfile::tempdir().unwrap();
        let out = temp.path().join("out");
        keep(&out, "bin", &[("old", "x")]).await.unwrap();
        keep(&out, "bin", &[("a/b/c.sh", "same"), ("d", "same")]).await.unwrap();
        assert_eq!(fs::read_to_string(out.join("bin/a/b/c.sh")).unwrap(), "same");
        assert_eq!(fs::metadata(out.join("bin/a/b/c.sh")).unwrap().permissions().mode() & 0o777, 0o755);
        assert_eq!(fs::metadata(out.join("bin/d")).unwrap().permissions().mode() & 0o777, 0o644);
        assert!(!out.join("bin/old").exists());
        assert_eq!(fs::read_dir(&out).unwrap().count(), 1, "nothing else stays");
    }

    #[tokio::test]
    async fn links_lead_nowhere() {
        let temp = tempfile::tempdir().unwrap();
        let (out, precious) = (temp.path().join("out"), temp.path().join("precious"));
        for folder in [&out, &precious] {
            fs::create_dir(folder).unwrap();
        }
        std::os::unix::fs::symlink(&precious, out.join("bin")).unwrap();
        keep(&out, "bin", &[("a", "x")]).await.unwrap();
        assert_eq!(fs::read_dir(&precious).unwrap().count(), 0);
        assert!(out.join("bin/a").is_file() && !fs::symlink_metadata(out.join("bin")).unwrap().is_symlink());

        let link = temp.path().join("link");
        std::os::unix::fs::symlink(&precious, &link).unwrap();
        keep(&link, "bin", &[("a", "x")]).await.unwrap_err();
        assert_eq!(fs::read_dir(&precious).unwrap().count(), 0);
    }
}
