use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::process::Command;

use super::*;
use crate::engine::Owner;
use crate::executor::Source as _;

const OWNER: Owner = Owner { uid: 1000, gid: 1000 };

fn git(folder: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new("git");
    command.current_dir(folder).args(["-c", "safe.directory=*", "-c", "user.name=a", "-c", "user.email=a@b"]);
    command.env("GIT_CONFIG_GLOBAL", "/dev/null").env("GIT_OPTIONAL_LOCKS", "0");
    let output = command.args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

/// A folder with a repository `app` and an empty workspace `w`.
fn ground() -> tempfile::TempDir {
    let temp = tempfile::tempdir().unwrap();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o711)).unwrap();
    for folder in ["app", "w"] {
        fs::create_dir(temp.path().join(folder)).unwrap();
    }
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::chown(temp.path().join("w"), Some(OWNER.uid), Some(OWNER.gid)).unwrap();
    }
    git(&temp.path().join("app"), &["init", "-q", "-b", "main"]);
    temp
}

fn write(folder: &Path, file: &str, text: &str) {
    let path = folder.join(file);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[tokio::test]
async fn a_copy_is_the_checkout_as_it_stands() {
    if !rustix::process::geteuid().is_root() {
        crate::testing::skipped("giving files to the job's user takes root");
        return;
    }
    let temp = ground();
    let app = temp.path().join("app");
    for file in ["kept", "changed", "deleted", "sub/deep", "run.sh"] {
        write(&app, file, "committed\n");
    }
    write(&app, ".gitignore", "ignored\n");
    symlink("/etc/passwd", app.join("link")).unwrap();
    git(&app, &["add", "-A"]);
    git(&app, &["commit", "-q", "-m", "first"]);
    git(&app, &["tag", "v1"]);
    write(&app, "changed", "not committed\n");
    write(&app, "new/file", "untracked\n");
    write(&app, "ignored", "no\n");
    fs::remove_file(app.join("deleted")).unwrap();
    fs::set_permissions(app.join("run.sh"), fs::Permissions::from_mode(0o755)).unwrap();

    let checkout = Checkout::find(&app.join("sub")).unwrap();
    assert_eq!(checkout.root().canonicalize().unwrap(), app.canonicalize().unwrap());
    assert_eq!(checkout.source().ref_name.as_deref(), Some("refs/heads/main"));
    let workspace = temp.path().join("w");
    checkout.fill(&workspace, OWNER).await.unwrap();

    assert_eq!(names(&workspace), [".git", ".gitignore", "changed", "kept", "link", "new", "run.sh", "sub"]);
    assert_eq!(fs::read_to_string(workspace.join("changed")).unwrap(), "not committed\n");
    assert_eq!(fs::read_link(workspace.join("link")).unwrap(), Path::new("/etc/passwd"));
    assert_eq!(fs::metadata(workspace.join("run.sh")).unwrap().permissions().mode() & 0o777, 0o755);
    assert_eq!(git(&workspace, &["describe", "--tags"]), "v1");
    assert_eq!(git(&workspace, &["rev-parse", "HEAD"]), checkout.source().commit);
    let status = git(&workspace, &["status", "--porcelain"]);
    let mut lines: Vec<&str> = status.lines().map(str::trim).collect();
    lines.sort();
    assert_eq!(lines, ["?? new/", "D deleted", "M changed", "M run.sh"]);
    for path in ["kept", "sub", "sub/deep", "link", ".git/index"] {
        use std::os::unix::fs::MetadataExt as _;
        assert_eq!(fs::symlink_metadata(workspace.join(path)).unwrap().uid(), OWNER.uid, "{path}");
    }
}

#[tokio::test]
async fn a_shallow_checkout_and_one_without_commits_are_copied_too() {
    if !rustix::process::geteuid().is_root() {
        crate::testing::skipped("giving files to the job's user takes root");
        return;
    }
    let temp = ground();
    let app = temp.path().join("app");
    write(&app, "first", "1");
    let checkout = Checkout::find(&app).unwrap();
    let workspace = temp.path().join("w");
    checkout.fill(&workspace, OWNER).await.unwrap();
    assert_eq!(names(&workspace), ["first"]);

    for number in 1..=3 {
        write(&app, "file", &number.to_string());
        git(&app, &["add", "-A"]);
        git(&app, &["commit", "-q", "-m", &number.to_string()]);
    }
    let shallow = temp.path().join("shallow");
    let url = format!("file://{}", app.display());
    git(temp.path(), &["clone", "-q", "--depth", "2", &url, "shallow"]);
    let workspace = temp.path().join("w2");
    fs::create_dir(&workspace).unwrap();
    std::os::unix::fs::chown(&workspace, Some(OWNER.uid), Some(OWNER.gid)).unwrap();
    Checkout::find(&shallow).unwrap().fill(&workspace, OWNER).await.unwrap();
    assert_eq!(git(&workspace, &["log", "--format=%s"]), "3\n2");
    assert_eq!(git(&workspace, &["status", "--porcelain"]), "");
    git(&workspace, &["fsck"]);
}

#[test]
fn a_folder_without_a_repository_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let error = Checkout::find(temp.path()).unwrap_err();
    assert!(error.to_string().contains("is not in a git repository"), "{error}");
}

#[tokio::test]
async fn a_folder_swapped_for_a_link_leads_nowhere() {
    if !rustix::process::geteuid().is_root() {
        crate::testing::skipped("giving files to the job's user takes root");
        return;
    }
    let temp = ground();
    let app = temp.path().join("app");
    write(&app, "etc/passwd", "ours\n");
    git(&app, &["add", "-A"]);
    git(&app, &["commit", "-q", "-m", "first"]);
    fs::remove_dir_all(app.join("etc")).unwrap();
    symlink("/etc", app.join("etc")).unwrap();
    let workspace = temp.path().join("w");
    Checkout::find(&app).unwrap().fill(&workspace, OWNER).await.unwrap();
    assert!(fs::symlink_metadata(workspace.join("etc")).unwrap().is_symlink());
}
