//! wgmma through whole kernels: issue, groups, waits, policies, register checks. (Shapes, types and layouts one by one
//! are unit tests of the tensor module.)
mod common;
use birdie_emulator::check::FindingKind;
use birdie_emulator::device::{Device, Fault, LaunchError, Policy, Settings};
use common::*;

const K: usize = 64;
const N: usize = 64;

fn bf16(v: f32) -> u16 {
    assert_eq!(v.to_bits() & 0xffff, 0);
    (v.to_bits() >> 16) as u16
}

/// A (64 x 64) and B (64 columns x 64), with every product and sum exact.
fn a_value(row: usize, k: usize) -> f32 {
    ((row * 7 + k * 3) % 17) as f32 - 8.0
}
fn b_value(column: usize, k: usize) -> f32 {
    ((column * 5 + k * 11) % 13) as f32 - 6.0
}
fn product(row: usize, column: usize) -> f32 {
    (0..K).map(|k| a_value(row, k) * b_value(column, k)).sum()
}

/// 64 rows of 128 bytes in the 128-byte swizzle, at an address aligned to 1024.
fn tile(value: impl Fn(usize, usize) -> f32) -> Vec<u16> {
    let mut out = vec![0; 64 * 64];
    for row in 0..64 {
        for c in 0..64 {
            out[row * 64 + ((c / 8) ^ (row % 8)) * 8 + c % 8] = bf16(value(row, c));
        }
    }
    out
}

/// Shared memory: A at 0, B at 8192. Then the A fragments: per k step, warp and register 32 lanes.
fn input(b_transposed: bool) -> Vec<u32> {
    let mut halves = tile(a_value);
    halves.extend(tile(|i, j| {
        if b_transposed {
            b_value(j, i)
        } else {
            b_value(i, j)
        }
    }));
    for step in 0..K / 16 {
        for warp in 0..4 {
            for r in 0..4 {
                for lane in 0..32 {
                    for e in 0..2 {
                        let row = 16 * warp + lane / 4 + 8 * (r % 2);
                        let k = 16 * step + 8 * (r / 2) + 2 * (lane % 4) + e;
                        halves.push(bf16(a_value(row, k)));
                    }
                }
            }
        }
    }
    halves
        .chunks_exact(2)
        .map(|h| u32::from(h[0]) | u32::from(h[1]) << 16)
        .collect()
}

const FENCE: &str = "wgmma.fence.sync.aligned;\n";
const COMMIT: &str = "wgmma.commit_group.sync.aligned;\n";

/// Declarations, addresses, and shared memory filled from `in`. %p4: out + 4 tid; %p5: A fragments + 4 lane + 512 warp;
/// %p8, %p9: descriptors of A and B (K-major, 128-byte swizzle).
fn prologue() -> String {
    String::from(
        ".reg .b32 %r<64>; .reg .f32 %f<80>; .reg .b64 %p<24>; .reg .pred %q<4>;\n\
         .shared .align 1024 .b8 s[16384];\n\
         mov.u32 %r0, %tid.x;\nld.param.u64 %p0, [out];\nld.param.u64 %p1, [in];\n\
         mul.wide.u32 %p2, %r0, 16;\nadd.u64 %p3, %p1, %p2;\n\
         mov.u32 %r1, s;\nshl.b32 %r2, %r0, 4;\nadd.u32 %r2, %r1, %r2;\nmov.b32 %r3, 0;\n\
         copy:\nld.global.v4.b32 {%r4,%r5,%r6,%r7}, [%p3];\nst.shared.v4.b32 [%r2], {%r4,%r5,%r6,%r7};\n\
         add.u64 %p3, %p3, 2048;\nadd.u32 %r2, %r2, 2048;\nadd.u32 %r3, %r3, 1;\nsetp.lt.u32 %q0, %r3, 8;\n@%q0 bra copy;\n\
         fence.proxy.async.shared::cta;\nbar.sync 0;\n\
         mul.wide.u32 %p2, %r0, 4;\nadd.u64 %p4, %p0, %p2;\n\
         shr.u32 %r8, %r0, 5;\nmul.wide.u32 %p6, %r8, 512;\nand.b32 %r9, %r0, 31;\nmul.wide.u32 %p7, %r9, 4;\n\
         add.u64 %p5, %p1, %p6;\nadd.u64 %p5, %p5, %p7;\nadd.u64 %p5, %p5, 16384;\n\
         shr.u32 %r10, %r1, 4;\ncvt.u64.u32 %p8, %r10;\n\
         or.b64 %p8, %p8, 0x4000004000010000;\nadd.u64 %p9, %p8, 512;\n\
         setp.ne.b32 %q1, %r1, %r1;\nsetp.eq.b32 %q2, %r1, %r1;\n",
    )
}

fn registers(letter: &str, first: usize, n: usize) -> String {
    let names: Vec<_> = (first..first + n)
        .map(|i| format!("%{letter}{i}"))
        .collect();
    format!("{{{}}}", names.join(","))
}

/// k step `step` of the product into %f`first`.., A and B by descriptor.
fn step(first: usize, step: usize, scale: &str) -> String {
    format!(
        "add.u64 %p10, %p8, {o};\nadd.u64 %p11, %p9, {o};\n\
         wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {}, %p10, %p11, {scale}, 1, 1, 0, 0;\n",
        registers("f", first, 32),
        o = 2 * step
    )
}

fn store(first: usize, at: usize) -> String {
    (0..32)
        .map(|i| format!("st.global.f32 [%p4+{}], %f{};\n", at + 512 * i, first + i))
        .collect()
}

/// Elements of D as a matrix, from what `store` wrote.
fn matrix(words: &[u32]) -> Vec<f32> {
    let mut d = vec![f32::NAN; 64 * N];
    for (i, w) in words.iter().enumerate() {
        let (register, thread) = (i / 128, i % 128);
        let (warp, lane) = (thread / 32, thread % 32);
        let row = 16 * warp + lane / 4 + 8 * (register / 2 % 2);
        let column = 8 * (register / 4) + 2 * (lane % 4) + register % 2;
        d[row * N + column] = f32::from_bits(*w);
    }
    d
}

fn expect(words: &[u32], factor: f32) {
    let d = matrix(words);
    for row in 0..64 {
        for column in 0..N {
            let want = factor * product(row, column);
            assert_eq!(d[row * N + column], want, "row {row} column {column}");
        }
    }
}

/// Words of one stored D.
const D: usize = 32 * 128;

fn run(body: &str, b_transposed: bool, n: usize) -> Vec<u32> {
    run_body(&(prologue() + body), 128, &input(b_transposed), n).unwrap()
}

#[test]
fn both_operands_from_shared_memory() {
    let mut body = FENCE.to_string() + &step(0, 0, "%q1");
    for k in 1..4 {
        body += &step(0, k, "%q2");
    }
    body += COMMIT;
    body += "wgmma.wait_group.sync.aligned 0;\n";
    expect(&run(&(body + &store(0, 0)), false, D), 1.0);
}

#[test]
fn scale_d_as_a_literal_and_negated_operands() {
    let mut body = FENCE.to_string() + &step(0, 0, "0").replace("1, 1, 0, 0", "-1, 1, 0, 0");
    for k in 1..4 {
        body += &step(0, k, "1").replace("1, 1, 0, 0", "1, -1, 0, 0");
    }
    body += COMMIT;
    body += "wgmma.wait_group.sync.aligned 0;\n";
    expect(&run(&(body + &store(0, 0)), false, D), -1.0);
}

#[test]
fn a_from_registers_and_b_transposed() {
    let mut body = String::new();
    for k in 0..4 {
        for r in 0..4 {
            body += &format!(
                "ld.global.b32 %r{}, [%p5+{}];\n",
                20 + 4 * k + r,
                2048 * k + 128 * r
            );
        }
    }
    body += FENCE;
    for k in 0..4 {
        // B is MN-major: 16 k are 16 rows of 128 bytes further.
        body += &format!(
            "add.u64 %p11, %p9, {};\nwgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {}, {}, %p11, {}, 1, 1, 1;\n",
            128 * k,
            registers("f", 0, 32),
            registers("r", 20 + 4 * k, 4),
            u8::from(k > 0)
        );
    }
    body += COMMIT;
    body += "wgmma.wait_group.sync.aligned 0;\n";
    expect(&run(&(body + &store(0, 0)), true, D), 1.0);
}

/// The rows of A fragments that are dead after the issue must not be given to registers written before the wait.
#[test]
fn fragments_in_flight_keep_their_registers() {
    let mut body = String::new();
    for r in 0..4 {
        body += &format!("ld.global.b32 %r{}, [%p5+{}];\n", 20 + r, 128 * r);
    }
    body += FENCE;
    body += &format!(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {}, {}, %p9, 0, 1, 1, 0;\n",
        registers("f", 0, 32),
        registers("r", 20, 4)
    );
    body += COMMIT;
    for r in 0..16 {
        body += &format!("add.u32 %r{}, %r0, {r};\n", 40 + r);
    }
    body += "wgmma.wait_group.sync.aligned 0;\n";
    for r in 1..16 {
        body += &format!("add.u32 %r40, %r40, %r{};\n", 40 + r);
    }
    body += &format!("st.global.b32 [%p4+{}], %r40;\n", 4 * D);
    let got = run(&(body + &store(0, 0)), false, D + 128);
    let d = matrix(&got[..D]);
    for row in 0..64 {
        for column in 0..N {
            let want: f32 = (0..16).map(|k| a_value(row, k) * b_value(column, k)).sum();
            assert_eq!(d[row * N + column], want);
        }
    }
    for (t, v) in got[D..].iter().enumerate() {
        assert_eq!(*v as usize, 16 * t + 120);
    }
}

/// A guard that is false touches nothing.
#[test]
fn a_predicated_off_access_is_no_access() {
    let mut body = FENCE.to_string();
    for k in 0..4 {
        body += &step(0, k, if k == 0 { "0" } else { "1" });
    }
    body += COMMIT;
    body += "@%q1 mov.f32 %f3, 0f00000000;\nwgmma.wait_group.sync.aligned 0;\n";
    expect(&run(&(body + &store(0, 0)), false, D), 1.0);
}

#[test]
fn two_groups_in_flight() {
    let mut body = FENCE.to_string();
    for k in 0..4 {
        body += &step(0, k, if k == 0 { "0" } else { "1" });
    }
    body += COMMIT;
    for k in 0..4 {
        body += &step(32, k, if k == 0 { "0" } else { "1" });
    }
    for k in 0..4 {
        body += &step(32, k, "1");
    }
    body += COMMIT;
    body += "wgmma.wait_group.sync.aligned 1;\n";
    body += &store(0, 0);
    body += "wgmma.wait_group.sync.aligned 0;\n";
    body += &store(32, 4 * D);
    let got = run(&body, false, 2 * D);
    expect(&got[..D], 1.0);
    expect(&got[D..], 2.0);
}

fn with(settings: Settings, body: &str) -> (Device, Result<Vec<u32>, LaunchError>) {
    let d = Device::new(
        0,
        Settings {
            memory_bytes: 1 << 28,
            ..settings
        },
    )
    .unwrap();
    let m = module(&d, &kernel(&(prologue() + body)));
    let out = upload(&d, &vec![0u32; D]);
    let params = Params::default().u64(out).u64(upload(&d, &input(false)));
    let r = launch(&d, &m, "k", config(1, 128), &params).map(|_| download(&d, out, D));
    (d, r)
}

/// Operands are read when the operation is retired: at issue with the eager policy, at the wait with the latest. (The
/// program is wrong, so the checks are off.)
#[test]
fn the_policy_decides_when_operands_are_read() {
    let mut body = FENCE.to_string();
    for k in 0..4 {
        body += &step(0, k, if k == 0 { "0" } else { "1" });
    }
    body += COMMIT;
    // All warps have issued; then all of A is cleared.
    body += "bar.sync 0;\nshl.b32 %r2, %r0, 6;\nadd.u32 %r2, %r1, %r2;\nmov.b32 %r4, 0;\n";
    for i in 0..4 {
        body += &format!("st.shared.v4.b32 [%r2+{}], {{%r4,%r4,%r4,%r4}};\n", 16 * i);
    }
    body += "bar.sync 0;\nwgmma.wait_group.sync.aligned 0;\n";
    body += &store(0, 0);
    let run = |policy| {
        let settings = Settings {
            policy,
            checks: false,
            ..Settings::default()
        };
        with(settings, &body).1.unwrap()
    };
    expect(&run(Policy::Eager), 1.0);
    expect(&run(Policy::Latest), 0.0);
}

fn finding(body: &str) -> FindingKind {
    let mut kinds = Vec::new();
    for policy in [Policy::Eager, Policy::Latest, Policy::Random] {
        let settings = Settings {
            policy,
            ..Settings::default()
        };
        match with(settings, body).1 {
            Err(LaunchError::Fault(Fault::Finding(f))) => kinds.push(f.kind),
            other => panic!("no finding with {policy:?}: {:?}", other.map(|_| ())),
        }
    }
    assert!(kinds.iter().all(|k| *k == kinds[0]), "{kinds:?}");
    kinds[0]
}

#[test]
fn misuse_of_registers_is_found() {
    let issue = step(0, 0, "0") + COMMIT;
    let wait = "wgmma.wait_group.sync.aligned 0;\n";
    // No fence before the first operation.
    let body = issue.clone() + wait;
    assert_eq!(finding(&body), FindingKind::WgmmaRegisters);
    // An accumulator read, and one written, before the wait.
    let body = FENCE.to_string() + &issue + "st.global.f32 [%p4], %f3;\n" + wait;
    assert_eq!(finding(&body), FindingKind::WgmmaRegisters);
    let body = FENCE.to_string() + &issue + "mov.f32 %f3, 0f00000000;\n" + wait + &store(0, 0);
    assert_eq!(finding(&body), FindingKind::WgmmaRegisters);
    // An accumulator changed between two operations, no fence between.
    let body = FENCE.to_string()
        + &issue
        + wait
        + "add.f32 %f3, %f3, %f4;\n"
        + &step(0, 1, "1")
        + COMMIT
        + wait
        + &store(0, 0);
    assert_eq!(finding(&body), FindingKind::WgmmaRegisters);
    // A fragment register changed before the wait.
    let fragment = format!(
        "mov.b32 %r20, 0;\nmov.b32 %r21, 0;\nmov.b32 %r22, 0;\nmov.b32 %r23, 0;\n{FENCE}\
         wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {}, {}, %p9, 0, 1, 1, 0;\n{COMMIT}",
        registers("f", 0, 32),
        registers("r", 20, 4)
    );
    let body = fragment.clone()
        + "add.u32 %r21, %r0, 1;\n"
        + wait
        + "st.global.b32 [%p4], %r21;\n"
        + &store(0, 0);
    assert_eq!(finding(&body), FindingKind::WgmmaRegisters);
    // The same accumulator by two shapes.
    let other = format!(
        "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {}, %p8, %p9, 1, 1, 1, 0, 0;\n",
        registers("f", 0, 16)
    );
    let body = FENCE.to_string() + &step(0, 0, "0") + &other + COMMIT + wait + &store(0, 0);
    assert_eq!(finding(&body), FindingKind::WgmmaRegisters);
}

#[test]
fn misuse_of_operands_is_found() {
    let wait = String::from(COMMIT) + "wgmma.wait_group.sync.aligned 0;\n" + &store(0, 0);
    let mma = |a: &str| {
        format!(
            "{FENCE}wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {}, {a}, %p9, 0, 1, 1, 0, 0;\n",
            registers("f", 0, 32)
        )
    };
    // A base offset; rows past the end of shared memory. A start inside the swizzle's pattern is none: the pattern follows addresses.
    let body = "or.b64 %p12, %p8, 0x2000000000000;\n".to_string() + &mma("%p12") + &wait;
    assert_eq!(finding(&body), FindingKind::WgmmaOperand);
    let body = "add.u64 %p12, %p8, 8;\n".to_string() + &mma("%p12") + &wait;
    assert!(with(Settings::default(), &body).1.is_ok());
    let body = "add.u64 %p12, %p8, 576;\n".to_string() + &mma("%p12") + &wait;
    assert_eq!(finding(&body), FindingKind::WgmmaOperand);
    // Descriptors that differ: between lanes, and between warps.
    let body =
        "cvt.u64.u32 %p12, %r9;\nadd.u64 %p12, %p12, %p8;\n".to_string() + &mma("%p12") + &wait;
    assert_eq!(finding(&body), FindingKind::WgmmaOperand);
    let body = "shl.b32 %r30, %r8, 1;\ncvt.u64.u32 %p12, %r30;\nadd.u64 %p12, %p12, %p8;\n"
        .to_string()
        + &mma("%p12")
        + &wait;
    assert_eq!(finding(&body), FindingKind::WgmmaOperand);
    // Half of a warp.
    let body = "setp.lt.u32 %q3, %r9, 16;\n".to_string()
        + &mma("%p8").replace(";\nwgmma", ";\n@%q3 wgmma")
        + &wait;
    assert_eq!(finding(&body), FindingKind::DivergentAligned);
}

#[test]
fn an_incomplete_warpgroup_is_refused() {
    let d = device(0, Policy::Eager);
    let body = FENCE.to_string() + &step(0, 0, "0") + COMMIT + "wgmma.wait_group.sync.aligned 0;\n";
    let m = module(&d, &kernel(&(prologue() + &body)));
    let out = upload(&d, &vec![0u32; D]);
    let params = Params::default()
        .u64(out)
        .u64(upload(&d, &vec![0u32; 1 << 16]));
    let r = launch(&d, &m, "k", config(1, 96), &params);
    assert!(
        matches!(&r, Err(LaunchError::Fault(Fault::IllegalInstruction(_)))),
        "{r:?}"
    );
}
