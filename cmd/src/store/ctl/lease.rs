//! `lease`: grant, revoke, look at, list and keep alive.

use std::time::Duration;

use futures::StreamExt;
use pintle_base::clock;
use pintle_proto::etcdserverpb as e;
use pintle_proto::etcdserverpb::lease_client::LeaseClient;

use super::client::{CallError, Client, lost};
use super::grammar::LeaseCommand;
use super::print::{self, Answer, Format, Keys};
use super::{Context, Done, Failure, exactly, go};

/// A lease that is looked at in vain is asked about again after.
const AGAIN: Duration = Duration::from_millis(500);

pub async fn run(context: &Context, command: LeaseCommand) -> Done {
    match command {
        LeaseCommand::Grant(args) => {
            let [ttl] = exactly(&args.words, "lease grant command needs TTL argument")?;
            let ttl = go::int(&ttl, 10).map_err(|why| Failure::bad_args(format!("bad TTL ({why})")))?;
            let answer = context.client().await?.ask(e::LeaseGrantRequest { ttl, id: 0 }).await;
            let answer = answer.map_err(|error| Failure::error(format!("failed to grant lease ({error})")))?;
            context.printer.print(&Answer::Grant(&answer))
        }
        LeaseCommand::Revoke(args) => {
            let [id] = exactly(&args.words, "lease revoke command needs 1 argument")?;
            let id = self::id(&id)?;
            let answer = context.client().await?.ask(e::LeaseRevokeRequest { id }).await;
            let answer = answer.map_err(|error| Failure::error(format!("failed to revoke lease ({error})")))?;
            context.printer.tell(format!("lease {id:016x} revoked"), &answer)
        }
        LeaseCommand::Timetolive { words, keys } => {
            let [id] = exactly(&words, "lease timetolive command needs lease ID as argument")?;
            let request = e::LeaseTimeToLiveRequest { id: self::id(&id)?, keys };
            let answer = context.client().await?.ask(request).await.map_err(no_answer)?;
            context.printer.print(&Answer::TimeToLive(&answer, if keys { Keys::Asked } else { Keys::NotAsked }))
        }
        LeaseCommand::List(_) => {
            let answer = context.client().await?.ask(e::LeaseLeasesRequest {}).await.map_err(no_answer)?;
            context.printer.print(&Answer::Leases(&answer))
        }
        LeaseCommand::KeepAlive { words, once } => {
            let [id] = exactly(&words, "lease keep-alive command needs lease ID as argument")?;
            let (id, client) = (self::id(&id)?, context.client().await?);
            if once { keep_once(context, &client, id).await } else { keep(context, &client, id).await }
        }
    }
}

fn id(text: &str) -> Result<i64, Failure> {
    go::int(text, 16).map_err(|why| Failure::bad_args(format!("bad lease ID arg ({why}), expecting ID in Hex")))
}

fn no_answer(error: CallError) -> Failure {
    Failure::bad_connection(error.to_string())
}

async fn keep_once(context: &Context, client: &Client, id: i64) -> Done {
    let answer = renewed(client, id).await.map_err(no_answer)?;
    if answer.ttl <= 0 {
        return Err(Failure::bad_connection("etcdserver: requested lease not found"));
    }
    context.printer.print(&Answer::KeepAlive(&answer))
}

/// Renews at a third of the time left, until the lease is gone.
async fn keep(context: &Context, client: &Client, id: i64) -> Done {
    let mut ends = None;
    loop {
        let renewed = match renewed(client, id).await {
            Ok(answer) => answer,
            // While the lease may live, it is worth trying.
            Err(_) if ends.is_none_or(|ends| clock::now() < ends) => {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            Err(error) => return Err(no_answer(error)),
        };
        if renewed.ttl <= 0 {
            break;
        }
        context.printer.print(&Answer::KeepAlive(&renewed))?;
        let ttl = Duration::from_secs(renewed.ttl.unsigned_abs());
        ends = Some(clock::now() + ttl);
        tokio::time::sleep(ttl / 3).await;
    }
    if context.printer.format == Format::Simple {
        print::out(format!("lease {id:016x} expired or revoked.\n"))?;
    }
    Ok(())
}

/// Renews once; the time to live is 0 if there is no such lease.
pub async fn renewed(client: &Client, id: i64) -> Result<e::LeaseKeepAliveResponse, CallError> {
    let deadline = client.deadline();
    loop {
        let channel = client.channel(Some(deadline)).await?;
        let mut leases = LeaseClient::with_interceptor(channel, client.identity().await);
        let once = futures::stream::iter([e::LeaseKeepAliveRequest { id }]);
        let renewing = async { leases.lease_keep_alive(once).await?.into_inner().next().await.transpose() };
        let status = match tokio::time::timeout_at(deadline, renewing).await.map_err(|_| CallError::Late)? {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => tonic::Status::unavailable("the stream ended"),
            Err(status) => status,
        };
        if !lost(&status) {
            return Err(CallError::Refused(status));
        }
        client.next().await;
        tokio::time::sleep(Duration::from_millis(25)).await;
    }
}
