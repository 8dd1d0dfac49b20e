//! Finds the coordinator and the token: as configured, or those of this machine.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use buildyard_coordinator::process::ProcessId;
use reqwest::Url;

use crate::config::Settings;
use crate::exit::{CliError, Result};

/// Where a coordinator listens when nobody says otherwise.
pub(crate) const DEFAULT_LISTEN: &str = "127.0.0.1:7317";
/// Longest endpoint or token file that is read.
const FILE_LIMIT_BYTES: usize = 4096;

/// A coordinator and the right to talk to it.
#[derive(Clone)]
pub(crate) struct Endpoint {
    /// Its URL without a slash at the end.
    pub(crate) url: String,
    /// The bearer token; `None` where none is known. Never printed.
    pub(crate) token: Option<String>,
    /// Where the token came from.
    pub(crate) token_origin: String,
    /// Set where address or token are this machine's: what must hold before anything is sent.
    pub(crate) own: Option<OwnCoordinator>,
}

/// The coordinator of a data folder. After a power cut or `kill -9` its address stays, and the port may be anybody's
/// by now; the token must not go there.
#[derive(Debug, Clone)]
pub(crate) struct OwnCoordinator {
    folder: PathBuf,
}

impl OwnCoordinator {
    /// Whether the process that wrote the address lives, and `url` is its address.
    pub(crate) fn check(&self, url: &str) -> Result {
        let process = std::fs::read(self.folder.join("process.json")).unwrap_or_default();
        let is_alive = serde_json::from_slice::<ProcessId>(&process).is_ok_and(|process| process.is_alive());
        let reason = match read_line(&self.folder.join("endpoint")) {
            Ok(endpoint) if is_alive && same_local_server(url, &endpoint) => return Ok(()),
            Ok(_) if is_alive => "this machine's coordinator listens elsewhere by now".to_owned(),
            Ok(_) | Err(_) => {
                format!("the coordinator of {} does not run, and nothing was sent", self.folder.display())
            }
        };
        Err(CliError::unreachable(url, &reason))
    }
}

/// Finds the coordinator and the token.
pub(crate) fn locate(settings: &Settings) -> Result<Endpoint> {
    let url = locate_url(settings)?;
    let (token, token_origin) = match &settings.token_file {
        Some(file) => (Some(read_token(&file.value)?), file.value.display().to_string()),
        None => local_token(settings, &url)?,
    };
    let is_own_token = token.is_some() && settings.token_file.is_none();
    let own = (is_own_token || settings.coordinator.is_none())
        .then(|| OwnCoordinator { folder: settings.coordinator_dir() });
    Ok(Endpoint { url, token, token_origin, own })
}

/// Finds the coordinator alone.
pub(crate) fn locate_url(settings: &Settings) -> Result<String> {
    if let Some(coordinator) = &settings.coordinator {
        return Ok(coordinator.value.trim_end_matches('/').to_owned());
    }
    let path = settings.coordinator_dir().join("endpoint");
    match read_line(&path) {
        Ok(url) => Ok(url.trim_end_matches('/').to_owned()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let reason = format!("none was started in {}", settings.data_dir.value.display());
            Err(CliError::unreachable(&format!("http://{DEFAULT_LISTEN}"), &reason))
        }
        Err(error) => Err(CliError::file("read", &path, error).hint(
            "run the command as the farm's administrator, or say --coordinator URL and --token-file FILE",
        )),
    }
}

/// The administrator's token of this machine. It goes to this machine's coordinator and nowhere else, so that a
/// mistyped or malicious URL cannot collect it.
fn local_token(settings: &Settings, url: &str) -> Result<(Option<String>, String)> {
    let endpoint = read_line(&settings.coordinator_dir().join("endpoint")).unwrap_or_default();
    if !same_local_server(url, &endpoint) {
        return Ok((None, "nowhere".to_owned()));
    }
    let path = settings.coordinator_dir().join("admin.token");
    Ok((Some(read_token(&path)?), path.display().to_string()))
}

fn read_token(path: &Path) -> Result<String> {
    let token = read_line(path).map_err(|error| {
        let hint = match error.kind() {
            std::io::ErrorKind::PermissionDenied => {
                "run the command as the file's owner (sudo), or name a token of your own: --token-file FILE"
            }
            _ => "name the file of a token: --token-file FILE or BUILDYARD_TOKEN_FILE",
        };
        CliError::file("read the token", path, error).hint(hint)
    })?;
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(CliError::usage(format!("{} holds no token", path.display()))
            .hint("the file must hold the token and nothing else"));
    }
    Ok(token)
}

/// Reads a short file's text without the white space around it.
fn read_line(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?.take(FILE_LIMIT_BYTES as u64).read_to_string(&mut text)?;
    Ok(text.trim().to_owned())
}

/// Whether two URLs name the same port of this machine.
fn same_local_server(one: &str, other: &str) -> bool {
    let (Ok(one), Ok(other)) = (Url::parse(one), Url::parse(other)) else {
        return false;
    };
    let same_port = one.port_or_known_default() == other.port_or_known_default();
    let same_host = one.host_str() == other.host_str();
    one.scheme() == other.scheme() && same_port && (same_host || (is_loopback(&one) && is_loopback(&other)))
}

/// Whether a URL names this machine's loopback.
pub(crate) fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_sent_where_the_process_that_listened_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let own = OwnCoordinator { folder: folder.path().to_owned() };
        let write = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
        let url = "http://127.0.0.1:7317";
        write("endpoint", format!("{url}\n"));
        assert!(own.check(url).is_err(), "an address alone is nobody's");
        let process = ProcessId::of(std::process::id()).unwrap();
        write("process.json", serde_json::to_string(&process).unwrap());
        assert!(own.check(url).is_ok());
        assert!(own.check("http://127.0.0.1:7318").is_err(), "it listens elsewhere by now");
        let earlier = ProcessId { started: process.started - 1, ..process };
        write("process.json", serde_json::to_string(&earlier).unwrap());
        let error = own.check(url).unwrap_err();
        assert_eq!(error.kind, crate::exit::Kind::Unreachable);
        assert!(error.hint.unwrap().contains("buildyard up"));
    }

    #[test]
    fn the_local_token_goes_to_this_machines_coordinator_only() {
        let endpoint = "http://127.0.0.1:7317";
        for url in ["http://127.0.0.1:7317", "http://localhost:7317/", "http://[::1]:7317"] {
            assert!(same_local_server(url, endpoint), "{url}");
        }
        for url in
            ["http://127.0.0.1:7318", "http://farm:7317", "https://127.0.0.1:7317", "http://1.2.3.4:7317", ""]
        {
            assert!(!same_local_server(url, endpoint), "{url}");
        }
        assert!(!same_local_server(endpoint, ""));
    }
}
