//! Calls on a [`crate::Store`]: reads, leases, members, alarms, quotas. (Users and roles: [`crate::auth`].)

mod cluster;
mod lease;
mod quota;
pub(crate) mod read;
