//! The service proxy: ClusterIP and NodePort by one nftables table of our own (D13).
//!
//! Flow: services and endpoint slices → [`model`] (what should be) → [`ruleset`] (the difference as one transaction) →
//! `nft -f -`. I10: the table stays in the kernel whatever happens to this process; it is replaced only once complete
//! lists have been seen.

pub mod model;
pub mod ruleset;

use std::time::Duration;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use pintle_base::backoff::Backoff;
use pintle_base::clock;
use pintle_base::error::Chain;
use pintle_client::SharedReflector;

use crate::limits;
use crate::program::{self, ProgramError};
use model::Model;
use ruleset::Settings;

/// Keeps the kernel's table equal to the API's services. Runs until dropped.
pub async fn run(services: SharedReflector<Service>, slices: SharedReflector<EndpointSlice>, settings: Settings) {
    services.ready().await;
    slices.ready().await;
    let (mut service_changes, mut slice_changes) = (services.changes(), slices.changes());
    let mut loaded: Option<Model> = None;
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
    loop {
        let wanted = model::build(&services.list(), &slices.list(), &settings.node_name, &settings.dns_address);
        match load(&settings, loaded.as_ref(), &wanted).await {
            Ok(()) => {
                forget_connections(loaded.as_ref(), &wanted).await;
                loaded = Some(wanted);
                backoff.reset();
            }
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "service rules not loaded, will load all of them again");
                // What the kernel has is not known any more: the next transaction replaces the table.
                loaded = None;
                clock::sleep(backoff.next_delay()).await;
                continue;
            }
        }
        tokio::select! {
            () = service_changes.changed() => (),
            () = slice_changes.changed() => (),
        }
        clock::sleep(limits::PROXY_SETTLE).await;
    }
}

async fn load(settings: &Settings, loaded: Option<&Model>, wanted: &Model) -> Result<(), ProgramError> {
    let text = match loaded {
        Some(loaded) => ruleset::difference(loaded, wanted),
        None => ruleset::complete(settings, wanted),
    };
    if text.is_empty() {
        return Ok(());
    }
    program::run("nft", &["-f", "-"], Some(text), limits::PROGRAM).await.map(|_| ())
}

/// UDP has no end of a connection: entries towards endpoints that are gone would be used for ever.
async fn forget_connections(loaded: Option<&Model>, wanted: &Model) {
    let Some(loaded) = loaded else { return };
    for (address, endpoint) in model::lost_udp(loaded, wanted) {
        let (address, endpoint) = (address.to_string(), endpoint.to_string());
        let mut args = vec!["-D", "-p", "udp", "--orig-dst", &address];
        if endpoint != "0.0.0.0" {
            args.extend(["--dst-nat", &endpoint]);
        }
        match program::run("conntrack", &args, None, limits::PROGRAM).await {
            Ok(_) => (),
            // It exits with 1 when there was nothing to delete; where it is not installed, entries time out.
            Err(error) => tracing::trace!(error = %Chain(&error), "no connection forgotten"),
        }
    }
}

/// Removes the table: for a worker that leaves for good.
///
/// # Errors
/// [`ProgramError`] if nft cannot do it.
pub async fn remove() -> Result<(), ProgramError> {
    let text = format!("add table ip {0}\ndelete table ip {0}\n", ruleset::TABLE);
    program::run("nft", &["-f", "-"], Some(text), limits::PROGRAM).await.map(|_| ())
}
