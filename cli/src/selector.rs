//! `-l key=value`: which rows of a list are wanted. Pure; several selectors must all hold.

use std::str::FromStr;

use buildyard_types::api::{JobView, RunView, WorkerView};
use clap::Args;

use crate::commands::jobs;
use crate::exit::{CliError, Result};
use crate::output;

/// The flag of every list that can be narrowed down.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct Selectors {
    /// Only what has this value; may be given several times, and then all must hold
    #[arg(short = 'l', long = "select", value_name = "KEY=VALUE")]
    selectors: Vec<Selector>,
}

/// One key and the value that is wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Selector {
    key: String,
    value: String,
}

impl FromStr for Selector {
    type Err = &'static str;

    fn from_str(text: &str) -> std::result::Result<Self, Self::Err> {
        match text.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok(Self { key: key.into(), value: value.into() }),
            Some(_) | None => Err("a selector is written key=value"),
        }
    }
}

/// Something that has values by key.
pub(crate) trait Selectable {
    /// The keys that everything of this kind has.
    const KEYS: &'static [&'static str];
    /// Whether other keys are possible: facts that a worker found.
    const HAS_OTHER_KEYS: bool = false;

    /// The values of a key; one of them has to be the wanted one.
    fn values(&self, key: &str) -> Vec<String>;
}

impl Selectors {
    /// Whether everything is wanted.
    pub(crate) fn is_empty(&self) -> bool {
        self.selectors.is_empty()
    }

    /// Refuses a key that a kind of thing does not have, rather than finding nothing for ever.
    pub(crate) fn check<T: Selectable>(&self) -> Result {
        let known = |selector: &&Selector| T::HAS_OTHER_KEYS || T::KEYS.contains(&selector.key.as_str());
        match self.selectors.iter().find(|selector| !known(selector)) {
            None => Ok(()),
            Some(unknown) => {
                Err(CliError::usage(format!("nothing here has a `{}` to select by", unknown.key))
                    .hint(format!("the keys are {}", T::KEYS.join(", "))))
            }
        }
    }

    /// Whether one thing is wanted.
    pub(crate) fn wants<T: Selectable>(&self, thing: &T) -> bool {
        self.selectors.iter().all(|selector| thing.values(&selector.key).contains(&selector.value))
    }
}

impl Selectable for RunView {
    const KEYS: &'static [&'static str] = &["state", "pipeline", "file", "repository", "commit", "ref"];

    fn values(&self, key: &str) -> Vec<String> {
        match key {
            "state" => vec![output::run_word(self).1, self.state.to_string()],
            "pipeline" => vec![self.pipeline.clone()],
            "file" => vec![self.file.clone()],
            "repository" => vec![self.repository.clone()],
            "commit" => vec![output::short_commit(&self.commit), self.commit.clone()],
            "ref" => {
                let short = self.ref_name.as_deref().map(|name| output::short_ref(name).to_owned());
                self.ref_name.iter().cloned().chain(short).collect()
            }
            _ => Vec::new(),
        }
    }
}

impl Selectable for JobView {
    const KEYS: &'static [&'static str] = &["state", "name", "image", "worker"];

    fn values(&self, key: &str) -> Vec<String> {
        match key {
            "state" => vec![jobs::word(self), self.state.to_string()],
            "name" => vec![self.name.clone()],
            "image" => vec![self.image.clone()],
            "worker" => {
                let workers = self.attempts.iter();
                workers
                    .flat_map(|attempt| [attempt.worker_name.clone(), attempt.worker.to_string()])
                    .collect()
            }
            _ => Vec::new(),
        }
    }
}

impl Selectable for WorkerView {
    const KEYS: &'static [&'static str] = &["state", "name", "cordoned", "pool", "any fact"];
    const HAS_OTHER_KEYS: bool = true;

    fn values(&self, key: &str) -> Vec<String> {
        match key {
            "state" => vec![self.liveness.to_string()],
            "name" => vec![self.name.clone()],
            "cordoned" => vec![self.cordoned.to_string()],
            "pool" => self.labels.pools.iter().cloned().collect(),
            fact => self.labels.facts.get(fact).cloned().into_iter().collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Thing;

    impl Selectable for Thing {
        const KEYS: &'static [&'static str] = &["name", "pool"];

        fn values(&self, key: &str) -> Vec<String> {
            match key {
                "name" => vec!["one".into()],
                "pool" => vec!["gpu".into(), "big".into()],
                _ => Vec::new(),
            }
        }
    }

    fn selectors(texts: &[&str]) -> Selectors {
        Selectors { selectors: texts.iter().map(|text| text.parse().unwrap()).collect() }
    }

    #[test]
    fn all_selectors_must_hold_and_any_value_of_a_key_will_do() {
        for (texts, expected) in [
            (&[][..], true),
            (&["name=one"], true),
            (&["name=one", "pool=big"], true),
            (&["name=one", "pool=small"], false),
            (&["name="], false),
        ] {
            assert_eq!(selectors(texts).wants(&Thing), expected, "{texts:?}");
        }
    }

    #[test]
    fn a_key_that_nothing_has_is_refused_with_those_there_are() {
        assert!(selectors(&["pool=x"]).check::<Thing>().is_ok());
        let error = selectors(&["pol=x"]).check::<Thing>().unwrap_err();
        assert!(error.hint.unwrap().contains("pool"));
        for text in ["", "name", "=x"] {
            assert!(text.parse::<Selector>().is_err(), "{text}");
        }
        assert_eq!("a=b=c".parse::<Selector>().unwrap().value, "b=c");
    }
}
