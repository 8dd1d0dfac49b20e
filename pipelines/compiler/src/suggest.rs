//! "Did you mean …?"

/// Finds near words, as long as its budget lasts: comparing costs the product of the lengths, and a hostile file
/// can ask for a hundred thousand comparisons.
#[derive(Debug)]
pub(crate) struct Suggester {
    budget: usize,
}

/// Cells of the comparison table, over one file: some milliseconds.
const BUDGET: usize = 4_000_000;
/// Longer words are never compared.
const MAX_LENGTH: usize = 64;

impl Suggester {
    pub(crate) fn new() -> Self {
        Self { budget: BUDGET }
    }

    /// The nearest of some words, if one is near enough to be a slip of the hand; the first of equals.
    pub(crate) fn nearest<'w>(
        &mut self,
        word: &str,
        known: impl IntoIterator<Item = &'w str>,
    ) -> Option<&'w str> {
        if word.is_empty() || word.len() > MAX_LENGTH {
            return None;
        }
        let allowed = (word.chars().count() / 3).clamp(1, 3);
        let mut best: Option<(usize, &str)> = None;
        for candidate in known {
            if candidate.eq_ignore_ascii_case(word) {
                return Some(candidate);
            }
            if candidate.len() > MAX_LENGTH || candidate.len().abs_diff(word.len()) > allowed * 4 {
                continue;
            }
            let cost = (candidate.len() + 1) * (word.len() + 1);
            if cost > self.budget {
                return None;
            }
            self.budget -= cost;
            let distance = strsim::osa_distance(word, candidate);
            if distance <= allowed && best.is_none_or(|(least, _)| distance < least) {
                best = Some((distance, candidate));
            }
        }
        best.map(|(_, candidate)| candidate)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_words_are_found_and_far_ones_are_not() {
        let known = ["needs", "image", "run", "steps", "labels"];
        for (word, expected) in [
            ("need", Some("needs")),
            ("imgae", Some("image")),
            ("Image", Some("image")),
            ("step", Some("steps")),
            ("nun", Some("run")),
            ("lables", Some("labels")),
            ("rum", Some("run")),
            ("artifacts", None),
            ("x", None),
            ("", None),
        ] {
            assert_eq!(Suggester::new().nearest(word, known), expected, "{word}");
        }
    }

    #[test]
    fn the_budget_ends_the_search() {
        let mut suggester = Suggester::new();
        let long = "y".repeat(64);
        let near = format!("{}z", "y".repeat(63));
        assert_eq!(suggester.nearest(&long, [near.as_str()]), Some(near.as_str()));
        while suggester.nearest(&long, [near.as_str()]).is_some() {}
        assert!(suggester.budget < 65 * 65);
    }
}
