//! Where many hand things in for one task on another thread, which takes them together: a channel that wakes its receiver for the first that
//! arrives and for the last that it waits for, not for each. Reads and proposals come by the thousand, and each wake is a turn of Raft's thread.

use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// The end where things are handed in. Cheap to clone.
pub(crate) struct Sender<T>(Arc<Shared<T>>);

/// The end where they are taken. Once it is dropped nothing more is accepted, and what waited is dropped.
pub(crate) struct Receiver<T>(Arc<Shared<T>>);

struct Shared<T> {
    state: Mutex<State<T>>,
    told: Notify,
}

struct State<T> {
    waiting: Vec<T>,
    /// With so many the receiver is woken.
    wanted: usize,
    closed: bool,
}

/// Nobody takes anything any more.
#[derive(Debug)]
pub(crate) struct Closed;

/// Bounds are the senders' business: they know what they count.
pub(crate) fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let state = Mutex::new(State { waiting: Vec::new(), wanted: 1, closed: false });
    let shared = Arc::new(Shared { state, told: Notify::new() });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Sender<T> {
    pub fn send(&self, item: T) -> Result<(), Closed> {
        let wakes = {
            let mut state = self.0.state.lock();
            if state.closed {
                return Err(Closed);
            }
            state.waiting.push(item);
            let arrived = state.waiting.len();
            arrived == 1 || arrived == state.wanted
        };
        if wakes {
            self.0.told.notify_one();
        }
        Ok(())
    }

    /// How many wait to be taken.
    pub fn len(&self) -> usize {
        self.0.state.lock().waiting.len()
    }
}

impl<T> Receiver<T> {
    /// Waits until so many are there.
    pub async fn until(&self, wanted: usize) {
        loop {
            {
                let mut state = self.0.state.lock();
                if state.waiting.len() >= wanted {
                    return;
                }
                state.wanted = wanted;
            }
            self.0.told.notified().await;
        }
    }

    /// All that are there, in the order they came.
    pub fn take(&self) -> Vec<T> {
        std::mem::take(&mut self.0.state.lock().waiting)
    }

    /// Accepts nothing more, and returns what waited.
    pub fn close(&self) -> Vec<T> {
        let mut state = self.0.state.lock();
        state.closed = true;
        std::mem::take(&mut state.waiting)
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        drop(self.close()); // without the lock: somebody may be told
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[tokio::test]
    async fn who_waits_for_several_is_woken_by_the_last_of_them() {
        let (sender, receiver) = channel();
        let mut several = Box::pin(receiver.until(3));
        assert!((&mut several).now_or_never().is_none());
        sender.send(1).expect("open");
        assert!((&mut several).now_or_never().is_none());
        sender.send(2).expect("open");
        let woken = |receiver: &Receiver<i32>| receiver.0.told.notified().now_or_never().is_some();
        assert!(!woken(&receiver), "not for the second");
        sender.send(3).expect("open");
        assert!(several.now_or_never().is_some());
        assert_eq!((sender.len(), receiver.take(), sender.len()), (3, vec![1, 2, 3], 0));
        assert!(receiver.until(0).now_or_never().is_some());
    }

    #[test]
    fn nothing_is_accepted_or_kept_once_nobody_takes_it() {
        let (sender, receiver) = channel();
        let item = Arc::new(());
        sender.send(Arc::clone(&item)).expect("open");
        drop(receiver);
        assert_eq!(Arc::strong_count(&item), 1);
        assert!(sender.send(item).is_err());
    }
}
