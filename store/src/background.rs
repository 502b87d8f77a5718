//! The threads on which RocksDB compacts the state: they are the process's, and started here once.
//!
//! Always holds: requests go first. What is compacted was acknowledged long ago; if its threads had the priority of those that serve, each
//! put would wait for a slice of theirs whenever much was deleted. They do get their share: a database that is written to without an end has to be
//! compacted, or writes are held up for it.

use std::sync::Once;

use pintle_base::priority::set_niceness;
use rocksdb::Env;

use crate::limits;

/// Starts the threads, below everything that serves. To be called before a database is opened.
pub(crate) fn start_compaction_threads() {
    static STARTED: Once = Once::new();
    STARTED.call_once(|| {
        // A thread has the niceness of the one that starts it; RocksDB starts these at once.
        let started = std::thread::spawn(|| {
            set_niceness(limits::COMPACTION_NICENESS);
            Env::new().map(|mut env| env.set_low_priority_background_threads(limits::COMPACTION_THREADS))
        });
        if !matches!(started.join(), Ok(Ok(()))) {
            tracing::warn!("RocksDB compacts at the priority of requests");
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use pintle_base::priority::{niceness, own_niceness};

    #[test]
    fn a_database_opened_afterwards_compacts_below_everybody_else() {
        start_compaction_threads();
        let dir = tempfile::tempdir().unwrap();
        let db = rocksdb::DB::open_default(dir.path()).unwrap();
        let threads = std::fs::read_dir("/proc/self/task").unwrap().flatten();
        let named = |task: &std::path::Path| std::fs::read_to_string(task.join("comm")).unwrap_or_default();
        let low: Vec<_> = threads.map(|task| task.path()).filter(|task| named(task).trim() == "rocksdb:low").collect();
        assert!(low.len() >= 2, "{low:?}");
        // Who runs the tests below others may have no right to less.
        let expected = own_niceness().unwrap().max(limits::COMPACTION_NICENESS);
        assert!(low.iter().all(|task| niceness(task) == Some(expected)), "{low:?}");
        drop(db);
    }
}
