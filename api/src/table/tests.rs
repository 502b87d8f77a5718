//! Rows as `kubectl get -o wide` shows them.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::{Include, columns, row, table};
use crate::kinds;

fn now() -> Timestamp {
    "2026-11-20T10:00:00Z".parse().expect("literal")
}

#[track_caller]
fn check(group: &str, kind: &str, mut object: Value, want: &str) {
    let version = if (group, kind) == ("autoscaling", "HorizontalPodAutoscaler") { "v2" } else { "v1" };
    let kind = kinds::by_gvk(group, version, kind).expect("known kind");
    object["metadata"]["name"] = json!("x");
    object["metadata"]["creationTimestamp"] = json!("2026-11-20T09:55:00Z");
    let cells = row(kind, &object, now()).cells;
    assert_eq!(cells.len(), columns(kind).len(), "one cell per column");
    let texts: Vec<String> =
        cells.iter().map(|cell| cell.as_str().map_or_else(|| cell.to_string(), str::to_owned)).collect();
    assert_eq!(texts.join(" | "), want);
}

#[track_caller]
fn check_pod(spec: Value, status: Value, deleting: bool, want: &str) {
    let mut pod = json!({"metadata": {}, "spec": spec, "status": status});
    if deleting {
        pod["metadata"]["deletionTimestamp"] = json!("2026-11-20T10:00:30Z");
    }
    let cells = {
        pod["metadata"]["name"] = json!("x");
        row(kinds::by_gvk("", "v1", "Pod").expect("pod"), &pod, now()).cells
    };
    let text = |at: usize| cells[at].as_str().unwrap_or_default().to_owned();
    assert_eq!(format!("{} {} {}", text(1), text(2), text(3)), want);
}

#[test]
fn pods() {
    let one = json!({"containers": [{"name": "a"}]});
    check_pod(one.clone(), json!({"phase": "Pending"}), false, "0/1 Pending 0");
    check_pod(
        one.clone(),
        json!({"phase": "Running", "containerStatuses": [{"ready": true, "restartCount": 2, "state": {"running": {}},
            "lastState": {"terminated": {"finishedAt": "2026-11-20T09:57:00Z"}}}]}),
        false,
        "1/1 Running 2 (3m ago)",
    );
    let crashing = json!({"phase": "Running", "containerStatuses": [{"restartCount": 3, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]});
    check_pod(one.clone(), crashing.clone(), false, "0/1 CrashLoopBackOff 3");
    check_pod(one.clone(), crashing, true, "0/1 Terminating 3");
    check_pod(
        one.clone(),
        json!({"phase": "Running", "containerStatuses": [{"state": {"terminated": {"exitCode": 3}}}]}),
        false,
        "0/1 ExitCode:3 0",
    );
    check_pod(
        one.clone(),
        json!({"phase": "Running", "containerStatuses": [{"state": {"terminated": {"signal": 9, "exitCode": 137}}}]}),
        false,
        "0/1 Signal:9 0",
    );
    check_pod(
        one.clone(),
        json!({"phase": "Succeeded", "containerStatuses": [{"state": {"terminated": {"exitCode": 0, "reason": "Completed"}}}]}),
        true,
        "0/1 Completed 0",
    );
    check_pod(one.clone(), json!({"phase": "Failed", "reason": "Evicted"}), false, "0/1 Evicted 0");
    check_pod(one.clone(), json!({"phase": "Running", "reason": "NodeLost"}), true, "0/1 Unknown 0");
    check_pod(
        one,
        json!({"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "False", "reason": "SchedulingGated"}]}),
        false,
        "0/1 SchedulingGated 0",
    );
}

#[test]
fn pods_with_init_containers() {
    let spec = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "j"}]});
    check_pod(
        spec.clone(),
        json!({"phase": "Pending", "initContainerStatuses": [
        {"name": "i", "state": {"terminated": {"exitCode": 0}}}, {"name": "j", "state": {"running": {}}}]}),
        false,
        "0/1 Init:1/2 0",
    );
    check_pod(
        spec.clone(),
        json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "restartCount": 1, "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]}),
        false,
        "0/1 Init:Error 1",
    );
    check_pod(
        spec,
        json!({"phase": "Pending", "initContainerStatuses": [{"name": "i", "state": {"waiting": {"reason": "PodInitializing"}}}]}),
        false,
        "0/1 Init:0/2 0",
    );
    let sidecar = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}]});
    check_pod(
        sidecar,
        json!({"phase": "Running",
        "initContainerStatuses": [{"name": "s", "started": true, "ready": true, "restartCount": 1, "state": {"running": {}}}],
        "containerStatuses": [{"name": "a", "ready": true, "restartCount": 1, "state": {"running": {}}}]}),
        false,
        "2/2 Running 2",
    );
}

#[test]
fn workloads() {
    let template = json!({"spec": {"containers": [{"name": "a", "image": "i:1"}, {"name": "b", "image": "j"}]}});
    check(
        "apps",
        "Deployment",
        json!({"spec": {"replicas": 4, "selector": {"matchLabels": {"app": "web"}}, "template": template},
        "status": {"readyReplicas": 3, "updatedReplicas": 2, "availableReplicas": 3}}),
        "x | 3/4 | 2 | 3 | 5m | a,b | i:1,j | app=web",
    );
    check(
        "apps",
        "ReplicaSet",
        json!({"spec": {"replicas": 2, "template": template}, "status": {"replicas": 2}}),
        "x | 2 | 2 | 0 | 5m | a,b | i:1,j | <none>",
    );
    check(
        "",
        "ReplicationController",
        json!({"spec": {"replicas": 2, "selector": {"b": "c", "a": "b"}}}),
        "x | 2 | 0 | 0 | 5m |  |  | a=b,b=c",
    );
    check("apps", "StatefulSet", json!({"spec": {"replicas": 2, "template": template}}), "x | 0/2 | 5m | a,b | i:1,j");
    check(
        "apps",
        "DaemonSet",
        json!({"status": {"desiredNumberScheduled": 2}}),
        "x | 2 | 0 | 0 | 0 | 0 | <none> | 5m |  |  | <none>",
    );
    check(
        "batch",
        "Job",
        json!({"spec": {"completions": 1}, "status": {"succeeded": 1, "startTime": "2026-11-20T09:58:00Z", "completionTime": "2026-11-20T09:58:07Z",
        "conditions": [{"type": "Complete", "status": "True"}]}}),
        "x | Complete | 1/1 | 7s | 5m |  |  | <none>",
    );
    check(
        "batch",
        "CronJob",
        json!({"spec": {"schedule": "* * * * *", "suspend": false}}),
        "x | * * * * * | <none> | False | 0 | <none> | 5m |  |  | <none>",
    );
    check("policy", "PodDisruptionBudget", json!({"spec": {"minAvailable": "50%"}}), "x | 50% | N/A | 0 | 5m");
}

#[test]
fn services_and_endpoints() {
    check(
        "",
        "Service",
        json!({"spec": {"type": "NodePort", "clusterIPs": ["10.96.0.7"], "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}, {"port": 53, "protocol": "UDP"}],
        "selector": {"app": "web"}}}),
        "x | NodePort | 10.96.0.7 | <none> | 80:30080/TCP,53/UDP | 5m | app=web",
    );
    check(
        "",
        "Service",
        json!({"spec": {"type": "LoadBalancer", "clusterIP": "10.96.0.8"}}),
        "x | LoadBalancer | 10.96.0.8 | <pending> | <none> | 5m | <none>",
    );
    check(
        "",
        "Service",
        json!({"spec": {"type": "ExternalName", "externalName": "a.b"}}),
        "x | ExternalName | <none> | a.b | <none> | 5m | <none>",
    );
    let addresses: Vec<Value> = (1..=5).map(|n| json!({"ip": format!("10.0.0.{n}")})).collect();
    check(
        "",
        "Endpoints",
        json!({"subsets": [{"addresses": addresses, "ports": [{"port": 80}]}]}),
        "x | 10.0.0.1:80,10.0.0.2:80,10.0.0.3:80 + 2 more... | 5m",
    );
    check("", "Endpoints", json!({}), "x | <none> | 5m");
    check(
        "discovery.k8s.io",
        "EndpointSlice",
        json!({"addressType": "IPv4", "ports": [{"port": 80}], "endpoints": [{"addresses": ["10.0.0.1"]}]}),
        "x | IPv4 | 80 | 10.0.0.1 | 5m",
    );
    check("discovery.k8s.io", "EndpointSlice", json!({"addressType": "IPv4"}), "x | IPv4 | <unset> | <unset> | 5m");
    check("networking.k8s.io", "Ingress", json!({"spec": {"rules": [{"host": "a"}]}}), "x | <none> | a |  | 80 | 5m");
}

#[test]
fn cluster_kinds() {
    check(
        "",
        "Node",
        json!({"metadata": {"labels": {"node-role.kubernetes.io/worker": "", "node-role.kubernetes.io/edge": ""}}, "spec": {"unschedulable": true},
        "status": {"conditions": [{"type": "Ready", "status": "True"}], "nodeInfo": {"kubeletVersion": "v1.36.0", "osImage": "Debian"}, "addresses": [{"type": "InternalIP", "address": "1.2.3.4"}]}}),
        "x | Ready,SchedulingDisabled | edge,worker | 5m | v1.36.0 | 1.2.3.4 | <none> | Debian | <unknown> | <unknown>",
    );
    check("", "Node", json!({}), "x | Unknown | <none> | 5m |  | <none> | <none> | <unknown> | <unknown> | <unknown>");
    check("", "Namespace", json!({"status": {"phase": "Active"}}), "x | Active | 5m");
    check("", "ConfigMap", json!({"data": {"a": "1"}, "binaryData": {"b": ""}}), "x | 2 | 5m");
    check("", "Secret", json!({"type": "Opaque", "data": {"a": ""}}), "x | Opaque | 1 | 5m");
    check(
        "",
        "Event",
        json!({"lastTimestamp": "2026-11-20T09:59:00Z", "firstTimestamp": "2026-11-20T09:58:00Z", "type": "Normal", "reason": "Started", "count": 3,
        "involvedObject": {"kind": "Pod", "name": "p", "fieldPath": "spec"}, "source": {"component": "kubelet", "host": "n1"}, "message": " hi\n"}),
        "60s | Normal | Started | pod/p | spec | kubelet, n1 | hi | 2m | 3 | x",
    );
    check("coordination.k8s.io", "Lease", json!({"spec": {"holderIdentity": "n1"}}), "x | n1 | 5m");
    check(
        "rbac.authorization.k8s.io",
        "RoleBinding",
        json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "namespace": "n", "name": "s"}]}),
        "x | Role/r | 5m | u |  | n/s",
    );
    check("rbac.authorization.k8s.io", "Role", json!({}), "x | 2026-11-20T09:55:00Z");
}

#[test]
fn other_kinds() {
    check(
        "autoscaling",
        "HorizontalPodAutoscaler",
        json!({"spec": {"scaleTargetRef": {"kind": "Deployment", "name": "web"}, "minReplicas": 1, "maxReplicas": 5,
        "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"averageUtilization": 80}}}]}}),
        "x | Deployment/web | cpu: <unknown>/80% | 1 | 5 | 0 | 5m",
    );
    check(
        "certificates.k8s.io",
        "CertificateSigningRequest",
        json!({"spec": {"signerName": "s", "username": "u", "expirationSeconds": 86400},
        "status": {"conditions": [{"type": "Approved"}], "certificate": "abc"}}),
        "x | 5m | s | u | 24h | Approved,Issued",
    );
    check(
        "",
        "PersistentVolumeClaim",
        json!({"status": {"phase": "Pending"}}),
        "x | Pending |  |  |  |  | <unset> | 5m | <unset>",
    );
}

#[test]
fn a_table_carries_objects_as_asked() {
    let kind = kinds::by_gvk("", "v1", "Namespace").expect("namespace");
    let object = json!({"metadata": {"name": "a"}, "spec": {}});
    let whole = table(kind, [&object], Include::Metadata, json!({"resourceVersion": "5"}), true, now());
    assert_eq!(
        whole["rows"][0]["object"],
        json!({"kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1", "metadata": {"name": "a"}})
    );
    assert_eq!(whole["columnDefinitions"][0]["format"], "name");
    assert_eq!(whole["metadata"]["resourceVersion"], "5");
    let bare = table(kind, [&object], Include::None, json!({}), false, now());
    assert!(bare["rows"][0].get("object").is_none() && bare["columnDefinitions"].is_null());
    assert_eq!(Include::parse("Object"), Some(Include::Object));
    assert_eq!(Include::parse("x"), None);
}

#[test]
fn every_kind_has_a_cell_per_column_even_for_odd_objects() {
    for kind in kinds::KINDS {
        for object in [json!({}), json!(null), json!({"spec": [], "status": {"conditions": 1}, "metadata": []})] {
            assert_eq!(row(kind, &object, now()).cells.len(), columns(kind).len(), "{kind}");
        }
    }
}
