use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use buildyard_types::ByteSize;
use buildyard_types::job::CheckoutSpec;
use buildyard_types::worker::SourceRef;

use super::*;
use crate::engine::Owner;

const OWNER: Owner = Owner { uid: 1000, gid: 1000 };

/// A repository somewhere, and the worker's folder for mirrors.
struct Farm {
    temp: tempfile::TempDir,
}

impl Farm {
    fn new() -> Self {
        let temp = tempfile::tempdir().unwrap();
        // The job's user passes through it.
        fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o711)).unwrap();
        for folder in ["origin", "mirrors"] {
            fs::create_dir(temp.path().join(folder)).unwrap();
        }
        let farm = Self { temp };
        farm.git(&["init", "-q", "-b", "main"]);
        farm
    }

    fn path(&self, name: &str) -> PathBuf {
        self.temp.path().join(name)
    }

    fn git(&self, arguments: &[&str]) -> String {
        git(&self.path("origin"), arguments)
    }

    fn commit(&self, file: &str, text: &str) -> String {
        let path = self.path("origin").join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self.git(&["add", "-A"]);
        self.git(&["commit", "-q", "-m", file]);
        self.git(&["rev-parse", "HEAD"])
    }

    fn mirrors(&self) -> Mirrors {
        Mirrors::new(self.path("mirrors"), ByteSize::from_gib(1)).with_folders()
    }

    async fn obtain(&self, mirrors: &Mirrors, commit: &str, tags: bool) -> Result<Mirror, SourceError> {
        let url = format!("file://{}", self.path("origin").display());
        let remote = Remote { repository: "app", url: &url, authorization: "x: y", run: "run-1" };
        mirrors.obtain(remote, commit, tags).await
    }

    /// Checks out into a new folder and gives it.
    async fn check_out(
        &self,
        name: &str,
        commit: &str,
        ref_name: Option<&str>,
        spec: &CheckoutSpec,
    ) -> Result<PathBuf, SourceError> {
        let mirror = self.obtain(&self.mirrors(), commit, spec.tags).await?;
        let workspace = self.path(name);
        fs::create_dir(&workspace).unwrap();
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&workspace, Some(OWNER.uid), Some(OWNER.gid)).unwrap();
        }
        let source = SourceRef {
            repository: "/srv/git/app".into(),
            commit: commit.into(),
            ref_name: ref_name.map(str::to_owned),
        };
        let checkout = Checkout { source: &source, spec, owner: OWNER };
        check_out(Origin::mirror(mirror.git_dir()), &workspace, checkout).await?;
        Ok(workspace)
    }
}

fn git(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.current_dir(folder).args(["-c", "safe.directory=*", "-c", "tag.gpgSign=false"]).args(arguments);
    for (key, value) in [
        ("GIT_AUTHOR_NAME", "a"),
        ("GIT_AUTHOR_EMAIL", "a@example"),
        ("GIT_COMMITTER_NAME", "a"),
        ("GIT_COMMITTER_EMAIL", "a@example"),
        ("GIT_CONFIG_GLOBAL", "/dev/null"),
        ("GIT_OPTIONAL_LOCKS", "0"),
    ] {
        command.env(key, value);
    }
    let output = command.output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

fn spec(depth: Option<u32>, tags: bool) -> CheckoutSpec {
    CheckoutSpec { depth, tags }
}

#[tokio::test]
async fn a_checkout_has_files_history_branch_and_tags_and_belongs_to_the_job() {
    let farm = Farm::new();
    farm.commit("one", "1\n");
    farm.git(&["tag", "-a", "-m", "first", "v1"]);
    let commit = farm.commit("sub/two", "2\n");
    let workspace = farm.check_out("w", &commit, Some("refs/heads/main"), &spec(None, true)).await.unwrap();

    assert_eq!(fs::read_to_string(workspace.join("sub/two")).unwrap(), "2\n");
    assert_eq!(git(&workspace, &["status", "--porcelain"]), "");
    assert_eq!(git(&workspace, &["log", "--format=%s"]), "sub/two\none");
    assert_eq!(git(&workspace, &["rev-parse", "origin/main"]), commit);
    assert!(git(&workspace, &["describe"]).starts_with("v1-1-g"));
    assert_eq!(git(&workspace, &["config", "remote.origin.url"]), "/srv/git/app");
    git(&workspace, &["fsck", "--strict"]);
    if rustix::process::geteuid().is_root() {
        for path in ["one", "sub", ".git/HEAD", ".git/index", ".git/config", ".git/objects/pack"] {
            assert_eq!(fs::metadata(workspace.join(path)).unwrap().uid(), OWNER.uid, "{path}");
        }
    }
    for pack in fs::read_dir(workspace.join(".git/objects/pack")).unwrap() {
        assert_eq!(pack.unwrap().metadata().unwrap().nlink(), 1, "no file is shared with the mirror");
    }
}

#[tokio::test]
async fn a_depth_cuts_the_history_by_generations() {
    let farm = Farm::new();
    farm.commit("a", "a");
    farm.commit("b", "b");
    farm.git(&["checkout", "-q", "-b", "side"]);
    farm.commit("c", "c");
    farm.git(&["checkout", "-q", "main"]);
    farm.commit("d", "d");
    farm.git(&["merge", "-q", "--no-ff", "-m", "merge", "side"]);
    farm.git(&["tag", "-a", "-m", "far", "far", "main~2"]);
    farm.git(&["tag", "near", "main"]);
    let commit = farm.git(&["rev-parse", "main"]);
    for (depth, subjects, tags) in [
        (Some(1), vec!["merge"], vec!["near"]),
        (Some(2), vec!["c", "d", "merge"], vec!["near"]),
        (Some(3), vec!["b", "c", "d", "merge"], vec!["far", "near"]),
        (Some(50), vec!["a", "b", "c", "d", "merge"], vec!["far", "near"]),
        (None, vec!["a", "b", "c", "d", "merge"], vec!["far", "near"]),
    ] {
        let name = format!("w{}", depth.unwrap_or(0));
        let workspace = farm.check_out(&name, &commit, None, &spec(depth, true)).await.unwrap();
        let log = git(&workspace, &["log", "--format=%s"]);
        let mut found: Vec<&str> = log.lines().collect();
        found.sort();
        assert_eq!(found, subjects, "depth {depth:?}");
        assert_eq!(git(&workspace, &["tag"]).lines().collect::<Vec<_>>(), tags, "depth {depth:?}");
        assert_eq!(git(&workspace, &["status", "--porcelain"]), "");
        git(&workspace, &["fsck"]);
    }
}

#[tokio::test]
async fn the_jobs_of_one_commit_fetch_once() {
    let farm = Farm::new();
    let commit = farm.commit("one", "1");
    let mirrors = farm.mirrors();
    let first = farm.obtain(&mirrors, &commit, false).await.unwrap();
    // What is no longer there cannot be fetched again.
    fs::rename(farm.path("origin"), farm.path("away")).unwrap();
    let second = farm.obtain(&mirrors, &commit, false).await.unwrap();
    assert_eq!(first.git_dir(), second.git_dir());
    let error = farm.obtain(&mirrors, &commit, true).await.unwrap_err();
    assert!(matches!(error, SourceError::Git { .. }), "tags were not fetched yet: {error}");
}

#[tokio::test]
async fn a_damaged_mirror_is_dropped_and_fetched_anew() {
    let farm = Farm::new();
    let commit = farm.commit("one", "1");
    let mirrors = farm.mirrors();
    let mirror = farm.obtain(&mirrors, &commit, false).await.unwrap();
    for file in fs::read_dir(mirror.git_dir().join("objects/pack")).unwrap() {
        fs::remove_file(file.unwrap().path()).unwrap();
    }
    farm.check_out("broken", &commit, None, &spec(None, false)).await.unwrap_err();
    mirrors.drop_mirror(mirror).await.unwrap();
    farm.check_out("whole", &commit, None, &spec(None, false)).await.unwrap();
}

#[tokio::test]
async fn the_least_used_mirror_goes_first() {
    let farm = Farm::new();
    let mirrors = Mirrors::new(farm.path("mirrors"), ByteSize(0)).with_folders();
    let commit = farm.commit("one", "1");
    let url = format!("file://{}", farm.path("origin").display());
    let remote = |repository| Remote { repository, url: &url, authorization: "x: y", run: "run-1" };
    let first = mirrors.obtain(remote("a"), &commit, false).await.unwrap();
    let second = mirrors.obtain(remote("b"), &commit, false).await.unwrap();
    assert!(first.git_dir().exists() && second.git_dir().exists(), "mirrors in use stay");
    let dropped = first.git_dir().to_owned();
    drop(first);
    let third = mirrors.obtain(remote("c"), &commit, false).await.unwrap();
    assert!(!dropped.exists() && second.git_dir().exists() && third.git_dir().exists());
}

#[tokio::test]
async fn the_only_mirror_of_a_worker_keeps_to_its_limits_too() {
    let farm = Farm::new();
    let mirrors = Mirrors::new(farm.path("mirrors"), ByteSize(0)).with_folders();
    let packs = |mirror: &Mirror| {
        let entries = fs::read_dir(mirror.git_dir().join("objects/pack")).unwrap().flatten();
        entries.filter(|entry| entry.path().extension().is_some_and(|extension| extension == "pack")).count()
    };
    let mut most = 0;
    let mut last = 0;
    for number in 0..25 {
        let commit = farm.commit("one", &number.to_string());
        let mirror = farm.obtain(&mirrors, &commit, false).await.unwrap();
        last = packs(&mirror);
        most = most.max(last);
    }
    // One that is in use stays, and is dropped later.
    assert!((20..=22).contains(&most) && last < 10, "{most} packs, {last} at last");
}

#[tokio::test]
async fn hostile_names_and_files_stay_data() {
    let farm = Farm::new();
    let marker = farm.path("marker");
    farm.commit(".gitattributes", "* filter=evil\n");
    farm.git(&["config", "filter.evil.smudge", &format!("touch {}", marker.display())]);
    fs::write(
        farm.path("origin/.gitmodules"),
        "[submodule \"x\"]\n\tpath = x\n\turl = --upload-pack=touch\n",
    )
    .unwrap();
    std::os::unix::fs::symlink("/etc/passwd", farm.path("origin/link")).unwrap();
    let commit = farm.commit("a", "a");
    for (number, name) in
        ["refs/heads/--upload-pack=x", "refs/heads/../../../../../../tmp/x", "refs/heads/x\ny"]
            .into_iter()
            .enumerate()
    {
        let workspace =
            farm.check_out(&format!("w{number}"), &commit, Some(name), &spec(None, false)).await.unwrap();
        assert!(fs::symlink_metadata(workspace.join("link")).unwrap().is_symlink());
        assert!(!workspace.join(".git/refs/remotes").exists(), "{name:?} became a path");
    }
    assert!(!marker.exists());
    for commit in ["--upload-pack=touch", "HEAD", "main", &commit[..39]] {
        let error = farm.obtain(&farm.mirrors(), commit, false).await.unwrap_err();
        assert!(matches!(error, SourceError::BadCommit(_)), "{commit}: {error}");
    }
}

#[tokio::test]
async fn what_is_not_there_is_said_in_gits_words() {
    let farm = Farm::new();
    farm.commit("one", "1");
    let absent = "5e1c309dae7f45e0f39b1bf3ac3cd9db12e7d689";
    let error = farm.obtain(&farm.mirrors(), absent, false).await.unwrap_err().to_string();
    assert!(error.contains("fetch the commit") && error.contains(absent), "{error}");
    let tree = farm.git(&["rev-parse", "HEAD^{tree}"]);
    farm.git(&["config", "uploadpack.allowAnySHA1InWant", "true"]);
    let error = farm.obtain(&farm.mirrors(), &tree, false).await.unwrap_err().to_string();
    assert!(error.contains("is no commit") || error.contains("fetch the commit"), "{error}");
    // The failure is not taken for a fetch the next time.
    farm.obtain(&farm.mirrors(), &tree, false).await.unwrap_err();
}
