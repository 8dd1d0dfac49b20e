//! Which known holes a version of runc has.

/// A hole out of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hole {
    pub(super) names: &'static str,
    /// Whether everyone who runs jobs of others should stop until it is mended.
    pub(super) grave: bool,
    /// Whether a distribution may have mended it without a new version.
    pub(super) perhaps_mended: bool,
}

/// `1.1.5+ds1 (1.1.5+ds1-1+deb12u1)`, `1.3.0`, `1.4.0-rc.2`.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Version {
    numbers: [u32; 3],
    /// Counts after `-rc.`; a release has none and comes after all of them.
    candidate: u32,
}

fn parse(text: &str) -> Option<Version> {
    let word = text.split_whitespace().next()?;
    let (plain, candidate) = match word.split_once("-rc.") {
        Some((plain, rest)) => {
            (plain, rest.chars().take_while(char::is_ascii_digit).collect::<String>().parse().ok()?)
        }
        None => (word, u32::MAX),
    };
    let plain = plain.split(['+', '~', '-']).next()?;
    let mut numbers = [0; 3];
    let mut parts = plain.split('.');
    for number in &mut numbers {
        *number = parts.next()?.parse().ok()?;
    }
    Some(Version { numbers, candidate })
}

/// The holes of a version; `None` if the text is no version.
pub(super) fn holes(text: &str) -> Option<Vec<Hole>> {
    let version = parse(text)?;
    let mut found = Vec::new();
    if version.numbers < [1, 1, 12] && !has_debians_correction(text) {
        found.push(Hole { names: "CVE-2024-21626", grave: true, perhaps_mended: false });
    }
    let release = |numbers| Version { numbers, candidate: u32::MAX };
    let mended = match version.numbers {
        [1, 2, _] => version >= release([1, 2, 8]),
        [1, 3, _] => version >= release([1, 3, 3]),
        _ => version >= Version { numbers: [1, 4, 0], candidate: 3 },
    };
    if !mended {
        let names = "CVE-2025-31133, CVE-2025-52565, CVE-2025-52881";
        found.push(Hole {
            names,
            grave: false,
            perhaps_mended: text.contains("deb") || text.contains("ubuntu"),
        });
    }
    Some(found)
}

/// Debian 12 mended CVE-2024-21626 in 1.1.5 itself.
fn has_debians_correction(text: &str) -> bool {
    text.contains("1.1.5+ds1-1+deb12u")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_held_against_what_mended_them() {
        for (text, old, new) in [
            ("1.1.4", true, true),
            ("1.1.11", true, true),
            ("1.1.12", false, true),
            ("1.1.5+ds1", true, true),
            ("1.1.5+ds1 (1.1.5+ds1-1+deb12u1)", false, true),
            ("1.2.7", false, true),
            ("1.2.8", false, false),
            ("1.3.2", false, true),
            ("1.3.3", false, false),
            ("1.4.0-rc.2", false, true),
            ("1.4.0-rc.3", false, false),
            ("1.4.0", false, false),
            ("1.10.0", false, false),
            ("2.0.0", false, false),
        ] {
            let found = holes(text).unwrap_or_else(|| panic!("{text}"));
            let has = |name: &str| found.iter().any(|hole| hole.names.contains(name));
            assert_eq!((has("21626"), has("31133")), (old, new), "{text}");
        }
        for text in ["", "unknown", "1.2", "v1.2.8"] {
            assert_eq!(holes(text), None, "{text}");
        }
    }
}
