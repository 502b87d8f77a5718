//! Raises the priority of the calling thread where the system permits it (D2): Raft's core and the log writer should not
//! wait behind request handling.

/// Niceness asked for. Only root, or a process with CAP_SYS_NICE, gets it; others keep theirs.
const NICE: libc::c_int = -10;

/// Raises the calling thread's priority if permitted; otherwise changes nothing.
#[allow(unsafe_code)]
pub(crate) fn raise() {
    // SAFETY: plain system calls on the calling thread, no memory is passed. On Linux PRIO_PROCESS with a thread id changes
    // that thread alone. A refusal is of no consequence and its errno is not read.
    unsafe {
        let thread = libc::gettid();
        libc::setpriority(libc::PRIO_PROCESS as _, thread as _, NICE);
    }
}
