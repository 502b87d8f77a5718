//! Randomness for jitter, ids and tie-breaks. Each thread has a generator seeded by the system, or by [`seed`] in a
//! simulation. Keys and secrets are never made here: they come from `ring`'s system generator.

use std::cell::RefCell;
use std::time::Duration;

use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};

thread_local! {
    static GENERATOR: RefCell<SmallRng> = RefCell::new(SmallRng::from_os_rng());
}

/// Makes this thread's generator repeat the sequence of `seed`.
pub fn seed(seed: u64) {
    GENERATOR.with_borrow_mut(|generator| *generator = SmallRng::seed_from_u64(seed));
}

/// A uniformly random number.
pub fn u64() -> u64 {
    GENERATOR.with_borrow_mut(RngCore::next_u64)
}

/// A uniformly random number in `0..bound`; 0 when `bound` is 0.
pub fn below(bound: u64) -> u64 {
    if bound == 0 { 0 } else { GENERATOR.with_borrow_mut(|generator| generator.random_range(0..bound)) }
}

/// Fills `bytes` with random ones. Not for secrets.
pub fn fill(bytes: &mut [u8]) {
    GENERATOR.with_borrow_mut(|generator| generator.fill_bytes(bytes));
}

/// A duration in `base ..= base * (1 + factor)`, so that many waiters do not wake together.
pub fn jitter(base: Duration, factor: f64) -> Duration {
    base.mul_f64(1.0 + factor.max(0.0) * GENERATOR.with_borrow_mut(|generator| generator.random::<f64>()))
}

/// Shuffles `items` in place.
pub fn shuffle<T>(items: &mut [T]) {
    for i in (1..items.len()).rev() {
        items.swap(i, usize::try_from(below(i as u64 + 1)).unwrap_or(0));
    }
}

/// A random version-4 UUID in its usual text form.
pub fn uuid() -> String {
    let mut b = [0u8; 16];
    fill(&mut b);
    b[6] = (b[6] & 0x0f) | 0x40;
    b[8] = (b[8] & 0x3f) | 0x80;
    let hex: String = b.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_seed_repeats_its_sequence() {
        super::seed(7);
        let first = (super::u64(), super::uuid(), super::below(10));
        super::seed(7);
        assert_eq!(first, (super::u64(), super::uuid(), super::below(10)));
    }

    #[test]
    fn a_uuid_has_version_and_variant() {
        let uuid = super::uuid();
        assert_eq!(uuid.len(), 36);
        assert_eq!(uuid.as_bytes()[14], b'4');
        assert!(matches!(uuid.as_bytes()[19], b'8' | b'9' | b'a' | b'b'));
    }
}
