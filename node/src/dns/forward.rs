//! Passes queries for other names on to the machine's resolvers, one after the other, each with a deadline.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use hickory_proto::op::{Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, Record, RecordType};
use pintle_base::{clock, rng};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};

use crate::limits;

/// The answer to `query` from the first resolver that gives one, or a server failure made from `reply`.
pub async fn ask(upstreams: &[SocketAddr], query: &[u8], reply: &Message, tcp: bool, room: usize) -> Option<Vec<u8>> {
    for upstream in upstreams {
        let exchange = if tcp { by_tcp(*upstream, query).await } else { by_udp(*upstream, query).await };
        match exchange {
            Ok(answer) if answer.len() <= room => return Some(answer),
            // Too long for this client: it is to come back over TCP.
            Ok(_) => {
                let mut short = reply.clone();
                short.metadata.truncation = true;
                return short.to_vec().ok();
            }
            Err(error) => tracing::debug!(%upstream, %error, "resolver does not answer"),
        }
    }
    let mut failure = reply.clone();
    failure.metadata.response_code = ResponseCode::ServFail;
    failure.to_vec().ok()
}

/// The records of `name`, none if they cannot be had.
pub async fn resolve(upstreams: &[SocketAddr], name: &Name, kind: RecordType) -> Vec<Record> {
    let id = rng::below(u64::from(u16::MAX)) as u16;
    let mut query = Message::new(id, MessageType::Query, OpCode::Query);
    query.metadata.recursion_desired = true;
    query.add_query(Query::query(name.clone(), kind));
    let Ok(bytes) = query.to_vec() else { return Vec::new() };
    for upstream in upstreams {
        if let Ok(answer) = by_udp(*upstream, &bytes).await
            && let Ok(answer) = Message::from_vec(&answer)
        {
            return answer.answers;
        }
    }
    Vec::new()
}

fn same_question(query: &[u8], answer: &[u8]) -> bool {
    let (Ok(query), Ok(answer)) = (Message::from_vec(query), Message::from_vec(answer)) else { return false };
    query.metadata.id == answer.metadata.id
        && answer.metadata.message_type == MessageType::Response
        && (answer.queries.is_empty() || query.queries == answer.queries)
}

async fn by_udp(upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let any: SocketAddr =
        if upstream.is_ipv4() { (Ipv4Addr::UNSPECIFIED, 0).into() } else { (Ipv6Addr::UNSPECIFIED, 0).into() };
    let exchange = async {
        let socket = UdpSocket::bind(any).await?;
        socket.connect(upstream).await?;
        socket.send(query).await?;
        let mut buffer = vec![0; 4096];
        loop {
            let count = socket.recv(&mut buffer).await?;
            // Anything else is not the answer to this question: somebody guesses.
            if same_question(query, &buffer[..count]) {
                buffer.truncate(count);
                return Ok(buffer);
            }
        }
    };
    clock::timeout(limits::DNS_UPSTREAM, exchange).await?
}

async fn by_tcp(upstream: SocketAddr, query: &[u8]) -> io::Result<Vec<u8>> {
    let exchange = async {
        let mut stream = TcpStream::connect(upstream).await?;
        let size = u16::try_from(query.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
        stream.write_u16(size).await?;
        stream.write_all(query).await?;
        let size = stream.read_u16().await?;
        let mut answer = vec![0; usize::from(size)];
        stream.read_exact(&mut answer).await?;
        if same_question(query, &answer) { Ok(answer) } else { Err(io::Error::from(io::ErrorKind::InvalidData)) }
    };
    clock::timeout(limits::DNS_UPSTREAM, exchange).await?
}
