//! wmma in every shape, type and layout, and mma.m8n8k4 of f16, against plain Rust. All values are small integers or
//! halves of them, so that every sum is exact in every order.

mod common;
use common::*;

/// Rows, columns and depth.
type Shape = (usize, usize, usize);

/// A type of A and B, of C and D, its shapes, and how many bits an element has.
const KINDS: [(&str, &str, &[Shape], usize); 10] = [
    ("f16", "f32", SQUARE, 16),
    ("f16", "f16", SQUARE, 16),
    ("bf16", "f32", SQUARE, 16),
    ("tf32", "f32", &[(16, 16, 8)], 32),
    ("s8", "s32", SQUARE, 8),
    ("u8", "s32", SQUARE, 8),
    ("s4", "s32", &[(8, 8, 32)], 4),
    ("u4", "s32", &[(8, 8, 32)], 4),
    ("b1", "s32", &[(8, 8, 128)], 1),
    ("f64", "f64", &[(8, 8, 4)], 64),
];
const SQUARE: &[(usize, usize, usize)] = &[(16, 16, 16), (8, 32, 16), (32, 8, 16)];

/// Value of an element by its number: fits the type.
fn value(ty: &str, seed: usize) -> i64 {
    let v = (seed * 37 + 11) % 23;
    match ty {
        "b1" => (v % 3 == 1) as i64,
        "u4" | "u8" => (v % 13) as i64,
        "s4" => (v % 15) as i64 - 7,
        _ => v as i64 - 11,
    }
}

fn f16(v: i64) -> u64 {
    // Integers below 2048 are exact: find them by their exponent.
    let magnitude = v.unsigned_abs();
    if magnitude == 0 {
        return 0;
    }
    let exponent = 63 - u64::from(magnitude.leading_zeros());
    let fraction = (magnitude << 10 >> exponent) & 0x3ff;
    u64::from(v < 0) << 15 | (exponent + 15) << 10 | fraction
}

fn encode(ty: &str, v: i64) -> u64 {
    match ty {
        "f16" => f16(v),
        "bf16" => u64::from((v as f32).to_bits() >> 16),
        "tf32" | "f32" => u64::from((v as f32).to_bits()),
        "f64" => (v as f64).to_bits(),
        _ => v as u64,
    }
}

/// Elements in memory, `bits` each.
fn pack(values: impl Iterator<Item = u64>, bits: usize) -> Vec<u32> {
    let mut bytes = Vec::new();
    let mut at = 0;
    for v in values {
        if bits >= 8 {
            bytes.extend(&v.to_le_bytes()[..bits / 8]);
        } else {
            if at % 8 == 0 {
                bytes.push(0);
            }
            let last: &mut u8 = bytes.last_mut().unwrap();
            *last |= (v as u8 & ((1 << bits) - 1)) << (at % 8);
            at += bits;
        }
    }
    bytes.resize(bytes.len().next_multiple_of(64), 0);
    bytes
        .chunks(4)
        .map(|c| u32::from_le_bytes(c.try_into().unwrap()))
        .collect()
}

fn list(prefix: &str, n: usize) -> String {
    let names: Vec<String> = (0..n).map(|i| format!("%{prefix}{i}")).collect();
    format!("{{{}}}", names.join(","))
}

fn registers(ty: &str, elements: usize, bits: usize, operand: bool) -> usize {
    if ty == "f16" && operand {
        8
    } else {
        elements * bits / 32 / bits.max(32)
    }
}

fn accumulator_bits(ty: &str) -> usize {
    match ty {
        "f16" => 16,
        "f64" => 64,
        _ => 32,
    }
}

/// One product; `shared`: A is copied to shared memory and loaded from there.
fn product(
    (ty, acc, (m, n, k), bits): (&str, &str, (usize, usize, usize), usize),
    rows: [bool; 3],
    operation: &str,
    stride: Option<usize>,
    shared: bool,
) {
    let layout = |r: bool| if r { "row" } else { "col" };
    let a = |i: usize, l: usize| value(ty, i * k + l);
    let b = |l: usize, j: usize| value(ty, 1000 + l * n + j);
    let c = |i: usize, j: usize| value(acc, 5000 + i * n + j);
    let cbits = accumulator_bits(acc);
    // The matrices in memory, one after the other; `stride` beyond the least leaves gaps.
    let matrix = |outer: usize, inner: usize, rows: bool, f: &dyn Fn(usize, usize) -> u64, bits| {
        let (o, i) = if rows { (outer, inner) } else { (inner, outer) };
        let ld = stride.map_or(i, |s| s.max(i));
        let values = (0..o * ld).map(move |e| {
            let (x, y) = (e / ld, e % ld);
            if y >= i {
                0
            } else if rows {
                f(x, y)
            } else {
                f(y, x)
            }
        });
        (pack(values, bits), ld)
    };
    let (pa, lda) = matrix(m, k, rows[0], &|i, l| encode(ty, a(i, l)), bits);
    let (pb, ldb) = matrix(k, n, rows[1], &|l, j| encode(ty, b(l, j)), bits);
    let (pc, ldc) = matrix(m, n, rows[2], &|i, j| encode(acc, c(i, j)), cbits);
    let (at_b, at_c) = (4 * pa.len(), 4 * (pa.len() + pb.len()));
    let words = pa.len();
    let mut input = pa;
    input.extend(&pb);
    input.extend(&pc);
    let shape = format!("m{m}n{n}k{k}");
    let reg = |bits: usize, acc: &str| match (bits, acc) {
        (64, _) => "f64",
        (_, "f32") => "f32",
        _ => "b32",
    };
    let (ra, rb) = (
        registers(ty, m * k, bits, true),
        registers(ty, k * n, bits, true),
    );
    let rc = registers(acc, m * n, cbits, false);
    let given = |ld: usize| match stride {
        None => String::new(),
        Some(_) => format!(",{ld}"),
    };
    let (copy, place, space) = if shared {
        (
            format!(
                ".shared .align 32 .b32 s[{words}]; mov.u32 %s,s; mov.u32 %y,%t; C: setp.ge.u32 %p,%y,{words}; @%p bra D;
                 mul.wide.u32 %w,%y,4; add.u64 %w,%w,%i; ld.global.u32 %x,[%w]; mad.lo.u32 %z,%y,4,%s; st.shared.u32 [%z],%x;
                 add.u32 %y,%y,32; bra C; D: bar.warp.sync -1;"
            ),
            "[%s]",
            ".shared",
        )
    } else {
        (String::new(), "[%i]", ".global")
    };
    let types = match (ty, acc) {
        ("f16", acc) => format!("{acc}.{acc}"),
        (ty, acc) => format!("{acc}.{ty}.{ty}.{acc}"),
    };
    let body = format!(
        ".reg .b32 %t,%s,%x,%y,%z; .reg .b64 %o,%i,%w; .reg .pred %p; .reg .{ta} %a<{ra}>,%b<{rb}>; .reg .{tc} %c<{rc}>,%d<{rc}>;
         ld.param.u64 %o,[out]; ld.param.u64 %i,[in]; mov.u32 %t,%tid.x; {copy}
         wmma.load.a.sync.aligned.{la}.{shape}{space}.{ty} {va}, {place}{sa};
         wmma.load.b.sync.aligned.{lb}.{shape}.{ty} {vb}, [%i+{at_b}]{sb};
         wmma.load.c.sync.aligned.{lc}.{shape}.global.{acc} {vc}, [%i+{at_c}]{sc};
         wmma.mma{operation}.sync.aligned.{la}.{lb}.{shape}.{types} {vd}, {va}, {vb}, {vc};
         wmma.store.d.sync.aligned.{lc}.{shape}.global.{acc} [%o], {vd}{sc};",
        ta = reg(bits, ""),
        tc = reg(cbits, acc),
        la = layout(rows[0]),
        lb = layout(rows[1]),
        lc = layout(rows[2]),
        va = list("a", ra),
        vb = list("b", rb),
        vc = list("c", rc),
        vd = list("d", rc),
        sa = given(lda),
        sb = given(ldb),
        sc = given(ldc),
    );
    let want = |i: usize, j: usize| -> u64 {
        let sum: i64 = (0..k)
            .map(|l| match operation {
                ".xor.popc" => a(i, l) ^ b(l, j),
                ".and.popc" => a(i, l) & b(l, j),
                _ => a(i, l) * b(l, j),
            })
            .sum();
        let v = encode(acc, c(i, j) + sum);
        if cbits == 32 { v & 0xffff_ffff } else { v }
    };
    let (expected, _) = matrix(m, n, rows[2], &want, cbits);
    let got = run_body(&body, 32, &input, expected.len()).unwrap();
    assert_eq!(got, expected, "{shape} {ty} {acc} {rows:?} {operation}");
}

#[test]
fn every_type_shape_and_layout() {
    for (ty, acc, shapes, bits) in KINDS {
        for shape in shapes {
            for layouts in 0..8 {
                let rows = [layouts & 1 == 0, layouts & 2 == 0, layouts & 4 == 0];
                if bits < 8 && (!rows[0] || rows[1]) {
                    continue;
                }
                let operations: &[&str] = if ty == "b1" {
                    &[".xor.popc", ".and.popc"]
                } else {
                    &[""]
                };
                for operation in operations {
                    product((ty, acc, *shape, bits), rows, operation, None, false);
                }
            }
        }
    }
}

#[test]
fn strides_and_shared_memory() {
    for (ty, acc, shapes, bits) in KINDS {
        if bits >= 8 {
            for rows in [[true, false, true], [false, true, false]] {
                product((ty, acc, shapes[0], bits), rows, "", Some(40), true);
            }
        }
    }
}

#[test]
fn what_does_not_exist_does_not_load() {
    let d = device(0, birdie_emulator::device::Policy::Random);
    for (text, why) in [
        (
            "wmma.load.a.sync.aligned.row.m16n16k8.f16 {%r0,%r1,%r2,%r3,%r4,%r5,%r6,%r7},[%d0];",
            "does not exist",
        ),
        (
            "wmma.load.a.sync.aligned.col.m8n8k32.s4 {%r0},[%d0];",
            ".row in A",
        ),
        (
            "wmma.load.a.sync.aligned.row.m16n16k16.bf16 {%r0,%r1,%r2},[%d0];",
            "4 registers",
        ),
        (
            "wmma.mma.sync.aligned.row.col.m8n8k128.s32.b1.b1.s32 {%r0,%r1},{%r2},{%r3},{%r4,%r5};",
            "does not exist",
        ),
        (
            "wmma.mma.sync.aligned.row.col.m16n16k16.s32.s8.u8.s32 {%r0},{%r0},{%r0},{%r0};",
            "does not exist",
        ),
        ("wmma.frob.sync.aligned {%r0};", "is .load"),
    ] {
        let body = format!(".reg .b32 %r<8>; .reg .b64 %d<2>; {text}");
        match d.load_module(&kernel(&body)) {
            Err(birdie_emulator::device::LoadError::Lower(e)) => {
                assert!(e.what.contains(why), "{text}: {}", e.what);
            }
            Err(e) => panic!("{text}: {e:?}"),
            Ok(_) => panic!("{text}: loads"),
        }
    }
}

/// The four products of mma.m8n8k4, with the fragments as the ISA gives them.
#[test]
fn four_small_products_at_once() {
    let a = |q: usize, row: usize, k: usize| value("f16", q * 100 + row * 4 + k);
    let b = |q: usize, k: usize, column: usize| value("f16", 700 + q * 100 + k * 8 + column);
    let c = |q: usize, row: usize, column: usize| value("f16", 3000 + q * 100 + row * 8 + column);
    for (la, lb) in [
        ("row", "col"),
        ("col", "row"),
        ("row", "row"),
        ("col", "col"),
    ] {
        for (td, tc) in [
            ("f32", "f32"),
            ("f16", "f16"),
            ("f32", "f16"),
            ("f16", "f32"),
        ] {
            // Words of each lane: A 2, B 2, C 8 (the last four unused for f16).
            let place = |lane: usize, i: usize, ty: &str| {
                let high = if lane < 16 { 0 } else { 4 };
                if ty == "f32" {
                    let x = (lane & 1) + (i & 2);
                    (x + high, (i & 4) + (lane & 2) + (i & 1))
                } else {
                    (lane % 4 + high, i)
                }
            };
            let mut input = Vec::new();
            for lane in 0..32usize {
                let (q, g, high) = (lane / 4 % 4, lane % 4, if lane < 16 { 0 } else { 4 });
                let pair = |f: &dyn Fn(usize) -> i64, r: usize| {
                    (f16(f(2 * r)) | f16(f(2 * r + 1)) << 16) as u32
                };
                let element_a = |i: usize| {
                    if la == "row" {
                        a(q, g + high, i)
                    } else {
                        a(q, i + high, g)
                    }
                };
                let element_b = |i: usize| {
                    if lb == "row" {
                        b(q, g, i + high)
                    } else {
                        b(q, i, g + high)
                    }
                };
                let element_c = |i: usize| {
                    let (row, column) = place(lane, i, tc);
                    c(q, row, column)
                };
                input.extend([pair(&element_a, 0), pair(&element_a, 1)]);
                input.extend([pair(&element_b, 0), pair(&element_b, 1)]);
                input.extend((0..8).map(|r| match tc {
                    "f32" => (element_c(r) as f32).to_bits(),
                    _ if r < 4 => pair(&element_c, r),
                    _ => 0,
                }));
            }
            let n = |ty: &str| if ty == "f32" { 8 } else { 4 };
            let stores: String = (0..n(td))
                .map(|r| format!("st.global.b32 [%w+{}],%d{r};", 4 * r))
                .collect();
            let loads: String = (0..12)
                .map(|r| format!("ld.global.b32 %r{r},[%i+{}];", 4 * r))
                .collect();
            let moves: String = (0..n(tc))
                .map(|r| format!("mov.b32 %c{r},%r{};", r + 4))
                .collect();
            let reg = |ty: &str| if ty == "f32" { "f32" } else { "b32" };
            let body = format!(
                ".reg .b32 %t,%r<12>; .reg .{} %c<8>; .reg .{} %d<8>; .reg .b64 %o,%i,%w; ld.param.u64 %o,[out]; ld.param.u64 %i,[in];
                 mov.u32 %t,%tid.x; mad.wide.u32 %i,%t,48,%i; mad.wide.u32 %w,%t,32,%o; {loads} {moves}
                 mma.sync.aligned.m8n8k4.{la}.{lb}.{td}.f16.f16.{tc} {}, {{%r0,%r1}}, {{%r2,%r3}}, {}; {stores}",
                reg(tc),
                reg(td),
                list("d", n(td)),
                list("c", n(tc)),
            );
            let got = run_body(&body, 32, &input, 256).unwrap();
            for lane in 0..32usize {
                let q = lane / 4 % 4;
                for i in 0..8 {
                    let (row, column) = place(lane, i, td);
                    let sum: i64 = (0..4).map(|k| a(q, row, k) * b(q, k, column)).sum();
                    let v = sum + c(q, row, column);
                    let word = got[8 * lane + if td == "f32" { i } else { i / 2 }];
                    let (found, want) = match td {
                        "f32" => (u64::from(word), u64::from((v as f32).to_bits())),
                        _ => (u64::from(word >> (16 * (i % 2)) & 0xffff), f16(v)),
                    };
                    assert_eq!(found, want, "{la} {lb} {td} {tc} lane {lane} element {i}");
                }
            }
        }
    }
}
