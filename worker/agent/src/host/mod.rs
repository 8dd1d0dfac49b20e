//! What this host offers to the farm, and what is missing on it.

pub mod doctor;
mod runc;

use std::collections::BTreeMap;
use std::path::Path;

use buildyard_types::ByteSize;
use buildyard_types::worker::Capacity;

use crate::config::CapacitySettings;
use crate::engine::{Engine, EngineInfo};

/// Memory that is left to the host, its engine and the worker: this much, or a tenth where that is more.
const MEMORY_RESERVE: ByteSize = ByteSize::from_mib(512);
/// Disk that is never given to attempts, so that images, logs and mirrors have room: this much, or a tenth.
const DISK_RESERVE: ByteSize = ByteSize::from_gib(2);
/// Below this much free disk a worker takes no attempts.
const DISK_LOW: ByteSize = ByteSize::from_gib(1);
/// Below this much a job that took more than is left is stopped: its host has to go on.
const DISK_GONE: ByteSize = ByteSize::from_mib(512);
/// Likewise of files and folders, in hundredths of what the file system can hold.
const INODES_LOW: u64 = 5;
const INODES_GONE: u64 = 2;
/// Attempts per processor. Builds wait for disk and network about half of their time; what they may use of processors is
/// counted besides, so that this only bounds the number of containers.
const SLOTS_PER_CPU: u64 = 2;

/// Room on a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// What can still be written.
    pub free: ByteSize,
    /// What it can hold.
    pub whole: ByteSize,
    /// Files and folders that can still be made.
    pub inodes_free: u64,
    /// How many it can hold; 0 where it has no fixed number of them.
    pub inodes: u64,
}

impl Room {
    /// Whether a job that writes has to stop for its host's sake.
    pub(crate) fn is_low_on_bytes(&self) -> bool {
        self.free < DISK_GONE
    }

    /// The same of files and folders.
    pub(crate) fn is_low_on_inodes(&self) -> bool {
        self.inodes > 0 && self.inodes_free < self.inodes / 100 * INODES_GONE
    }

    /// What there is too little of to take attempts, if there is.
    pub(crate) fn lacks(&self) -> Option<String> {
        if self.free < DISK_LOW {
            return Some(format!(
                "only {} free; below {DISK_LOW} no attempts are taken",
                buildyard_types::size::rounded(self.free.0)
            ));
        }
        if self.inodes > 0 && self.inodes_free < self.inodes / 100 * INODES_LOW {
            return Some(format!(
                "only {} of {} inodes free; below {INODES_LOW} % no attempts are taken",
                self.inodes_free, self.inodes
            ));
        }
        None
    }
}

/// Room on the file system of a folder, or of the nearest folder above it that exists.
pub fn room(folder: &Path) -> std::io::Result<Room> {
    let existing = folder.ancestors().find(|path| path.exists()).unwrap_or(Path::new("/"));
    let found = rustix::fs::statvfs(existing)?;
    let of = |blocks: u64| ByteSize(blocks.saturating_mul(found.f_frsize));
    Ok(Room {
        free: of(found.f_bavail),
        whole: of(found.f_blocks),
        inodes_free: found.f_favail,
        inodes: found.f_files,
    })
}

/// The smaller of the two places that attempts write to.
fn smaller_place(info: &EngineInfo, data_dir: &Path) -> std::io::Result<Room> {
    let (data, engine) = (room(data_dir)?, room(&info.data_root)?);
    Ok(if engine.whole < data.whole { engine } else { data })
}

/// Labels that a worker finds out about itself.
pub fn facts(info: &EngineInfo) -> BTreeMap<String, String> {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    collect_facts(info, &kernel, &release)
}

fn collect_facts(info: &EngineInfo, kernel: &str, os_release: &str) -> BTreeMap<String, String> {
    let field = |key: &str| {
        let line = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim_matches('"').to_owned()).unwrap_or_default()
    };
    let all = [
        ("os", "linux".to_owned()),
        ("arch", info.arch.clone()),
        ("distro", field("ID")),
        ("distro_version", field("VERSION_ID")),
        ("kernel", first_two(kernel)),
        ("engine", first_two(&info.version)),
    ];
    // A label that could not be written in an expression is none.
    let usable = |value: &str| buildyard_types::label::is_name(value);
    all.into_iter().filter(|(_, value)| usable(value)).map(|(key, value)| (key.to_owned(), value)).collect()
}

/// `6.1.0-13-amd64` as `6.1`: what people ask for does not change with every correction.
fn first_two(version: &str) -> String {
    let number = |part: &str| part.chars().take_while(char::is_ascii_digit).collect::<String>();
    version.trim().splitn(3, '.').take(2).map(number).collect::<Vec<_>>().join(".")
}

/// What attempts may use together: what the owner says, else what the host has less a reserve.
pub fn capacity(info: &EngineInfo, data_dir: &Path, wanted: &CapacitySettings) -> std::io::Result<Capacity> {
    Ok(capacity_of(info, smaller_place(info, data_dir)?, wanted))
}

fn capacity_of(info: &EngineInfo, room: Room, wanted: &CapacitySettings) -> Capacity {
    let less = |all: u64, reserve: ByteSize, tenth_of: u64| all.saturating_sub(reserve.0.max(tenth_of / 10));
    let slots = u32::try_from((info.cpus * SLOTS_PER_CPU).max(1)).unwrap_or(u32::MAX);
    Capacity {
        slots: wanted.slots.unwrap_or(slots),
        cpu_millis: wanted.cpu_millis.unwrap_or(info.cpus * 1_000),
        memory: wanted.memory.unwrap_or(ByteSize(less(info.memory.0, MEMORY_RESERVE, info.memory.0))),
        // Of the whole and not of what is free now: what jobs take of it is counted by the coordinator, and nobody may be
        // refused for good over files that are gone tomorrow. A host that is nearly full takes no attempts: `unfit`.
        disk: wanted.disk.unwrap_or(ByteSize(less(room.whole.0, DISK_RESERVE, room.whole.0))),
    }
}

/// Why this host should take no attempts now, in one sentence; `None` if it can.
pub async fn unfit(engine: &dyn Engine, info: Option<&EngineInfo>, data_dir: &Path) -> Option<String> {
    if let Err(error) = engine.ping().await {
        return Some(format!("{error}; start it with `systemctl start docker`"));
    }
    if let Some(never) = info.and_then(never_fit) {
        return Some(never);
    }
    let data_root = info.map(|info| info.data_root.as_path());
    [Some(data_dir), data_root].into_iter().flatten().find_map(|folder| match room(folder) {
        Ok(room) => room.lacks().map(|lack| format!("{}: {lack}", folder.display())),
        Err(error) => Some(format!("the disk at {} cannot be looked at: {error}", folder.display())),
    })
}

/// What about an engine keeps its host from ever taking attempts, with the remedy.
fn never_fit(info: &EngineInfo) -> Option<String> {
    let checks = [doctor::limits(info), doctor::storage(info), doctor::user_namespaces(info)];
    checks.into_iter().find_map(|check| match check.level {
        doctor::Level::Fail => Some(match check.remedy {
            Some(remedy) => format!("{}; {remedy}", check.found),
            None => check.found,
        }),
        doctor::Level::Ok | doctor::Level::Warn => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::scripted::{Program, ScriptedEngine};

    async fn info() -> EngineInfo {
        ScriptedEngine::new(|_| Program::Runs).info().await.expect("the fake answers")
    }

    #[tokio::test]
    async fn facts_are_labels_that_people_would_write() {
        let release = "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nID=debian\nVERSION_ID=\"12\"\nVERSION_CODENAME=x\n";
        let mut info = info().await;
        info.version = "20.10.24+dfsg1".into();
        let found = collect_facts(&info, "6.1.0-13-amd64\n", release);
        let text: Vec<String> = found.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(
            text,
            ["arch=amd64", "distro=debian", "distro_version=12", "engine=20.10", "kernel=6.1", "os=linux"]
        );
        let bare = collect_facts(&info, "", "ID=\"not a label\"");
        assert!(!bare.contains_key("distro") && bare.contains_key("os"), "{bare:?}");
    }

    #[tokio::test]
    async fn capacity_leaves_a_reserve_unless_the_owner_says_otherwise() {
        let gib = ByteSize::from_gib;
        let room = room_of(gib(50), gib(100));
        let found = capacity_of(&info().await, room, &CapacitySettings::default());
        assert_eq!((found.slots, found.cpu_millis, found.disk), (8, 4_000, gib(90)));
        assert_eq!(found.memory.0, gib(8).0 - gib(8).0 / 10);
        let small = room_of(gib(1), gib(4));
        assert_eq!(capacity_of(&info().await, small, &CapacitySettings::default()).disk, gib(2));
        let wanted = CapacitySettings { slots: Some(1), disk: Some(gib(3)), ..CapacitySettings::default() };
        let found = capacity_of(&info().await, small, &wanted);
        assert_eq!((found.slots, found.disk), (1, gib(3)));
    }

    fn room_of(free: ByteSize, whole: ByteSize) -> Room {
        Room { free, whole, inodes_free: 1_000_000, inodes: 1_000_000 }
    }

    #[test]
    fn a_host_without_room_or_inodes_takes_no_attempts() {
        let gib = ByteSize::from_gib;
        let room = room_of(gib(50), gib(100));
        assert_eq!(room.lacks(), None);
        assert_eq!(Room { inodes: 0, inodes_free: 0, ..room }.lacks(), None, "no fixed number of them");
        for (room, says) in [
            (Room { free: ByteSize::from_mib(900), ..room }, "only 900.0 MiB free"),
            (Room { inodes_free: 40_000, ..room }, "only 40000 of 1000000 inodes free"),
        ] {
            let lack = room.lacks().expect("it lacks something");
            assert!(lack.starts_with(says), "{lack}");
        }
    }

    #[tokio::test]
    async fn an_engine_that_cannot_cap_its_jobs_gets_none() {
        let engine = ScriptedEngine::new(|_| Program::Runs);
        let data = tempfile::tempdir().expect("a folder");
        let of = |driver: &str, info: EngineInfo| EngineInfo {
            storage_driver: driver.to_owned(),
            data_root: data.path().to_owned(),
            ..info
        };
        for driver in ["overlay2", "fuse-overlayfs"] {
            let info = of(driver, info().await);
            assert_eq!(unfit(&engine, Some(&info), data.path()).await, None);
            let remapped = EngineInfo { userns_remap: true, ..info };
            assert!(unfit(&engine, Some(&remapped), data.path()).await.is_some());
        }
        for driver in ["btrfs", "zfs", "overlayfs", "vfs"] {
            let info = of(driver, info().await);
            let reason = unfit(&engine, Some(&info), data.path()).await.expect("unfit");
            assert!(reason.contains(driver) && reason.contains("use overlay2"), "{reason}");
        }
    }

    #[tokio::test]
    async fn an_engine_that_is_away_makes_a_worker_unfit() {
        let engine = ScriptedEngine::new(|_| Program::Runs);
        let data = tempfile::tempdir().expect("a folder");
        assert_eq!(unfit(&engine, None, data.path()).await, None);
        engine.go_away();
        let reason = unfit(&engine, None, data.path()).await.expect("unfit");
        assert!(reason.contains("did not answer"), "{reason}");
    }

    #[test]
    fn room_is_found_for_folders_that_are_still_to_be_made() {
        let found = room(Path::new("/proc/../nowhere/at/all")).expect("room");
        assert!(found.whole.0 > 0);
    }
}
