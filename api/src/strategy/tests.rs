//! What writes may touch, as the registry uses it.

use serde_json::{Value, json};

use super::*;
use crate::kinds;

fn kind(group: &str, kind: &str) -> &'static Kind {
    kinds::by_gvk(group, "v1", kind).expect("known kind")
}

#[test]
fn a_new_pod_is_pending() {
    let mut pod = json!({"metadata": {"generation": 7, "deletionTimestamp": "x"},
        "spec": {"containers": [{"name": "a", "resources": {"requests": {"cpu": "1"}}}]}, "status": {"phase": "Running"}});
    prepare_for_create(kind("", "Pod"), &mut pod);
    assert_eq!(pod["status"], json!({"phase": "Pending", "qosClass": "Burstable"}));
    assert_eq!(pod["metadata"], json!({"generation": 1}));
}

#[test]
fn quality_of_service() {
    let qos = |resources: Value| qos_class(&json!({"spec": {"containers": [{"resources": resources}]}}));
    assert_eq!(qos(json!({})), "BestEffort");
    assert_eq!(qos(json!({"requests": {"cpu": "0"}})), "BestEffort");
    assert_eq!(qos(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed");
    assert_eq!(
        qos(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1024Mi"}})),
        "Guaranteed"
    );
    assert_eq!(qos(json!({"limits": {"cpu": "1"}})), "Burstable");
    assert_eq!(qos(json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}})), "Burstable");
}

#[test]
fn generation_moves_with_the_wish() {
    let old = json!({"metadata": {"generation": 3, "uid": "u", "creationTimestamp": "t"}, "spec": {"replicas": 1}, "status": {"replicas": 1}});
    let mut same = json!({"metadata": {"labels": {"a": "b"}}, "spec": {"replicas": 1}, "status": {"replicas": 9}});
    prepare_for_update(kind("apps", "Deployment"), &mut same, &old);
    assert_eq!(same["metadata"], json!({"labels": {"a": "b"}, "uid": "u", "creationTimestamp": "t", "generation": 3}));
    assert_eq!(same["status"], json!({"replicas": 1}));
    let mut more = json!({"metadata": {}, "spec": {"replicas": 2}});
    prepare_for_update(kind("apps", "Deployment"), &mut more, &old);
    assert_eq!((&more["metadata"]["generation"], &more["status"]), (&json!(4), &json!({"replicas": 1})));
    let mut annotated = json!({"metadata": {"annotations": {"a": "b"}}, "spec": {"replicas": 1}});
    prepare_for_update(kind("apps", "Deployment"), &mut annotated, &old);
    assert_eq!(annotated["metadata"]["generation"], 4);
}

#[test]
fn status_writes_keep_everything_else() {
    let old = json!({"kind": "Pod", "metadata": {"generation": 1, "ownerReferences": [{"uid": "o"}]}, "spec": {"nodeName": "n"}, "status": {"phase": "Pending", "qosClass": "BestEffort"}});
    let mut new = json!({"kind": "Pod", "metadata": {"annotations": {"a": "b"}}, "spec": {"nodeName": "other"}, "status": {"phase": "Running"}});
    prepare_for_subresource(kind("", "Pod"), "status", &mut new, &old);
    assert_eq!(
        new,
        json!({"kind": "Pod", "metadata": {"annotations": {"a": "b"}, "generation": 1, "ownerReferences": [{"uid": "o"}]},
        "spec": {"nodeName": "n"}, "status": {"phase": "Running", "qosClass": "BestEffort"}})
    );
}

#[test]
fn other_subresources_touch_their_fields_only() {
    let old = json!({"metadata": {"generation": 1}, "spec": {"finalizers": ["kubernetes"]}, "status": {"phase": "Terminating"}});
    let mut new = json!({"metadata": {}, "spec": {"finalizers": []}, "status": {"phase": "Active"}});
    prepare_for_subresource(kind("", "Namespace"), "finalize", &mut new, &old);
    assert_eq!((&new["spec"], &new["status"]["phase"]), (&json!({"finalizers": []}), &json!("Terminating")));

    let old = json!({"metadata": {"generation": 1}, "spec": {"nodeName": "n"}});
    let mut new = json!({"metadata": {}, "spec": {"nodeName": "m", "ephemeralContainers": [{"name": "d"}]}});
    prepare_for_subresource(kind("", "Pod"), "ephemeralcontainers", &mut new, &old);
    assert_eq!(new["spec"], json!({"nodeName": "n", "ephemeralContainers": [{"name": "d"}]}));
    assert_eq!(new["metadata"]["generation"], 2);
}

#[test]
fn an_update_keeps_what_was_allocated() {
    let old = json!({"metadata": {}, "spec": {"type": "NodePort", "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7"],
        "ports": [{"port": 80, "protocol": "TCP", "nodePort": 30080}]}});
    let mut new = json!({"metadata": {}, "spec": {"type": "NodePort", "ports": [{"port": 80, "protocol": "TCP"}, {"port": 81, "protocol": "TCP"}]}});
    prepare_for_update(kind("", "Service"), &mut new, &old);
    assert_eq!(new["spec"]["clusterIPs"], json!(["10.96.0.7"]));
    assert_eq!(new["spec"]["ports"][0]["nodePort"], 30080);
    assert!(new["spec"]["ports"][1].get("nodePort").is_none());
    let mut named = json!({"metadata": {}, "spec": {"type": "ExternalName", "externalName": "x.y"}});
    prepare_for_update(kind("", "Service"), &mut named, &old);
    assert!(named["spec"].get("clusterIP").is_none());
}

fn pod(node: &str, phase: &str) -> Value {
    json!({"metadata": {"generation": 1}, "spec": {"nodeName": node, "terminationGracePeriodSeconds": 30}, "status": {"phase": phase}})
}

#[test]
fn deletion_of_pods_has_a_grace() {
    let now: jiff::Timestamp = "2026-11-20T10:00:00Z".parse().expect("literal");
    let of = kind("", "Pod");
    let mut running = pod("n", "Running");
    assert_eq!(begin_deletion(of, &mut running, None, now), Deletion::Graceful);
    assert_eq!(
        running["metadata"],
        json!({"generation": 2, "deletionTimestamp": "2026-11-20T10:00:30Z", "deletionGracePeriodSeconds": 30})
    );
    assert_eq!(begin_deletion(of, &mut running, None, now), Deletion::Pending);
    assert_eq!(begin_deletion(of, &mut running, Some(60), now), Deletion::Pending);
    assert_eq!(begin_deletion(of, &mut running, Some(5), now), Deletion::Graceful);
    assert_eq!(running["metadata"]["deletionTimestamp"], "2026-11-20T10:00:05Z");
    assert_eq!(begin_deletion(of, &mut running, Some(0), now), Deletion::Now);
    assert_eq!(begin_deletion(of, &mut pod("", "Pending"), None, now), Deletion::Now);
    assert_eq!(begin_deletion(of, &mut pod("n", "Succeeded"), Some(30), now), Deletion::Now);
    assert_eq!(begin_deletion(of, &mut pod("n", "Running"), Some(0), now), Deletion::Now);
    let mut map = json!({"metadata": {}});
    assert_eq!(begin_deletion(kind("", "ConfigMap"), &mut map, Some(30), now), Deletion::Now);
    assert_eq!(map["metadata"]["deletionTimestamp"], "2026-11-20T10:00:00Z");
}

#[test]
fn scale_shows_replicas_and_selector() {
    let object = json!({"metadata": {"name": "web", "namespace": "d", "uid": "u", "resourceVersion": "5"},
        "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}}, "status": {"replicas": 2}});
    let mut scale = scale_of(kind("apps", "Deployment"), &object);
    assert_eq!(
        (&scale["spec"]["replicas"], &scale["status"]),
        (&json!(3), &json!({"replicas": 2, "selector": "app=web"}))
    );
    scale["spec"]["replicas"] = json!(5);
    let mut next = object;
    set_scale(&mut next, &scale);
    assert_eq!(replicas(&next), 5);
}

#[test]
fn a_job_selects_its_own_pods() {
    let mut job =
        json!({"metadata": {"name": "j", "uid": "u"}, "spec": {"template": {"metadata": {"labels": {"a": "b"}}}}});
    select_own_pods(&mut job);
    assert_eq!(job["spec"]["selector"], json!({"matchLabels": {"batch.kubernetes.io/controller-uid": "u"}}));
    assert_eq!(job["spec"]["template"]["metadata"]["labels"]["job-name"], "j");
    let mut manual = json!({"spec": {"manualSelector": true}});
    select_own_pods(&mut manual);
    assert!(manual["spec"].get("selector").is_none());
}

#[test]
fn some_kinds_are_written_only_with_a_version() {
    assert!(allows_unconditional_update(kind("", "Pod")));
    assert!(!allows_unconditional_update(kind("coordination.k8s.io", "Lease")));
    assert!(allows_create_on_update(kind("coordination.k8s.io", "Lease")));
    assert!(!allows_create_on_update(kind("apps", "Deployment")));
}

#[test]
fn odd_shapes_break_nothing() {
    for of in kinds::KINDS {
        for object in [json!({}), json!({"spec": 1, "status": [], "metadata": "x"}), json!({"spec": {"ports": 1}})] {
            let mut new = object.clone();
            prepare_for_create(of, &mut new);
            prepare_for_update(of, &mut new.clone(), &object);
            for sub in ["status", "finalize", "resize", "ephemeralcontainers", "approval"] {
                prepare_for_subresource(of, sub, &mut new.clone(), &object);
            }
            begin_deletion(of, &mut new, None, jiff::Timestamp::UNIX_EPOCH);
        }
    }
}

#[test]
fn a_signer_does_not_rewrite_the_verdict() {
    let approved = |message: &str| json!({"type": "Approved", "status": "True", "message": message});
    let old = json!({"metadata": {}, "status": {"conditions": [approved("by ann")]}});
    let mut new = json!({"metadata": {}, "status": {"conditions": [{"type": "Failed"}, approved("by eve")]}});
    prepare_for_subresource(kind("certificates.k8s.io", "CertificateSigningRequest"), "status", &mut new, &old);
    assert_eq!(new["status"]["conditions"], json!([{"type": "Failed"}, approved("by ann")]));
}
