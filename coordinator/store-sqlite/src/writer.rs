//! The one writer: a task that owns the write connection and commits what is waiting in one transaction.
//!
//! The cost of a small write is its sync. While one group is being synced the next callers queue up, and they
//! become the next group: so the rate grows with the load, and nobody waits for a timer. A member that refuses
//! (a stale fence, an old epoch) has written nothing and shares in the commit of the others. Where the database
//! itself fails, the group is rolled back and its members are tried one by one, so that one member's trouble is
//! not its neighbours'.
//!
//! Statements are sent as they are, without sqlx's own transaction guard: that guard counts depth, and SQLite
//! ends a transaction by itself when the disk is full, after which the count is wrong for good.

use std::future::Future;
use std::sync::Mutex;

use async_trait::async_trait;
use buildyard_store::StoreError;
use sqlx::Connection;
use sqlx::sqlite::SqliteConnection;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

use crate::error::{Fault, Health, sqlite_code};
use crate::lock::Lock;

/// Most writes that may wait. Who comes then waits for room.
const QUEUE: usize = 1_024;
/// Most writes of one transaction: it bounds how long the first of them waits for the last.
const GROUP: usize = 256;

/// Why a write did not do what was asked.
pub(crate) enum Failure {
    /// The caller is told so. The write changed nothing.
    Refused(StoreError),
    /// The caller is told so. The write may have changed something, which must be undone.
    Undo(StoreError),
    /// The database failed.
    Fault(Fault),
}

impl From<sqlx::Error> for Failure {
    fn from(error: sqlx::Error) -> Self {
        Failure::Fault(error.into())
    }
}

/// A change of the database. It may be tried again after a roll-back, so it owns what it writes.
pub(crate) trait Write: Send + Sync + 'static {
    /// What the caller is told once it is durable.
    type Output: Send + 'static;
    /// What is attempted, for errors: "adding to the log of att-1-0-1".
    fn during(&self) -> String;
    /// Makes the change inside the open transaction. All refusals come before the first change.
    fn write(
        &self,
        conn: &mut SqliteConnection,
    ) -> impl Future<Output = Result<Self::Output, Failure>> + Send;
}

/// A write of any kind, with its caller.
#[async_trait]
trait Member: Send {
    async fn write(&mut self, conn: &mut SqliteConnection) -> Result<(), Failure>;
    /// The transaction is durable.
    fn committed(self: Box<Self>);
    /// The transaction was rolled back.
    fn failed(self: Box<Self>, failure: Failure);
}

struct Call<W: Write> {
    write: W,
    result: Option<Result<W::Output, StoreError>>,
    reply: oneshot::Sender<Result<W::Output, StoreError>>,
}

#[async_trait]
impl<W: Write> Member for Call<W> {
    async fn write(&mut self, conn: &mut SqliteConnection) -> Result<(), Failure> {
        self.result = match self.write.write(conn).await {
            Ok(output) => Some(Ok(output)),
            Err(Failure::Refused(error)) => Some(Err(error)),
            Err(failure) => return Err(failure),
        };
        Ok(())
    }

    fn committed(self: Box<Self>) {
        let result = self.result.expect("a group is committed after each of its members was written");
        // A caller that went away has no use for the answer; what it asked for is durable all the same.
        let _ = self.reply.send(result);
    }

    fn failed(self: Box<Self>, failure: Failure) {
        let error = match failure {
            Failure::Refused(error) | Failure::Undo(error) => error,
            Failure::Fault(fault) => fault.during(self.write.during()),
        };
        let _ = self.reply.send(Err(error));
    }
}

/// The handle of the writer's task.
pub(crate) struct Writer {
    queue: mpsc::Sender<Box<dyn Member>>,
    close: mpsc::Sender<()>,
    task: Mutex<Option<JoinHandle<Option<sqlx::Error>>>>,
}

impl Writer {
    /// Starts the task. It holds the lock until its connection is closed.
    pub(crate) fn start(conn: SqliteConnection, lock: Lock, health: Health) -> Self {
        let (queue, calls) = mpsc::channel(QUEUE);
        let (close, closing) = mpsc::channel(1);
        let task = tokio::spawn(serve(conn, lock, calls, closing, health));
        Self { queue, close, task: Mutex::new(Some(task)) }
    }

    /// Makes a change durable, together with others that wait.
    pub(crate) async fn write<W: Write>(&self, write: W) -> Result<W::Output, StoreError> {
        let during = write.during();
        let (reply, answer) = oneshot::channel();
        let call = Call { write, result: None, reply };
        if self.queue.send(Box::new(call)).await.is_err() {
            return Err(Fault::Closed.during(during));
        }
        answer.await.unwrap_or_else(|_| Err(Fault::Closed.during(during)))
    }

    /// Commits what is waiting, then closes the connection. `None` when it was closed before.
    pub(crate) async fn close(&self) -> Option<sqlx::Error> {
        // A full channel holds the same request already; a closed one means that the task has ended.
        let _ = self.close.try_send(());
        let task = self.task.lock().expect("nothing that holds it can panic").take()?;
        task.await.ok()?
    }
}

async fn serve(
    mut conn: SqliteConnection,
    lock: Lock,
    mut calls: mpsc::Receiver<Box<dyn Member>>,
    mut closing: mpsc::Receiver<()>,
    health: Health,
) -> Option<sqlx::Error> {
    loop {
        let mut group = Vec::new();
        let received = tokio::select! {
            count = calls.recv_many(&mut group, GROUP) => count,
            // Also when the handle was dropped: then nobody can call any more.
            _ = closing.recv(), if !calls.is_closed() => {
                calls.close();
                continue;
            }
        };
        if received == 0 {
            break;
        }
        settle(&mut conn, group, &health).await;
    }
    let closed = conn.close().await;
    drop(lock);
    closed.err()
}

/// Commits the group, or its members one by one, and answers every one.
async fn settle(conn: &mut SqliteConnection, mut group: Vec<Box<dyn Member>>, health: &Health) {
    let Err(failure) = commit(conn, &mut group, health).await else {
        return group.into_iter().for_each(|member| member.committed());
    };
    if let Failure::Fault(Fault::Locked(error)) = failure {
        // They have waited long enough, all of them. One by one they would wait as often as they are many.
        let locked = || Failure::Fault(Fault::Locked(error.clone()));
        return group.into_iter().for_each(|member| member.failed(locked()));
    }
    if group.len() == 1 {
        if let Some(member) = group.pop() {
            member.failed(failure);
        }
        return;
    }
    tracing::debug!(writes = group.len(), "a group was rolled back; its members are tried one by one");
    for mut member in group {
        match commit(conn, std::slice::from_mut(&mut member), health).await {
            Ok(()) => member.committed(),
            Err(failure) => member.failed(failure),
        }
    }
}

/// One transaction. After an error nothing of it is kept.
async fn commit(
    conn: &mut SqliteConnection,
    group: &mut [Box<dyn Member>],
    health: &Health,
) -> Result<(), Failure> {
    health.check().map_err(Failure::Fault)?;
    let result = transaction(conn, group).await;
    if let Err(failure) = &result {
        if let Failure::Fault(fault) = failure {
            health.note(fault);
        }
        roll_back(conn, health).await;
    }
    result
}

async fn transaction(conn: &mut SqliteConnection, group: &mut [Box<dyn Member>]) -> Result<(), Failure> {
    // IMMEDIATE takes the write lock at once. A deferred transaction that reads first cannot be sure of
    // getting it later, and no waiting helps it then.
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *conn).await?;
    for member in group {
        member.write(conn).await?;
    }
    let Err(error) = sqlx::query("COMMIT").execute(&mut *conn).await else {
        return Ok(());
    };
    Err(Failure::Fault(match Fault::from(error) {
        // SQLite undid it before anything was synced.
        fault @ (Fault::Full(_) | Fault::Locked(_) | Fault::Damaged { .. }) => fault,
        // Whether the commit reached the disk is unknown, and a sync that failed once may succeed the next time
        // without having written anything: only a fresh start can tell what is there.
        Fault::Disk(error) | Fault::Busy(error) | Fault::ReadOnly(error) | Fault::Refused(error) => {
            Fault::Disk(error)
        }
        fault @ (Fault::BadRow { .. } | Fault::Failed(_) | Fault::Closed) => fault,
    }))
}

async fn roll_back(conn: &mut SqliteConnection, health: &Health) {
    /// `SQLITE_ERROR`: there is no transaction any more, since SQLite itself undid it.
    const NO_TRANSACTION: i32 = 1;
    if let Err(error) = sqlx::query("ROLLBACK").execute(&mut *conn).await
        && sqlite_code(&error) != Some(NO_TRANSACTION)
    {
        health.note(&Fault::Disk(error));
    }
}
