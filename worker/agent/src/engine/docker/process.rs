//! When the engine's process started.

use std::os::unix::net::UnixStream;
use std::path::Path;

use buildyard_types::Timestamp;

/// Asks the kernel who answers on the socket, and since when that process lives. `None` where it cannot be said: a
/// socket that systemd opened belongs to systemd, and one in another namespace has no pid here.
pub(super) fn started(socket: &Path) -> Option<Timestamp> {
    let stream = UnixStream::connect(socket).ok()?;
    let peer = rustix::net::sockopt::socket_peercred(&stream).ok()?;
    let by_socket = peer.pid.as_raw_nonzero().get();
    engine_start(by_socket).or_else(|| {
        let written = std::fs::read_to_string("/var/run/docker.pid").ok()?;
        engine_start(written.trim().parse().ok()?)
    })
}

fn engine_start(pid: i32) -> Option<Timestamp> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    if name.trim() != "dockerd" {
        return None;
    }
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let boot = std::fs::read_to_string("/proc/stat").ok()?;
    start_time(&stat, &boot)
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
}
