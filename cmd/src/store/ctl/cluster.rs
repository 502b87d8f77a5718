//! The cluster itself: `member`, `endpoint`, `move-leader`, `alarm` and `defrag`.

use pintle_base::clock;
use pintle_proto::etcdserverpb as e;

use super::client::Client;
use super::grammar::{AlarmCommand, DefragArgs, EndpointArgs, EndpointCommand, HashArgs, MemberCommand, Words};
use super::print::{self, Answer, Format, Health};
use super::replace::{self, Replacement};
use super::{Context, Done, Failure, exactly, go, kv};

pub async fn member(context: &Context, command: MemberCommand) -> Done {
    match command {
        MemberCommand::Add { words, peer_urls, learner } => {
            let words: Vec<String> = words.iter().map(super::text).collect();
            add(context, &words, &peer_urls, learner).await
        }
        MemberCommand::Replace { words, peer_urls, wait } => {
            let [old, name] = exactly(&words, "a member and the name of the one that takes its place are to be given")?;
            let patience = go::duration(&wait).map_err(Failure::bad_args)?;
            replace::run(context, &Replacement { old, name, peer_urls, patience }).await
        }
        MemberCommand::Remove(args) => {
            let id = member_id(&args.words)?;
            let answer = context.client().await?.ask(e::MemberRemoveRequest { id }).await?;
            let cluster = answer.header.unwrap_or_default().cluster_id;
            context.printer.tell_only(format!("Member {id:16x} removed from cluster {cluster:16x}"), &answer)
        }
        MemberCommand::Update { words, peer_urls } => {
            let id = member_id(&words)?;
            let peer_ur_ls = urls(&peer_urls)?;
            let answer = context.client().await?.ask(e::MemberUpdateRequest { id, peer_ur_ls }).await?;
            let cluster = answer.header.unwrap_or_default().cluster_id;
            context.printer.tell_only(format!("Member {id:16x} updated in cluster {cluster:16x}"), &answer)
        }
        MemberCommand::List { consistency, .. } => {
            let linearizable = !kv::serializable(&consistency)?;
            let answer = context.client().await?.ask(e::MemberListRequest { linearizable }).await?;
            context.printer.print(&Answer::MemberList(&answer))
        }
        MemberCommand::Promote(args) => {
            let id = member_id(&args.words)?;
            let answer = context.client().await?.ask(e::MemberPromoteRequest { id }).await?;
            let cluster = answer.header.unwrap_or_default().cluster_id;
            context.printer.tell_only(format!("Member {id:16x} promoted in cluster {cluster:16x}"), &answer)
        }
    }
}

fn member_id(words: &[std::ffi::OsString]) -> Result<u64, Failure> {
    let [id] = exactly(words, "member ID is not provided")?;
    go::hex(&id).map_err(|why| Failure::bad_args(format!("bad member ID arg ({why}), expecting ID in Hex")))
}

pub fn urls(text: &str) -> Result<Vec<String>, Failure> {
    if text.is_empty() {
        return Err(Failure::bad_args("member peer urls not provided"));
    }
    Ok(text.split(',').map(str::to_owned).collect())
}

/// Adds a member, and says what it is to be started with.
async fn add(context: &Context, words: &[String], peer_urls: &str, is_learner: bool) -> Done {
    let name = match words {
        [] => return Err(Failure::bad_args("member name not provided")),
        [name] => name,
        words => {
            let urls = words.iter().filter(|word| word.to_lowercase().starts_with("http"));
            let hints: String = urls.map(|url| format!(", did you mean --peer-urls={url}")).collect();
            return Err(Failure::bad_args(format!("too many arguments{hints}")));
        }
    };
    let request = e::MemberAddRequest { peer_ur_ls: urls(peer_urls)?, is_learner };
    let answer = context.client().await?.ask(request).await?;
    let id = answer.member.as_ref().map_or(0, |member| member.id);
    let cluster = answer.header.unwrap_or_default().cluster_id;
    context.printer.tell_only(format!("Member {id:16x} added to cluster {cluster:16x}"), &answer)?;
    if context.printer.format != Format::Simple {
        return Ok(());
    }
    print::out(format!("\n{}", started_with(&answer.members, id, name, peer_urls)))
}

/// The variables that the new member `id` of `members` is to be started with.
pub fn started_with(members: &[e::Member], id: u64, name: &str, peer_urls: &str) -> String {
    let peers = members.iter().flat_map(|member| {
        let name = if member.id == id { name } else { &member.name };
        member.peer_ur_ls.iter().map(move |url| format!("{name}={url}"))
    });
    let quoted = |text: &str| go::quote(text.as_bytes());
    let lines = [
        ("NAME", quoted(name)),
        ("INITIAL_CLUSTER", quoted(&peers.collect::<Vec<_>>().join(","))),
        ("INITIAL_ADVERTISE_PEER_URLS", quoted(peer_urls)),
        ("INITIAL_CLUSTER_STATE", quoted("existing")),
    ];
    lines.iter().map(|(name, value)| format!("ETCD_{name}={value}\n")).collect()
}

pub async fn endpoint(context: &Context, args: EndpointArgs) -> Done {
    let endpoints = endpoints(context, args.cluster).await?;
    match args.command {
        EndpointCommand::Health(_) => health(context, &endpoints).await,
        EndpointCommand::Status(_) => {
            let mut list = Vec::new();
            let (mut failed, request) = (false, e::StatusRequest {});
            for endpoint in &endpoints {
                match Client::of(endpoint, &context.settings).await?.ask(request).await {
                    Ok(status) => list.push((endpoint.clone(), known(status))),
                    Err(error) => {
                        eprintln!("Failed to get the status of endpoint {endpoint} ({error})");
                        failed = true;
                    }
                }
            }
            context.printer.print(&Answer::Status(&list))?;
            if failed { Err(Failure::told(1)) } else { Ok(()) }
        }
        EndpointCommand::Hashkv { rev, .. } => hashes(context, &endpoints, rev).await,
    }
}

pub async fn hashkv(context: &Context, args: HashArgs) -> Done {
    let endpoints = endpoints(context, args.cluster).await?;
    hashes(context, &endpoints, args.rev).await
}

async fn hashes(context: &Context, endpoints: &[String], revision: i64) -> Done {
    let (mut list, mut failed) = (Vec::new(), None);
    for endpoint in endpoints {
        match Client::of(endpoint, &context.settings).await?.ask(e::HashKvRequest { revision }).await {
            // Servers since 3.6 tell more than etcdctl 3.5 prints.
            Ok(hash) => list.push((endpoint.clone(), e::HashKvResponse { hash_revision: 0, ..hash })),
            Err(error) => {
                eprintln!("Failed to get the hash of endpoint {endpoint} ({error})");
                failed = Some(error);
            }
        }
    }
    context.printer.print(&Answer::HashKv(&list))?;
    failed.map_or(Ok(()), |error| Err(error.into()))
}

/// A status as of 3.5.
fn known(status: e::StatusResponse) -> e::StatusResponse {
    e::StatusResponse { storage_version: String::new(), db_size_quota: 0, downgrade_info: None, ..status }
}

/// Those of the flag, or of all members.
async fn endpoints(context: &Context, cluster: bool) -> Result<Vec<String>, Failure> {
    if !cluster {
        return Ok(context.settings.endpoints.clone());
    }
    let failed = |error| Failure::error(format!("failed to fetch endpoints from etcd cluster member list: {error}"));
    let list = context.client().await?.ask(e::MemberListRequest { linearizable: true }).await.map_err(failed)?;
    Ok(list.members.into_iter().flat_map(|member| member.client_ur_ls).collect())
}

async fn health(context: &Context, endpoints: &[String]) -> Done {
    let asked = endpoints.iter().map(|endpoint| health_of(context, endpoint));
    let list = futures::future::join_all(asked).await;
    context.printer.print(&Answer::Health(&list))?;
    if list.iter().any(|one| !one.error.is_empty()) {
        return Err(Failure::error("unhealthy cluster"));
    }
    Ok(())
}

/// A member is healthy if it answers a read that a majority confirms, and no alarm is raised.
async fn health_of(context: &Context, endpoint: &str) -> Health {
    let endpoint = endpoint.to_owned();
    let client = match Client::of(&endpoint, &context.settings).await {
        Ok(client) => client,
        Err(failure) => return Health { endpoint, health: false, took: String::new(), error: failure.text },
    };
    let asked = clock::now();
    let read = client.ask(e::RangeRequest { key: "health".into(), ..e::RangeRequest::default() }).await;
    let took = go::time(clock::now() - asked);
    let error = match read {
        Err(error) if !error.says("etcdserver: permission denied") => error.to_string(),
        // Who may not read was refused by a member that could have.
        Ok(_) | Err(_) => match client.ask(e::AlarmRequest::default()).await {
            Err(_) => "Unable to fetch the alarm list".to_owned(),
            Ok(list) if list.alarms.is_empty() => String::new(),
            Ok(list) => {
                let names = list.alarms.iter().map(|alarm| match alarm.alarm {
                    1 => "NOSPACE ",
                    2 => "CORRUPT ",
                    _ => "UNKNOWN ",
                });
                format!("Active Alarm(s): {}", names.collect::<String>())
            }
        },
    };
    Health { endpoint, health: error.is_empty(), took, error }
}

pub async fn move_leader(context: &Context, args: Words) -> Done {
    let [target] = exactly(&args.words, "move-leader command needs 1 argument")?;
    let target = go::hex(&target).map_err(Failure::bad_args)?;
    for endpoint in &context.settings.endpoints {
        let client = Client::of(endpoint, &context.settings).await?;
        let status = client.ask(e::StatusRequest {}).await?;
        if status.header.unwrap_or_default().member_id == status.leader {
            client.ask(e::MoveLeaderRequest { target_id: target }).await?;
            return context.printer.print(&Answer::Moved(status.leader, target));
        }
    }
    Err(Failure::bad_args(format!("no leader endpoint given at [{}]", context.settings.endpoints.join(" "))))
}

pub async fn alarm(context: &Context, command: AlarmCommand) -> Done {
    let client = context.client().await?;
    let list = match command {
        AlarmCommand::List(args) => {
            let [] = exactly(&args.words, "alarm list command accepts no arguments")?;
            client.ask(e::AlarmRequest::default()).await?
        }
        AlarmCommand::Disarm(args) => {
            let [] = exactly(&args.words, "alarm disarm command accepts no arguments")?;
            disarm(&client).await?
        }
    };
    context.printer.print(&Answer::Alarm(&list))
}

/// Takes back every alarm of every member.
async fn disarm(client: &Client) -> Result<e::AlarmResponse, Failure> {
    let raised = client.ask(e::AlarmRequest::default()).await?;
    let mut gone = e::AlarmResponse::default();
    for alarm in raised.alarms {
        let action = e::alarm_request::AlarmAction::Deactivate.into();
        let request = e::AlarmRequest { action, member_id: alarm.member_id, alarm: alarm.alarm };
        let answer = client.ask(request).await?;
        gone.header = answer.header;
        gone.alarms.extend(answer.alarms);
    }
    Ok(gone)
}

pub async fn defrag(context: &Context, args: DefragArgs) -> Done {
    if args.data_dir.is_some() {
        return Err(Failure::bad_feature("--data-dir is not supported: directories are etcdutl's business"));
    }
    let mut failed = false;
    for endpoint in endpoints(context, args.cluster).await? {
        match Client::of(&endpoint, &context.settings).await?.ask(e::DefragmentRequest {}).await {
            Ok(_) => print::out(format!("Finished defragmenting etcd member[{endpoint}]\n"))?,
            Err(error) => {
                eprintln!("Failed to defragment etcd member[{endpoint}] ({error})");
                failed = true;
            }
        }
    }
    if failed { Err(Failure::told(1)) } else { Ok(()) }
}
