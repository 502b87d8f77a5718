//! Where event handlers put keys: the work queue of the present term, or nowhere while not leading.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::RwLock;
use pintle_client::reflector::Reflected;
use pintle_client::{Key, ObjectEvent, SharedReflector, WorkQueue};

/// Cheap to clone; clones are the same intake.
#[derive(Clone, Default)]
pub struct Intake {
    queue: Arc<RwLock<Option<WorkQueue<Key>>>>,
}

/// Closes the intake and its queue when the term ends, however it ends.
pub(crate) struct Open<'a>(&'a Intake);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        if let Some(queue) = self.0.queue.write().take() {
            queue.close();
        }
    }
}

impl Intake {
    pub(crate) fn open(&self, queue: WorkQueue<Key>) -> Open<'_> {
        *self.queue.write() = Some(queue);
        Open(self)
    }

    /// Asks for a reconcile of `key`.
    pub fn add(&self, key: Key) {
        if let Some(queue) = &*self.queue.read() {
            queue.add(key);
        }
    }

    pub fn add_after(&self, key: Key, delay: Duration) {
        if let Some(queue) = &*self.queue.read() {
            queue.add_after(key, delay);
        }
    }

    /// From now on, asks for a reconcile of each object of `reflector` that changes.
    pub fn every<K: Reflected>(&self, reflector: &SharedReflector<K>) {
        self.mapped(reflector, |object| [Key::of(object.meta())]);
    }

    /// From now on, asks for a reconcile of `keys_of` each object of `reflector` that changes, before and after the change.
    pub fn mapped<K, I>(&self, reflector: &SharedReflector<K>, keys_of: impl Fn(&K) -> I + Send + Sync + 'static)
    where
        K: Reflected,
        I: IntoIterator<Item = Key>,
    {
        let intake = self.clone();
        reflector.on_event(move |event| {
            if let ObjectEvent::Updated { old, .. } = event {
                keys_of(old).into_iter().for_each(|key| intake.add(key));
            }
            keys_of(event.object()).into_iter().for_each(|key| intake.add(key));
        });
    }
}
