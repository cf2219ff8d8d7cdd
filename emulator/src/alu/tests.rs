//! Instructions as PTX text, through parser, lowering and the handlers of every vector level, with full and partial
//! masks, against values or against plain Rust.

use crate::device::{Device, Launch, LaunchConfig, Policy, Settings};
use crate::exec::{Cluster, Cta, Cx, FULL, Flow, LANES, Rng, Row, Warp};
use crate::program::lower::{LowerCx, SymbolValue, bits};
use crate::program::{Init, PRED_TRUE, Program, RowId};
use crate::ptx::ast::{LaunchBounds, Module, Ty};
use crate::ptx::parse;
use crate::simd::{Level, detected, with_level};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

/// Declarations of the registers that `spec` names: `d32 a16 p1` are `.b32 d`, `.b16 a` and `.pred p`.
fn declarations(spec: &str) -> String {
    let mut text = String::new();
    for word in spec.split_whitespace() {
        let (name, width) = word.split_at(1);
        let ty = if width == "1" {
            "pred".into()
        } else {
            format!("b{width}")
        };
        text += &format!(".reg .{ty} {name}; ");
    }
    text
}

fn module(code: &str, spec: &str) -> Module {
    let text = format!(
        ".version 8.7\n.target sm_90a\n.address_size 64\n.entry k {{ {} {code} }}",
        declarations(spec)
    );
    parse(&text).unwrap_or_else(|e| panic!("{code}: {e}"))
}

/// Lowers the body of the module's only kernel; rows of its registers come first.
fn lower(module: &Module) -> Result<LowerCx<'_>, String> {
    let function = &module.functions[0];
    static GLOBALS: OnceLock<HashMap<String, SymbolValue>> = OnceLock::new();
    let mut cx = LowerCx::new(module, function, GLOBALS.get_or_init(HashMap::new));
    for register in &function.registers {
        let row = if register.ty == Ty::Pred {
            cx.next_pred += 1;
            RowId::from(cx.next_pred - 1)
        } else {
            cx.scratch(bits(register.ty))
        };
        cx.register_rows.push(row);
    }
    for i in &function.body {
        if !super::lower(&mut cx, i).map_err(|e| e.what)? {
            return Err(format!("{} belongs to no file", i.op.join(".")));
        }
    }
    Ok(cx)
}

/// Registers by name, a value per lane.
type State = HashMap<String, [u128; LANES]>;

/// Runs lowered code on one warp.
fn execute(cx: &mut LowerCx, before: &State, mask: u32) -> State {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    let device = DEVICE.get_or_init(|| {
        let settings = Settings {
            memory_bytes: 1 << 24,
            ..Settings::default()
        };
        Device::new(0, settings).expect("address space")
    });
    let program = Program {
        name: "k".into(),
        ops: Vec::new(),
        effects: Vec::new(),
        sites: Arc::default(),
        ext: std::mem::take(&mut cx.ext),
        lists: Vec::new(),
        init: Vec::new(),
        rows: cx.next_row,
        preds: cx.next_pred,
        registers: 0,
        params: Vec::new(),
        param_bytes: 0,
        shared_bytes: 0,
        shared_align: 0,
        local_bytes: 0,
        bounds: LaunchBounds::default(),
        communicates: false,
        most_registers: None,
        entry: 0,
        functions: Vec::new(),
        local_static: 0,
        has_stack: false,
        files: Arc::default(),
        shared_symbols: Vec::new(),
        passages: Default::default(),
    };
    let launch = Launch {
        program: &program,
        device,
        config: LaunchConfig {
            grid: [1; 3],
            block: [32, 1, 1],
            cluster: [1; 3],
            dynamic_shared: 0,
        },
        params: 0,
        seed: 0,
        policy: Policy::Eager,
        checks: false,
        grid_id: 0,
        grid_workspace: 0,
    };
    let mut rows = vec![Row([0xdead_beef; LANES]); cx.next_row as usize];
    let mut preds = vec![0u32; usize::from(cx.next_pred)];
    preds[usize::from(PRED_TRUE)] = FULL;
    for (init, &row) in &cx.init {
        match *init {
            Init::Const32(v) => rows[row as usize] = Row([v; LANES]),
            Init::Const64(v) => set(&mut rows, row, 64, |_| v.into()),
            ref other => panic!("{other:?}"),
        }
    }
    for (n, register) in cx.function.registers.iter().enumerate() {
        let (row, width) = (cx.register_rows[n], bits(register.ty));
        if let Some(values) = before.get(&register.name.to_string()) {
            match register.ty {
                Ty::Pred => {
                    preds[row as usize] = (0..LANES).fold(0, |m, l| m | (values[l] as u32 & 1) << l)
                }
                _ => set(&mut rows, row, width, |l| values[l]),
            }
        }
    }
    // Scalar handlers touch neither warp nor CTA nor cluster.
    let mut context = Cx {
        regs: rows.as_mut_ptr(),
        preds: preds.as_mut_ptr(),
        mask,
        active: mask,
        pc: 0,
        budget: 0,
        observed: false,
        warp: std::ptr::null_mut::<Warp>(),
        cta: std::ptr::null_mut::<Cta>(),
        cluster: std::ptr::null_mut::<Cluster>(),
        launch: &launch,
    };
    for op in &cx.ops {
        // SAFETY: the files hold all rows and slots that lowering gave out.
        let guard = unsafe { context.pred(op.guard) };
        context.mask = mask & guard;
        // SAFETY: as above.
        assert_eq!(unsafe { (op.run)(&mut context, op) }, Flow::Next);
    }
    cx.ext = program.ext;
    let mut after = State::new();
    for (n, register) in cx.function.registers.iter().enumerate() {
        let (row, width) = (cx.register_rows[n], bits(register.ty));
        let values = std::array::from_fn(|l| match register.ty {
            Ty::Pred => u128::from(preds[row as usize] >> l & 1),
            _ => get(&rows, row, width, l),
        });
        after.insert(register.name.to_string(), values);
    }
    after
}

fn set(rows: &mut [Row], row: RowId, width: u32, value: impl Fn(usize) -> u128) {
    let words = width.div_ceil(32).max(1) as usize;
    for lane in 0..LANES {
        for w in 0..words {
            let at = lane * words + w;
            rows[row as usize + at / LANES].0[at % LANES] = (value(lane) >> (32 * w)) as u32;
        }
    }
}

/// The whole row: a narrow register has to be zero-extended in it.
fn get(rows: &[Row], row: RowId, width: u32, lane: usize) -> u128 {
    let words = width.div_ceil(32).max(1) as usize;
    (0..words).fold(0, |v, w| {
        let at = lane * words + w;
        v | u128::from(rows[row as usize + at / LANES].0[at % LANES]) << (32 * w)
    })
}

const LEVELS: [Level; 3] = [Level::Baseline, Level::Avx2, Level::Avx512];
const MASKS: [u32; 3] = [FULL, 0x8001_fe5a, 0];

/// Runs `code` on 32 lanes of sources at every level and mask. `want` gives a lane's outputs from its inputs.
fn check(
    code: &str,
    spec: &str,
    outputs: &[&str],
    inputs: &State,
    want: impl Fn(usize) -> Vec<u128>,
) {
    let module = module(code, spec);
    census::checked(&module);
    for level in LEVELS.into_iter().filter(|&l| l <= detected()) {
        let mut cx = with_level(level, || lower(&module)).unwrap_or_else(|e| panic!("{code}: {e}"));
        for mask in MASKS {
            let mut before = inputs.clone();
            for &output in outputs {
                before.entry(output.into()).or_insert([1; LANES]);
            }
            let after = execute(&mut cx, &before, mask);
            for lane in 0..LANES {
                let expected = want(lane);
                for (&output, expected) in outputs.iter().zip(expected) {
                    let active = mask >> lane & 1 != 0;
                    let expected = if active {
                        expected
                    } else {
                        before[output][lane]
                    };
                    let got = after[output][lane];
                    assert!(
                        got == expected,
                        "{code} ({level:?}, mask {mask:x}, lane {lane}): {output} = {got:#x}, not {expected:#x}; from {:x?}",
                        inputs.iter().map(|(n, v)| (n, v[lane])).collect::<Vec<_>>()
                    );
                }
            }
        }
    }
}

/// Names of the sources in `spec`: all registers but `d`, `e`, `p` and `q`, which are destinations.
fn sources(spec: &str) -> Vec<(String, u32)> {
    spec.split_whitespace()
        .filter(|w| !w.starts_with(['d', 'e', 'p', 'q']))
        .map(|w| (w[..1].to_string(), w[1..].parse().unwrap()))
        .collect()
}

fn outputs(spec: &str) -> Vec<&str> {
    spec.split_whitespace()
        .map(|w| &w[..1])
        .filter(|n| ["d", "e", "p", "q"].contains(n))
        .collect()
}

/// One row of a table: `code`, registers, then sources and outputs in the order of `spec`.
fn row(code: &str, spec: &str, values: &[u128], want: &[u128]) {
    let sources = sources(spec);
    assert_eq!(sources.len(), values.len(), "{code}");
    let inputs = sources
        .iter()
        .zip(values)
        .map(|((n, _), &v)| (n.clone(), [v; LANES]))
        .collect();
    check(code, spec, &outputs(spec), &inputs, |_| want.to_vec());
}

/// A value of `width` bits that is likely to be a corner.
fn corner(rng: &mut Rng, width: u32) -> u128 {
    let mask = if width == 128 {
        u128::MAX
    } else {
        (1 << width) - 1
    };
    let full = u128::from(rng.next()) << 64 | u128::from(rng.next());
    let value = match rng.below(8) {
        0 => u128::from(rng.below(4)),
        1 => !u128::from(rng.below(4)),
        2 => 1 << rng.below(width.into()),
        3 => (1u128 << rng.below(width.into())).wrapping_sub(1),
        4 => (1 << (width - 1)) ^ u128::from(rng.below(3)),
        5 => full >> rng.below(width.into()),
        _ => full,
    };
    value & mask
}

/// Bits of a float that is likely to be a corner.
fn corner_float(rng: &mut Rng, width: u32) -> u128 {
    match width {
        32 => {
            let full = rng.next() as u32;
            let sign = full & 1 << 31;
            let table = [
                0,
                1,
                0x7f_ffff,
                0x80_0000,
                0x3f80_0000,
                0x7f7f_ffff,
                0x7f80_0000,
                0x7fc0_1234,
                0x3f00_0000,
            ];
            u128::from(match rng.below(4) {
                0 => sign | table[rng.below(9) as usize],
                1 => sign | 0x3000_0000 | full & 0x1fff_ffff,
                2 => sign | full & 0x00ff_ffff,
                _ => full,
            })
        }
        64 => {
            let full = rng.next();
            let sign = full & 1 << 63;
            let table = [
                0,
                1,
                0x3ff0_0000_0000_0000,
                0x7ff0_0000_0000_0000,
                f64::MAX.to_bits(),
            ];
            u128::from(match rng.below(3) {
                0 => sign | table[rng.below(5) as usize],
                1 => sign | 0x3f00_0000_0000_0000 | full & 0x00ff_ffff_ffff_ffff,
                _ => full,
            })
        }
        _ => corner(rng, width),
    }
}

fn fuzz_with(
    code: &str,
    spec: &str,
    value: impl Fn(&mut Rng, u32) -> u128,
    want: impl Fn(&[u128]) -> Vec<u128>,
) {
    let mut rng = Rng(code.len() as u64);
    let sources = sources(spec);
    for _ in 0..12 {
        let inputs: State = sources
            .iter()
            .map(|(name, width)| {
                (
                    name.clone(),
                    std::array::from_fn(|_| value(&mut rng, *width)),
                )
            })
            .collect();
        let of = |lane: usize| {
            sources
                .iter()
                .map(|(n, _)| inputs[n][lane])
                .collect::<Vec<_>>()
        };
        check(code, spec, &outputs(spec), &inputs, |lane| want(&of(lane)));
    }
}

/// Random integers against plain Rust.
fn fuzz(code: &str, spec: &str, want: impl Fn(&[u128]) -> u128) {
    fuzz_with(code, spec, corner, |v| vec![want(v)]);
}

/// Random floats against plain Rust.
fn fuzz_float(code: &str, spec: &str, want: impl Fn(&[u128]) -> u128) {
    fuzz_with(code, spec, corner_float, |v| vec![want(v)]);
}

fn refused(code: &str, spec: &str) -> String {
    let module = module(code, spec);
    match lower(&module) {
        Ok(_) => panic!("{code} was lowered"),
        Err(what) => what,
    }
}

/// Sign-extends the low `width` bits.
fn signed(v: u128, width: u32) -> i128 {
    (v << (128 - width)) as i128 >> (128 - width)
}

/// The low `width` bits.
fn low(v: i128, width: u32) -> u128 {
    v as u128
        & if width == 128 {
            u128::MAX
        } else {
            (1 << width) - 1
        }
}

mod bits_and_moves;
mod census;
mod comparisons;
mod conversions;
mod floats;
mod integers;
mod video;
