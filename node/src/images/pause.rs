//! The sandbox program, emitted as a static ELF file: no compiler, no C library, a few hundred bytes.
//!
//! It holds the pod's namespaces open. SIGCHLD is ignored, so the kernel reaps orphans when the pod shares one process
//! namespace; SIGINT and SIGTERM end it; otherwise it sleeps.

const BASE: u64 = 0x40_0000;
const HEADERS: u64 = 64 + 56;
const SIG_IGN: u64 = 1;
const SA_RESTORER: u64 = 0x0400_0000;
const SIGINT: u32 = 2;
const SIGTERM: u32 = 15;
const SIGCHLD: u32 = 17;

/// The program for `architecture` (Rust's name of it); `None` where we cannot emit one.
pub fn program(architecture: &str) -> Option<Vec<u8>> {
    match architecture {
        "x86_64" => Some(link(62, &x86_64())),
        "aarch64" => Some(link(183, &aarch64())),
        _ => None,
    }
}

/// Machine code whose last part is data: the two signal actions.
struct Image {
    text: Vec<u8>,
    /// Offset of the code that exits, needed by the action for SIGTERM.
    exit: usize,
}

/// Wraps code into one loadable, executable segment; the kernel's signal actions follow the code.
fn link(machine: u16, image: &Image) -> Vec<u8> {
    let exit = BASE + HEADERS + image.exit as u64;
    let mut body = image.text.clone();
    for word in [SIG_IGN, 0, 0, 0, exit, SA_RESTORER, exit, 0] {
        body.extend(word.to_le_bytes());
    }
    let size = HEADERS + body.len() as u64;
    let mut file = Vec::with_capacity(size as usize);
    file.extend([0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    file.extend(2u16.to_le_bytes()); // executable
    file.extend(machine.to_le_bytes());
    file.extend(1u32.to_le_bytes());
    for word in [BASE + HEADERS, 64, 0] {
        file.extend(word.to_le_bytes()); // entry, program headers, section headers
    }
    file.extend(0u32.to_le_bytes());
    for half in [64u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    file.extend(1u32.to_le_bytes()); // loadable
    file.extend(5u32.to_le_bytes()); // read, execute
    for word in [0, BASE, BASE, size, size, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(body);
    file
}

/// The actions start at the end of the text, aligned to 8: the ignoring one, then the exiting one 32 bytes later.
const IGNORE: usize = 0;
const EXIT: usize = 32;

fn x86_64() -> Image {
    let mut text = Vec::new();
    let mut actions = Vec::new(); // (place of the 32-bit displacement, which action)
    for (signal, action) in [(SIGCHLD, IGNORE), (SIGTERM, EXIT), (SIGINT, EXIT)] {
        text.extend([0xb8, 13, 0, 0, 0]); // mov eax, rt_sigaction
        text.push(0xbf); // mov edi, signal
        text.extend(signal.to_le_bytes());
        text.extend([0x48, 0x8d, 0x35]); // lea rsi, [rip + displacement]
        actions.push((text.len(), action));
        text.extend([0; 4]);
        text.extend([0x31, 0xd2]); // xor edx, edx
        text.extend([0x41, 0xba, 8, 0, 0, 0]); // mov r10d, 8
        text.extend([0x0f, 0x05]); // syscall
    }
    text.extend([0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7]); // pause, for ever
    let exit = text.len();
    text.extend([0xb8, 231, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05]); // exit_group(0)
    text.resize(text.len().next_multiple_of(8), 0x90);
    let data = text.len();
    for (place, action) in actions {
        let displacement = (data + action - (place + 4)) as u32;
        text[place..place + 4].copy_from_slice(&displacement.to_le_bytes());
    }
    Image { text, exit }
}

fn aarch64() -> Image {
    const SVC: u32 = 0xd400_0001;
    let movz = |register: u32, value: u32| 0xd280_0000 | (value << 5) | register;
    let mut words: Vec<u32> = Vec::new();
    let mut actions = Vec::new();
    for (signal, action) in [(SIGCHLD, IGNORE), (SIGTERM, EXIT), (SIGINT, EXIT)] {
        words.push(movz(0, signal));
        actions.push((words.len(), action));
        words.extend([0, movz(2, 0), movz(3, 8), movz(8, 134), SVC]); // adr x1; rt_sigaction
    }
    let again = words.len();
    words.extend([movz(0, 0), movz(1, 0), movz(2, 0), movz(3, 0), movz(8, 73), SVC]); // ppoll without end
    let back = (again as i64 - words.len() as i64) as u32 & 0x03ff_ffff;
    words.push(0x1400_0000 | back);
    let exit = words.len() * 4;
    words.extend([movz(0, 0), movz(8, 94), SVC]);
    if words.len() % 2 == 1 {
        words.push(0xd503_201f); // nop, for alignment
    }
    let data = words.len() * 4;
    for (place, action) in actions {
        let distance = (data + action - place * 4) as u32;
        words[place] = 0x1000_0001 | ((distance & 3) << 29) | ((distance >> 2) << 5); // adr x1, distance
    }
    Image { text: words.iter().flat_map(|word| word.to_le_bytes()).collect(), exit }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_is_a_small_static_program() {
        for (architecture, machine) in [("x86_64", 62u16), ("aarch64", 183)] {
            let file = program(architecture).expect("known architecture");
            assert_eq!(&file[..4], b"\x7fELF");
            assert_eq!(file[18..20], machine.to_le_bytes());
            assert!(file.len() < 512, "{} bytes", file.len());
        }
        assert!(program("z80").is_none());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_program_sleeps_until_it_is_told_to_end() {
        use std::os::unix::fs::PermissionsExt;
        use std::os::unix::process::ExitStatusExt;
        let dir = tempfile::tempdir().expect("directory");
        let path = dir.path().join("pause");
        std::fs::write(&path, program(std::env::consts::ARCH).expect("known architecture")).expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("mode");
        let mut child = std::process::Command::new(&path).spawn().expect("start");
        let pid = nix::unistd::Pid::from_raw(child.id() as i32);
        // The signals are caught only once the program has run its first instructions: wait for the mask to say so.
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(5);
        loop {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("status");
            if status.lines().any(|line| line == "SigCgt:\t0000000000004002") {
                break;
            }
            assert!(std::time::Instant::now() < deadline, "the program never caught its signals:\n{status}");
            std::thread::yield_now();
        }
        assert!(child.try_wait().expect("wait").is_none(), "still asleep");
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).expect("signal");
        let status = child.wait().expect("wait");
        assert_eq!((status.code(), status.signal()), (Some(0), None));
    }
}
