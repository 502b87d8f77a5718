//! Behaviour of the whole store without Raft: scripts, a model, and the etcd front, on a log that is just a queue.

mod auth;
mod front;
mod gateway;
mod local;
mod model;
mod quota;
mod recipes;
mod replicated;
mod script;
mod snapshot;
mod verify;
mod watching;
