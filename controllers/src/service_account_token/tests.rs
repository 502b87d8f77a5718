//! The controller against a server that knows some accounts and records what is written.

use kube::client::Body;
use parking_lot::Mutex;
use pintle_client::Clients;
use serde_json::{Value, json};

use super::plan::testing::{account, secret};
use super::*;

struct World {
    controller: ServiceAccountTokens,
    lead: Lead,
    /// `METHOD path` of each write with its body.
    log: Arc<Mutex<Vec<(String, Value)>>>,
    /// The account as the server has it.
    stored: Arc<Mutex<Option<ServiceAccount>>>,
}

impl World {
    fn new() -> Self {
        let (log, stored): (Arc<Mutex<Vec<(String, Value)>>>, Arc<Mutex<Option<ServiceAccount>>>) = Default::default();
        let (seen, accounts) = (Arc::clone(&log), Arc::clone(&stored));
        let service = tower::service_fn(move |request: http::Request<Body>| {
            let (seen, accounts) = (Arc::clone(&seen), Arc::clone(&accounts));
            async move {
                let line = format!("{} {}", request.method(), request.uri().path());
                let (code, answer) = if request.method() == "GET" {
                    let missing = json!({"kind": "Status", "code": 404, "reason": "NotFound", "message": "m"});
                    accounts.lock().as_ref().map_or((404, missing), |account| (200, json!(account)))
                } else {
                    let body = request.into_body().collect_bytes().await?;
                    seen.lock().push((line, serde_json::from_slice(&body)?));
                    (200, json!({"metadata": {"name": "t"}}))
                };
                Ok::<_, tower::BoxError>(http::Response::builder().status(code).body(answer.to_string())?)
            }
        });
        let pem = rcgen::KeyPair::generate().expect("key").serialize_pem();
        let keys = Keys::from_pem(&pem, &[]).expect("keys");
        let (secrets, accounts) = (SharedReflector::detached(), SharedReflector::detached());
        let controller = ServiceAccountTokens::over(secrets, accounts, keys, "CA".to_owned());
        let lead = Lead { term: 1, client: Clients::in_process(service).fenced(1) };
        Self { controller, lead, log, stored }
    }

    /// Looks at the Secret once; what was written.
    async fn look(&self, secret: Secret) -> Vec<(String, Value)> {
        self.controller.secrets.apply(secret);
        self.controller.reconcile(&Key::new("a", "t"), &self.lead).await.expect("reconciled");
        std::mem::take(&mut *self.log.lock())
    }
}

const PATH: &str = "/api/v1/namespaces/a/secrets/t";

#[tokio::test]
async fn an_empty_secret_is_filled_with_a_token_that_verifies() {
    let world = World::new();
    world.controller.accounts.apply(account("u1"));
    let written = world.look(secret(None, "")).await;
    let [(line, body)] = &written[..] else { panic!("one write: {written:?}") };
    assert_eq!(*line, format!("PUT {PATH}"));
    assert_eq!(body["metadata"]["resourceVersion"], "7", "what was read is replaced and nothing else");
    let filled: Secret = serde_json::from_value(body.clone()).expect("secret");
    let token = filled.data.as_ref().and_then(|data| data.get(TOKEN)).expect("token");
    let token = std::str::from_utf8(&token.0).expect("text");
    let claims: Claims = world.controller.keys.verify(token).expect("signed by the key");
    assert_eq!(claims, Claims::new("a", "t", "bot", "u1"));
    assert!(world.look(filled).await.is_empty(), "it is complete");
}

#[tokio::test]
async fn a_secret_is_deleted_by_its_uid_once_the_api_says_that_its_account_is_gone() {
    let world = World::new();
    let complete = || secret(Some("u1"), "token=T ca.crt=CA namespace=a");
    *world.stored.lock() = Some(account("u1"));
    assert!(world.look(complete()).await.is_empty(), "only the cache does not know the account yet");
    for stored in [None, Some(account("u2"))] {
        *world.stored.lock() = stored;
        let written = world.look(complete()).await;
        let [(line, body)] = &written[..] else { panic!("one write: {written:?}") };
        assert_eq!(
            (line.as_str(), &body["preconditions"]["uid"]),
            (format!("DELETE {PATH}").as_str(), &json!("t-uid"))
        );
    }
}

#[tokio::test]
async fn an_account_brings_the_secrets_that_name_it() {
    let world = World::new();
    world.controller.secrets.apply(secret(None, ""));
    let named = world.controller.secrets_by_account.get("a/bot");
    assert_eq!(named.iter().map(|secret| Key::of(&secret.metadata)).collect::<Vec<_>>(), [Key::new("a", "t")]);
    assert!(world.controller.secrets_by_account.get("a/other").is_empty());
}
