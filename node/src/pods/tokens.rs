//! Service account tokens of the pods of this node: asked for by TokenRequest, bound to the pod, renewed at 80 % of
//! their life. Tokens are kept in memory and in the pod's volume, nowhere else, and never logged. What a checkpoint keeps
//! of them is on a file system in memory, too.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::{Pod, ServiceAccount};
use kube::Api;
use kube::api::PostParams;
use parking_lot::Mutex;
use pintle_base::clock;
use tokio::sync::Notify;

use crate::limits;
use crate::volumes::payload::{TokenWish, token_wishes};

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("request token for service account {namespace}/{account}")]
    Request {
        namespace: String,
        account: String,
        #[source]
        source: kube::Error,
    },
    #[error("token request for {namespace}/{account} was answered without a token")]
    Empty { namespace: String, account: String },
}

/// A token as a checkpoint holds it. Times are seconds since the epoch.
#[derive(Clone, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct SavedToken {
    pub pod_uid: String,
    pub audience: String,
    pub seconds: i64,
    pub token: String,
    pub renew_at: u64,
    pub expires: u64,
}

impl std::fmt::Debug for SavedToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "token of {}", self.pod_uid) // the token stays unprinted
    }
}

struct Held {
    token: String,
    renew_at: SystemTime,
    expires: SystemTime,
}

/// The tokens in use. One per agent.
pub struct Tokens {
    client: kube::Client,
    held: Mutex<BTreeMap<(String, TokenWish), Held>>,
    changed: Notify,
}

impl Tokens {
    pub fn new(client: kube::Client) -> Self {
        Self { client, held: Mutex::default(), changed: Notify::new() }
    }

    /// Takes over the tokens of an earlier agent that have not expired.
    pub fn restore(&self, saved: Vec<SavedToken>) {
        let time = |seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds));
        let mut held = self.held.lock();
        for saved in saved {
            let wish = TokenWish { audience: saved.audience, seconds: saved.seconds };
            if let (Some(renew_at), Some(expires)) = (time(saved.renew_at), time(saved.expires))
                && expires > clock::wall()
            {
                held.entry((saved.pod_uid, wish)).or_insert(Held { token: saved.token, renew_at, expires });
            }
        }
    }

    /// The tokens of `pods`.
    pub fn saved(&self, pods: &[Arc<Pod>]) -> Vec<SavedToken> {
        let present: BTreeSet<&str> = pods.iter().filter_map(|pod| pod.metadata.uid.as_deref()).collect();
        let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let held = self.held.lock();
        let of_pods = held.iter().filter(|((uid, _), _)| present.contains(uid.as_str()));
        let saved = of_pods.map(|((uid, wish), held)| SavedToken {
            pod_uid: uid.clone(),
            audience: wish.audience.clone(),
            seconds: wish.seconds,
            token: held.token.clone(),
            renew_at: seconds(held.renew_at),
            expires: seconds(held.expires),
        });
        saved.collect()
    }

    /// Resolves after there is a new token. For one listener.
    pub async fn changed(&self) {
        self.changed.notified().await;
    }

    /// The tokens all volumes of `pod` ask for, renewed where it is time; an old one is good until it expires.
    pub async fn of(&self, pod: &Pod) -> Result<BTreeMap<TokenWish, String>, TokenError> {
        let mut tokens = BTreeMap::new();
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        for volume in pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten()) {
            for wish in token_wishes(volume) {
                let token = self.get(pod, &uid, &wish).await?;
                tokens.insert(wish, token);
            }
        }
        Ok(tokens)
    }

    pub fn forget(&self, uid: &str) {
        self.held.lock().retain(|(other, _), _| other != uid);
    }

    async fn get(&self, pod: &Pod, uid: &str, wish: &TokenWish) -> Result<String, TokenError> {
        let key = (uid.to_owned(), wish.clone());
        let now = clock::wall();
        let old = self.held.lock().get(&key).map(|held| (held.token.clone(), held.renew_at, held.expires));
        if let Some((token, renew_at, _)) = &old
            && *renew_at > now
        {
            return Ok(token.clone());
        }
        let request = self.request(pod, wish);
        let requested = match &old {
            Some((token, _, expires)) if *expires > now => {
                match clock::timeout(limits::REFERENCE_WAIT, request).await {
                    Ok(requested) => requested,
                    Err(_) => return Ok(token.clone()),
                }
            }
            _ => request.await,
        };
        match (requested, old) {
            (Ok((token, life)), _) => {
                let held = Held { token: token.clone(), renew_at: now + life.mul_f64(0.8), expires: now + life };
                self.held.lock().insert(key, held);
                self.changed.notify_one();
                Ok(token)
            }
            (Err(_), Some((token, _, expires))) if expires > now => Ok(token),
            (Err(error), _) => Err(error),
        }
    }

    async fn request(&self, pod: &Pod, wish: &TokenWish) -> Result<(String, Duration), TokenError> {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let account = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.service_account_name.clone())
            .unwrap_or_else(|| "default".to_owned());
        let bound = BoundObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
        };
        let audiences = (!wish.audience.is_empty()).then(|| vec![wish.audience.clone()]);
        let spec =
            TokenRequestSpec { audiences, bound_object_ref: Some(bound), expiration_seconds: Some(wish.seconds) };
        let request = TokenRequest { spec: Some(spec), ..TokenRequest::default() };
        let api: Api<ServiceAccount> = Api::namespaced(self.client.clone(), &namespace);
        let answer = match api.create_token_request(&account, &PostParams::default(), &request).await {
            Ok(answer) => answer,
            Err(source) => return Err(TokenError::Request { namespace, account, source }),
        };
        let status = answer.status.unwrap_or_default();
        let Some(token) = status.token.filter(|token| !token.is_empty()) else {
            return Err(TokenError::Empty { namespace, account });
        };
        let expires = status.expiration_timestamp.map_or(0, |time| time.0.as_second());
        let seconds = expires.saturating_sub(clock::unix_seconds());
        Ok((token, Duration::from_secs(u64::try_from(seconds.max(60)).unwrap_or(60))))
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::sync::atomic::{AtomicU64, Ordering};

    use bytes::Bytes;
    use http::{Request, Response};
    use http_body_util::Full;
    use serde_json::json;

    use super::*;

    /// How long the tokens of the server hold, in seconds.
    const LIFE: i64 = 1000;

    /// A server that gives `good` tokens and then fails, and how often it was asked.
    fn server(good: u64) -> (kube::Client, Arc<AtomicU64>) {
        let asked = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&asked);
        let service = tower::service_fn(move |_: Request<kube::client::Body>| {
            let number = count.fetch_add(1, Ordering::SeqCst) + 1;
            let expires = jiff::Timestamp::from_second(clock::unix_seconds() + LIFE).expect("time").to_string();
            let (code, body) = if number <= good {
                let status = json!({ "token": format!("token-{number}"), "expirationTimestamp": expires });
                (201_u16, json!({ "metadata": {}, "spec": { "audiences": [] }, "status": status }))
            } else {
                let status = json!({ "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure" });
                (500, status)
            };
            let answer = Response::builder().status(code).header("Content-Type", "application/json");
            let answer = answer.body(Full::new(Bytes::from(body.to_string()))).expect("response");
            std::future::ready(Ok::<_, Infallible>(answer))
        });
        (kube::Client::new(service, "default"), asked)
    }

    fn pod() -> Pod {
        let token = json!({ "path": "token", "expirationSeconds": LIFE });
        let volume = json!({ "name": "t", "projected": { "sources": [{ "serviceAccountToken": token }] } });
        let metadata = json!({ "name": "p", "namespace": "ns", "uid": "u" });
        serde_json::from_value(json!({ "metadata": metadata, "spec": { "containers": [], "volumes": [volume] } }))
            .expect("pod")
    }

    async fn token(tokens: &Tokens) -> Option<String> {
        tokens.of(&pod()).await.ok().and_then(|tokens| tokens.into_values().next())
    }

    fn now() -> u64 {
        u64::try_from(clock::unix_seconds()).expect("after 1970")
    }

    /// A token whose times are these many seconds from now.
    fn old(renew: i64, expires: i64) -> Vec<SavedToken> {
        let at = |seconds: i64| now().saturating_add_signed(seconds);
        let (renew_at, expires) = (at(renew), at(expires));
        let (pod_uid, audience, token) = ("u".to_owned(), String::new(), "old".to_owned());
        vec![SavedToken { pod_uid, audience, seconds: LIFE, token, renew_at, expires }]
    }

    #[tokio::test]
    async fn a_token_is_used_for_four_fifths_of_its_life() {
        let (client, asked) = server(2);
        let tokens = Tokens::new(client);
        assert_eq!(token(&tokens).await.as_deref(), Some("token-1"));
        assert_eq!(token(&tokens).await.as_deref(), Some("token-1"));
        assert_eq!(asked.load(Ordering::SeqCst), 1, "it is not asked for again");
        let saved = tokens.saved(&[Arc::new(pod())]);
        // Some seconds for a machine that is slow to come here.
        let (renewal, end) = (saved[0].renew_at.saturating_sub(now()), saved[0].expires.saturating_sub(now()));
        assert!((770..=801).contains(&renewal) && (970..=1001).contains(&end), "{renewal} {end}");
    }

    #[tokio::test]
    async fn a_token_is_renewed_when_it_is_time() {
        let (client, asked) = server(1);
        let tokens = Tokens::new(client);
        tokens.restore(old(-1, 200));
        assert_eq!(token(&tokens).await.as_deref(), Some("token-1"));
        assert_eq!((token(&tokens).await.as_deref(), asked.load(Ordering::SeqCst)), (Some("token-1"), 1));
    }

    #[tokio::test]
    async fn an_old_token_is_good_until_it_expires() {
        let (client, asked) = server(0);
        let tokens = Tokens::new(client.clone());
        tokens.restore(old(-1, 200));
        assert_eq!((token(&tokens).await.as_deref(), asked.load(Ordering::SeqCst)), (Some("old"), 1));
        let tokens = Tokens::new(client);
        tokens.restore(old(-300, -100));
        assert_eq!(token(&tokens).await, None);
    }
}
