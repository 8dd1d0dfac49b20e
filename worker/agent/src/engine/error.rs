//! What can go wrong between a worker and its engine, sorted by what the caller does next.

use std::time::Duration;

/// The error beneath, as the client library gave it.
pub type Source = Box<dyn std::error::Error + Send + Sync>;

/// Why a call to the engine failed.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// There is no such container or network. After a removal that is what one wants to hear.
    #[error("the engine has no {what}")]
    NotFound {
        /// What was looked for: "container att-42-3-1".
        what: String,
    },
    /// The engine does not hold the image.
    #[error("the engine does not hold the image `{image}`")]
    ImageMissing {
        /// The name that was asked for.
        image: String,
    },
    /// The registry says that there is no such image, or that it may not be had without a login. Trying again
    /// changes nothing.
    #[error("the image `{image}` does not exist or may not be pulled: {message}")]
    ImageUnknown {
        /// The name that was asked for.
        image: String,
        /// What the registry said.
        message: String,
    },
    /// The image may exist, but it could not be fetched now.
    #[error("the image `{image}` could not be pulled: {message}")]
    PullFailed {
        /// The name that was asked for.
        image: String,
        /// What engine or registry said.
        message: String,
    },
    /// The text cannot be the name of an image.
    #[error("`{image}` is not the name of an image: {reason}")]
    BadImageName {
        /// The text, cut to a printable length.
        image: String,
        /// What is wrong with it.
        reason: &'static str,
    },
    /// The name is taken, or the state forbids the call.
    #[error("the engine refused to {call}: {message}")]
    Conflict {
        /// What was attempted.
        call: String,
        /// What the engine said.
        message: String,
    },
    /// The container was made but its first process could not be started.
    #[error("the container could not be started: {message}")]
    CannotStart {
        /// What the engine said.
        message: String,
    },
    /// The engine understood the call and will never do it.
    #[error("the engine refused to {call}: {message}")]
    Refused {
        /// What was attempted.
        call: String,
        /// What the engine said.
        message: String,
    },
    /// The engine tried and failed. Trying again may help.
    #[error("the engine failed to {call}: {message}")]
    Failed {
        /// What was attempted.
        call: String,
        /// What the engine said.
        message: String,
    },
    /// No engine answered. Wait and try again.
    #[error("the container engine did not answer when asked to {call}")]
    Unavailable {
        /// What was attempted.
        call: String,
        /// Why.
        #[source]
        source: Source,
    },
    /// The engine took longer than the call may take. Whether it was carried out is not known.
    #[error("the container engine took longer than {} s to {call}", after.as_secs())]
    Timeout {
        /// What was attempted.
        call: String,
        /// How long was waited.
        after: Duration,
    },
}

impl EngineError {
    /// Whether the engine itself is away or hangs, so that the worker should take no work until it answers.
    pub fn engine_away(&self) -> bool {
        match self {
            EngineError::Unavailable { .. } | EngineError::Timeout { .. } => true,
            EngineError::NotFound { .. }
            | EngineError::ImageMissing { .. }
            | EngineError::ImageUnknown { .. }
            | EngineError::PullFailed { .. }
            | EngineError::BadImageName { .. }
            | EngineError::Conflict { .. }
            | EngineError::CannotStart { .. }
            | EngineError::Refused { .. }
            | EngineError::Failed { .. } => false,
        }
    }

    /// Whether the thing asked about does not exist.
    pub fn is_not_found(&self) -> bool {
        matches!(self, EngineError::NotFound { .. })
    }
}
