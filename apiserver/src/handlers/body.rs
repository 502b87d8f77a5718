//! Reads and decodes request bodies: bounded, typed by the path, strict as the client asked.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use pintle_api::codec::{self, FieldValidation};
use pintle_api::kinds::Kind;
use pintle_api::status::Status;
use serde_json::Value;

use super::Call;
use crate::limits;
use crate::negotiate;
use crate::request::Query;

/// Reads a body. One that is too long is read on for a while and thrown away: many clients look at the answer only
/// after they have sent everything.
///
/// # Errors
/// 413 above [`limits::BODY_BYTES`], 400 if the client broke off.
pub async fn read(call: &Call) -> Result<Bytes, Status> {
    let mut body = call.take_body();
    let (mut kept, mut seen) = (BytesMut::new(), 0);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|_| Status::bad_request("the request body could not be read"))?;
        let Ok(data) = frame.into_data() else { continue };
        seen += data.len();
        if seen <= limits::BODY_BYTES {
            kept.extend_from_slice(&data);
        } else if seen > limits::BODY_DRAIN_BYTES {
            break;
        }
    }
    if seen > limits::BODY_BYTES { Err(Status::too_large(limits::BODY_BYTES)) } else { Ok(kept.freeze()) }
}

/// # Errors
/// 400 for a `fieldValidation` that does not exist.
pub fn validation(query: &Query) -> Result<FieldValidation, Status> {
    let word = query.text("fieldValidation");
    FieldValidation::parse(word).ok_or_else(|| {
        Status::bad_request(format!(
            "fieldValidation: Unsupported value: {word:?}: supported values: \"Ignore\", \"Strict\", \"Warn\""
        ))
    })
}

/// An object of `kind` and the decoder's warnings.
///
/// # Errors
/// 415, 413, 400 as the codec says.
pub async fn object(call: &Call, kind: &'static Kind) -> Result<(Value, Vec<String>), Status> {
    let validation = validation(&call.query)?;
    let content_type = negotiate::content_type(call.headers());
    let bytes = read(call).await?;
    let decoded = codec::decode(kind, Some(&content_type), &bytes, validation)?;
    Ok((decoded.object, decoded.warnings))
}
