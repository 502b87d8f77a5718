//! What is measured of the log, under the names etcd's dashboards and alerts know.

use std::time::Duration;

use prometheus::core::Collector;
use prometheus::{Histogram, HistogramOpts, IntCounter, Registry, exponential_buckets};

/// Registers a collector in the place of the one that a member which ran before it in the same process left.
fn replace(registry: &Registry, collector: impl Collector + Clone + 'static) -> prometheus::Result<()> {
    let _ = registry.unregister(Box::new(collector.clone())); // mostly there is none
    registry.register(Box::new(collector))
}

/// The log's writes to disk.
#[derive(Clone)]
pub(crate) struct Meters {
    synced: Histogram,
    bytes: IntCounter,
}

impl Meters {
    /// Registers them in `registry`: one member's.
    pub fn new(registry: &Registry) -> prometheus::Result<Self> {
        let synced = HistogramOpts::new(
            "etcd_disk_wal_fsync_duration_seconds",
            "The latency distributions of synced writes to the log: each returns once it is on stable storage.",
        );
        let synced = Histogram::with_opts(synced.buckets(exponential_buckets(0.001, 2.0, 14)?))?;
        let bytes = IntCounter::new("etcd_disk_wal_write_bytes_total", "Bytes written to the log.")?;
        replace(registry, synced.clone())?;
        replace(registry, bytes.clone())?;
        Ok(Self { synced, bytes })
    }

    /// A write of `bytes` took `elapsed`; `synced` if it is on stable storage.
    pub fn wrote(&self, bytes: usize, elapsed: Duration, synced: bool) {
        self.bytes.inc_by(bytes as u64);
        if synced {
            self.synced.observe(elapsed.as_secs_f64());
        }
    }
}
