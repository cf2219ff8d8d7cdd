//! mma.sp and wgmma.mma_async.sp through whole kernels, against sums in f64. The test writes the PTX; values, fragments and metadata are
//! placed as the figures of the PTX ISA say, element by element.
mod common;
use birdie_emulator::check::FindingKind;
use birdie_emulator::device::{Fault, LaunchError};
use common::*;

/// Small deterministic generator for test data.
struct Lcg(u64);

impl Lcg {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) % n
    }
}

/// An operand's type: PTX name, bits, and the bits of small integers.
#[derive(Clone, Copy)]
struct Type {
    name: &'static str,
    bits: usize,
    encode: fn(i32) -> u32,
}

fn float(v: i32, exponent: u32, mantissa: u32) -> u32 {
    if v == 0 {
        return 0;
    }
    let e = v.unsigned_abs().ilog2();
    let m = ((v.unsigned_abs() << mantissa) >> e) & ((1 << mantissa) - 1);
    u32::from(v < 0) << (exponent + mantissa) | (e + (1 << (exponent - 1)) - 1) << mantissa | m
}

const F16: Type = Type {
    name: "f16",
    bits: 16,
    encode: |v| float(v, 5, 10),
};
const BF16: Type = Type {
    name: "bf16",
    bits: 16,
    encode: |v| float(v, 8, 7),
};
const TF32: Type = Type {
    name: "tf32",
    bits: 32,
    encode: |v| float(v, 8, 23),
};
const E4M3: Type = Type {
    name: "e4m3",
    bits: 8,
    encode: |v| float(v, 4, 3),
};
const E5M2: Type = Type {
    name: "e5m2",
    bits: 8,
    encode: |v| float(v, 5, 2),
};
const S8: Type = Type {
    name: "s8",
    bits: 8,
    encode: |v| v as u32 & 0xff,
};
const U8: Type = Type {
    name: "u8",
    bits: 8,
    // Of the small integers only the bits count: -3 is 253.
    encode: |v| v as u32 & 0xff,
};
const S4: Type = Type {
    name: "s4",
    bits: 4,
    encode: |v| v as u32 & 0xf,
};

/// A sparse matrix of `m` rows: full, compressed, and the metadata of each row.
struct Sparse {
    full: Vec<Vec<i32>>,
    stored: Vec<Vec<i32>>,
    metadata: Vec<u64>,
}

fn sparse(r: &mut Lcg, m: usize, k: usize, ty: Type) -> Sparse {
    let mut out = Sparse {
        full: vec![vec![0; k]; m],
        stored: vec![vec![]; m],
        metadata: vec![0; m],
    };
    let (chunk, unit) = match ty.bits {
        32 => (2, 1),
        4 => (8, 2),
        _ => (4, 1),
    };
    for row in 0..m {
        for (c, start) in (0..k).step_by(chunk).enumerate() {
            // Two different units of the chunk (one of two for tf32).
            let first = r.below(if chunk == 2 { 2 } else { 3 }) as usize;
            let second = first + 1 + r.below(3 - first.min(2) as u64) as usize;
            let units = if chunk == 2 {
                vec![first]
            } else {
                vec![first, second]
            };
            let code = match (chunk, first) {
                (2, 0) => 0b0100,
                (2, _) => 0b1110,
                _ => first | second << 2,
            };
            out.metadata[row] |= (code as u64) << (4 * c);
            for u in units {
                for e in 0..unit {
                    let v = r.below(7) as i32 - 3;
                    out.full[row][start + u * unit + e] = v;
                    out.stored[row].push(v);
                }
            }
        }
    }
    out
}

fn dense(r: &mut Lcg, rows: usize, columns: usize) -> Vec<Vec<i32>> {
    let mut row = |_| (0..columns).map(|_| r.below(7) as i32 - 3).collect();
    (0..rows).map(&mut row).collect()
}

/// The metadata registers of a warp for rows 0 to 15; what does not contribute is garbage.
fn metadata(ty: Type, k: usize, selector: usize, rows: &[u64]) -> Vec<u32> {
    let bits = match ty.bits {
        32 => 2 * k,
        4 => k / 2,
        _ => k,
    };
    let mut out = vec![0xdead_beef; 32];
    for g in 0..8 {
        let (a, b) = (rows[g], rows[g + 8]);
        let both = |shift: u32| (a >> shift & 0xffff | (b >> shift & 0xffff) << 16) as u32;
        let lanes = &mut out[4 * g..4 * g + 4];
        match bits {
            16 => lanes[selector] = both(0),
            32 if ty.bits >= 16 => {
                lanes[2 * selector] = both(0);
                lanes[2 * selector + 1] = both(16);
            }
            32 => {
                lanes[2 * selector] = a as u32;
                lanes[2 * selector + 1] = b as u32;
            }
            _ => lanes.copy_from_slice(&[a as u32, b as u32, (a >> 32) as u32, (b >> 32) as u32]),
        }
    }
    out
}

/// Elements `first..` of a row in one register.
fn packed(ty: Type, row: &[i32], first: usize) -> u32 {
    (0..32 / ty.bits).fold(0, |v, e| v | (ty.encode)(row[first + e]) << (e * ty.bits))
}

/// Registers of A (rows g and g + 8 in turn, further along K in every other pair): one word per lane, register after register.
fn fragment(ty: Type, rows: &[Vec<i32>]) -> Vec<u32> {
    let per = 32 / ty.bits;
    let registers = rows[0].len() / per / 4 * 2;
    (0..registers * 32)
        .map(|i| {
            let (r, l) = (i / 32, i % 32);
            packed(ty, &rows[l / 4 + 8 * (r % 2)], (4 * (r / 2) + l % 4) * per)
        })
        .collect()
}

/// The value that a small integer has as an element of the type.
fn value(ty: Type, v: i32) -> f64 {
    f64::from(if ty.name == "u8" { v & 0xff } else { v })
}

fn half(bits: u32) -> f64 {
    let (e, m) = ((bits >> 10 & 31) as i32, f64::from(bits & 1023));
    let v = if e == 0 {
        m * 2f64.powi(-24)
    } else {
        (m + 1024.0) * 2f64.powi(e - 25)
    };
    if bits >> 15 & 1 == 1 { -v } else { v }
}

fn result(name: &str, bits: u32) -> f64 {
    match name {
        "s32" => f64::from(bits as i32),
        _ => f64::from(f32::from_bits(bits)),
    }
}

fn mma(r: &mut Lcg, ty: Type, d: &str, k: usize, selector: usize, ordered: bool) {
    let a = sparse(r, 16, k, ty);
    let b = dense(r, 8, k);
    let per = 32 / ty.bits;
    let mut input = fragment(ty, &a.stored);
    let a_registers = input.len() / 32;
    let b_registers = k / per / 4;
    for i in 0..b_registers * 32 {
        let (register, l) = (i / 32, i % 32);
        input.push(packed(ty, &b[l / 4], (4 * register + l % 4) * per));
    }
    input.extend(metadata(ty, k, selector, &a.metadata));
    let total = a_registers + b_registers + 1;
    let loads: String = (0..total)
        .map(|i| format!("ld.global.b32 %r{i},[%i+{}];\n", 128 * i))
        .collect();
    let list = |from: usize, n: usize| {
        let names: Vec<_> = (from..from + n).map(|i| format!("%r{i}")).collect();
        format!("{{{}}}", names.join(","))
    };
    let letter = if d == "s32" { "b32" } else { d };
    let body = format!(
        ".reg .b32 %r<20>; .reg .{letter} %d<4>; .reg .b32 %t; .reg .b64 %i,%o,%x; mov.u32 %t,%tid.x; mul.wide.u32 %x,%t,4;
         ld.param.u64 %i,[in]; ld.param.u64 %o,[out]; add.u64 %i,%i,%x; add.u64 %o,%o,%x; {loads}
         mov.{letter} %d0,{zero}; mov.{letter} %d1,{zero}; mov.{letter} %d2,{zero}; mov.{letter} %d3,{zero};
         mma.sp{}.sync.aligned.m16n8k{k}.row.col.{d}.{t}.{t}.{d} {{%d0,%d1,%d2,%d3}},{},{},{{%d0,%d1,%d2,%d3}},%r{},{selector};
         st.global.{letter} [%o],%d0; st.global.{letter} [%o+128],%d1; st.global.{letter} [%o+256],%d2; st.global.{letter} [%o+384],%d3;",
        if ordered { "::ordered_metadata" } else { "" },
        list(0, a_registers),
        list(a_registers, b_registers),
        total - 1,
        zero = if d == "s32" { "0" } else { "0f00000000" },
        t = ty.name,
    );
    let got = run_body(&body, 32, &input, 128).unwrap();
    for (i, bits) in got.iter().enumerate() {
        let (e, l) = (i / 32, i % 32);
        let (row, column) = (l / 4 + 8 * (e / 2), 2 * (l % 4) + e % 2);
        let products = (0..k).map(|k| f64::from(a.full[row][k]) * f64::from(b[column][k]));
        let want: f64 = products.sum();
        let what = format!("{} k{k} selector {selector}", ty.name);
        assert_eq!(result(d, *bits), want, "{what}: row {row} column {column}");
    }
}

#[test]
fn every_shape_type_and_selector_of_mma() {
    let mut r = Lcg(1);
    for ordered in [false, true] {
        for (ty, d, k, selectors) in [
            (F16, "f32", 16, 4),
            (F16, "f32", 32, 2),
            (BF16, "f32", 16, 4),
            (BF16, "f32", 32, 2),
            (TF32, "f32", 8, 4),
            (TF32, "f32", 16, 2),
            (E4M3, "f32", 64, 1),
            (E5M2, "f32", 64, 1),
            (S8, "s32", 32, 2),
            (S8, "s32", 64, 1),
            (S4, "s32", 64, 2),
            (S4, "s32", 128, 1),
        ] {
            for selector in 0..selectors {
                mma(&mut r, ty, d, k, selector, ordered);
            }
        }
    }
}

/// Bytes of a K-major operand without swizzle: 8 rows of 16 bytes, core matrix after core matrix along K, then the next 8 rows.
fn core_matrices(ty: Type, rows: &[Vec<i32>]) -> Vec<u32> {
    let per = 128 / ty.bits;
    let mut out = vec![];
    for group in rows.chunks(8) {
        for piece in 0..rows[0].len() / per {
            for row in group {
                out.extend((0..4).map(|w| packed(ty, row, piece * per + w * per / 4)));
            }
        }
    }
    out
}

/// How B lies in shared memory.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Layout {
    /// Rows along K, core matrices of 8 x 16 bytes.
    K,
    /// Rows along K of 64 or 128 bytes, swizzled as wide as they are.
    Swizzled(u32),
    /// Rows along N, 8 k by 8 elements after each other.
    Mn,
}

/// A wgmma of a compressed A.
#[derive(Debug, Clone, Copy)]
struct Product {
    n: usize,
    selector: usize,
    a_in_registers: bool,
    layout: Layout,
    /// scale-d: 3 is in every accumulator before.
    keep: bool,
    negate: [bool; 2],
}

impl Product {
    fn new(n: usize, selector: usize, a_in_registers: bool) -> Self {
        Product {
            n,
            selector,
            a_in_registers,
            layout: Layout::K,
            keep: false,
            negate: [false; 2],
        }
    }
}

/// Words of B, its leading and stride byte offsets, and the descriptor's mode.
fn place_b(layout: Layout, ty: Type, b: &[Vec<i32>]) -> (Vec<u32>, u64, u64, u64) {
    let k = b[0].len();
    match layout {
        Layout::K => (core_matrices(ty, b), 128, 512, 0),
        Layout::Mn => {
            // Along N first: piece after piece of 8 columns, then the next 8 k.
            let mut out = vec![];
            for ks in (0..k).step_by(8) {
                for columns in b.chunks(8) {
                    for k in ks..ks + 8 {
                        let row: Vec<i32> = columns.iter().map(|c| c[k]).collect();
                        out.extend((0..4).map(|w| packed(ty, &row, 2 * w)));
                    }
                }
            }
            (out, b.len() as u64 * 16, 128, 0)
        }
        Layout::Swizzled(width) => {
            let per = 128 / ty.bits;
            let mut out = vec![0; b.len() * width as usize / 4];
            for (row, values) in b.iter().enumerate() {
                for piece in 0..k / per {
                    let linear = row as u32 * width + 16 * piece as u32;
                    // The buffer is aligned to 1024 bytes.
                    let at = linear ^ (linear >> 7 & (width / 16 - 1)) << 4;
                    for w in 0..4 {
                        out[at as usize / 4 + w] = packed(ty, values, piece * per + w * per / 4);
                    }
                }
            }
            (
                out,
                16,
                8 * u64::from(width),
                if width == 128 { 1 } else { 2 },
            )
        }
    }
}

fn wgmma(r: &mut Lcg, [ta, tb]: [Type; 2], d: &str, p: Product) {
    let (n, ty, selector) = (p.n, ta, p.selector);
    let k = 512 / ty.bits;
    let a = sparse(r, 64, k, ty);
    let b = dense(r, n, k);
    let mut input = core_matrices(ty, &a.stored);
    let (words, leading, stride, mode) = place_b(p.layout, tb, &b);
    input.extend(words);
    let shared = input.len();
    // Per warp: the metadata, then the fragment of A.
    for w in 0..4 {
        let rows = 16 * w..16 * w + 16;
        input.extend(metadata(ty, k, selector, &a.metadata[rows.clone()]));
        input.extend(fragment(ty, &a.stored[rows]));
    }
    let planes = if d == "f16" { n / 4 } else { n / 2 };
    let names: Vec<_> = (0..planes).map(|i| format!("%d{i}")).collect();
    let kind = if d == "f32" { "f32" } else { "b32" };
    let stores: String = (0..planes)
        .map(|i| format!("st.global.{kind} [%o+{}],%d{i};\n", 512 * i))
        .collect();
    let three = match d {
        "s32" => "3",
        "f16" => "0x42004200",
        _ => "0f40400000",
    };
    let preset: String = (0..planes)
        .map(|i| format!("mov.{kind} %d{i},{three};\n"))
        .collect();
    let sign = |negate: bool| if negate { -1 } else { 1 };
    let signs = format!(",{},{}", sign(p.negate[0]), sign(p.negate[1]));
    let transposed = u32::from(p.layout == Layout::Mn);
    let scales = match (ty.bits, d, p.a_in_registers) {
        (_, "s32", _) => String::new(),
        (16, _, false) => format!("{signs},0,{transposed}"),
        (16, _, true) => format!("{signs},{transposed}"),
        _ => signs,
    };
    let a_operand = if p.a_in_registers {
        "{%r1,%r2,%r3,%r4}"
    } else {
        "%da"
    };
    let loads: String = (0..5)
        .map(|i| format!("ld.global.b32 %r{i},[%a+{}];\n", 4 * shared + 128 * i))
        .collect();
    // A: leading dimension 128 bytes, 8 rows further 256 bytes.
    let descriptor = |leading: u64, stride: u64, mode: u64| {
        (leading >> 4) << 16 | (stride >> 4) << 32 | mode << 62
    };
    let body = format!(
        ".reg .b32 %r<8>,%t,%s,%y,%x,%z; .reg .{kind} %d<{planes}>; .reg .b64 %i,%o,%a,%da,%db; .reg .pred %p;
         .shared .align 1024 .b8 s[{bytes}]; mov.u32 %t,%tid.x; mov.u32 %s,s; ld.param.u64 %i,[in]; ld.param.u64 %o,[out]; mov.u32 %y,%t;
         C: setp.ge.u32 %p,%y,{shared}; @%p bra D; mul.wide.u32 %a,%y,4; add.u64 %a,%i,%a; ld.global.u32 %x,[%a];
         mad.lo.u32 %z,%y,4,%s; st.shared.u32 [%z],%x; add.u32 %y,%y,128; bra C;
         D: fence.proxy.async.shared::cta; bar.sync 0; shr.u32 %x,%s,4; cvt.u64.u32 %da,%x; add.u64 %db,%da,{db}; add.u64 %da,%da,{da};
         shr.u32 %x,%t,5; and.b32 %y,%t,31; mad.lo.u32 %x,%x,160,%y; mul.wide.u32 %a,%x,4; add.u64 %a,%a,%i;
         {loads} {preset}
         wgmma.fence.sync.aligned;
         wgmma.mma_async.sp.sync.aligned.m64n{n}k{k}.{d}.{}.{} {{{}}},{a_operand},%db,%r0,{selector},{}{scales};
         wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; mul.wide.u32 %a,%t,4; add.u64 %o,%o,%a; {stores}",
        ta.name,
        tb.name,
        names.join(","),
        u32::from(p.keep),
        bytes = 4 * shared,
        da = descriptor(128, 256, 0),
        db = descriptor(leading, stride, mode) + (2048 >> 4),
    );
    let got = run_body(&body, 128, &input, planes * 128).unwrap();
    for row in 0..64 {
        for (column, weights) in b.iter().enumerate().take(n) {
            let (w, g) = (row / 16, row % 16);
            let lane = g % 8 * 4 + column % 8 / 2;
            let found = if d == "f16" {
                let plane = column / 8 * 2 + g / 8;
                half(got[plane * 128 + 32 * w + lane] >> (16 * (column % 2)) & 0xffff)
            } else {
                let plane = column / 8 * 4 + g / 8 * 2 + column % 2;
                result(d, got[plane * 128 + 32 * w + lane])
            };
            let products = (0..k).map(|k| value(ta, a.full[row][k]) * value(tb, weights[k]));
            let sum: f64 = products.sum();
            let sum = if p.negate[0] != p.negate[1] {
                -sum
            } else {
                sum
            };
            let want = sum + if p.keep { 3.0 } else { 0.0 };
            assert_eq!(
                found, want,
                "{}.{}.{d} {p:?}: row {row} column {column}",
                ta.name, tb.name
            );
        }
    }
}

#[test]
fn every_type_and_selector_of_wgmma() {
    let mut r = Lcg(2);
    for a_in_registers in [false, true] {
        for (types, d, selectors) in [
            ([F16, F16], "f32", 2),
            ([F16, F16], "f16", 2),
            ([BF16, BF16], "f32", 2),
            ([TF32, TF32], "f32", 2),
            ([E4M3, E4M3], "f32", 1),
            ([E4M3, E5M2], "f32", 1),
            ([E5M2, E4M3], "f16", 1),
            ([E5M2, E5M2], "f32", 1),
            ([S8, S8], "s32", 1),
            ([S8, U8], "s32", 1),
            ([U8, S8], "s32", 1),
            ([U8, U8], "s32", 1),
        ] {
            for selector in 0..selectors {
                for n in [8, 24, 64] {
                    wgmma(&mut r, types, d, Product::new(n, selector, a_in_registers));
                }
            }
        }
    }
    wgmma(&mut r, [BF16, BF16], "f32", Product::new(256, 1, false));
    wgmma(&mut r, [S8, S8], "s32", Product::new(256, 0, true));
}

#[test]
fn accumulation_signs_and_layouts_of_wgmma() {
    let mut r = Lcg(3);
    for a_in_registers in [false, true] {
        let plain = Product::new(40, 1, a_in_registers);
        let last = Product {
            selector: 0,
            ..plain
        };
        let kept = Product {
            keep: true,
            negate: [true, false],
            ..plain
        };
        wgmma(&mut r, [F16, F16], "f16", kept);
        wgmma(
            &mut r,
            [TF32, TF32],
            "f32",
            Product {
                negate: [false, true],
                ..kept
            },
        );
        wgmma(
            &mut r,
            [E4M3, E4M3],
            "f32",
            Product {
                negate: [true, true],
                ..kept
            }
            .at(0),
        );
        wgmma(
            &mut r,
            [S8, S8],
            "s32",
            Product {
                keep: true,
                n: 48,
                ..last
            },
        );
        for layout in [Layout::Swizzled(64), Layout::Swizzled(128)] {
            wgmma(&mut r, [BF16, BF16], "f32", Product { layout, ..plain });
            wgmma(&mut r, [TF32, TF32], "f32", Product { layout, ..plain });
            wgmma(&mut r, [E5M2, E5M2], "f32", Product { layout, ..last });
        }
        wgmma(
            &mut r,
            [F16, F16],
            "f32",
            Product {
                layout: Layout::Mn,
                ..plain
            },
        );
        wgmma(
            &mut r,
            [BF16, BF16],
            "f32",
            Product {
                layout: Layout::Mn,
                ..last
            },
        );
    }
}

impl Product {
    fn at(self, selector: usize) -> Self {
        Product { selector, ..self }
    }
}

/// Metadata that name the first two (code 4) or the last two (code 14) of every four elements, where only the first two are defined in B.
#[test]
fn only_what_the_metadata_name_has_to_be_defined() {
    let undefined = |result: Result<Vec<u32>, LaunchError>| match result {
        Err(LaunchError::Fault(Fault::Finding(f))) => {
            assert_eq!(f.kind, FindingKind::Uninitialized, "{f:?}");
            true
        }
        Err(e) => panic!("{e:?}"),
        Ok(_) => false,
    };
    for (code, wrong) in [
        ("0x44444444", false),
        ("0xeeeeeeee", true),
        ("0x44e44444", true),
    ] {
        // Two elements of 16 bits in a register: those of lanes with an odd number in their four are the last two of a chunk.
        let body = format!(
            ".reg .b32 %t,%q,%a,%b,%m; .reg .f32 %d<4>; .reg .pred %p; .reg .b64 %o; mov.u32 %t,%tid.x; ld.param.u64 %o,[out];
             and.b32 %q,%t,1; setp.eq.u32 %p,%q,0; @%p mov.b32 %b,0x3f803f80; mov.b32 %a,0x3f803f80; mov.b32 %m,{code};
             mov.f32 %d0,0f00000000; mov.f32 %d1,%d0; mov.f32 %d2,%d0; mov.f32 %d3,%d0;
             mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32 {{%d0,%d1,%d2,%d3}},{{%a,%a,%a,%a}},{{%b,%b,%b,%b}},{{%d0,%d1,%d2,%d3}},%m,0;
             mad.wide.u32 %o,%t,16,%o; st.global.v4.f32 [%o],{{%d0,%d1,%d2,%d3}};"
        );
        assert_eq!(
            undefined(run_body(&body, 32, &[], 128)),
            wrong,
            "mma.sp {code}"
        );
        // The same in shared memory: every other word of B.
        let body = format!(
            ".reg .b32 %t,%s,%x,%y,%m; .reg .f32 %d<4>; .reg .pred %p; .reg .b64 %o,%da,%db; .shared .align 1024 .b8 s[2560];
             mov.u32 %t,%tid.x; ld.param.u64 %o,[out]; mov.u32 %s,s; mov.b32 %y,0x3f803f80; mad.lo.u32 %x,%t,16,%s;
             st.shared.v4.b32 [%x],{{%y,%y,%y,%y}}; mad.lo.u32 %x,%t,8,%s; setp.lt.u32 %p,%t,64; @%p st.shared.b32 [%x+2048],%y;
             fence.proxy.async.shared::cta; bar.sync 0; mov.b32 %m,{code}; shr.u32 %x,%s,4; cvt.u64.u32 %da,%x;
             add.u64 %db,%da,{}; add.u64 %da,%da,{}; wgmma.fence.sync.aligned;
             wgmma.mma_async.sp.sync.aligned.m64n8k32.f32.bf16.bf16 {{%d0,%d1,%d2,%d3}},%da,%db,%m,0,0,1,1,0,0;
             wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; mad.wide.u32 %o,%t,16,%o; st.global.v4.f32 [%o],{{%d0,%d1,%d2,%d3}};",
            (8u64 << 16 | 32 << 32) + (2048 >> 4),
            8u64 << 16 | 16 << 32,
        );
        assert_eq!(
            undefined(run_body(&body, 128, &[], 512)),
            wrong,
            "wgmma.sp {code}"
        );
    }
    // Metadata that nobody has written.
    let body = ".reg .b32 %t,%a,%m; .reg .f32 %d<4>; .reg .pred %p; .reg .b64 %o; mov.u32 %t,%tid.x; ld.param.u64 %o,[out]; mov.b32 %a,0;
        setp.gt.u32 %p,%t,32; @%p mov.b32 %m,0x44444444; mov.f32 %d0,0f00000000;
        mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32 {%d0,%d1,%d2,%d3},{%a,%a,%a,%a},{%a,%a,%a,%a},{%d0,%d0,%d0,%d0},%m,0;
        mad.wide.u32 %o,%t,16,%o; st.global.f32 [%o],%d0;";
    assert!(undefined(run_body(body, 32, &[], 128)));
}

#[test]
fn what_does_not_exist_is_refused() {
    for text in [
        // No such selector, no metadata, no such shape.
        "mma.sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%f0,%f1,%f2,%f3},{%r0,%r1,%r2,%r3},{%r0,%r1,%r2,%r3},{%f0,%f1,%f2,%f3},%r0,2;",
        "mma.sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%f0,%f1,%f2,%f3},{%r0,%r1,%r2,%r3},{%r0,%r1,%r2,%r3},{%f0,%f1,%f2,%f3};",
        "mma.sp.sync.aligned.m16n8k8.row.col.f32.f16.f16.f32 {%f0,%f1,%f2,%f3},{%r0},{%r0},{%f0,%f1,%f2,%f3},%r0,0;",
    ] {
        let body = format!(".reg .b32 %r<4>; .reg .f32 %f<4>; {text}");
        let d = device(0, birdie_emulator::device::Policy::Eager);
        assert!(d.load_module(&kernel(&body)).is_err(), "{text}");
    }
}
