//! Asks the kernel whether it killed a process of a container for lack of memory.
//!
//! The engine says so too, but only after the container has ended; a verdict need not wait for that. Nothing in
//! the container can write these files.

use std::fs;
use std::path::{Path, PathBuf};

/// The memory counters of a container's cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryCounters {
    file: PathBuf,
}

impl MemoryCounters {
    /// Finds the counters of the cgroup that a process is in. `None` where they cannot be found; then only the
    /// engine can tell.
    pub fn of(pid: u32) -> Option<Self> {
        let text = fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let found = find(&text, Path::new("/sys/fs/cgroup"));
        found.into_iter().find(|file| file.is_file()).map(|file| Self { file })
    }

    /// How many processes the kernel has killed there for lack of memory.
    pub fn oom_kills(&self) -> Option<u64> {
        let text = fs::read_to_string(&self.file).ok()?;
        count(&text)
    }
}

/// Where the counters may be: version 1 with its memory controller first, then version 2.
fn find(cgroups: &str, root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in cgroups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let path = path.trim_start_matches('/');
        // The cgroup at the root is the host's, not a container's.
        if path.is_empty() {
            continue;
        }
        if controllers.split(',').any(|controller| controller == "memory") {
            found.insert(0, root.join("memory").join(path).join("memory.oom_control"));
        } else if controllers.is_empty() {
            found.push(root.join(path).join("memory.events"));
            found.push(root.join("unified").join(path).join("memory.events"));
        }
    }
    found
}

fn count(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_found_in_both_versions() {
        let root = Path::new("/c");
        let first = find("9:cpu:/docker/x\n4:memory:/docker/x\n0::/\n", root);
        assert_eq!(first, [Path::new("/c/memory/docker/x/memory.oom_control")]);
        let second = find("0::/system.slice/docker-x.scope\n", root);
        assert_eq!(second[0], Path::new("/c/system.slice/docker-x.scope/memory.events"));
        assert!(find("0::/\n4:memory:/\n", root).is_empty(), "the host's own counters say nothing of a job");
    }

    #[test]
    fn both_versions_count_alike() {
        assert_eq!(count("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"), Some(3));
        assert_eq!(count("low 0\nhigh 0\nmax 9\noom 2\noom_kill 1\noom_group_kill 0\n"), Some(1));
        assert_eq!(count("oom_kill_disable 0\n"), None);
    }
}
