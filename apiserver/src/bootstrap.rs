//! What a cluster must have before anybody can use it: namespaces, roles and bindings, priority classes, the `kubernetes`
//! Service and its endpoints, and the published CA. Kept by the leader, fenced by its term (I9).
//!
//! [`objects`] and [`roles`] say what must be (pure tables), [`reconcile`] makes it so. Everything is written through the
//! registry like any other write. What people add to these objects stays; what is missing comes back.

mod endpoints;
mod objects;
mod reconcile;
mod roles;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use pintle_base::backoff::Backoff;
use pintle_base::clock;
use pintle_base::error::Chain;
use pintle_base::task::Group;

use crate::admission::Chain as Admission;
use crate::authn::Authenticator;
use crate::authz::Authorizer;
use crate::authz::live::{Cached, Live};
use crate::connect::Reach;
use crate::node_session::directory::Directory;
use crate::node_session::{Service, Sessions};
use crate::reviews::Questions;
use crate::services::{Ranges, ranges, repair};
use crate::tokens::{Issuer, KeyError};
use crate::types::{Ctx, Hooks};

/// Between two looks at the endpoints of the servers: half the time a dead server's entry lives.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Between two full rounds. Upstream repairs allocations every three minutes.
const ROUND_EVERY: Duration = Duration::from_secs(180);

/// Why a configuration cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("service account keys")]
    Keys(#[source] KeyError),
    #[error("service ranges")]
    Ranges(#[source] ranges::RangeError),
}

/// Makes authentication, authorization, admission, virtual kinds and streams of a server.
///
/// # Errors
/// [`BuildError`] if keys or ranges of the configuration cannot be used.
pub fn hooks(ctx: &Arc<Ctx>) -> Result<Hooks, BuildError> {
    let config = &ctx.config;
    let issuer = Arc::new(Issuer::new(&config.service_accounts).map_err(BuildError::Keys)?);
    let ranges = Ranges::new(&config.service_cidr, config.node_ports.clone()).map_err(BuildError::Ranges)?;
    let live: Arc<dyn Live> = Arc::new(Cached { cache: Arc::clone(&ctx.cache), store: ctx.store.clone() });
    let authorizer = Arc::new(Authorizer::new(Arc::clone(&live)));
    let authenticator = Arc::new(Authenticator {
        issuer: Arc::clone(&issuer),
        live: Arc::clone(&live),
        authorizer: Arc::clone(&authorizer),
    });
    let claims = Arc::new(repair::Stored(ctx.store.clone()));
    let admission = Admission { live: Arc::clone(&live), authorizer: Arc::clone(&authorizer), ranges, claims };
    let virtuals = Questions {
        authenticator: Arc::clone(&authenticator),
        authorizer: Arc::clone(&authorizer),
        live: Arc::clone(&live),
        registry: ctx.registry.clone(),
    };
    Ok(Hooks {
        authn: authenticator,
        authz: authorizer,
        admission: Arc::new(admission),
        virtuals: Arc::new(virtuals),
        streams: Arc::new(reach(ctx, live, issuer)),
    })
}

fn reach(ctx: &Arc<Ctx>, live: Arc<dyn Live>, issuer: Arc<Issuer>) -> Reach {
    let config = ctx.config.clone();
    let sessions = Sessions::default();
    let directory = Directory::new(ctx.store.clone(), config.server_id, config.advertise);
    let service = Service {
        sessions: sessions.clone(),
        directory: directory.clone(),
        server_name: config.server_name.clone(),
        server_id: config.server_id,
        tasks: Group::new("node-sessions"),
    };
    Reach { config, live, sessions, directory, service, issuer }
}

/// Starts the reconciler; it acts while this server leads.
pub fn start(ctx: &Arc<Ctx>, group: &Group) {
    ctx.hooks().streams.start(group);
    group.spawn_until_stopped("bootstrap", lead(Arc::clone(ctx)));
}

async fn lead(ctx: Arc<Ctx>) {
    let mut leadership = ctx.store.leadership();
    loop {
        let now = *leadership.borrow_and_update();
        if now.leading {
            tokio::select! {
                biased;
                changed = leadership.changed() => if changed.is_err() { return },
                () = keep(&ctx, now.term) => (),
            }
        } else if leadership.changed().await.is_err() {
            return;
        }
    }
}

/// Full rounds now and then, looks at the endpoints between; ends only by being dropped.
async fn keep(ctx: &Ctx, term: u64) {
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    let mut round_due = clock::now();
    loop {
        let full = clock::now() >= round_due;
        let done = match full {
            true => reconcile::everything(ctx, term).await,
            false => reconcile::endpoints(ctx, term).await,
        };
        match done {
            Ok(()) => {
                if full {
                    round_due = clock::now() + ROUND_EVERY;
                }
                backoff.reset();
                clock::sleep(LOOK_EVERY).await;
            }
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "cluster bootstrap not complete, will retry");
                clock::sleep(backoff.next_delay()).await;
            }
        }
    }
}
