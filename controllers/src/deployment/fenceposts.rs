//! How far a rollout may stray from the wanted size. Pure.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

/// The bounds of one deployment, percentages resolved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fenceposts {
    pub wanted: i32,
    /// Pods beyond `wanted` that may exist; 0 unless the update is rolling.
    pub max_surge: i32,
    /// Pods of `wanted` that may be unavailable; 0 unless the update is rolling.
    pub max_unavailable: i32,
    pub recreate: bool,
}

impl Fenceposts {
    pub fn of(deployment: &Deployment) -> Self {
        let spec = deployment.spec.as_ref();
        let wanted = spec.and_then(|spec| spec.replicas).unwrap_or(1).max(0);
        let strategy = spec.and_then(|spec| spec.strategy.as_ref());
        if strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate") {
            return Self { wanted, max_surge: 0, max_unavailable: 0, recreate: true };
        }
        let rolling = strategy.and_then(|strategy| strategy.rolling_update.as_ref());
        let quarter = IntOrString::String("25%".to_owned());
        let surge = rolling.and_then(|rolling| rolling.max_surge.as_ref()).unwrap_or(&quarter);
        let unavailable = rolling.and_then(|rolling| rolling.max_unavailable.as_ref()).unwrap_or(&quarter);
        let max_surge = resolve(surge, wanted, true);
        let max_unavailable = match resolve(unavailable, wanted, false) {
            // With neither, nothing could ever move.
            0 if max_surge == 0 => 1,
            some => some,
        };
        Self { wanted, max_surge, max_unavailable: max_unavailable.min(wanted), recreate: false }
    }

    /// Pods that may exist together.
    pub fn max_total(&self) -> i32 {
        self.wanted.saturating_add(self.max_surge)
    }
}

/// A number, or a percentage of `wanted` rounded up or down; 0 for what is neither.
fn resolve(value: &IntOrString, wanted: i32, up: bool) -> i32 {
    let resolved = match value {
        IntOrString::Int(number) => i64::from(*number),
        IntOrString::String(text) => {
            let percent: i64 = text.strip_suffix('%').and_then(|number| number.parse().ok()).unwrap_or(0);
            let hundredfold = percent.saturating_mul(i64::from(wanted));
            if up { hundredfold.saturating_add(99) / 100 } else { hundredfold / 100 }
        }
    };
    i32::try_from(resolved.max(0)).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    #[track_caller]
    fn check(replicas: i32, rolling: Value, surge: i32, unavailable: i32) {
        let spec = json!({"selector": {}, "template": {}, "replicas": replicas, "strategy": {"type": "RollingUpdate", "rollingUpdate": rolling}});
        let deployment: Deployment = serde_json::from_value(json!({"metadata": {}, "spec": spec})).expect("deployment");
        let fence = Fenceposts::of(&deployment);
        assert_eq!((fence.max_surge, fence.max_unavailable), (surge, unavailable));
    }

    #[test]
    fn surge_rounds_up_and_unavailable_down_and_one_of_them_is_never_zero() {
        check(4, json!({}), 1, 1);
        check(10, json!({}), 3, 2);
        check(1, json!({}), 1, 0);
        check(3, json!({"maxSurge": 0, "maxUnavailable": 0}), 0, 1);
        check(3, json!({"maxSurge": "0%", "maxUnavailable": "10%"}), 0, 1);
        check(2, json!({"maxSurge": 1, "maxUnavailable": 5}), 1, 2);
        check(0, json!({"maxSurge": 0, "maxUnavailable": 0}), 0, 0);
        check(4, json!({"maxSurge": "x", "maxUnavailable": "50%"}), 0, 2);
    }
}
