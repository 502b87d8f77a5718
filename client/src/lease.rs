//! The Lease by which people and tools see who leads: shown, never asked (I9).
//!
//! Whoever acts under a Raft term holds the Lease of its component for as long as the term lasts. Always holds: nothing is
//! decided by what the Lease says; its writes carry the fence of the term like all others, so a deposed leader cannot renew.

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use kube::Api;
use kube::api::PostParams;
use pintle_base::clock;
use pintle_base::error::Chain;
use pintle_base::rng;

use crate::limits;
use crate::object::micro_time_now;

const NAMESPACE: &str = "kube-system";

/// The Lease of one component, and who this process is in it. Cheap to clone.
#[derive(Clone, Debug)]
pub struct LeaderLease {
    name: &'static str,
    holder: String,
}

impl LeaderLease {
    /// `host` is the machine or server as people know it; an identity of this process is added to it, as upstream.
    pub fn new(name: &'static str, host: &str) -> Self {
        Self { name, holder: format!("{host}_{}", rng::uuid()) }
    }

    /// Acquires the Lease and renews it; does not return. `client` must carry the term's fence.
    pub async fn hold(&self, client: kube::Client) {
        let leases: Api<Lease> = Api::namespaced(client, NAMESPACE);
        let mut ticker = clock::ticker(limits::LEADER_LEASE_PERIOD);
        let mut held: Option<Lease> = None;
        loop {
            ticker.tick().await;
            held = match self.write(&leases, held.take()).await {
                Ok(lease) => Some(lease),
                Err(error) => {
                    tracing::debug!(lease = self.name, error = %Chain(&error), "lease not written, will retry");
                    None
                }
            };
        }
    }

    /// Writes the Lease with this process as its holder, from the state `known` or, without one, from the stored one.
    async fn write(&self, leases: &Api<Lease>, known: Option<Lease>) -> Result<Lease, kube::Error> {
        let stored = match known {
            Some(lease) => Some(lease),
            None => leases.get_opt(self.name).await?,
        };
        let renewed = self.renewed(stored.clone(), micro_time_now());
        match stored {
            Some(_) => leases.replace(self.name, &PostParams::default(), &renewed).await,
            None => leases.create(&PostParams::default(), &renewed).await,
        }
    }

    /// `stored` as it is to be written now: taken over if another held it, else renewed.
    fn renewed(&self, stored: Option<Lease>, now: MicroTime) -> Lease {
        let is_new = stored.is_none();
        let mut lease = stored.unwrap_or_default();
        lease.metadata.name = Some(self.name.to_owned());
        lease.metadata.namespace = Some(NAMESPACE.to_owned());
        let old = lease.spec.take().unwrap_or_default();
        let ours = old.holder_identity.as_deref() == Some(&self.holder);
        let transitions = old.lease_transitions.unwrap_or(0);
        lease.spec = Some(LeaseSpec {
            holder_identity: Some(self.holder.clone()),
            lease_duration_seconds: Some(limits::LEADER_LEASE_SECONDS),
            acquire_time: old.acquire_time.filter(|_| ours).or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(if ours || is_new { transitions } else { transitions.saturating_add(1) }),
            ..LeaseSpec::default()
        });
        lease
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use http::{Request, Response};
    use http_body_util::BodyExt;
    use kube::client::Body;
    use parking_lot::Mutex;
    use serde_json::{Value, json};

    use super::*;
    use crate::in_process;

    /// A server with one Lease; each write must carry the fence and the version that is stored.
    #[derive(Default)]
    struct Server {
        lease: Option<Value>,
        version: u64,
        writes: Vec<String>,
    }

    impl Server {
        fn answer(&mut self, request: &Request<()>, body: &[u8]) -> (u16, Value) {
            let refused = |code: u16, reason: &str| {
                (code, json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": "m"}))
            };
            match (request.method().as_str(), &self.lease) {
                ("GET", Some(lease)) => return (200, lease.clone()),
                ("GET", None) => return refused(404, "NotFound"),
                _ => (),
            }
            let mut lease: Value = serde_json::from_slice(body).unwrap_or_default();
            let known = self.lease.as_ref().map_or(Value::Null, |lease| lease["metadata"]["resourceVersion"].clone());
            if lease["metadata"]["resourceVersion"] != known {
                return refused(409, "Conflict");
            }
            let fence = request.headers().get("pintle-fence").and_then(|value| value.to_str().ok()).unwrap_or("-");
            let spec = &lease["spec"];
            let holder = spec["holderIdentity"].as_str().and_then(|holder| holder.split('_').next()).unwrap_or("-");
            let before = self.lease.as_ref().map_or(Value::Null, |lease| lease["spec"]["holderIdentity"].clone());
            let verb = if before == spec["holderIdentity"] { "renew" } else { "acquire" };
            self.writes.push(format!("{verb} {holder} {} in {fence}", spec["leaseTransitions"]));
            self.version += 1;
            lease["metadata"]["resourceVersion"] = json!(self.version.to_string());
            self.lease = Some(lease.clone());
            (200, lease)
        }
    }

    fn client(server: &Arc<Mutex<Server>>, term: u64) -> kube::Client {
        let server = Arc::clone(server);
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = Arc::clone(&server);
            async move {
                let (head, body) = request.into_parts();
                let body = body.collect().await?.to_bytes();
                let (code, answer) = server.lock().answer(&Request::from_parts(head, ()), &body);
                Ok::<_, tower::BoxError>(Response::builder().status(code).body(answer.to_string())?)
            }
        });
        in_process(service, Some(term))
    }

    async fn hold_for(lease: &LeaderLease, server: &Arc<Mutex<Server>>, term: u64, time: Duration) {
        let _ = clock::timeout(time, lease.hold(client(server, term))).await;
    }

    #[tokio::test(start_paused = true)]
    async fn the_leader_is_shown_renews_and_is_followed_by_the_next_one() {
        let server: Arc<Mutex<Server>> = Arc::default();
        let (first, second) = (LeaderLease::new("kube-scheduler", "s1"), LeaderLease::new("kube-scheduler", "s2"));
        hold_for(&first, &server, 3, Duration::from_secs(5)).await;
        hold_for(&second, &server, 4, Duration::from_secs(1)).await;
        hold_for(&second, &server, 6, Duration::from_secs(1)).await;
        let want = ["acquire s1 0 in 3", "renew s1 0 in 3", "renew s1 0 in 3", "acquire s2 1 in 4", "renew s2 1 in 6"];
        assert_eq!(server.lock().writes, want);
        let spec = server.lock().lease.clone().expect("stored")["spec"].clone();
        assert_eq!(spec["leaseDurationSeconds"], 15);
    }

    #[test]
    fn the_time_of_acquisition_stays_until_another_holds_it() {
        let at = |second| MicroTime(jiff::Timestamp::from_second(second).expect("time"));
        let (first, second) = (LeaderLease::new("kube-scheduler", "s1"), LeaderLease::new("kube-scheduler", "s2"));
        let made = first.renewed(None, at(1));
        let renewed = first.renewed(Some(made), at(3));
        let taken = second.renewed(Some(renewed.clone()), at(9));
        let times = |lease: &Lease| lease.spec.clone().map(|spec| (spec.acquire_time, spec.renew_time));
        assert_eq!(times(&renewed), Some((Some(at(1)), Some(at(3)))));
        assert_eq!(times(&taken), Some((Some(at(9)), Some(at(9)))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lease_that_others_wrote_is_read_again() {
        let server: Arc<Mutex<Server>> = Arc::default();
        let lease = LeaderLease::new("kube-scheduler", "s1");
        let meddle = async {
            clock::sleep(Duration::from_secs(1)).await;
            let mut server = server.lock();
            server.version = 50;
            if let Some(lease) = &mut server.lease {
                lease["metadata"]["resourceVersion"] = json!("50");
            }
        };
        tokio::join!(hold_for(&lease, &server, 1, Duration::from_secs(7)), meddle);
        assert_eq!(server.lock().writes.len(), 3, "at 0 s, not at 2 s, at 4 s and 6 s");
    }
}
