//! What was asked of the fake, and what it is to meet.

use std::time::Duration;

/// The calls of an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "one per method of the trait, under its name")]
pub enum CallKind {
    Ping,
    Info,
    Image,
    Images,
    Pull,
    Create,
    Start,
    Inspect,
    Wait,
    Kill,
    Remove,
    Containers,
    ReadFile,
    CreateNetwork,
    RemoveNetwork,
    Networks,
}

/// A call that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// Which.
    pub kind: CallKind,
    /// Of what: a name, an id, a path.
    pub subject: String,
}

/// What a call meets instead of success.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The engine does not answer.
    Away,
    /// The engine answers, but only after this long.
    Slow(Duration),
    /// The call takes longer than it may.
    TimesOut,
    /// The engine fails, and says this.
    Fails(String),
    /// The container will not start, and the engine says this.
    CannotStart(String),
    /// The registry cannot be reached, and the engine says this.
    PullFails(String),
}
