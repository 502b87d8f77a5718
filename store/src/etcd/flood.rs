//! Frames of HTTP/2 that cost their sender nothing and keep a member busy: pings and settings, each of which has to be answered.
//!
//! gRPC clients measure their bandwidth with a ping for a frame they were sent, and look every few seconds whether the connection still
//! is one: so many are always taken. Beyond that there is a bounded number, and whoever sends more is cut off.

use pintle_base::clock::{self, Instant};

use crate::limits;

const HEADER: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const ACK: u8 = 1;

/// What went over a connection, after the preface.
pub(super) struct Flood {
    received: Frames,
    sent: Frames,
    /// Pings and settings that may still come.
    left: u32,
    /// Until when `left` was made up for the time that passed.
    since: Instant,
}

impl Flood {
    pub fn new() -> Self {
        let (received, sent) = (Frames::default(), Frames::default());
        Self { received, sent, left: limits::CONTROL_FRAMES, since: clock::now() }
    }

    /// Counts what the client sent; `false` once it sent too much.
    #[must_use]
    pub fn received(&mut self, bytes: &[u8]) -> bool {
        let mut asked = 0u32;
        self.received.pass(bytes, |kind, flags| {
            if matches!(kind, PING | SETTINGS) && flags & ACK == 0 {
                asked += 1;
            }
        });
        if asked > 0 {
            self.make_up();
        }
        let within = self.left >= asked;
        self.left = self.left.saturating_sub(asked);
        within
    }

    fn make_up(&mut self) {
        let passed = self.since.elapsed().as_nanos() / limits::CONTROL_FRAME_TIME.as_nanos();
        if passed > 0 {
            self.since = clock::now();
            let passed = u32::try_from(passed).unwrap_or(u32::MAX);
            self.left = self.left.saturating_add(passed).min(limits::CONTROL_FRAMES);
        }
    }

    /// Counts what the client was sent.
    pub fn sent(&mut self, bytes: &[u8]) {
        let left = &mut self.left;
        self.sent.pass(bytes, |kind, _| {
            if matches!(kind, DATA | HEADERS) {
                *left = (*left + 1).min(limits::CONTROL_FRAMES);
            }
        });
    }
}

/// Where one frame ends and the next begins in a stream of bytes.
#[derive(Default)]
struct Frames {
    header: [u8; HEADER],
    /// Bytes of the header that are there.
    have: usize,
    /// Bytes of the payload that are to come.
    rest: usize,
}

impl Frames {
    /// Tells type and flags of each frame that begins in `bytes`.
    fn pass(&mut self, mut bytes: &[u8], mut tell: impl FnMut(u8, u8)) {
        while !bytes.is_empty() {
            let payload = self.rest.min(bytes.len());
            self.rest -= payload;
            bytes = &bytes[payload..];
            let more = (HEADER - self.have).min(bytes.len());
            self.header[self.have..self.have + more].copy_from_slice(&bytes[..more]);
            self.have += more;
            bytes = &bytes[more..];
            if self.have == HEADER {
                let [high, middle, low, kind, flags, ..] = self.header;
                self.rest = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
                self.have = 0;
                tell(kind, flags);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let [_, high, middle, low] = u32::try_from(payload).unwrap().to_be_bytes();
        let mut frame = vec![high, middle, low, kind, flags, 0, 0, 0, 1];
        frame.resize(HEADER + payload, PING); // no byte of a payload is taken for a frame
        frame
    }

    #[tokio::test(start_paused = true)]
    async fn as_many_pings_as_answers_are_taken_however_they_are_cut_up() {
        let mut flood = Flood::new();
        let (ping, answer) = (frame(PING, 0, 8), frame(DATA, 0, 70_000));
        for size in (1..40).cycle().take(5 * limits::CONTROL_FRAMES as usize) {
            answer.chunks(size * 100).for_each(|piece| flood.sent(piece));
            assert!(ping.chunks(size).all(|piece| flood.received(piece)));
        }
        assert_eq!(flood.left, limits::CONTROL_FRAMES - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_that_only_shows_it_is_alive_lives_on() {
        let mut flood = Flood::new();
        for _ in 0..10 * limits::CONTROL_FRAMES {
            clock::sleep(std::time::Duration::from_secs(5)).await;
            assert!(flood.received(&frame(PING, 0, 8)));
        }
        assert!(flood.left >= limits::CONTROL_FRAMES - 1);
    }

    #[tokio::test(start_paused = true)]
    async fn who_sends_nothing_but_pings_and_settings_is_cut_off() {
        for kind in [PING, SETTINGS] {
            let mut flood = Flood::new();
            let many = frame(kind, 0, 0).repeat(limits::CONTROL_FRAMES as usize);
            assert!(flood.received(&many));
            assert!(flood.received(&frame(kind, ACK, 0)), "an answer to ours");
            assert!(flood.received(&frame(DATA, 0, 9)));
            assert!(!flood.received(&frame(kind, 0, 0)));
        }
    }
}
