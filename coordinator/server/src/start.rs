//! Start and end of the coordinator, each in order.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use buildyard_store::{Store, StoreError, Token, TokenKind};
use buildyard_store_sqlite::{OpenError, SqliteStore};
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

use crate::app::{App, bounds, new_secret, secret_hash};
use crate::blobs::{BlobError, Blobs};
use crate::clock::Clock;
use crate::config::CoordinatorConfig;
use crate::data_dir::{DataDir, DataDirError};
use crate::driver::{Driver, DriverEnd, DriverHandle, DriverParts, QUEUE};
use crate::logs::{CompactQueue, Hashes, LogSignals, LogWriter, compact_task};
use crate::metrics::Metrics;
use crate::process::ProcessId;
use crate::retention::{self, sweep_task};
use crate::source::git::{Git, GitError};
use crate::source::{Mirrors, source_task};
use crate::{listen, routes};

/// What background tasks get to end by themselves. The driver's pending commit is among them.
const FAREWELL: Duration = Duration::from_secs(10);

/// Why the coordinator does not run, or does not run any more.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The data folder cannot be used.
    #[error(transparent)]
    DataDir(#[from] DataDirError),
    /// The database cannot be opened.
    #[error("cannot open the database {path}")]
    Open {
        /// Which.
        path: std::path::PathBuf,
        /// Why not.
        #[source]
        source: OpenError,
    },
    /// The store does not answer.
    #[error("cannot read the farm from the database")]
    Store(#[from] StoreError),
    /// The folder of objects cannot be used.
    #[error("cannot use the folder of logs and artifacts")]
    Blobs(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// Git cannot be started, or is too old to be let near repositories of others.
    #[error("cannot use git")]
    Git(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The address cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// Which.
        address: std::net::SocketAddr,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// The driver ended by itself.
    #[error(transparent)]
    Driver(#[from] DriverEnd),
    /// A task of the coordinator ended before it was told to.
    #[error("a task of the coordinator ended by itself")]
    TaskEnded,
    /// A task of the coordinator broke off.
    #[error("a task of the coordinator broke off")]
    Task(#[source] tokio::task::JoinError),
}

/// Runs a coordinator until `shutdown` is ready, or until it cannot go on.
pub async fn serve(
    config: CoordinatorConfig,
    shutdown: impl Future<Output = ()> + Send,
) -> Result<(), ServeError> {
    let address = config.listen;
    let connections = config.limits.connections;
    let mut coordinator = Coordinator::start(config).await?;
    let failed = |source| ServeError::Listen { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    let bound = listener.local_addr().map_err(failed)?;
    let dir = coordinator.app.dir.clone();
    announce(&dir, bound)?;
    tracing::info!(%bound, epoch = coordinator.app.epoch.0, "the coordinator listens");
    let closing = coordinator.closing.subscribe();
    let http = tokio::spawn(listen::serve(listener, coordinator.router(), connections, closing));
    let ended = tokio::select! {
        () = shutdown => None,
        ended = &mut coordinator.driver => Some(ended.map_err(ServeError::Task)?.map_err(ServeError::Driver)),
        Some(ended) = coordinator.tasks.join_next() => {
            // None of them ends before it is told to; without one of them the farm would rot slowly.
            Some(Err(ended.err().map_or(ServeError::TaskEnded, ServeError::Task)))
        }
    };
    tracing::info!("the coordinator ends");
    // From here on: nothing is accepted, streams end, held calls are answered.
    coordinator.closing.send_replace(true);
    http.await.map_err(ServeError::Task)?;
    // Whoever looks for a coordinator now is told that there is none.
    let _ = std::fs::remove_file(dir.endpoint());
    match ended {
        None => coordinator.stop().await,
        Some(ended) => {
            coordinator.stop_tasks().await;
            ended
        }
    }
}

/// Says where this coordinator listens and which process it is. An address of an earlier start goes first, so that
/// no moment shows it beside a living process.
fn announce(dir: &DataDir, bound: std::net::SocketAddr) -> Result<(), ServeError> {
    let _ = std::fs::remove_file(dir.endpoint());
    let process = ProcessId::of(std::process::id()).map(|process| serde_json::to_string(&process));
    // Where /proc cannot be read, nobody could tell a living process either.
    if let Some(Ok(process)) = process {
        dir.write_private(&dir.process(), &format!("{process}\n"))?;
    }
    dir.write_private(&dir.endpoint(), &format!("http://{bound}\n"))?;
    Ok(())
}

/// A coordinator without its socket.
pub struct Coordinator {
    pub(crate) app: Arc<App>,
    closing: watch::Sender<bool>,
    driver: JoinHandle<Result<(), DriverEnd>>,
    tasks: JoinSet<()>,
    sqlite: Option<Arc<SqliteStore>>,
}

impl Coordinator {
    /// Takes the data folder, opens the database, begins an epoch, and takes up the farm where it was.
    pub async fn start(config: CoordinatorConfig) -> Result<Self, ServeError> {
        let dir = DataDir::open(&config.data_dir)?;
        let path = dir.database();
        let opened = SqliteStore::open(&path).await;
        let sqlite = Arc::new(opened.map_err(|source| ServeError::Open { path, source })?);
        let mut coordinator = Self::start_with(config, dir, sqlite.clone()).await?;
        coordinator.sqlite = Some(sqlite);
        Ok(coordinator)
    }

    /// The same over a store that is open already.
    pub(crate) async fn start_with(
        config: CoordinatorConfig,
        dir: DataDir,
        store: Arc<dyn Store>,
    ) -> Result<Self, ServeError> {
        let clock = Clock::start();
        let blobs = Arc::new(Blobs::open(&dir.blobs()).map_err(blob_failure)?);
        let git = Git::new(&dir.home()).map_err(git_failure)?;
        git.check().await.map_err(git_failure)?;
        let mirrors = Arc::new(Mirrors::new(dir.mirrors(), git));
        let epoch = store.begin_epoch().await?;
        ensure_admin_token(&dir, &*store, clock).await?;
        let metrics = Arc::new(Metrics::default());
        let (closing, is_closing) = watch::channel(false);
        let (calls_in, calls) = mpsc::channel(QUEUE);
        let last_event = store.last_event().await?;
        let newest = store.events(last_event.saturating_sub(1), None, 1).await?;
        let newest = newest.first().map(|event| event.at);
        let newest_at_start = retention::trusted_newest(&dir, newest, clock.now())?;
        let (events, new_events) = watch::channel(last_event);
        let received = Arc::new(Notify::new());
        let driver = Driver::load(DriverParts {
            store: store.clone(),
            epoch,
            settings: config.settings.clone(),
            clock,
            calls,
            closing: is_closing.clone(),
            events,
            received: received.clone(),
            metrics: metrics.clone(),
        })
        .await?;
        let handle = DriverHandle::new(calls_in);
        let (compact, to_compact) = CompactQueue::new();
        let logs = LogWriter {
            store: store.clone(),
            blobs: blobs.clone(),
            signals: LogSignals::default(),
            metrics: metrics.clone(),
            compact,
            log_cap: config.settings.log_cap,
            hashes: Arc::new(Hashes::default()),
        };
        let (streams, transfers, uploads) = bounds(&config);
        let app = Arc::new(App {
            config,
            store: store.clone(),
            driver: handle.clone(),
            blobs: blobs.clone(),
            logs,
            mirrors: mirrors.clone(),
            metrics,
            clock,
            epoch,
            started: clock.now(),
            newest_at_start,
            dir: Arc::new(dir),
            closing: is_closing.clone(),
            events: new_events,
            streams,
            transfers,
            uploads,
            promised: Arc::default(),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(source_task(handle, mirrors, received, is_closing.clone()));
        tasks.spawn(compact_task(store, blobs, to_compact, is_closing));
        tasks.spawn(sweep_task(app.clone()));
        Ok(Self { app, closing, driver: tokio::spawn(driver.run()), tasks, sqlite: None })
    }

    /// Everything that is served. Can be called without a socket.
    pub fn router(&self) -> Router {
        routes::router(self.app.clone())
    }

    /// The file that holds the administrator's token.
    pub fn admin_token_file(&self) -> std::path::PathBuf {
        self.app.dir.admin_token()
    }

    /// Ends in order: held calls are answered, what is pending is committed, the database is closed.
    pub async fn stop(mut self) -> Result<(), ServeError> {
        self.closing.send_replace(true);
        let ended = tokio::time::timeout(FAREWELL, &mut self.driver).await;
        self.stop_tasks().await;
        match ended {
            Ok(ended) => Ok(ended.map_err(ServeError::Task)??),
            Err(_) => {
                tracing::warn!(
                    "a commit hangs; the process ends without it, and nobody was told that it is done"
                );
                self.driver.abort();
                Ok(())
            }
        }
    }

    async fn stop_tasks(&mut self) {
        let ended = async { while self.tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(FAREWELL, ended).await.is_err() {
            self.tasks.shutdown().await;
        }
        if let Some(sqlite) = self.sqlite.take()
            && let Err(error) = sqlite.close().await
        {
            tracing::warn!(error = %crate::error::chain(&error), "the database was not closed in order");
        }
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        // Tasks end when their handle is dropped: a coordinator that is let go does nothing more.
        self.driver.abort();
        self.tasks.abort_all();
    }
}

fn git_failure(error: GitError) -> ServeError {
    ServeError::Git(Box::new(error))
}

fn blob_failure(error: BlobError) -> ServeError {
    ServeError::Blobs(Box::new(error))
}

/// Makes the administrator's token at the first start. The file comes first: a crash between the two is mended
/// at the next start, since the file says which token is meant.
async fn ensure_admin_token(dir: &DataDir, store: &dyn Store, clock: Clock) -> Result<(), ServeError> {
    let path = dir.admin_token();
    let secret = match read_secret(dir, &path)? {
        Some(secret) => secret,
        None => {
            let secret = new_secret("bya");
            dir.write_private(&path, &format!("{secret}\n"))?;
            secret
        }
    };
    let hash = secret_hash(&secret);
    let token = Token {
        hash,
        name: "admin".to_owned(),
        kind: TokenKind::Admin,
        created_at: clock.now(),
        expires_at: None,
    };
    // Whoever changes the file, or removes it for a new one, wants the old token to be worth nothing.
    Ok(store.replace_admin_token(&token).await?)
}

fn read_secret(dir: &DataDir, path: &Path) -> Result<Option<String>, ServeError> {
    let text = dir.read(path)?;
    Ok(text.map(|text| text.trim().to_owned()).filter(|text| text.len() >= 32))
}
