//! Users, roles and what they may do: etcd's Auth.
//!
//! The state is replicated and changes only through the log ([`state`]). Every command of a client carries who it is for and is
//! judged when it is applied, against the state of that moment ([`access`]): all members come to the same verdict, and what a
//! lagging member let in is refused there. Reads are judged by the member that answers them.
//!
//! Always holds: a request is allowed only if all it could read or write is, whichever branch a transaction takes.

pub(crate) mod access;
mod calls;
mod failure;
mod intervals;
mod jwt;
mod password;
mod state;
mod token;

pub use self::failure::AuthError;
pub use self::jwt::{JwtError, JwtOptions};
pub(crate) use self::password::Passwords;
pub(crate) use self::state::{AuthState, Grant, HEAD_KEY, PREFIX, ROLE_PREFIX, Rows, USER_PREFIX};
pub use self::token::TokenOptions;
pub(crate) use self::token::Tokens;

use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;

use pintle_proto::store_v1::Caller;

/// For whom a handle of the store acts.
#[derive(Clone, Debug, Default)]
pub(crate) enum Actor {
    /// For the member itself: nothing is asked.
    #[default]
    Member,
    /// For a client that did not say who it is.
    Anonymous,
    /// For a client whose token is not valid, or not any more.
    BadToken,
    User(Arc<Caller>),
}

/// Where a client is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    /// Counts connections, from 1 on.
    pub connection: u64,
    pub address: SocketAddr,
}

/// Among whom what the member can do is shared out: users, and connections of those who are none. 0 is the member itself.
pub(crate) fn flow(actor: &Actor, peer: Option<Peer>) -> u64 {
    const OF_USER: u64 = 1 << 63;
    match actor {
        Actor::User(caller) => {
            let mut hasher = DefaultHasher::new();
            caller.name.hash(&mut hasher);
            hasher.finish() | OF_USER
        }
        Actor::Member | Actor::Anonymous | Actor::BadToken => peer.map_or(0, |peer| peer.connection),
    }
}
