//! Bounds on what a worker says. Pure.
//!
//! What is about the worker itself is refused when it is out of bounds. What is about an attempt's end is cut
//! down instead: refusing it would keep the attempt alive for ever.

use buildyard_types::bounds::{MAX_TEXT_CHARS, cut};
use buildyard_types::label::is_name;
use buildyard_types::worker::{ArtifactManifest, AttemptProgress, AttemptReport, Offer, SyncRequest};

use crate::blobs::is_sha256;
use crate::error::{ApiError, ApiResult, Code};

const MAX_FACTS: usize = 64;
const MAX_CAPABILITIES: usize = 64;
const MAX_IMAGES: usize = 500;
const MAX_IMAGE_BYTES: usize = 512;
/// More than any host runs at once, with those that wait to be forgotten.
const MAX_ATTEMPTS: usize = 10_000;
const MAX_SLOTS: u32 = 10_000;
const MAX_FILES: usize = 100_000;
const MAX_PATH_BYTES: usize = 4_096;

fn bad(what: impl Into<String>) -> ApiError {
    ApiError::new(Code::BadRequest, what)
}

/// The name of a worker: what people read in lists.
pub(crate) fn worker_name(name: &str) -> ApiResult<()> {
    if is_name(name) && name.len() <= 64 { Ok(()) } else { Err(bad("the worker's name cannot be used")) }
}

/// What a worker offers.
pub(crate) fn offer(offer: &mut Offer) -> ApiResult<()> {
    if offer.facts.len() > MAX_FACTS || !offer.facts.iter().all(|(key, value)| is_name(key) && is_name(value))
    {
        return Err(bad(format!("facts are at most {MAX_FACTS} pairs of names")));
    }
    let named = |name: &String| name.len() <= 64 && is_name(name);
    if offer.capabilities.len() > MAX_CAPABILITIES || !offer.capabilities.iter().all(named) {
        return Err(bad(format!("capabilities are at most {MAX_CAPABILITIES} names")));
    }
    if offer.capacity.slots > MAX_SLOTS {
        return Err(bad(format!("a worker has at most {MAX_SLOTS} slots")));
    }
    let shown = |image: &String| {
        !image.is_empty() && image.len() <= MAX_IMAGE_BYTES && !image.contains(|c: char| c.is_control())
    };
    offer.images.retain(shown);
    offer.images.truncate(MAX_IMAGES);
    cut(&mut offer.version, 64);
    if let Some(unfit) = &mut offer.unfit {
        cut(unfit, MAX_TEXT_CHARS);
    }
    Ok(())
}

/// What a worker says that it holds.
pub(crate) fn sync(request: &mut SyncRequest) -> ApiResult<()> {
    offer(&mut request.offer)?;
    if request.attempts.len() > MAX_ATTEMPTS {
        return Err(bad(format!("a call speaks of at most {MAX_ATTEMPTS} attempts")));
    }
    request.attempts.iter_mut().for_each(report);
    Ok(())
}

fn report(report: &mut AttemptReport) {
    match &mut report.state {
        AttemptProgress::Preparing
        | AttemptProgress::Running { .. }
        | AttemptProgress::Stopping
        | AttemptProgress::Sending => {}
        AttemptProgress::Ended { report, removed: _ } => report.cut_down(),
    }
}

/// The name of an artifact.
pub(crate) fn artifact_name(name: &str) -> ApiResult<()> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'+');
    let good = !name.is_empty() && name.len() <= 128 && !name.starts_with('.') && name.bytes().all(plain);
    if good { Ok(()) } else { Err(ApiError::new(Code::BadArtifact, "the artifact's name cannot be used")) }
}

/// The files of an artifact: no name among them may lead anybody outside of a folder.
pub(crate) fn manifest(manifest: &ArtifactManifest) -> ApiResult<()> {
    let bad = |what: String| ApiError::new(Code::BadArtifact, what);
    if manifest.files.len() > MAX_FILES {
        return Err(bad(format!("an artifact holds at most {MAX_FILES} files")));
    }
    let mut before: Option<&str> = None;
    for file in &manifest.files {
        let shown: String = file.path.chars().take(100).collect();
        if !is_inside(&file.path) {
            return Err(bad(format!("`{}` is not a path below the workspace", shown.escape_debug())));
        }
        if before.is_some_and(|before| before >= file.path.as_str()) {
            return Err(bad(format!("`{shown}` is out of order or there twice")));
        }
        // `a` beside `a/b` could not be written out again.
        if before
            .is_some_and(|before| file.path.strip_prefix(before).is_some_and(|rest| rest.starts_with('/')))
        {
            return Err(bad(format!("`{shown}` lies below a file")));
        }
        if !is_sha256(&file.sha256) {
            return Err(bad(format!("the hash of `{shown}` is not 64 lower-case hexadecimal digits")));
        }
        before = Some(&file.path);
    }
    Ok(())
}

fn is_inside(path: &str) -> bool {
    let part = |part: &str| !part.is_empty() && part != "." && part != ".." && part.len() <= 255;
    path.len() <= MAX_PATH_BYTES
        && !path.contains(|c: char| c.is_control() || c == '\\')
        && path.split('/').all(part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use buildyard_types::worker::{ArtifactFile, EndReport, Usage};
    use buildyard_types::{Fence, Millis, Outcome, RunId};

    fn files(paths: &[&str]) -> ArtifactManifest {
        let file = |path: &&str| ArtifactFile {
            path: (*path).to_owned(),
            size: 0,
            sha256: "0".repeat(64),
            executable: false,
        };
        ArtifactManifest { files: paths.iter().map(file).collect(), keep_ms: Millis(1) }
    }

    #[test]
    fn no_path_of_an_artifact_leads_outside() {
        for good in [&["a"][..], &["a/b", "a/c", "b"], &["...", "..a", "a..b"], &["ü", "日本"], &[]] {
            assert!(manifest(&files(good)).is_ok(), "{good:?}");
        }
        for bad in [
            &[""][..],
            &["/etc/passwd"],
            &[".."],
            &["a/../b"],
            &["./a"],
            &["a//b"],
            &["a/"],
            &["a\0b"],
            &["a\nb"],
            &["a\\b"],
            &["b", "a"],
            &["a", "a"],
            &["a", "a/b"],
        ] {
            assert_eq!(manifest(&files(bad)).unwrap_err().code, Code::BadArtifact, "{bad:?}");
        }
    }

    #[test]
    fn the_end_of_an_attempt_is_cut_down_not_refused() {
        let end = EndReport {
            outcome: Outcome::Passed,
            steps: Vec::new(),
            usage: Usage::default(),
            notes: vec!["n".repeat(5_000); 5_000],
            image_digest: None,
        };
        let mut said = AttemptReport {
            attempt: RunId(1).job(0).attempt(1),
            fence: Fence(1),
            state: AttemptProgress::Ended { report: Box::new(end), removed: true },
        };
        report(&mut said);
        match said.state {
            AttemptProgress::Ended { report, .. } => assert_eq!(report.notes[0].len(), MAX_TEXT_CHARS),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn an_offer_out_of_bounds_is_refused() {
        let mut good = Offer { facts: [("os".into(), "linux".into())].into(), ..Offer::default() };
        assert!(offer(&mut good).is_ok());
        let mut bad = Offer { facts: [("os".into(), "li nux".into())].into(), ..Offer::default() };
        assert!(offer(&mut bad).is_err());
        let mut many = Offer { images: vec!["debian:12".into(); 1_000], ..Offer::default() };
        many.images.push("\x1b]8;;".into());
        assert!(offer(&mut many).is_ok());
        assert_eq!(many.images.len(), MAX_IMAGES);
    }
}
