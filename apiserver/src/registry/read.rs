//! Get and list, with upstream's rules for resourceVersion, and pages that stay at one revision.
//!
//! A consistent read waits for a read barrier and then for the cache to have reached it (D6); pages after the first
//! come from the cache if the kind has not changed since, else from the store's history.

use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use bytes::Bytes;
use pintle_api::kinds::Kind;
use pintle_api::selector::{Fields, Labels};
use pintle_api::status::{FieldError, Path, Status};
use pintle_proto::etcdserverpb::RangeRequest;
use pintle_store::StoreError;
use serde::{Deserialize, Serialize};

use super::{Registry, not_found};
use crate::cache::{self, Behind, Interest, Object, layout};
use crate::limits;
use crate::request::Query;
use crate::storage::status_of;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VersionMatch {
    #[default]
    Unset,
    NotOlderThan,
    Exact,
}

/// What a list, watch or deletecollection selects.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    pub namespace: String,
    pub labels: Labels,
    pub fields: Fields,
    pub limit: usize,
    pub continue_token: String,
    pub resource_version: String,
    pub version_match: VersionMatch,
}

/// One page of a list.
#[derive(Clone, Debug, Default)]
pub struct Page {
    /// Revision the whole list is read at.
    pub revision: i64,
    pub objects: Vec<Arc<Object>>,
    /// Empty on the last page.
    pub continue_token: String,
    /// Objects after this page; only known without selectors.
    pub remaining: Option<i64>,
}

/// Where a list goes on. Opaque to clients; the form is upstream's.
#[derive(Debug, Serialize, Deserialize, PartialEq)]
struct Token {
    v: String,
    /// Revision of the list; -1 for "the newest".
    rv: i64,
    /// Local key the next page starts after, with a NUL behind it.
    start: String,
}

impl ListOptions {
    pub fn in_namespace(namespace: &str) -> Self {
        Self { namespace: namespace.into(), ..Self::default() }
    }

    /// # Errors
    /// 400 for selectors and numbers that cannot be read, 422 for a version match that makes no sense.
    pub fn of_query(kind: &'static Kind, namespace: &str, query: &Query, watching: bool) -> Result<Self, Status> {
        let labels = Labels::parse(query.text("labelSelector"))
            .map_err(|error| Status::bad_request(format!("unable to parse requirement: {error}")))?;
        let version_match = match query.text("resourceVersionMatch") {
            "" => VersionMatch::Unset,
            "NotOlderThan" => VersionMatch::NotOlderThan,
            "Exact" => VersionMatch::Exact,
            other => {
                return Err(bad_match(FieldError::not_supported(&match_path(), other, &["Exact", "NotOlderThan", ""])));
            }
        };
        let options = Self {
            namespace: namespace.into(),
            labels,
            fields: Fields::parse(kind, query.text("fieldSelector"))?,
            limit: usize::try_from(query.number("limit")?.unwrap_or(0)).unwrap_or(0),
            continue_token: query.text("continue").into(),
            resource_version: query.text("resourceVersion").into(),
            version_match,
        };
        if !watching {
            options.check_match()?;
        }
        options.version()?;
        Ok(options)
    }

    fn check_match(&self) -> Result<(), Status> {
        let forbidden = |why: &str| Err(bad_match(FieldError::forbidden(&match_path(), why)));
        match (self.version_match, self.resource_version.as_str(), self.continue_token.is_empty()) {
            (VersionMatch::Unset, ..) => Ok(()),
            (_, _, false) => forbidden("resourceVersionMatch is forbidden when continue is provided"),
            (_, "", _) => forbidden("resourceVersionMatch is forbidden unless resourceVersion is provided"),
            (VersionMatch::Exact, "0", _) => {
                forbidden("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"")
            }
            _ => Ok(()),
        }
    }

    /// The asked revision; 0 if none or "any".
    pub fn version(&self) -> Result<i64, Status> {
        match self.resource_version.as_str() {
            "" => Ok(0),
            text => text.parse::<i64>().ok().filter(|version| *version >= 0).ok_or_else(|| {
                Status::bad_request(format!(
                    "Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
                ))
            }),
        }
    }

    /// The narrowest part of the kind that holds everything selected.
    pub fn interest(&self, kind: &'static Kind) -> Interest {
        let namespace = match self.namespace.as_str() {
            "" => self.fields.exact("metadata.namespace").unwrap_or(""),
            namespace => namespace,
        };
        if let Some(name) = self.fields.exact("metadata.name")
            && (!kind.namespaced || !namespace.is_empty())
        {
            return Interest::Object(layout::local_key(if kind.namespaced { namespace } else { "" }, name).into());
        }
        if let (true, Some(node)) = (super::strategy::is_pod(kind), self.fields.exact("spec.nodeName"))
            && !node.is_empty()
        {
            return Interest::Node(node.into());
        }
        if namespace.is_empty() { Interest::All } else { Interest::Namespace(namespace.into()) }
    }

    pub fn selects_all(&self) -> bool {
        self.labels.is_everything() && self.fields.is_everything()
    }

    pub fn matches(&self, object: &Object) -> bool {
        (self.namespace.is_empty() || object.namespace() == self.namespace)
            && (self.labels.is_everything() || self.labels.matches(object.view()))
            && (self.fields.is_everything() || self.fields.matches(object.view()))
    }
}

fn match_path() -> Path {
    Path::new("resourceVersionMatch")
}

fn bad_match(error: FieldError) -> Status {
    Status::invalid("meta.k8s.io", "ListOptions", "", &[error])
}

impl Registry {
    /// Reads one object. `resource_version` "" is the newest, "0" whatever is at hand, N not older than N.
    ///
    /// # Errors
    /// 404; 504 if this server is too far behind.
    pub async fn get_at(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        resource_version: &str,
    ) -> Result<Arc<Object>, Status> {
        let options = ListOptions { resource_version: resource_version.into(), ..ListOptions::default() };
        self.reach(&options).await?;
        self.cache().get(kind, namespace, name).ok_or_else(|| not_found(kind, name))
    }

    /// Reads the newest version of one object.
    ///
    /// # Errors
    /// As [`Registry::get_at`].
    pub async fn get(&self, kind: &'static Kind, namespace: &str, name: &str) -> Result<Arc<Object>, Status> {
        self.get_at(kind, namespace, name, "").await
    }

    /// Waits until the cache may answer for the revision that `options` ask for.
    pub(crate) async fn reach(&self, options: &ListOptions) -> Result<(), Status> {
        let asked = match options.resource_version.as_str() {
            "" => self.inner.store.read_barrier().await.map_err(|error| status_of(&error))?,
            _ => options.version()?,
        };
        match self.cache().wait(asked, limits::CACHE_WAIT).await {
            Ok(_) => Ok(()),
            Err(Behind { current: 0, .. }) => Err(Status::too_many_requests("storage is (re)initializing", 1)),
            Err(Behind { asked, current }) => {
                Err(Status::too_large_resource_version(revision(asked), revision(current)))
            }
        }
    }

    /// Lists a kind.
    ///
    /// # Errors
    /// 400 for a bad token, 410 for a revision that is compacted, 504 if this server is too far behind.
    pub async fn list(&self, kind: &'static Kind, options: &ListOptions) -> Result<Page, Status> {
        if !options.continue_token.is_empty() {
            return self.next_page(kind, options).await;
        }
        let version = options.version()?;
        let exact = match options.version_match {
            VersionMatch::Exact => true,
            VersionMatch::NotOlderThan => false,
            VersionMatch::Unset => options.limit > 0 && version > 0,
        };
        self.reach(options).await?;
        if exact {
            return self.page_at(kind, options, version, None).await;
        }
        let interest = options.interest(kind);
        let snapshot = self.cache().snapshot(kind, &interest, None);
        let snapshot = snapshot.ok_or_else(|| Status::method_not_supported(kind.group, kind.resource, "list"))?;
        Ok(cut(options, snapshot.revision, snapshot.objects))
    }

    async fn next_page(&self, kind: &'static Kind, options: &ListOptions) -> Result<Page, Status> {
        if !matches!(options.resource_version.as_str(), "" | "0") {
            return Err(Status::bad_request("specifying resource version is not allowed when using continue"));
        }
        let token = Token::decode(&options.continue_token)
            .ok_or_else(|| Status::bad_request("continue key is not valid: illegal base64 or JSON"))?;
        let after = token.start.trim_end_matches('\0');
        if token.rv > 0 {
            return self.page_at(kind, options, token.rv, Some(after)).await;
        }
        // An inconsistent continuation: the rest as it is now.
        self.reach(&ListOptions::default()).await?;
        let snapshot = self.cache().snapshot(kind, &options.interest(kind), Some(after));
        let snapshot = snapshot.ok_or_else(|| Status::method_not_supported(kind.group, kind.resource, "list"))?;
        Ok(cut(options, snapshot.revision, snapshot.objects))
    }

    /// A page as of `version`, after local key `after`.
    async fn page_at(
        &self,
        kind: &'static Kind,
        options: &ListOptions,
        version: i64,
        after: Option<&str>,
    ) -> Result<Page, Status> {
        if let Some(snapshot) = self.cache().snapshot_at(kind, &options.interest(kind), after, version) {
            return Ok(cut(options, version, snapshot.objects));
        }
        let expired = || match after {
            Some(after) => Status::expired_continue(Token::encode(-1, after)),
            None => Status::expired(format!("The provided resource version {version} is too old")),
        };
        let start = after.map_or_else(
            || layout::store_key(kind, &options.namespace, ""),
            |after| format!("{}/{after}\0", kind.storage_prefix),
        );
        let end = match options.namespace.as_str() {
            "" => format!("{}0", kind.storage_prefix),
            namespace => format!("{}/{namespace}0", kind.storage_prefix),
        };
        self.history(options, version, (start.into(), end.into())).await.map_err(|error| match error {
            StoreError::Compacted { .. } => expired(),
            StoreError::FutureRevision => Status::too_large_resource_version(revision(version), 0),
            other => status_of(&other),
        })
    }

    /// Reads from the store's history until a page is full.
    async fn history(
        &self,
        options: &ListOptions,
        version: i64,
        (mut key, end): (Bytes, Bytes),
    ) -> Result<Page, StoreError> {
        let want = if options.limit == 0 { usize::MAX } else { options.limit.min(limits::LIST_PAGE) };
        let mut page = Page { revision: version, ..Page::default() };
        loop {
            let request = RangeRequest {
                key: key.clone(),
                range_end: end.clone(),
                revision: version,
                limit: limits::PAGE_KEYS,
                ..RangeRequest::default()
            };
            let response = self.inner.store.range(request).await?;
            let mut seen = 0;
            for kv in &response.kvs {
                seen += 1;
                page.objects.extend(cache::feed::object(kv).filter(|object| options.matches(object)));
                if page.objects.len() == want {
                    break;
                }
            }
            let rest = response.count - seen;
            let Some(last) = response.kvs.get(usize::try_from(seen - 1).unwrap_or(usize::MAX)) else { return Ok(page) };
            if page.objects.len() == want && rest > 0 {
                if let Some(object) = page.objects.last() {
                    page.continue_token = Token::encode(version, &object.key);
                }
                page.remaining = options.selects_all().then_some(rest);
                return Ok(page);
            }
            if !response.more {
                return Ok(page);
            }
            key = cache::feed::after(&last.key);
        }
    }
}

fn revision(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

/// Filters a snapshot and cuts it to the limit.
fn cut(options: &ListOptions, revision: i64, objects: Vec<Arc<Object>>) -> Page {
    let total = objects.len();
    let limit = if options.limit == 0 { usize::MAX } else { options.limit };
    let mut page = Page { revision, ..Page::default() };
    let mut seen = 0;
    for object in objects {
        if page.objects.len() == limit {
            // One object more than fits: only now it is known whether anything follows.
            if options.matches(&object) {
                let last = page.objects.last().map_or("", |last| &last.key);
                page.continue_token = Token::encode(revision, last);
                let rest = i64::try_from(total - seen).unwrap_or(i64::MAX);
                page.remaining = options.selects_all().then_some(rest);
                break;
            }
            seen += 1;
            continue;
        }
        seen += 1;
        if options.matches(&object) {
            page.objects.push(object);
        }
    }
    page
}

impl Token {
    fn encode(revision: i64, after: &str) -> String {
        let token = Self { v: "meta.k8s.io/v1".into(), rv: revision, start: format!("{after}\0") };
        BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
    }

    fn decode(text: &str) -> Option<Self> {
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).ok()?;
        let token: Self = serde_json::from_slice(&bytes).ok()?;
        let plausible = token.v == "meta.k8s.io/v1" && token.rv >= -1 && !token.start.contains("..");
        plausible.then_some(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_and_foreign_ones_do_not() {
        let text = Token::encode(7, "default/web");
        assert_eq!(
            Token::decode(&text),
            Some(Token { v: "meta.k8s.io/v1".into(), rv: 7, start: "default/web\0".into() })
        );
        for bad in ["", "x", "e30", "eyJ2IjoiYSIsInJ2IjoxLCJzdGFydCI6IiJ9"] {
            assert_eq!(Token::decode(bad), None, "{bad}");
        }
    }
}
