//! The rules of the packet filter, as one chain that is replaced as a whole.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::process::Stdio;

use tokio::io::AsyncWriteExt as _;
use tokio::process::Command;

use super::NetworkError;

/// Addresses by which clouds tell a machine its secrets.
const METADATA: [&str; 4] = [
    // Link-local as a whole: metadata of most clouds, and of containers of some.
    "169.254.0.0/16",
    // Alibaba, Oracle, Azure.
    "100.100.100.200/32",
    "192.0.0.192/32",
    "168.63.129.16/32",
];
/// Seconds to wait for another program that changes the filter.
const LOCK_WAIT_S: &str = "10";

/// What the chain of a bridge is made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rules {
    pub(super) bridge: String,
    pub(super) coordinator: Vec<SocketAddr>,
    /// The host's name servers.
    pub(super) resolvers: Vec<Ipv4Addr>,
}

/// Named like its bridge, in capitals, since chains of others are.
fn chain(bridge: &str) -> String {
    bridge.to_uppercase()
}

impl Rules {
    /// The chain in the words of iptables-restore. Declaring a chain empties it, and the whole takes effect at once.
    fn text(&self) -> String {
        let chain = chain(&self.bridge);
        let mut text = format!("*raw\n:{chain} - [0:0]\n");
        let mut rule = |rest: std::fmt::Arguments<'_>| {
            writeln!(text, "-A {chain} {rest}").expect("writing to a string cannot fail");
        };
        for resolver in &self.resolvers {
            for protocol in ["udp", "tcp"] {
                rule(format_args!("-d {resolver}/32 -p {protocol} --dport 53 -j RETURN"));
            }
        }
        rule(format_args!("-m addrtype --dst-type LOCAL -j DROP"));
        rule(format_args!("-m addrtype ! --dst-type UNICAST -j DROP"));
        for address in METADATA {
            rule(format_args!("-d {address} -j DROP"));
        }
        for coordinator in &self.coordinator {
            // There is no IPv6 on the bridge.
            if let IpAddr::V4(address) = coordinator.ip().to_canonical() {
                rule(format_args!("-d {address}/32 -p tcp --dport {} -j DROP", coordinator.port()));
            }
        }
        text.push_str("COMMIT\n");
        text
    }

    /// Sets the chain and the way into it.
    pub(super) async fn set(&self) -> Result<(), NetworkError> {
        restore(&self.text()).await?;
        let jump = Jump::of(&self.bridge);
        if !jump.run("-C").await?.0 {
            jump.insist("-I").await?;
        }
        Ok(())
    }
}

/// Whether the chain of a bridge is there with the rule that matters most, and a way into it.
pub(super) async fn are_set(bridge: &str) -> Result<bool, NetworkError> {
    let closes_host =
        ["-t", "raw", "-C", &chain(bridge), "-m", "addrtype", "--dst-type", "LOCAL", "-j", "DROP"];
    Ok(Jump::of(bridge).run("-C").await?.0 && iptables(&closes_host).await?.0)
}

/// Takes away the chain of a bridge and every way into it. Nothing there is fine.
pub(super) async fn remove(bridge: &str) -> Result<(), NetworkError> {
    let jump = Jump::of(bridge);
    while jump.run("-C").await?.0 {
        jump.insist("-D").await?;
    }
    let chain = chain(bridge);
    let there = iptables(&["-t", "raw", "-n", "-L", &chain]).await?.0;
    if there {
        // Declared and therefore emptied, then deleted.
        restore(&format!("*raw\n:{chain} - [0:0]\n-X {chain}\nCOMMIT\n")).await?;
    }
    Ok(())
}

/// The rule that leads from the kernel's chain into ours.
struct Jump {
    bridge: String,
}

impl Jump {
    fn of(bridge: &str) -> Self {
        Self { bridge: bridge.to_owned() }
    }

    async fn run(&self, action: &str) -> Result<(bool, String), NetworkError> {
        let chain = chain(&self.bridge);
        iptables(&["-t", "raw", action, "PREROUTING", "-i", &self.bridge, "-j", &chain]).await
    }

    async fn insist(&self, action: &str) -> Result<(), NetworkError> {
        match self.run(action).await? {
            (true, _) => Ok(()),
            (false, message) => {
                Err(NetworkError::Filter { command: format!("iptables -t raw {action} PREROUTING"), message })
            }
        }
    }
}

/// Runs iptables and says whether it was content, and what it said.
async fn iptables(arguments: &[&str]) -> Result<(bool, String), NetworkError> {
    let output =
        command("iptables").args(["-w", LOCK_WAIT_S]).args(arguments).stdin(Stdio::null()).output().await;
    let output = output.map_err(|error| missing("iptables", &error))?;
    Ok((output.status.success(), said(&output.stderr)))
}

async fn restore(text: &str) -> Result<(), NetworkError> {
    let name = "iptables-restore";
    let mut child = command(name)
        .args(["-w", LOCK_WAIT_S, "--noflush"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| missing(name, &error))?;
    let mut stdin = child.stdin.take().expect("it was piped");
    // If it does not read to the end it has something to say, which is read below.
    let _ = stdin.write_all(text.as_bytes()).await;
    drop(stdin);
    let output = child.wait_with_output().await.map_err(|error| missing(name, &error))?;
    if output.status.success() {
        return Ok(());
    }
    Err(NetworkError::Filter { command: name.to_owned(), message: said(&output.stderr) })
}

fn command(name: &str) -> Command {
    let mut command = Command::new(name);
    command
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin")
        .kill_on_drop(true);
    command
}

fn missing(name: &str, error: &std::io::Error) -> NetworkError {
    NetworkError::Filter { command: name.to_owned(), message: format!("it could not be run: {error}") }
}

fn said(stderr: &[u8]) -> String {
    let text = String::from_utf8_lossy(stderr);
    let lines: Vec<&str> = text.lines().filter(|line| !line.starts_with('#')).map(str::trim).collect();
    lines.join("; ").chars().take(300).collect()
}

/// The host's name servers, as Docker hands them to its resolver. Where the host asks itself by 127.0.0.53, systemd
/// keeps the true ones elsewhere.
pub(super) fn resolvers() -> Vec<Ipv4Addr> {
    let read = |path: &str| parse_resolvers(&std::fs::read_to_string(path).unwrap_or_default());
    let mut found = read("/etc/resolv.conf");
    if found.is_empty() {
        found = read("/run/systemd/resolve/resolv.conf");
    }
    found
}

/// As many as the C library asks.
const MAX_RESOLVERS: usize = 3;

fn parse_resolvers(text: &str) -> Vec<Ipv4Addr> {
    let address = |line: &str| line.strip_prefix("nameserver")?.trim().parse::<Ipv4Addr>().ok();
    text.lines().filter_map(address).filter(|address| !address.is_loopback()).take(MAX_RESOLVERS).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_says_what_is_closed() {
        let rules = Rules {
            bridge: "byd-0a1b2c".into(),
            coordinator: vec!["203.0.113.7:8080".parse().unwrap(), "[2001:db8::1]:8080".parse().unwrap()],
            resolvers: vec![Ipv4Addr::new(169, 254, 169, 253)],
        };
        assert_eq!(
            rules.text(),
            "*raw\n:BYD-0A1B2C - [0:0]\n\
             -A BYD-0A1B2C -d 169.254.169.253/32 -p udp --dport 53 -j RETURN\n\
             -A BYD-0A1B2C -d 169.254.169.253/32 -p tcp --dport 53 -j RETURN\n\
             -A BYD-0A1B2C -m addrtype --dst-type LOCAL -j DROP\n\
             -A BYD-0A1B2C -m addrtype ! --dst-type UNICAST -j DROP\n\
             -A BYD-0A1B2C -d 169.254.0.0/16 -j DROP\n\
             -A BYD-0A1B2C -d 100.100.100.200/32 -j DROP\n\
             -A BYD-0A1B2C -d 192.0.0.192/32 -j DROP\n\
             -A BYD-0A1B2C -d 168.63.129.16/32 -j DROP\n\
             -A BYD-0A1B2C -d 203.0.113.7/32 -p tcp --dport 8080 -j DROP\n\
             COMMIT\n"
        );
    }

    #[test]
    fn resolvers_are_those_that_docker_uses() {
        let text = "# c\nnameserver 127.0.0.53\nnameserver 10.0.0.2\nnameserver fe80::1\noptions x\nnameserver 1.1.1.1\n";
        assert_eq!(parse_resolvers(text), [Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(1, 1, 1, 1)]);
        assert_eq!(parse_resolvers("nameserver 127.0.0.53"), Vec::<Ipv4Addr>::new());
    }
}
