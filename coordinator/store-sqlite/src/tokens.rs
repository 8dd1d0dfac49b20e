//! Credentials, by their hashes.

use std::collections::BTreeSet;

use buildyard_store::{InviteUse, Token, TokenKind};
use buildyard_types::{Timestamp, WorkerId};
use sqlx::sqlite::{SqliteConnection, SqlitePool};

use crate::changes::int;
use crate::error::Fault;
use crate::seal::{check, word};
use crate::writer::{Failure, Write};

/// Makes a token good.
pub(crate) struct Add(pub(crate) Token);

impl Write for Add {
    type Output = ();

    fn during(&self) -> String {
        format!("adding the token `{}`", self.0.name)
    }

    async fn write(&self, conn: &mut SqliteConnection) -> Result<(), Failure> {
        put(conn, &self.0).await
    }
}

/// Makes an administrator's token good in the place of others of its name.
pub(crate) struct ReplaceAdmin(pub(crate) Token);

impl Write for ReplaceAdmin {
    type Output = ();

    fn during(&self) -> String {
        format!("replacing the token `{}`", self.0.name)
    }

    async fn write(&self, conn: &mut SqliteConnection) -> Result<(), Failure> {
        let Token { hash, name, .. } = &self.0;
        sqlx::query!("DELETE FROM tokens WHERE worker IS NULL AND name = ? AND hash <> ?", name, hash)
            .execute(&mut *conn)
            .await?;
        put(conn, &self.0).await
    }
}

fn token_word(hash: &str, name: &str, worker: Option<&str>, times: (i64, Option<i64>)) -> i64 {
    word("token", hash, &(name, worker, times))
}

fn invite_word(hash: &str, pools: &str, expires: Option<i64>, used: Option<i64>) -> i64 {
    word("invitation", hash, &(pools, expires, used))
}

/// Makes a token good. Adding it again changes nothing more.
pub(crate) async fn put(conn: &mut SqliteConnection, token: &Token) -> Result<(), Failure> {
    let created = int(token.created_at.0);
    let expires = token.expires_at.map(|at| int(at.0));
    let worker = match &token.kind {
        TokenKind::Admin => None,
        TokenKind::Worker(worker) => Some(worker.to_string()),
        TokenKind::Invite { pools } => {
            let pools = serde_json::to_string(pools).expect("a set of texts is JSON");
            let seal = invite_word(&token.hash, &pools, expires, None);
            sqlx::query!(
                r#"INSERT INTO invites (hash, name, pools, created_ms, expires_ms, seal)
                   VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (hash) DO NOTHING"#,
                token.hash,
                token.name,
                pools,
                created,
                expires,
                seal
            )
            .execute(conn)
            .await?;
            return Ok(());
        }
    };
    let seal = token_word(&token.hash, &token.name, worker.as_deref(), (created, expires));
    sqlx::query!(
        r#"INSERT INTO tokens (hash, name, worker, created_ms, expires_ms, seal) VALUES (?, ?, ?, ?, ?, ?)
           ON CONFLICT (hash) DO UPDATE SET
               name = excluded.name, worker = excluded.worker, created_ms = excluded.created_ms,
               expires_ms = excluded.expires_ms, seal = excluded.seal"#,
        token.hash,
        token.name,
        worker,
        created,
        expires,
        seal
    )
    .execute(conn)
    .await?;
    Ok(())
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
        let known =
            sqlx::query!("SELECT pools, expires_ms, used_ms, seal FROM invites WHERE hash = ?", self.hash)
                .fetch_optional(&mut *conn)
                .await?;
        let Some(invite) = known else {
            return Ok(InviteUse::Unknown);
        };
        let row = (&invite.pools, invite.expires_ms, invite.used_ms);
        check("invitation", &self.hash, &row, invite.seal).map_err(|broken| Failure::Fault(broken.into()))?;
        if invite.used_ms.is_some() {
            return Ok(InviteUse::UsedBefore);
        }
        if invite.expires_ms.is_some_and(|expires| expires <= now) {
            return Ok(InviteUse::Expired);
        }
        let pools = pools(&invite.pools).map_err(Failure::Fault)?;
        let seal = invite_word(&self.hash, &invite.pools, invite.expires_ms, Some(now));
        sqlx::query!("UPDATE invites SET used_ms = ?, seal = ? WHERE hash = ?", now, seal, self.hash)
            .execute(conn)
            .await?;
        Ok(InviteUse::Accepted { pools })
    }
}

fn pools(json: &str) -> Result<BTreeSet<String>, Fault> {
    serde_json::from_str(json).map_err(|error| Fault::BadRow {
        finding: "the pools of an invitation are no list".into(),
        source: error.into(),
    })
}

/// A token that is no invitation.
pub(crate) async fn find(readers: &SqlitePool, hash: &str) -> Result<Option<Token>, Fault> {
    let row =
        sqlx::query!("SELECT name, worker, created_ms, expires_ms, seal FROM tokens WHERE hash = ?", hash)
            .fetch_optional(readers)
            .await?;
    let Some(row) = row else {
        return Ok(None);
    };
    let times = (row.created_ms, row.expires_ms);
    check("token", hash, &(&row.name, &row.worker, times), row.seal)?;
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
    text.parse().map_err(|error: buildyard_types::id::ParseIdError| Fault::BadRow {
        finding: "a token's worker has no id".into(),
        source: error.into(),
    })
}
