//! Rules for pods: what they may be, and what may change in them.

use serde_json::{Value, json};

use super::{check, check_update, compare, good, kind, with};
use crate::validate::{update, update_status};
use crate::{defaults, patch};

fn container(fields: Value) -> Value {
    let mut object = json!({"spec": {"containers": [{"name": "c", "image": "i"}]}});
    object["spec"]["containers"][0] =
        patch::merge(object["spec"]["containers"][0].clone(), &fields).expect("merge patch");
    defaults::apply(kind("", "Pod"), &mut object);
    json!({"spec": {"containers": object["spec"]["containers"]}})
}

#[test]
fn pods() {
    check("", "Pod", json!({"spec": {"containers": []}}), &["spec.containers: Required value"]);
    check("", "Pod", json!({"spec": null}), &["spec.containers: Required value"]);
    check("", "Pod", container(json!({"image": ""})), &["spec.containers[0].image: Required value"]);
    check(
        "",
        "Pod",
        container(json!({"name": "A"})),
        &["spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123 label"],
    );
    check(
        "",
        "Pod",
        json!({"spec": {"restartPolicy": "Sometimes"}}),
        &[
            "spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
        ],
    );
    check(
        "",
        "Pod",
        json!({"spec": {"initContainers": [{"name": "c", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"}]}}),
        &["spec.initContainers[0].name: Duplicate value: \"c\""],
    );
    check(
        "",
        "Pod",
        json!({"spec": {"activeDeadlineSeconds": 0}}),
        &["spec.activeDeadlineSeconds: Invalid value: 0: must be between 1 and 2147483647, inclusive"],
    );
    check(
        "",
        "Pod",
        json!({"spec": {"ephemeralContainers": [{"name": "e", "image": "i", "imagePullPolicy": "Always", "terminationMessagePolicy": "File"}]}}),
        &["spec.ephemeralContainers: Forbidden: cannot be set on create"],
    );
    check(
        "",
        "Pod",
        json!({"spec": {"dnsPolicy": "None"}}),
        &["spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"],
    );
    check("", "Pod", json!({"spec": {"nodeSelector": {"a b": "c"}}}), &["spec.nodeSelector: Invalid value: \"a b\""]);
    check("", "Pod", json!({"spec": {"imagePullSecrets": [{}]}}), &["spec.imagePullSecrets[0].name: Required value"]);
}

#[test]
fn ports_and_variables() {
    check(
        "",
        "Pod",
        container(json!({"ports": [{"containerPort": 70000}]})),
        &["spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive"],
    );
    check(
        "",
        "Pod",
        container(json!({"ports": [{"containerPort": 80, "name": "a"}, {"containerPort": 81, "name": "a"}]})),
        &["spec.containers[0].ports[1].name: Duplicate value: \"a\""],
    );
    check(
        "",
        "Pod",
        container(json!({"ports": [{"containerPort": 80, "protocol": "IP"}]})),
        &["ports[0].protocol: Unsupported value: \"IP\": supported values: \"SCTP\", \"TCP\", \"UDP\""],
    );
    check(
        "",
        "Pod",
        container(json!({"ports": [{"containerPort": 80, "hostPort": 80}, {"containerPort": 81, "hostPort": 80}]})),
        &["spec.containers[0].ports[1].hostPort: Duplicate value: \"TCP//80\""],
    );
    check(
        "",
        "Pod",
        container(json!({"env": [{"name": ""}, {"name": "A=B"}]})),
        &["spec.containers[0].env[0].name: Required value", "spec.containers[0].env[1].name: Invalid value: \"A=B\""],
    );
    check(
        "",
        "Pod",
        container(
            json!({"env": [{"name": "A", "value": "x", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]}),
        ),
        &["env[0].valueFrom: Invalid value: \"\": may not be specified when `value` is not empty"],
    );
    check("", "Pod", container(json!({"env": [{"name": "A", "valueFrom": {}}]})), &["must specify one of: `fieldRef`"]);
    check(
        "",
        "Pod",
        container(json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "spec.x"}}}]})),
        &[
            "fieldRef.fieldPath: Invalid value: \"spec.x\": error converting fieldPath: field label not supported: spec.x",
        ],
    );
    check(
        "",
        "Pod",
        container(json!({"env": [{"name": "A", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['app']"}}}]})),
        &[],
    );
    check("", "Pod", container(json!({"envFrom": [{}]})), &["must specify one of: `configMapRef` or `secretRef`"]);
}

#[test]
fn volumes_and_mounts() {
    check(
        "",
        "Pod",
        container(json!({"volumeMounts": [{"name": "v", "mountPath": "/v"}]})),
        &["spec.containers[0].volumeMounts[0].name: Not found: \"v\""],
    );
    let volume = |volume: Value| json!({"spec": {"volumes": [volume]}});
    check("", "Pod", volume(json!({"name": "v"})), &["spec.volumes[0]: Required value: must specify a volume type"]);
    check(
        "",
        "Pod",
        volume(json!({"name": "v", "emptyDir": {}, "hostPath": {"path": "/x"}})),
        &["spec.volumes[0].hostPath: Forbidden: may not specify more than 1 volume type"],
    );
    check(
        "",
        "Pod",
        volume(json!({"name": "v", "hostPath": {"path": "/a/../b"}})),
        &["spec.volumes[0].hostPath.path: Invalid value: \"/a/../b\": must not contain '..'"],
    );
    check(
        "",
        "Pod",
        volume(json!({"name": "v", "secret": {"defaultMode": 1000}})),
        &[
            "spec.volumes[0].secret.secretName: Required value",
            "must be a number between 0 and 0777 (octal), both inclusive",
        ],
    );
    check(
        "",
        "Pod",
        volume(
            json!({"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t", "expirationSeconds": 60}}]}}),
        ),
        &["may not specify a duration less than 10 minutes"],
    );
    check(
        "",
        "Pod",
        json!({"spec": {"volumes": [{"name": "v", "emptyDir": {}}, {"name": "v", "emptyDir": {}}]}}),
        &["spec.volumes[1].name: Duplicate value: \"v\""],
    );
}

#[test]
fn resources_and_probes() {
    check(
        "",
        "Pod",
        container(json!({"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}})),
        &["spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1"],
    );
    check(
        "",
        "Pod",
        container(json!({"resources": {"requests": {"apples": "2"}}})),
        &["resources.requests[apples]: Invalid value: \"apples\": must be a standard resource for containers"],
    );
    check(
        "",
        "Pod",
        container(json!({"resources": {"requests": {"cpu": "-1"}}})),
        &["must be greater than or equal to 0"],
    );
    check(
        "",
        "Pod",
        container(json!({"resources": {"limits": {"a.b/gpu": "1.5"}}})),
        &["must be an integer", "must be an integer"],
    );
    check(
        "",
        "Pod",
        container(json!({"livenessProbe": {}})),
        &["spec.containers[0].livenessProbe: Required value: must specify a handler type"],
    );
    check(
        "",
        "Pod",
        container(json!({"livenessProbe": {"httpGet": {"port": 80}, "successThreshold": 2}})),
        &["livenessProbe.successThreshold: Invalid value: 2: must be 1"],
    );
    check(
        "",
        "Pod",
        container(json!({"readinessProbe": {"tcpSocket": {"port": 0}}})),
        &["readinessProbe.tcpSocket.port: Invalid value: 0"],
    );
    check(
        "",
        "Pod",
        container(json!({"lifecycle": {"preStop": {"exec": {"command": ["x"]}, "sleep": {"seconds": 1}}}})),
        &["preStop.sleep: Forbidden: may not specify more than 1 handler type"],
    );
}

#[test]
fn placement() {
    check(
        "",
        "Pod",
        json!({"spec": {"tolerations": [{"operator": "Equal"}]}}),
        &["operator must be Exists when `key` is empty"],
    );
    check(
        "",
        "Pod",
        json!({"spec": {"tolerations": [{"key": "a", "operator": "Exists", "tolerationSeconds": 5, "effect": "NoSchedule"}]}}),
        &["effect must be 'NoExecute' when `tolerationSeconds` is set"],
    );
    check(
        "",
        "Pod",
        json!({"spec": {"topologySpreadConstraints": [{"maxSkew": 0, "topologyKey": "zone", "whenUnsatisfiable": "X"}]}}),
        &["maxSkew: Invalid value: 0: must be greater than zero", "whenUnsatisfiable: Unsupported value"],
    );
    check(
        "",
        "Pod",
        json!({"spec": {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": []}}}}}),
        &["must have at least one node selector term"],
    );
    check(
        "",
        "Pod",
        json!({"spec": {"affinity": {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 0, "podAffinityTerm": {"topologyKey": "x"}}]}}}}),
        &["weight: Invalid value: 0: must be in the range 1-100"],
    );
}

#[test]
fn pod_changes() {
    let mut image = good(kind("", "Pod"));
    image["spec"]["containers"][0]["image"] = json!("j");
    compare(update(kind("", "Pod"), &image, &good(kind("", "Pod"))), &[]);
    check_update(
        "",
        "Pod",
        json!({"spec": {"tolerations": [{"key": "a", "operator": "Exists"}], "activeDeadlineSeconds": 5}}),
        &[],
    );
    check_update(
        "",
        "Pod",
        json!({"spec": {"nodeName": "n"}}),
        &["spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`"],
    );
    check_update(
        "",
        "Pod",
        json!({"spec": {"containers": []}}),
        &["spec.containers: Forbidden: pod updates may not add or remove containers"],
    );
    check_update(
        "",
        "Pod",
        json!({"spec": {"schedulingGates": [{"name": "g"}]}}),
        &["only deletion is allowed, but found new scheduling gate 'g'"],
    );
    let pod = kind("", "Pod");
    let ended = with(
        pod,
        &json!({"spec": {"restartPolicy": "Never"}, "status": {"containerStatuses": [{"name": "c", "state": {"terminated": {"exitCode": 0}}}]}}),
    );
    let revived = patch::merge(
        ended.clone(),
        &json!({"status": {"containerStatuses": [{"name": "c", "state": {"running": {}}}]}}),
    )
    .expect("patch");
    compare(
        update_status(pod, &revived, &ended),
        &["status.containerStatuses[0].state: Forbidden: may not be transitioned to non-terminated state"],
    );
}
