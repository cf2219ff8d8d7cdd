//! Bad input of every kind gives an error, never a panic of the emulator.
//!
//! * PTX of the other tests, cut off or changed at random places, is loaded; what still loads is run with parameters drawn
//!   at random. Anything may come out but a panic.
//! * The driver is called with null, freed and invented pointers, sizes beyond every limit, garbage instead of modules, and
//!   random tensor maps: no call may return CUDA_ERROR_UNKNOWN, by which a panic shows at the boundary.
//!
//! `BIRDIE_FUZZ=5000 cargo test --release -p birdie-emulator --test robustness` looks further; `BIRDIE_FUZZ_SEED` starts
//! elsewhere.

mod driver;

use birdie_emulator::device::{Device, LaunchConfig, Policy, Settings};
use birdie_emulator::exec::Rng;
use std::panic::{AssertUnwindSafe, catch_unwind};

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |v| v.parse().expect("a number"))
}

/// The PTX of the other tests.
fn sources() -> Vec<String> {
    let mut out = Vec::new();
    for folder in ["asynchronous", "execute/ptx", "pass", "fail"] {
        let path = format!("{}/tests/{folder}", env!("CARGO_MANIFEST_DIR"));
        let mut files: Vec<_> = std::fs::read_dir(path)
            .expect("a folder of tests")
            .map(|e| e.expect("an entry").path())
            .filter(|p| p.extension().is_some_and(|e| e == "ptx"))
            .collect();
        files.sort();
        out.extend(
            files
                .iter()
                .map(|p| std::fs::read_to_string(p).expect("text")),
        );
    }
    assert!(out.len() > 20);
    out
}

/// Words: runs of the characters of names and numbers; everything else one character each.
fn tokens(text: &str) -> Vec<&str> {
    let word = |c: char| c.is_ascii_alphanumeric() || "_%$.:".contains(c);
    let mut out = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let n = if word(first) {
            rest.find(|c| !word(c)).unwrap_or(rest.len())
        } else {
            first.len_utf8()
        };
        out.push(&rest[..n]);
        rest = &rest[n..];
    }
    out
}

const NUMBERS: [&str; 14] = [
    "0",
    "1",
    "-1",
    "7",
    "16",
    "33",
    "255",
    "65536",
    "2147483648",
    "4294967295",
    "-2147483648",
    "9223372036854775807",
    "18446744073709551615",
    "0f7FC00000",
];

/// Changes one to four things.
fn mutate(rng: &mut Rng, text: &str) -> String {
    let mut text = text.to_owned();
    for _ in 0..1 + rng.below(4) {
        let mut words: Vec<&str> = tokens(&text);
        if words.len() < 8 {
            break;
        }
        let at = rng.below(words.len() as u64) as usize;
        let other = rng.below(words.len() as u64) as usize;
        // Another word of the same kind: a register for a register, an opcode for an opcode.
        let kind = |w: &str| {
            let first = w.chars().next().unwrap_or(' ');
            (first, first.is_ascii_digit(), w.len() > 1)
        };
        let same: Vec<&str> = words
            .iter()
            .copied()
            .filter(|w| kind(w) == kind(words[at]))
            .collect();
        match rng.below(10) {
            0 => words.truncate(at),
            1 => words.swap(at, other),
            2 => _ = words.remove(at),
            3 => words.insert(at, words[other]),
            4 => words[at] = NUMBERS[rng.below(NUMBERS.len() as u64) as usize],
            5 => {
                words.drain(at..(at + 1 + rng.below(12) as usize).min(words.len()));
            }
            _ => words[at] = same[rng.below(same.len() as u64) as usize],
        }
        text = words.concat();
    }
    text
}

/// Launches every kernel with random parameters.
fn run(device: &Device, text: &str, rng: &mut Rng, buffer: u64) {
    let Ok(module) = device.load_module(text) else {
        return;
    };
    let mut names: Vec<&String> = module.entries.keys().collect();
    names.sort();
    for name in names {
        let program = &module.entries[name];
        let mut params = vec![0u8; program.param_bytes as usize];
        for p in &program.params {
            let place = &mut params[p.offset as usize..(p.offset + p.bytes) as usize];
            for chunk in place.chunks_mut(8) {
                let value = match rng.below(6) {
                    0 => 0,
                    1 => rng.next(),
                    2 => 8,
                    _ => buffer + 64 * rng.below(16),
                };
                let bytes = value.to_le_bytes();
                let n = chunk.len();
                chunk.copy_from_slice(&bytes[..n]);
            }
        }
        let cluster = [1, 1, 2, 4][rng.below(4) as usize];
        let config = LaunchConfig {
            grid: [cluster * (1 + rng.below(2) as u32), 1, 1],
            block: [[1, 32, 33, 64, 128, 384][rng.below(6) as usize], 1, 1],
            cluster: [cluster, 1, 1],
            dynamic_shared: [0, 1000, 32768][rng.below(3) as usize],
        };
        // A fault is as good as a result here.
        let _ = device.launch(program, config, &params, rng.next());
        device.take_output();
    }
    device.unload_module(&module);
}

#[test]
fn changed_ptx_never_makes_the_emulator_panic() {
    let sources = sources();
    let count = setting("BIRDIE_FUZZ", 400);
    let seed = setting("BIRDIE_FUZZ_SEED", 1);
    let devices: Vec<(Device, u64)> = [(true, Policy::Random), (false, Policy::Latest)]
        .into_iter()
        .map(|(checks, policy)| {
            let settings = Settings {
                policy,
                checks,
                collect: true,
                threads: 1,
                step_limit: 100_000,
                memory_bytes: 1 << 28,
                ..Settings::default()
            };
            let device = Device::new(0, settings).expect("address space");
            let buffer = device
                .memory
                .allocate(1 << 16, 512, u64::MAX, "buffer")
                .expect("memory");
            (device, buffer)
        })
        .collect();
    let mut failures = Vec::new();
    for number in 0..count {
        let mut rng = Rng(seed.wrapping_mul(0x9e37_79b9).wrapping_add(number));
        let source = &sources[rng.below(sources.len() as u64) as usize];
        let text = mutate(&mut rng, source);
        for (device, buffer) in &devices {
            let once = catch_unwind(AssertUnwindSafe(|| run(device, &text, &mut rng, *buffer)));
            if once.is_err() {
                failures.push(number);
                let path = std::env::temp_dir().join(format!("birdie-fuzz-{seed}-{number}.ptx"));
                std::fs::write(&path, &text).expect("a place for the input");
                eprintln!("input {number} of seed {seed}: {}", path.display());
            }
        }
    }
    assert!(failures.is_empty(), "inputs {failures:?} of seed {seed}");
}

#[test]
fn cut_off_ptx_is_an_error_or_complete() {
    let settings = Settings {
        memory_bytes: 1 << 28,
        ..Settings::default()
    };
    let device = Device::new(0, settings).expect("address space");
    for source in sources().iter().step_by(5) {
        for part in 0..40 {
            let mut at = source.len() * part / 40;
            while !source.is_char_boundary(at) {
                at += 1;
            }
            if let Ok(module) = device.load_module(&source[..at]) {
                device.unload_module(&module);
            }
        }
    }
}
