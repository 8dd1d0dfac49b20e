//! Objects on disk: log chunks and artifact contents. What was put is synced before the call returns, so that
//! a row which names an object never outlives it.

use std::io;
use std::path::{Path as FilePath, PathBuf};
use std::time::{Duration, SystemTime};

use buildyard_types::AttemptId;
use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt, TryStreamExt};
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt, PutPayload};
use sha2::{Digest, Sha256};

/// Parts in which an upload is written: large enough that a part is worth a system call.
const PART_BYTES: usize = 1 << 20;

/// Why an object cannot be kept or read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BlobError {
    /// The store of objects failed.
    #[error("cannot {doing} object {object}")]
    Store {
        /// What was attempted.
        doing: &'static str,
        /// On which object.
        object: String,
        /// What it said.
        #[source]
        source: object_store::Error,
    },
    /// The folder cannot be used.
    #[error("cannot use the folder {path} for objects")]
    Folder {
        /// Which.
        path: PathBuf,
        /// What it said.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The content came to an end too early, or was cut off.
    #[error("the content did not arrive whole: {0}")]
    Cut(String),
    /// The content is larger than allowed.
    #[error("the content is larger than {limit} bytes")]
    TooLarge {
        /// What is allowed.
        limit: u64,
    },
    /// The content is not what its name says.
    #[error("the content has the hash {found}, not {named}")]
    Mismatch {
        /// The hash of what arrived.
        found: String,
        /// The hash that was named.
        named: String,
    },
}

impl BlobError {
    /// Whether there is no such object.
    pub(crate) fn is_missing(&self) -> bool {
        matches!(self, BlobError::Store { source: object_store::Error::NotFound { .. }, .. })
    }
}

/// Hexadecimal text of a hash.
pub(crate) fn hex(hash: &[u8]) -> String {
    use std::fmt::Write;
    hash.iter().fold(String::with_capacity(hash.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// SHA-256 of bytes, in hexadecimal.
pub(crate) fn sha256_hex(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Whether a text is a SHA-256 in lower-case hexadecimal.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The objects.
#[derive(Debug)]
pub(crate) struct Blobs {
    root: PathBuf,
    files: LocalFileSystem,
}

fn failed(doing: &'static str, object: &Path) -> impl FnOnce(object_store::Error) -> BlobError {
    let object = object.to_string();
    move |source| BlobError::Store { doing, object, source }
}

fn content_path(sha256: &str) -> Path {
    // Two levels, so that no folder gets too large to list.
    Path::from(format!("artifacts/{}/{sha256}", &sha256[..2]))
}

impl Blobs {
    /// Opens the folder; it must exist.
    pub(crate) fn open(root: &FilePath) -> Result<Self, BlobError> {
        let files = LocalFileSystem::new_with_prefix(root)
            .map_err(|source| BlobError::Folder { path: root.to_owned(), source: Box::new(source) })?;
        Ok(Self { root: root.to_owned(), files: files.with_fsync(true) })
    }

    /// Keeps a part of a log under a name that follows from place and content, so that putting it again after
    /// a crash is harmless.
    pub(crate) async fn put_log(
        &self,
        attempt: AttemptId,
        offset: u64,
        sha256: &str,
        content: Bytes,
    ) -> Result<String, BlobError> {
        let path = Path::from(format!("logs/{attempt}/{offset:014}-{}", &sha256[..16]));
        self.files.put(&path, PutPayload::from_bytes(content)).await.map_err(failed("write", &path))?;
        Ok(path.to_string())
    }

    /// Begins an object of a log that is written in parts.
    pub(crate) async fn begin_log(&self, attempt: AttemptId, name: &str) -> Result<Upload, BlobError> {
        self.begin(Path::from(format!("logs/{attempt}/{name}"))).await
    }

    /// Bytes of an object.
    pub(crate) async fn read(&self, object: &str, from: u64, to: u64) -> Result<Bytes, BlobError> {
        let path = Path::from(object);
        self.files.get_range(&path, from..to).await.map_err(failed("read", &path))
    }

    /// Length of an artifact's content, if it is here.
    pub(crate) async fn content_length(&self, sha256: &str) -> Result<Option<u64>, BlobError> {
        let path = content_path(sha256);
        match self.files.head(&path).await {
            Ok(meta) => Ok(Some(meta.size)),
            Err(object_store::Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(failed("look up", &path)(error)),
        }
    }

    /// An artifact's content as a stream.
    pub(crate) async fn content(
        &self,
        sha256: &str,
    ) -> Result<impl Stream<Item = io::Result<Bytes>> + Send + use<>, BlobError> {
        let path = content_path(sha256);
        let found = self.files.get(&path).await.map_err(failed("read", &path))?;
        Ok(found.into_stream().map_err(io::Error::other))
    }

    /// Keeps an artifact's content under its hash. Nothing is kept if it turns out to be something else.
    pub(crate) async fn put_content<E: std::fmt::Display>(
        &self,
        sha256: &str,
        limit: u64,
        mut content: impl Stream<Item = Result<Bytes, E>> + Unpin,
    ) -> Result<u64, BlobError> {
        let mut upload = self.begin(content_path(sha256)).await?;
        let received = loop {
            match content.next().await {
                None => break Ok(()),
                Some(Err(error)) => break Err(BlobError::Cut(error.to_string())),
                Some(Ok(bytes)) if upload.length + bytes.len() as u64 > limit => {
                    break Err(BlobError::TooLarge { limit });
                }
                Some(Ok(bytes)) => {
                    if let Err(error) = upload.write(bytes).await {
                        break Err(error);
                    }
                }
            }
        };
        let found = hex(&upload.hash.clone().finalize());
        let checked = received.and_then(|()| {
            if found == sha256 {
                Ok(())
            } else {
                Err(BlobError::Mismatch { found, named: sha256.to_owned() })
            }
        });
        match checked {
            Ok(()) => upload.finish().await.map(|(length, _, _)| length),
            Err(error) => {
                upload.abort().await;
                Err(error)
            }
        }
    }

    async fn begin(&self, path: Path) -> Result<Upload, BlobError> {
        let parts = self.files.put_multipart(&path).await.map_err(failed("begin", &path))?;
        Ok(Upload { path, parts, hash: Sha256::new(), length: 0, waiting: BytesMut::new() })
    }

    /// Makes an artifact's content count as new, so that no sweeper takes it before it is named.
    pub(crate) async fn touch_content(&self, sha256: &str) -> Result<(), BlobError> {
        let path = self.root.join(content_path(sha256).as_ref());
        let touch =
            move || std::fs::File::options().append(true).open(&path)?.set_modified(SystemTime::now());
        let touched = tokio::task::spawn_blocking(touch).await.map_err(io::Error::other).flatten();
        touched.map_err(|source| BlobError::Folder { path: self.root.clone(), source: Box::new(source) })
    }

    /// Drops an artifact's content if it was not touched for `age`. Dropping it twice is fine.
    pub(crate) async fn delete_content_if_older(&self, sha256: &str, age: Duration) -> Result<(), BlobError> {
        let path = content_path(sha256);
        let meta = match self.files.head(&path).await {
            Ok(meta) => meta,
            Err(object_store::Error::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(failed("look up", &path)(error)),
        };
        let touched = SystemTime::from(meta.last_modified);
        // A time in the future is a clock that jumped; the content stays for now.
        let old = SystemTime::now().duration_since(touched).is_ok_and(|since| since >= age);
        if old { self.delete(path.as_ref()).await } else { Ok(()) }
    }

    /// Drops an object. Dropping it twice is fine.
    pub(crate) async fn delete(&self, object: &str) -> Result<(), BlobError> {
        let path = Path::from(object);
        match self.files.delete(&path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed("delete", &path)(error)),
        }
    }

    /// Files below a folder of this store that were not touched for `age`, as paths from the store's root,
    /// at most `limit`. Staged files that a crash left behind are among them.
    pub(crate) fn older_than(&self, folder: &str, age: Duration, limit: usize) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        let mut folders = vec![self.root.join(folder)];
        let now = SystemTime::now();
        while let Some(folder) = folders.pop() {
            let entries = match std::fs::read_dir(&folder) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            for entry in entries {
                let entry = entry?;
                let meta = match entry.metadata() {
                    Ok(meta) => meta,
                    // Dropped while we look.
                    Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                    Err(error) => return Err(error),
                };
                if meta.is_dir() {
                    folders.push(entry.path());
                } else if now.duration_since(meta.modified()?).is_ok_and(|old| old >= age)
                    && let Ok(path) = entry.path().strip_prefix(&self.root)
                    && let Some(path) = path.to_str()
                {
                    found.push(path.to_owned());
                    if found.len() >= limit {
                        return Ok(found);
                    }
                }
            }
        }
        Ok(found)
    }

    /// Removes a file that [`Blobs::older_than`] named, and its folder if that is empty then.
    pub(crate) fn remove_file(&self, path: &str) -> io::Result<()> {
        let path = self.root.join(path);
        match std::fs::remove_file(&path) {
            // Somebody else dropped it since it was named.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            removed => removed?,
        }
        if let Some(folder) = path.parent() {
            // Not empty is the usual case and no error.
            let _ = std::fs::remove_dir(folder);
        }
        Ok(())
    }

    /// Removes the folder of an attempt's log if nothing is in it any more.
    pub(crate) fn tidy_log_folder(&self, object: &str) {
        if let Some(folder) = self.root.join(object).parent() {
            let _ = std::fs::remove_dir(folder);
        }
    }
}

/// An object that is being written. It appears under its name only when it is finished.
pub(crate) struct Upload {
    path: Path,
    parts: Box<dyn MultipartUpload>,
    hash: Sha256,
    length: u64,
    waiting: BytesMut,
}

impl Upload {
    /// Adds bytes.
    pub(crate) async fn write(&mut self, bytes: Bytes) -> Result<(), BlobError> {
        self.hash.update(&bytes);
        self.length += bytes.len() as u64;
        self.waiting.extend_from_slice(&bytes);
        if self.waiting.len() >= PART_BYTES { self.flush().await } else { Ok(()) }
    }

    async fn flush(&mut self) -> Result<(), BlobError> {
        let part = PutPayload::from_bytes(self.waiting.split().freeze());
        self.parts.put_part(part).await.map_err(failed("write", &self.path))
    }

    /// Syncs the object and gives it its name. Gives length, hash and name.
    pub(crate) async fn finish(mut self) -> Result<(u64, String, String), BlobError> {
        if !self.waiting.is_empty() || self.length == 0 {
            self.flush().await?;
        }
        self.parts.complete().await.map_err(failed("finish", &self.path))?;
        Ok((self.length, hex(&self.hash.finalize()), self.path.to_string()))
    }

    /// Gives the object up.
    pub(crate) async fn abort(mut self) {
        if let Err(error) = self.parts.abort().await {
            // What is left of it is swept by age.
            tracing::warn!(object = %self.path, error = %error, "an unfinished object stays behind for now");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::stream;

    fn whole(bytes: &'static [u8]) -> impl Stream<Item = Result<Bytes, io::Error>> + Unpin {
        stream::iter(bytes.chunks(3).map(|part| Ok(Bytes::from_static(part))))
    }

    #[tokio::test]
    async fn content_is_kept_only_under_its_own_hash() {
        let temp = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(temp.path()).unwrap();
        let (good, other) = (sha256_hex(b"hello world"), sha256_hex(b"something else"));
        assert_eq!(blobs.put_content(&good, 100, whole(b"hello world")).await.unwrap(), 11);
        assert_eq!(blobs.put_content(&good, 100, whole(b"hello world")).await.unwrap(), 11, "again");
        assert_eq!(blobs.content_length(&good).await.unwrap(), Some(11));
        let read: Vec<Bytes> = blobs.content(&good).await.unwrap().try_collect().await.unwrap();
        assert_eq!(read.concat(), b"hello world");

        let error = blobs.put_content(&other, 100, whole(b"hello world")).await.unwrap_err();
        assert!(matches!(error, BlobError::Mismatch { .. }), "{error}");
        let error = blobs.put_content(&other, 5, whole(b"hello world")).await.unwrap_err();
        assert!(matches!(error, BlobError::TooLarge { limit: 5 }), "{error}");
        let cut = stream::iter([Ok(Bytes::from_static(b"some")), Err(io::Error::other("gone"))]);
        let error = blobs.put_content(&other, 100, cut).await.unwrap_err();
        assert!(matches!(error, BlobError::Cut(_)), "{error}");
        assert_eq!(blobs.content_length(&other).await.unwrap(), None);
        let left = blobs.older_than("artifacts", Duration::ZERO, 100).unwrap();
        assert_eq!(left.len(), 1, "nothing staged is left behind: {left:?}");
        blobs.remove_file(&left[0]).unwrap();
        blobs.remove_file(&left[0]).unwrap();
    }

    #[tokio::test]
    async fn an_empty_content_is_a_content() {
        let temp = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(temp.path()).unwrap();
        let hash = sha256_hex(b"");
        assert_eq!(blobs.put_content(&hash, 0, whole(b"")).await.unwrap(), 0);
        assert_eq!(blobs.content_length(&hash).await.unwrap(), Some(0));
        blobs.delete_content_if_older(&hash, Duration::from_secs(3_600)).await.unwrap();
        assert_eq!(blobs.content_length(&hash).await.unwrap(), Some(0), "it is too fresh");
        blobs.delete_content_if_older(&hash, Duration::ZERO).await.unwrap();
        blobs.delete_content_if_older(&hash, Duration::ZERO).await.unwrap();
        assert_eq!(blobs.content_length(&hash).await.unwrap(), None);
    }

    #[tokio::test]
    async fn log_parts_read_back_in_ranges() {
        let temp = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(temp.path()).unwrap();
        let attempt = buildyard_types::RunId(1).job(0).attempt(1);
        let hash = sha256_hex(b"0123456789");
        let object = blobs.put_log(attempt, 0, &hash, Bytes::from_static(b"0123456789")).await.unwrap();
        assert_eq!(&blobs.read(&object, 2, 5).await.unwrap()[..], b"234");
        blobs.delete(&object).await.unwrap();
        assert!(blobs.read(&object, 0, 1).await.unwrap_err().is_missing());
    }
}
