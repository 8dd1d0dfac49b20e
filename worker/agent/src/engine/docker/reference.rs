//! Names of images, checked before they become part of a request's path.

use super::super::EngineError;

/// Longest name that is taken: more than any registry allows.
const MAX_NAME_BYTES: usize = 512;

fn bad(name: &str, reason: &'static str) -> EngineError {
    let image = name.chars().take(80).map(|c| if c.is_control() { ' ' } else { c }).collect();
    EngineError::BadImageName { image, reason }
}

/// Whether the text can be the name of an image: `debian:12`, `registry:5000/team/gcc@sha256:…`, `sha256:…`.
///
/// The engine checks names itself; this keeps `..`, `?` and blanks out of the path of a request.
pub(in crate::engine) fn check(name: &str) -> Result<(), EngineError> {
    if name.is_empty() {
        return Err(bad(name, "it is empty"));
    }
    if name.len() > MAX_NAME_BYTES {
        return Err(bad(name, "it is longer than 512 bytes"));
    }
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@".contains(&byte);
    if !name.bytes().all(allowed) {
        return Err(bad(name, "only letters, digits and . _ - / : @ may stand in it"));
    }
    let digest = name.split_once('@').map_or(name, |(_, digest)| digest);
    let is_digest = digest.starts_with("sha256:");
    let (repository, _) = split(name);
    if !is_digest && repository.bytes().skip_while(|byte| *byte != b'/').any(|byte| byte.is_ascii_uppercase())
    {
        return Err(bad(name, "a repository is written in lower case"));
    }
    let parts_ok = repository.split('/').all(|part| !part.is_empty() && part != "." && part != "..");
    if parts_ok { Ok(()) } else { Err(bad(name, "a part between `/` is empty or dots")) }
}

/// Splits off tag or digest. The colon of a registry's port is followed by a slash.
fn split(name: &str) -> (&str, Option<&str>) {
    if let Some((repository, digest)) = name.split_once('@') {
        return (repository, Some(digest));
    }
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => (repository, Some(tag)),
        Some(_) | None => (name, None),
    }
}

/// The name with a tag: without one, the engine would pull every tag of the repository.
pub(super) fn with_tag(name: &str) -> Result<String, EngineError> {
    check(name)?;
    match split(name) {
        (_, Some(_)) => Ok(name.to_owned()),
        (repository, None) => Ok(format!("{repository}:latest")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_get_a_tag_and_nothing_else_gets_through() {
        for (name, expected) in [
            ("debian", "debian:latest"),
            ("debian:12", "debian:12"),
            ("127.0.0.1:5000/team/gcc", "127.0.0.1:5000/team/gcc:latest"),
            ("Registry.example:5000/team/gcc:V2", "Registry.example:5000/team/gcc:V2"),
            ("a/b@sha256:00ff", "a/b@sha256:00ff"),
            ("sha256:00ff", "sha256:00ff"),
        ] {
            assert_eq!(with_tag(name).ok().as_deref(), Some(expected), "{name}");
        }
        for name in
            ["", "a b", "../etc", "a//b", "a?x=1", "a%2e", "a/../b", "a\nb", "team/GCC", &"x".repeat(600)]
        {
            assert!(matches!(with_tag(name), Err(EngineError::BadImageName { .. })), "{name}");
        }
    }
}
