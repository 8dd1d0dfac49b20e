//! Workspaces on this machine's kernel. Hard caps need root and loop devices; without them those tests say so.

use super::*;
use buildyard_types::RunId;

const OWNER: Owner = Owner { uid: 1000, gid: 1000 };

struct Place {
    data: tempfile::TempDir,
    workspaces: Workspaces,
}

/// A data folder in which hard caps work; `None` and a notice where they do not.
async fn place() -> Option<Place> {
    let data = tempfile::tempdir().expect("a folder");
    let workspaces = Workspaces::open(data.path()).await.expect("workspaces");
    if let Some(why) = workspaces.why_watched() {
        crate::testing::skipped(&format!("no loop mounts here: {why}"));
        return None;
    }
    Some(Place { data, workspaces })
}

impl Place {
    fn mounts(&self) -> usize {
        mounts::below(&self.data.path().canonicalize().expect("it exists")).expect("mountinfo").len()
    }

    fn devices(&self) -> usize {
        let data = self.data.path().canonicalize().expect("it exists");
        let ours = |name: &str| {
            let file = std::fs::read_to_string(format!("/sys/block/{name}/loop/backing_file"));
            file.is_ok_and(|file| Path::new(&file).starts_with(&data))
        };
        let devices = std::fs::read_dir("/sys/block").expect("/sys").flatten();
        devices.filter(|device| ours(&device.file_name().to_string_lossy())).count()
    }

    fn assert_nothing_is_left(&self) {
        assert_eq!((self.mounts(), self.devices()), (0, 0));
        let left: Vec<_> =
            std::fs::read_dir(self.data.path().join("attempts")).expect("list").flatten().collect();
        assert!(left.iter().all(|entry| !has_workspace(&entry.path())), "{left:?}");
    }
}

impl Drop for Place {
    /// A test that fails must not leave mounts behind.
    fn drop(&mut self) {
        for entry in std::fs::read_dir(&self.workspaces.attempts).into_iter().flatten().flatten() {
            let _ = remove_in(&entry.path());
        }
    }
}

fn attempt(number: u32) -> AttemptId {
    RunId(7).job(0).attempt(number)
}

#[tokio::test]
async fn a_workspace_is_the_jobs_own_and_goes_without_a_trace() {
    use std::os::unix::fs::MetadataExt as _;
    let Some(place) = place().await else { return };
    let made = place.workspaces.make(attempt(1), OWNER, ByteSize::from_mib(64)).await.expect("make");
    assert_eq!(made.cap(), DiskCap::Hard);
    for folder in [made.workspace(), made.home()] {
        let found = std::fs::metadata(&folder).expect("it is there");
        assert_eq!((found.uid(), found.gid(), found.mode() & 0o7777), (1000, 1000, 0o755), "{folder:?}");
        assert_eq!(std::fs::read_dir(&folder).expect("list").count(), 0, "empty, without lost+found");
    }
    assert_eq!(std::fs::metadata(made.disk.join("tmp")).expect("tmp").mode() & 0o7777, 0o1777);
    let options = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let line =
        options.lines().find(|line| line.contains(made.disk.to_str().expect("text"))).expect("mounted");
    assert!(line.contains("nosuid") && line.contains("nodev") && !line.contains("noexec"), "{line}");

    let adopted = place.workspaces.adopt(attempt(1), ByteSize::from_mib(64)).await.expect("adopt");
    assert_eq!(adopted, Some(made));
    place.workspaces.remove(attempt(1)).await.expect("remove");
    place.workspaces.remove(attempt(1)).await.expect("removing again is fine");
    assert_eq!(place.workspaces.adopt(attempt(1), ByteSize::from_mib(64)).await.expect("adopt"), None);
    place.assert_nothing_is_left();
}

#[tokio::test]
async fn bytes_and_inodes_are_capped_together() {
    let Some(place) = place().await else { return };
    let made = place.workspaces.make(attempt(1), OWNER, ByteSize::from_mib(16)).await.expect("make");
    let before = made.usage().expect("usage").expect("known");
    assert!(
        !before.is_full() && before.bytes_limit <= 16 << 20 && before.inodes_limit <= MAX_TEST_INODES,
        "{before:?}"
    );

    let error = std::fs::write(made.home().join("big"), vec![1; 32 << 20]).expect_err("it does not fit");
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    let full = made.usage().expect("usage").expect("known");
    assert!(full.is_full(), "{full:?}");
    std::fs::write(made.workspace().join("other"), vec![1; 1 << 20]).expect_err("one cap holds for both");

    std::fs::remove_file(made.home().join("big")).expect("remove");
    assert!(!made.usage().expect("usage").expect("known").is_full());
    let files = (0..MAX_TEST_INODES + 1)
        .find(|number| std::fs::write(made.workspace().join(number.to_string()), "").is_err());
    assert!(files.is_some(), "inodes run out");
    assert!(made.usage().expect("usage").expect("known").is_full());
    place.workspaces.remove(attempt(1)).await.expect("remove");
    place.assert_nothing_is_left();
}

const MAX_TEST_INODES: u64 = 20_000;

#[tokio::test]
async fn a_disk_of_any_size_can_be_made() {
    let Some(place) = place().await else { return };
    for (number, mib) in [(1, 0), (2, 9), (3, 300), (4, 10 << 10), (5, 200 << 10)] {
        let made = place.workspaces.make(attempt(number), OWNER, ByteSize::from_mib(mib)).await;
        let usage = made
            .unwrap_or_else(|error| panic!("{mib} MiB: {error:?}"))
            .usage()
            .expect("usage")
            .expect("known");
        let wanted = mib.max(8) << 20;
        assert!(usage.bytes_limit <= wanted && usage.bytes_limit > wanted / 2, "{mib} MiB: {usage:?}");
        assert!((2_000..=1_100_000).contains(&usage.inodes_limit), "{mib} MiB: {usage:?}");
        place.workspaces.remove(attempt(number)).await.expect("remove");
    }
    place.assert_nothing_is_left();
}

#[tokio::test]
async fn making_again_begins_empty() {
    let Some(place) = place().await else { return };
    let first = place.workspaces.make(attempt(1), OWNER, ByteSize::from_mib(16)).await.expect("make");
    std::fs::write(first.workspace().join("left"), "over").expect("write");
    let second = place.workspaces.make(attempt(1), OWNER, ByteSize::from_mib(16)).await.expect("make again");
    assert_eq!(std::fs::read_dir(second.workspace()).expect("list").count(), 0);
    assert_eq!((place.mounts(), place.devices()), (1, 1), "one mount, not one upon the other");
    place.workspaces.remove(attempt(1)).await.expect("remove");
    place.assert_nothing_is_left();
}

#[tokio::test]
async fn a_kill_at_the_first_look_costs_no_hard_cap() {
    let Some(place) = place().await else { return };
    let probe = place.data.path().join("attempts/probe");
    std::fs::create_dir_all(probe.join("disk")).expect("folder");
    std::fs::write(probe.join("disk.img"), "half a file").expect("file");
    let reopened = Workspaces::open(place.data.path()).await.expect("as after a restart");
    assert_eq!((reopened.cap(), reopened.why_watched()), (DiskCap::Hard, None));
    place.assert_nothing_is_left();
}

#[tokio::test]
async fn other_users_of_the_host_do_not_get_into_a_workspace() {
    use std::os::unix::process::CommandExt as _;
    let Some(place) = place().await else { return };
    let mut watched = place.workspaces.clone();
    watched.cap = DiskCap::Watched;
    let open = |path: &Path| std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o711));
    open(place.data.path()).expect("as the worker's folder is");
    for (number, workspaces) in [(1, &place.workspaces), (2, &watched)] {
        let made = workspaces.make(attempt(number), OWNER, ByteSize::from_mib(16)).await.expect("make");
        let lists = |uid, gid| {
            let mut ls = std::process::Command::new("ls");
            ls.arg(made.workspace()).uid(uid).gid(gid).output().expect("ls").status.success()
        };
        let mut write = std::process::Command::new("touch");
        let wrote = write.arg(made.home().join("x")).uid(1000).gid(1000).status().expect("touch");
        assert!(wrote.success() && lists(1000, 1000), "the job's user gets there");
        assert!(!lists(4242, 4242), "{:?}: another one does not", workspaces.cap);
        workspaces.remove(attempt(number)).await.expect("remove");
    }
    place.assert_nothing_is_left();
}

#[tokio::test]
async fn many_are_made_at_once() {
    let Some(place) = place().await else { return };
    let make = |number| place.workspaces.make(attempt(number), OWNER, ByteSize::from_mib(16));
    let made = futures_util::future::join_all((1..=12).map(make)).await;
    assert!(made.iter().all(Result::is_ok), "{made:?}");
    assert_eq!((place.mounts(), place.devices()), (12, 12));
    let remove = |number| place.workspaces.remove(attempt(number));
    let removed = futures_util::future::join_all((1..=12).map(remove)).await;
    assert!(removed.iter().all(Result::is_ok), "{removed:?}");
    place.assert_nothing_is_left();
}

#[tokio::test]
async fn a_sweep_takes_what_is_not_kept_wherever_a_crash_left_it() {
    let Some(place) = place().await else { return };
    for number in 1..=3 {
        place.workspaces.make(attempt(number), OWNER, ByteSize::from_mib(16)).await.expect("make");
    }
    // Died between the image and the mount; and after the mount was taken down.
    let half = place.data.path().join("attempts/att-7-0-4");
    std::fs::create_dir_all(&half).expect("folder");
    std::fs::write(half.join("disk.img"), "half a file").expect("file");
    std::fs::create_dir_all(place.data.path().join("attempts/att-7-0-5/disk")).expect("folder");
    // Somebody's spool: no workspace, none of our business.
    std::fs::create_dir_all(place.data.path().join("attempts/att-7-0-6/spool")).expect("folder");

    let reopened = Workspaces::open(place.data.path()).await.expect("as after a restart");
    let swept = reopened.sweep(&[attempt(2)].into()).await.expect("sweep");
    let mut removed = swept.removed.clone();
    removed.sort();
    assert_eq!(removed, ["att-7-0-1", "att-7-0-3", "att-7-0-4", "att-7-0-5"]);
    assert_eq!(swept.failed, Vec::<String>::new());
    assert_eq!((place.mounts(), place.devices()), (1, 1));
    assert!(place.data.path().join("attempts/att-7-0-6/spool").exists());
    assert!(reopened.adopt(attempt(2), ByteSize::from_mib(16)).await.expect("adopt").is_some());
    reopened.remove(attempt(2)).await.expect("remove");
    place.assert_nothing_is_left();
}

#[tokio::test]
async fn a_busy_workspace_is_removed_all_the_same() {
    let Some(place) = place().await else { return };
    let made = place.workspaces.make(attempt(1), OWNER, ByteSize::from_mib(16)).await.expect("make");
    let held = std::fs::File::create(made.workspace().join("held")).expect("a file that stays open");
    place.workspaces.remove(attempt(1)).await.expect("remove");
    assert_eq!(place.mounts(), 0);
    drop(held);
    // The device lets go by itself, a moment after its last user.
    for _ in 0..1_000 {
        if place.devices() == 0 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    place.assert_nothing_is_left();
}

#[tokio::test]
async fn only_a_disk_of_ours_is_ever_shut_down() {
    let Some(place) = place().await else { return };
    let made = place.workspaces.make(attempt(1), OWNER, ByteSize::from_mib(16)).await.expect("make");
    // Taken for another attempt's, it is unmounted but not shut down; and a plain folder is left alone.
    let other = place.data.path().join("attempts/att-7-0-9/disk.img");
    let folder = place.data.path().canonicalize().expect("it exists");
    loop_device::unmount(&folder, &other).expect("no mount, nothing to do");
    std::fs::write(folder.join("still"), "writable").expect("the host's file system lives");
    std::fs::write(made.workspace().join("still"), "writable").expect("the workspace lives");
    place.workspaces.remove(attempt(1)).await.expect("remove");
    place.assert_nothing_is_left();
}

#[tokio::test]
async fn without_loop_mounts_there_are_folders() {
    let data = tempfile::tempdir().expect("a folder");
    let mut workspaces = Workspaces::open(data.path()).await.expect("workspaces");
    workspaces.cap = DiskCap::Watched;
    let Ok(made) = workspaces.make(attempt(1), OWNER, ByteSize::from_mib(16)).await else {
        crate::testing::skipped("folders cannot be handed over without root");
        return;
    };
    assert_eq!(made.usage().expect("usage"), None);
    std::fs::write(made.home().join("x"), vec![1; 20 << 20]).expect("nothing stops it");
    let container = ContainerDetailsFor::nothing();
    let mut watch = DiskWatch::new(&container, &made);
    assert!(matches!(watch.look(), RootUsage::Over { .. }), "but it is noticed");
    workspaces.remove(attempt(1)).await.expect("remove");
    assert!(!made.disk.exists());
}

struct ContainerDetailsFor;

impl ContainerDetailsFor {
    /// A container of which the engine does not say where it writes.
    fn nothing() -> crate::engine::ContainerDetails {
        crate::engine::ContainerDetails {
            id: crate::engine::ContainerId("x".into()),
            name: "x".into(),
            labels: Default::default(),
            state: crate::engine::ContainerState::Created,
            upper_dir: None,
            other_dirs: Vec::new(),
        }
    }
}

#[tokio::test]
async fn a_template_that_is_damaged_is_forgotten_at_the_next_start() {
    let Some(place) = place().await else { return };
    place.workspaces.make(attempt(1), OWNER, ByteSize::from_mib(32)).await.expect("make");
    place.workspaces.remove(attempt(1)).await.expect("remove");
    let template = image_file::template_of(&place.workspaces.templates, 32 << 20);
    assert!(template.exists());
    std::fs::write(&template, "").expect("as after a power cut");
    let reopened = Workspaces::open(place.data.path()).await.expect("as after a restart");
    reopened.make(attempt(2), OWNER, ByteSize::from_mib(32)).await.expect("make");
    reopened.remove(attempt(2)).await.expect("remove");
    place.assert_nothing_is_left();
}
