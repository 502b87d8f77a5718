//! `lock` and `elect`: hold something that only one can hold, for as long as this program runs.
//!
//! What is held hangs on a lease that is renewed here; when the program ends in order it is given back, when it dies the
//! lease ends after its time to live.

use std::ffi::OsString;
use std::time::Duration;

use futures::StreamExt;
use pintle_proto::etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest, RangeRequest, RangeResponse};
use pintle_proto::v3electionpb::election_client::ElectionClient;
use pintle_proto::v3electionpb::{CampaignRequest, LeaderRequest, ResignRequest};
use pintle_proto::v3lockpb::{LockRequest, UnlockRequest};
use tokio::signal::unix::{SignalKind, signal};

use super::client::{CallError, Client, lost};
use super::grammar::{ElectArgs, LockArgs};
use super::print::Answer;
use super::{Context, Done, Failure, bytes, lease};

/// Seconds a candidate's lease lives.
const CANDIDATE_TTL: i64 = 60;

pub async fn lock(context: &Context, args: LockArgs) -> Done {
    let [name, command @ ..] = &args.words[..] else {
        return Err(Failure::bad_args("lock takes a lock name argument and an optional command to execute"));
    };
    let client = context.client().await?;
    let session = Session::new(&client, args.ttl).await?;
    let mut end = Signals::new()?;
    let asked = LockRequest { name: bytes(name), lease: session.lease };
    let answer = tokio::select! {
        answer = client.ask_until(asked, None) => answer?,
        () = end.come() => {
            session.end().await;
            return Err(Failure::error("context canceled"));
        }
        () = session.lost() => return Err(Failure::error("session expired")),
    };
    let key = answer.key;
    if let [program, args @ ..] = command {
        let revision = answer.header.unwrap_or_default().revision;
        let ran = {
            let running = execute(program, args, &key, revision);
            tokio::pin!(running);
            tokio::select! {
                ran = &mut running => ran,
                () = session.lost() => {
                    // The command may be in the middle of something that only it can end well.
                    eprintln!("warning: the lock is lost, while its command goes on");
                    running.await
                }
            }
        };
        let unlocked = client.ask(UnlockRequest { key }).await;
        session.end().await;
        ran?;
        unlocked?;
        return Ok(());
    }
    let held = client.ask(RangeRequest { key: key.clone(), ..RangeRequest::default() }).await?;
    if held.kvs.is_empty() {
        return Err(Failure::error("lock lost on init"));
    }
    context.printer.print(&Answer::Get(&held))?;
    tokio::select! {
        () = end.come() => {
            let unlocked = client.ask(UnlockRequest { key }).await;
            session.end().await;
            unlocked?;
            Ok(())
        }
        () = session.lost() => Err(Failure::error("session expired")),
    }
}

/// Runs the command that the lock is for; its exit code is this program's.
async fn execute(program: &OsString, args: &[OsString], key: &[u8], revision: i64) -> Done {
    use std::os::unix::ffi::OsStrExt;
    let mut command = tokio::process::Command::new(program);
    command
        .args(args)
        .env("ETCD_LOCK_KEY", std::ffi::OsStr::from_bytes(key))
        .env("ETCD_LOCK_REV", revision.to_string());
    let status = command.status().await.map_err(|error| {
        let program = program.to_string_lossy();
        Failure::error(format!("exec: {program:?}: {error}"))
    })?;
    match status.code() {
        Some(0) => Ok(()),
        Some(code) => {
            let code = u8::try_from(code).unwrap_or(1);
            Err(Failure { code, text: format!("exit status {code}") })
        }
        None => Err(Failure { code: u8::MAX, text: status.to_string() }),
    }
}

pub async fn elect(context: &Context, args: ElectArgs) -> Done {
    match &args.words[..] {
        [_] if !args.listen => Err(Failure::bad_args("no proposal argument but -l not set")),
        [name] => observe(context, name).await,
        [_, _] if args.listen => Err(Failure::bad_args("proposal given but -l is set")),
        [name, proposal] => campaign(context, name, proposal).await,
        _ => Err(Failure::bad_args("elect takes one election name argument and an optional proposal argument")),
    }
}

async fn campaign(context: &Context, name: &OsString, proposal: &OsString) -> Done {
    let client = context.client().await?;
    let session = Session::new(&client, CANDIDATE_TTL).await?;
    let mut end = Signals::new()?;
    let asked = CampaignRequest { name: bytes(name), lease: session.lease, value: bytes(proposal) };
    let answer = tokio::select! {
        answer = client.ask_until(asked, None) => answer?,
        () = end.come() => {
            session.end().await;
            return Err(Failure::error("context canceled"));
        }
        () = session.lost() => return Err(Failure::error("elect: session expired")),
    };
    let key = answer.leader.clone().unwrap_or_default().key;
    let held = client.ask(RangeRequest { key, ..RangeRequest::default() }).await?;
    context.printer.print(&Answer::Get(&held))?;
    tokio::select! {
        () = end.come() => {
            let resigned = client.ask(ResignRequest { leader: answer.leader }).await;
            session.end().await;
            resigned?;
            Ok(())
        }
        () = session.lost() => Err(Failure::error("elect: session expired")),
    }
}

async fn observe(context: &Context, name: &OsString) -> Done {
    let client = context.client().await?;
    let mut end = Signals::new()?;
    tokio::select! {
        () = end.come() => Ok(()),
        done = follow(context, &client, name) => done,
    }
}

async fn follow(context: &Context, client: &Client, name: &OsString) -> Done {
    let mut shown = None;
    loop {
        let channel = client.channel(None).await?;
        let identity = client.identity().await.requiring_leader();
        let mut election = ElectionClient::with_interceptor(channel, identity).max_decoding_message_size(usize::MAX);
        let status = match election.observe(LeaderRequest { name: bytes(name) }).await {
            Err(status) => status,
            Ok(answers) => {
                let mut answers = answers.into_inner();
                loop {
                    match answers.next().await {
                        Some(Ok(answer)) => {
                            // After a loss of the connection the leader is told again.
                            if answer.kv.is_some() && shown != answer.kv {
                                shown.clone_from(&answer.kv);
                                let kvs = answer.kv.into_iter().collect();
                                let found = RangeResponse { header: answer.header, kvs, ..RangeResponse::default() };
                                context.printer.print(&Answer::Get(&found))?;
                            }
                        }
                        Some(Err(status)) => break status,
                        None => break tonic::Status::unavailable("elect: observer lost"),
                    }
                }
            }
        };
        if !lost(&status) {
            return Err(CallError::Refused(status).into());
        }
        client.next().await;
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// A lease that is kept alive.
struct Session<'a> {
    client: &'a Client,
    lease: i64,
    ttl: Duration,
}

impl<'a> Session<'a> {
    async fn new(client: &'a Client, ttl: i64) -> Result<Self, Failure> {
        let granted = client.ask(LeaseGrantRequest { ttl: ttl.max(1), id: 0 }).await?;
        Ok(Self { client, lease: granted.id, ttl: Duration::from_secs(granted.ttl.max(1).unsigned_abs()) })
    }

    /// Renews the lease; returns when it is gone, or may be.
    async fn lost(&self) {
        let mut ends = pintle_base::clock::now() + self.ttl;
        loop {
            tokio::time::sleep(self.ttl / 3).await;
            let asked = pintle_base::clock::now();
            match tokio::time::timeout_at(ends, lease::renewed(self.client, self.lease)).await {
                Ok(Ok(renewed)) if renewed.ttl <= 0 => return,
                Ok(Ok(_)) => ends = asked + self.ttl,
                Ok(Err(_)) if pintle_base::clock::now() < ends => (),
                Ok(Err(_)) | Err(_) => return,
            }
        }
    }

    /// Ends the lease; if that fails it ends by itself.
    async fn end(self) {
        let _ = self.client.ask(LeaseRevokeRequest { id: self.lease }).await;
    }
}

/// What ends a command that stays.
struct Signals {
    interrupt: tokio::signal::unix::Signal,
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let listen = |kind| signal(kind).map_err(|error| Failure::error(format!("listen for signals: {error}")));
        Ok(Self { interrupt: listen(SignalKind::interrupt())?, terminate: listen(SignalKind::terminate())? })
    }

    async fn come(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => (),
            _ = self.terminate.recv() => (),
        }
    }
}
