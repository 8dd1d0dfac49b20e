//! The promises of the trait, held against SQLite.

#![expect(clippy::unwrap_used, reason = "a test says by a panic what is not as expected")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use buildyard_store::Store;
use buildyard_store::conformance::{self, Maker};
use buildyard_store_sqlite::SqliteStore;

/// Opens databases in one folder. Remembers them by address: the trait's object does not say which it is.
struct Files {
    folder: tempfile::TempDir,
    open: Mutex<BTreeMap<usize, (PathBuf, Arc<SqliteStore>)>>,
}

fn address(store: &Arc<dyn Store>) -> usize {
    Arc::as_ptr(store).cast::<()>() as usize
}

impl Files {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), open: Mutex::default() }
    }

    async fn open(&self, path: PathBuf) -> Arc<dyn Store> {
        let sqlite = Arc::new(SqliteStore::open(&path).await.unwrap());
        let store: Arc<dyn Store> = sqlite.clone();
        self.open.lock().unwrap().insert(address(&store), (path, sqlite));
        store
    }
}

#[async_trait]
impl Maker for Files {
    async fn fresh(&self) -> Arc<dyn Store> {
        let number = self.open.lock().unwrap().len();
        let path = tempfile::Builder::new().prefix(&format!("{number}-")).tempdir_in(self.folder.path());
        self.open(path.unwrap().keep().join("farm.db")).await
    }

    async fn reopen(&self, store: Arc<dyn Store>) -> Arc<dyn Store> {
        let (path, sqlite) = self.open.lock().unwrap().remove(&address(&store)).unwrap();
        sqlite.close().await.unwrap();
        self.open(path).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sqlite_keeps_every_promise_of_the_store() {
    conformance::run_all(&Files::new()).await;
}
