//! A request that is larger or deeper than what is decoded is refused before any service sees it: with the code and the words of etcd
//! instead of this transport's, since clients tell it apart by them.

use axum::http::HeaderValue;
use axum::response::Response;
use tonic::Code;

const STATUS: &str = "grpc-status";
const MESSAGE: &str = "grpc-message";

/// Rewords the refusal; leaves every other answer as it is.
pub(super) fn reworded(mut response: Response) -> Response {
    let code = response.headers().get(STATUS).map(|code| Code::from_bytes(code.as_bytes()));
    let words = response.headers().get(MESSAGE).and_then(|text| text.to_str().ok());
    let new = match (code, words) {
        (Some(Code::OutOfRange), Some(words)) => too_large(words).map(|words| (Code::ResourceExhausted, words)),
        (Some(Code::Internal), Some(words)) => too_deep(words).map(|words| (Code::InvalidArgument, words)),
        _ => None,
    };
    if let Some((code, words)) = new {
        response.headers_mut().insert(STATUS, HeaderValue::from(code as i32));
        response.headers_mut().insert(MESSAGE, words);
    }
    response
}

/// Takes the two sizes out of an encoded text such as `Error, decoded message length too large: found N bytes, the limit is: M bytes`.
fn too_large(encoded: &str) -> Option<HeaderValue> {
    let text = encoded.replace("%20", " ");
    let (_, sizes) = text.split_once("message length too large: found ")?;
    let (found, limit) = sizes.split_once(" bytes, the limit is: ")?;
    let limit = limit.strip_suffix(" bytes")?;
    let number = |text: &str| text.parse::<u64>().ok();
    let words = format!("grpc: received message larger than max ({} vs. {})", number(found)?, number(limit)?);
    HeaderValue::from_str(&words.replace(' ', "%20")).ok()
}

/// Only transactions can be so deep: some fifty within each other. In etcd it is the number of their operations that ends it, at 128.
fn too_deep(encoded: &str) -> Option<HeaderValue> {
    let refused = encoded.replace("%20", " ").ends_with("recursion limit reached");
    refused.then(|| HeaderValue::from_static("etcdserver:%20too%20many%20operations%20in%20txn%20request"))
}

#[cfg(test)]
mod tests {
    use super::{too_deep, too_large};

    #[track_caller]
    fn check(encoded: &str, want: Option<&str>) {
        let words = too_large(encoded);
        assert_eq!(words.as_ref().and_then(|value| value.to_str().ok()), want);
    }

    #[test]
    fn only_the_refusal_of_a_large_message_is_reworded() {
        let want = Some("grpc:%20received%20message%20larger%20than%20max%20(3%20vs.%202)");
        check(
            "Error,%20decoded%20message%20length%20too%20large:%20found%203%20bytes,%20the%20limit%20is:%202%20bytes",
            want,
        );
        check("Error, decoded message length too large: found 3 bytes, the limit is: 2 bytes", want);
        check("etcdserver: mvcc: required revision has been compacted", None);
        check("message length too large: found x bytes, the limit is: 2 bytes", None);
    }

    #[test]
    fn only_the_refusal_of_a_deep_message_is() {
        assert!(too_deep("failed%20to%20decode%20Protobuf%20message:%20a.b:%20recursion%20limit%20reached").is_some());
        assert!(too_deep("failed to decode Protobuf message: recursion limit reached").is_some());
        assert!(too_deep("failed to decode Protobuf message: a.b: invalid varint").is_none());
    }
}
