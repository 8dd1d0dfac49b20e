//! One file out of a container, through the engine's tar archives.
//!
//! The container's file system is the image author's, so nothing in it is trusted: headers are read with bounds, links
//! are followed by asking the engine for their target *inside* the container, and reading stops at the length asked.

use bollard::Docker;
use bollard::errors::Error;
use bollard::query_parameters::DownloadFromContainerOptionsBuilder;
use futures_util::StreamExt as _;

use super::super::FileContent;

const BLOCK: usize = 512;
/// As the kernel does it.
const MAX_LINKS: u32 = 40;
/// Extension headers before the file's own: longer ones are not a name that a sane image has.
const MAX_EXTENSION_BYTES: u64 = 64 * 1024;

/// What stands at the head of an archive.
#[derive(Debug, PartialEq, Eq)]
enum Entry {
    File { size: u64 },
    Link { target: String },
    Other,
}

pub(super) async fn read_file(
    client: &Docker,
    container: &str,
    path: &str,
    max_bytes: u64,
) -> Result<FileContent, Error> {
    let mut path = path.to_owned();
    for _ in 0..MAX_LINKS {
        let options = DownloadFromContainerOptionsBuilder::default().path(&path).build();
        let stream = client.download_from_container(container, Some(options));
        let mut archive = Archive { stream: Box::pin(stream), buffer: Vec::new() };
        let entry = match archive.entry().await {
            Ok(Some(entry)) => entry,
            Ok(None) => return Ok(FileContent::NotAFile),
            // 400: a part of the path is a file and not a folder.
            Err(Error::DockerResponseServerError { status_code: 400 | 404, .. }) => {
                return Ok(FileContent::Missing);
            }
            Err(other) => return Err(other),
        };
        match entry {
            Entry::File { size } if size > max_bytes => return Ok(FileContent::TooLong),
            Entry::File { size } => {
                return Ok(archive.take(size).await?.map_or(FileContent::NotAFile, FileContent::Bytes));
            }
            Entry::Link { target } => path = join(&path, &target),
            Entry::Other => return Ok(FileContent::NotAFile),
        }
    }
    Ok(FileContent::NotAFile)
}

/// Where a link points. The engine resolves `..` and links on the way within the container's root.
fn join(link: &str, target: &str) -> String {
    if target.starts_with('/') {
        return target.to_owned();
    }
    let folder = link.rsplit_once('/').map_or("", |(folder, _)| folder);
    format!("{folder}/{target}")
}

struct Archive<S> {
    stream: S,
    buffer: Vec<u8>,
}

impl<S> Archive<S>
where
    S: futures_util::Stream<Item = Result<bytes::Bytes, Error>> + Unpin,
{
    /// The next bytes of the archive; `None` if it ends before.
    async fn take(&mut self, count: u64) -> Result<Option<Vec<u8>>, Error> {
        // Bounded by the callers: a block, an extension header, or the length that was asked for.
        let count = count as usize;
        while self.buffer.len() < count {
            match self.stream.next().await {
                Some(chunk) => self.buffer.extend_from_slice(&chunk?),
                None => return Ok(None),
            }
        }
        let rest = self.buffer.split_off(count);
        Ok(Some(std::mem::replace(&mut self.buffer, rest)))
    }

    /// The first entry, its extension headers applied; `None` if the archive has none that can be read.
    async fn entry(&mut self) -> Result<Option<Entry>, Error> {
        let mut extensions = Extensions::default();
        // A file has at most a few extension headers before it.
        for _ in 0..8 {
            let Some(block) = self.take(BLOCK as u64).await? else { return Ok(None) };
            let Some(size) = octal(&block[124..136]) else { return Ok(None) };
            let kind = block[156];
            if !matches!(kind, b'x' | b'g' | b'K' | b'L') {
                return Ok(Some(extensions.apply(kind, size, text(&block[157..257]))));
            }
            if size > MAX_EXTENSION_BYTES {
                return Ok(None);
            }
            let padded = size.next_multiple_of(BLOCK as u64);
            let Some(mut body) = self.take(padded).await? else { return Ok(None) };
            body.truncate(size as usize);
            extensions.read(kind, &body);
        }
        Ok(None)
    }
}

/// What extension headers say of the entry that follows them.
#[derive(Debug, Default)]
struct Extensions {
    link: Option<String>,
    size: Option<u64>,
}

impl Extensions {
    fn read(&mut self, kind: u8, body: &[u8]) {
        if kind == b'K' {
            self.link = Some(text(body));
        }
        if kind != b'x' {
            return;
        }
        let mut rest = body;
        while let Some((key, value, after)) = pax_record(rest) {
            match key {
                b"linkpath" => self.link = Some(text(value)),
                b"size" => self.size = std::str::from_utf8(value).ok().and_then(|digits| digits.parse().ok()),
                _ => {}
            }
            rest = after;
        }
    }

    fn apply(self, kind: u8, size: u64, link: String) -> Entry {
        match kind {
            b'0' | 0 => Entry::File { size: self.size.unwrap_or(size) },
            b'2' => Entry::Link { target: self.link.unwrap_or(link) },
            _ => Entry::Other,
        }
    }
}

/// `<length> <key>=<value>\n`, the length counting all of it.
fn pax_record(body: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let blank = body.iter().position(|byte| *byte == b' ')?;
    let length: usize = std::str::from_utf8(&body[..blank]).ok()?.parse().ok()?;
    let record = body.get(blank + 1..length)?.strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    Some((&record[..equals], &record[equals + 1..], &body[length..]))
}

fn octal(field: &[u8]) -> Option<u64> {
    let digits = text(field);
    let digits = digits.trim();
    if digits.is_empty() { Some(0) } else { u64::from_str_radix(digits, 8).ok() }
}

fn text(field: &[u8]) -> String {
    let end = field.iter().position(|byte| *byte == 0).unwrap_or(field.len());
    String::from_utf8_lossy(&field[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(kind: u8, size: u64, link: &str) -> Vec<u8> {
        let mut block = vec![0; BLOCK];
        block[124..136].copy_from_slice(format!("{size:011o}\0").as_bytes());
        block[156] = kind;
        block[157..157 + link.len()].copy_from_slice(link.as_bytes());
        block
    }

    async fn read(archive: Vec<u8>) -> Option<Entry> {
        // In pieces, as they come over a socket.
        let pieces: Vec<_> =
            archive.chunks(100).map(|piece| Ok(bytes::Bytes::copy_from_slice(piece))).collect();
        let stream = futures_util::stream::iter(pieces);
        Archive { stream, buffer: Vec::new() }.entry().await.expect("the stream gives no errors")
    }

    #[tokio::test]
    async fn entries_are_read_with_what_their_extensions_say() {
        assert_eq!(read(header(b'0', 9, "")).await, Some(Entry::File { size: 9 }));
        assert_eq!(read(header(b'2', 0, "busybox")).await, Some(Entry::Link { target: "busybox".into() }));
        assert_eq!(read(header(b'5', 0, "")).await, Some(Entry::Other));

        let long = format!("/{}", "d/".repeat(100));
        let record = format!("{} linkpath={long}\n", long.len() + 14);
        let mut archive = header(b'x', record.len() as u64, "");
        archive.extend(record.as_bytes());
        archive.resize(archive.len().next_multiple_of(BLOCK), 0);
        archive.extend(header(b'2', 0, "cut"));
        assert_eq!(read(archive).await, Some(Entry::Link { target: long }));
    }

    #[tokio::test]
    async fn hostile_archives_end_the_reading() {
        assert_eq!(read(Vec::new()).await, None);
        assert_eq!(read(vec![0xff; BLOCK]).await, None, "no number");
        assert_eq!(read(header(b'x', (8 << 30) - 1, "")).await, None, "an extension without bounds");
        assert_eq!(read(header(b'x', 0, "").repeat(100)).await, None, "extensions without end");
    }

    #[test]
    fn links_stay_relative_to_their_folder() {
        assert_eq!(join("/bin/sh", "busybox"), "/bin/busybox");
        assert_eq!(join("/bin/sh", "/usr/bin/dash"), "/usr/bin/dash");
        assert_eq!(join("/bin/sh", "../../x"), "/bin/../../x");
    }

    #[test]
    fn broken_records_are_no_records() {
        for body in ["", "5", "99 a=b\n", "3 a=b\n", "x a=b\n", "7 a-b.\n", "18446744073709551615 a=b\n"] {
            assert_eq!(pax_record(body.as_bytes()), None, "{body:?}");
        }
    }
}
