//! Which threads go first where all cores are busy.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_steps_back_leaves_the_others_where_they_were() {
        let niceness = || {
            let status = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
            let (_, rest) = status.rsplit_once(')').unwrap();
            rest.split_whitespace().nth(16).unwrap().parse::<i32>().unwrap()
        };
        let before = niceness();
        let lowered = std::thread::spawn(move || {
            set_niceness(7);
            niceness()
        });
        assert_eq!((lowered.join().unwrap(), niceness()), (7, before));
    }
}
