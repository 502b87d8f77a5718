//! Defaults of whole objects, as `kubectl create -o yaml` shows them.

use serde_json::{Value, json};

use super::{apply, image_pull_policy};
use crate::kinds;

#[track_caller]
fn defaulted(group: &str, kind: &str, mut object: Value) -> Value {
    let version = if group == "autoscaling" { "v2" } else { "v1" };
    let kind = kinds::by_gvk(group, version, kind).expect("known kind");
    apply(kind, &mut object);
    let once = object.clone();
    apply(kind, &mut object);
    assert_eq!(object, once, "applying twice changes nothing");
    object
}

#[test]
fn a_small_pod_becomes_a_whole_one() {
    let pod = defaulted("", "Pod", json!({"spec": {"containers": [{"name": "a", "image": "nginx"}]}}));
    assert_eq!(
        pod,
        json!({"spec": {
            "containers": [{"name": "a", "image": "nginx", "resources": {}, "terminationMessagePath": "/dev/termination-log",
                "terminationMessagePolicy": "File", "imagePullPolicy": "Always"}],
            "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "securityContext": {},
            "terminationGracePeriodSeconds": 30, "schedulerName": "default-scheduler", "enableServiceLinks": true}})
    );
}

#[test]
fn details_of_containers_and_volumes() {
    let pod = defaulted(
        "",
        "Pod",
        json!({"spec": {"hostNetwork": true, "serviceAccountName": "sa",
            "volumes": [{"name": "e"}, {"name": "s", "secret": {"secretName": "x"}}, {"name": "h", "hostPath": {"path": "/"}},
                        {"name": "p", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}],
            "containers": [{"name": "a", "image": "r:5000/nginx:1.2", "ports": [{"containerPort": 80}],
                "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}],
                "livenessProbe": {"httpGet": {"port": 80}},
                "resources": {"limits": {"cpu": 0.5, "memory": "1024Mi"}, "requests": {"cpu": "0.0001"}}}]}}),
    );
    let spec = &pod["spec"];
    let container = &spec["containers"][0];
    assert_eq!(container["imagePullPolicy"], "IfNotPresent");
    assert_eq!(container["ports"], json!([{"containerPort": 80, "protocol": "TCP", "hostPort": 80}]));
    assert_eq!(container["env"][0]["valueFrom"]["fieldRef"]["apiVersion"], "v1");
    assert_eq!(
        container["livenessProbe"],
        json!({"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1, "periodSeconds": 10,
               "successThreshold": 1, "failureThreshold": 3})
    );
    assert_eq!(
        container["resources"],
        json!({"limits": {"cpu": "500m", "memory": "1Gi"}, "requests": {"cpu": "1m", "memory": "1Gi"}})
    );
    assert_eq!(spec["serviceAccount"], "sa");
    assert_eq!(
        spec["volumes"],
        json!([{"name": "e", "emptyDir": {}}, {"name": "s", "secret": {"secretName": "x", "defaultMode": 420}},
               {"name": "h", "hostPath": {"path": "/", "type": ""}},
               {"name": "p", "projected": {"defaultMode": 420, "sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 3600}}]}}])
    );
}

#[test]
fn pull_policy_follows_the_tag() {
    for (image, want) in [
        ("nginx", "Always"),
        ("nginx:latest", "Always"),
        ("nginx:1", "IfNotPresent"),
        ("localhost:5000/nginx", "Always"),
        ("nginx@sha256:abc", "IfNotPresent"),
        ("a/b:latest@sha256:abc", "Always"),
    ] {
        assert_eq!(image_pull_policy(image), want, "{image}");
    }
}

#[test]
fn deployments_roll() {
    let object = defaulted("apps", "Deployment", json!({"spec": {"template": {"spec": {"containers": []}}}}));
    let spec = &object["spec"];
    assert_eq!(
        (&spec["replicas"], &spec["revisionHistoryLimit"], &spec["progressDeadlineSeconds"]),
        (&json!(1), &json!(10), &json!(600))
    );
    assert_eq!(
        spec["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
    );
    assert!(spec["template"]["spec"].get("enableServiceLinks").is_none());
    let recreate = defaulted("apps", "Deployment", json!({"spec": {"strategy": {"type": "Recreate"}}}));
    assert_eq!(recreate["spec"]["strategy"], json!({"type": "Recreate"}));
}

#[test]
fn a_replication_controller_takes_its_selector_from_the_template() {
    let object =
        defaulted("", "ReplicationController", json!({"spec": {"template": {"metadata": {"labels": {"a": "b"}}}}}));
    assert_eq!(object["spec"]["selector"], json!({"a": "b"}));
    assert_eq!(object["metadata"]["labels"], json!({"a": "b"}));
}

#[test]
fn jobs() {
    let object = defaulted("batch", "Job", json!({"spec": {"template": {}}}));
    let spec = &object["spec"];
    assert_eq!((&spec["completions"], &spec["parallelism"], &spec["backoffLimit"]), (&json!(1), &json!(1), &json!(6)));
    assert_eq!(spec["podReplacementPolicy"], "TerminatingOrFailed");
    let queue = defaulted("batch", "Job", json!({"spec": {"parallelism": 3}}));
    assert!(queue["spec"].get("completions").is_none());
}

#[test]
fn services() {
    let object =
        defaulted("", "Service", json!({"spec": {"ports": [{"port": 80}, {"port": 1, "targetPort": "http"}]}}));
    assert_eq!(
        object,
        json!({"spec": {"ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}, {"port": 1, "targetPort": "http", "protocol": "TCP"}],
            "type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster"}})
    );
    let balanced = defaulted("", "Service", json!({"spec": {"type": "LoadBalancer", "sessionAffinity": "ClientIP"}}));
    assert_eq!(balanced["spec"]["externalTrafficPolicy"], "Cluster");
    assert_eq!(balanced["spec"]["allocateLoadBalancerNodePorts"], true);
    assert_eq!(balanced["spec"]["sessionAffinityConfig"], json!({"clientIP": {"timeoutSeconds": 10800}}));
}

#[test]
fn string_data_becomes_data() {
    let object = defaulted("", "Secret", json!({"stringData": {"a": "hello"}, "data": {"b": "Yg=="}}));
    assert_eq!(object, json!({"type": "Opaque", "data": {"b": "Yg==", "a": "aGVsbG8="}}));
}

#[test]
fn bindings_name_their_groups() {
    let object = defaulted(
        "rbac.authorization.k8s.io",
        "RoleBinding",
        json!({"roleRef": {"kind": "Role", "name": "r"}, "subjects": [{"kind": "User", "name": "u"}, {"kind": "ServiceAccount", "name": "s", "namespace": "n"}]}),
    );
    assert_eq!(object["roleRef"]["apiGroup"], "rbac.authorization.k8s.io");
    assert_eq!(object["subjects"][0]["apiGroup"], "rbac.authorization.k8s.io");
    assert!(object["subjects"][1].get("apiGroup").is_none());
}

#[test]
fn namespaces_carry_their_name() {
    let object = defaulted("", "Namespace", json!({"metadata": {"name": "x"}}));
    assert_eq!(object["metadata"]["labels"], json!({"kubernetes.io/metadata.name": "x"}));
}

#[test]
fn nothing_breaks_on_odd_shapes() {
    for kind in kinds::KINDS {
        for object in [
            json!(null),
            json!([]),
            json!("x"),
            json!({"spec": 1, "metadata": []}),
            json!({"spec": {"template": [], "containers": {}}}),
        ] {
            let mut object = object;
            apply(kind, &mut object);
        }
    }
}
