//! Two whole servers over one real single-member store: bootstrap, identities, services, binding, and streams to a node
//! that is connected to one of them, asked through either.
//!
//! Servers, certificates and connections are real; the agent is a gRPC client in this process.

mod cluster;

use futures::{SinkExt, StreamExt};
use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use cluster::with_deadline;

#[test]
fn a_new_cluster_has_what_everybody_expects() {
    with_deadline(async |cluster| {
        cluster.bootstrapped().await;
        for path in [
            "/api/v1/namespaces/kube-node-lease",
            "/apis/rbac.authorization.k8s.io/v1/clusterroles/cluster-admin",
            "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings/pintle:node-bootstrap",
            "/apis/scheduling.k8s.io/v1/priorityclasses/system-node-critical",
            "/api/v1/namespaces/kube-public/configmaps/cluster-info",
            "/apis/discovery.k8s.io/v1/namespaces/default/endpointslices/kubernetes",
        ] {
            assert_eq!(cluster.admin("GET", path, Value::Null).await.0, 200, "{path}");
        }
        let (_, service) = cluster.admin("GET", "/api/v1/namespaces/default/services/kubernetes", Value::Null).await;
        assert_eq!(service["spec"]["clusterIP"], "10.96.0.1");
        let (_, edit) = cluster.admin("GET", "/apis/rbac.authorization.k8s.io/v1/clusterroles/edit", Value::Null).await;
        assert!(edit["rules"].as_array().is_some_and(|rules| rules.len() > 5), "{edit}");
        assert_eq!(cluster.admin("DELETE", "/api/v1/namespaces/default", Value::Null).await.0, 403);
    });
}

#[test]
fn strangers_are_refused_in_upstreams_words() {
    with_deadline(async |cluster| {
        cluster.bootstrapped().await;
        let (code, status) = cluster.ask("joe", &[], "GET", "/api/v1/namespaces/default/pods", Value::Null).await;
        assert_eq!(code, 403);
        assert_eq!(
            status["message"],
            r#"pods is forbidden: User "joe" cannot list resource "pods" in API group "" in the namespace "default""#
        );
        let question = json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {"verb": "list", "resource": "pods", "namespace": "default"}}});
        let path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
        let (code, answer) = cluster.ask("joe", &["system:authenticated"], "POST", path, question).await;
        assert_eq!((code, &answer["status"]["allowed"]), (201, &json!(false)), "{answer}");
    });
}

#[test]
fn a_service_holds_its_address_until_it_is_gone() {
    with_deadline(async |cluster| {
        cluster.bootstrapped().await;
        let path = "/api/v1/namespaces/default/services";
        let service = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"},
            "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        let (code, made) = cluster.admin("POST", path, service).await;
        assert_eq!(code, 201, "{made}");
        let ip = made["spec"]["clusterIP"].as_str().expect("address").to_owned();
        let port = made["spec"]["ports"][0]["nodePort"].as_u64().expect("port");
        let claims = [format!("/pintle/alloc/clusterip/{ip}"), format!("/pintle/alloc/nodeport/{port}")];
        for claim in &claims {
            assert!(cluster.stored(claim).await, "{claim}");
        }
        let same = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "thief"},
            "spec": {"clusterIP": ip, "ports": [{"port": 80}]}});
        let (code, refused) = cluster.admin("POST", path, same).await;
        let text = refused["message"].as_str().unwrap_or_default();
        assert!(code == 422 && text.ends_with("provided IP is already allocated"), "{refused}");
        assert_eq!(cluster.admin("DELETE", &format!("{path}/web"), Value::Null).await.0, 200);
        for claim in &claims {
            assert!(!cluster.stored(claim).await, "{claim}");
        }
    });
}

#[test]
fn a_pod_is_bound_once() {
    with_deadline(async |cluster| {
        cluster.pod("bound", None).await;
        let path = "/api/v1/namespaces/default/pods/bound/binding";
        let binding = |node: &str| json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "bound"}, "target": {"kind": "Node", "name": node}});
        let (code, answer) = cluster.admin("POST", path, binding("n1")).await;
        assert_eq!((code, &answer["status"]), (201, &json!("Success")), "{answer}");
        let (code, refused) = cluster.admin("POST", path, binding("n2")).await;
        assert_eq!(code, 409, "{refused}");
        let (_, pod) = cluster.admin("GET", "/api/v1/namespaces/default/pods/bound", Value::Null).await;
        assert_eq!(pod["spec"]["nodeName"], "n1");
        assert_eq!(pod["status"]["conditions"][0]["type"], "PodScheduled");
        assert!(pod["spec"]["volumes"][0]["name"].as_str().is_some_and(|name| name.starts_with("kube-api-access-")));
    });
}

#[test]
fn a_pods_token_works_until_the_pod_is_gone() {
    with_deadline(async |cluster| {
        cluster.pod("speaker", None).await;
        let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"boundObjectRef": {"apiVersion": "v1", "kind": "Pod", "name": "speaker"}}});
        let (code, answer) =
            cluster.admin("POST", "/api/v1/namespaces/default/serviceaccounts/default/token", request).await;
        assert_eq!(code, 201, "{answer}");
        let token = answer["status"]["token"].as_str().expect("token").to_owned();
        assert_eq!(cluster.over_tls(0, "GET", "/api/v1", Some(&token)).await.0, 200);
        assert_eq!(cluster.over_tls(1, "GET", "/api/v1", Some(&token)).await.0, 200);
        assert_eq!(cluster.over_tls(0, "GET", "/api/v1", Some(&format!("{token}x"))).await.0, 401);
        assert_eq!(cluster.over_tls(0, "GET", "/healthz", None).await.0, 200);
        assert_eq!(cluster.over_tls(0, "GET", "/api/v1", None).await.0, 403);
        let path = "/api/v1/namespaces/default/pods/speaker?gracePeriodSeconds=0";
        assert_eq!(cluster.admin("DELETE", path, Value::Null).await.0, 200);
        assert_eq!(cluster.over_tls(0, "GET", "/api/v1", Some(&token)).await.0, 401);
    });
}

#[test]
fn logs_come_from_the_node_through_any_server() {
    with_deadline(async |cluster| {
        cluster.pod("talker", Some("worker-log")).await;
        let path = "/api/v1/namespaces/default/pods/talker/log";
        let (code, refused) = cluster.admin("GET", path, Value::Null).await;
        assert_eq!(code, 503, "{refused}");
        cluster.agent("worker-log").await;
        for server in [0, 1] {
            let (code, text) = cluster.admin_over_tls(server, path).await;
            assert_eq!((code, text.as_str()), (200, "hello from talker\n"), "server {server}");
        }
        let (code, text) = cluster.admin_over_tls(1, &format!("{path}?previous=true")).await;
        assert_eq!(code, 400, "{text}");
        assert!(text.contains("no previous container"), "{text}");
    });
}

#[test]
fn exec_echoes_through_any_server() {
    with_deadline(async |cluster| {
        cluster.pod("shell", Some("worker-exec")).await;
        cluster.agent("worker-exec").await;
        for server in [0, 1] {
            let path = "/api/v1/namespaces/default/pods/shell/exec?command=cat&stdin=true&stdout=true";
            let mut socket = cluster.websocket(server, path, "v5.channel.k8s.io").await;
            socket.send(Message::Binary(b"\x00ping".to_vec().into())).await.expect("sent");
            let mut heard = Vec::new();
            while let Some(Ok(message)) = socket.next().await {
                match message {
                    Message::Binary(data) => heard.push(data.to_vec()),
                    Message::Close(_) => break,
                    _ => (),
                }
            }
            assert_eq!(heard[0], b"\x01", "the greeting");
            assert_eq!(heard[1], b"\x01ping");
            assert_eq!(heard[2][0], 3);
            let status: Value = serde_json::from_slice(&heard[2][1..]).expect("status");
            assert_eq!(status["status"], "Success", "server {server}");
        }
    });
}

#[test]
fn a_node_may_not_speak_for_another() {
    with_deadline(async |cluster| {
        let status = cluster.session_as("n8", "n9").await.expect_err("refused");
        assert_eq!(status.code(), tonic::Code::PermissionDenied);
        let _ = cluster.name();
    });
}
