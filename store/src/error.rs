//! What can go wrong at the store's door, with the status code and the text an etcd client knows it by.
//!
//! Clients map by text to typed errors: the texts are wire facts. An answer that was lost is [`StoreError::Unknown`], whose text
//! never invites a retry of a write (I6).

use std::io;

use pintle_proto::store_v1::{AuthFailure, Failure, failure::Reason};
use tonic::Code;

use crate::auth::AuthError;

/// Why the store refused or could not answer.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("etcdserver: key is not provided")]
    EmptyKey,
    #[error("etcdserver: key not found")]
    KeyNotFound,
    #[error("etcdserver: value is provided")]
    ValueProvided,
    #[error("etcdserver: lease is provided")]
    LeaseProvided,
    #[error("etcdserver: too many operations in txn request")]
    TooManyOperations,
    #[error("etcdserver: duplicate key given in txn request")]
    DuplicateKey,
    #[error("etcdserver: invalid sort option")]
    InvalidSortOption,
    #[error("etcdserver: request is too large")]
    TooLarge,
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted { compact_revision: i64 },
    #[error("etcdserver: mvcc: required revision is a future revision")]
    FutureRevision,
    #[error("etcdserver: requested lease not found")]
    LeaseNotFound,
    #[error("etcdserver: lease already exists")]
    LeaseExists,
    #[error("etcdserver: too large lease TTL")]
    LeaseTtlTooLarge,
    #[error("etcdserver: too many requests")]
    Overloaded,
    #[error("etcdserver: mvcc: database space exceeded")]
    NoSpace,
    /// A prefix would hold more than its quota.
    #[error("etcdserver: quota exceeded: {what}")]
    QuotaExceeded { what: String },
    #[error("etcdserver: quota not found")]
    QuotaNotFound,
    #[error("etcdserver: too many quotas")]
    TooManyQuotas,
    #[error("etcdserver: quota is not understood: a prefix or user, and at least one limit, are needed")]
    QuotaMalformed,
    #[error("etcdserver: corrupt cluster")]
    Corrupt,
    #[error("etcdserver: member not found")]
    MemberNotFound,
    #[error("etcdserver: given member URLs are invalid")]
    BadMemberUrls,
    #[error("etcdserver: Peer URLs already exists")]
    PeerUrlExists,
    #[error("etcdserver: too many learner members in cluster")]
    TooManyLearners,
    #[error("etcdserver: can only promote a learner member")]
    NotLearner,
    #[error("etcdserver: can only promote a learner member which is in sync with leader")]
    LearnerNotReady,
    #[error("etcdserver: wrong downgrade target version format")]
    DowngradeFormat,
    #[error("etcdserver: invalid downgrade target version")]
    DowngradeTarget,
    #[error("etcdserver: no inflight downgrade job")]
    NoDowngrade,
    #[error("etcdserver: not leader")]
    NotLeader,
    #[error("etcdserver: bad leader transferee")]
    BadLeaderTransferee,
    /// A change of members that cannot be made as things are.
    #[error("etcdserver: {reason}")]
    Refused { reason: String },
    /// A change of members after which too few of them would be alive to agree.
    #[error("etcdserver: unhealthy cluster")]
    Unhealthy,
    #[error("etcdserver: no leader")]
    NoLeader,
    #[error("etcdserver: server stopped")]
    Stopped,
    /// The request was sent and its answer lost: it may or may not have been applied.
    #[error("etcdserver: request timed out")]
    Unknown,
    /// A read found no confirmed state in time; nothing was changed.
    #[error("etcdserver: request timed out, waiting for the applied index took too long")]
    ReadTimeout,
    /// The command carried the term of another leadership than the one it was logged in; nothing was written (I9).
    #[error("pintle: write is fenced, the current term is {term}")]
    Fenced { term: u64 },
    /// Users, roles, or what the caller may do.
    #[error(transparent)]
    Auth(#[from] AuthError),
    #[error("pintle: malformed command")]
    Malformed,
    #[error("pintle: read state")]
    Storage {
        #[source]
        source: io::Error,
    },
}

impl StoreError {
    /// The gRPC status code etcd sends with this text.
    pub fn code(&self) -> Code {
        match self {
            Self::EmptyKey
            | Self::KeyNotFound
            | Self::ValueProvided
            | Self::LeaseProvided
            | Self::TooManyOperations
            | Self::DuplicateKey
            | Self::InvalidSortOption
            | Self::TooLarge
            | Self::BadMemberUrls
            | Self::DowngradeFormat
            | Self::DowngradeTarget
            | Self::QuotaMalformed
            | Self::Malformed => Code::InvalidArgument,
            Self::Compacted { .. } | Self::FutureRevision | Self::LeaseTtlTooLarge => Code::OutOfRange,
            Self::LeaseNotFound | Self::MemberNotFound | Self::QuotaNotFound => Code::NotFound,
            Self::LeaseExists
            | Self::Fenced { .. }
            | Self::PeerUrlExists
            | Self::NoDowngrade
            | Self::TooManyLearners
            | Self::TooManyQuotas
            | Self::NotLearner
            | Self::LearnerNotReady
            | Self::NotLeader
            | Self::BadLeaderTransferee
            | Self::Refused { .. } => Code::FailedPrecondition,
            Self::Overloaded | Self::NoSpace | Self::QuotaExceeded { .. } => Code::ResourceExhausted,
            Self::Corrupt => Code::DataLoss,
            Self::Unhealthy | Self::NoLeader | Self::Stopped | Self::Unknown | Self::ReadTimeout => Code::Unavailable,
            Self::Auth(error) => error.code(),
            Self::Storage { .. } => Code::Internal,
        }
    }

    /// True only if nothing can have been written, so sending it again is safe.
    pub fn is_safe_to_retry(&self) -> bool {
        matches!(self, Self::NoLeader | Self::Overloaded | Self::ReadTimeout)
    }

    pub(crate) fn storage(source: io::Error) -> Self {
        Self::Storage { source }
    }
}

impl From<&Failure> for StoreError {
    fn from(failure: &Failure) -> Self {
        match failure.reason() {
            Reason::Malformed => Self::Malformed,
            Reason::Fenced => Self::Fenced { term: u64::try_from(failure.detail).unwrap_or(0) },
            Reason::Compacted => Self::Compacted { compact_revision: failure.detail },
            Reason::FutureRevision => Self::FutureRevision,
            Reason::KeyNotFound => Self::KeyNotFound,
            Reason::LeaseNotFound => Self::LeaseNotFound,
            Reason::LeaseExists => Self::LeaseExists,
            Reason::LeaseTtlTooLarge => Self::LeaseTtlTooLarge,
            Reason::NoSpace => Self::NoSpace,
            Reason::Corrupt => Self::Corrupt,
            Reason::Auth => {
                let failure = i32::try_from(failure.detail).ok().and_then(|number| AuthFailure::try_from(number).ok());
                Self::Auth(AuthError(failure.unwrap_or_default()))
            }
            Reason::Quota => Self::QuotaExceeded { what: failure.text.clone() },
            Reason::QuotaUnknown => Self::QuotaNotFound,
            Reason::TooManyQuotas => Self::TooManyQuotas,
            Reason::Unknown => Self::Unknown,
        }
    }
}

impl From<StoreError> for tonic::Status {
    fn from(error: StoreError) -> Self {
        // etcd's own mapping loses the code of this one; clients look at the text.
        Self::new(error.code(), error.to_string())
    }
}

/// Why the store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("access state directory {dir}")]
    Directory {
        dir: String,
        #[source]
        source: io::Error,
    },
    #[error("state directory {dir} contradicts itself: {reason}")]
    Contradiction { dir: String, reason: String },
    #[error("open the audit log {file}")]
    Audit {
        file: String,
        #[source]
        source: io::Error,
    },
    #[error("open state in {dir}")]
    Engine {
        dir: String,
        #[source]
        source: io::Error,
    },
}

impl OpenError {
    /// Whether what is there is damaged, or pieces of it are missing. No start will go better then.
    pub fn is_damage(&self) -> bool {
        match self {
            Self::Contradiction { .. } => true,
            Self::Audit { .. } => false,
            Self::Directory { source, .. } => source.kind() == io::ErrorKind::InvalidData,
            Self::Engine { source, .. } => {
                let engine = source.get_ref().and_then(|error| error.downcast_ref::<rocksdb::Error>());
                engine.map_or(source.kind() == io::ErrorKind::InvalidData, found_damage)
            }
        }
    }
}

/// Whether RocksDB found its files damaged, or missing.
fn found_damage(error: &rocksdb::Error) -> bool {
    match error.kind() {
        rocksdb::ErrorKind::Corruption | rocksdb::ErrorKind::InvalidArgument => true,
        rocksdb::ErrorKind::IOError => error.as_ref().contains("No such file or directory"),
        _ => false,
    }
}

/// Why a watch was refused or ended.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WatchError {
    #[error("etcdserver: mvcc: required revision has been compacted")]
    Compacted { compact_revision: i64 },
    #[error("mvcc: watcher range is empty")]
    EmptyRange,
    #[error("etcdserver: too many requests")]
    TooMany,
    #[error("etcdserver: server stopped")]
    Stopped,
    #[error("pintle: read history: {0}")]
    Storage(String),
}
