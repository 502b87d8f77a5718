//! Quotas: how many keys and bytes may be under a prefix, and how much a user may do in a second.
//!
//! What there is and what is used of it is replicated state ([`state`]), changed only by applying entries, in the write of the data itself:
//! every member refuses the same commands ([`judge`]). Rates are kept by each member for itself ([`rates`]).
//!
//! Always holds: what is used is counted as it changes, never looked up. A quota set on a prefix that has keys already is not enforced
//! until the leader has counted what was there at the revision it was set at, beside everything else; that count comes through the log.

pub(crate) mod judge;
pub(crate) mod rates;
mod state;

pub(crate) use self::state::{Changes, PREFIX, Planned, Quotas, Size, rows};
