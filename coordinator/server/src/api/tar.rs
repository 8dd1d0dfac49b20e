//! Just enough of the tar format (POSIX ustar with pax paths) to hand out an artifact in one piece.

/// Bytes of a block.
const BLOCK: usize = 512;

/// The header of a plain file, with a pax header before it where the name is too long for the plain one.
pub(super) fn header(path: &str, size: u64, executable: bool) -> Vec<u8> {
    let mut out = Vec::new();
    // Sizes beyond 8 GiB do not fit either.
    if path.len() > 100 || size >= 1 << 33 {
        let records = [record("path", path), record("size", &size.to_string())].concat();
        out.extend(block("pax", records.len() as u64, 0o644, b'x'));
        out.extend_from_slice(records.as_bytes());
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    let mut end = path.len().min(100);
    while !path.is_char_boundary(end) {
        end -= 1;
    }
    let mode = if executable { 0o755 } else { 0o644 };
    out.extend(block(&path[..end], size, mode, b'0'));
    out
}

/// Zeros behind a content, up to the next block.
pub(super) fn padding(size: u64) -> Vec<u8> {
    let over = (size % BLOCK as u64) as usize;
    vec![0; if over == 0 { 0 } else { BLOCK - over }]
}

/// The end of an archive.
pub(super) fn end() -> Vec<u8> {
    vec![0; 2 * BLOCK]
}

/// A pax record counts its own digits.
fn record(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest != length {
        length += 1;
    }
    format!("{length} {key}={value}\n")
}

fn block(name: &str, size: u64, mode: u32, kind: u8) -> [u8; BLOCK] {
    let mut header = [0_u8; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, name.as_bytes());
    put(100, format!("{mode:07o}").as_bytes());
    put(108, b"0000000");
    put(116, b"0000000");
    // A size that does not fit is in the pax header.
    put(124, format!("{:011o}", if size >= 1 << 33 { 0 } else { size }).as_bytes());
    put(136, b"00000000000");
    put(148, b"        ");
    put(156, &[kind]);
    put(257, b"ustar\x0000");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn tar_reads_what_is_written() {
        let long = format!("{}/{}.txt", "folder".repeat(20), "ü".repeat(60));
        let files = [("a.txt", &b"hello"[..], false), ("bin/tool", &[7; 512][..], true), (&long, b"", false)];
        let mut archive = Vec::new();
        for (path, content, executable) in files {
            archive.extend(header(path, content.len() as u64, executable));
            archive.extend_from_slice(content);
            archive.extend(padding(content.len() as u64));
        }
        archive.extend(end());
        let temp = tempfile::tempdir().unwrap();
        std::fs::write(temp.path().join("a.tar"), archive).unwrap();
        let listed = Command::new("tar")
            .args(["--quoting-style=literal", "-xvf", "a.tar"])
            .env("LC_ALL", "C.UTF-8")
            .current_dir(temp.path())
            .output()
            .unwrap();
        assert!(listed.status.success(), "{}", String::from_utf8_lossy(&listed.stderr));
        let names = String::from_utf8(listed.stdout).unwrap();
        assert_eq!(names.lines().collect::<Vec<_>>(), ["a.txt", "bin/tool", &long]);
        assert_eq!(std::fs::read(temp.path().join("bin/tool")).unwrap(), [7; 512]);
    }

    #[test]
    fn a_record_counts_itself() {
        for length in [1, 85, 86, 87, 88, 985, 986, 987, 988] {
            let record = record("path", &"x".repeat(length));
            let said: usize = record.split(' ').next().unwrap().parse().unwrap();
            assert_eq!(said, record.len());
        }
    }
}
