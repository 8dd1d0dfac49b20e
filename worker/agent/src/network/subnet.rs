//! A subnet that nobody uses.
//!
//! Taken from 198.19.0.0/16, half of the range kept for benchmarks (RFC 2544): unlike the private ranges it is in no
//! company's network, so that an attempt can still reach those.

use std::net::Ipv4Addr;

use crate::engine::Instance;

/// Third bytes to try, each once, starting at one of the instance's own so that workers of one host seldom meet.
pub(super) fn candidates(instance: &Instance) -> impl Iterator<Item = u8> {
    let start = u8::from_str_radix(&instance.short()[..2], 16).unwrap_or(0);
    (0..=u8::MAX).map(move |step| start.wrapping_add(step))
}

/// Whether 198.19.`third`.0/24 shares no address with any of the subnets.
pub(super) fn is_free(third: u8, taken: &[String]) -> bool {
    let ours = (u32::from(Ipv4Addr::new(198, 19, third, 0)), 24);
    taken.iter().filter_map(|text| parse(text)).all(|other| !overlap(ours, other))
}

fn parse(text: &str) -> Option<(u32, u32)> {
    let (address, length) = text.split_once('/')?;
    let length: u32 = length.parse().ok().filter(|length| *length <= 32)?;
    Some((address.parse::<Ipv4Addr>().ok()?.into(), length))
}

fn overlap(one: (u32, u32), other: (u32, u32)) -> bool {
    let length = one.1.min(other.1);
    let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
    one.0 & mask == other.0 & mask
}

/// Subnets that this host has routes to, but for the default route.
pub(super) fn routed() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/net/route").unwrap_or_default();
    table.lines().filter_map(route).collect()
}

/// Interface, destination and, in the eighth column, the mask; both in the byte order of the machine.
fn route(line: &str) -> Option<String> {
    let columns: Vec<&str> = line.split_whitespace().collect();
    let number = |text: &str| u32::from_str_radix(text, 16).ok();
    let destination = Ipv4Addr::from(number(columns.get(1)?)?.to_ne_bytes());
    let mask = u32::from_be_bytes(number(columns.get(7)?)?.to_ne_bytes());
    (mask != 0).then(|| format!("{destination}/{}", mask.count_ones()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlaps_are_seen_from_both_sides() {
        for (taken, free) in [
            ("198.19.7.0/24", false),
            ("198.19.7.128/25", false),
            ("198.18.0.0/15", false),
            ("0.0.0.0/0", false),
            ("198.19.8.0/24", true),
            ("10.0.0.0/8", true),
            ("fd00::/64", true),
            ("nonsense", true),
        ] {
            assert_eq!(is_free(7, &[taken.to_owned()]), free, "{taken}");
        }
    }

    #[test]
    fn every_candidate_comes_once() {
        let mut all: Vec<u8> = candidates(&Instance::new("w")).collect();
        assert_eq!(all.len(), 256);
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 256);
    }

    #[test]
    fn routes_are_read_in_this_machines_byte_order() {
        let hex = |address: [u8; 4]| format!("{:08X}", u32::from_ne_bytes(address));
        let line = |to, mask| format!("eth0\t{}\t00000000\t0001\t0\t0\t0\t{}\t0\t0\t0", hex(to), hex(mask));
        assert_eq!(route(&line([192, 0, 2, 0], [255, 255, 255, 0])).as_deref(), Some("192.0.2.0/24"));
        assert_eq!(route(&line([0, 0, 0, 0], [0, 0, 0, 0])), None, "the default route is no subnet");
        assert_eq!(route("Iface Destination Gateway"), None);
    }
}
