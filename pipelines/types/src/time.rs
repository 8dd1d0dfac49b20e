//! Time as data. Nothing in a pure crate asks a clock; the shells hand in what they read.

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A moment, in milliseconds since 1970-01-01T00:00:00Z.
///
/// Inside one process the shells derive it from a monotonic clock that is anchored once at start, so that a
/// jump of the wall clock moves no lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Timestamp(pub u64);

/// A length of time in milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Millis(pub u64);

impl Millis {
    /// So many seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(seconds.saturating_mul(1_000))
    }

    /// So many minutes.
    pub const fn from_mins(minutes: u64) -> Self {
        Self::from_secs(minutes.saturating_mul(60))
    }
}

impl From<Millis> for std::time::Duration {
    fn from(value: Millis) -> Self {
        Self::from_millis(value.0)
    }
}

impl Timestamp {
    /// Time passed since `earlier`; zero if `earlier` is in fact later.
    pub fn since(self, earlier: Timestamp) -> Millis {
        Millis(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Millis> for Timestamp {
    type Output = Timestamp;

    fn add(self, span: Millis) -> Timestamp {
        Timestamp(self.0.saturating_add(span.0))
    }
}

impl Sub<Millis> for Timestamp {
    type Output = Timestamp;

    fn sub(self, span: Millis) -> Timestamp {
        Timestamp(self.0.saturating_sub(span.0))
    }
}

impl fmt::Display for Millis {
    /// `850ms`, `12.3s`, `4m 05s`, `2h 10m`: as short as it can be said.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / 1_000;
        match self.0 {
            0..1_000 => write!(f, "{}ms", self.0),
            1_000..60_000 => write!(f, "{}.{}s", seconds, self.0 % 1_000 / 100),
            60_000..3_600_000 => write!(f, "{}m {:02}s", seconds / 60, seconds % 60),
            _ => write!(f, "{}h {:02}m", seconds / 3_600, seconds / 60 % 60),
        }
    }
}

/// Why a text is not a length of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a duration; write a number and a unit, such as `500ms`, `90s`, `30m`, `2h` or `7d`")]
pub struct ParseDurationError(String);

/// A length of time as people write it in configuration: `30m`, `1h 30m`. Serialises as that text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct HumanDuration(pub Millis);

impl FromStr for HumanDuration {
    type Err = ParseDurationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = || ParseDurationError(text.chars().take(40).collect());
        let mut total: u64 = 0;
        let mut rest = text.trim();
        if rest.is_empty() {
            return Err(fail());
        }
        while !rest.is_empty() {
            let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let count: u64 = rest[..digits].parse().map_err(|_| fail())?;
            rest = &rest[digits..];
            let letters = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_alphabetic()).len();
            let unit: u64 = match &rest[..letters] {
                "ms" => 1,
                "s" => 1_000,
                "m" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return Err(fail()),
            };
            let part = count.checked_mul(unit).ok_or_else(fail)?;
            total = total.checked_add(part).ok_or_else(fail)?;
            rest = rest[letters..].trim_start();
        }
        Ok(Self(Millis(total)))
    }
}

impl fmt::Display for HumanDuration {
    /// The exact value in the largest unit that divides it, so that it reads back as itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.0;
        for (unit, name) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1_000, "s")] {
            if ms != 0 && ms.is_multiple_of(unit) {
                return write!(f, "{}{}", ms / unit, name);
            }
        }
        write!(f, "{ms}ms")
    }
}

impl Serialize for HumanDuration {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for HumanDuration {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_read_as_people_write_them() {
        for (text, ms) in
            [("30m", 1_800_000), ("1h 30m", 5_400_000), ("90s", 90_000), ("250ms", 250), ("7d", 604_800_000)]
        {
            assert_eq!(text.parse(), Ok(HumanDuration(Millis(ms))), "{text}");
        }
        for text in ["", "30", "m", "1.5h", "-1s", "9999999999999999999d", "3 m"] {
            assert!(text.parse::<HumanDuration>().is_err(), "{text}");
        }
    }

    proptest::proptest! {
        #[test]
        fn a_duration_reads_back_what_it_writes(ms: u64) {
            let duration = HumanDuration(Millis(ms));
            proptest::prop_assert_eq!(duration.to_string().parse(), Ok(duration));
        }
    }
}
