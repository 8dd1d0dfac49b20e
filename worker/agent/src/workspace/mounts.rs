//! What is mounted below a folder, by the kernel's own list.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use super::{WorkspaceError, failed};

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Mounted {
    /// Where.
    pub(super) point: PathBuf,
}

/// Mounts at a folder and below it, in the order in which they were made.
pub(super) fn below(folder: &Path) -> Result<Vec<Mounted>, WorkspaceError> {
    let list = Path::new("/proc/self/mountinfo");
    let text = std::fs::read(list).map_err(failed("read", list))?;
    let points = text.split(|byte| *byte == b'\n').filter_map(point);
    Ok(points.filter(|point| point.starts_with(folder)).map(|point| Mounted { point }).collect())
}

/// The mount point is the fifth field; blanks and the like are written as three octal digits.
fn point(line: &[u8]) -> Option<PathBuf> {
    let field = line.split(|byte| *byte == b' ').nth(4)?;
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, after)) = rest.split_first() {
        let escaped = (*first == b'\\').then(|| after.get(..3)).flatten();
        let code = escaped.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok());
        match code {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[3..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    Some(PathBuf::from(OsString::from_vec(bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_read_with_their_blanks() {
        for (line, expected) in [
            ("36 35 98:0 / /mnt/a rw - ext4 /dev/loop0 rw", "/mnt/a"),
            ("36 35 98:0 / /mnt/a\\040b\\134c rw - ext4 x rw", "/mnt/a b\\c"),
            ("36 35 98:0 / /mnt/\\9z rw - ext4 x rw", "/mnt/\\9z"),
        ] {
            assert_eq!(point(line.as_bytes()), Some(PathBuf::from(expected)), "{line}");
        }
        assert_eq!(point(b""), None);
    }
}
