//! What a member measures of itself, under the names that etcd's dashboards and alerts know. Served as `/metrics`.
//!
//! Two kinds: counters and histograms that are kept where something happens, and readings that are taken when somebody looks.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use pintle_base::clock::{self, Instant};
use prometheus::{
    Encoder, Gauge, GaugeVec, Histogram, HistogramOpts, IntCounter, IntCounterVec, Opts, Registry, TextEncoder,
    exponential_buckets, process_collector::ProcessCollector,
};

use crate::store::{Store, StoreStatus};

/// Counters, by their names and what they count.
macro_rules! counters {
    ($($field:ident = $name:literal, $help:literal;)*) => {
        /// What is counted where it happens.
        pub(crate) struct Counters {
            $(pub $field: IntCounter,)*
        }

        impl Counters {
            fn new(registry: &Registry) -> prometheus::Result<Self> {
                let counter = |name: &str, help: &str| {
                    let counter = IntCounter::new(name, help)?;
                    registry.register(Box::new(counter.clone()))?;
                    Ok::<_, prometheus::Error>(counter)
                };
                Ok(Self { $($field: counter($name, $help)?,)* })
            }
        }
    };
}

counters! {
    puts = "etcd_mvcc_put_total", "Puts applied by this member.";
    deletes = "etcd_mvcc_delete_total", "Deletes of keys applied by this member.";
    ranges = "etcd_mvcc_range_total", "Ranges read by this member.";
    txns = "etcd_mvcc_txn_total", "Transactions answered by this member.";
    events = "etcd_debugging_mvcc_events_total", "Events made by this member's changes.";
    put_bytes = "etcd_debugging_mvcc_total_put_size_in_bytes", "Bytes of keys and values put.";
    leader_changes = "etcd_server_leader_changes_seen_total", "Leader changes seen.";
    proposals_failed = "etcd_server_proposals_failed_total", "Proposals that were not logged, or whose answer was lost.";
    slow_applies = "etcd_server_slow_apply_total", "Entries whose apply took longer than 100 ms.";
    slow_reads = "etcd_server_slow_read_indexes_total", "Read indexes that took longer than a second.";
    failed_reads = "etcd_server_read_indexes_failed_total", "Read indexes that no leader confirmed in time.";
    health_success = "etcd_server_health_success", "Health checks that succeeded.";
    health_failures = "etcd_server_health_failures", "Health checks that failed.";
    leases_granted = "etcd_debugging_lease_granted_total", "Leases granted.";
    leases_revoked = "etcd_debugging_lease_revoked_total", "Leases ended.";
    leases_renewed = "etcd_debugging_lease_renewed_total", "Renewals of leases asked of this member.";
    leases_expired = "etcd_debugging_server_lease_expired_total", "Leases that this member found over.";
    audit_dropped = "pintle_store_audit_dropped_total", "Lines of the audit log that were dropped.";
    received = "etcd_network_client_grpc_received_bytes_total", "Bytes received from gRPC clients.";
    sent = "etcd_network_client_grpc_sent_bytes_total", "Bytes sent to gRPC clients.";
}

/// Values that are read when somebody looks.
const READINGS: &[(&str, &str, fn(&Store, &StoreStatus) -> f64)] = &[
    ("etcd_server_has_leader", "Whether there is a leader.", |_, now| flag(now.standing.leader.is_some())),
    ("etcd_server_is_leader", "Whether this member leads.", |_, now| flag(now.standing.leading)),
    ("etcd_server_is_learner", "Whether this member only learns.", |_, now| flag(now.standing.learner)),
    ("etcd_server_proposals_committed_total", "Entries committed.", |_, now| number(now.standing.committed)),
    ("etcd_server_proposals_applied_total", "Entries applied.", |_, now| number(now.standing.applied)),
    ("etcd_server_proposals_pending", "Proposals of this member that wait for an answer.", |store, _| {
        number(store.metrics().pending.load(Ordering::Relaxed))
    }),
    ("etcd_server_quota_backend_bytes", "Bytes beyond which nothing is taken in; 0 is no limit.", |store, _| {
        number(store.options().quota_bytes.unwrap_or(0))
    }),
    ("etcd_mvcc_db_total_size_in_bytes", "Bytes the data takes.", |_, now| number(now.db_size)),
    ("etcd_mvcc_db_total_size_in_use_in_bytes", "Bytes that live data needs.", |_, now| number(now.db_size_in_use)),
    ("etcd_debugging_mvcc_current_revision", "The revision.", |_, now| number(now.revision.unsigned_abs())),
    ("etcd_debugging_mvcc_compact_revision", "The compact revision.", |_, now| {
        number(now.compact_revision.unsigned_abs())
    }),
    (
        "etcd_debugging_mvcc_db_compaction_last",
        "When history was removed here last, as Unix time; 0 for not since the start.",
        |store, _| number(store.shared().scrub.last().unsigned_abs()),
    ),
    ("pintle_store_scrubbed_revision", "Up to which revision history was removed here.", |store, _| {
        number(store.shared().scrubbed().unsigned_abs())
    }),
    ("etcd_debugging_mvcc_watcher_total", "Watchers.", |_, now| number(now.watchers as u64)),
    ("etcd_debugging_mvcc_watch_stream_total", "Watch streams.", |store, _| {
        number(store.metrics().watch_streams.load(Ordering::Relaxed))
    }),
    ("etcd_debugging_auth_revision", "The auth revision.", |store, _| number(store.auth().revision)),
];

/// Histograms of what takes time.
pub(crate) struct Metrics {
    registry: Registry,
    pub counters: Counters,
    /// Writes of applied entries to the state.
    committed: Histogram,
    /// By [`Call::at`].
    calls: Vec<Calls>,
    handled: IntCounterVec,
    alarms: GaugeVec,
    readings: Vec<Gauge>,
    /// Held while readings are taken and told: two who look at once must not clear each other's.
    rendering: Mutex<()>,
    pub pending: AtomicU64,
    pub watch_streams: AtomicU64,
}

fn flag(set: bool) -> f64 {
    if set { 1.0 } else { 0.0 }
}

#[allow(clippy::cast_precision_loss)] // a gauge is a float
fn number(value: u64) -> f64 {
    value as f64
}

impl Metrics {
    pub fn new(version: &str, cluster_version: &str, member: u64) -> prometheus::Result<Self> {
        let registry = Registry::new();
        let vector = |name: &str, help: &str, labels: &[&str]| {
            let vector = IntCounterVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vector.clone()))?;
            Ok::<_, prometheus::Error>(vector)
        };
        let gauges = |name: &str, help: &str, labels: &[&str]| {
            let vector = GaugeVec::new(Opts::new(name, help), labels)?;
            registry.register(Box::new(vector.clone()))?;
            Ok::<_, prometheus::Error>(vector)
        };
        let committed = HistogramOpts::new(
            "etcd_disk_backend_commit_duration_seconds",
            "The latency distributions of writes of applied entries to the state.",
        );
        let committed = Histogram::with_opts(committed.buckets(exponential_buckets(0.001, 2.0, 14)?))?;
        registry.register(Box::new(committed.clone()))?;
        let mut readings = Vec::new();
        for (name, help, _) in READINGS {
            let gauge = Gauge::new(*name, *help)?;
            registry.register(Box::new(gauge.clone()))?;
            readings.push(gauge);
        }
        gauges("etcd_server_version", "The version that is served.", &["server_version"])?
            .with_label_values(&[version])
            .set(1.0);
        gauges("etcd_cluster_version", "The cluster version.", &["cluster_version"])?
            .with_label_values(&[cluster_version])
            .set(1.0);
        gauges("etcd_server_id", "This member's id.", &["server_id"])?
            .with_label_values(&[&format!("{member:x}")])
            .set(1.0);
        registry.register(Box::new(ProcessCollector::for_self()))?;
        let call = ["grpc_type", "grpc_service", "grpc_method"];
        let started = vector("grpc_server_started_total", "Calls that were begun.", &call)?;
        let answer = ["grpc_type", "grpc_service", "grpc_method", "grpc_code"];
        Ok(Self {
            counters: Counters::new(&registry)?,
            committed,
            calls: METHODS.iter().map(|method| Calls::new(&started, method)).collect(),
            handled: vector("grpc_server_handled_total", "Calls that were answered, by the answer's code.", &answer)?,
            alarms: gauges("etcd_debugging_server_alarms", "Alarms.", &["server_id", "alarm_type"])?,
            readings,
            rendering: Mutex::new(()),
            pending: AtomicU64::new(0),
            watch_streams: AtomicU64::new(0),
            registry,
        })
    }

    /// Where others of the same member register what they measure.
    pub fn registry(&self) -> &Registry {
        &self.registry
    }

    /// An applied entry was written.
    pub fn wrote(&self, began: Instant) {
        let took = began.elapsed();
        self.committed.observe(took.as_secs_f64());
        if took > SLOW_APPLY {
            self.counters.slow_applies.inc();
        }
    }

    pub fn started(&self, call: Call) {
        if let Some(calls) = self.calls.get(call.at) {
            calls.started.inc();
        }
    }

    pub fn handled(&self, call: Call, code: tonic::Code) {
        let Some(Calls { well, .. }) = self.calls.get(call.at) else { return };
        let Method { kind, service, method } = &METHODS[call.at];
        let counter = |code| self.handled.with_label_values(&[*kind, service, method, code_name(code)]);
        match code {
            // Looking a counter up by its labels costs more than counting.
            tonic::Code::Ok => well.get_or_init(|| counter(code)).inc(),
            code => counter(code).inc(),
        }
    }

    /// The text format, with the readings of now.
    pub fn render(&self, store: &Store) -> String {
        let _alone = self.rendering.lock();
        let now = store.status();
        for ((_, _, read), gauge) in READINGS.iter().zip(&self.readings) {
            gauge.set(read(store, &now));
        }
        self.alarms.reset();
        for alarm in store.alarms() {
            let kind = pintle_proto::etcdserverpb::AlarmType::try_from(alarm.kind).unwrap_or_default();
            self.alarms.with_label_values(&[&format!("{:x}", alarm.member), kind.as_str_name()]).set(1.0);
        }
        let mut text = Vec::new();
        if let Err(error) = TextEncoder::new().encode(&self.registry.gather(), &mut text) {
            tracing::warn!(%error, "measurements cannot be told");
        }
        String::from_utf8(text).unwrap_or_default()
    }
}

/// An apply that takes longer is counted as slow, as in etcd.
const SLOW_APPLY: Duration = Duration::from_millis(100);

/// A call of the protocol, as it is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Call {
    /// Its place in [`METHODS`].
    at: usize,
}

impl Call {
    /// The call with this path. `None` for what the protocol does not have: strangers must not make up labels.
    pub fn of(path: &str) -> Option<Self> {
        CALLS.get(path).copied()
    }
}

/// Counters of one method.
struct Calls {
    started: IntCounter,
    /// Answered without an error; told of once there is one.
    well: OnceLock<IntCounter>,
}

impl Calls {
    fn new(started: &IntCounterVec, method: &Method) -> Self {
        let Method { kind, service, method } = method;
        Self { started: started.with_label_values(&[*kind, service, method]), well: OnceLock::new() }
    }
}

struct Method {
    kind: &'static str,
    service: String,
    method: String,
}

/// Every method of the protocol.
static METHODS: LazyLock<Vec<Method>> = LazyLock::new(|| {
    let Ok(pool) = prost_reflect::DescriptorPool::decode(pintle_proto::ETCD_DESCRIPTORS) else { return Vec::new() };
    let methods = pool.services().flat_map(|service| service.methods().collect::<Vec<_>>());
    methods
        .map(|method| {
            let kind = match (method.is_client_streaming(), method.is_server_streaming()) {
                (false, false) => "unary",
                (true, false) => "client_stream",
                (false, true) => "server_stream",
                (true, true) => "bidi_stream",
            };
            let service = method.parent_service().full_name().to_owned();
            Method { kind, service, method: method.name().to_owned() }
        })
        .collect()
});

static CALLS: LazyLock<HashMap<String, Call>> = LazyLock::new(|| {
    let path = |(at, Method { service, method, .. }): (usize, &Method)| (format!("/{service}/{method}"), Call { at });
    METHODS.iter().enumerate().map(path).collect()
});

/// Codes as gRPC's Go library prints them.
pub(crate) fn code_name(code: tonic::Code) -> &'static str {
    match code {
        tonic::Code::Ok => "OK",
        tonic::Code::Cancelled => "Canceled",
        tonic::Code::Unknown => "Unknown",
        tonic::Code::InvalidArgument => "InvalidArgument",
        tonic::Code::DeadlineExceeded => "DeadlineExceeded",
        tonic::Code::NotFound => "NotFound",
        tonic::Code::AlreadyExists => "AlreadyExists",
        tonic::Code::PermissionDenied => "PermissionDenied",
        tonic::Code::ResourceExhausted => "ResourceExhausted",
        tonic::Code::FailedPrecondition => "FailedPrecondition",
        tonic::Code::Aborted => "Aborted",
        tonic::Code::OutOfRange => "OutOfRange",
        tonic::Code::Unimplemented => "Unimplemented",
        tonic::Code::Internal => "Internal",
        tonic::Code::Unavailable => "Unavailable",
        tonic::Code::DataLoss => "DataLoss",
        tonic::Code::Unauthenticated => "Unauthenticated",
    }
}

/// Counts one for as long as it lives.
pub(crate) struct Held<'a>(&'a AtomicU64);

impl<'a> Held<'a> {
    pub fn new(counter: &'a AtomicU64) -> Self {
        counter.fetch_add(1, Ordering::Relaxed);
        Self(counter)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The moment from which a write is measured.
pub(crate) fn begin() -> Instant {
    clock::now()
}
