//! Files with an empty ext4 inside: made once per size by mkfs, then copied.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;

use buildyard_types::ByteSize;
use rustix::fs::SeekFrom;

use super::{WorkspaceError, failed, make_folder};

/// Smaller file systems are mostly their own administration.
const MIN_BYTES: u64 = 8 << 20;
/// As many inodes as mkfs gives a file system of that size, within a bound: few enough to be a cap on "a million
/// files", enough for the largest dependency trees.
pub(super) fn inodes(bytes: u64) -> u64 {
    const MAX: u64 = 1_000_000;
    let small = (bytes / 4_096).min(131_072);
    small.max(bytes / 16_384).min(MAX)
}

/// Sizes that are kept for copying. A farm uses a few; one that uses more makes them each time.
const MAX_TEMPLATES: usize = 16;
/// Largest piece that is copied at once.
const PIECE: u64 = 1 << 20;

/// Forgets the templates of earlier starts: one that was being written when the power went must not be trusted.
pub(super) fn reset_templates(folder: &Path) -> Result<(), WorkspaceError> {
    make_folder(folder, 0o700)?;
    for entry in std::fs::read_dir(folder).map_err(failed("list", folder))?.flatten() {
        let path = entry.path();
        std::fs::remove_file(&path).map_err(failed("remove", &path))?;
    }
    Ok(())
}

/// Makes a file system of the given size in a new file.
pub(super) fn make(templates: &Path, image: &Path, limit: ByteSize) -> Result<(), WorkspaceError> {
    let bytes = limit.0.max(MIN_BYTES).next_multiple_of(4_096);
    let template = templates.join(bytes.to_string());
    if copy(&template, image, bytes)? {
        return Ok(());
    }
    let known = std::fs::read_dir(templates).map_err(failed("list", templates))?.count();
    if known >= MAX_TEMPLATES {
        return format(image, bytes);
    }
    // Two that make the same template at once each make their own; the last one's rename stands.
    let fresh = tempfile::NamedTempFile::new_in(templates).map_err(failed("make a file in", templates))?;
    format(fresh.path(), bytes)?;
    fresh.persist(&template).map_err(|error| failed("put in place", &template)(error.error))?;
    match copy(&template, image, bytes)? {
        true => Ok(()),
        false => format(image, bytes),
    }
}

fn format(image: &Path, bytes: u64) -> Result<(), WorkspaceError> {
    let file =
        File::options().write(true).create(true).truncate(true).open(image).map_err(failed("make", image))?;
    file.set_len(bytes).map_err(failed("size", image))?;
    let output = Command::new("mkfs.ext4")
        .args(["-q", "-F", "-m", "0"])
        // No journal: what a crash leaves is thrown away. No backups and one flex group: few extents, see above.
        .args(["-O", "^has_journal,^resize_inode,sparse_super2", "-G", "4096"])
        .args(["-E", "lazy_itable_init=1,nodiscard,num_backup_sb=0", "-N", &inodes(bytes).to_string()])
        .arg(image)
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin")
        .output()
        .map_err(failed("run mkfs.ext4 on", image))?;
    if output.status.success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().chars().take(300).collect();
    Err(WorkspaceError::Tool { action: "make a file system in", path: image.to_owned(), message })
}

/// Copies what a sparse file holds and leaves its holes out. `false` if there is nothing to copy.
fn copy(template: &Path, image: &Path, bytes: u64) -> Result<bool, WorkspaceError> {
    let from = match File::open(template) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(failed("open", template)(error)),
    };
    let to = File::options().write(true).create_new(true).open(image).map_err(failed("make", image))?;
    to.set_len(bytes).map_err(failed("size", image))?;
    for (start, end) in extents(&from).map_err(failed("read", template))? {
        copy_range(&from, &to, start, end).map_err(failed("fill", image))?;
    }
    Ok(true)
}

fn extents(file: &File) -> std::io::Result<Vec<(u64, u64)>> {
    let mut found = Vec::new();
    let mut at = 0;
    loop {
        match rustix::fs::seek(file, SeekFrom::Data(at)) {
            // There is no data behind this place.
            Err(rustix::io::Errno::NXIO) => return Ok(found),
            Err(error) => return Err(error.into()),
            Ok(start) => {
                at = rustix::fs::seek(file, SeekFrom::Hole(start))?;
                found.push((start, at));
            }
        }
    }
}

fn copy_range(from: &File, to: &File, start: u64, end: u64) -> std::io::Result<()> {
    let mut buffer = vec![0; PIECE.min(end - start) as usize];
    let mut at = start;
    while at < end {
        let piece = &mut buffer[..PIECE.min(end - at) as usize];
        from.read_exact_at(piece, at)?;
        to.write_all_at(piece, at)?;
        at += piece.len() as u64;
    }
    Ok(())
}

/// Where the template of a size is, for tests.
#[cfg(test)]
pub(super) fn template_of(templates: &Path, bytes: u64) -> std::path::PathBuf {
    templates.join(bytes.to_string())
}
