//! What the kernel says of the engine's process.

use std::os::unix::net::UnixStream;
use std::path::Path;

use buildyard_types::Timestamp;

/// The right to raise limits, by its number.
const CAP_SYS_RESOURCE: u32 = 24;

/// The engine's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    pid: i32,
}

impl Process {
    /// Asks the kernel who answers on the socket. `None` where it cannot be said: a socket that systemd opened belongs to
    /// systemd, and an engine in another namespace has no pid here.
    pub(super) fn behind(socket: &Path) -> Option<Self> {
        let stream = UnixStream::connect(socket).ok()?;
        let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
        let by_socket = Self { pid: peer.pid.as_raw_nonzero().get() };
        let by_file = || {
            let written = std::fs::read_to_string("/var/run/docker.pid").ok()?;
            Some(Self { pid: written.trim().parse().ok()? })
        };
        Some(by_socket).filter(Self::is_engine).or_else(by_file).filter(Self::is_engine)
    }

    fn file(&self, name: &str) -> Option<String> {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.pid)).ok()
    }

    fn is_engine(&self) -> bool {
        self.file("comm").is_some_and(|name| name.trim() == "dockerd")
    }

    /// Since when it lives.
    pub(super) fn started(&self) -> Option<Timestamp> {
        start_time(&self.file("stat")?, &std::fs::read_to_string("/proc/stat").ok()?)
    }

    /// How many open files it can give a container at most; `None` if as many as it likes.
    pub(super) fn open_files_cap(&self) -> Option<u64> {
        open_files_cap(&self.file("limits")?, &self.file("status")?)
    }
}

fn open_files_cap(limits: &str, status: &str) -> Option<u64> {
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    let capabilities = u64::from_str_radix(capabilities.trim(), 16).ok()?;
    if capabilities & (1 << CAP_SYS_RESOURCE) != 0 {
        return None;
    }
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// From the two files of /proc. The kernel counts starts in hundredths of a second since boot, on every machine.
fn start_time(stat: &str, boot: &str) -> Option<Timestamp> {
    // The name in brackets may hold blanks and brackets; the fields are counted after its last one.
    let ticks: u64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
    let boot_s: u64 = boot.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    Some(Timestamp(boot_s * 1_000 + ticks * 10))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_is_counted_from_the_boot() {
        let stat = "812 (a) b) S 1 812 812 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 14 0 1234 99 88";
        let boot = "cpu 1 2 3\nbtime 1700000000\nprocesses 5\n";
        assert_eq!(start_time(stat, boot), Some(Timestamp(1_700_000_012_340)));
        assert_eq!(start_time("", boot), None);
    }

    #[test]
    fn an_engine_that_may_not_raise_limits_gives_what_it_has() {
        let limits = "Limit  Soft Limit  Hard Limit  Units\nMax open files            1024        20000      files     \n";
        assert_eq!(open_files_cap(limits, "CapEff:\t000001fffeffffff\n"), Some(20_000));
        assert_eq!(open_files_cap(limits, "CapEff:\t000001ffffffffff\n"), None);
    }
}
