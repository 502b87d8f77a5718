//! `watch`: changes as they come, printed or handed to a command, over losses of connections and members.
//!
//! Always holds: after a loss it goes on behind the last revision it has shown, so that nothing is shown twice or left out.

use std::ffi::OsString;
use std::io::BufRead;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use pintle_proto::etcdserverpb::watch_client::WatchClient;
use pintle_proto::etcdserverpb::watch_request::RequestUnion;
use pintle_proto::etcdserverpb::{WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse};
use tokio::sync::{broadcast, mpsc};
use tonic::Status;

use super::client::{CallError, Client, lost, told};
use super::grammar::{WatchArgs, WatchLine};
use super::print::{self, Answer, Printer};
use super::{Context, Done, Failure, bytes, go, parse, txn};

/// Requests under way on one stream: it is created, and progress is asked for by hand.
const REQUESTS: usize = 16;

const AGAIN: Duration = Duration::from_millis(100);

const MANY: &str = "bad number of arguments";

pub async fn run(context: &Context, args: WatchArgs) -> Done {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    let (key, end) = (variable("ETCDCTL_WATCH_KEY"), variable("ETCDCTL_WATCH_RANGE_END"));
    if let (None, Some(end)) = (&key, &end) {
        let end = go::quote(end.as_encoded_bytes());
        return Err(Failure::bad_args(format!("ETCDCTL_WATCH_KEY is empty but got ETCDCTL_WATCH_RANGE_END={end}")));
    }
    let range: Vec<OsString> = key.into_iter().chain(end).collect();
    let client = Arc::new(context.client().await?);
    let (progress, _) = broadcast::channel(REQUESTS);
    if args.interactive {
        return interactive(&client, context.printer, &range, &progress).await;
    }
    let last = std::env::args_os().next_back();
    let separated = last.is_some_and(|last| last == "--") || !args.exec.is_empty();
    let watch = Watch::read(args, &range, separated)?;
    watch.run(&client, context.printer, progress.subscribe()).await?;
    Err(Failure::interrupted("watch is canceled by the server"))
}

/// Reads `watch` and `progress` lines until standard input ends.
async fn interactive(
    client: &Arc<Client>,
    printer: Printer,
    range: &[OsString],
    progress: &broadcast::Sender<()>,
) -> Done {
    let (lines, mut read) = mpsc::channel(1);
    std::thread::spawn(move || {
        loop {
            let mut line = Vec::new();
            let length = std::io::stdin().lock().read_until(b'\n', &mut line);
            let whole = length.is_ok() && line.pop() == Some(b'\n');
            if lines.blocking_send(whole.then_some(line)).is_err() || !whole {
                return;
            }
        }
    });
    let (failed, mut failures) = mpsc::channel::<Failure>(1);
    loop {
        let line = tokio::select! {
            Some(failure) = failures.recv() => return Err(failure),
            line = read.recv() => line.flatten(),
        };
        let Some(line) = line else { return Err(Failure::invalid_input("error reading watch request line: EOF")) };
        let shown = String::from_utf8_lossy(&line).into_owned();
        let mut words = txn::words(&line)?;
        match words.first().and_then(|word| word.to_str()) {
            None => eprintln!("Invalid command: {shown} (watch and progress supported)"),
            Some("progress") => drop(progress.send(())), // nobody watches yet: nothing to tell
            Some("watch") if words.len() < 2 && range.is_empty() => {
                eprintln!("Invalid command {shown} (command type or key is not provided)");
            }
            Some("watch") => {
                let separated = words.iter().any(|word| word == "--");
                let args: WatchLine = parse::parsed(words.split_off(1))
                    .map_err(|error| parse::refused(&error, "watch").unwrap_or_else(|| Failure::bad_args(MANY)))
                    .map_err(|failure| Failure { code: 128, ..failure })?;
                match Watch::read(args.watch, range, separated) {
                    Ok(watch) => {
                        let (client, progress, failed) = (Arc::clone(client), progress.subscribe(), failed.clone());
                        tokio::spawn(async move {
                            if let Err(failure) = watch.run(&client, printer, progress).await {
                                drop(failed.send(failure).await); // another one failed first
                            }
                        });
                    }
                    Err(failure) if failure.text.starts_with(MANY) => return Err(failure),
                    Err(failure) => eprintln!("Invalid command {shown} ({})", failure.text),
                }
            }
            Some(_) => eprintln!("Invalid command {shown} (only support watch)"),
        }
    }
}

struct Watch {
    create: WatchCreateRequest,
    exec: Vec<OsString>,
}

impl Watch {
    /// `range` comes from variables and excludes arguments; `separated` says that `--` was there.
    fn read(args: WatchArgs, range: &[OsString], separated: bool) -> Result<Self, Failure> {
        if separated && args.exec.is_empty() {
            return Err(Failure::bad_args(format!("{MANY} (found separator --, but no commands)")));
        }
        if !range.is_empty() && !args.words.is_empty() {
            return Err(Failure::bad_args(format!("{MANY} (found conflicting environment key)")));
        }
        let words = if range.is_empty() { &args.words[..] } else { range };
        let Some(key) = words.first().map(bytes) else { return Err(Failure::bad_args(MANY)) };
        let mut end = if words.len() == 2 { bytes(&words[1]) } else { Bytes::new() };
        if args.prefix && words.len() == 2 {
            return Err(Failure::bad_args("`range_end` and `--prefix` are mutually exclusive"));
        }
        if args.prefix {
            end = if key.is_empty() { Bytes::from_static(b"\0") } else { go::prefix_end(&key).into() };
        }
        let key = if key.is_empty() { Bytes::from_static(b"\0") } else { key };
        let create = WatchCreateRequest {
            key,
            range_end: end,
            start_revision: args.rev,
            progress_notify: args.progress_notify,
            prev_kv: args.prev_kv,
            ..WatchCreateRequest::default()
        };
        Ok(Self { create, exec: args.exec })
    }

    /// Shows what happens until the server cancels it.
    async fn run(self, client: &Client, printer: Printer, mut progress: broadcast::Receiver<()>) -> Done {
        let mut following = Following::new(self.create);
        loop {
            let answer = tokio::select! {
                answer = following.next(client) => answer?,
                Ok(()) = progress.recv() => {
                    following.ask_progress();
                    continue;
                }
            };
            if show(&answer, printer, &self.exec).await? {
                return Ok(());
            }
        }
    }
}

/// A watch over all its streams.
pub struct Following {
    create: WatchCreateRequest,
    live: Option<Live>,
}

struct Live {
    requests: mpsc::Sender<WatchRequest>,
    answers: tonic::Streaming<WatchResponse>,
}

impl Following {
    pub fn new(create: WatchCreateRequest) -> Self {
        Self { create, live: None }
    }

    /// The next answer with something in it: events, progress or the end. Nothing is lost if it is dropped before.
    ///
    /// # Errors
    /// The server does not let watch; a member that is not there is waited for, or another one asked.
    pub async fn next(&mut self, client: &Client) -> Result<WatchResponse, Failure> {
        loop {
            let answer = match &mut self.live {
                None => match self.open(client).await? {
                    Ok(live) => {
                        self.live = Some(live);
                        continue;
                    }
                    Err(status) => Err(status),
                },
                Some(live) => live.answers.next().await.unwrap_or_else(|| Err(Status::unavailable("the stream ended"))),
            };
            match answer {
                Ok(answer) if answer.created && !answer.canceled => {
                    let revision = answer.header.unwrap_or_default().revision;
                    if self.create.start_revision == 0 {
                        self.create.start_revision = revision + 1;
                    }
                }
                Ok(answer) => {
                    let last =
                        answer.events.iter().filter_map(|event| event.kv.as_ref()).map(|kv| kv.mod_revision).max();
                    // Progress says that everything up to it has been sent.
                    let progress = answer.events.is_empty() && !answer.canceled;
                    let last = last.or(progress.then(|| answer.header.unwrap_or_default().revision));
                    let next = last.map_or(0, |last| last + 1);
                    self.create.start_revision = self.create.start_revision.max(next);
                    return Ok(answer);
                }
                Err(status) if lost(&status) => {
                    if client.settings.debug {
                        eprintln!("watch is interrupted: {}", told(&status));
                    }
                    self.live = None;
                    client.next().await;
                    tokio::time::sleep(AGAIN).await;
                }
                Err(status) => return Err(CallError::Refused(status).into()),
            }
        }
    }

    async fn open(&self, client: &Client) -> Result<Result<Live, Status>, Failure> {
        let channel = client.channel(None).await?;
        let identity = client.identity().await.requiring_leader();
        let mut watcher = WatchClient::with_interceptor(channel, identity).max_decoding_message_size(usize::MAX);
        let (requests, sent) = mpsc::channel(REQUESTS);
        let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(self.create.clone())) };
        // Room for the first request is there.
        let _ = requests.try_send(create);
        let sent = futures::stream::unfold(sent, |mut sent| async { sent.recv().await.map(|request| (request, sent)) });
        Ok(watcher.watch(sent).await.map(|answers| Live { requests, answers: answers.into_inner() }))
    }

    fn ask_progress(&self) {
        let request = WatchRequest { request_union: Some(RequestUnion::ProgressRequest(WatchProgressRequest {})) };
        if let Some(live) = &self.live {
            // A stream that takes no requests any more ends by itself.
            let _ = live.requests.try_send(request);
        }
    }
}

/// Shows one answer; whether it was the last.
async fn show(answer: &WatchResponse, printer: Printer, exec: &[OsString]) -> Result<bool, Failure> {
    let revision = answer.header.unwrap_or_default().revision;
    if answer.canceled {
        eprintln!("watch was canceled ({})", why(answer));
    } else if answer.events.is_empty() {
        print::out(format!("progress notify: {revision}\n"))?;
    }
    printer.print(&Answer::Watch(answer))?;
    if let [program, args @ ..] = exec {
        for event in &answer.events {
            let kv = event.kv.clone().unwrap_or_default();
            let kind = if event.r#type == 0 { "PUT" } else { "DELETE" };
            let mut command = tokio::process::Command::new(program);
            command
                .args(args)
                .stdin(Stdio::null())
                .env("ETCD_WATCH_REVISION", revision.to_string())
                .env("ETCD_WATCH_EVENT_TYPE", go::quote(kind.as_bytes()))
                .env("ETCD_WATCH_KEY", go::quote(&kv.key))
                .env("ETCD_WATCH_VALUE", go::quote(&kv.value));
            execute(command, exec).await?;
        }
    }
    Ok(answer.canceled)
}

async fn execute(mut command: tokio::process::Command, exec: &[OsString]) -> Done {
    let why = match command.status().await {
        Ok(status) if status.success() => return Ok(()),
        Ok(status) => status.to_string().replace(": ", " "),
        Err(error) => error.to_string(),
    };
    let words: Vec<String> = exec.iter().map(|word| go::quote(word.as_encoded_bytes())).collect();
    eprintln!("command [{}] error ({why})", words.join(" "));
    Err(Failure::told(1))
}

/// Why the server cancelled.
fn why(answer: &WatchResponse) -> String {
    if answer.compact_revision != 0 {
        "etcdserver: mvcc: required revision has been compacted".to_owned()
    } else if answer.cancel_reason.is_empty() {
        "etcdserver: mvcc: required revision is a future revision".to_owned()
    } else {
        answer.cancel_reason.clone()
    }
}
