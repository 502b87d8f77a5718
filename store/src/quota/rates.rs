//! How much each user may do in a second, at this member: buckets that fill with time.
//!
//! A request needs something in the buckets and takes what it turns out to cost, so a bucket may owe; then the next requests are refused
//! until it has filled again. Nobody waits.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use pintle_base::clock::{self, Instant};
use pintle_proto::store_v1::UserQuota;

use crate::limits;

#[derive(Default)]
pub(crate) struct Rates {
    users: Mutex<HashMap<String, Arc<Account>>>,
}

/// What a user has left.
pub(crate) struct Account(Mutex<Buckets>);

struct Buckets {
    quota: UserQuota,
    requests: f64,
    bytes: f64,
    filled: Instant,
}

impl Rates {
    /// Lets a request of a user in, and says who pays for its bytes; `None` if the user has to wait.
    pub fn admit(&self, quota: &UserQuota) -> Option<Arc<Account>> {
        let account = {
            let mut users = self.users.lock();
            if users.len() >= limits::QUOTAS * 2 {
                users.clear(); // of users whose quotas are gone: who has one begins with a full bucket
            }
            Arc::clone(users.entry(quota.user.clone()).or_insert_with(|| Arc::new(Account::new(quota))))
        };
        account.admit(quota).then_some(account)
    }
}

/// A limit as what a bucket holds. Exact up to 2^53 in a second.
#[allow(clippy::cast_precision_loss)]
fn size(limit: Option<u64>) -> f64 {
    limit.map_or(f64::INFINITY, |limit| limit as f64)
}

impl Account {
    fn new(quota: &UserQuota) -> Self {
        let (requests, bytes) = (size(quota.requests), size(quota.bytes));
        Self(Mutex::new(Buckets { quota: quota.clone(), requests, bytes, filled: clock::now() }))
    }

    fn admit(&self, quota: &UserQuota) -> bool {
        let mut buckets = self.0.lock();
        if buckets.quota != *quota {
            let (requests, bytes) = (size(quota.requests), size(quota.bytes));
            *buckets = Buckets { quota: quota.clone(), requests, bytes, filled: clock::now() };
        }
        let now = clock::now();
        let seconds = now.duration_since(buckets.filled).as_secs_f64();
        let (requests, bytes) = (size(quota.requests), size(quota.bytes));
        // One second's worth is saved up at most; a limit of nothing fills nothing.
        buckets.requests = (buckets.requests + requests.min(f64::MAX) * seconds).min(requests);
        buckets.bytes = (buckets.bytes + bytes.min(f64::MAX) * seconds).min(bytes);
        buckets.filled = now;
        if buckets.requests < 1.0 || buckets.bytes <= 0.0 {
            return false;
        }
        buckets.requests -= 1.0;
        true
    }

    /// Takes the bytes of a request, or of an answer.
    #[allow(clippy::cast_precision_loss)]
    pub fn take(&self, bytes: usize) {
        self.0.lock().bytes -= bytes as f64;
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn quota(requests: Option<u64>, bytes: Option<u64>) -> UserQuota {
        UserQuota { user: "u".to_owned(), requests, bytes }
    }

    fn admitted(rates: &Rates, quota: &UserQuota, tries: usize) -> usize {
        (0..tries).filter(|_| rates.admit(quota).is_some()).count()
    }

    #[tokio::test(start_paused = true)]
    async fn requests_are_let_in_at_the_rate_and_a_second_is_saved_up() {
        let (rates, quota) = (Rates::default(), quota(Some(10), None));
        assert_eq!(admitted(&rates, &quota, 50), 10);
        clock::sleep(Duration::from_millis(300)).await;
        assert_eq!(admitted(&rates, &quota, 50), 3);
        clock::sleep(Duration::from_secs(60)).await;
        assert_eq!(admitted(&rates, &quota, 50), 10);
    }

    #[tokio::test(start_paused = true)]
    async fn who_took_more_bytes_than_there_were_waits_until_they_are_paid() {
        let (rates, quota) = (Rates::default(), quota(None, Some(1000)));
        rates.admit(&quota).expect("there is something").take(3500);
        clock::sleep(Duration::from_millis(2400)).await;
        assert!(rates.admit(&quota).is_none());
        clock::sleep(Duration::from_millis(200)).await;
        assert_eq!(admitted(&rates, &quota, 5), 5, "only bytes are limited");
    }

    #[tokio::test(start_paused = true)]
    async fn another_quota_counts_at_once_and_none_lets_nothing_in() {
        let rates = Rates::default();
        assert_eq!(admitted(&rates, &quota(Some(1), None), 5), 1);
        assert_eq!(admitted(&rates, &quota(Some(3), None), 5), 3);
        assert_eq!(admitted(&rates, &quota(Some(0), None), 5), 0);
        let other = UserQuota { user: "v".to_owned(), ..quota(Some(1), None) };
        assert_eq!(admitted(&rates, &other, 5), 1);
    }
}
