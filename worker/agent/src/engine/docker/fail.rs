//! bollard's errors, sorted by what the caller does next.

use std::time::Duration;

use bollard::errors::Error;

use super::super::{ContainerId, EngineError};

/// Longest text of an engine or a registry that is handed on.
const MAX_MESSAGE_CHARS: usize = 600;

/// One call: what it is, for messages, and how long it may take.
#[derive(Debug, Clone)]
pub(super) struct Call {
    what: String,
    object: Option<String>,
    pub(super) limit: Duration,
}

impl Call {
    pub(super) fn new(what: impl Into<String>, limit: Duration) -> Self {
        Self { what: what.into(), object: None, limit }
    }

    pub(super) fn on_container(verb: &str, id: &ContainerId, limit: Duration) -> Self {
        let object = format!("container {id}");
        Self { what: format!("{verb} {object}"), object: Some(object), limit }
    }

    pub(super) fn timed_out(&self) -> EngineError {
        EngineError::Timeout { call: self.what.clone(), after: self.limit }
    }

    pub(super) fn sort(&self, error: Error) -> EngineError {
        let call = self.what.clone();
        match error {
            Error::DockerResponseServerError { status_code, message } => self.answered(status_code, &message),
            Error::RequestTimeoutError => self.timed_out(),
            Error::IOError { .. }
            | Error::HyperResponseError { .. }
            | Error::HyperLegacyError { .. }
            | Error::SocketNotFoundError(_) => EngineError::Unavailable { call, source: Box::new(error) },
            // bollard adds variants with its features; whatever else there is, the call did not succeed.
            other => EngineError::Failed { call, message: short(&other.to_string()) },
        }
    }

    fn answered(&self, status: u16, message: &str) -> EngineError {
        let (call, message) = (self.what.clone(), short(message));
        match status {
            // A start may miss its network while the container is there.
            404 if message.starts_with("network") => EngineError::NotFound { what: message },
            404 => EngineError::NotFound { what: self.object.clone().unwrap_or(message) },
            409 => EngineError::Conflict { call, message },
            400..500 => EngineError::Refused { call, message },
            _ => EngineError::Failed { call, message },
        }
    }
}

/// A start that failed for what the container is, not for what the engine is.
pub(super) fn start(error: EngineError) -> EngineError {
    match error {
        EngineError::Refused { message, .. } => EngineError::CannotStart { message },
        // The runtime's refusals come as 500 too; an engine's own troubles do not speak of the runtime.
        EngineError::Failed { message, .. } if message.contains("OCI runtime") => {
            EngineError::CannotStart { message }
        }
        other => other,
    }
}

/// 20.10 says 403 where a name is taken, an address pool overlaps or a network is in use; newer ones say 409.
pub(super) fn network(error: EngineError) -> EngineError {
    match error {
        EngineError::Refused { call, message } | EngineError::Failed { call, message }
            if ["overlap", "active endpoints", "already exists", "conflict"]
                .iter()
                .any(|word| message.contains(word)) =>
        {
            EngineError::Conflict { call, message }
        }
        other => other,
    }
}

/// Whether a pull failed for good or for now. By the status where the engine gives one that says so; else by the
/// words of the registry's own error codes, because an engine answers 500 to most of what a registry says.
pub(super) fn pull(image: &str, error: Error) -> EngineError {
    let (status, message) = match error {
        Error::DockerResponseServerError { status_code, message } => (status_code, message),
        Error::DockerStreamError { error } => (500, error),
        other => return Call::new(format!("pull {image}"), super::PULL_SILENCE).sort(other),
    };
    let lower = message.to_lowercase();
    let final_words = [
        "manifest unknown",
        "name unknown",
        "repository does not exist",
        "pull access denied",
        "no matching manifest",
        "unauthorized",
        "denied:",
    ];
    let is_final = matches!(status, 401 | 403 | 404) || final_words.iter().any(|words| lower.contains(words));
    let (image, message) = (image.to_owned(), short(&message));
    if is_final {
        EngineError::ImageUnknown { image, message }
    } else {
        EngineError::PullFailed { image, message }
    }
}

/// One line of bounded length, since it may come from a registry that means harm.
fn short(message: &str) -> String {
    let printable = |c: char| if c.is_control() { ' ' } else { c };
    let mut text: String = message.trim().chars().take(MAX_MESSAGE_CHARS).map(printable).collect();
    if message.trim().chars().nth(MAX_MESSAGE_CHARS).is_some() {
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(status_code: u16, message: &str) -> Error {
        Error::DockerResponseServerError { status_code, message: message.to_owned() }
    }

    #[test]
    fn a_pull_fails_for_good_only_where_the_registry_says_so() {
        for (status, message) in [
            (404, "pull access denied for nosuch, repository does not exist or may require 'docker login'"),
            (404, "manifest for debian:13.99 not found: manifest unknown: manifest unknown"),
            (500, "no matching manifest for linux/amd64 in the manifest list entries"),
            (500, "Error response from daemon: unauthorized: authentication required"),
            (500, "unknown: repository x not found: name unknown"),
        ] {
            let found = pull("x:1", server(status, message));
            assert!(matches!(found, EngineError::ImageUnknown { .. }), "{message}: {found:?}");
        }
        for message in [
            "Get \"https://registry-1.docker.io/v2/\": dial tcp: lookup registry-1.docker.io: no such host",
            "received unexpected HTTP status: 503 Service Unavailable",
            "toomanyrequests: You have reached your pull rate limit",
            "net/http: request canceled while waiting for connection",
        ] {
            let found = pull("x:1", server(500, message));
            assert!(matches!(found, EngineError::PullFailed { .. }), "{message}: {found:?}");
        }
    }

    #[test]
    fn statuses_are_sorted_by_what_to_do_next() {
        let call =
            Call::on_container("stop", &ContainerId("abcdef0123456789".into()), Duration::from_secs(1));
        assert!(
            matches!(call.sort(server(404, "x")), EngineError::NotFound { what } if what == "container abcdef012345")
        );
        assert!(matches!(call.sort(server(409, "x")), EngineError::Conflict { .. }));
        assert!(matches!(call.sort(server(400, "x")), EngineError::Refused { .. }));
        assert!(matches!(call.sort(server(500, "x")), EngineError::Failed { .. }));
        assert!(call.sort(Error::SocketNotFoundError("x".into())).engine_away());
        assert!(call.timed_out().engine_away());
    }

    #[test]
    fn messages_are_one_line_of_bounded_length() {
        let long = format!("a\u{1b}[31m\nb{}", "x".repeat(5_000));
        let text = short(&long);
        assert!(text.chars().count() <= MAX_MESSAGE_CHARS + 1 && !text.contains(['\n', '\u{1b}']), "{text}");
    }
}
