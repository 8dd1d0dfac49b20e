//! A check word in front of what is kept, so that a damaged byte is noticed and never read as another verdict.
//!
//! SQLite checks the frames of its log but not the pages of its main file: one flipped byte inside a row is
//! read back as if it had been written so. Therefore each JSON text is kept as 16 hexadecimal digits and the
//! text. The digits are FNV-1a over the kind, the id and the text: each step of FNV-1a is a bijection of its
//! state, so any change of one byte changes the result. Rows without JSON have the word as a number. It guards against failing disks, not against people.

use serde::Serialize;
use serde::de::DeserializeOwned;

const DIGITS: usize = 16;

/// What a sealed text was found to be.
#[derive(Debug, thiserror::Error)]
#[error("the {kind} of {id} is not what was written")]
pub(crate) struct BrokenSeal {
    kind: &'static str,
    id: String,
    #[source]
    source: Option<serde_json::Error>,
}

fn fnv1a(parts: [&[u8]; 3]) -> u64 {
    let step = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
    // A byte that is in no UTF-8 text stands between the parts: ("a", "bc") is not ("ab", "c").
    let bytes = parts.iter().flat_map(|part| part.iter().chain(&[0xff]));
    bytes.fold(0xcbf2_9ce4_8422_2325, step)
}

/// The sealed JSON of a value. `kind` and `id` say where it belongs: a row that is found elsewhere is broken.
pub(crate) fn seal(kind: &'static str, id: &str, value: &impl Serialize) -> String {
    let json = serde_json::to_string(value).expect("our types have string keys only, so they are JSON");
    let check = fnv1a([kind.as_bytes(), id.as_bytes(), json.as_bytes()]);
    format!("{check:0DIGITS$x}{json}")
}

/// The check word of a row whose values have columns of their own.
pub(crate) fn word(kind: &'static str, id: &str, row: &impl Serialize) -> i64 {
    let json = serde_json::to_vec(row).expect("rows are tuples of texts and numbers");
    fnv1a([kind.as_bytes(), id.as_bytes(), &json]).cast_signed()
}

/// Whether a row is what was written with this word.
pub(crate) fn check(kind: &'static str, id: &str, row: &impl Serialize, seal: i64) -> Result<(), BrokenSeal> {
    match word(kind, id, row) == seal {
        true => Ok(()),
        false => Err(BrokenSeal { kind, id: id.to_owned(), source: None }),
    }
}

/// Reads a sealed value back.
pub(crate) fn unseal<T: DeserializeOwned>(
    kind: &'static str,
    id: &str,
    sealed: &str,
) -> Result<T, BrokenSeal> {
    let broken = |source| BrokenSeal { kind, id: id.to_owned(), source };
    let (check, json) = sealed.split_at_checked(DIGITS).ok_or_else(|| broken(None))?;
    let expected = fnv1a([kind.as_bytes(), id.as_bytes(), json.as_bytes()]);
    if check != format!("{expected:0DIGITS$x}") {
        return Err(broken(None));
    }
    serde_json::from_str(json).map_err(|error| broken(Some(error)))
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn a_value_reads_back_and_any_changed_byte_is_noticed(text in "\\PC{0,60}", place: usize, flip in 1u8..=255) {
            let sealed = seal("state", "run-1", &text);
            proptest::prop_assert_eq!(unseal::<String>("state", "run-1", &sealed).ok(), Some(text));
            let mut bytes = sealed.into_bytes();
            let place = place % bytes.len();
            bytes[place] ^= flip;
            if let Ok(damaged) = String::from_utf8(bytes) {
                proptest::prop_assert!(unseal::<String>("state", "run-1", &damaged).is_err());
            }
        }
    }

    #[test]
    fn a_value_is_good_only_where_it_was_written() {
        let sealed = seal("state", "run-1", &1);
        assert!(unseal::<u32>("state", "run-2", &sealed).is_err());
        assert!(unseal::<u32>("spec", "run-1", &sealed).is_err());
        assert!(unseal::<u32>("state", "run-1", "").is_err());
    }
}
