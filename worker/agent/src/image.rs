//! What a worker knows of an image beyond its config: who its user is, and whether it has a shell.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::engine::{Engine, EngineError, ImageInfo, Instance, Owner};

/// What is known of an image, by content: found out once, then kept.
#[derive(Debug, Clone, PartialEq, Eq)]
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
#[derive(Debug)]
pub struct Images {
    folder: PathBuf,
    instance: Instance,
}

impl Images {
    /// Opens the folder `images` below the data folder, which is made if there is none.
    pub fn open(data_dir: &Path, instance: Instance) -> Result<Self, ImageError> {
        Ok(Self { folder: data_dir.join("images"), instance })
    }

    /// Finds the image, pulling it if the engine does not hold it.
    pub async fn find(&self, _engine: &dyn Engine, _name: &str) -> Result<ImageInfo, ImageError> {
        unimplemented!("{:?}", self.folder)
    }

    /// The facts of an image that the engine holds.
    pub async fn facts(
        &self,
        _engine: &dyn Engine,
        _image: &ImageInfo,
    ) -> Result<Arc<ImageFacts>, ImageError> {
        unimplemented!("{:?}", self.instance)
    }
}
