//! Credentials, by their hashes.

use std::collections::BTreeSet;

use buildyard_store::{InviteUse, Token, TokenKind};
use buildyard_types::{Timestamp, WorkerId};
use sqlx::sqlite::{SqliteConnection, SqlitePool};

use crate::changes::int;
use crate::commit::put_token;
use crate::error::Fault;
use crate::writer::{Failure, Write};

/// Makes a token good.
pub(crate) struct Add(pub(crate) Token);

impl Write for Add {
    type Output = ();

    fn during(&self) -> String {
        format!("adding the token `{}`", self.0.name)
    }

    async fn write(&self, conn: &mut SqliteConnection) -> Result<(), Failure> {
        put_token(conn, &self.0).await
    }
}

/// Uses up an invitation. There is one writer, so of two calls the later sees what the earlier did.
pub(crate) struct UseInvite {
    pub(crate) hash: String,
    pub(crate) now: Timestamp,
}

impl Write for UseInvite {
    type Output = InviteUse;

    fn during(&self) -> String {
        "using an invitation".into()
    }

    async fn write(&self, conn: &mut SqliteConnection) -> Result<InviteUse, Failure> {
        let now = int(self.now.0);
        let known = sqlx::query!("SELECT pools, expires_ms, used_ms FROM invites WHERE hash = ?", self.hash)
            .fetch_optional(&mut *conn)
            .await?;
        let Some(invite) = known else {
            return Ok(InviteUse::Unknown);
        };
        if invite.used_ms.is_some() {
            return Ok(InviteUse::UsedBefore);
        }
        if invite.expires_ms.is_some_and(|expires| expires <= now) {
            return Ok(InviteUse::Expired);
        }
        let pools = pools(&invite.pools).map_err(Failure::Fault)?;
        sqlx::query!("UPDATE invites SET used_ms = ? WHERE hash = ?", now, self.hash).execute(conn).await?;
        Ok(InviteUse::Accepted { pools })
    }
}

fn pools(json: &str) -> Result<BTreeSet<String>, Fault> {
    serde_json::from_str(json).map_err(|error| Fault::Damaged {
        finding: "the pools of an invitation are no list".into(),
        source: error.into(),
    })
}

/// A token that is no invitation.
pub(crate) async fn find(readers: &SqlitePool, hash: &str) -> Result<Option<Token>, Fault> {
    let row = sqlx::query!("SELECT name, worker, created_ms, expires_ms FROM tokens WHERE hash = ?", hash)
        .fetch_optional(readers)
        .await?;
    let Some(row) = row else {
        return Ok(None);
    };
    let kind = match row.worker {
        None => TokenKind::Admin,
        Some(worker) => TokenKind::Worker(worker_id(&worker)?),
    };
    Ok(Some(Token {
        hash: hash.to_owned(),
        name: row.name,
        kind,
        created_at: Timestamp(row.created_ms as u64),
        expires_at: row.expires_ms.map(|at| Timestamp(at as u64)),
    }))
}

fn worker_id(text: &str) -> Result<WorkerId, Fault> {
    text.parse().map_err(|error: buildyard_types::id::ParseIdError| Fault::Damaged {
        finding: "a token's worker has no id".into(),
        source: error.into(),
    })
}
