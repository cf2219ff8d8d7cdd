use super::*;
use crate::tensor::format::{f16_to_f32, f32_to_f16};

const INTEGERS: [(&str, u32, bool); 8] = [
    ("u8", 8, false),
    ("u16", 16, false),
    ("u32", 32, false),
    ("u64", 64, false),
    ("s8", 8, true),
    ("s16", 16, true),
    ("s32", 32, true),
    ("s64", 64, true),
];

fn value(v: u128, width: u32, sign: bool) -> i128 {
    if sign {
        signed(v, width)
    } else {
        v as i128 & ((1 << width) - 1)
    }
}

/// All pairs of integer types, in registers of every legal width.
#[test]
fn between_integers() {
    for (from, w, s) in INTEGERS {
        for (to, x, t) in INTEGERS {
            for source in [16, 32, 64].into_iter().filter(|&r| r >= w) {
                for register in [16, 32, 64].into_iter().filter(|&r| r >= x) {
                    let spec = format!("d{register} a{source}");
                    fuzz(&format!("cvt.{to}.{from} d, a;"), &spec, |v| {
                        low(value(value(v[0], w, s) as u128, x, t), register)
                    });
                    let (least, most) = if t {
                        (-(1 << (x - 1)), (1 << (x - 1)) - 1)
                    } else {
                        (0, (1 << x) - 1)
                    };
                    fuzz(&format!("cvt.sat.{to}.{from} d, a;"), &spec, |v| {
                        low(value(v[0], w, s).clamp(least, most), register)
                    });
                }
            }
        }
    }
    refused("cvt.rn.s32.u32 d, a;", "d32 a32");
}

#[test]
fn floats_to_integers() {
    for (to, x, t) in INTEGERS {
        let register = x.max(16);
        for (mode, round) in [
            ("rni", f64::round_ties_even as fn(f64) -> f64),
            ("rzi", f64::trunc),
            ("rmi", f64::floor),
            ("rpi", f64::ceil),
        ] {
            let (least, most) = if t {
                (-(1i128 << (x - 1)), (1 << (x - 1)) - 1)
            } else {
                (0, (1 << x) - 1)
            };
            let integer = |v: f64, wide: bool| {
                if v.is_nan() {
                    if wide { value(1 << (x - 1), x, t) } else { 0 }
                } else {
                    (round(v) as i128).clamp(least, most)
                }
            };
            let into = |v: f64, wide: bool| low(integer(v, wide || x == 64), register);
            fuzz_float(
                &format!("cvt.{mode}.{to}.f32 d, a;"),
                &format!("d{register} a32"),
                |v| into(f32::from_bits(v[0] as u32).into(), false),
            );
            fuzz_float(
                &format!("cvt.{mode}.sat.{to}.f64 d, a;"),
                &format!("d{register} a64"),
                |v| into(f64::from_bits(v[0] as u64), true),
            );
            fuzz(
                &format!("cvt.{mode}.{to}.f16 d, a;"),
                &format!("d{register} a16"),
                |v| into(f16_to_f32(v[0] as u16).into(), false),
            );
            fuzz(
                &format!("cvt.{mode}.{to}.bf16 d, a;"),
                &format!("d{register} a16"),
                |v| into(f32::from_bits((v[0] as u32) << 16).into(), false),
            );
        }
    }
    row("cvt.rpi.ftz.s32.f32 d, a;", "d32 a32", &[1], &[0]);
    row("cvt.rpi.s32.f32 d, a;", "d32 a32", &[1], &[1]);
    row(
        "cvt.rzi.s8.f32 d, a;",
        "d32 a32",
        &[0xc040_0000],
        &[0xffff_fffd],
    );
    refused("cvt.rn.s32.f32 d, a;", "d32 a32");
    refused("cvt.s32.f32 d, a;", "d32 a32");
}

#[test]
fn integers_to_floats() {
    for (from, w, s) in INTEGERS {
        let source = w.max(16);
        fuzz(
            &format!("cvt.rn.f32.{from} d, a;"),
            &format!("d32 a{source}"),
            |v| (value(v[0], w, s) as f32).to_bits().into(),
        );
        fuzz(
            &format!("cvt.rn.f64.{from} d, a;"),
            &format!("d64 a{source}"),
            |v| (value(v[0], w, s) as f64).to_bits().into(),
        );
        fuzz(
            &format!("cvt.rn.f16.{from} d, a;"),
            &format!("d16 a{source}"),
            |v| {
                // Exact in f64 as far as f16 reaches.
                let x = (value(v[0], w, s) as f64).clamp(-1e6, 1e6);
                f32_to_f16(x as f32).into()
            },
        );
        fuzz(
            &format!("cvt.rz.bf16.{from} d, a;"),
            &format!("d16 a{source}"),
            |v| {
                let x = value(v[0], w, s);
                let kept = x.unsigned_abs();
                let cut = 120u32.saturating_sub(kept.leading_zeros());
                let kept = (kept >> cut << cut) as f32;
                ((if x < 0 { -kept } else { kept }).to_bits() >> 16).into()
            },
        );
    }
    row(
        "cvt.rm.f32.s32 d, a;",
        "d32 a32",
        &[0x0100_0001],
        &[0x4b80_0000],
    );
    row(
        "cvt.rp.f32.s32 d, a;",
        "d32 a32",
        &[0x0100_0001],
        &[0x4b80_0001],
    );
    row(
        "cvt.rp.f64.s64 d, a;",
        "d64 a64",
        &[(1 << 53) + 1],
        &[(9_007_199_254_740_994f64).to_bits().into()],
    );
    row(
        "cvt.rm.f64.s64 d, a;",
        "d64 a64",
        &[low(-(1 << 53) - 1, 64)],
        &[(-9_007_199_254_740_994f64).to_bits().into()],
    );
    row("cvt.rn.sat.f32.s32 d, a;", "d32 a32", &[7], &[0x3f80_0000]);
    refused("cvt.f32.s32 d, a;", "d32 a32");
}

fn f32_bits(x: f32) -> u128 {
    if x.is_nan() {
        0x7fff_ffff
    } else {
        x.to_bits().into()
    }
}

#[test]
fn between_floats() {
    let f = |v: u128| f32::from_bits(v as u32);
    fuzz("cvt.f32.f16 d, a;", "d32 a16", |v| {
        f32_bits(f16_to_f32(v[0] as u16))
    });
    fuzz("cvt.f32.bf16 d, a;", "d32 a16", |v| v[0] << 16);
    fuzz_float("cvt.f64.f32 d, a;", "d64 a32", |v| {
        f64::from(f(v[0])).to_bits().into()
    });
    fuzz_float("cvt.rn.f32.f64 d, a;", "d32 a64", |v| {
        f32_bits(f64::from_bits(v[0] as u64) as f32)
    });
    fuzz_float("cvt.rn.ftz.f32.f64 d, a;", "d32 a64", |v| {
        let x = f64::from_bits(v[0] as u64) as f32;
        f32_bits(if x.is_subnormal() {
            0f32.copysign(x)
        } else {
            x
        })
    });
    for (mode, wrong) in [("rz", 0), ("rm", 1), ("rp", 2)] {
        fuzz_float(&format!("cvt.{mode}.f32.f64 d, a;"), "d32 a64", |v| {
            let x = f64::from_bits(v[0] as u64);
            let y = x as f32;
            let (above, below) = (f64::from(y) > x, f64::from(y) < x);
            let down = (wrong == 1 || wrong == 0 && x > 0.0) && above;
            let up = (wrong == 2 || wrong == 0 && x < 0.0) && below;
            f32_bits(if down {
                y.next_down()
            } else if up {
                y.next_up()
            } else {
                y
            })
        });
    }
    fuzz_float("cvt.rn.f16.f32 d, a;", "d16 a32", |v| {
        f32_to_f16(f(v[0])).into()
    });
    fuzz_float("cvt.rn.bf16.f32 d, a;", "d16 a32", |v| brain(f(v[0])));
    fuzz_float("cvt.rn.bf16x2.f32 d, a, b;", "d32 a32 b32", |v| {
        brain(f(v[0])) << 16 | brain(f(v[1]))
    });
    fuzz_float("cvt.rn.f16x2.f32 d, a, b;", "d32 a32 b32", |v| {
        u128::from(f32_to_f16(f(v[0]))) << 16 | u128::from(f32_to_f16(f(v[1])))
    });
    fuzz_float("cvt.rz.bf16.f32 d, a;", "d16 a32", |v| {
        if f(v[0]).is_nan() { 0x7fff } else { v[0] >> 16 }
    });
    fuzz_float("cvt.rn.relu.bf16x2.f32 d, a, b;", "d32 a32 b32", |v| {
        let relu = |x: f32| {
            if x.is_sign_negative() && !x.is_nan() {
                0.0
            } else {
                x
            }
        };
        brain(relu(f(v[0]))) << 16 | brain(relu(f(v[1])))
    });
    for (mode, round) in [
        ("rni", f32::round_ties_even as fn(f32) -> f32),
        ("rzi", f32::trunc),
        ("rmi", f32::floor),
        ("rpi", f32::ceil),
    ] {
        fuzz_float(&format!("cvt.{mode}.f32.f32 d, a;"), "d32 a32", |v| {
            f32_bits(round(f(v[0])))
        });
    }
    fuzz_float("cvt.sat.f32.f32 d, a;", "d32 a32", |v| {
        let x = f(v[0]);
        f32_bits(if x > 0.0 { x.min(1.0) } else { 0.0 })
    });
    fuzz_float("cvt.rzi.f64.f64 d, a;", "d64 a64", |v| {
        let x = f64::from_bits(v[0] as u64);
        if x.is_nan() {
            v[0] | 1 << 51
        } else {
            x.trunc().to_bits().into()
        }
    });
    row(
        "cvt.ftz.f32.f32 d, a;",
        "d32 a32",
        &[0x8000_0001],
        &[0x8000_0000],
    );
    row(
        "cvt.rn.satfinite.f16.f32 d, a;",
        "d16 a32",
        &[0x7f80_0000],
        &[0x7bff],
    );
    row(
        "cvt.rn.f16.f64 d, a;",
        "d16 a64",
        &[1e9f64.to_bits().into()],
        &[0x7c00],
    );
    row(
        "cvt.f64.f16 d, a;",
        "d64 a16",
        &[0x3c00],
        &[1f64.to_bits().into()],
    );
    row("cvt.rn.bf16.f16 d, a;", "d16 a16", &[0x3c00], &[0x3f80]);
    // Between the halves no mode means to nearest; from bf16 a mode may stand, and nothing is lost.
    for code in ["cvt.bf16.f16 d, a;", "cvt.rn.bf16.f16 d, a;"] {
        row(code, "d16 a16", &[0x3c06], &[0x3f81]);
        row(code, "d16 a16", &[0x3c0c], &[0x3f82]);
    }
    row("cvt.rz.bf16.f16 d, a;", "d16 a16", &[0x3c06], &[0x3f80]);
    row("cvt.f16.bf16 d, a;", "d16 a16", &[0x3f81], &[0x3c08]);
    for mode in ["rn", "rz", "rm", "rp"] {
        let code = format!("cvt.{mode}.f32.bf16 d, a;");
        row(&code, "d32 a16", &[0xbf81], &[0xbf81_0000]);
        let code = format!("cvt.{mode}.f64.bf16 d, a;");
        row(&code, "d64 a16", &[0x3f80], &[0x3ff0_0000_0000_0000]);
    }
    refused("cvt.f16.f32 d, a;", "d16 a32");
    refused("cvt.rn.f32.f16 d, a;", "d32 a16");
    refused("cvt.rs.bf16x2.f32 d, a, b, c;", "d32 a32 b32 c32");
}

fn brain(x: f32) -> u128 {
    let bits = x.to_bits();
    if x.is_nan() {
        0x7fff
    } else {
        ((u64::from(bits) + 0x7fff + u64::from(bits >> 16 & 1)) >> 16).into()
    }
}

#[test]
fn small_floats() {
    let one = 0x3f80_0000;
    let code = |to: &str, from: &str| format!("cvt.rn.satfinite.{to}.{from} d, a;");
    row(
        "cvt.rn.satfinite.e4m3x2.f32 d, a, b;",
        "d16 a32 b32",
        &[one, 0xc3e0_0000],
        &[0x38fe],
    );
    row(
        "cvt.rn.satfinite.e5m2x2.f32 d, a, b;",
        "d16 a32 b32",
        &[0x7f80_0000, 0x7fff_ffff],
        &[0x7b7f],
    );
    row(
        "cvt.rn.satfinite.relu.e4m3x2.f32 d, a, b;",
        "d16 a32 b32",
        &[one, 0xc3e0_0000],
        &[0x3800],
    );
    row(
        &code("e4m3x2", "f16x2"),
        "d16 a32",
        &[0x3c00_bc00],
        &[0x38b8],
    );
    row(
        &code("e5m2x2", "f16x2"),
        "d16 a32",
        &[0x3c00_bc00],
        &[0x3cbc],
    );
    row(
        "cvt.rn.f16x2.e4m3x2 d, a;",
        "d32 a16",
        &[0x38b8],
        &[0x3c00_bc00],
    );
    row(
        "cvt.rn.relu.f16x2.e5m2x2 d, a;",
        "d32 a16",
        &[0x3cbc],
        &[0x3c00_0000],
    );
    row(
        "cvt.rna.tf32.f32 d, a;",
        "d32 a32",
        &[0x3f80_1000],
        &[0x3f80_2000],
    );
    row(
        "cvt.rn.relu.tf32.f32 d, a;",
        "d32 a32",
        &[0xbf80_1000],
        &[0],
    );
    row(
        "cvt.rna.satfinite.tf32.f32 d, a;",
        "d32 a32",
        &[0x7f80_0000],
        &[0x7f7f_e000],
    );
    refused("cvt.rn.e4m3x2.f32 d, a, b;", "d16 a32 b32");
}

#[test]
fn packed_integers() {
    let clamp = |v: u128, width: u32, sign: bool| {
        let (least, most) = if sign {
            (-(1i128 << (width - 1)), (1 << (width - 1)) - 1)
        } else {
            (0, (1 << width) - 1)
        };
        low(signed(v, 32).clamp(least, most), width)
    };
    for (to, width, sign) in [
        ("u8", 8, false),
        ("s8", 8, true),
        ("u4", 4, false),
        ("s4", 4, true),
        ("u2", 2, false),
        ("s2", 2, true),
    ] {
        fuzz(
            &format!("cvt.pack.sat.{to}.s32.b32 d, a, b, c;"),
            "d32 a32 b32 c32",
            |v| {
                low((v[2] << (2 * width)) as i128, 32)
                    | clamp(v[0], width, sign) << width
                    | clamp(v[1], width, sign)
            },
        );
    }
    for (to, sign) in [("u16", false), ("s16", true)] {
        fuzz(
            &format!("cvt.pack.sat.{to}.s32 d, a, b;"),
            "d32 a32 b32",
            |v| clamp(v[0], 16, sign) << 16 | clamp(v[1], 16, sign),
        );
    }
}
