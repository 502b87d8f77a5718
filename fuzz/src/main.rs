//! The fuzzer: gives ever new bytes, chosen by the code that they reach, to one of the targets that the crates offer (their modules
//! `fuzzing`). `scripts/fuzz` builds it, with what counts the code that is reached, and runs it.
//!
//! - `PINTLE_FUZZ`: the target; `list` prints the names of all.
//! - `PINTLE_FUZZ_SEEDS`: a directory into which the target's first inputs are written before it begins.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;

type Target = (&'static str, fn(&[u8]), fn() -> Vec<Vec<u8>>);

static TARGET: LazyLock<Target> = LazyLock::new(|| {
    let name = std::env::var("PINTLE_FUZZ").unwrap_or_default();
    let all = || pintle_raft::fuzzing::TARGETS.into_iter().chain(pintle_store::fuzzing::TARGETS);
    if name == "list" {
        all().for_each(|(name, ..)| println!("{name}"));
        std::process::exit(0);
    }
    all().find(|(one, ..)| *one == name).unwrap_or_else(|| {
        eprintln!("PINTLE_FUZZ={name} is no target; PINTLE_FUZZ=list prints them");
        std::process::exit(2)
    })
});

fuzz_target!(
    init: {
        if let Some(dir) = std::env::var_os("PINTLE_FUZZ_SEEDS").map(PathBuf::from) {
            for (seed, number) in (TARGET.2)().iter().zip(0..) {
                std::fs::write(dir.join(format!("seed-{number}")), seed).expect("write a seed");
            }
        }
        LazyLock::force(&TARGET);
    },
    |data: &[u8]| (TARGET.1)(data)
);
