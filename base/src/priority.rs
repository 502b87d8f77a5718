//! Which threads go first where all cores are busy.

use std::path::Path;

/// Gives the calling thread this niceness: below 0 before others, which only root or a process with CAP_SYS_NICE may, above 0 after
/// them, which everybody may. A refusal changes nothing.
#[allow(unsafe_code)]
pub fn set_niceness(niceness: i32) {
    // SAFETY: plain system calls on the calling thread, no memory is passed. On Linux PRIO_PROCESS with a thread id changes
    // that thread alone. A refusal is of no consequence and its errno is not read.
    unsafe {
        let thread = libc::gettid();
        libc::setpriority(libc::PRIO_PROCESS as _, thread as _, niceness);
    }
}

/// The niceness of a thread, by its directory in `/proc`; `None` if it has ended.
pub fn niceness(thread: &Path) -> Option<i32> {
    let status = std::fs::read_to_string(thread.join("stat")).ok()?;
    let (_, rest) = status.rsplit_once(')')?; // a name may contain anything
    rest.split_whitespace().nth(16)?.parse().ok()
}

/// That of the calling thread.
pub fn own_niceness() -> Option<i32> {
    niceness(Path::new("/proc/thread-self"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_steps_back_leaves_the_others_where_they_were() {
        let before = own_niceness();
        let lowered = std::thread::spawn(move || {
            set_niceness(7);
            own_niceness()
        });
        assert_eq!((lowered.join().unwrap(), own_niceness()), (Some(7), before));
    }
}
