//! What the standard library lacks and no domain needs to know: clock, randomness, named task groups, backoff, fair
//! queueing, error chains, values that are replaced, samples, telemetry, priorities of threads, free ports and the
//! files of a database. Lowest layer (L0): imports nothing of ours.
//!
//! I12: time, randomness and spawning come through here, so that the same code runs under tokio's paused clock from a seed.

pub mod backoff;
pub mod clock;
pub mod current;
pub mod dbfiles;
pub mod error;
pub mod fair;
pub mod ports;
pub mod priority;
pub mod rng;
pub mod sample;
pub mod task;
pub mod telemetry;
