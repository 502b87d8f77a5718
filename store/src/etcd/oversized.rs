//! A request larger than the transport takes is refused before any service sees it: with the code and the words of etcd's
//! transport instead of this one's, since clients tell it apart by them.

use axum::http::HeaderValue;
use axum::response::Response;
use tonic::Code;

const STATUS: &str = "grpc-status";
const MESSAGE: &str = "grpc-message";

/// Rewords the refusal; leaves every other answer as it is.
pub(super) fn reworded(mut response: Response) -> Response {
    let refused = response.headers().get(STATUS).is_some_and(|code| code.as_bytes() == b"11");
    let words = refused.then(|| response.headers().get(MESSAGE)).flatten().and_then(|text| text.to_str().ok());
    if let Some(words) = words.and_then(reword) {
        response.headers_mut().insert(STATUS, HeaderValue::from(Code::ResourceExhausted as i32));
        response.headers_mut().insert(MESSAGE, words);
    }
    response
}

/// Takes the two sizes out of an encoded text such as `Error, decoded message length too large: found N bytes, the limit is: M bytes`.
fn reword(encoded: &str) -> Option<HeaderValue> {
    let text = encoded.replace("%20", " ");
    let (_, sizes) = text.split_once("message length too large: found ")?;
    let (found, limit) = sizes.split_once(" bytes, the limit is: ")?;
    let limit = limit.strip_suffix(" bytes")?;
    let number = |text: &str| text.parse::<u64>().ok();
    let words = format!("grpc: received message larger than max ({} vs. {})", number(found)?, number(limit)?);
    HeaderValue::from_str(&words.replace(' ', "%20")).ok()
}

#[cfg(test)]
mod tests {
    use super::reword;

    #[track_caller]
    fn check(encoded: &str, want: Option<&str>) {
        let words = reword(encoded);
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
}
