//! The behaviours that every store must show, one function each. A store's own tests run [`run_all`].
//!
//! What is promised here is what callers build on, so it is tested through the trait alone: whole commits, the
//! fence and the epoch in the transaction, answers that survive reopening, and that repeating a call is safe.

#![expect(clippy::unwrap_used, reason = "a suite of tests says by a panic what is not as promised")]

mod artifacts;
mod commits;
mod farm;
mod fences;
mod history;
mod logs;
mod runs;
mod sample;
mod sweeps;
mod tokens;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use async_trait::async_trait;

use crate::Store;

/// Makes the stores that are tested.
#[async_trait]
pub trait Maker: Send + Sync {
    /// A new store with nothing in it. It stays until the maker is dropped.
    async fn fresh(&self) -> Arc<dyn Store>;
    /// Closes a store of this maker and opens it again.
    async fn reopen(&self, store: Arc<dyn Store>) -> Arc<dyn Store>;
}

type Running<'m> = Pin<Box<dyn Future<Output = ()> + Send + 'm>>;

/// A promise of the trait, and the function that holds a store against it.
#[derive(Clone, Copy)]
pub struct Behaviour {
    /// What is promised.
    pub name: &'static str,
    check: for<'m> fn(&'m dyn Maker) -> Running<'m>,
}

impl Behaviour {
    /// Panics if a store of this maker does not behave so.
    pub async fn check(&self, maker: &dyn Maker) {
        (self.check)(maker).await;
    }
}

macro_rules! behaviours {
    ($($module:ident::$name:ident),+ $(,)?) => {
        &[$(Behaviour { name: stringify!($name), check: |maker| Box::pin($module::$name(maker)) }),+]
    };
}

/// Every promise.
pub const BEHAVIOURS: &[Behaviour] = behaviours![
    commits::a_fresh_store_is_empty,
    commits::a_commit_is_kept_whole,
    commits::a_commit_that_fails_leaves_nothing,
    commits::committing_again_changes_nothing_more,
    commits::the_last_record_about_a_thing_counts,
    commits::an_epoch_that_is_over_commits_nothing,
    commits::commits_at_once_are_all_kept_and_their_events_have_no_gap,
    commits::a_large_batch_is_one_commit,
    commits::a_removed_worker_loses_its_credential,
    commits::a_scheduler_gets_what_is_not_over_and_nothing_else,
    commits::keys_of_requesters_lead_to_their_newest_run,
    history::any_history_is_the_same_after_reopening,
    farm::a_scheduler_finds_the_state_that_it_committed,
    runs::runs_come_newest_first_in_pages,
    runs::runs_are_found_by_repository_and_commit,
    runs::events_come_in_order_from_any_number,
    runs::acts_on_record_come_newest_first,
    fences::a_stale_write_changes_nothing,
    fences::no_write_gets_in_behind_the_end_of_its_attempt,
    logs::a_log_grows_by_its_chunks,
    logs::a_chunk_that_is_sent_again_is_accepted,
    logs::a_chunk_that_contradicts_is_refused,
    logs::a_log_is_closed_once,
    logs::a_log_is_read_from_any_place,
    logs::a_compacted_log_reads_as_before,
    logs::only_whole_chunks_are_compacted,
    logs::logs_in_small_chunks_are_found,
    logs::many_logs_grow_at_once,
    artifacts::an_artifact_is_kept_and_found,
    artifacts::an_artifact_that_is_sent_again_is_accepted,
    artifacts::an_artifact_that_contradicts_is_refused,
    tokens::a_token_is_found_by_its_hash,
    tokens::a_replaced_administrators_token_is_good_no_more,
    tokens::an_invitation_is_used_once_by_twenty_at_once,
    tokens::an_invitation_says_why_it_is_not_good,
    sweeps::what_is_too_old_is_dropped_and_nothing_else,
    sweeps::numbers_are_not_given_again_after_a_sweep,
    sweeps::a_run_that_is_not_over_is_never_dropped,
    sweeps::a_sweep_is_bounded,
    sweeps::a_run_stays_as_long_as_what_it_made,
    sweeps::logs_go_before_their_runs,
    sweeps::contents_that_are_shared_stay,
    sweeps::contents_in_use_are_told_from_the_rest,
    sweeps::what_a_crash_kept_from_being_deleted_is_named_again,
];

/// Holds a store against every promise. Prints the name of each before it begins, so that a panic has one.
pub async fn run_all(maker: &dyn Maker) {
    for behaviour in BEHAVIOURS {
        println!("conformance: {}", behaviour.name);
        behaviour.check(maker).await;
    }
}
