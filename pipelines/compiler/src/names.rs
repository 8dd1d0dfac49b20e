//! What texts may be: names, variables, images and paths. Each function answers with what is wrong, if anything.

use crate::limits::{MAX_IMAGE_BYTES, MAX_NAME_BYTES, MAX_PATH_BYTES, MAX_STEP_NAME_CHARS};

/// What is wrong with a name of a pipeline, job or artifact.
pub(crate) fn fault_of_name(name: &str) -> Option<String> {
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphanumeric());
    let is_sign = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if name.is_empty() {
        Some("a name cannot be empty".to_owned())
    } else if name.len() > MAX_NAME_BYTES {
        Some(format!("a name has at most {MAX_NAME_BYTES} characters, this one has {}", name.chars().count()))
    } else if let Some(strange) = name.chars().find(|c| !is_sign(*c)) {
        let strange = match strange {
            ' ' => "a blank".to_owned(),
            _ if strange.is_control() => "a control character".to_owned(),
            _ => format!("`{strange}`"),
        };
        Some(format!("a name holds letters, digits, `-`, `_` and `.`, found {strange}"))
    } else if !begins_well {
        Some("a name begins with a letter or a digit".to_owned())
    } else {
        None
    }
}

/// What is wrong with a step's name, which is only shown.
pub(crate) fn fault_of_step_name(name: &str) -> Option<String> {
    if name.trim().is_empty() {
        Some("a name cannot be empty".to_owned())
    } else if name.chars().count() > MAX_STEP_NAME_CHARS {
        Some(format!("a step's name has at most {MAX_STEP_NAME_CHARS} characters"))
    } else if name.chars().any(char::is_control) {
        Some("a step's name stands on one line, without control characters".to_owned())
    } else if name.trim() != name {
        Some("a step's name neither begins nor ends with a blank".to_owned())
    } else {
        None
    }
}

/// What is wrong with the name of a variable.
pub(crate) fn fault_of_variable(name: &str) -> Option<&'static str> {
    let begins_well = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    let is_plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    if begins_well && is_plain {
        None
    } else {
        Some("a variable's name holds letters, digits and `_`, and does not begin with a digit")
    }
}

/// What is wrong with an image's name, and where in it.
///
/// The forms are `name`, `host:port/path/name`, each with `:tag` or `@sha256:…` or both. The engine would refuse
/// others too, but only on the worker, after the job has waited for its place.
pub(crate) fn fault_of_image(image: &str) -> Option<(String, usize)> {
    if image.is_empty() {
        return Some(("an image's name cannot be empty".to_owned(), 0));
    }
    if image.len() > MAX_IMAGE_BYTES {
        return Some((format!("an image's name has at most {MAX_IMAGE_BYTES} characters"), 0));
    }
    let is_sign = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-' | '/' | ':' | '@');
    if let Some((at, strange)) = image.char_indices().find(|(_, c)| !is_sign(*c)) {
        let what = if strange.is_whitespace() {
            "blanks".to_owned()
        } else {
            format!("`{}`", strange.escape_debug())
        };
        return Some((format!("an image's name cannot hold {what}"), at));
    }
    let (named, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    if digest.is_some_and(|digest| !is_digest(digest)) {
        let message = "a digest is `sha256:` and 64 hexadecimal digits in lowercase".to_owned();
        return Some((message, named.len() + 1));
    }
    let path_start = named.rfind('/').map_or(0, |slash| slash + 1);
    let (name, tag) = match named[path_start..].find(':') {
        Some(colon) => (&named[..path_start + colon], Some(&named[path_start + colon + 1..])),
        None => (named, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Some(("a tag has 1 to 128 letters, digits, `.`, `_` and `-`".to_owned(), name.len() + 1));
    }
    fault_of_repository(name)
}

fn fault_of_repository(name: &str) -> Option<(String, usize)> {
    let mut at = 0;
    for (index, part) in name.split('/').enumerate() {
        let is_host = index == 0 && name.contains('/') && (part.contains(['.', ':']) || part == "localhost");
        if !is_host && part.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Some((
                "the name of an image is lowercase; only its tag may hold capitals".to_owned(),
                at,
            ));
        }
        let begins = part.starts_with(|c: char| c.is_ascii_alphanumeric());
        let ends = part.ends_with(|c: char| c.is_ascii_alphanumeric());
        if !begins || !ends || (!is_host && part.contains(':')) {
            let message = "each part of an image's name begins and ends with a letter or a digit".to_owned();
            return Some((message, at));
        }
        at += part.len() + 1;
    }
    None
}

fn is_digest(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or("");
    hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f'))
}

fn is_tag(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '_')
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

/// What is wrong with a path or glob that has to stay below the workspace.
pub(crate) fn fault_of_path(path: &str) -> Option<String> {
    if path.is_empty() {
        Some("a path cannot be empty".to_owned())
    } else if path.len() > MAX_PATH_BYTES {
        Some(format!("a path has at most {MAX_PATH_BYTES} bytes"))
    } else if path.chars().any(char::is_control) {
        Some("a path stands on one line, without control characters".to_owned())
    } else if path.starts_with('/') {
        Some("a path is relative to the workspace and does not begin with `/`".to_owned())
    } else if path == "~" || path.starts_with("~/") {
        Some("a path is relative to the workspace; `~` is outside of it".to_owned())
    } else if path.split('/').any(|part| part == "..") {
        Some("a path stays in the workspace and has no `..`".to_owned())
    } else {
        None
    }
}

/// A folder without `.` and doubled slashes; empty for the workspace itself.
pub(crate) fn clean_folder(path: &str) -> String {
    let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty() && *part != ".").collect();
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_are_read_as_engines_read_them() {
        let digest = format!("debian@sha256:{}", "a".repeat(64));
        let both = format!("localhost:5000/a/b:T@sha256:{}", "0".repeat(64));
        for good in
            ["debian", "debian:12", "c-toolchain:12", "a/b/c:X_1.2-y", "Host.example:80/x", &digest, &both]
        {
            assert_eq!(fault_of_image(good), None, "{good}");
        }
        for (bad, at) in [
            ("", 0),
            ("debian 12", 6),
            ("-v", 0),
            ("Debian", 0),
            ("a/B", 2),
            ("debian:", 7),
            ("debian@sha256:12", 7),
            ("a//b", 2),
            ("debian:12:1", 7),
            ("a$b", 1),
        ] {
            assert_eq!(fault_of_image(bad).map(|(_, at)| at), Some(at), "{bad}");
        }
    }

    #[test]
    fn paths_stay_in_the_workspace() {
        for good in ["out/**", "a..b/c", ".", "a/./b", "*.sarif"] {
            assert_eq!(fault_of_path(good), None, "{good}");
        }
        for bad in ["", "/etc", "..", "a/../../b", "~/x", "~", "a\nb", &"x".repeat(2_000)] {
            assert!(fault_of_path(bad).is_some(), "{bad}");
        }
        assert_eq!(clean_folder("./a//b/."), "a/b");
        assert_eq!(clean_folder("."), "");
    }

    #[test]
    fn names_are_plain_words() {
        for good in ["a", "3x", "unit-tests_2.0"] {
            assert_eq!(fault_of_name(good), None, "{good}");
        }
        for bad in ["", "-a", ".a", "a b", "ä", &"x".repeat(65)] {
            assert!(fault_of_name(bad).is_some(), "{bad}");
        }
    }
}
