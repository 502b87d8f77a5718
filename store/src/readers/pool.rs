//! The threads that read ranges: few, and below everything else in the eyes of the system, so that where all cores are busy those who serve
//! requests go first.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use parking_lot::Mutex;
use pintle_base::priority::set_niceness;

use crate::limits;

type Job = Box<dyn FnOnce() + Send>;

/// The threads end with it, once they have done what they were given.
pub(super) struct Pool {
    jobs: Mutex<Sender<Job>>,
}

impl Pool {
    pub fn start(threads: usize) -> io::Result<Self> {
        let (jobs, queue) = channel::<Job>();
        let queue = Arc::new(Mutex::new(queue));
        for number in 0..threads {
            let queue = Arc::clone(&queue);
            std::thread::Builder::new().name(format!("store-reader-{number}")).spawn(move || work(&queue))?;
        }
        Ok(Self { jobs: Mutex::new(jobs) })
    }

    /// Runs `job`, which does not panic, as soon as a thread is free.
    pub fn run(&self, job: impl FnOnce() + Send + 'static) {
        if self.jobs.lock().send(Box::new(job)).is_err() {
            tracing::error!("no thread is left to read with");
        }
    }
}

fn work(queue: &Mutex<Receiver<Job>>) {
    set_niceness(limits::READER_NICENESS);
    loop {
        // One waits for the next job, the others for their turn to do so.
        let job = queue.lock().recv();
        match job {
            Ok(job) => job(),
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_run_below_others() {
        let pool = Pool::start(2).unwrap();
        let (tell, told) = channel();
        pool.run(move || {
            tell.send(pintle_base::priority::own_niceness()).unwrap();
        });
        assert_eq!(told.recv_timeout(std::time::Duration::from_secs(10)), Ok(Some(6)));
    }
}
