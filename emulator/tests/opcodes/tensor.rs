//! ldmatrix, stmatrix and wgmma.

use super::{Bench, Program, words};
use std::collections::BTreeSet;

/// Element (row, column) of matrix `m` of 8x8 16-bit elements.
fn element(m: usize, row: usize, column: usize) -> u16 {
    (m * 64 + row * 8 + column + 1) as u16
}

/// Matrices as they lie in shared memory: rows of 16 bytes.
fn rows(count: usize) -> Vec<u8> {
    (0..count * 64)
        .flat_map(|i| element(i / 64, i / 8 % 8, i % 8).to_le_bytes())
        .collect()
}

/// Matrices as they lie in registers: of each lane one word per matrix.
fn fragments(count: usize, transposed: bool) -> Vec<u8> {
    words((0..32 * count).map(|i| {
        let (lane, m) = (i / count, i % count);
        let at = |h: usize| {
            let (row, column) = (lane / 4, 2 * (lane % 4) + h);
            u32::from(if transposed {
                element(m, column, row)
            } else {
                element(m, row, column)
            })
        };
        at(0) | at(1) << 16
    }))
}

fn matrix(bench: &mut Bench, spelling: &str) {
    let count = match () {
        () if spelling.contains(".x4") => 4,
        () if spelling.contains(".x2") => 2,
        () => 1,
    };
    let transposed = spelling.contains(".trans");
    let list: Vec<String> = (0..count).map(|k| format!("%r{k}")).collect();
    let list = list.join(",");
    let start = ".shared .align 16 .b8 s[512]; mov.u32 %s,s; mad.lo.u32 %z,%t,16,%s; mul.wide.u32 %a,%t,16; add.u64 %b,%i,%a; add.u64 %d0,%o,%a;";
    // Lane l moves row l, as far as there are rows.
    let copy = |load: bool| {
        let n = 8 * count;
        let inner = if load {
            "ld.global.v4.b32 {%r8,%r9,%r10,%r11},[%b]; st.shared.v4.b32 [%z],{%r8,%r9,%r10,%r11};"
        } else {
            "ld.shared.v4.b32 {%r8,%r9,%r10,%r11},[%z]; st.global.v4.b32 [%d0],{%r8,%r9,%r10,%r11};"
        };
        format!("setp.ge.u32 %p,%t,{n}; @%p bra D; {inner} D: bar.warp.sync -1;")
    };
    // Lanes beyond the rows give an address too; it is not used.
    let address = format!("and.b32 %y,%t,{}; mad.lo.u32 %y,%y,16,%s;", 8 * count - 1);
    let words_at = |pointer: &str, load: bool| -> String {
        (0..count)
            .map(|k| {
                let at = 4 * k;
                if load {
                    format!("ld.global.b32 %r{k},[{pointer}+{at}];")
                } else {
                    format!("st.global.b32 [{pointer}+{at}],%r{k};")
                }
            })
            .collect()
    };
    let place = format!("mul.wide.u32 %d1,%t,{};", 4 * count);
    let size = 128 * count;
    let (body, input, want) = if spelling.starts_with("ldmatrix") {
        (
            format!(
                "{start} {} {address} {spelling} {{{list}}},[%y]; {place} add.u64 %d1,%o,%d1; {}",
                copy(true),
                words_at("%d1", false)
            ),
            rows(count),
            fragments(count, transposed),
        )
    } else {
        (
            format!(
                "{start} {address} {place} add.u64 %d1,%i,%d1; {} {spelling} [%y],{{{list}}}; bar.warp.sync -1; {}",
                words_at("%d1", true),
                copy(false)
            ),
            fragments(count, transposed),
            rows(count),
        )
    };
    bench.run(&Program::new(&body, &input, &vec![0; size]), &want);
}

/// bf16 or e4m3 of a small integer.
fn small(v: i32, bytes: usize) -> Vec<u8> {
    if bytes == 2 {
        return (((v as f32).to_bits() >> 16) as u16).to_le_bytes().to_vec();
    }
    // e4m3 of -3..=3: sign, exponent biased by 7, three bits of mantissa.
    let magnitude = match v.unsigned_abs() {
        0 => 0,
        1 => 0x38,
        2 => 0x40,
        _ => 0x44,
    };
    vec![magnitude | if v < 0 { 0x80 } else { 0 }]
}

fn a(row: usize, k: usize) -> i32 {
    (row * 5 + k * 3) as i32 % 7 - 3
}

fn b(column: usize, k: usize) -> i32 {
    (column * 2 + k * 5 + 1) as i32 % 7 - 3
}

/// An operand without swizzle: core matrices of 8 rows by 16 bytes, the two along k one after the other.
fn operand(rows: usize, bytes: usize, f: fn(usize, usize) -> i32) -> Vec<u8> {
    let per = 16 / bytes;
    let mut out = Vec::new();
    for group in 0..rows / 8 {
        for half in 0..2 {
            for row in 0..8 {
                for k in 0..per {
                    out.extend(small(f(8 * group + row, half * per + k), bytes));
                }
            }
        }
    }
    out
}

fn wgmma(bench: &mut Bench, spelling: &str) {
    let shape = spelling
        .split('.')
        .find(|m| m.starts_with("m64n"))
        .expect("a shape");
    let (n, depth) = shape[4..].split_once('k').expect("a depth");
    let (n, depth): (usize, usize) = (n.parse().expect("n"), depth.parse().expect("k"));
    let bytes = 32 / depth;
    let d: Vec<String> = (0..n / 2).map(|i| format!("%e{i}")).collect();
    let stores: String = (0..n / 2)
        .map(|i| format!("st.global.f32 [%d3+{}],%e{i};", 512 * i))
        .collect();
    let mut input = operand(64, bytes, a);
    let second = input.len();
    input.extend(operand(n, bytes, b));
    let transposes = if bytes == 2 { ",0,0" } else { "" };
    // Leading 128 and stride 256 bytes.
    let descriptor = u64::from(128u32 >> 4) << 16 | u64::from(256u32 >> 4) << 32;
    let body = format!(
        ".reg .f32 %e<{}>; .shared .align 1024 .b8 s[{}]; mov.u32 %s,s; mov.u32 %y,%t;
         C: setp.ge.u32 %p,%y,{}; @%p bra D; mul.wide.u32 %a,%y,4; add.u64 %a,%i,%a; ld.global.u32 %x,[%a]; mad.lo.u32 %z,%y,4,%s;
         st.shared.u32 [%z],%x; add.u32 %y,%y,128; bra C; D: fence.proxy.async.shared::cta; bar.sync 0;
         shr.u32 %x,%s,4; cvt.u64.u32 %d0,%x; add.u64 %d1,%d0,{descriptor}; add.u64 %d2,%d1,{};
         wgmma.fence.sync.aligned; {spelling} {{{}}},%d1,%d2,0,1,1{transposes}; wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0;
         mul.wide.u32 %d3,%t,4; add.u64 %d3,%o,%d3; {stores}",
        n / 2,
        input.len(),
        input.len() / 4,
        second >> 4,
        d.join(","),
    );
    let want = words((0..64 * n).map(|i| {
        let (element, thread) = (i / 128, i % 128);
        let (warp, lane) = (thread / 32, thread % 32);
        let row = 16 * warp + lane / 4 + 8 * (element >> 1 & 1);
        let column = 8 * (element >> 2) + 2 * (lane % 4) + (element & 1);
        let sum: i32 = (0..depth).map(|k| a(row, k) * b(column, k)).sum();
        (sum as f32).to_bits()
    }));
    let empty = vec![0; 256 * n];
    let mut p = Program::new(&body, &input, &empty);
    p.block = 128;
    bench.run(&p, &want);
}

pub fn run(bench: &mut Bench, wanted: &BTreeSet<&str>) {
    for spelling in wanted {
        if spelling.starts_with("ldmatrix") || spelling.starts_with("stmatrix") {
            matrix(bench, spelling);
        } else if spelling.starts_with("wgmma.mma_async") {
            wgmma(bench, spelling);
        }
    }
}
