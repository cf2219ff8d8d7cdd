//! wgmma against a plain matrix product, over all shapes, types, operand sources and layouts.
//!
//! Layouts and fragments are written down here a second time, from the tables of the ISA, so that an error in the
//! product's formulas does not cancel.

use super::descriptor::Tile;
use super::execute::{Operands, run};
use super::format::Format;
use super::panel::{RawA, SourceA, out_of_bounds};
use super::wgmma::{Mma, Output};
use crate::exec::{Rng, Row, SHARED_BASE};

/// A matrix of exact values, row-major.
struct Matrix {
    rows: usize,
    columns: usize,
    values: Vec<f64>,
    /// The element's bits in its format.
    bits: Vec<u32>,
}

fn random_bits(rng: &mut Rng, format: Format) -> (u32, f64) {
    let sign = if rng.below(2) == 0 { 1.0 } else { -1.0 };
    match format {
        Format::Bf16 => {
            let v = f32::from_bits(((rng.below(0x0400) as u32) + 0x3e00) << 16) * sign as f32;
            (v.to_bits() >> 16, f64::from(v))
        }
        Format::F16 => {
            let bits = (rng.below(0x1400) as u32 + 0x2400) | if sign < 0.0 { 0x8000 } else { 0 };
            let (e, m) = ((bits >> 10) & 31, bits & 1023);
            (
                bits,
                sign * (1024.0 + f64::from(m)) * 2f64.powi(e as i32 - 25),
            )
        }
        Format::Tf32 => {
            // The low 13 bits are noise that must be ignored.
            let v = f32::from_bits((rng.below(0x2000) as u32 + 0x1f000) << 13) * sign as f32;
            (v.to_bits() | rng.below(1 << 13) as u32, f64::from(v))
        }
        Format::E4m3 => {
            let bits = rng.below(0x58) as u32;
            let (e, m) = (bits >> 3, f64::from(bits & 7));
            let v = if e == 0 {
                m / 512.0
            } else {
                (8.0 + m) * 2f64.powi(e as i32 - 10)
            };
            (bits | if sign < 0.0 { 0x80 } else { 0 }, sign * v)
        }
        Format::E5m2 => {
            let bits = rng.below(0x48) as u32;
            let (e, m) = (bits >> 2, f64::from(bits & 3));
            let v = if e == 0 {
                m * 2f64.powi(-16)
            } else {
                (4.0 + m) * 2f64.powi(e as i32 - 17)
            };
            (bits | if sign < 0.0 { 0x80 } else { 0 }, sign * v)
        }
        Format::S8 => {
            let v = rng.below(256) as u8;
            (u32::from(v), f64::from(v as i8))
        }
        Format::U8 => {
            let v = rng.below(256) as u32;
            (v, f64::from(v))
        }
        Format::B1 => {
            let v = rng.below(2) as u32;
            (v, f64::from(v))
        }
        _ => unreachable!(),
    }
}

fn random_matrix(rng: &mut Rng, rows: usize, columns: usize, format: Format) -> Matrix {
    let (bits, values) = (0..rows * columns)
        .map(|_| random_bits(rng, format))
        .unzip();
    Matrix {
        rows,
        columns,
        values,
        bits,
    }
}

/// Writes bit field `index` of an array of `width`-bit elements that starts at byte `at`.
fn put(bytes: &mut [u8], at: usize, index: usize, width: usize, value: u32) {
    if width < 8 {
        let bit = index * width;
        bytes[at + bit / 8] |= (value << (bit % 8)) as u8;
    } else {
        let size = width / 8;
        bytes[at + index * size..][..size].copy_from_slice(&value.to_le_bytes()[..size]);
    }
}

/// How an operand lies in shared memory.
#[derive(Debug, Clone, Copy)]
struct Layout {
    /// Bytes of the swizzle: 0, 32, 64, 128.
    swizzle: usize,
    mn_major: bool,
}

impl Layout {
    fn all(format: Format) -> Vec<Layout> {
        let majors: &[bool] = if format.bits() == 16 {
            &[false, true]
        } else {
            &[false]
        };
        majors
            .iter()
            .flat_map(|&mn_major| [0, 32, 64, 128].map(|swizzle| Layout { swizzle, mn_major }))
            .collect()
    }

    /// Places `m` (rows along M or N, columns along K) at shared address `base` and returns its descriptor.
    fn place(
        self,
        shared: &mut [u8],
        base: usize,
        m: &Matrix,
        format: Format,
        k_step: usize,
    ) -> u64 {
        let width = format.bits() as usize;
        let shift = match self.swizzle {
            0 => 0,
            32 => 1,
            64 => 2,
            _ => 3,
        };
        let swizzle = |a: usize| a ^ (((a >> 7) & ((1 << shift) - 1)) << 4);
        let (mut leading, mut stride) = (16, 0);
        let mut start = base;
        for row in 0..m.rows {
            for k in 0..m.columns {
                let (a, index) = if !self.mn_major {
                    let byte = k * width / 8;
                    let piece = byte / 16;
                    let in_piece = k - piece * 128 / width;
                    let a = if self.swizzle == 0 {
                        // Core matrices of 8 rows; the two along K next to each other.
                        leading = 128;
                        stride = 256;
                        base + row / 8 * 256 + piece * 128 + row % 8 * 16
                    } else {
                        // Rows of the swizzle's width, of which this operand takes 32 bytes at `k_step`.
                        stride = 8 * self.swizzle;
                        start = base + 32 * k_step;
                        swizzle(base + row * self.swizzle + 32 * k_step + piece * 16)
                    };
                    (a, in_piece)
                } else if self.swizzle == 0 {
                    leading = 16 * m.rows;
                    stride = 128;
                    (base + row / 8 * 128 + k / 8 * leading + k % 8 * 16, row % 8)
                } else {
                    // Boxes of the swizzle's width along MN and 16 k.
                    let per_box = self.swizzle / 2;
                    leading = 16 * self.swizzle;
                    stride = 8 * self.swizzle;
                    let (b, inside) = (row / per_box, row % per_box);
                    let linear = base + b * leading + k * self.swizzle + inside / 8 * 16;
                    (swizzle(linear), inside % 8)
                };
                put(
                    shared,
                    a - SHARED_BASE as usize,
                    index,
                    width,
                    m.bits[row * m.columns + k],
                );
            }
        }
        let mode = [0u64, 3, 2, 1][shift];
        (start as u64 >> 4) | (leading as u64 >> 4) << 16 | (stride as u64 >> 4) << 32 | mode << 62
    }
}

/// A fragments of the four warps, from the figure of the ISA: for 16-bit elements a0,a1 of lane l are row l/4,
/// columns 2(l%4)+{0,1}; a2,a3 8 rows below; a4.. 8 columns to the right. In general a register holds 4 bytes.
fn a_fragment(m: &Matrix, format: Format) -> Box<RawA> {
    let width = format.bits() as usize;
    let per_register = 32 / width;
    let mut raw = Box::new(RawA {
        bytes: [0xff; 2048],
        mn_major: false,
    });
    for warp in 0..4 {
        for r in 0..4 {
            let mut lanes = [0u32; 32];
            for (l, lane) in lanes.iter_mut().enumerate() {
                let row = 16 * warp + l / 4 + if r % 2 == 1 { 8 } else { 0 };
                let first = (l % 4) * per_register + if r >= 2 { 4 * per_register } else { 0 };
                for e in 0..per_register {
                    *lane |= m.bits[row * m.columns + first + e] << (e * width);
                }
            }
            raw.set_fragment(warp, r, &lanes);
        }
    }
    raw
}

struct Case {
    mma: Mma,
    a_layout: Option<Layout>,
    b_layout: Layout,
    keep: bool,
    exact: bool,
}

fn default_mma(d: Output, a: Format, b: Format, n: usize) -> Mma {
    Mma {
        n,
        depth: 256 / a.bits() as usize,
        a,
        b,
        d,
        a_in_registers: false,
        a_mn_major: false,
        b_mn_major: false,
        negate_a: false,
        negate_b: false,
        saturate: false,
        overwrites: false,
        sparse: None,
    }
}

/// Runs a case and compares every element of D.
fn check(rng: &mut Rng, mut case: Case) {
    let n = case.mma.n;
    let (fa, fb) = (case.mma.a, case.mma.b);
    case.mma.a_in_registers = case.a_layout.is_none();
    case.mma.a_mn_major = case.a_layout.is_some_and(|l| l.mn_major);
    case.mma.b_mn_major = case.b_layout.mn_major;
    let a = random_matrix(rng, 64, case.mma.depth, fa);
    let b = random_matrix(rng, n, case.mma.depth, fb);
    let mut shared = vec![0u8; 96 * 1024];
    let step = |l: Layout, r: u64| {
        if l.swizzle == 0 {
            0
        } else {
            (r as usize) % (l.swizzle / 32)
        }
    };
    let source = match case.a_layout {
        None => SourceA::Registers(a_fragment(&a, fa)),
        Some(l) => {
            let s = step(l, rng.next() >> 8);
            let d = l.place(&mut shared, 0x800, &a, fa, s);
            SourceA::Descriptor(Tile::decode(d, l.mn_major))
        }
    };
    let s = step(case.b_layout, rng.next() >> 8);
    let d = case.b_layout.place(&mut shared, 0x6000, &b, fb, s);
    let tile = Tile::decode(d, case.b_layout.mn_major);
    assert_eq!(out_of_bounds(&tile, n as u32, shared.len()), None);

    // D starts with small integers, in rows chosen out of order.
    let planes = case.mma.planes();
    let rows: Vec<u32> = (0..planes as u32).map(|i| (i * 7 + 3) % 131).collect();
    let mut files: Vec<Vec<Row>> = vec![vec![Row([0xdead_beef; 32]); 131]; 4];
    let start = |row: usize, column: usize| ((row * 31 + column * 17) % 23) as f64 - 11.0;
    let place = |row: usize, column: usize| {
        // D fragment of the ISA: lane 4(row%8) + (column%8)/2, register 4(column/8) + 2(row%16/8) + column%2.
        let lane = 4 * (row % 8) + column % 8 / 2;
        let element = 4 * (column / 8) + 2 * (row % 16 / 8) + column % 2;
        (row / 16, element, lane)
    };
    for row in 0..64 {
        for column in 0..n {
            let (warp, e, lane) = place(row, column);
            let v = start(row, column);
            match case.mma.d {
                Output::F32 => files[warp][rows[e] as usize].0[lane] = (v as f32).to_bits(),
                Output::S32 => files[warp][rows[e] as usize].0[lane] = v as i32 as u32,
                Output::F16 => {
                    let cell = &mut files[warp][rows[e / 2] as usize].0[lane];
                    let half = u32::from(super::format::f32_to_f16(v as f32));
                    let shift = 16 * (e % 2);
                    *cell = *cell & !(0xffff << shift) | half << shift;
                }
            }
        }
    }
    let regs = std::array::from_fn(|w| files[w].as_mut_ptr());
    let operands = Operands {
        a: &source,
        b: tile,
        keep: case.keep,
        metadata: None,
        shared: &shared,
        exact: case.exact,
    };
    // SAFETY: rows < 131 in files of 131 rows; the operands lie inside `shared`.
    unsafe { run(&case.mma, &operands, regs, &rows) };

    let sign = if case.mma.negate_a == case.mma.negate_b {
        1.0
    } else {
        -1.0
    };
    for row in 0..64 {
        for column in 0..n {
            let mut want = if case.keep { start(row, column) } else { 0.0 };
            let mut size = want.abs();
            for k in 0..case.mma.depth {
                let p = a.values[row * a.columns + k] * b.values[column * b.columns + k];
                want += sign * p;
                size += p.abs();
            }
            let (warp, e, lane) = place(row, column);
            let (got, error) = match case.mma.d {
                Output::F32 => {
                    let v = f32::from_bits(files[warp][rows[e] as usize].0[lane]);
                    // Eight-bit floats keep 13 fractional bits in the exact model.
                    let lost = if case.exact && fa.bits() == 8 {
                        35.0 / 8192.0
                    } else {
                        4e-6
                    };
                    (f64::from(v), size * lost)
                }
                Output::S32 => (f64::from(files[warp][rows[e] as usize].0[lane] as i32), 0.0),
                Output::F16 => {
                    let cell = files[warp][rows[e / 2] as usize].0[lane] >> (16 * (e % 2));
                    let v = super::format::f16_to_f32(cell as u16);
                    let lost = if case.exact && fa.bits() == 8 {
                        35.0 / 8192.0
                    } else {
                        4e-6
                    };
                    (f64::from(v), size * lost + want.abs() / 2000.0)
                }
            };
            assert!(
                (got - want).abs() <= error,
                "{:?} A {:?} B {:?} keep {}: ({row}, {column}) is {got}, not {want}",
                case.mma,
                case.a_layout,
                case.b_layout,
                case.keep,
            );
        }
    }
    for file in &files {
        for (i, row) in file.iter().enumerate() {
            if !rows.contains(&(i as u32)) {
                assert!(
                    row.0.iter().all(|v| *v == 0xdead_beef),
                    "row {i} was touched"
                );
            }
        }
    }
}

const FLOATS: [(Output, Format, Format); 12] = [
    (Output::F32, Format::Bf16, Format::Bf16),
    (Output::F32, Format::F16, Format::F16),
    (Output::F16, Format::F16, Format::F16),
    (Output::F32, Format::Tf32, Format::Tf32),
    (Output::F32, Format::E4m3, Format::E4m3),
    (Output::F32, Format::E4m3, Format::E5m2),
    (Output::F32, Format::E5m2, Format::E4m3),
    (Output::F32, Format::E5m2, Format::E5m2),
    (Output::F16, Format::E4m3, Format::E4m3),
    (Output::F16, Format::E4m3, Format::E5m2),
    (Output::F16, Format::E5m2, Format::E4m3),
    (Output::F16, Format::E5m2, Format::E5m2),
];

const INTEGERS: [(Format, Format); 5] = [
    (Format::S8, Format::S8),
    (Format::S8, Format::U8),
    (Format::U8, Format::S8),
    (Format::U8, Format::U8),
    (Format::B1, Format::B1),
];

#[test]
fn every_n_of_every_float_type() {
    let mut rng = Rng(1);
    for (d, a, b) in FLOATS {
        for n in (8..=256).step_by(8) {
            let layouts = Layout::all(a);
            let pick = |r: u64| layouts[r as usize % layouts.len()];
            check(
                &mut rng,
                Case {
                    mma: default_mma(d, a, b, n),
                    a_layout: (n % 16 == 0).then(|| pick(n as u64 / 16)),
                    b_layout: pick(n as u64 / 8),
                    keep: n % 24 != 0,
                    exact: false,
                },
            );
        }
    }
}

#[test]
fn every_layout_of_every_float_type() {
    let mut rng = Rng(2);
    for (d, a, b) in FLOATS {
        for b_layout in Layout::all(b) {
            for a_layout in Layout::all(a).into_iter().map(Some).chain([None]) {
                for keep in [false, true] {
                    check(
                        &mut rng,
                        Case {
                            mma: default_mma(d, a, b, 72),
                            a_layout,
                            b_layout,
                            keep,
                            exact: false,
                        },
                    );
                }
            }
        }
    }
}

#[test]
fn every_n_and_layout_of_integers() {
    let mut rng = Rng(3);
    for (a, b) in INTEGERS {
        for n in (8..=24).step_by(8).chain((32..=256).step_by(16)) {
            for b_layout in Layout::all(b) {
                let a_layout = Layout::all(a)[n / 8 % 4];
                check(
                    &mut rng,
                    Case {
                        mma: default_mma(Output::S32, a, b, n),
                        a_layout: (n % 32 != 0).then_some(a_layout),
                        b_layout,
                        keep: n % 16 == 0,
                        exact: false,
                    },
                );
            }
        }
    }
}

#[test]
fn operands_can_be_negated() {
    let mut rng = Rng(4);
    for (d, a, b) in FLOATS {
        for (negate_a, negate_b) in [(true, false), (false, true), (true, true)] {
            let mut mma = default_mma(d, a, b, 24);
            mma.negate_a = negate_a;
            mma.negate_b = negate_b;
            for b_layout in Layout::all(b) {
                check(
                    &mut rng,
                    Case {
                        mma: mma.clone(),
                        a_layout: Some(b_layout),
                        b_layout,
                        keep: true,
                        exact: false,
                    },
                );
            }
        }
    }
}

#[test]
fn the_exact_arithmetic_is_close_to_the_product() {
    let mut rng = Rng(6);
    for (d, a, b) in FLOATS {
        for a_layout in [None, Some(Layout::all(a)[3])] {
            check(
                &mut rng,
                Case {
                    mma: default_mma(d, a, b, 16),
                    a_layout,
                    b_layout: Layout::all(b)[2],
                    keep: a_layout.is_none(),
                    exact: true,
                },
            );
        }
    }
}

#[test]
fn saturation_clamps_the_sum() {
    let mut mma = default_mma(Output::S32, Format::S8, Format::S8, 8);
    mma.saturate = true;
    mma.a_in_registers = true;
    let a = SourceA::Registers(Box::new(RawA {
        bytes: [127; 2048],
        mn_major: false,
    }));
    let shared = vec![127u8; 4096];
    let descriptor = (0x400u64 >> 4) | 8 << 16 | 16 << 32;
    let mut files = vec![vec![Row([i32::MAX as u32 - 5; 32]); 4]; 4];
    let regs = std::array::from_fn(|w| files[w].as_mut_ptr());
    let operands = Operands {
        a: &a,
        b: Tile::decode(descriptor, false),
        keep: true,
        metadata: None,
        shared: &shared,
        exact: false,
    };
    // SAFETY: 4 rows in files of 4.
    unsafe { run(&mma, &operands, regs, &[0, 1, 2, 3]) };
    assert!(files.iter().flatten().all(|r| r.0 == [i32::MAX as u32; 32]));
    mma.saturate = false;
    // SAFETY: as above.
    unsafe { run(&mma, &operands, regs, &[0, 1, 2, 3]) };
    let wrapped = i32::MAX.wrapping_add(32 * 127 * 127) as u32;
    assert!(files.iter().flatten().all(|r| r.0 == [wrapped; 32]));
}

/// The accumulator of one product, taken 16 columns at a time and packed to pairs, is the A fragment of the next: the
/// identity on which attention kernels rely.
#[test]
fn an_accumulator_is_the_next_fragment() {
    for warp in 0..4 {
        for lane in 0..32 {
            for chunk in 0..4 {
                for e in 0..8 {
                    let i = 8 * chunk + e;
                    let row = 16 * warp + lane / 4 + 8 * ((i >> 1) & 1);
                    let column = 8 * (i >> 2) + 2 * (lane % 4) + (i & 1);
                    // Element e of an A fragment with k counted from the chunk.
                    let a_row = 16 * warp + lane / 4 + 8 * ((e >> 1) & 1);
                    let a_k = 8 * (e >> 2) + 2 * (lane % 4) + (e & 1);
                    assert_eq!((row, column), (a_row, 16 * chunk + a_k));
                }
            }
        }
    }
}
