//! openraft's own test suite over our log store and apply thread, on a real disk.

use std::sync::Arc;
use std::time::Duration;

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use tempfile::TempDir;
use tokio::sync::watch;

use crate::apply::{self, ApplyThread, Machine, SnapshotPolicy};
use crate::core::TypeConfig;
use crate::fatal::FatalCell;
use crate::ledger::Ledger;
use crate::log::{self, LogStore};
use crate::snapshot::Snapshots;

struct Builder;

/// Keeps the threads running and the directory in place. Waits for the threads' end: a process that ends while one of them
/// closes its database may crash doing so.
struct Guard {
    threads: Option<(ApplyThread, log::Writer)>,
    _dir: TempDir,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some((apply, writer)) = self.threads.take() {
            assert!(apply.join(DEADLINE) || std::thread::panicking(), "the apply thread ends");
            writer.stop(DEADLINE);
        }
    }
}

const DEADLINE: Duration = Duration::from_secs(30);

impl StoreBuilder<TypeConfig, LogStore, Machine, Guard> for Builder {
    async fn build(&self) -> Result<(Guard, LogStore, Machine), StorageError<TypeConfig>> {
        let dir = tempfile::tempdir().expect("temporary directory");
        let fatal = FatalCell::new();
        let (shared, writer) = log::open_stepwise(dir.path(), fatal.clone()).expect("open the log");
        let writer = log::Writer::start(writer).expect("start the writer");
        let snapshots = Arc::new(Snapshots::open(dir.path()).expect("open snapshots"));
        // The suite applies entries that it never appended.
        let (_, flushed) = watch::channel(u64::MAX);
        let ledger = Box::new(Ledger::open(&dir.path().join("state")));
        let policy =
            SnapshotPolicy { entries: u64::MAX, bytes: u64::MAX, bytes_kept: u64::MAX, entries_kept: u64::MAX };
        let (machine, mut worker, tasks) = apply::prepare(ledger, snapshots, flushed, policy, fatal).expect("prepare");
        worker.gaps_allowed = true;
        let thread = ApplyThread::start(worker, tasks).expect("start applying");
        Ok((Guard { threads: Some((thread, writer)), _dir: dir }, LogStore(shared), machine))
    }
}

#[tokio::test]
async fn the_storage_passes_the_suite_of_openraft() {
    Suite::<TypeConfig, LogStore, Machine, Builder, Guard>::test_all(Builder).await.expect("suite");
}
