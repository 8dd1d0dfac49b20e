//! Identifiers, one type per kind of thing, so that a worker cannot be passed where a job is meant.
//!
//! Run numbers are small and count up, because people say and type them ("run 42"); the ids below a run are
//! made of it: job 3 of run 42 is `job-42-3`, its second attempt `att-42-3-2`. A worker's id is random,
//! since a worker outlives databases. Idea of one sorted registry of typed ids: omicron's `uuid-kinds`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not an id. The message names the form that was expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a {kind} id; expected the form `{form}`")]
pub struct ParseIdError {
    text: String,
    kind: &'static str,
    form: &'static str,
}

impl ParseIdError {
    fn new(text: &str, kind: &'static str, form: &'static str) -> Self {
        // A hostile id must not fill a log line.
        let text = text.chars().take(64).collect();
        Self { text, kind, form }
    }
}

/// One execution of a pipeline for one commit. Written `run-42`; a bare `42` is read too.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RunId(pub u64);

/// Position of a job in its run's graph, counted from 0 in file order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct JobIndex(pub u32);

/// A node of a run's graph. Written `job-42-3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct JobId {
    /// The run that the job belongs to.
    pub run: RunId,
    /// Its place in that run's graph.
    pub index: JobIndex,
}

/// Which placement of a job this is, counted from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct AttemptNumber(pub u32);

/// One placement of a job on one worker: one lease, one throwaway container. Written `att-42-3-1`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AttemptId {
    /// The job that is being attempted.
    pub job: JobId,
    /// Which attempt at it.
    pub number: AttemptNumber,
}

/// A host that runs attempts. Written `wkr-` and 13 characters of Crockford base 32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct WorkerId(pub u64);

/// Grows with every attempt of the farm and is never used twice. A write that carries an older fence than
/// the attempt it speaks of is stale: it is refused and changes nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fence(pub u64);

/// Counts the starts of the coordinator on one database. A scheduler of an older epoch can commit nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u64);

const CROCKFORD: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";

/// Reads a number as ids are written: digits only, no sign, no leading zero (one spelling per id).
fn number<T: FromStr>(text: &str) -> Option<T> {
    let canonical = text == "0" || !text.starts_with('0');
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if canonical && digits { text.parse().ok() } else { None }
}

impl RunId {
    const FORM: &'static str = "run-42";

    /// The job at a place of this run's graph.
    pub fn job(self, index: u32) -> JobId {
        JobId { run: self, index: JobIndex(index) }
    }
}

impl JobId {
    const FORM: &'static str = "job-42-3";

    /// An attempt at this job, counted from 1.
    pub fn attempt(self, number: u32) -> AttemptId {
        AttemptId { job: self, number: AttemptNumber(number) }
    }
}

impl AttemptId {
    const FORM: &'static str = "att-42-3-1";

    /// The run that the attempt belongs to.
    pub fn run(self) -> RunId {
        self.job.run
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "run-{}", self.0)
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "job-{}-{}", self.run.0, self.index.0)
    }
}

impl fmt::Display for AttemptId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "att-{}-{}-{}", self.job.run.0, self.job.index.0, self.number.0)
    }
}

impl fmt::Display for WorkerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("wkr-")?;
        // 13 digits of 5 bits hold 65 bits; the first digit carries the top 4 bits of 64.
        for place in (0..13).rev() {
            let digit = (self.0 >> (place * 5)) & 31;
            write!(f, "{}", char::from(CROCKFORD[digit as usize]))?;
        }
        Ok(())
    }
}

impl FromStr for RunId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.strip_prefix("run-").unwrap_or(text);
        number(digits).map(RunId).ok_or_else(|| ParseIdError::new(text, "run", Self::FORM))
    }
}

impl FromStr for JobId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (run, index) = text.strip_prefix("job-")?.split_once('-')?;
            Some(RunId(number(run)?).job(number(index)?))
        };
        parse().ok_or_else(|| ParseIdError::new(text, "job", Self::FORM))
    }
}

impl FromStr for AttemptId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let mut parts = text.strip_prefix("att-")?.split('-');
            let run = RunId(number(parts.next()?)?);
            let job = run.job(number(parts.next()?)?);
            let attempt = job.attempt(number(parts.next()?)?);
            parts.next().is_none().then_some(attempt)
        };
        parse().ok_or_else(|| ParseIdError::new(text, "attempt", Self::FORM))
    }
}

impl FromStr for WorkerId {
    type Err = ParseIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let digits = text.strip_prefix("wkr-")?;
            if digits.len() != 13 {
                return None;
            }
            let mut value: u128 = 0;
            for byte in digits.bytes() {
                let digit = CROCKFORD.iter().position(|known| *known == byte)?;
                value = (value << 5) | digit as u128;
            }
            u64::try_from(value).ok().map(WorkerId)
        };
        parse().ok_or_else(|| ParseIdError::new(text, "worker", "wkr-0123456789abc"))
    }
}

macro_rules! serde_as_text {
    ($($id:ty),+) => {$(
        impl Serialize for $id {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $id {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}

serde_as_text!(RunId, JobId, AttemptId, WorkerId);

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn every_id_reads_back_what_it_writes(run: u64, index: u32, attempt: u32, worker: u64) {
            let run = RunId(run);
            let attempt = run.job(index).attempt(attempt);
            prop_assert_eq!(run.to_string().parse(), Ok(run));
            prop_assert_eq!(attempt.job.to_string().parse(), Ok(attempt.job));
            prop_assert_eq!(attempt.to_string().parse(), Ok(attempt));
            prop_assert_eq!(WorkerId(worker).to_string().parse(), Ok(WorkerId(worker)));
        }

        #[test]
        fn no_text_makes_the_readers_panic(text in "\\PC{0,40}") {
            let _ = (text.parse::<RunId>(), text.parse::<JobId>(), text.parse::<AttemptId>(), text.parse::<WorkerId>());
        }
    }

    #[test]
    fn an_id_has_one_spelling() {
        for text in
            ["", "run-", "run-042", "run--1", "run-+1", "run-99999999999999999999", "job-1-2", "ran-1"]
        {
            assert!(text.parse::<RunId>().is_err(), "{text}");
        }
        for text in ["job-1", "job-1-2-3", "job-01-2", "job-1-", "1-2"] {
            assert!(text.parse::<JobId>().is_err(), "{text}");
        }
        assert!("wkr-zzzzzzzzzzzzz".parse::<WorkerId>().is_err(), "65 bits do not fit");
    }

    #[test]
    fn the_error_names_the_form_and_bounds_the_text() {
        let error = "x".repeat(10_000).parse::<JobId>().unwrap_err().to_string();
        assert!(error.len() < 200 && error.contains("job-42-3"), "{error}");
    }
}
