//! Counters of requests, in Prometheus text form under the names upstream uses.
//!
//! Bounded: label values come from the kinds table, fixed verbs and status codes; everything else counts as "other".

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use http::StatusCode;
use parking_lot::Mutex;
use pintle_api::kinds;

use crate::throttle::Class;
use crate::types::RequestInfo;

/// Upper bounds of the duration histogram in seconds.
const BUCKETS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0];

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Series {
    verb: &'static str,
    group: &'static str,
    version: &'static str,
    resource: &'static str,
    code: u16,
}

#[derive(Default)]
struct Histogram {
    buckets: [u64; BUCKETS.len()],
    count: u64,
    sum: f64,
}

#[derive(Default)]
struct Counts {
    requests: BTreeMap<Series, u64>,
    durations: BTreeMap<&'static str, Histogram>,
}

#[derive(Default)]
pub struct Metrics {
    counts: Mutex<Counts>,
    reading: AtomicI64,
    mutating: AtomicI64,
    long: AtomicI64,
}

/// Counts a request as running until dropped.
pub struct Running<'a>(&'a AtomicI64);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

fn known_verb(verb: &str) -> &'static str {
    const VERBS: [&str; 10] =
        ["get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "post", "head"];
    VERBS.into_iter().find(|known| *known == verb).unwrap_or("other")
}

impl Metrics {
    pub fn begin(&self, class: Class) -> Running<'_> {
        let gauge = match class {
            Class::Read => &self.reading,
            Class::Mutating => &self.mutating,
            Class::LongRunning => &self.long,
        };
        gauge.fetch_add(1, Ordering::Relaxed);
        Running(gauge)
    }

    pub fn record(&self, info: &RequestInfo, code: StatusCode, took: Duration) {
        let kind = kinds::by_resource(&info.api_group, &info.version, &info.resource).filter(|_| info.is_resource);
        let verb = known_verb(&info.verb);
        let series = Series {
            verb,
            group: kind.map_or("", |kind| kind.group),
            version: kind.map_or("", |kind| kind.version),
            resource: kind.map_or("", |kind| kind.resource),
            code: code.as_u16(),
        };
        let mut counts = self.counts.lock();
        *counts.requests.entry(series).or_default() += 1;
        let seconds = took.as_secs_f64();
        let histogram = counts.durations.entry(verb).or_default();
        histogram.count += 1;
        histogram.sum += seconds;
        for (bucket, _) in histogram.buckets.iter_mut().zip(BUCKETS).filter(|(_, bound)| seconds <= *bound) {
            *bucket += 1;
        }
    }

    /// The text of `/metrics`. `store_objects` are the numbers of cached objects per resource.
    pub fn text(&self, store_objects: &[(String, usize)], revision: i64) -> String {
        let mut out = String::new();
        let counts = self.counts.lock();
        out.push_str(
            "# HELP apiserver_request_total Counter of apiserver requests.\n# TYPE apiserver_request_total counter\n",
        );
        for (s, value) in &counts.requests {
            let _ = writeln!(
                out,
                "apiserver_request_total{{code=\"{}\",group=\"{}\",resource=\"{}\",verb=\"{}\",version=\"{}\"}} {value}",
                s.code,
                s.group,
                s.resource,
                s.verb.to_uppercase(),
                s.version
            );
        }
        out.push_str("# HELP apiserver_request_duration_seconds Response latency, streams until their first byte.\n# TYPE apiserver_request_duration_seconds histogram\n");
        for (verb, histogram) in &counts.durations {
            let verb = verb.to_uppercase();
            for (bucket, bound) in histogram.buckets.iter().zip(BUCKETS) {
                let _ = writeln!(
                    out,
                    "apiserver_request_duration_seconds_bucket{{verb=\"{verb}\",le=\"{bound}\"}} {bucket}"
                );
            }
            let (count, sum) = (histogram.count, histogram.sum);
            let _ = writeln!(out, "apiserver_request_duration_seconds_bucket{{verb=\"{verb}\",le=\"+Inf\"}} {count}");
            let _ = writeln!(out, "apiserver_request_duration_seconds_sum{{verb=\"{verb}\"}} {sum}");
            let _ = writeln!(out, "apiserver_request_duration_seconds_count{{verb=\"{verb}\"}} {count}");
        }
        drop(counts);
        out.push_str("# HELP apiserver_current_inflight_requests Requests in work.\n# TYPE apiserver_current_inflight_requests gauge\n");
        for (name, gauge) in [("readOnly", &self.reading), ("mutating", &self.mutating)] {
            let _ = writeln!(
                out,
                "apiserver_current_inflight_requests{{request_kind=\"{name}\"}} {}",
                gauge.load(Ordering::Relaxed)
            );
        }
        out.push_str(
            "# HELP apiserver_storage_objects Objects per resource.\n# TYPE apiserver_storage_objects gauge\n",
        );
        for (resource, count) in store_objects {
            let _ = writeln!(out, "apiserver_storage_objects{{resource=\"{resource}\"}} {count}");
        }
        out.push_str("# HELP pintle_watch_cache_revision Revision of the watch cache.\n# TYPE pintle_watch_cache_revision gauge\n");
        let _ = writeln!(out, "pintle_watch_cache_revision {revision}");
        out
    }
}
