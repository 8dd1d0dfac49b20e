//! Counters of this process, in Prometheus' text form.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// What is counted. Everything else that `/metrics` shows is read from the farm when it is asked for.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    commits: AtomicU64,
    commit_failures: AtomicU64,
    commit_records: AtomicU64,
    commit_micros: AtomicU64,
    stale_writes: AtomicU64,
    log_bytes: AtomicU64,
    requests: AtomicU64,
}

/// One figure with its help text.
pub(crate) struct Figure<'f> {
    pub(crate) name: &'f str,
    pub(crate) help: &'f str,
    /// `counter` or `gauge`.
    pub(crate) kind: &'f str,
    /// Label pairs as they are written, and the value.
    pub(crate) values: Vec<(String, f64)>,
}

impl Metrics {
    pub(crate) fn committed(&self, records: usize, took: Duration) {
        self.commits.fetch_add(1, Ordering::Relaxed);
        self.commit_records.fetch_add(records as u64, Ordering::Relaxed);
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.commit_micros.fetch_add(micros, Ordering::Relaxed);
    }

    pub(crate) fn commit_failed(&self) {
        self.commit_failures.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn stale_write(&self) {
        self.stale_writes.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn logged(&self, bytes: u64) {
        self.log_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn requested(&self) {
        self.requests.fetch_add(1, Ordering::Relaxed);
    }

    /// The counters as figures.
    pub(crate) fn figures(&self) -> Vec<Figure<'static>> {
        let counter = |name, help, counter: &AtomicU64| Figure {
            name,
            help,
            kind: "counter",
            values: vec![(String::new(), counter.load(Ordering::Relaxed) as f64)],
        };
        let seconds = self.commit_micros.load(Ordering::Relaxed) as f64 / 1e6;
        vec![
            counter("buildyard_commit_seconds_count", "Transactions of the driver.", &self.commits),
            Figure {
                name: "buildyard_commit_seconds_sum",
                help: "Time spent in them.",
                kind: "counter",
                values: vec![(String::new(), seconds)],
            },
            counter("buildyard_commit_records_total", "Records in them.", &self.commit_records),
            counter("buildyard_commit_failures_total", "Transactions that failed.", &self.commit_failures),
            counter("buildyard_stale_writes_total", "Writes under a stale fence.", &self.stale_writes),
            counter("buildyard_log_bytes_total", "Bytes of logs that were kept.", &self.log_bytes),
            counter("buildyard_http_requests_total", "Requests.", &self.requests),
        ]
    }
}

/// Figures as Prometheus reads them.
pub(crate) fn render(figures: &[Figure<'_>]) -> String {
    let mut text = String::new();
    for Figure { name, help, kind, values } in figures {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for (labels, value) in values {
            let _ = writeln!(text, "{name}{labels} {value}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_as_prometheus_wants_them() {
        let metrics = Metrics::default();
        metrics.committed(3, Duration::from_millis(1_500));
        let text = render(&metrics.figures());
        assert!(
            text.contains("# TYPE buildyard_commit_seconds_sum counter\nbuildyard_commit_seconds_sum 1.5\n")
        );
        assert!(text.contains("buildyard_commit_records_total 3\n"), "{text}");
    }
}
