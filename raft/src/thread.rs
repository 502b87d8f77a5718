//! A named thread whose end can be waited for with a limit, which the standard library's handle cannot.

use std::io;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use parking_lot::Mutex;

pub(crate) struct Running {
    name: &'static str,
    thread: thread::JoinHandle<()>,
    /// Disconnected when the thread ends, also by a panic.
    ended: Mutex<mpsc::Receiver<()>>,
}

impl Running {
    pub fn start(name: &'static str, run: impl FnOnce() + Send + 'static) -> io::Result<Self> {
        let (running, ended) = mpsc::channel();
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _running: mpsc::Sender<()> = running;
            run();
        })?;
        Ok(Self { name, thread, ended: Mutex::new(ended) })
    }

    /// Waits until the thread has ended, at most for `limit`; tells whether it has. Blocks. One that has not is left to itself.
    pub fn wait(self, limit: Duration) -> bool {
        if self.ended.lock().recv_timeout(limit) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::error!(thread = self.name, ?limit, "a thread of raft does not end, it is abandoned");
            return false;
        }
        if self.thread.join().is_err() {
            tracing::error!(thread = self.name, "a thread of raft had panicked");
        }
        true
    }
}
