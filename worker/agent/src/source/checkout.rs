//! From a mirror into a workspace: root packs, the job's user unpacks and checks out.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use buildyard_types::job::CheckoutSpec;
use buildyard_types::worker::SourceRef;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};

use super::git::Git;
use super::{SourceError, io_error};
use crate::engine::Owner;

/// What is being done when a mirror turns out to be damaged.
pub const PACK: &str = "pack the commit";
const CHECKOUT_LIMIT: Duration = Duration::from_secs(10 * 60);
/// Most bytes of tag names that are read.
const MAX_TAG_BYTES: u64 = 16 << 20;
/// Most commits that a history cut by depth may have. The depth counts generations, and merges widen them.
const MAX_SHALLOW_COMMITS: usize = 200_000;

/// What to check out, and for whom.
#[derive(Debug, Clone, Copy)]
pub struct Checkout<'c> {
    /// The commit and the name under which it was asked for.
    pub source: &'c SourceRef,
    /// How much of the history comes along.
    pub spec: &'c CheckoutSpec,
    /// The job's user.
    pub owner: Owner,
}

/// The repository that a commit comes from.
#[derive(Debug, Clone, Copy)]
pub struct Origin<'o> {
    /// Its objects and refs.
    pub git_dir: &'o Path,
    /// As whom it is read. A worker's mirror is root's own; somebody's checkout is read as its owner, so that what
    /// its configuration names runs as nobody else.
    pub owner: Owner,
}

impl<'o> Origin<'o> {
    /// A mirror of this worker.
    pub fn mirror(git_dir: &'o Path) -> Self {
        Self { git_dir, owner: Owner { uid: 0, gid: 0 } }
    }

    fn git(&self) -> Git {
        Git::at(self.git_dir).owner(self.owner)
    }

    /// Commits at which the repository's own history is cut off.
    fn cut(&self) -> BTreeSet<String> {
        let text = fs::read_to_string(self.git_dir.join("shallow")).unwrap_or_default();
        text.lines().filter(|id| super::is_commit_id(id)).map(str::to_owned).collect()
    }
}

/// Fills an empty folder, owned by the job's user, with the commit's files and a `.git` of its own: HEAD
/// detached at the commit, its branch as `origin/<branch>`.
pub async fn check_out(
    origin: Origin<'_>,
    workspace: &Path,
    checkout: Checkout<'_>,
) -> Result<(), SourceError> {
    let files = ["read-tree", "-u", "--reset"];
    make_repository(origin, workspace, checkout, &files).await
}

/// The same without the files: `.git` alone, its index at the commit.
pub async fn transfer_history(
    origin: Origin<'_>,
    workspace: &Path,
    checkout: Checkout<'_>,
) -> Result<(), SourceError> {
    make_repository(origin, workspace, checkout, &["read-tree"]).await
}

async fn make_repository(
    origin: Origin<'_>,
    workspace: &Path,
    checkout: Checkout<'_>,
    read_tree: &[&str],
) -> Result<(), SourceError> {
    let commit = checkout.source.commit.as_str();
    let history = History::of(origin, commit, checkout.spec.depth).await?;
    let tags = if checkout.spec.tags { tags(origin, commit, &history).await? } else { Vec::new() };
    make_git_dir(workspace, checkout, &history, &tags)?;
    transfer(origin, workspace, checkout, &history, &tags).await?;
    let git_dir = workspace.join(".git");
    let git = Git::at(&git_dir).work_tree(workspace).owner(checkout.owner);
    git.args(read_tree).arg(commit).run("check out the commit", CHECKOUT_LIMIT).await
}

/// How far back the history goes.
struct History {
    /// Commits whose parents are left out.
    cut: BTreeSet<String>,
    /// All commits, where the history is cut.
    commits: Option<BTreeSet<String>>,
}

impl History {
    async fn of(origin: Origin<'_>, commit: &str, depth: Option<u32>) -> Result<Self, SourceError> {
        match depth {
            None => Ok(Self { cut: origin.cut(), commits: None }),
            // The usual depth, and nothing needs to be asked for it.
            Some(0 | 1) => {
                let only = BTreeSet::from([commit.to_owned()]);
                Ok(Self { cut: only.clone(), commits: Some(only) })
            }
            Some(depth) => walk(origin, commit, depth).await,
        }
    }
}

/// Follows parents, generation by generation, through one `git cat-file`.
async fn walk(origin: Origin<'_>, commit: &str, depth: u32) -> Result<History, SourceError> {
    let doing = "read the history";
    let git = origin.git().args(&["cat-file", "--batch"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut running = git.start(doing)?;
    let mut ask = running.child.stdin.take().expect("its input was asked to be a pipe");
    let answer = running.child.stdout.take().expect("its output was asked to be a pipe");
    let mut answer = BufReader::new(answer);
    let already_cut = origin.cut();
    let talk = async {
        let mut seen = BTreeSet::from([commit.to_owned()]);
        let mut generation = vec![commit.to_owned()];
        let mut cut = BTreeSet::new();
        for level in 1..=depth {
            let mut next = Vec::new();
            for id in &generation {
                ask.write_all(format!("{id}\n").as_bytes()).await?;
                let parents = read_parents(&mut answer).await?;
                if already_cut.contains(id) || (level == depth && !parents.is_empty()) {
                    cut.insert(id.clone());
                } else if level < depth {
                    next.extend(parents.into_iter().filter(|parent| seen.insert(parent.clone())));
                }
            }
            if seen.len() > MAX_SHALLOW_COMMITS {
                return Err(std::io::Error::other(format!("more than {MAX_SHALLOW_COMMITS} commits")));
            }
            generation = next;
        }
        drop(ask);
        Ok(History { cut, commits: Some(seen) })
    };
    let (history, ended) = tokio::join!(talk, running.end(CHECKOUT_LIMIT));
    // The cause first: if git failed, the talk broke off because of it.
    ended?;
    history.map_err(io_error(doing, origin.git_dir))
}

async fn read_parents(
    answer: &mut BufReader<tokio::process::ChildStdout>,
) -> Result<Vec<String>, std::io::Error> {
    let mut header = String::new();
    answer.read_line(&mut header).await?;
    let size = match header.trim_end().split(' ').collect::<Vec<_>>()[..] {
        [_, "commit", size] => size.parse::<u64>().map_err(std::io::Error::other)?,
        _ => return Err(std::io::Error::other(format!("no commit: {}", header.trim_end()))),
    };
    let mut body = Vec::new();
    (&mut *answer).take(size + 1).read_to_end(&mut body).await?;
    let header = body.split(|byte| *byte == b'\n').take_while(|line| !line.is_empty());
    let parents = header.filter_map(|line| line.strip_prefix(b"parent "));
    Ok(parents.map(|id| String::from_utf8_lossy(id).into_owned()).collect())
}

/// A tag, the object that it names, and the commit behind an annotated one.
struct Tag {
    name: String,
    object: String,
    peeled: Option<String>,
}

/// The tags of the commits that come along.
async fn tags(origin: Origin<'_>, commit: &str, history: &History) -> Result<Vec<Tag>, SourceError> {
    let format = "--format=%(objectname) %(*objectname) %(refname)";
    let git = origin.git().args(&["for-each-ref", format, &format!("--merged={commit}"), "refs/tags"]);
    let text = git.read("read the tags", CHECKOUT_LIMIT, MAX_TAG_BYTES).await?;
    let text = String::from_utf8_lossy(&text);
    let all = text.lines().filter_map(|line| {
        let mut parts = line.splitn(3, ' ');
        let (object, peeled, name) = (parts.next()?, parts.next()?, parts.next()?);
        let peeled = Some(peeled.to_owned()).filter(|id| !id.is_empty());
        Some(Tag { name: name.to_owned(), object: object.to_owned(), peeled })
    });
    let comes_along = |tag: &Tag| {
        let target = tag.peeled.as_ref().unwrap_or(&tag.object);
        history.commits.as_ref().is_none_or(|commits| commits.contains(target))
    };
    Ok(all.filter(comes_along).collect())
}

/// Packs as root, unpacks as the job's user, both at once.
async fn transfer(
    origin: Origin<'_>,
    workspace: &Path,
    checkout: Checkout<'_>,
    history: &History,
    tags: &[Tag],
) -> Result<(), SourceError> {
    let git_dir = workspace.join(".git");
    let (reader, writer) = std::io::pipe().map_err(io_error("open a pipe to", &git_dir))?;
    // The origin may be shallow itself; its cuts are among those that are asked for.
    let mut pack = origin.git().args(&["--shallow-file", "", "pack-objects"]);
    pack = pack.args(&["--revs", "--stdout", "-q", "--delta-base-offset"]);
    if !history.cut.is_empty() {
        pack = pack.arg("--shallow");
    }
    let mut pack = pack.stdin(Stdio::piped()).stdout(writer).start(PACK)?;
    let unpack = Git::at(&git_dir).owner(checkout.owner).args(&["index-pack", "--stdin"]);
    let unpack = unpack.stdin(reader).start("unpack the commit")?;

    let mut wanted = String::new();
    for id in &history.cut {
        let _ = writeln!(wanted, "--shallow {id}");
    }
    let _ = writeln!(wanted, "{}", checkout.source.commit);
    for tag in tags {
        let _ = writeln!(wanted, "{}", tag.object);
    }
    let mut stdin = pack.child.stdin.take().expect("its input was asked to be a pipe");
    let ask = async move {
        // If git ended early, its own message says why.
        let _ = stdin.write_all(wanted.as_bytes()).await;
    };
    let ((), packed, unpacked) = tokio::join!(ask, pack.end(CHECKOUT_LIMIT), unpack.end(CHECKOUT_LIMIT));
    // Where unpacking fails (a full disk), packing fails of the broken pipe.
    unpacked?;
    packed
}

/// The configuration of a repository as far as its object ids decide it.
pub(super) fn object_format(commit: &str) -> &'static str {
    if commit.len() == 64 {
        "[extensions]\n\tobjectformat = sha256\n[core]\n\trepositoryformatversion = 1\n"
    } else {
        "[core]\n\trepositoryformatversion = 0\n"
    }
}

/// What `git init` would make, without its process.
fn make_git_dir(
    workspace: &Path,
    checkout: Checkout<'_>,
    history: &History,
    tags: &[Tag],
) -> Result<(), SourceError> {
    let source = checkout.source;
    let git_dir = workspace.join(".git");
    let own = |path: &Path| {
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(path, Some(checkout.owner.uid), Some(checkout.owner.gid))
        } else {
            Ok(())
        }
    };
    for folder in ["", "objects", "objects/info", "objects/pack", "refs", "refs/heads", "refs/tags", "info"] {
        let path = git_dir.join(folder);
        let made = fs::DirBuilder::new().mode(0o755).create(&path).and_then(|()| own(&path));
        made.map_err(io_error("make", path))?;
    }
    let mut config = object_format(&source.commit).to_owned();
    config.push_str("\tbare = false\n\tfilemode = true\n\tlogallrefupdates = true\n");
    if let Some(url) = quoted(&source.repository) {
        let fetch = "+refs/heads/*:refs/remotes/origin/*";
        let _ = writeln!(config, "[remote \"origin\"]\n\turl = {url}\n\tfetch = {fetch}");
    }
    let mut files = vec![
        ("HEAD", format!("{}\n", source.commit)),
        ("config", config),
        ("packed-refs", packed_refs(source, tags)),
    ];
    if !history.cut.is_empty() {
        files.push(("shallow", history.cut.iter().map(|id| format!("{id}\n")).collect()));
    }
    for (name, content) in files {
        let path = git_dir.join(name);
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&path);
        let written = file
            .and_then(|mut file| std::io::Write::write_all(&mut file, content.as_bytes()))
            .and_then(|()| own(&path));
        written.map_err(io_error("write", path))?;
    }
    Ok(())
}

/// The refs as one file of data: no name of a branch becomes a path.
fn packed_refs(source: &SourceRef, tags: &[Tag]) -> String {
    let mut lines = String::new();
    let branch = source.ref_name.as_deref().and_then(|name| name.strip_prefix("refs/heads/"));
    if let Some(branch) = branch.filter(|branch| is_ref_name(branch)) {
        let _ = writeln!(lines, "{} refs/remotes/origin/{branch}", source.commit);
    }
    for tag in tags {
        let _ = writeln!(lines, "{} {}", tag.object, tag.name);
        if let Some(peeled) = &tag.peeled {
            let _ = writeln!(lines, "^{peeled}");
        }
    }
    lines
}

/// Whether git would take this as the name of a branch: the rules of `git check-ref-format`.
fn is_ref_name(name: &str) -> bool {
    let forbidden = |c: char| c.is_ascii_control() || " ~^:?*[\\".contains(c);
    let part_is_good = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.ends_with(".lock");
    name.len() <= 1_024
        && name != "@"
        && !name.ends_with('.')
        && !name.contains("..")
        && !name.contains("@{")
        && !name.contains(forbidden)
        && name.split('/').all(part_is_good)
}

/// A text as a value of git's configuration; `None` if it could not stand there.
fn quoted(text: &str) -> Option<String> {
    if text.is_empty() || text.len() > 4_096 || text.chars().any(char::is_control) {
        return None;
    }
    Some(format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_branches_are_judged_as_git_does() {
        for name in ["main", "release/1.2", "$(touch${IFS}/tmp/pwn)", ";reboot", "--upload-pack=x", "ü"] {
            assert!(is_ref_name(name), "{name}");
        }
        for name in
            ["", "..", "a..b", "a b", "a\n", "/a", "a/", "a//b", ".a", "a/.b", "x.lock", "@", "a@{b", "a."]
        {
            assert!(!is_ref_name(name), "{name}");
        }
    }

    #[test]
    fn an_address_cannot_break_out_of_its_quotes() {
        assert_eq!(quoted("/srv/a\"b\\c").as_deref(), Some("\"/srv/a\\\"b\\\\c\""));
        assert_eq!(quoted("x\n[core]\n\tsshCommand = y"), None);
    }
}
