//! Configuration in layers: flags, then `BUILDYARD_*`, then the user's file, then the system's, then defaults.
//! Each value knows where it came from. Nothing is read from the folder one happens to stand in.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::exit::{CliError, Kind, Result};

/// The system's file.
pub(crate) const SYSTEM_FILE: &str = "/etc/buildyard/cli.toml";
const DEFAULT_DATA_DIR: &str = "/var/lib/buildyard";
/// Largest configuration file that is read.
const FILE_LIMIT_BYTES: u64 = 1 << 20;

/// What one layer says. Also the form of the files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Layer {
    /// URL of the coordinator.
    pub(crate) coordinator: Option<String>,
    /// File that holds the bearer token.
    pub(crate) token_file: Option<PathBuf>,
    /// Where the farm of this machine keeps its data.
    pub(crate) data_dir: Option<PathBuf>,
}

/// Where a value came from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Origin {
    /// A flag of the command line.
    Flag,
    /// A variable of the environment.
    Env,
    /// A configuration file.
    File(PathBuf),
    /// Nobody said anything.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Flag => f.write_str("flag"),
            Origin::Env => f.write_str("environment"),
            Origin::File(path) => write!(f, "{}", path.display()),
            Origin::Default => f.write_str("default"),
        }
    }
}

/// A value and its origin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Sourced<T> {
    /// The value.
    pub(crate) value: T,
    /// Where it came from.
    pub(crate) origin: Origin,
}

/// All layers laid over each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// URL of the coordinator; `None`: the one of this machine.
    pub(crate) coordinator: Option<Sourced<String>>,
    /// File that holds the bearer token; `None`: the administrator's of this machine.
    pub(crate) token_file: Option<Sourced<PathBuf>>,
    /// Where the farm of this machine keeps its data.
    pub(crate) data_dir: Sourced<PathBuf>,
}

/// One line of `config show`.
#[derive(Debug, Serialize)]
pub(crate) struct Entry {
    /// The key in the files.
    pub(crate) key: &'static str,
    /// Its value; `None` where none is set.
    pub(crate) value: Option<String>,
    /// Where it came from.
    pub(crate) origin: String,
}

/// Lays layers over each other; the first that has a value wins.
pub(crate) fn resolve(layers: &[(Origin, Layer)]) -> Settings {
    fn first<T: Clone>(layers: &[(Origin, Layer)], get: impl Fn(&Layer) -> &Option<T>) -> Option<Sourced<T>> {
        layers.iter().find_map(|(origin, layer)| {
            get(layer).clone().map(|value| Sourced { value, origin: origin.clone() })
        })
    }
    Settings {
        coordinator: first(layers, |layer| &layer.coordinator),
        token_file: first(layers, |layer| &layer.token_file),
        data_dir: first(layers, |layer| &layer.data_dir)
            .unwrap_or(Sourced { value: DEFAULT_DATA_DIR.into(), origin: Origin::Default }),
    }
}

/// Reads one file's text. A relative path in it is meant from the file's own folder.
pub(crate) fn parse(text: &str, path: &Path) -> Result<Layer> {
    let mut layer: Layer = toml::from_str(text).map_err(|error| {
        CliError::usage(format!("{} is not a valid configuration file", path.display()))
            .because(error.message().to_owned())
            .hint("known keys: coordinator, token_file, data_dir")
    })?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    for value in [&mut layer.token_file, &mut layer.data_dir].into_iter().flatten() {
        *value = folder.join(&*value);
    }
    Ok(layer)
}

/// Reads every layer below `flags`, which holds flags alone.
pub(crate) fn load(flags: Layer) -> Result<Settings> {
    let mut layers = vec![(Origin::Flag, absolute(flags)?), (Origin::Env, absolute(from_env())?)];
    for path in user_file().into_iter().chain([PathBuf::from(SYSTEM_FILE)]) {
        if let Some(layer) = read_file(&path)? {
            layers.push((Origin::File(path), layer));
        }
    }
    let settings = resolve(&layers);
    if let Some(coordinator) = &settings.coordinator {
        check_url(coordinator)?;
    }
    Ok(settings)
}

impl Settings {
    /// The coordinator's part of the data directory.
    pub(crate) fn coordinator_dir(&self) -> PathBuf {
        self.data_dir.value.join("coordinator")
    }

    /// The worker's part of the data directory.
    pub(crate) fn worker_dir(&self) -> PathBuf {
        self.data_dir.value.join("worker")
    }

    /// The logs of what `up` started.
    pub(crate) fn log_dir(&self) -> PathBuf {
        self.data_dir.value.join("log")
    }

    /// Every value with its origin.
    pub(crate) fn entries(&self) -> Vec<Entry> {
        fn entry<T>(key: &'static str, value: Option<&Sourced<T>>, show: impl Fn(&T) -> String) -> Entry {
            match value {
                Some(sourced) => {
                    Entry { key, value: Some(show(&sourced.value)), origin: sourced.origin.to_string() }
                }
                None => Entry { key, value: None, origin: Origin::Default.to_string() },
            }
        }
        let path = |path: &PathBuf| path.display().to_string();
        vec![
            entry("coordinator", self.coordinator.as_ref(), String::clone),
            entry("token_file", self.token_file.as_ref(), path),
            entry("data_dir", Some(&self.data_dir), path),
        ]
    }
}

fn from_env() -> Layer {
    let var = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    Layer {
        coordinator: var("BUILDYARD_COORDINATOR").map(|value| value.to_string_lossy().into_owned()),
        token_file: var("BUILDYARD_TOKEN_FILE").map(PathBuf::from),
        data_dir: var("BUILDYARD_DATA_DIR").map(PathBuf::from),
    }
}

/// The supervisor and its children do not share a working folder with whoever typed the path.
fn absolute(mut layer: Layer) -> Result<Layer> {
    for path in [&mut layer.token_file, &mut layer.data_dir].into_iter().flatten() {
        *path = std::path::absolute(&*path).map_err(|error| CliError::file("resolve", path, error))?;
    }
    Ok(layer)
}

fn user_file() -> Option<PathBuf> {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_CONFIG_HOME").or_else(|| Some(set("HOME")?.join(".config")))?;
    // The specification of XDG: a relative path is invalid and ignored.
    base.is_absolute().then(|| base.join("buildyard/config.toml"))
}

fn read_file(path: &Path) -> Result<Option<Layer>> {
    let length = match std::fs::metadata(path) {
        Ok(data) => data.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(CliError::file("read", path, error)),
    };
    if length > FILE_LIMIT_BYTES {
        return Err(CliError::usage(format!("{} is larger than 1 MiB", path.display())));
    }
    let text = std::fs::read_to_string(path).map_err(|error| CliError::file("read", path, error))?;
    parse(&text, path).map(Some)
}

fn check_url(coordinator: &Sourced<String>) -> Result {
    let url = &coordinator.value;
    let said = |reason: &str| {
        CliError::usage(format!("`{url}` is no coordinator URL ({}): {reason}", coordinator.origin))
            .hint("write it as http://HOST:PORT")
    };
    match reqwest::Url::parse(url) {
        Err(error) => Err(said(&error.to_string())),
        Ok(parsed) if parsed.scheme() == "https" => {
            Err(CliError::new(Kind::Usage, format!("`{url}`: TLS is not spoken yet"))
                .hint("reach a distant coordinator through a tunnel, for example `ssh -L`"))
        }
        Ok(parsed) if parsed.scheme() != "http" => Err(said("its scheme is not http")),
        Ok(parsed) if !parsed.username().is_empty() || parsed.password().is_some() => Err(CliError::usage(
            format!("the coordinator's URL ({}) holds a user or a password", coordinator.origin),
        )
        .hint("tokens come from a file: --token-file FILE")),
        Ok(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(coordinator: Option<&str>, data_dir: Option<&str>) -> Layer {
        Layer {
            coordinator: coordinator.map(Into::into),
            token_file: None,
            data_dir: data_dir.map(Into::into),
        }
    }

    #[test]
    fn the_nearest_layer_wins_value_by_value() {
        let file = Origin::File("/etc/buildyard/cli.toml".into());
        let settings = resolve(&[
            (Origin::Flag, layer(None, Some("/flag"))),
            (Origin::Env, layer(Some("http://env"), Some("/env"))),
            (file.clone(), layer(Some("http://file"), None)),
        ]);
        assert_eq!(settings.data_dir, Sourced { value: "/flag".into(), origin: Origin::Flag });
        assert_eq!(settings.coordinator, Some(Sourced { value: "http://env".into(), origin: Origin::Env }));
        assert_eq!(settings.token_file, None);
        let bare = resolve(&[(file, Layer::default())]);
        assert_eq!(bare.data_dir, Sourced { value: DEFAULT_DATA_DIR.into(), origin: Origin::Default });
    }

    #[test]
    fn paths_of_a_file_are_meant_from_its_folder() {
        let read =
            parse("token_file = \"farm.token\"\ndata_dir = \"/srv/farm\"", Path::new("/etc/b/cli.toml"));
        let read = read.unwrap();
        assert_eq!(read.token_file, Some("/etc/b/farm.token".into()));
        assert_eq!(read.data_dir, Some("/srv/farm".into()));
    }

    #[test]
    fn an_unknown_key_is_an_error_that_names_the_known_ones() {
        let error = parse("token = \"secret\"", Path::new("/x.toml")).unwrap_err();
        assert_eq!(error.kind, Kind::Usage);
        assert!(error.hint.unwrap().contains("token_file"));
    }

    #[test]
    fn only_plain_http_urls_without_credentials_are_taken() {
        let check = |url: &str| check_url(&Sourced { value: url.into(), origin: Origin::Flag });
        assert!(check("http://127.0.0.1:7317").is_ok());
        for url in ["", "127.0.0.1:7317", "ftp://x", "https://farm", "http://me:secret@farm"] {
            assert_eq!(check(url).unwrap_err().kind, Kind::Usage, "{url}");
        }
    }
}
