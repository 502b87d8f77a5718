//! Calls on a [`crate::Store`] beside those on keys: leases, members, alarms. (Users and roles: [`crate::auth`].)

mod cluster;
mod lease;
