//! Everything that needs more than one crate: the layer test, clusters of real processes, real clients.
//!
//! The library holds what these tests share; the tests are in `tests/tests/`.
