//! `pods/log`: a container's output as plain text, from the node, as it comes.

use bytes::Bytes;
use futures::{Stream, stream};
use http::HeaderValue;
use pintle_api::status::{FieldError, Path, Status};
use pintle_base::clock;
use pintle_proto::node_v1::{Frame, Logs, open};

use super::target::Target;
use super::{Ask, Reach, Way, forward};
use crate::node_session::AgentStream;
use crate::request::Query;
use crate::types::{Body, Request, Response};

/// An error of the agent that comes this soon is still told with its code; later the answer has begun.
const FIRST_WORD: std::time::Duration = std::time::Duration::from_millis(200);

const STDOUT: u32 = 1;
const STDERR: u32 = 2;
const ERROR: u32 = 3;

pub(super) async fn serve(reach: &Reach, ask: Ask, request: Request) -> Result<Response, Status> {
    let logs = options(&ask.query).map_err(|errors| Status::invalid("", "PodLogOptions", &ask.info.name, &errors))?;
    let wanted = channels(&ask.query)?;
    let target = Target::find(reach, &ask).await?;
    let container = target.container(&ask)?;
    if target.node.is_empty() {
        return Ok(text_response(Body::empty()));
    }
    let mut open = target.open(&ask, container);
    open.kind = Some(open::Kind::Logs(logs));
    match reach.way(&target.node, open, ask.forwarded).await? {
        Way::Through(peer) => forward::pass(&reach.config, &peer, &ask.user, request).await,
        Way::Here(agent) => answer(agent, wanted).await,
    }
}

async fn answer(mut agent: AgentStream, wanted: &'static [u32]) -> Result<Response, Status> {
    let mut first = None;
    if let Ok(Ok(Some(frame))) = clock::timeout(FIRST_WORD, agent.inbound.message()).await {
        if frame.channel == ERROR
            && let Some(status) = failure(&frame)
        {
            return Err(status);
        }
        first = Some(frame);
    }
    Ok(text_response(Body::from_stream(output(agent, first, wanted))))
}

/// The agent's error, if the frame holds one.
fn failure(frame: &Frame) -> Option<Status> {
    let status: Status = serde_json::from_slice(&frame.data).ok()?;
    (status.status == "Failure").then_some(status)
}

fn output(
    agent: AgentStream,
    first: Option<Frame>,
    wanted: &'static [u32],
) -> impl Stream<Item = Result<Bytes, std::io::Error>> + Send {
    // `agent.outbound` is held for as long as the text flows: its end tells the agent that the reader has gone.
    stream::unfold((agent, first), move |(mut agent, first)| async move {
        let mut frame = first;
        loop {
            match frame.take() {
                Some(frame) if wanted.contains(&frame.channel) && !frame.data.is_empty() => {
                    return Some((Ok(frame.data), (agent, None)));
                }
                Some(frame) if frame.channel == ERROR => return None,
                _ => (),
            }
            match agent.inbound.message().await {
                Ok(Some(next)) => frame = Some(next),
                Ok(None) => return None,
                Err(status) => {
                    let error = std::io::Error::other(format!("the node ended the log: {:?}", status.code()));
                    return Some((Err(error), (agent, None)));
                }
            }
        }
    })
}

fn text_response(body: Body) -> Response {
    let mut response = http::Response::new(body);
    response.headers_mut().insert(http::header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
    response
}

/// `stream=` chooses one of the two outputs.
fn channels(query: &Query) -> Result<&'static [u32], Status> {
    match query.text("stream") {
        "" | "All" => Ok(&[STDOUT, STDERR]),
        "Stdout" => Ok(&[STDOUT]),
        "Stderr" => Ok(&[STDERR]),
        other => {
            let error = FieldError::not_supported(&Path::new("stream"), other, &["All", "Stderr", "Stdout"]);
            Err(Status::invalid("", "PodLogOptions", "", &[error]))
        }
    }
}

fn options(query: &Query) -> Result<Logs, Vec<FieldError>> {
    let mut errors = Vec::new();
    let mut number = |name: &str, least: i64, why: &str| {
        let text = query.text(name);
        if text.is_empty() {
            return None;
        }
        match text.parse::<i64>() {
            Ok(value) if value >= least => Some(value),
            Ok(value) => {
                errors.push(FieldError::invalid(&Path::new(name), value, why));
                None
            }
            Err(_) => {
                errors.push(FieldError::invalid(&Path::new(name), text, "must be a whole number"));
                None
            }
        }
    };
    let since_seconds = number("sinceSeconds", 1, "must be greater than 0");
    let tail_lines = number("tailLines", 0, "must be greater than or equal to 0");
    let limit_bytes = number("limitBytes", 1, "must be greater than 0");
    let since_time = query.text("sinceTime").to_owned();
    if !since_time.is_empty() && since_time.parse::<jiff::Timestamp>().is_err() {
        errors.push(FieldError::invalid(&Path::new("sinceTime"), since_time.as_str(), "must be a time in RFC 3339"));
    }
    if !since_time.is_empty() && !query.text("sinceSeconds").is_empty() {
        let why = "at most one of `sinceTime` or `sinceSeconds` may be specified";
        errors.push(FieldError::forbidden(&Path::new(""), why));
    }
    if !errors.is_empty() {
        return Err(errors);
    }
    Ok(Logs {
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        timestamps: query.flag("timestamps"),
        since_seconds,
        since_time,
        tail_lines,
        limit_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_read_and_checked() {
        let read = |query: &str| options(&Query::parse(Some(query)));
        let logs = read("follow=true&tailLines=0&timestamps=true&sinceSeconds=5&limitBytes=10").expect("options");
        assert_eq!(
            (logs.follow, logs.tail_lines, logs.since_seconds, logs.limit_bytes),
            (true, Some(0), Some(5), Some(10))
        );
        assert!(read("sinceTime=2026-01-01T00:00:00Z").is_ok());
        for bad in [
            "tailLines=-1",
            "limitBytes=0",
            "sinceSeconds=0",
            "tailLines=x",
            "sinceTime=yesterday",
            "sinceTime=2026-01-01T00:00:00Z&sinceSeconds=5",
            "tailLines=99999999999999999999",
        ] {
            assert!(read(bad).is_err(), "{bad}");
        }
        assert_eq!(channels(&Query::parse(Some("stream=Stderr"))).expect("one"), [STDERR]);
        assert!(channels(&Query::parse(Some("stream=Both"))).is_err());
    }
}
