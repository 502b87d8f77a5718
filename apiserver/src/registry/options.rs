//! What accompanies a write: who, whether for real, under which leadership; and how to delete.

use http::HeaderMap;
use pintle_api::status::Status;
use serde_json::Value;

use crate::request::Query;
use crate::types::UserInfo;

/// Request header that carries the Raft term a leader's write was made in (I9).
pub const FENCE_HEADER: &str = "pintle-fence";

#[derive(Clone, Debug)]
pub struct WriteOptions {
    pub user: UserInfo,
    pub dry_run: bool,
    pub fence: Option<u64>,
    pub field_manager: String,
}

impl WriteOptions {
    /// For this server's own writes.
    pub fn internal() -> Self {
        Self { user: UserInfo::internal(), dry_run: false, fence: None, field_manager: "pintle".into() }
    }

    /// For this server's own writes that are only right while the leadership of `term` lasts.
    pub fn fenced(term: u64) -> Self {
        Self { fence: Some(term), ..Self::internal() }
    }

    /// # Errors
    /// 400 for a `dryRun` other than `All`, or a fence that is no number.
    pub fn of_request(user: UserInfo, query: &Query, headers: &HeaderMap) -> Result<Self, Status> {
        let fence = match headers.get(FENCE_HEADER) {
            None => None,
            Some(value) => {
                let term = value.to_str().ok().and_then(|text| text.trim().parse().ok());
                Some(term.ok_or_else(|| Status::bad_request("header Pintle-Fence is not a number"))?)
            }
        };
        let dry_run = dry_run(query.all("dryRun"))?;
        Ok(Self { user, dry_run, fence, field_manager: query.text("fieldManager").chars().take(128).collect() })
    }
}

fn dry_run<'a>(values: impl Iterator<Item = &'a str>) -> Result<bool, Status> {
    let mut dry = false;
    for value in values.filter(|value| !value.is_empty()) {
        if value != "All" {
            return Err(Status::bad_request(format!(
                "dryRun: Unsupported value: {value:?}: supported values: \"All\""
            )));
        }
        dry = true;
    }
    Ok(dry)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    Orphan,
    Background,
    Foreground,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeleteOptions {
    pub grace: Option<i64>,
    pub uid: Option<String>,
    pub resource_version: Option<String>,
    pub propagation: Option<Propagation>,
    pub dry_run: bool,
}

impl DeleteOptions {
    /// Reads the query parameters, then lets a `DeleteOptions` body (if any) take precedence.
    ///
    /// # Errors
    /// 400 for values that do not exist.
    pub fn parse(query: &Query, body: Option<&Value>) -> Result<Self, Status> {
        let mut options = Self {
            grace: query.number("gracePeriodSeconds")?,
            propagation: propagation(query.get("propagationPolicy"), query.get("orphanDependents"))?,
            dry_run: dry_run(query.all("dryRun"))?,
            ..Self::default()
        };
        let Some(body) = body else { return options.checked() };
        let text = |pointer: &str| body.pointer(pointer).and_then(Value::as_str);
        if let Some(grace) = body.get("gracePeriodSeconds").filter(|grace| !grace.is_null()) {
            options.grace =
                Some(grace.as_i64().ok_or_else(|| Status::bad_request("gracePeriodSeconds is not a number"))?);
        }
        let orphan = body.get("orphanDependents").and_then(Value::as_bool).map(|orphan| orphan.to_string());
        options.propagation = propagation(text("/propagationPolicy"), orphan.as_deref())?.or(options.propagation);
        options.uid = text("/preconditions/uid").map(str::to_owned);
        options.resource_version = text("/preconditions/resourceVersion").map(str::to_owned);
        let values = body.get("dryRun").and_then(Value::as_array).into_iter().flatten();
        options.dry_run |= dry_run(values.map(|value| value.as_str().unwrap_or("?")))?;
        options.checked()
    }

    fn checked(self) -> Result<Self, Status> {
        match self.grace {
            Some(grace) if grace < 0 && grace != -1 => {
                Err(Status::bad_request("gracePeriodSeconds: Invalid value: must be non-negative"))
            }
            _ => Ok(self),
        }
    }
}

fn propagation(policy: Option<&str>, orphan: Option<&str>) -> Result<Option<Propagation>, Status> {
    match (policy.filter(|policy| !policy.is_empty()), orphan) {
        (Some(_), Some(_)) => Err(Status::bad_request("orphanDependents and propagationPolicy may not both be set")),
        (Some("Orphan"), None) => Ok(Some(Propagation::Orphan)),
        (Some("Background"), None) => Ok(Some(Propagation::Background)),
        (Some("Foreground"), None) => Ok(Some(Propagation::Foreground)),
        (Some(other), None) => Err(Status::bad_request(format!(
            "propagationPolicy: Unsupported value: {other:?}: supported values: \"Foreground\", \"Background\", \
             \"Orphan\", \"nil\""
        ))),
        (None, Some("true" | "1")) => Ok(Some(Propagation::Orphan)),
        (None, Some(_)) => Ok(Some(Propagation::Background)),
        (None, None) => Ok(None),
    }
}
