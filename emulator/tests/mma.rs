//! mma.sync, ldmatrix, stmatrix and movmatrix through whole kernels. The test writes the PTX, one kernel per shape and
//! type; fragments are placed element by element as the figures of the PTX ISA say.
mod common;
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

/// Bits of a small value in a format with `e` exponent and `m` mantissa bits; the value must be exact in it.
fn small_float(v: f64, e: u32, m: u32) -> u64 {
    if v == 0.0 {
        return 0;
    }
    let exponent = v.abs().log2().floor() as i64;
    let mantissa = (v.abs() / 2f64.powi(exponent as i32) - 1.0) * 2f64.powi(m as i32);
    assert_eq!(mantissa.fract(), 0.0);
    let biased = exponent + (1 << (e - 1)) - 1;
    let sign = u64::from(v < 0.0) << (e + m);
    sign | (biased as u64) << m | mantissa as u64
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Type {
    F16,
    Bf16,
    Tf32,
    E4m3,
    E5m2,
    S8,
    U8,
    S4,
    U4,
    B1,
    F64,
    F32,
    S32,
}
use Type::*;

impl Type {
    fn name(self) -> String {
        format!("{self:?}").to_lowercase()
    }
    fn bits(self) -> usize {
        match self {
            F64 => 64,
            Tf32 | F32 | S32 => 32,
            F16 | Bf16 => 16,
            E4m3 | E5m2 | S8 | U8 => 8,
            S4 | U4 => 4,
            B1 => 1,
        }
    }
    /// A random value and its bits. Floats are halves of small integers, so that every sum is exact.
    fn random(self, r: &mut Lcg) -> (f64, u64) {
        let v = (r.below(15) as f64 - 7.0) / 2.0;
        match self {
            F16 => (v, small_float(v, 5, 10)),
            Bf16 => (v, small_float(v, 8, 7)),
            // The low bits of a tf32 operand are ignored.
            Tf32 => (v, small_float(v, 8, 23) | r.below(1 << 13)),
            F32 => (v, small_float(v, 8, 23)),
            E4m3 => (v, small_float(v, 4, 3)),
            E5m2 => (v, small_float(v, 5, 2)),
            F64 => (v, v.to_bits()),
            S32 => {
                let v = r.below(1 << 32) as u32;
                (f64::from(v as i32), u64::from(v))
            }
            S8 => {
                let v = r.below(256) as u8;
                (f64::from(v as i8), u64::from(v))
            }
            S4 => {
                let v = r.below(16);
                (f64::from((v << 4) as i8 >> 4), v)
            }
            U8 | U4 | B1 => {
                let v = r.below(1 << self.bits());
                (v as f64, v)
            }
        }
    }
    fn value(self, bits: u64) -> f64 {
        match self {
            F32 => f64::from(f32::from_bits(bits as u32)),
            S32 => f64::from(bits as u32 as i32),
            F64 => f64::from_bits(bits),
            F16 => {
                let (e, m) = ((bits >> 10 & 31) as i32, (bits & 1023) as f64);
                let v = if e == 0 {
                    m * 2f64.powi(-24)
                } else {
                    (1024.0 + m) * 2f64.powi(e - 25)
                };
                if bits >> 15 == 1 { -v } else { v }
            }
            _ => unreachable!("not a result type"),
        }
    }
    /// Elements per register, and the register's letter and width in PTX.
    fn register(self) -> (usize, &'static str, &'static str, usize) {
        match self {
            F64 => (1, "d", "f64", 8),
            F32 => (1, "f", "f32", 4),
            _ => (32 / self.bits(), "r", "b32", 4),
        }
    }
}

struct Matrix {
    columns: usize,
    cells: Vec<(f64, u64)>,
}

impl Matrix {
    fn random(r: &mut Lcg, rows: usize, columns: usize, ty: Type) -> Self {
        Self {
            columns,
            cells: (0..rows * columns).map(|_| ty.random(r)).collect(),
        }
    }
    fn at(&self, row: usize, column: usize) -> (f64, u64) {
        self.cells[row * self.columns + column]
    }
}

/// (row, column) of element `i` of lane `l` of A (m x k), B (k x 8) and C (m x 8).
fn a_place(ty: Type, m: usize, l: usize, i: usize) -> (usize, usize) {
    let (p, (g, t)) = (ty.register().0, (l / 4, l % 4));
    let (r, e) = (i / p, i % p);
    if m == 8 {
        return (g, t * p + e);
    }
    (
        g + if r % 2 == 1 { 8 } else { 0 },
        t * p
            + e
            + if ty == F64 {
                4 * (r / 2)
            } else {
                (r / 2) * 4 * p
            },
    )
}
fn b_place(ty: Type, l: usize, i: usize) -> (usize, usize) {
    let p = ty.register().0;
    ((i / p) * 4 * p + (l % 4) * p + i % p, l / 4)
}
fn c_place(l: usize, i: usize) -> (usize, usize) {
    (l / 4 + if i >= 2 { 8 } else { 0 }, 2 * (l % 4) + i % 2)
}

/// Packs `elements` per lane into the words of its registers, register by register, lane by lane.
fn fragment(ty: Type, elements: usize, cell: impl Fn(usize, usize) -> u64) -> Vec<u8> {
    let (p, _, _, bytes) = ty.register();
    let mut out = Vec::new();
    for r in 0..elements / p {
        for l in 0..32 {
            let mut word = 0u64;
            for e in 0..p {
                word |= cell(l, r * p + e) << (e * ty.bits());
            }
            out.extend_from_slice(&word.to_le_bytes()[..bytes]);
        }
    }
    out
}

#[derive(Debug, Clone, Copy)]
struct Case {
    m: usize,
    k: usize,
    a: Type,
    b: Type,
    d: Type,
    /// Modifier before the types (`.satfinite`) and after them (`.and.popc`).
    before: &'static str,
    after: &'static str,
}

/// The kernel: loads the fragments of A, B and C, one register after the other, and stores D.
fn text(case: &Case) -> String {
    let counts = [
        (case.d, case.m * 8 / 32),
        (case.a, case.m * case.k / 32),
        (case.b, case.k * 8 / 32),
        (case.d, case.m * 8 / 32),
    ];
    let mut body = String::from(
        ".reg .b32 %r<64>; .reg .f32 %f<64>; .reg .f64 %d<64>; .reg .b64 %p<8>;\n\
         mov.u32 %r60, %tid.x;\nld.param.u64 %p0, [out];\nld.param.u64 %p1, [in];\n\
         mul.wide.u32 %p2, %r60, 4;\nmul.wide.u32 %p3, %r60, 8;\n\
         add.u64 %p4, %p0, %p2;\nadd.u64 %p5, %p0, %p3;\nadd.u64 %p6, %p1, %p2;\nadd.u64 %p7, %p1, %p3;\n",
    );
    let (mut offset, mut next) = (0, 0);
    let mut lists = Vec::new();
    for (i, (ty, elements)) in counts.into_iter().enumerate() {
        let (p, letter, kind, bytes) = ty.register();
        let mut names = Vec::new();
        for _ in 0..elements / p {
            let name = format!("%{letter}{next}");
            next += 1;
            if i > 0 {
                let base = if bytes == 8 { "%p7" } else { "%p6" };
                body += &format!("ld.global.{kind} {name}, [{base}+{offset}];\n");
                offset += 32 * bytes;
            }
            names.push(name);
        }
        lists.push(format!("{{{}}}", names.join(",")));
    }
    body += &format!(
        "mma.sync.aligned.m{}n8k{}.row.col{}.{}.{}.{}.{}{} {};\n",
        case.m,
        case.k,
        case.before,
        case.d.name(),
        case.a.name(),
        case.b.name(),
        case.d.name(),
        case.after,
        lists.join(", ")
    );
    let (p, letter, kind, bytes) = case.d.register();
    let base = if bytes == 8 { "%p5" } else { "%p4" };
    for r in 0..case.m * 8 / 32 / p {
        body += &format!(
            "st.global.{kind} [{base}+{}], %{letter}{r};\n",
            r * 32 * bytes
        );
    }
    kernel(&body)
}

fn check(case: Case, r: &mut Lcg) {
    let a = Matrix::random(r, case.m, case.k, case.a);
    let b = Matrix::random(r, case.k, 8, case.b);
    let c = Matrix::random(r, case.m, 8, case.d);
    let mut input = fragment(case.a, case.m * case.k / 32, |l, i| {
        let (row, column) = a_place(case.a, case.m, l, i);
        a.at(row, column).1
    });
    input.extend(fragment(case.b, case.k * 8 / 32, |l, i| {
        let (row, column) = b_place(case.b, l, i);
        b.at(row, column).1
    }));
    let elements = case.m * 8 / 32;
    input.extend(fragment(case.d, elements, |l, i| {
        let (row, column) = c_place(l, i);
        c.at(row, column).1
    }));
    let words: Vec<u32> = input
        .chunks_exact(4)
        .map(|w| u32::from_le_bytes(w.try_into().unwrap()))
        .collect();
    let body = text(&case);
    let d = device(1, birdie_emulator::device::Policy::Eager);
    let m = module(&d, &body);
    let (p, _, _, bytes) = case.d.register();
    let out = upload(&d, &vec![0u32; 8 * 32]);
    let params = Params::default().u64(out).u64(upload(&d, &words));
    launch(&d, &m, "k", config(1, 32), &params).unwrap();
    let got: Vec<u8> = download(&d, out, elements / p * 32 * bytes);
    for l in 0..32 {
        for i in 0..elements {
            let at = ((i / p) * 32 + l) * bytes;
            let mut word = [0; 8];
            word[..bytes].copy_from_slice(&got[at..at + bytes]);
            let mut bits = u64::from_le_bytes(word) >> ((i % p) * case.d.bits());
            if case.d.bits() < 64 {
                bits &= (1 << case.d.bits()) - 1;
            }
            let (row, column) = c_place(l, i);
            let mut want = c.at(row, column).0;
            for k in 0..case.k {
                let (x, y) = (a.at(row, k).0, b.at(k, column).0);
                want += match case.after {
                    ".xor.popc" => f64::from(u8::from(x != y)),
                    _ => x * y,
                };
            }
            if case.d == S32 {
                want = if case.before == ".satfinite" {
                    want.clamp(f64::from(i32::MIN), f64::from(i32::MAX))
                } else {
                    f64::from(want as i64 as i32)
                };
            }
            assert_eq!(
                case.d.value(bits),
                want,
                "{case:?} row {row} column {column}"
            );
        }
    }
}

#[test]
fn every_shape_and_type_of_mma() {
    let mut cases = Vec::new();
    let mut add = |d: Type, a: &[Type], b: &[Type], shapes: &[(usize, usize)], before, after| {
        for (&a, &b) in a.iter().flat_map(|a| b.iter().map(move |b| (a, b))) {
            for &(m, k) in shapes {
                cases.push(Case {
                    m,
                    k,
                    a,
                    b,
                    d,
                    before,
                    after,
                });
            }
        }
    };
    for d in [F32, F16] {
        add(d, &[F16], &[F16], &[(16, 8), (16, 16)], "", "");
        add(
            d,
            &[E4m3, E5m2],
            &[E4m3, E5m2],
            &[(16, 16), (16, 32)],
            "",
            "",
        );
    }
    add(F32, &[Bf16], &[Bf16], &[(16, 8), (16, 16)], "", "");
    add(F32, &[Tf32], &[Tf32], &[(16, 4), (16, 8)], "", "");
    for sat in ["", ".satfinite"] {
        add(
            S32,
            &[S8, U8],
            &[S8, U8],
            &[(8, 16), (16, 16), (16, 32)],
            sat,
            "",
        );
        add(
            S32,
            &[S4, U4],
            &[S4, U4],
            &[(8, 32), (16, 32), (16, 64)],
            sat,
            "",
        );
    }
    for bits in [".xor.popc", ".and.popc"] {
        add(
            S32,
            &[B1],
            &[B1],
            &[(8, 128), (16, 128), (16, 256)],
            "",
            bits,
        );
    }
    add(
        F64,
        &[F64],
        &[F64],
        &[(8, 4), (16, 4), (16, 8), (16, 16)],
        "",
        "",
    );
    add(F64, &[F64], &[F64], &[(16, 8)], ".rn", "");
    let mut r = Lcg(7);
    for case in cases {
        check(case, &mut r);
    }
}

#[test]
fn what_does_not_exist_is_refused_at_load() {
    let d = device(0, birdie_emulator::device::Policy::Eager);
    for (instruction, why) in [
        (
            "mma.sync.aligned.m16n8k16.row.row.f32.f16.f16.f32 {%f0,%f1,%f2,%f3},{%r0,%r1,%r2,%r3},{%r4,%r5},{%f0,%f1,%f2,%f3};",
            "row.col",
        ),
        (
            "mma.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%f0,%f1,%f2,%f3},{%r0,%r1,%r2,%r3},{%r4,%r5},{%f0,%f1,%f2,%f3};",
            "combination",
        ),
        (
            "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%f0,%f1,%f2,%f3},{%r0,%r1},{%r4,%r5},{%f0,%f1,%f2,%f3};",
            "A needs 4",
        ),
        (
            "mma.sp.sync.aligned.m16n8k32.row.col.f32.f16.f16.f32 {%f0,%f1,%f2,%f3},{%r0,%r1,%r2,%r3},{%r4,%r5,%r6,%r7},{%f0,%f1,%f2,%f3}, %r8, 2;",
            "selector",
        ),
        (
            "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%f0,%f1,%f2,%f3,%f4,%f5,%f6,%f7},{%r0},{%r2,%r3},{%f0,%f1,%f2,%f3,%f4,%f5,%f6,%f7};",
            "2 registers for A",
        ),
        (
            "ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%r0,%r1},[%r4];",
            "4 registers",
        ),
        (
            "ldmatrix.sync.aligned.m16n16.x1.trans.shared.b8 {%r0,%r1},[%r4];",
            "b16",
        ),
        ("movmatrix.sync.aligned.m8n8.b16 %r0,%r1;", "trans"),
        (
            "wgmma.mma_async.sync.aligned.m64n12k16.f32.bf16.bf16 {%f0,%f1,%f2,%f3,%f4,%f5},%p0,%p1,1,1,1,0,0;",
            "N = 12",
        ),
        (
            "wgmma.mma_async.sync.aligned.m64n40k32.s32.s8.s8 {%r0,%r1,%r2,%r3},%p0,%p1,1;",
            "N = 40",
        ),
        (
            "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f0,%f1,%f2,%f3},%p0,%p1,1,1,1;",
            "imm-trans-a",
        ),
        (
            "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f0,%f1,%f2,%f3},%p0,%p1,1,0,1,0,0;",
            "imm-scale-a",
        ),
        (
            "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f0,%f1,%f2,%f3},%p0,%p1,2,1,1,0,0;",
            "scale-d",
        ),
        (
            "wgmma.mma_async.sync.aligned.m64n8k16.f16.bf16.bf16 {%r0,%r1},%p0,%p1,1,1,1,0,0;",
            "types",
        ),
        (
            "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {%f0,%f1,%f2},%p0,%p1,1,1,1,0,0;",
            "D needs 4",
        ),
        (
            "wgmma.mma_async.sp.sync.aligned.m64n8k32.f32.bf16.bf16 {%f0,%f1,%f2,%f3},%p0,%p1,%r0,2,1,1,1,0,0;",
            "selector",
        ),
        ("wgmma.wait_group.sync.aligned;", "operands"),
    ] {
        let body = format!(".reg .b32 %r<9>; .reg .f32 %f<9>; .reg .b64 %p<2>;\n{instruction}");
        let error = match d.load_module(&kernel(&body)) {
            Ok(_) => panic!("{instruction} was accepted"),
            Err(e) => format!("{e:?}"),
        };
        assert!(error.contains(why), "{instruction}: {error}");
    }
}

/// Row r, column c of matrix m in the shared memory of the ldmatrix test.
fn cell(m: usize, r: usize, c: usize) -> u32 {
    (m * 64 + r * 8 + c) as u32
}

#[test]
fn ldmatrix_in_every_form() {
    // Each thread writes 16 bytes (one row of a matrix): row i of matrix m lies at 16 * (31 - lane).
    let input: Vec<u32> = (0..32)
        .flat_map(|lane| {
            (0..4).map(move |i| {
                cell(lane / 8, lane % 8, 2 * i) | cell(lane / 8, lane % 8, 2 * i + 1) << 16
            })
        })
        .collect();
    for count in [1usize, 2, 4] {
        for trans in [false, true] {
            let t = if trans { ".trans" } else { "" };
            for (modifiers, address) in [
                (format!("m8n8.x{count}{t}.shared"), "%r9"),
                (format!("x{count}{t}.m8n8.shared"), "%r9"),
                (format!("m8n8.x{count}{t}.shared::cta"), "%r9"),
                (format!("m8n8.x{count}{t}"), "%p4"),
            ] {
                let names: Vec<_> = (0..count).map(|i| format!("%r{i}")).collect();
                let mut body = format!(
                    ".reg .b32 %r<16>; .reg .b64 %p<8>;\n.shared .align 16 .b8 s[512];\n\
                     mov.u32 %r8, %tid.x;\nld.param.u64 %p0, [out];\nld.param.u64 %p1, [in];\n\
                     mul.wide.u32 %p2, %r8, 16;\nadd.u64 %p1, %p1, %p2;\n\
                     ld.global.v4.b32 {{%r10,%r11,%r12,%r13}}, [%p1];\n\
                     mov.u32 %r9, s;\nsub.u32 %r14, 31, %r8;\nshl.b32 %r14, %r14, 4;\nadd.u32 %r9, %r9, %r14;\n\
                     st.shared.v4.b32 [%r9], {{%r10,%r11,%r12,%r13}};\nbar.warp.sync 0xffffffff;\n\
                     cvt.u64.u32 %p3, %r9;\ncvta.shared.u64 %p4, %p3;\n\
                     ldmatrix.sync.aligned.{modifiers}.b16 {{{}}}, [{address}];\n\
                     mul.wide.u32 %p2, %r8, 4;\nadd.u64 %p0, %p0, %p2;\n",
                    names.join(",")
                );
                for (i, n) in names.iter().enumerate() {
                    body += &format!("st.global.b32 [%p0+{}], {n};\n", 128 * i);
                }
                let got = run_body(&body, 32, &input, 32 * count).unwrap();
                for m in 0..count {
                    for l in 0..32 {
                        let (r, c) = (l / 4, 2 * (l % 4));
                        let want = if trans {
                            cell(m, c, r) | cell(m, c + 1, r) << 16
                        } else {
                            cell(m, r, c) | cell(m, r, c + 1) << 16
                        };
                        assert_eq!(got[m * 32 + l], want, "{modifiers} matrix {m} lane {l}");
                    }
                }
            }
        }
    }
}

#[test]
fn stmatrix_undoes_ldmatrix_and_movmatrix_transposes() {
    let input: Vec<u32> = (0..128).map(|i| (2 * i) | (2 * i + 1) << 16).collect();
    for count in [1usize, 2, 4] {
        for trans in [false, true] {
            let t = if trans { ".trans" } else { "" };
            for modifiers in [
                format!("m8n8.x{count}{t}.shared"),
                format!("x{count}{t}.m8n8.shared::cta"),
            ] {
                let names: Vec<_> = (0..count).map(|i| format!("%r{i}")).collect();
                let mut body = String::from(
                    ".reg .b32 %r<16>; .reg .b64 %p<8>;\n.shared .align 16 .b8 s[512];\n\
                     mov.u32 %r8, %tid.x;\nld.param.u64 %p0, [out];\nld.param.u64 %p1, [in];\n\
                     mul.wide.u32 %p2, %r8, 4;\nadd.u64 %p1, %p1, %p2;\n\
                     mul.wide.u32 %p3, %r8, 16;\nadd.u64 %p0, %p0, %p3;\n\
                     mov.u32 %r9, s;\nshl.b32 %r14, %r8, 4;\nadd.u32 %r9, %r9, %r14;\n\
                     mov.b32 %r10, 0;\nst.shared.v4.b32 [%r9], {%r10,%r10,%r10,%r10};\nbar.warp.sync 0xffffffff;\n",
                );
                for (i, n) in names.iter().enumerate() {
                    body += &format!("ld.global.b32 {n}, [%p1+{}];\n", 128 * i);
                    if trans {
                        // Transposed twice is as it was.
                        body += &format!("movmatrix.sync.aligned.m8n8.trans.b16 {n}, {n};\n");
                    }
                }
                body += &format!(
                    "stmatrix.sync.aligned.{modifiers}.b16 [%r9], {{{}}};\nbar.warp.sync 0xffffffff;\n\
                     ld.shared.v4.b32 {{%r10,%r11,%r12,%r13}}, [%r9];\nst.global.v4.b32 [%p0], {{%r10,%r11,%r12,%r13}};\n",
                    names.join(",")
                );
                let got = run_body(&body, 32, &input, 128).unwrap();
                // Lane l of register m holds elements 2(l%4), +1 of row l/4: in row-major order they are the input.
                let mut want = vec![0; 128];
                want[..32 * count].copy_from_slice(&input[..32 * count]);
                assert_eq!(got, want, "{modifiers}");
            }
        }
    }
}

#[test]
fn rows_must_be_aligned_and_inside() {
    use birdie_emulator::device::{Fault, LaunchError};
    let body = |offset: i32| {
        format!(
            ".reg .b32 %r<4>;\n.shared .align 16 .b8 s[128];\nmov.u32 %r0, s;\n\
             mov.b32 %r1, 0;\nstmatrix.sync.aligned.m8n8.x1.shared.b16 [%r0+{offset}], {{%r1}};\n"
        )
    };
    assert!(run_body(&body(0), 32, &[], 1).is_ok());
    assert!(matches!(
        run_body(&body(8), 32, &[], 1),
        Err(LaunchError::Fault(Fault::MisalignedAddress(_)))
    ));
    assert!(matches!(
        run_body(&body(1 << 20), 32, &[], 1),
        Err(LaunchError::Fault(Fault::IllegalAddress(_)))
    ));
}
