//! Who calls, and whether anybody like that may make this call: before any service sees it.
//!
//! Always holds: a call that is not in the table is for administrators only. What concerns keys is judged by the store,
//! which knows what the request touches.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::{HeaderMap, Request, Response, header};
use futures::future::{Either, Ready, ready};
use pintle_proto::store_v1::Caller;
use tonic::Status;
use tower::{Layer, Service};

use super::toll::{self, Paying};

use crate::audit::Description;
use crate::auth::{Actor, Grant};
use crate::error::StoreError;
use crate::quota::rates::Account;
use crate::store::Store;

/// What a call asks of its caller while authentication is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rule {
    /// Anybody: needed to log in, or to see whether the member lives.
    Open,
    /// Any user; what it touches is judged by the store.
    User,
    /// Users with the role `root`.
    Root,
}

/// The user that the certificate of a connection names, where that counts as a login.
#[derive(Clone, Debug)]
pub(super) struct CommonName(pub Arc<str>);

/// By service, the calls that are not for [`Rule::Root`].
const RULES: &[(&str, &[&str], Rule)] = &[
    ("etcdserverpb.KV", &["Range", "RangeStream", "Put", "DeleteRange", "Txn"], Rule::User),
    ("etcdserverpb.Watch", &["Watch"], Rule::User),
    (
        "etcdserverpb.Lease",
        &["LeaseGrant", "LeaseRevoke", "LeaseKeepAlive", "LeaseTimeToLive", "LeaseLeases"],
        Rule::User,
    ),
    ("etcdserverpb.Cluster", &["MemberList"], Rule::User),
    // Only to see alarms; setting them is judged by the store.
    ("etcdserverpb.Maintenance", &["Alarm"], Rule::User),
    ("etcdserverpb.Auth", &["Authenticate"], Rule::Open),
    // One's own user and roles; others are judged by the store.
    ("etcdserverpb.Auth", &["UserGet", "RoleGet"], Rule::User),
    ("v3lockpb.Lock", &["Lock", "Unlock"], Rule::User),
    ("v3electionpb.Election", &["Campaign", "Proclaim", "Leader", "Observe", "Resign"], Rule::User),
    ("grpc.health.v1.Health", &["Check", "Watch", "List"], Rule::Open),
];

pub(super) fn rule(path: &str) -> Rule {
    let mut parts = path.trim_start_matches('/').split('/');
    let (service, method) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
    let named = RULES.iter().find(|(of, methods, _)| *of == service && methods.contains(&method));
    named.map_or(Rule::Root, |(_, _, rule)| *rule)
}

/// Puts a [`Gate`] in front of gRPC services.
#[derive(Clone)]
pub(super) struct GateLayer {
    pub store: Store,
}

#[derive(Clone)]
pub(super) struct Gate<S> {
    store: Store,
    inner: S,
}

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate { store: self.store.clone(), inner }
    }
}

impl<S> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Either<Either<S::Future, Paying<S::Future>>, Ready<Result<Response<Body>, Infallible>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        // Nobody is asked while authentication is off: then this is one load of a pointer.
        if self.store.auth().enabled {
            let (actor, peer) = (actor(&self.store, &request), request.extensions().get().copied());
            let (acting, path) = (self.store.acting_for(actor.clone(), peer), request.uri().path());
            if let Err(error) = admit(&acting, path) {
                let method = path.rsplit('/').next().unwrap_or_default();
                let entry = acting.audit(|| (!READS.contains(&method)).then(|| Description::of_call(method)));
                entry.into_iter().for_each(|mut entry| entry.failed(&error));
                return Either::Right(ready(Ok(Status::from(error).into_http())));
            }
            let account = self.store.charge(&actor, path);
            request.extensions_mut().insert(actor);
            match account {
                Ok(None) => (),
                Ok(Some(account)) => {
                    let answer = self.inner.call(toll::paid(request, &account));
                    return Either::Left(Either::Right(Paying::new(answer, account)));
                }
                Err(error) => return Either::Right(ready(Ok(Status::from(error).into_http()))),
            }
        }
        Either::Left(Either::Left(self.inner.call(request)))
    }
}

/// Calls of administrators that change nothing: the audit log is not told of them.
const READS: [&str; 9] =
    ["Status", "Hash", "HashKV", "Snapshot", "AuthStatus", "UserList", "RoleList", "QuotaList", "Top"];

/// Services whose every call is judged by the store.
const JUDGED_LATER: [&str; 4] =
    ["/etcdserverpb.KV/", "/etcdserverpb.Watch/", "/v3lockpb.Lock/", "/v3electionpb.Election/"];

/// Calls that a user's rate does not stop: without them it would lose what it has.
const UNLIMITED: [&str; 2] = ["/etcdserverpb.Lease/LeaseKeepAlive", "/etcdserverpb.Auth/Authenticate"];

impl Store {
    /// Who pays for a call, where its user may do only so much.
    fn charge(&self, actor: &Actor, path: &str) -> Result<Option<Arc<Account>>, StoreError> {
        let quotas = self.shared().quotas.load();
        let Actor::User(caller) = actor else { return Ok(None) };
        let Some(quota) = quotas.user(&caller.name).filter(|_| !UNLIMITED.contains(&path)) else { return Ok(None) };
        self.shared().rates.admit(quota).map(Some).ok_or(StoreError::Overloaded)
    }
}

fn admit(store: &Store, path: &str) -> Result<(), StoreError> {
    match rule(path) {
        Rule::Open => Ok(()),
        // The store says no in the order and in the form of etcd's checks: first what is wrong with the request, then who may make it.
        Rule::User if JUDGED_LATER.iter().any(|service| path.starts_with(service)) => Ok(()),
        Rule::User => store.permitted(|_| Ok(())),
        Rule::Root => store.permitted(Grant::administer),
    }
}

/// A token counts before a certificate. The certificate of the JSON gateway is not its caller's.
fn actor(store: &Store, request: &Request<Body>) -> Actor {
    let headers = request.headers();
    if let Some(token) = token(headers) {
        return match store.tokens().caller(&store.auth(), token) {
            Ok(caller) => Actor::User(Arc::new(caller)),
            Err(_) => Actor::BadToken,
        };
    }
    match request.extensions().get::<CommonName>() {
        Some(CommonName(name)) if !headers.contains_key("grpcgateway-accept") => {
            Actor::User(Arc::new(Caller { name: name.as_ref().to_owned(), ..Caller::default() }))
        }
        _ => Actor::Anonymous,
    }
}

fn token(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get("token").or_else(|| headers.get(header::AUTHORIZATION))?;
    let text = value.to_str().unwrap_or_default(); // never a token, so refused
    Some(text.strip_prefix("Bearer ").unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A method that is added to the protocol must be thought about here: this list says what each one asks of its caller.
    #[test]
    fn every_method_of_the_protocol_has_the_rule_it_should_have() {
        let pool = prost_reflect::DescriptorPool::decode(pintle_proto::ETCD_DESCRIPTORS).unwrap();
        let mut by_rule = [Vec::new(), Vec::new(), Vec::new()];
        for service in pool.services() {
            for method in service.methods() {
                let rule = rule(&format!("/{}/{}", service.full_name(), method.name()));
                by_rule[rule as usize].push(format!("{}/{}", service.name(), method.name()));
            }
        }
        by_rule.iter_mut().for_each(|names| names.sort());
        let [open, user, root] = by_rule;
        assert_eq!(open, ["Auth/Authenticate"]);
        assert_eq!(
            user,
            [
                "Auth/RoleGet",
                "Auth/UserGet",
                "Cluster/MemberList",
                "Election/Campaign",
                "Election/Leader",
                "Election/Observe",
                "Election/Proclaim",
                "Election/Resign",
                "KV/DeleteRange",
                "KV/Put",
                "KV/Range",
                "KV/RangeStream",
                "KV/Txn",
                "Lease/LeaseGrant",
                "Lease/LeaseKeepAlive",
                "Lease/LeaseLeases",
                "Lease/LeaseRevoke",
                "Lease/LeaseTimeToLive",
                "Lock/Lock",
                "Lock/Unlock",
                "Maintenance/Alarm",
                "Watch/Watch",
            ]
        );
        assert_eq!(root.len(), 26, "{root:?}");
        assert!(root.contains(&"KV/Compact".to_owned()) && root.contains(&"Maintenance/Snapshot".to_owned()));
        for method in ["QuotaSet", "QuotaRemove", "QuotaList", "Top"] {
            assert_eq!(rule(&format!("/pintle.store.v1.Operations/{method}")), Rule::Root);
        }
        assert_eq!(rule("/new.Service/Call"), Rule::Root);
        assert_eq!(rule(""), Rule::Root);
    }
}
