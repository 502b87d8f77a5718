//! Requests for resources: which kind, is the verb served, then the registry, then the answer in the accepted form.

use std::sync::Arc;

use http::StatusCode;
use pintle_api::codec::{self, Encoding};
use pintle_api::kinds::{self, Kind, Subresource};
use pintle_api::selector::Fields;
use pintle_api::status::{FieldError, Path, Status};
use pintle_api::table::Include;
use serde_json::Value;

use super::{Call, Handler, body, delete, scale};
use crate::encode::Form;
use crate::negotiate::{self, Accepted, Format};
use crate::registry::{self, ListOptions, Page, Patch, PatchKind, Target, WriteOptions, Written};
use crate::request::Query;
use crate::types::{Body, Response, VirtualCall};
use crate::watch;

/// Where a request points, after the path was held against the kinds table.
pub(super) struct Place {
    pub kind: &'static Kind,
    pub namespace: String,
    pub name: String,
}

pub(super) async fn serve(handler: &Arc<Handler>, call: Call) -> Result<Response, Status> {
    let info = &call.info;
    let kind = kinds::by_resource(&info.api_group, &info.version, &info.resource).ok_or_else(Status::no_such_path)?;
    let place = place(&call, kind)?;
    if !call.info.subresource.is_empty() {
        let sub = kind.subresource(&call.info.subresource).ok_or_else(Status::no_such_path)?;
        return subresource(handler, call, place, sub).await;
    }
    let verb = call.info.verb.clone();
    if !kind.allows(&verb) {
        return Err(Status::method_not_allowed());
    }
    match verb.as_str() {
        "create" if !kind.is_stored() => virtual_create(handler, call, place, kind).await,
        "create" => create(handler, call, place).await,
        "get" => get(handler, &call, &place).await,
        "list" => list(handler, &call, &place).await,
        "watch" => watch(handler, &call, &place).await,
        "update" => update(handler, &call, &place, "").await,
        "patch" => patch(handler, &call, &place, "").await,
        "delete" => delete::one(handler, &call, &place).await,
        "deletecollection" => delete::collection(handler, &call, &place).await,
        _ => Err(Status::method_not_allowed()),
    }
}

/// Holds scope and name of the path against the kind.
fn place(call: &Call, kind: &'static Kind) -> Result<Place, Status> {
    let info = &call.info;
    // `/namespaces/x` is an object of a cluster-scoped kind, not something inside a namespace.
    let namespace = if kind.resource == "namespaces" && kind.group.is_empty() { "" } else { info.namespace.as_str() };
    let named = matches!(info.verb.as_str(), "get" | "update" | "patch" | "delete") || !info.subresource.is_empty();
    let name = if named || info.verb == "create" { info.name.as_str() } else { "" };
    match (kind.namespaced, namespace.is_empty()) {
        (false, false) => return Err(Status::no_such_path()),
        (true, true) if named => return Err(Status::no_such_path()),
        (true, true) if info.verb == "create" && kind.is_stored() => return Err(Status::method_not_allowed()),
        _ => (),
    }
    if named && name.is_empty() {
        return Err(Status::method_not_allowed());
    }
    if info.verb == "create" && info.subresource.is_empty() && !name.is_empty() && kind.is_stored() {
        return Err(Status::method_not_allowed());
    }
    Ok(Place { kind, namespace: namespace.to_owned(), name: name.to_owned() })
}

/// The form of the answer, from Accept and query.
pub(super) fn form(call: &Call, kind: &'static Kind) -> Result<Form, Status> {
    let accepted = Accepted::of(call.headers(), call.query.flag("pretty"))?;
    let include = call.query.text("includeObject");
    let include = Include::parse(include).ok_or_else(|| {
        let path = Path::new("includeObject");
        let error = FieldError::invalid(&path, include, "must be 'Metadata', 'Object', 'None', or empty");
        Status::invalid("meta.k8s.io", "TableOptions", "", &[error])
    })?;
    Ok(Form { kind, accepted, include, now: registry::now() })
}

pub(super) fn options(call: &Call) -> Result<WriteOptions, Status> {
    WriteOptions::of_request(call.user.clone(), &call.query, call.headers())
}

pub(super) fn written(form: &Form, written: &Written, warnings: &[String]) -> Response {
    let code = if written.created { StatusCode::CREATED } else { StatusCode::OK };
    let mut response = negotiate::bytes_response(code, form.accepted.format.media_type(), form.object(&written.object));
    negotiate::add_warnings(&mut response, warnings);
    negotiate::add_warnings(&mut response, &written.warnings);
    response
}

pub(super) fn value_response(
    call: &Call,
    kind: &'static Kind,
    code: StatusCode,
    value: &Value,
) -> Result<Response, Status> {
    let form = form(call, kind)?;
    Ok(negotiate::bytes_response(code, form.accepted.format.media_type(), form.value(value)))
}

async fn create(handler: &Arc<Handler>, call: Call, place: Place) -> Result<Response, Status> {
    let (form, options) = (form(&call, place.kind)?, options(&call)?);
    let (object, warnings) = body::object(&call, place.kind).await?;
    let result = handler.ctx.registry.create(place.kind, &place.namespace, object, &options).await?;
    Ok(written(&form, &result, &warnings))
}

async fn get(handler: &Arc<Handler>, call: &Call, place: &Place) -> Result<Response, Status> {
    let form = form(call, place.kind)?;
    let version = call.query.text("resourceVersion");
    if !place.kind.is_stored() {
        return Err(Status::not_found(place.kind.group, place.kind.resource, &place.name));
    }
    let object = handler.ctx.registry.get_at(place.kind, &place.namespace, &place.name, version).await?;
    Ok(negotiate::bytes_response(StatusCode::OK, form.accepted.format.media_type(), form.object(&object)))
}

/// What a list or watch selects. Never more than was authorised: where the request was about one name, that name.
fn selection(call: &Call, place: &Place, watching: bool) -> Result<ListOptions, Status> {
    let mut list = ListOptions::of_query(place.kind, &place.namespace, &call.query, watching)?;
    let name = call.info.name.as_str();
    if !name.is_empty() {
        if list.fields.is_everything() {
            list.fields = Fields::named(name);
        } else if list.fields.exact("metadata.name") != Some(name) {
            return Err(Status::bad_request("fieldSelector metadata.name doesn't match requested name"));
        }
    }
    Ok(list)
}

async fn list(handler: &Arc<Handler>, call: &Call, place: &Place) -> Result<Response, Status> {
    let form = form(call, place.kind)?;
    let options = selection(call, place, false)?;
    let page = match place.kind.is_stored() {
        true => handler.ctx.registry.list(place.kind, &options).await?,
        // Kinds that are only ever asked for (component statuses) have no objects here.
        false => Page::default(),
    };
    Ok(negotiate::bytes_response(StatusCode::OK, form.accepted.format.media_type(), form.list(&page)))
}

async fn watch(handler: &Arc<Handler>, call: &Call, place: &Place) -> Result<Response, Status> {
    let mut form = form(call, place.kind)?;
    if form.accepted.format == Format::Yaml {
        form.accepted.format = Format::Json;
    }
    let list = selection(call, place, true)?;
    let options = watch::WatchOptions::of_query(&call.query, &list)?;
    let ctx = &handler.ctx;
    let stop = handler.stop.clone();
    let stream = watch::open(&ctx.registry, &ctx.cache, place.kind, list, options, form, stop).await?;
    let mut response = Response::new(Body::from_stream(stream));
    let media_type = http::HeaderValue::from_static(form.stream_media_type());
    response.headers_mut().insert(http::header::CONTENT_TYPE, media_type);
    response.headers_mut().insert(http::header::CACHE_CONTROL, http::HeaderValue::from_static("no-cache, private"));
    Ok(response)
}

async fn update(handler: &Arc<Handler>, call: &Call, place: &Place, sub: &str) -> Result<Response, Status> {
    let (form, options) = (form(call, place.kind)?, options(call)?);
    let (object, warnings) = body::object(call, place.kind).await?;
    let registry = &handler.ctx.registry;
    let result = registry.update(place.kind, &place.namespace, &place.name, sub, object, &options).await?;
    Ok(written(&form, &result, &warnings))
}

async fn patch(handler: &Arc<Handler>, call: &Call, place: &Place, sub: &str) -> Result<Response, Status> {
    let (form, options) = (form(call, place.kind)?, options(call)?);
    let (patch, validation) = (patch_body(call).await?, body::validation(&call.query)?);
    let target = Target { kind: place.kind, namespace: &place.namespace, name: &place.name, subresource: sub };
    let result = handler.ctx.registry.patch(target, patch, validation, &options).await?;
    Ok(written(&form, &result, &[]))
}

/// The patch of a request; its content type says of which kind.
pub(super) async fn patch_body(call: &Call) -> Result<Patch, Status> {
    let kind = PatchKind::of_media_type(&negotiate::content_type(call.headers()))?;
    check_apply_options(kind, &call.query)?;
    let bytes = body::read(call).await?;
    let encoding = if kind == PatchKind::Apply { Encoding::Yaml } else { Encoding::Json };
    Ok(Patch { kind, body: Arc::new(codec::parse(encoding, &bytes)?), bytes: bytes.len() })
}

fn check_apply_options(kind: PatchKind, query: &Query) -> Result<(), Status> {
    let error = match (kind == PatchKind::Apply, query.text("fieldManager").is_empty(), query.get("force").is_some()) {
        (true, true, _) => FieldError::required(&Path::new("fieldManager"), "is required for apply patch"),
        (false, _, true) => FieldError::forbidden(&Path::new("force"), "may not be specified for non-apply patch"),
        _ => return Ok(()),
    };
    Err(Status::invalid("meta.k8s.io", "PatchOptions", "", &[error]))
}

async fn subresource(
    handler: &Arc<Handler>,
    call: Call,
    place: Place,
    sub: &'static Subresource,
) -> Result<Response, Status> {
    let verb = call.info.verb.clone();
    let streamed = matches!(sub.name, "log" | "exec" | "attach" | "portforward" | "proxy");
    if !sub.allows(&verb) {
        return Err(Status::method_not_allowed());
    }
    match (sub.name, verb.as_str()) {
        _ if streamed => Ok(handler.ctx.hooks().streams.connect(place.kind, call.into_request()).await),
        ("scale", _) => scale::serve(handler, call, place).await,
        ("status" | "finalize" | "approval" | "ephemeralcontainers" | "resize", "get") => {
            get(handler, &call, &place).await
        }
        ("status" | "finalize" | "approval" | "ephemeralcontainers" | "resize", "update") => {
            update(handler, &call, &place, sub.name).await
        }
        ("status" | "finalize" | "approval" | "ephemeralcontainers" | "resize", "patch") => {
            patch(handler, &call, &place, sub.name).await
        }
        (_, "create") => {
            let body_kind = sub.body().ok_or_else(Status::no_such_path)?;
            virtual_create(handler, call, place, body_kind).await
        }
        _ => Err(Status::method_not_allowed()),
    }
}

/// A POST that is answered with an object but stores none of its own.
async fn virtual_create(
    handler: &Arc<Handler>,
    call: Call,
    place: Place,
    body_kind: &'static Kind,
) -> Result<Response, Status> {
    let options = options(&call)?;
    form(&call, body_kind)?;
    let (object, warnings) = body::object(&call, body_kind).await?;
    let virtual_call = VirtualCall {
        kind: place.kind,
        user: call.user.clone(),
        info: call.info.clone(),
        dry_run: options.dry_run,
        body: object,
        fence: options.fence,
    };
    let (code, value) = handler.ctx.hooks().virtuals.create(virtual_call).await?;
    let mut response = value_response(&call, body_kind, code, &value)?;
    negotiate::add_warnings(&mut response, &warnings);
    Ok(response)
}
