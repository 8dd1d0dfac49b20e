//! The program that is process 1 of every attempt: carried inside the worker, written out once per data folder.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// Where a container finds it.
pub(crate) const IN_CONTAINER: &str = "/.buildyard/init";

/// The static program. `build.rs` makes it.
static PROGRAM: &[u8] = include_bytes!(env!("BUILDYARD_INIT"));

/// Why the program could not be written.
#[derive(Debug, thiserror::Error)]
#[error("could not write buildyard-init to {path}")]
pub struct WriteInitError {
    /// The file.
    pub path: PathBuf,
    /// What the system said.
    pub source: io::Error,
}

/// Makes sure that `dir` holds the program and says where. The name carries its content's hash, so an older
/// worker's containers keep theirs while a newer worker adds its own.
pub fn write_to(dir: &Path) -> Result<PathBuf, WriteInitError> {
    let path = dir.join(format!("buildyard-init-{}", short_hash()));
    place(dir, &path).map_err(|source| WriteInitError { path: path.clone(), source })?;
    Ok(path)
}

fn short_hash() -> String {
    Sha256::digest(PROGRAM)[..6].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn place(dir: &Path, path: &Path) -> io::Result<()> {
    if is_in_place(path)? {
        return Ok(());
    }
    // Renamed into place: a container that starts meanwhile gets the whole program or none.
    let mut file = tempfile::Builder::new().prefix(".buildyard-init-").tempfile_in(dir)?;
    file.write_all(PROGRAM)?;
    file.as_file().set_permissions(Permissions::from_mode(0o755))?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|error| error.error)?;
    Ok(())
}

fn is_in_place(path: &Path) -> io::Result<bool> {
    let metadata = match fs::symlink_metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error),
    };
    // Everything but the bytes is cheap to look at first.
    let looks_right = metadata.is_file()
        && metadata.permissions().mode() & 0o7777 == 0o755
        && metadata.len() == PROGRAM.len() as u64;
    Ok(looks_right && fs::read(path)? == PROGRAM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_written_once_and_mended_when_damaged() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = write_to(dir.path()).expect("written");
        assert!(path.file_name().expect("a name").to_string_lossy().starts_with("buildyard-init-"));
        let first = fs::metadata(&path).expect("is there");
        assert_eq!(first.permissions().mode() & 0o777, 0o755);

        write_to(dir.path()).expect("again");
        let again = fs::metadata(&path).expect("is there");
        assert_eq!(first.modified().expect("time"), again.modified().expect("time"), "it was left alone");

        let mut damaged = PROGRAM.to_vec();
        damaged[0] ^= 1;
        fs::write(&path, damaged).expect("damage");
        write_to(dir.path()).expect("mended");
        assert!(fs::read(&path).expect("read") == PROGRAM);
        assert_eq!(fs::read_dir(dir.path()).expect("list").count(), 1, "nothing beside it is left");
    }

    #[test]
    fn the_program_needs_no_library_of_the_image() {
        // An ELF file names its dynamic linker in a PT_INTERP program header; a static one has none.
        const PT_INTERP: u32 = 3;
        assert_eq!(&PROGRAM[..5], b"\x7fELF\x02", "a 64 bit ELF file");
        let u16_at = |at: usize| u16::from_le_bytes([PROGRAM[at], PROGRAM[at + 1]]) as usize;
        let table = u64::from_le_bytes(PROGRAM[32..40].try_into().expect("8 bytes")) as usize;
        let (size, count) = (u16_at(54), u16_at(56));
        assert!(count > 0);
        for header in 0..count {
            let at = table + header * size;
            let kind = u32::from_le_bytes(PROGRAM[at..at + 4].try_into().expect("4 bytes"));
            assert_ne!(kind, PT_INTERP);
        }
    }
}
