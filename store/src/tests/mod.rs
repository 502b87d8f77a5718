//! Behaviour of the whole store without Raft: scripts, a model, the etcd front, and the incidents of etcd, on a log that is just a queue.

mod auth;
mod front;
mod gateway;
mod incidents;
mod local;
mod model;
mod quota;
mod recipes;
mod replicated;
mod script;
mod snapshot;
mod verify;
mod watching;
