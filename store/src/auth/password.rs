//! Passwords: hashed before they are proposed, compared before a login is made. Both take tens of milliseconds of one core by
//! design, so a bounded number runs at a time, on threads where nothing else waits for them.

use std::sync::{Arc, OnceLock};

use pintle_proto::store_v1::AuthFailure;
use tokio::sync::Semaphore;

use super::failure::AuthError;
use crate::error::StoreError;
use crate::limits;

#[derive(Clone)]
pub(crate) struct Passwords {
    cost: u32,
    slots: Arc<Semaphore>,
    /// What an unknown user's password is compared with, so that the time tells nobody who is a user.
    of_nobody: Arc<OnceLock<String>>,
}

impl Passwords {
    /// `cost` is bcrypt's: the work doubles with each step.
    pub fn new(cost: u32) -> Self {
        Self { cost, slots: Arc::new(Semaphore::new(limits::PASSWORD_HASHES)), of_nobody: Arc::default() }
    }

    /// bcrypt's text form.
    pub async fn hash(&self, password: String) -> Result<String, StoreError> {
        if password.len() > limits::PASSWORD_BYTES {
            return Err(AuthError(AuthFailure::PasswordTooLong).into());
        }
        let cost = self.cost;
        let hashed = self.run(move || bcrypt::hash(&password, cost)).await?;
        hashed.map_err(|error| StoreError::storage(std::io::Error::other(error)))
    }

    /// Whether `password` is the one of `hash`; without a hash the work is done and the answer no.
    pub async fn matches(&self, password: String, hash: Option<String>) -> Result<bool, StoreError> {
        let known = hash.is_some();
        let (of_nobody, cost) = (Arc::clone(&self.of_nobody), self.cost);
        let same = self
            .run(move || {
                let of_nobody = || of_nobody.get_or_init(|| bcrypt::hash("", cost).unwrap_or_default()).clone();
                bcrypt::verify(&password, &hash.unwrap_or_else(of_nobody))
            })
            .await?;
        Ok(known && same.unwrap_or(false))
    }

    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, StoreError> {
        let slot = Arc::clone(&self.slots).acquire_owned().await.map_err(|_| StoreError::Stopped)?;
        // The work goes on when its caller has gone away, and so long the slot is taken.
        let working = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(slot);
            done
        });
        working.await.map_err(|_| StoreError::Stopped)
    }
}
