//! The service proxy: ClusterIP and NodePort by one nftables table of our own (D13).
//!
//! Flow: services and endpoint slices → [`model`] (what should be) → [`ruleset`] (the difference as one transaction) →
//! `nft -f -`; and back: `nft list` → [`shape`] (what is there) → written anew where somebody else changed it.
//! I10: the table stays in the kernel whatever happens to this process. An earlier agent's table is replaced only once
//! complete lists have been seen; a checkpoint's rules are written only where there are none.

pub mod model;
pub mod ruleset;
mod shape;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use pintle_base::backoff::Backoff;
use pintle_base::clock::{self, Instant};
use pintle_base::error::Chain;
use pintle_client::SharedReflector;
use std::time::Duration;
use tokio::sync::watch;

use crate::program::{self, ProgramError};
use crate::{checkpoint, limits};
use model::{Model, Stale};
use ruleset::Settings;
use shape::Shape;

/// Keeps the kernel's table equal to the API's services. Runs until dropped.
pub async fn run(
    services: SharedReflector<Service>,
    slices: SharedReflector<EndpointSlice>,
    settings: watch::Receiver<Settings>,
) {
    tokio::join!(checkpoint::settled(&services), checkpoint::settled(&slices));
    Proxy { services, slices, settings, table: Table::Unknown }.run().await;
}

/// What the kernel has, as far as this process knows.
enum Table {
    /// Nothing, or something else than it should: the next transaction replaces it.
    Unknown,
    /// What an earlier agent loaded, at least as new as its checkpoint.
    Adopted,
    Loaded(Settings, Model),
}

struct Proxy {
    services: SharedReflector<Service>,
    slices: SharedReflector<EndpointSlice>,
    settings: watch::Receiver<Settings>,
    table: Table,
}

impl Proxy {
    async fn run(mut self) {
        let (mut service_changes, mut slice_changes) = (self.services.changes(), self.slices.changes());
        let mut setting_changes = self.settings.clone();
        let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(10));
        if !self.confirmed() && self.stands().await {
            self.table = Table::Adopted;
        }
        let mut verify = clock::now() + limits::PROXY_VERIFY;
        loop {
            if let Err(error) = self.load().await {
                tracing::warn!(error = %Chain(&error), "service rules not loaded, will load all of them again");
                self.table = Table::Unknown;
                clock::sleep(backoff.next_delay()).await;
                continue;
            }
            backoff.reset();
            let changed = tokio::select! {
                () = service_changes.changed() => true,
                () = slice_changes.changed() => true,
                true = async { setting_changes.changed().await.is_ok() } => true,
                () = clock::sleep_until(verify) => false,
            };
            if changed {
                clock::sleep(limits::PROXY_SETTLE).await;
            }
            if verify <= clock::now() {
                verify = self.verify().await;
            }
        }
    }

    /// True if what is known of services comes from complete lists of a server.
    fn confirmed(&self) -> bool {
        self.services.is_ready() && self.slices.is_ready()
    }

    /// Brings the kernel's table to what should be.
    async fn load(&mut self) -> Result<(), ProgramError> {
        if matches!(self.table, Table::Adopted) && !self.confirmed() {
            return Ok(());
        }
        let settings = self.settings.borrow_and_update().clone();
        let wanted =
            model::build(&self.services.list(), &self.slices.list(), &settings.node_name, &settings.dns_address);
        let (text, stale) = match &self.table {
            Table::Loaded(before, loaded) if *before == settings => {
                (ruleset::difference(loaded, &wanted), model::stale_udp(loaded, &wanted))
            }
            Table::Loaded(_, loaded) => (ruleset::complete(&settings, &wanted), model::stale_udp(loaded, &wanted)),
            Table::Unknown | Table::Adopted => (ruleset::complete(&settings, &wanted), Vec::new()),
        };
        if !text.is_empty() {
            program::run("nft", &["-f", "-"], Some(text), limits::PROGRAM).await?;
        }
        forget_connections(&stale).await;
        self.table = Table::Loaded(settings, wanted);
        Ok(())
    }

    /// Looks whether the table still is what was loaded; returns when to look again.
    async fn verify(&mut self) -> Instant {
        let began = clock::now();
        if !self.stands().await {
            tracing::warn!("somebody else changed the table of service rules, it is written anew");
            self.table = Table::Unknown;
        }
        let pause = began.elapsed() * limits::PROXY_VERIFY_SHARE;
        clock::now() + pause.clamp(limits::PROXY_VERIFY, limits::PROXY_VERIFY_MAX)
    }

    async fn stands(&self) -> bool {
        let expected = match &self.table {
            Table::Loaded(settings, model) => ruleset::shape(settings, model),
            Table::Unknown | Table::Adopted => ruleset::foundation(&self.settings.borrow()),
        };
        match listed(&expected).await {
            Ok(Some(found)) => found.holds(&expected),
            Ok(None) => true,
            // nft itself says that there is no such table.
            Err(ProgramError::Failed { .. }) => false,
            Err(error) => {
                tracing::warn!(error = %Chain(&error), "service rules cannot be looked at");
                true
            }
        }
    }
}

/// The kernel's table with the maps that should hold something; `None` if it is too large to be read.
async fn listed(expected: &Shape) -> Result<Option<Shape>, ProgramError> {
    let list = async |args: &[&str]| program::read_all("nft", args, None, limits::PROGRAM, limits::PROXY_LISTING).await;
    let whole = |text: &str| (text.len() as u64) < limits::PROXY_LISTING;
    let table = list(&["--stateless", "--terse", "list", "table", "ip", ruleset::TABLE]).await?;
    let mut fits = whole(&table);
    let mut maps = String::new();
    // One by one: nft finds none of them when it is asked for several at once.
    for map in expected.elements.keys() {
        let listing = list(&["list", "map", "ip", ruleset::TABLE, map]).await?;
        fits &= whole(&listing);
        maps += &listing;
    }
    Ok(fits.then(|| Shape::read(&table, &maps)))
}

/// UDP has no end of a connection: entries towards endpoints that are gone would be used for ever.
async fn forget_connections(stale: &[Stale]) {
    for stale in stale {
        let args = forgetting(stale);
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        match program::run("conntrack", &args, None, limits::PROGRAM).await {
            Ok(_) => (),
            // It exits with 1 when there was nothing to delete; where it is not installed, entries time out.
            Err(error) => tracing::trace!(error = %Chain(&error), "no connection forgotten"),
        }
    }
}

/// Arguments of `conntrack`. Answers come from the endpoint, whatever was asked.
fn forgetting(stale: &Stale) -> Vec<String> {
    let mut args = ["-D", "-p", "udp", "--orig-port-dst"].map(str::to_owned).to_vec();
    args.push(stale.port.to_string());
    for (option, address) in [("--orig-dst", stale.address), ("--reply-src", stale.endpoint)] {
        args.extend(address.into_iter().flat_map(|address| [option.to_owned(), address.to_string()]));
    }
    args
}

/// Removes the table: for a worker that leaves for good.
///
/// # Errors
/// [`ProgramError`] if nft cannot do it.
pub async fn remove() -> Result<(), ProgramError> {
    let text = format!("add table ip {0}\ndelete table ip {0}\n", ruleset::TABLE);
    program::run("nft", &["-f", "-"], Some(text), limits::PROGRAM).await.map(|_| ())
}

#[cfg(test)]
mod tests;
