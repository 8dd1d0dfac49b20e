//! Ways out of a container: each is tried from inside, and none may work.
//!
//! The first process is a script here, so that the profile alone has to hold; init's own defences have their own tests.

use buildyard_test_docker::Ground;
use buildyard_types::job::{JobUser, NetworkMode};

use crate::attempt::{Attempt, job};

/// A name and a command that must fail, or print nothing of the host's.
const ATTEMPTS: [(&str, &str); 28] = [
    ("mount a file system", "mount -t tmpfs none /workspace/m"),
    ("mount proc anew", "mount -t proc proc /workspace/m"),
    ("mount a cgroup, for its release_agent", "mount -t cgroup -o memory cgroup /workspace/m"),
    ("bind over a mask", "mount -o bind /workspace /proc/sys"),
    ("take the mount of accounts away", "umount /etc/passwd"),
    ("remount the workspace with setuid", "mount -o remount,suid /workspace"),
    ("a namespace of one's own", "unshare -r true"),
    ("a mount namespace of one's own", "unshare -m true"),
    ("join the namespaces of process 1", "nsenter -t 1 -n true"),
    ("a device node", "mknod /workspace/sda b 8 0"),
    ("the host's memory", "dd if=/dev/mem of=/workspace/mem count=1"),
    ("the kernel's memory", "test $(dd if=/proc/kcore bs=1 count=1 | wc -c) -gt 0"),
    ("the kernel's log", "dmesg"),
    ("where core files go", "echo '|/workspace/x' >/proc/sys/kernel/core_pattern"),
    ("a program for modules", "echo /workspace/x >/proc/sys/kernel/modprobe"),
    ("sysrq", "echo h >/proc/sysrq-trigger"),
    ("a kernel module", "insmod /workspace/x.ko"),
    ("another root", "chroot / true"),
    ("another root by pivot", "pivot_root / /workspace"),
    ("the host's clock", "date -s 2001-01-01"),
    ("the host's name", "hostname buildyard-escaped"),
    ("raw packets", "ping -c 1 -W 1 127.0.0.1"),
    ("a network interface", "ip link add byd-escape type dummy"),
    ("swap", "swapoff -a && swapon /workspace/x"),
    ("a higher priority", "renice -n -10 -p $$"),
    ("the engine's socket", "ls /var/run/docker.sock /run/docker.sock"),
    (
        "the memory limit of version 1",
        "cd /sys/fs/cgroup/memory && ls memory.limit_in_bytes && echo -1 >memory.limit_in_bytes",
    ),
    ("the memory limit of version 2", "cd /sys/fs/cgroup && ls memory.max && echo max >memory.max"),
];

/// Writes down each attempt that succeeded.
fn script() -> String {
    let one =
        |(name, command): &(&str, &str)| format!("( {command} ) >/dev/null 2>&1 && echo '{name}' >>out\n");
    let all: String = ATTEMPTS.iter().map(one).collect();
    // A way that fails for lack of its program shows nothing.
    let program = |(_, command): &(&str, &str)| command.split_whitespace().next().map(str::to_owned);
    let programs: Vec<String> = ATTEMPTS.iter().filter_map(program).collect();
    let programs =
        format!("for p in {}; do command -v $p >/dev/null || echo $p; done >missing", programs.join(" "));
    format!(
        "cd /workspace; mkdir m; echo >x; : >out; {programs}\n{all}\ngrep -E 'CapEff|CapBnd|NoNewPrivs|Seccomp:' /proc/self/status >status"
    )
}

#[tokio::test]
async fn no_way_out_is_open() {
    let Some(ground) = Ground::find().await else { return };
    for (user, network, capabilities) in [
        (JobUser::Build, NetworkMode::None, "0000000000000000"),
        // CHOWN, DAC_OVERRIDE, FOWNER, KILL, SETGID, SETUID.
        (JobUser::Root, NetworkMode::None, "00000000000000eb"),
        (JobUser::Root, NetworkMode::Host, "00000000000000eb"),
    ] {
        let attempt = Attempt::begin(&ground, &job(user, network), &script()).await;
        attempt.end(&ground).await;
        let status = attempt.file("status").replace('\t', " ");
        let bounding = format!("CapBnd: {capabilities}");
        assert!(status.contains(&bounding) && status.contains("NoNewPrivs: 1"), "{user:?}: {status}");
        assert!(status.contains("Seccomp: 2"), "{user:?}: {status}");
        assert_eq!(attempt.file("missing"), "");
        assert_eq!(attempt.file("out"), "", "{user:?} with {network:?}: these ways are open");
        attempt.remove(&ground).await;
    }
    println!("{} ways, 3 profiles: 0 open", ATTEMPTS.len());
}

#[tokio::test]
async fn the_engine_was_asked_for_nothing_more() {
    let Some(ground) = Ground::find().await else { return };
    for user in [JobUser::Build, JobUser::Root] {
        let attempt = Attempt::begin(&ground, &job(user, NetworkMode::None), "sleep 600").await;
        let format = "{{.HostConfig.Privileged}} {{.HostConfig.PidMode}}|{{.HostConfig.UTSMode}}|{{.HostConfig.UsernsMode}} \
            {{.HostConfig.IpcMode}} {{.HostConfig.Devices}} {{.HostConfig.CgroupParent}}| {{.HostConfig.SecurityOpt}} \
            {{.HostConfig.CapDrop}} {{.HostConfig.LogConfig.Type}} {{.HostConfig.RestartPolicy.Name}}| {{.HostConfig.VolumesFrom}}";
        let output =
            std::process::Command::new("docker").args(["inspect", "-f", format, &attempt.id.0]).output();
        let text = String::from_utf8(output.expect("docker").stdout).expect("text");
        assert_eq!(text.trim(), "false || private [] | [no-new-privileges] [ALL] none | []");
        attempt.remove(&ground).await;
    }
}
