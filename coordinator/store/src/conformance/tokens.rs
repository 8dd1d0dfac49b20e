//! Credentials and invitations.

use std::collections::BTreeSet;
use std::sync::Arc;

use buildyard_types::{Timestamp, WorkerId};
use tokio::task::JoinSet;

use super::Maker;
use crate::{InviteUse, Token, TokenKind};

fn token(hash: &str, kind: TokenKind) -> Token {
    Token {
        hash: hash.into(),
        name: format!("name of {hash}"),
        kind,
        created_at: Timestamp(1),
        expires_at: None,
    }
}

fn pools() -> BTreeSet<String> {
    BTreeSet::from(["linux".into(), "with \"quotes\"".into()])
}

fn invite(hash: &str, expires_at: u64) -> Token {
    Token { expires_at: Some(Timestamp(expires_at)), ..token(hash, TokenKind::Invite { pools: pools() }) }
}

pub(super) async fn a_token_is_found_by_its_hash(maker: &dyn Maker) {
    let store = maker.fresh().await;
    let worker = token("aa", TokenKind::Worker(WorkerId(u64::MAX)));
    let admin = Token { expires_at: Some(Timestamp(77)), ..token("bb", TokenKind::Admin) };
    for token in [&worker, &admin, &invite("cc", 100)] {
        store.add_token(token).await.unwrap();
        store.add_token(token).await.unwrap();
    }
    let store = maker.reopen(store).await;
    assert_eq!(store.token("aa").await.unwrap(), Some(worker));
    assert_eq!(store.token("bb").await.unwrap(), Some(admin));
    assert_eq!(store.token("cc").await.unwrap(), None, "an invitation is no credential");
    for unknown in ["", "a", "AA", "aa ", "%"] {
        assert_eq!(store.token(unknown).await.unwrap(), None);
    }
}

pub(super) async fn a_replaced_administrators_token_is_good_no_more(maker: &dyn Maker) {
    let store = maker.fresh().await;
    let named = |hash| Token { name: "admin".into(), ..token(hash, TokenKind::Admin) };
    let (first, second) = (named("aa"), named("bb"));
    let other = Token { name: "release robot".into(), ..token("cc", TokenKind::Admin) };
    let worker = Token { name: "admin".into(), ..token("dd", TokenKind::Worker(WorkerId(7))) };
    for token in [&first, &other, &worker] {
        store.add_token(token).await.unwrap();
    }
    for _ in 0..2 {
        store.replace_admin_token(&second).await.unwrap();
        let found = store.token("aa").await.unwrap();
        assert_eq!(found, None, "whoever has the old one is nobody");
        for kept in [&second, &other, &worker] {
            assert_eq!(store.token(&kept.hash).await.unwrap().as_ref(), Some(kept));
        }
    }
}

pub(super) async fn an_invitation_is_used_once_by_twenty_at_once(maker: &dyn Maker) {
    let store = maker.fresh().await;
    for round in 0..5 {
        let hash = format!("invite {round}");
        store.add_token(&invite(&hash, 1_000)).await.unwrap();
        let mut calls = JoinSet::new();
        for _ in 0..20 {
            let (store, hash) = (Arc::clone(&store), hash.clone());
            calls.spawn(async move { store.use_invite(&hash, Timestamp(5)).await.unwrap() });
        }
        let answers = calls.join_all().await;
        let accepted = InviteUse::Accepted { pools: pools() };
        assert_eq!(answers.iter().filter(|answer| **answer == accepted).count(), 1, "{answers:?}");
        assert_eq!(answers.iter().filter(|answer| **answer == InviteUse::UsedBefore).count(), 19);
    }
}

pub(super) async fn an_invitation_says_why_it_is_not_good(maker: &dyn Maker) {
    let store = maker.fresh().await;
    store.add_token(&invite("aa", 1_000)).await.unwrap();
    store.add_token(&token("bb", TokenKind::Admin)).await.unwrap();
    let use_at = |hash: &'static str, now| {
        let store = Arc::clone(&store);
        async move { store.use_invite(hash, Timestamp(now)).await.unwrap() }
    };
    assert_eq!(use_at("zz", 1).await, InviteUse::Unknown);
    assert_eq!(use_at("bb", 1).await, InviteUse::Unknown, "a credential is no invitation");
    assert_eq!(use_at("aa", 1_000).await, InviteUse::Expired);
    assert_eq!(use_at("aa", 999).await, InviteUse::Accepted { pools: pools() }, "a refusal used nothing up");
    assert_eq!(use_at("aa", 2_000).await, InviteUse::UsedBefore);
    // Adding it again does not make it good again.
    store.add_token(&invite("aa", 5_000)).await.unwrap();
    let store = maker.reopen(store).await;
    assert_eq!(store.use_invite("aa", Timestamp(5)).await.unwrap(), InviteUse::UsedBefore);
}
