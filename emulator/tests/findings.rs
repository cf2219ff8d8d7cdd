//! Planted bugs: every kernel of `fail/` must be found out, with the right kind and at the right lines, under every
//! policy and seed; its corrected twin in `pass/` must stay silent.
//!
//! The sources stand in `planted/*.cu`; `planted/build` compiles each twice. The comment lines `// launch:`, `// arg:` and
//! `// expect:` of a source say how to run it. The golden report of a kernel is `fail/NAME.report`: the report of seed 0
//! under the policy `latest`. Run with `BIRDIE_BLESS=1` to write the goldens anew, and read the difference.
//!
//! The longer sweep: `BIRDIE_SEEDS=50 cargo test --release -p birdie-emulator --test findings`.

use birdie_emulator::device::{Device, Fault, LaunchConfig, LaunchError, Policy, Settings};
use birdie_emulator::tensor_map::{
    ElementType, Interleave, L2Promotion, MAX_RANK, OobFill, Swizzle, TensorMap,
};
use std::fmt::Write;
use std::path::{Path, PathBuf};

struct Planted {
    name: String,
    config: LaunchConfig,
    /// `Settings::strict`.
    strict: bool,
    args: Vec<Arg>,
    expect: Vec<String>,
}

enum Arg {
    /// Zeros.
    Buffer(u64),
    /// Memory that nothing has written.
    Fresh(u64),
    Map {
        element: ElementType,
        dims: Vec<u64>,
        boxes: Vec<u32>,
        swizzle: Swizzle,
    },
}

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests")
        .join(name)
}

fn value<'a>(words: &'a [&str], key: &str) -> Option<&'a str> {
    words
        .iter()
        .find_map(|w| w.strip_prefix(key).and_then(|w| w.strip_prefix('=')))
}

fn numbers<T: std::str::FromStr>(s: &str) -> Vec<T> {
    s.split(',')
        .map(|x| x.parse().ok().expect("a number"))
        .collect()
}

fn read(path: &Path) -> Planted {
    let text = std::fs::read_to_string(path).unwrap();
    let mut p = Planted {
        name: path.file_stem().unwrap().to_str().unwrap().to_string(),
        config: LaunchConfig {
            grid: [1; 3],
            block: [1; 3],
            cluster: [1; 3],
            dynamic_shared: 0,
        },
        strict: false,
        args: vec![],
        expect: vec![],
    };
    for line in text.lines() {
        if let Some(l) = line.strip_prefix("// launch:") {
            let words: Vec<&str> = l.split_whitespace().collect();
            let number = |key| value(&words, key).map_or(1, |v| v.parse().unwrap());
            p.config.grid[0] = number("grid");
            p.config.block[0] = number("block");
            p.config.cluster[0] = number("cluster");
            p.strict = value(&words, "strict") == Some("1");
            p.config.dynamic_shared = value(&words, "shared").map_or(0, |v| v.parse().unwrap());
        } else if let Some(l) = line.strip_prefix("// arg:") {
            let words: Vec<&str> = l.split_whitespace().collect();
            p.args.push(match words[0] {
                "buffer" => Arg::Buffer(words[1].parse().unwrap()),
                "fresh" => Arg::Fresh(words[1].parse().unwrap()),
                "map" => Arg::Map {
                    element: match words[1] {
                        "bf16" => ElementType::Bf16,
                        "f32" => ElementType::F32,
                        other => panic!("element type {other}"),
                    },
                    dims: numbers(value(&words, "dims").unwrap()),
                    boxes: numbers(value(&words, "box").unwrap()),
                    swizzle: match value(&words, "swizzle").unwrap() {
                        "0" => Swizzle::None,
                        "32" => Swizzle::B32,
                        "64" => Swizzle::B64,
                        "128" => Swizzle::B128,
                        other => panic!("swizzle {other}"),
                    },
                },
                other => panic!("argument {other}"),
            });
        } else if let Some(l) = line.strip_prefix("// expect:") {
            p.expect = l.split_whitespace().map(str::to_string).collect();
        }
    }
    assert!(
        !p.expect.is_empty() && !p.args.is_empty(),
        "{}: no expectation",
        p.name
    );
    p
}

/// Runs one kernel; `Ok(notes)` or the report of what was found: (kind, text).
fn run(p: &Planted, ptx: &str, seed: u64, policy: Policy) -> Result<Vec<String>, (String, String)> {
    let settings = Settings {
        seed,
        policy,
        checks: true,
        strict: p.strict,
        ..Settings::default()
    };
    let device = Device::new(0, settings).unwrap();
    let module = device
        .load_module(ptx)
        .unwrap_or_else(|e| panic!("{}: {e:?}", p.name));
    let mut params: Vec<u8> = vec![];
    for (i, arg) in p.args.iter().enumerate() {
        let allocate = |bytes: u64| {
            let a = device
                .memory
                .allocate(bytes, 512, u64::MAX, format!("argument {i}"))
                .unwrap();
            // SAFETY: a fresh allocation of the arena.
            unsafe { std::ptr::write_bytes(a as *mut u8, 0, bytes as usize) };
            a
        };
        match arg {
            Arg::Buffer(bytes) | Arg::Fresh(bytes) => {
                let address = allocate(*bytes);
                if matches!(arg, Arg::Fresh(_)) {
                    device.memory.defined.track(address, *bytes);
                }
                params.resize(params.len().next_multiple_of(8), 0);
                params.extend(address.to_le_bytes());
            }
            Arg::Map {
                element,
                dims,
                boxes,
                swizzle,
            } => {
                let bytes: u64 = dims.iter().product::<u64>() * element.bytes();
                let mut map = TensorMap {
                    element_type: *element,
                    rank: dims.len(),
                    global_address: allocate(bytes),
                    dims: [1; MAX_RANK],
                    strides: [0; MAX_RANK],
                    box_dims: [1; MAX_RANK],
                    element_strides: [1; MAX_RANK],
                    interleave: Interleave::None,
                    swizzle: *swizzle,
                    l2_promotion: L2Promotion::None,
                    oob_fill: OobFill::Zero,
                    im2col: None,
                };
                for d in 0..dims.len() {
                    map.dims[d] = dims[d];
                    map.box_dims[d] = boxes[d];
                    map.strides[d] = dims[..d].iter().product::<u64>() * element.bytes();
                }
                params.resize(params.len().next_multiple_of(64), 0);
                params.extend(map.encode());
            }
        }
    }
    let program = module.entries["planted"].clone();
    match device.launch(&program, p.config, &params, seed) {
        Ok(report) => Ok(report
            .findings
            .iter()
            .map(|f| f.kind.name().to_string())
            .collect()),
        Err(LaunchError::Fault(Fault::Finding(f))) => Err((
            f.kind.name().to_string(),
            f.render(&program.sites, &program.files),
        )),
        Err(LaunchError::Fault(Fault::IllegalAddress(text))) => {
            Err(("out-of-bounds".to_string(), text))
        }
        Err(LaunchError::Fault(Fault::MisalignedAddress(text))) => {
            Err(("misaligned".to_string(), text))
        }
        Err(other) => Err(("other".to_string(), format!("{other:?}"))),
    }
}

/// Addresses depend on where the arena was mapped.
fn without_addresses(text: &str) -> String {
    let mut out = String::new();
    for (i, part) in text.split("0x").enumerate() {
        if i == 0 {
            out.push_str(part);
            continue;
        }
        let digits = part.chars().take_while(char::is_ascii_hexdigit).count();
        if digits > 8 {
            let _ = write!(out, "0x…{}", &part[digits..]);
        } else {
            let _ = write!(out, "0x{part}");
        }
    }
    out
}

fn cases() -> Vec<Planted> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder("planted"))
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "cu"))
        .collect();
    files.sort();
    assert!(files.len() >= 25);
    files.iter().map(|f| read(f)).collect()
}

fn seeds() -> u64 {
    std::env::var("BIRDIE_SEEDS")
        .ok()
        .map_or(3, |s| s.parse().expect("BIRDIE_SEEDS is a number"))
}

const POLICIES: [Policy; 3] = [Policy::Eager, Policy::Latest, Policy::Random];

#[test]
fn every_planted_bug_is_found() {
    let bless = std::env::var_os("BIRDIE_BLESS").is_some();
    let mut wrong = String::new();
    for p in cases() {
        let ptx = std::fs::read_to_string(folder("fail").join(format!("{}.ptx", p.name))).unwrap();
        let note_only = p.expect == ["order-dependent-sum"];
        let mut hits = 0;
        let mut runs = 0;
        for policy in POLICIES {
            for seed in 0..seeds() {
                runs += 1;
                let outcome = run(&p, &ptx, seed, policy);
                match &outcome {
                    // One of a kind, however many CTAs it concerns.
                    Ok(notes) if note_only && *notes == p.expect => hits += 1,
                    Err((kind, _)) if p.expect.contains(kind) => hits += 1,
                    other => {
                        let _ = writeln!(
                            wrong,
                            "{}: {policy:?} seed {seed}: expected {:?}, got {other:?}",
                            p.name, p.expect
                        );
                    }
                }
                if policy == Policy::Latest
                    && seed == 0
                    && let Err((_, text)) = &outcome
                {
                    let text = without_addresses(text) + "\n";
                    let golden = folder("fail").join(format!("{}.report", p.name));
                    if bless {
                        std::fs::write(&golden, &text).unwrap();
                    } else if std::fs::read_to_string(&golden).unwrap_or_default() != text {
                        let _ = writeln!(
                            wrong,
                            "{}: the report differs from {}:\n{text}",
                            p.name,
                            golden.display()
                        );
                    }
                }
            }
        }
        if hits == 0 {
            let _ = writeln!(wrong, "{}: not found in any of {runs} runs", p.name);
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

#[test]
fn no_corrected_twin_is_blamed() {
    let mut wrong = String::new();
    for p in cases() {
        let ptx = std::fs::read_to_string(folder("pass").join(format!("{}.ptx", p.name))).unwrap();
        for policy in POLICIES {
            for seed in 0..seeds() {
                match run(&p, &ptx, seed, policy) {
                    Ok(notes) if notes.is_empty() => {}
                    other => {
                        let _ = writeln!(wrong, "{}: {policy:?} seed {seed}: {other:?}", p.name);
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}
