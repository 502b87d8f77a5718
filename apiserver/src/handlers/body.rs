//! Reads and decodes request bodies: bounded, typed by the path, strict as the client asked.

use axum::body::to_bytes;
use bytes::Bytes;
use pintle_api::codec::{self, FieldValidation};
use pintle_api::kinds::Kind;
use pintle_api::status::Status;
use serde_json::Value;

use super::Call;
use crate::limits;
use crate::negotiate;
use crate::request::Query;

/// # Errors
/// 413 above [`limits::BODY_BYTES`], 400 if the client broke off.
pub async fn read(call: &Call) -> Result<Bytes, Status> {
    let declared = call.headers().get(http::header::CONTENT_LENGTH);
    let declared = declared.and_then(|value| value.to_str().ok()).and_then(|text| text.parse::<usize>().ok());
    if declared.is_some_and(|length| length > limits::BODY_BYTES) {
        return Err(Status::too_large(limits::BODY_BYTES));
    }
    to_bytes(call.take_body(), limits::BODY_BYTES).await.map_err(|error| {
        let source = std::error::Error::source(&error);
        match source.is_some_and(|source| source.is::<http_body_util::LengthLimitError>()) {
            true => Status::too_large(limits::BODY_BYTES),
            false => Status::bad_request("the request body could not be read"),
        }
    })
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
