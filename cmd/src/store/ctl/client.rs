//! A client of a cluster: one connection at a time, to the next member where one does not answer, with the user's token.
//!
//! Always holds: what may have been carried out is not sent again unless asking twice is harmless ([`Request::REPEATABLE`]).

use std::time::Duration;

use http::uri::PathAndQuery;
use pintle_base::clock;
use pintle_proto::etcdserverpb::AuthenticateRequest;
use tokio::sync::Mutex;
use tokio::time::Instant;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tonic_prost::ProstCodec;

use super::Failure;
use super::dial::Target;
use super::rpc::Request;
use super::settings::Settings;

/// What clients of etcd do not send beyond.
const REQUEST_BYTES: usize = 2 << 20;

/// Between two tries, growing from the first to the second.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(25), Duration::from_secs(1));

/// Why a call has no answer.
#[derive(Debug)]
pub enum CallError {
    Late,
    Refused(Status),
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Late => f.write_str("context deadline exceeded"),
            Self::Refused(status) => f.write_str(&told(status)),
        }
    }
}

impl std::error::Error for CallError {}

impl CallError {
    /// Whether the server said exactly this.
    pub fn says(&self, text: &str) -> bool {
        matches!(self, Self::Refused(status) if status.message() == text)
    }
}

/// A refusal as clients of etcd show it: its text where it is etcd's, else all of it.
pub fn told(status: &Status) -> String {
    if status.message().starts_with("etcdserver: ") {
        return status.message().to_owned();
    }
    let code = match status.code() {
        Code::Cancelled => "Canceled".to_owned(), // gRPC's other spelling is Rust's alone
        code => format!("{code:?}"),
    };
    format!("rpc error: code = {code} desc = {}", status.message())
}

pub struct Client {
    pub settings: Settings,
    targets: Vec<Target>,
    link: Mutex<Link>,
}

#[derive(Default)]
struct Link {
    channel: Option<Channel>,
    /// Which target `channel` leads to, or is tried next.
    at: usize,
    token: Option<MetadataValue<Ascii>>,
}

impl Client {
    /// Reads what connections need, and authenticates if a user is given.
    ///
    /// # Errors
    /// Files that cannot be used; no member that answers in time; a wrong password.
    pub async fn new(settings: Settings) -> Result<Self, Failure> {
        let targets: Result<Vec<Target>, Failure> =
            settings.endpoints.iter().map(|endpoint| Target::new(endpoint, &settings)).collect();
        let client = Self { targets: targets?, link: Mutex::default(), settings };
        if client.settings.user.is_some() {
            client.authenticate().await.map_err(|error| Failure::bad_connection(error.to_string()))?;
        }
        Ok(client)
    }

    /// The same for one member.
    pub async fn of(endpoint: &str, settings: &Settings) -> Result<Self, Failure> {
        Self::new(Settings { endpoints: vec![endpoint.to_owned()], ..settings.clone() }).await
    }

    /// When a command that is not meant to stay has to be done.
    pub fn deadline(&self) -> Instant {
        clock::now() + self.settings.command_timeout
    }

    /// Asks within the command's time.
    pub async fn ask<Q: Request>(&self, request: Q) -> Result<Q::Answer, CallError> {
        self.ask_until(request, Some(self.deadline())).await
    }

    /// Asks for as long as it takes, once there is a connection.
    pub async fn ask_patiently<Q: Request>(&self, request: Q) -> Result<Q::Answer, CallError> {
        self.channel(Some(self.deadline())).await?;
        self.ask_until(request, None).await
    }

    pub async fn ask_until<Q: Request>(&self, request: Q, deadline: Option<Instant>) -> Result<Q::Answer, CallError> {
        let bytes = request.encoded_len();
        if bytes > REQUEST_BYTES {
            let text = format!("trying to send message larger than max ({bytes} vs. {REQUEST_BYTES})");
            return Err(CallError::Refused(Status::resource_exhausted(text)));
        }
        let (mut pause, mut refreshed) = (BACKOFF.0, false);
        loop {
            let channel = self.channel(deadline).await?;
            let call = self.call(channel, request.clone());
            let answer = match deadline {
                Some(deadline) => tokio::time::timeout_at(deadline, call).await.map_err(|_| CallError::Late)?,
                None => call.await,
            };
            let status = match answer {
                Ok(answer) => return Ok(answer),
                Err(status) => status,
            };
            if self.settings.debug {
                eprintln!("{}: {}", Q::PATH, told(&status));
            }
            if status.message() == "etcdserver: invalid auth token" && self.settings.user.is_some() && !refreshed {
                refreshed = true;
                self.authenticate().await?;
                continue;
            }
            if lost(&status) {
                self.next().await;
                if Q::REPEATABLE {
                    wait(&mut pause, deadline).await?;
                    continue;
                }
            }
            return Err(CallError::Refused(status));
        }
    }

    async fn call<Q: Request>(&self, channel: Channel, request: Q) -> Result<Q::Answer, Status> {
        let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(usize::MAX);
        grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let request = self.identity().await.call(tonic::Request::new(request))?;
        let codec = ProstCodec::<Q, Q::Answer>::default();
        Ok(grpc.unary(request, PathAndQuery::from_static(Q::PATH), codec).await?.into_inner())
    }

    /// A connection for a stream; [`Client::next`] gives it up.
    ///
    /// # Errors
    /// [`CallError::Late`] if no member answers before `deadline`.
    pub async fn channel(&self, deadline: Option<Instant>) -> Result<Channel, CallError> {
        let mut link = self.link.lock().await;
        let (mut pause, mut why) = (BACKOFF.0, String::new());
        loop {
            if let Some(channel) = &link.channel {
                return Ok(channel.clone());
            }
            for _ in 0..self.targets.len() {
                let target = &self.targets[link.at];
                let connecting = target.connect(&self.settings);
                let connected = match deadline {
                    Some(deadline) => match tokio::time::timeout_at(deadline, connecting).await {
                        Ok(connected) => connected,
                        Err(_) if why.is_empty() => {
                            why = format!("{}: it does not answer", target.name);
                            break;
                        }
                        Err(_) => break,
                    },
                    None => connecting.await,
                };
                match connected {
                    Ok(channel) => {
                        link.channel = Some(channel.clone());
                        return Ok(channel);
                    }
                    Err(error) => {
                        why = format!("{}: {error:#}", target.name);
                        link.at = (link.at + 1) % self.targets.len();
                    }
                }
                if self.settings.debug {
                    eprintln!("connect to {why}");
                }
            }
            if let Err(late) = wait(&mut pause, deadline).await {
                if !why.is_empty() {
                    eprintln!("warning: no connection to {why}");
                }
                return Err(late);
            }
        }
    }

    /// Gives the connection up, for one to the next member.
    pub async fn next(&self) {
        let mut link = self.link.lock().await;
        link.channel = None;
        link.at = (link.at + 1) % self.targets.len();
    }

    /// What is sent with every call.
    pub async fn identity(&self) -> Identity {
        Identity { token: self.link.lock().await.token.clone(), has_leader: false }
    }

    /// Whether the cluster asked for a user and took the one given.
    pub async fn is_known(&self) -> bool {
        self.link.lock().await.token.is_some()
    }

    /// Fetches a token, unless the cluster does not ask for one.
    async fn authenticate(&self) -> Result<(), CallError> {
        let Some((name, password)) = self.settings.user.clone() else { return Ok(()) };
        let deadline = clock::now() + self.settings.dial_timeout;
        // The password is not to be seen by whoever still knows an old token.
        self.link.lock().await.token = None;
        let asked = Box::pin(self.ask_until(AuthenticateRequest { name, password }, Some(deadline))).await;
        let token = match asked {
            Ok(answer) => answer.token,
            Err(error) if error.says("etcdserver: authentication is not enabled") => return Ok(()),
            Err(error) => return Err(error),
        };
        let token = token.parse().map_err(|_| CallError::Refused(Status::internal("the token is not text")))?;
        self.link.lock().await.token = Some(token);
        Ok(())
    }
}

/// Whether the member is not to be had, rather than said no.
pub fn lost(status: &Status) -> bool {
    let transport = std::error::Error::source(status).is_some();
    status.code() == Code::Unavailable || transport && matches!(status.code(), Code::Unknown | Code::Internal)
}

/// Waits a little before the next try, not beyond `deadline`.
async fn wait(pause: &mut Duration, deadline: Option<Instant>) -> Result<(), CallError> {
    if let Some(deadline) = deadline {
        let left = deadline.saturating_duration_since(clock::now());
        if left.is_zero() {
            return Err(CallError::Late);
        }
        *pause = (*pause).min(left);
    }
    tokio::time::sleep(*pause).await;
    *pause = (*pause * 2).min(BACKOFF.1);
    Ok(())
}

/// The user's token, and which API this program speaks.
#[derive(Clone)]
pub struct Identity {
    token: Option<MetadataValue<Ascii>>,
    has_leader: bool,
}

impl Identity {
    /// Rather an error than an answer of a member without a leader.
    pub fn requiring_leader(mut self) -> Self {
        self.has_leader = true;
        self
    }
}

impl Identity {
    fn call<T>(&self, mut request: tonic::Request<T>) -> Result<tonic::Request<T>, Status> {
        let metadata = request.metadata_mut();
        metadata.insert("client-api-version", MetadataValue::from_static(pintle_store::etcd::VERSION));
        if let Some(token) = &self.token {
            metadata.insert("token", token.clone());
        }
        if self.has_leader {
            metadata.insert("hasleader", MetadataValue::from_static("true"));
        }
        Ok(request)
    }
}

impl Interceptor for Identity {
    fn call(&mut self, request: tonic::Request<()>) -> Result<tonic::Request<()>, Status> {
        Identity::call(self, request)
    }
}
