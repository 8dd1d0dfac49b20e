//! What a job asks of its worker, and what a worker has to give: sums and comparisons.

use std::fmt;

use buildyard_types::worker::Capacity;
use buildyard_types::{ByteSize, JobSpec, LabelExpr};

/// What a job asks of its worker. Jobs with equal demands are placed as one class.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Demand {
    /// What the worker must be.
    pub labels: LabelExpr,
    /// Its share of the worker.
    pub share: Share,
}

/// A share of a worker: one slot and these amounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Share {
    /// In thousandths of a processor.
    pub cpu_millis: u64,
    /// Memory.
    pub memory: ByteSize,
    /// Disk.
    pub disk: ByteSize,
}

impl Demand {
    /// The demand of a job.
    pub fn of(spec: &JobSpec) -> Self {
        Self { labels: spec.labels.clone(), share: Share::of(spec) }
    }
}

impl Share {
    /// The share that a job asks for.
    pub fn of(spec: &JobSpec) -> Self {
        let asked = &spec.resources;
        Self { cpu_millis: asked.cpu_millis, memory: asked.memory, disk: asked.disk }
    }

    /// Whether there is room for it.
    pub fn fits(&self, free: &Capacity) -> bool {
        free.slots > 0
            && self.cpu_millis <= free.cpu_millis
            && self.memory <= free.memory
            && self.disk <= free.disk
    }

    /// What keeps it from fitting, each as a clause: "4 cpus (has 2)".
    pub fn lacking(&self, free: &Capacity) -> Vec<String> {
        let mut lacking = Vec::new();
        if free.slots == 0 {
            lacking.push("a free slot".to_owned());
        }
        if self.cpu_millis > free.cpu_millis {
            lacking.push(format!("{} (has {})", cpus(self.cpu_millis), cpus(free.cpu_millis)));
        }
        if self.memory > free.memory {
            lacking.push(format!("{} memory (has {})", self.memory, free.memory));
        }
        if self.disk > free.disk {
            lacking.push(format!("{} disk (has {})", self.disk, free.disk));
        }
        lacking
    }
}

/// `2 cpus`, `0.5 cpus`, `1 cpu`.
fn cpus(millis: u64) -> String {
    match (millis / 1_000, millis % 1_000) {
        (1, 0) => "1 cpu".to_owned(),
        (whole, 0) => format!("{whole} cpus"),
        (whole, part) => format!("{whole}.{} cpus", format!("{part:03}").trim_end_matches('0')),
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {} memory, {} disk", cpus(self.cpu_millis), self.memory, self.disk)
    }
}

/// What a worker has free, as a clause.
pub fn room(free: &Capacity) -> String {
    let slots = match free.slots {
        0 => "no slot".to_owned(),
        1 => "1 slot".to_owned(),
        many => format!("{many} slots"),
    };
    format!("{slots}, {}, {} memory, {} disk", cpus(free.cpu_millis), free.memory, free.disk)
}

/// What is used together with one more share.
pub fn plus(used: Capacity, share: Share) -> Capacity {
    Capacity {
        slots: used.slots.saturating_add(1),
        cpu_millis: used.cpu_millis.saturating_add(share.cpu_millis),
        memory: ByteSize(used.memory.0.saturating_add(share.memory.0)),
        disk: ByteSize(used.disk.0.saturating_add(share.disk.0)),
    }
}

/// What is left of a capacity; zero where more is used, as after a worker shrank.
pub fn minus(whole: Capacity, used: Capacity) -> Capacity {
    Capacity {
        slots: whole.slots.saturating_sub(used.slots),
        cpu_millis: whole.cpu_millis.saturating_sub(used.cpu_millis),
        memory: ByteSize(whole.memory.0.saturating_sub(used.memory.0)),
        disk: ByteSize(whole.disk.0.saturating_sub(used.disk.0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capacity(slots: u32, cpu_millis: u64, memory: u64, disk: u64) -> Capacity {
        Capacity { slots, cpu_millis, memory: ByteSize::from_gib(memory), disk: ByteSize::from_gib(disk) }
    }

    #[test]
    fn what_does_not_fit_is_named_part_by_part() {
        let share = Share { cpu_millis: 2_500, memory: ByteSize::from_gib(4), disk: ByteSize::from_gib(10) };
        assert!(share.fits(&capacity(1, 2_500, 4, 10)));
        assert_eq!(share.lacking(&capacity(1, 2_500, 4, 10)), Vec::<String>::new());
        assert!(!share.fits(&capacity(0, 9_000, 9, 99)));
        assert_eq!(
            share.lacking(&capacity(0, 1_000, 2, 20)),
            ["a free slot", "2.5 cpus (has 1 cpu)", "4GiB memory (has 2GiB)"]
        );
    }

    #[test]
    fn sums_do_not_wrap() {
        let share = Share { cpu_millis: u64::MAX, memory: ByteSize(u64::MAX), disk: ByteSize(u64::MAX) };
        let used = plus(capacity(u32::MAX, 1, 1, 1), share);
        assert_eq!(minus(capacity(1, 1, 1, 1), used), Capacity::default());
    }
}
