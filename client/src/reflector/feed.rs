//! Feeds a reflector from the server: kube's watcher, told when to start over.
//!
//! kube's watcher resumes at its last resource version by itself. It is started anew only when that version is compacted
//! (410), and with paged lists when the server does not know streamed ones.

use std::collections::BTreeMap;
use std::pin::pin;

use futures::StreamExt;
use kube::Api;
use kube::api::ListParams;
use kube::runtime::watcher;
use pintle_base::backoff::Backoff;
use pintle_base::clock;
use pintle_base::error::Chain;

use super::{Reflected, SharedReflector};
use crate::object::resource_version;
use crate::{Key, limits};

/// Which objects of a kind are reflected; everything by default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selection {
    pub labels: Option<String>,
    pub fields: Option<String>,
}

impl Selection {
    pub fn all() -> Self {
        Self::default()
    }

    /// Objects that match a field selector, such as `spec.nodeName=worker-1`.
    pub fn fields(selector: impl Into<String>) -> Self {
        Self { fields: Some(selector.into()), ..Self::default() }
    }

    fn config(&self, streaming: bool) -> watcher::Config {
        let mut config = watcher::Config::default().page_size(limits::LIST_PAGE);
        config.label_selector.clone_from(&self.labels);
        config.field_selector.clone_from(&self.fields);
        if streaming { config.streaming_lists() } else { config }
    }
}

/// What to do about an error of the watcher.
#[derive(Debug, PartialEq, Eq)]
enum Remedy {
    /// The watcher resumes by itself.
    Wait,
    StartOver,
    /// The server does not stream lists.
    UsePages,
}

pub(super) async fn run<K: Reflected>(client: kube::Client, selection: Selection, reflector: SharedReflector<K>) {
    let api: Api<K> = Api::all(client);
    let mut streaming = true;
    let mut backoff = Backoff::new(limits::RELIST_FIRST, limits::RELIST_MAX);
    loop {
        let remedy = follow(&api, selection.config(streaming), &reflector, &mut backoff).await;
        if remedy == Remedy::UsePages {
            streaming = false;
        }
        tracing::info!(kind = %K::kind(&()), streaming, "listing anew");
        clock::sleep(backoff.next_delay()).await;
    }
}

/// Follows one watcher until it has to be replaced.
async fn follow<K: Reflected>(
    api: &Api<K>,
    config: watcher::Config,
    reflector: &SharedReflector<K>,
    backoff: &mut Backoff,
) -> Remedy {
    let mut events = pin!(watcher::watcher(api.clone(), config));
    let mut listed = Vec::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                backoff.reset();
                feed(reflector, &mut listed, event);
            }
            Err(error) => match remedy(&error) {
                Remedy::Wait => {
                    tracing::debug!(kind = %K::kind(&()), error = %Chain(&error), "watch interrupted");
                    clock::sleep(backoff.next_delay()).await;
                }
                remedy => return remedy,
            },
        }
    }
    Remedy::StartOver
}

fn feed<K: Reflected>(reflector: &SharedReflector<K>, listed: &mut Vec<K>, event: watcher::Event<K>) {
    // Who set which field is of no use to a reader, and often half of the object.
    let event = event.modify(|object| object.meta_mut().managed_fields = None);
    match event {
        watcher::Event::Init => {
            // Costs the server work in proportion to the kind; must not happen when a watch merely moves to another server.
            tracing::info!(kind = %K::kind(&()), "listing");
            listed.clear();
        }
        watcher::Event::InitApply(object) => listed.push(object),
        watcher::Event::InitDone => reflector.replace(std::mem::take(listed)),
        watcher::Event::Apply(object) => reflector.apply(object),
        watcher::Event::Delete(object) => reflector.remove(object),
    }
}

fn remedy(error: &watcher::Error) -> Remedy {
    let api_error = |error: &kube::Error| match error {
        kube::Error::Api(status) => Some(status.code),
        _ => None,
    };
    match error {
        watcher::Error::WatchStartFailed(source) => match api_error(source) {
            Some(410) => Remedy::StartOver,
            Some(400 | 422) => Remedy::UsePages,
            _ => Remedy::Wait,
        },
        // kube starts over by itself after a 410 inside the stream.
        watcher::Error::NoResourceVersion
        | watcher::Error::WatchError(_)
        | watcher::Error::InitialListFailed(_)
        | watcher::Error::WatchFailed(_) => Remedy::Wait,
    }
}

/// Resolves once `reflector` knows at least what a consistent list, begun now, shows.
///
/// A new leader calls this before it decides anything: its cache may be behind the last writes of its predecessor.
pub(super) async fn catch_up<K: Reflected>(
    client: kube::Client,
    selection: &Selection,
    reflector: &SharedReflector<K>,
) {
    let api: Api<K> = Api::all(client);
    let mut backoff = Backoff::new(limits::RELIST_FIRST, limits::RELIST_MAX);
    let (listed, version) = loop {
        match list_versions(&api, selection).await {
            Ok(list) => break list,
            Err(error) => {
                tracing::warn!(kind = %K::kind(&()), error = %Chain(&error), "consistent list failed, will retry");
                clock::sleep(backoff.next_delay()).await;
            }
        }
    };
    let mut changes = reflector.changes();
    while !reflector.covers(&listed, version) {
        changes.changed().await;
    }
}

async fn list_versions<K: Reflected>(
    api: &Api<K>,
    selection: &Selection,
) -> Result<(BTreeMap<Key, u64>, u64), kube::Error> {
    let mut params = ListParams { limit: Some(limits::LIST_PAGE), ..ListParams::default() };
    params.label_selector.clone_from(&selection.labels);
    params.field_selector.clone_from(&selection.fields);
    let (mut versions, mut at) = (BTreeMap::new(), 0);
    loop {
        let page = api.list_metadata(&params).await?;
        if at == 0 {
            at = page.metadata.resource_version.as_deref().and_then(|version| version.parse().ok()).unwrap_or(0);
        }
        versions.extend(page.items.iter().map(|item| (Key::of(&item.metadata), resource_version(&item.metadata))));
        params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        if params.continue_token.is_none() {
            return Ok((versions, at));
        }
    }
}

#[cfg(test)]
mod tests;
