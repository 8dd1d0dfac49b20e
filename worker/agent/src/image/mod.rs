//! What a worker knows of an image beyond its config: who its user is, and whether it has a shell.
//!
//! Found out once per content, by reading a few files of a container that is never started, and kept on disk:
//!
//! ```text
//! <data>/images/<digest>/facts.json
//! <data>/images/<digest>/passwd, group    mounted into containers whose jobs are not root
//! ```

mod accounts;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use buildyard_types::ByteSize;
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use crate::data::{make_dir, write_synced};
use crate::engine::{
    ContainerId, ContainerNetwork, ContainerSpec, Engine, EngineError, FileContent, ImageInfo, Instance,
    Limits, Owner,
};
use accounts::Accounts;

/// Images whose facts are kept; beyond it those that were not used for longest are forgotten.
const MAX_KEPT: usize = 500;
/// Longest passwd or group file that is read.
const MAX_ACCOUNTS_BYTES: u64 = 256 * 1024;
/// Changes with the meaning of what is kept.
const FORMAT: u32 = 1;

/// What is known of an image, by content: found out once, then kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageFacts {
    /// How containers are made of it.
    pub engine_ref: String,
    /// Digest of its config, where the engine says it.
    pub config_digest: Option<String>,
    /// Operating system in Docker's words.
    pub os: String,
    /// Architecture in Docker's words.
    pub arch: String,
    /// Its variables, `PATH` among them.
    pub env: BTreeMap<String, String>,
    /// As whom jobs run that do not ask for root: the image's numeric user, else 1000.
    pub owner: Owner,
    /// That user's name in the generated passwd file.
    pub user_name: String,
    /// Whether there is a `/bin/sh`.
    pub has_shell: bool,
    /// Generated: the image's own entries and that user, its home at /home/build.
    pub passwd: PathBuf,
    /// Generated: the image's own groups and that user's.
    pub group: PathBuf,
}

/// The facts as they lie on disk.
#[derive(Serialize, Deserialize)]
struct Kept {
    format: u32,
    facts: ImageFacts,
}

/// Why nothing is known of an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The engine would not do its part.
    #[error("the facts of image `{image}` could not be found out")]
    Engine {
        /// As the job names it.
        image: String,
        /// Why.
        #[source]
        source: EngineError,
    },
    /// A generated file could not be written or read.
    #[error("the image facts in {path} could not be read or written")]
    Store {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// The facts of images, kept below the data folder.
#[derive(Debug, Clone)]
pub struct Images {
    folder: PathBuf,
    instance: Instance,
    /// By content, and only what lies on disk too. Locked while facts are found out, so that two jobs do not look at the
    /// same image.
    known: Arc<Mutex<BTreeMap<String, Arc<ImageFacts>>>>,
}

impl Images {
    /// Opens the folder `images` below the data folder, which is made if there is none.
    pub fn open(data_dir: &Path, instance: Instance) -> Result<Self, ImageError> {
        let folder = data_dir.join("images");
        make_dir(&folder, 0o700).map_err(|source| ImageError::Store { path: folder.clone(), source })?;
        Ok(Self { folder, instance, known: Arc::default() })
    }

    /// Finds the image, pulling it if the engine does not hold it.
    pub async fn find(&self, engine: &dyn Engine, name: &str) -> Result<ImageInfo, ImageError> {
        let failed = |source| ImageError::Engine { image: name.to_owned(), source };
        match engine.image(name).await {
            Err(EngineError::ImageMissing { .. }) => {}
            other => return other.map_err(failed),
        }
        engine.pull(name).await.map_err(failed)?;
        engine.image(name).await.map_err(failed)
    }

    /// The facts of an image that the engine holds. Run it to its end: a container to read from is not left behind then.
    pub async fn facts(&self, engine: &dyn Engine, image: &ImageInfo) -> Result<Arc<ImageFacts>, ImageError> {
        let key = key(image);
        let mut known = self.known.lock().await;
        // Their files are mounted into containers, so they count as long as these are there.
        let found = match known.get(&key) {
            Some(facts) if self.is_whole(&key, facts) => Some(Arc::clone(facts)),
            Some(_) | None => self.kept(&key).map(Arc::new),
        };
        let facts = match found {
            Some(facts) => facts,
            None => {
                for forgotten in self.forget_oldest() {
                    known.remove(&forgotten);
                }
                Arc::new(self.find_out(engine, image, &key).await?)
            }
        };
        self.touch(&key);
        known.insert(key, Arc::clone(&facts));
        Ok(facts)
    }

    /// Whether the files that belong to facts are there.
    fn is_whole(&self, key: &str, facts: &ImageFacts) -> bool {
        let folder = self.folder.join(key);
        [&facts.passwd, &facts.group].iter().all(|path| path.starts_with(&folder) && path.is_file())
    }

    /// Notes that an image was used now.
    fn touch(&self, key: &str) {
        let now = std::fs::File::open(self.folder.join(key))
            .and_then(|folder| folder.set_modified(std::time::SystemTime::now()));
        if let Err(error) = now {
            tracing::debug!(%error, "the use of an image is not noted");
        }
    }

    /// What an earlier start found out; `None` if that is nothing, or not whole, or of another format.
    fn kept(&self, key: &str) -> Option<ImageFacts> {
        let text = std::fs::read_to_string(self.folder.join(key).join("facts.json")).ok()?;
        let kept: Kept = serde_json::from_str(&text).ok()?;
        (kept.format == FORMAT && self.is_whole(key, &kept.facts)).then_some(kept.facts)
    }

    async fn find_out(
        &self,
        engine: &dyn Engine,
        image: &ImageInfo,
        key: &str,
    ) -> Result<ImageFacts, ImageError> {
        let failed = |source| ImageError::Engine { image: shown(image), source };
        let id = self.container(engine, image, key).await.map_err(failed)?;
        let read = read_files(engine, &id).await;
        // Removed whatever was read; if that fails, the sweep of the next start finds it by its label.
        let removed = engine.remove(&id).await;
        let files = read.map_err(failed)?;
        removed.map_err(failed)?;
        self.keep(image, key, files)
    }

    /// A container to read from. One of the same name is left of a crash.
    async fn container(
        &self,
        engine: &dyn Engine,
        image: &ImageInfo,
        key: &str,
    ) -> Result<ContainerId, EngineError> {
        let spec = self.reading_spec(image, key);
        match engine.create(&spec).await {
            Err(EngineError::Conflict { .. }) => {
                engine.remove(&ContainerId(spec.name.clone())).await?;
                engine.create(&spec).await
            }
            other => other,
        }
    }

    fn reading_spec(&self, image: &ImageInfo, key: &str) -> ContainerSpec {
        ContainerSpec {
            name: format!("byd-facts-{}-{}", self.instance.short(), key.get(..12).unwrap_or(key)),
            labels: [self.instance.label()].into(),
            image: image.engine_ref.clone(),
            user: Owner { uid: 65_534, gid: 65_534 },
            entrypoint: vec!["/never-started".to_owned()],
            env: BTreeMap::new(),
            mounts: Vec::new(),
            network: ContainerNetwork::None,
            hostname: "facts".to_owned(),
            limits: Limits { cpu_millis: 100, memory: ByteSize::from_mib(16), pids: 16 },
            capabilities: Default::default(),
            open_files: 64,
        }
    }

    fn keep(&self, image: &ImageInfo, key: &str, files: Files) -> Result<ImageFacts, ImageError> {
        let folder = self.folder.join(key);
        let accounts = Accounts::of(&image.user, &files.passwd, &files.group);
        let facts = ImageFacts {
            engine_ref: image.engine_ref.clone(),
            config_digest: image.config_digest.clone(),
            os: image.os.clone(),
            arch: image.arch.clone(),
            env: image.env.clone(),
            owner: accounts.owner,
            user_name: accounts.user_name.clone(),
            has_shell: files.has_shell,
            passwd: folder.join("passwd"),
            group: folder.join("group"),
        };
        let kept = Kept { format: FORMAT, facts: facts.clone() };
        let text = serde_json::to_vec_pretty(&kept).expect("facts are plain data with text for keys");
        let write = || {
            make_dir(&folder, 0o700)?;
            write_synced(&facts.passwd, accounts.passwd.as_bytes(), 0o644)?;
            write_synced(&facts.group, accounts.group.as_bytes(), 0o644)?;
            // Last, since it vouches for the other two.
            write_synced(&folder.join("facts.json"), &text, 0o600)
        };
        write().map_err(|source| ImageError::Store { path: folder.clone(), source })?;
        Ok(facts)
    }

    /// Makes room for one more, and says what is gone. Containers that have a file of the forgotten mounted keep it
    /// until they end.
    fn forget_oldest(&self) -> Vec<String> {
        let Ok(entries) = std::fs::read_dir(&self.folder) else { return Vec::new() };
        let used = |entry: std::fs::DirEntry| {
            Some((entry.metadata().ok()?.modified().ok()?, entry.file_name().into_string().ok()?))
        };
        let mut folders: Vec<_> = entries.flatten().filter_map(used).collect();
        folders.sort();
        let surplus = (folders.len() + 1).saturating_sub(MAX_KEPT);
        let oldest = folders.into_iter().take(surplus).map(|(_, key)| key);
        oldest
            .inspect(|key| {
                // What cannot be removed is overwritten when it is needed.
                let _ = std::fs::remove_dir_all(self.folder.join(key));
            })
            .collect()
    }
}

/// What was read of an image.
struct Files {
    passwd: Vec<u8>,
    group: Vec<u8>,
    has_shell: bool,
}

async fn read_files(engine: &dyn Engine, id: &ContainerId) -> Result<Files, EngineError> {
    // A file that is missing, endless or no file at all is as good as empty: the accounts are completed anyway.
    let text = |content| match content {
        FileContent::Bytes(bytes) => bytes,
        FileContent::Missing | FileContent::TooLong | FileContent::NotAFile => Vec::new(),
    };
    let passwd = text(engine.read_file(id, "/etc/passwd", MAX_ACCOUNTS_BYTES).await?);
    let group = text(engine.read_file(id, "/etc/group", MAX_ACCOUNTS_BYTES).await?);
    // Longer than nothing is all that has to be known.
    let has_shell = engine.read_file(id, "/bin/sh", 0).await? == FileContent::TooLong;
    Ok(Files { passwd, group, has_shell })
}

/// Names the content, in characters that suit a folder.
fn key(image: &ImageInfo) -> String {
    let digest = image.config_digest.as_ref().unwrap_or(&image.engine_ref);
    let hex = digest.strip_prefix("sha256:").unwrap_or(digest);
    hex.chars().filter(char::is_ascii_alphanumeric).take(64).collect()
}

fn shown(image: &ImageInfo) -> String {
    image.names.first().unwrap_or(&image.engine_ref).clone()
}

#[cfg(test)]
mod tests;
