//! What a pod asks for and what that means to the kernel: amounts, quality-of-service class, cgroup values, OOM score.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as Wire;
use pintle_api::quantity::Quantity;
use pintle_proto::cri_v1::LinuxContainerResources;

/// cgroup v1's scheduling period, microseconds.
const CPU_PERIOD: i64 = 100_000;
/// Smallest quota the kernel takes, microseconds.
const CPU_QUOTA_MIN: i64 = 1_000;
const SHARES_MIN: i64 = 2;
const SHARES_MAX: i64 = 262_144;
const SHARES_PER_CPU: i64 = 1024;

/// Named amounts in thousandths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts(BTreeMap<String, i128>);

impl Amounts {
    /// From names and quantities; what is not a quantity is left out.
    pub fn of<'a>(entries: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let parse = |(name, text): (&str, &str)| {
            let quantity: Quantity = text.parse().ok()?;
            // Whole units first: milli() saturates at 9.2 PB, which a memory amount in thousandths can reach.
            let milli = if quantity.units() > i64::MAX / 1000 {
                i128::from(quantity.units()) * 1000
            } else {
                i128::from(quantity.milli())
            };
            Some((name.to_owned(), milli))
        };
        Self(entries.into_iter().filter_map(parse).collect())
    }

    fn wire(map: Option<&BTreeMap<String, Wire>>) -> Self {
        Self::of(map.into_iter().flatten().map(|(name, quantity)| (name.as_str(), quantity.0.as_str())))
    }

    pub fn limits(container: &Container) -> Self {
        Self::wire(container.resources.as_ref().and_then(|resources| resources.limits.as_ref()))
    }

    /// Requests; a limit without a request is one.
    pub fn requests(container: &Container) -> Self {
        let mut requests = Self::limits(container);
        requests.0.extend(Self::wire(container.resources.as_ref().and_then(|resources| resources.requests.as_ref())).0);
        requests
    }

    pub fn milli(&self, name: &str) -> Option<i128> {
        self.0.get(name).copied()
    }

    /// Whole units, saturating.
    pub fn units(&self, name: &str) -> Option<i64> {
        self.milli(name).map(|milli| i64::try_from(milli / 1000).unwrap_or(i64::MAX))
    }

    fn positive(&self, name: &str) -> Option<i128> {
        self.milli(name).filter(|milli| *milli > 0)
    }

    pub fn add(&mut self, other: &Self) {
        for (name, milli) in &other.0 {
            *self.0.entry(name.clone()).or_default() += milli;
        }
    }

    /// Raises each amount to at least that of `other`.
    pub fn raise(&mut self, other: &Self) {
        for (name, milli) in &other.0 {
            let mine = self.0.entry(name.clone()).or_default();
            *mine = (*mine).max(*milli);
        }
    }

    /// The first name of which more is asked than `have` holds.
    pub fn exceeding(&self, have: &Self) -> Option<&str> {
        self.0
            .iter()
            .find(|(name, milli)| **milli > 0 && **milli > have.milli(name).unwrap_or(0))
            .map(|(name, _)| name.as_str())
    }
}

/// All containers of the spec, init containers first.
pub fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let spec = pod.spec.as_ref();
    let init = spec.and_then(|spec| spec.init_containers.as_ref()).into_iter().flatten();
    init.chain(spec.into_iter().flat_map(|spec| &spec.containers))
}

/// True for the containers that run before the others, sidecars included.
pub fn is_init(pod: &Pod, container: &Container) -> bool {
    pod.spec.iter().flat_map(|spec| spec.init_containers.iter().flatten()).any(|init| init.name == container.name)
}

/// Sidecars are init containers that are restarted for ever.
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// What the whole pod asks for: the sum of what runs together, or the largest init container beside its sidecars.
pub fn pod_requests(pod: &Pod) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts::default() };
    let mut running = Amounts::default();
    for container in &spec.containers {
        running.add(&Amounts::requests(container));
    }
    let (mut sidecars, mut peak) = (Amounts::default(), Amounts::default());
    for container in spec.init_containers.iter().flatten() {
        let own = Amounts::requests(container);
        if is_sidecar(container) {
            running.add(&own);
            sidecars.add(&own);
        } else {
            let mut together = sidecars.clone();
            together.add(&own);
            peak.raise(&together);
        }
    }
    running.raise(&peak);
    running.add(&Amounts::wire(spec.overhead.as_ref()));
    running
}

/// Quality-of-service class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Qos {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl Qos {
    pub const ALL: [Self; 3] = [Self::Guaranteed, Self::Burstable, Self::BestEffort];

    pub fn of(pod: &Pod) -> Self {
        let mut any = false;
        let mut guaranteed = true;
        for container in containers(pod) {
            let (limits, requests) = (Amounts::limits(container), Amounts::requests(container));
            for name in ["cpu", "memory"] {
                let (limit, request) = (limits.positive(name), requests.positive(name));
                any |= limit.is_some() || request.is_some();
                guaranteed &= limit.is_some() && limit == request;
            }
        }
        match (any, guaranteed) {
            (false, _) => Self::BestEffort,
            (true, true) => Self::Guaranteed,
            (true, false) => Self::Burstable,
        }
    }

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }

    /// The pod's cgroup below `root`.
    pub fn cgroup_parent(self, root: &str, uid: &str) -> String {
        match self {
            Self::Guaranteed => format!("{root}/pod{uid}"),
            Self::Burstable => format!("{root}/burstable/pod{uid}"),
            Self::BestEffort => format!("{root}/besteffort/pod{uid}"),
        }
    }

    /// How soon the kernel picks a process of this container when memory runs out; 1000 is first.
    pub fn oom_score(self, container: &Container, node_memory: i64) -> i64 {
        match self {
            Self::Guaranteed => -997,
            Self::BestEffort => 1000,
            Self::Burstable => {
                let request = Amounts::requests(container).units("memory").unwrap_or(0).max(0);
                let share = 1000_i128 * i128::from(request) / i128::from(node_memory.max(1));
                (1000 - i64::try_from(share).unwrap_or(1000)).clamp(3, 999)
            }
        }
    }
}

/// CPU shares for thousandths of a CPU.
pub fn shares(milli: i64) -> i64 {
    if milli <= 0 { SHARES_MIN } else { (milli.saturating_mul(SHARES_PER_CPU) / 1000).clamp(SHARES_MIN, SHARES_MAX) }
}

/// What the runtime is told about one container.
pub fn linux(pod: &Pod, container: &Container, node_memory: i64) -> LinuxContainerResources {
    let (limits, requests) = (Amounts::limits(container), Amounts::requests(container));
    let milli = |amounts: &Amounts| amounts.milli("cpu").map(|milli| i64::try_from(milli).unwrap_or(i64::MAX));
    let quota = milli(&limits)
        .filter(|milli| *milli > 0)
        .map_or(0, |milli| (milli.saturating_mul(CPU_PERIOD) / 1000).max(CPU_QUOTA_MIN));
    LinuxContainerResources {
        cpu_period: CPU_PERIOD,
        cpu_quota: quota,
        cpu_shares: shares(milli(&requests).unwrap_or(0)),
        memory_limit_in_bytes: limits.units("memory").unwrap_or(0).max(0),
        oom_score_adj: Qos::of(pod).oom_score(container, node_memory),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(containers: Value, init: Value) -> Pod {
        serde_json::from_value(json!({ "spec": { "containers": containers, "initContainers": init } })).expect("pod")
    }

    fn asks(name: &str, limits: Value, requests: Value) -> Value {
        json!({ "name": name, "resources": { "limits": limits, "requests": requests } })
    }

    #[test]
    fn classes() {
        let class = |container: Value| Qos::of(&pod(json!([container]), json!([])));
        assert_eq!(class(asks("a", json!({}), json!({}))), Qos::BestEffort);
        assert_eq!(class(asks("a", json!({ "cpu": "1", "memory": "1Gi" }), json!({}))), Qos::Guaranteed);
        assert_eq!(class(asks("a", json!({ "cpu": "1" }), json!({}))), Qos::Burstable);
        assert_eq!(class(asks("a", json!({ "cpu": "1", "memory": "1Gi" }), json!({ "cpu": "0.5" }))), Qos::Burstable);
    }

    #[test]
    fn kernel_values() {
        let pod =
            pod(json!([asks("a", json!({ "cpu": "500m", "memory": "64Mi" }), json!({ "cpu": "250m" }))]), json!([]));
        let linux = linux(&pod, containers(&pod).next().expect("one"), 1 << 30);
        assert_eq!((linux.cpu_shares, linux.cpu_quota, linux.memory_limit_in_bytes), (256, 50_000, 64 << 20));
        assert_eq!(linux.oom_score_adj, 1000 - 62);
        assert_eq!((shares(0), shares(1), shares(i64::MAX)), (2, 2, 262_144));
    }

    #[test]
    fn init_containers_count_by_their_peak_and_sidecars_by_sum() {
        let cpu = |name: &str, amount: &str| asks(name, json!({}), json!({ "cpu": amount }));
        let mut sidecar = cpu("s", "1");
        sidecar["restartPolicy"] = json!("Always");
        let pod = pod(json!([cpu("a", "1"), cpu("b", "1")]), json!([sidecar, cpu("i", "3")]));
        assert_eq!(pod_requests(&pod).milli("cpu"), Some(4000));
        assert_eq!(pod_requests(&pod).exceeding(&Amounts::of([("cpu", "3")])), Some("cpu"));
    }
}
