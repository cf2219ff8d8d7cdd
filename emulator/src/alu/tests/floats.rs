use super::*;
use crate::tensor::format::f16_to_f32;

fn f(v: u128) -> f32 {
    f32::from_bits(v as u32)
}

fn flush(x: f32) -> f32 {
    if x.is_subnormal() {
        0f32.copysign(x)
    } else {
        x
    }
}

fn bits(x: f32) -> u128 {
    if x.is_nan() {
        0x7fff_ffff
    } else {
        x.to_bits().into()
    }
}

fn d(v: u128) -> f64 {
    f64::from_bits(v as u64)
}

/// Plain and `.ftz` forms of an f32 operation.
fn single(form: &str, modifier: &str, sources: usize, f32_op: impl Fn(&[f32]) -> f32) {
    let operands = ["a", "a, b", "a, b, c"][sources - 1];
    let spec = ["d32 a32", "d32 a32 b32", "d32 a32 b32 c32"][sources - 1];
    fuzz_float(&format!("{form}.f32 d, {operands};"), spec, |v| {
        bits(f32_op(&v.iter().map(|&v| f(v)).collect::<Vec<_>>()))
    });
    fuzz_float(
        &format!("{form}.{modifier}.f32 d, {operands};"),
        spec,
        |v| {
            bits(flush(f32_op(
                &v.iter().map(|&v| flush(f(v))).collect::<Vec<_>>(),
            )))
        },
    );
}

#[test]
fn nearest_mode() {
    for rn in ["", ".rn"] {
        single(&format!("add{rn}"), "ftz", 2, |v| v[0] + v[1]);
        single(&format!("sub{rn}"), "ftz", 2, |v| v[0] - v[1]);
        single(&format!("mul{rn}"), "ftz", 2, |v| v[0] * v[1]);
    }
    single("fma.rn", "ftz", 3, |v| v[0].mul_add(v[1], v[2]));
    single("mad.rn", "ftz", 3, |v| v[0].mul_add(v[1], v[2]));
    single("div.rn", "ftz", 2, |v| v[0] / v[1]);
    single("div.full", "ftz", 2, |v| v[0] / v[1]);
    single("rcp.rn", "ftz", 1, |v| 1.0 / v[0]);
    single("rcp.approx", "ftz", 1, |v| 1.0 / v[0]);
    single("sqrt.rn", "ftz", 1, |v| v[0].sqrt());
    single("sqrt.approx", "ftz", 1, |v| v[0].sqrt());
    single("rsqrt.approx", "ftz", 1, |v| {
        (1.0 / f64::from(v[0]).sqrt()) as f32
    });
    single("sin.approx", "ftz", 1, |v| f64::from(v[0]).sin() as f32);
    single("cos.approx", "ftz", 1, |v| f64::from(v[0]).cos() as f32);
    single("div.approx", "ftz", 2, |v| {
        let large = v[1].is_finite() && v[1].abs() > 2f32.powi(126);
        match (large, v[0].is_finite()) {
            (false, _) => v[0] / v[1],
            (true, true) => 0f32.copysign(v[0]) * v[1].signum(),
            _ => f32::NAN,
        }
    });
}

#[test]
fn canonical_nan() {
    row(
        "add.f32 d, a, b;",
        "d32 a32 b32",
        &[0x7f80_0000, 0xff80_0000],
        &[0x7fff_ffff],
    );
    row(
        "mul.f32 d, a, b;",
        "d32 a32 b32",
        &[0xffc0_1234, 0],
        &[0x7fff_ffff],
    );
    row(
        "sqrt.rn.f32 d, a;",
        "d32 a32",
        &[0xbf80_0000],
        &[0x7fff_ffff],
    );
}

/// Directed rounding of an exact result by its f64 value, which is exact or so near that the side is right.
fn directed(mode: &str, x: f64) -> f32 {
    let y = x as f32;
    let (above, below) = (f64::from(y) > x, f64::from(y) < x);
    match mode {
        "rz" if x > 0.0 && above => y.next_down(),
        "rz" if x < 0.0 && below => y.next_up(),
        "rm" if above => y.next_down(),
        "rp" if below => y.next_up(),
        _ => y,
    }
}

#[test]
fn other_modes() {
    // Operands near one another, so that sums are exact in f64.
    let near = |rng: &mut Rng, _: u32| {
        let full = rng.next() as u32;
        u128::from(full & 0x80ff_ffff | 0x3f00_0000)
    };
    for mode in ["rz", "rm", "rp"] {
        let two = |op: fn(f64, f64) -> f64| {
            move |v: &[u128]| vec![bits(directed(mode, op(f(v[0]).into(), f(v[1]).into())))]
        };
        let spec = "d32 a32 b32";
        fuzz_with(
            &format!("add.{mode}.f32 d, a, b;"),
            spec,
            near,
            two(|a, b| a + b),
        );
        fuzz_with(
            &format!("sub.{mode}.f32 d, a, b;"),
            spec,
            near,
            two(|a, b| a - b),
        );
        fuzz_with(
            &format!("mul.{mode}.f32 d, a, b;"),
            spec,
            near,
            two(|a, b| a * b),
        );
        fuzz_with(
            &format!("div.{mode}.f32 d, a, b;"),
            spec,
            near,
            two(|a, b| a / b),
        );
        fuzz_with(
            &format!("fma.{mode}.f32 d, a, b, c;"),
            "d32 a32 b32 c32",
            near,
            |v| {
                vec![bits(directed(
                    mode,
                    f64::from(f(v[0])).mul_add(f(v[1]).into(), f(v[2]).into()),
                ))]
            },
        );
        fuzz_with(&format!("rcp.{mode}.f32 d, a;"), "d32 a32", near, |v| {
            vec![bits(directed(mode, 1.0 / f64::from(f(v[0]))))]
        });
        fuzz_with(&format!("sqrt.{mode}.f32 d, a;"), "d32 a32", near, |v| {
            vec![bits(directed(mode, f64::from(f(v[0])).sqrt()))]
        });
    }
    row(
        "add.rm.f32 d, a, b;",
        "d32 a32 b32",
        &[0x3f80_0000, 0xbf80_0000],
        &[0x8000_0000],
    );
    row(
        "add.rz.f32 d, a, b;",
        "d32 a32 b32",
        &[0x7f7f_ffff, 0x7f7f_ffff],
        &[0x7f7f_ffff],
    );
    row(
        "add.rp.f32 d, a, b;",
        "d32 a32 b32",
        &[0x3f80_0000, 1],
        &[0x3f80_0001],
    );
    row(
        "fma.rm.f32 d, a, b, c;",
        "d32 a32 b32 c32",
        &[0x3f80_0000, 0x3f80_0000, 0x8000_0001],
        &[0x3f7f_ffff],
    );
    row(
        "mul.rz.ftz.f32 d, a, b;",
        "d32 a32 b32",
        &[0x0080_0000, 0x3f00_0000],
        &[0],
    );
    let sat = |x: f32| bits(if x > 0.0 { x.min(1.0) } else { 0.0 });
    fuzz_float("add.sat.f32 d, a, b;", "d32 a32 b32", |v| {
        sat(f(v[0]) + f(v[1]))
    });
    fuzz_float("mul.sat.f32 d, a, b;", "d32 a32 b32", |v| {
        sat(f(v[0]) * f(v[1]))
    });
    fuzz_float("fma.rn.sat.f32 d, a, b, c;", "d32 a32 b32 c32", |v| {
        sat(f(v[0]).mul_add(f(v[1]), f(v[2])))
    });
    fuzz_float("fma.rn.ftz.sat.f32 d, a, b, c;", "d32 a32 b32 c32", |v| {
        sat(flush(
            flush(f(v[0])).mul_add(flush(f(v[1])), flush(f(v[2]))),
        ))
    });
}

fn same64(x: f64) -> u128 {
    x.to_bits().into()
}

#[test]
fn double() {
    let number = |rng: &mut Rng, _: u32| loop {
        let v = corner_float(rng, 64);
        if !d(v).is_nan() && d(v).abs() < 1e150 && (d(v) == 0.0 || d(v).abs() > 1e-100) {
            break v;
        }
    };
    let two = "d64 a64 b64";
    for rn in ["", ".rn"] {
        fuzz_with(&format!("add{rn}.f64 d, a, b;"), two, number, |v| {
            vec![same64(d(v[0]) + d(v[1]))]
        });
        fuzz_with(&format!("sub{rn}.f64 d, a, b;"), two, number, |v| {
            vec![same64(d(v[0]) - d(v[1]))]
        });
        fuzz_with(&format!("mul{rn}.f64 d, a, b;"), two, number, |v| {
            vec![same64(d(v[0]) * d(v[1]))]
        });
    }
    fuzz_with("fma.rn.f64 d, a, b, c;", "d64 a64 b64 c64", number, |v| {
        vec![same64(d(v[0]).mul_add(d(v[1]), d(v[2])))]
    });
    let nonzero = |rng: &mut Rng, w: u32| loop {
        let v = number(rng, w);
        if d(v) > 0.0 {
            break v;
        }
    };
    fuzz_with("div.rn.f64 d, a, b;", two, nonzero, |v| {
        vec![same64(d(v[0]) / d(v[1]))]
    });
    fuzz_with("rcp.rn.f64 d, a;", "d64 a64", nonzero, |v| {
        vec![same64(1.0 / d(v[0]))]
    });
    fuzz_with("sqrt.rn.f64 d, a;", "d64 a64", nonzero, |v| {
        vec![same64(d(v[0]).sqrt())]
    });
    fuzz_with("rsqrt.approx.f64 d, a;", "d64 a64", nonzero, |v| {
        vec![same64(1.0 / d(v[0]).sqrt())]
    });
    let near = |x: f64, v: u128| (d(v) / x - 1.0).abs() < 1e-5;
    for (code, want) in [
        ("rcp.approx.ftz.f64 d, a;", (|x| 1.0 / x) as fn(f64) -> f64),
        ("rsqrt.approx.ftz.f64 d, a;", |x| 1.0 / x.sqrt()),
    ] {
        let high = |x: f64| f64::from_bits(x.to_bits() >> 32 << 32);
        fuzz_with(code, "d64 a64", nonzero, |v| {
            let y = same64(high(want(high(d(v[0])))));
            assert!(near(want(d(v[0])), y));
            vec![y]
        });
    }
    let one = same64(1.0);
    row("add.rp.f64 d, a, b;", two, &[one, 1], &[one + 1]);
    row("sub.rm.f64 d, a, b;", two, &[one, 1], &[one - 1]);
    row("mul.rz.f64 d, a, b;", two, &[one + 1, one + 1], &[one + 2]);
    row("mul.rp.f64 d, a, b;", two, &[one + 1, one + 1], &[one + 3]);
    row(
        "fma.rz.f64 d, a, b, c;",
        "d64 a64 b64 c64",
        &[one, one, (1 << 63) + 1],
        &[one - 1],
    );
    row(
        "div.rz.f64 d, a, b;",
        two,
        &[one, same64(3.0)],
        &[same64(1.0 / 3.0)],
    );
    row(
        "div.rp.f64 d, a, b;",
        two,
        &[one, same64(3.0)],
        &[same64((1.0f64 / 3.0).next_up())],
    );
    row(
        "sqrt.rp.f64 d, a;",
        "d64 a64",
        &[same64(2.0)],
        &[same64(2f64.sqrt())],
    );
    row(
        "sqrt.rm.f64 d, a;",
        "d64 a64",
        &[same64(2.0)],
        &[same64(2f64.sqrt().next_down())],
    );
    row(
        "rcp.rp.f64 d, a;",
        "d64 a64",
        &[same64(3.0)],
        &[same64((1.0f64 / 3.0).next_up())],
    );
    refused("add.ftz.f64 d, a, b;", two);
    refused("rcp.approx.f64 d, a;", "d64 a64");
}

fn smaller(a: f32, b: f32) -> f32 {
    match (a.is_nan(), b.is_nan()) {
        (true, _) => b,
        (_, true) => a,
        _ if a == b => f32::from_bits(a.to_bits() | b.to_bits()),
        _ => {
            if a < b {
                a
            } else {
                b
            }
        }
    }
}

fn larger(a: f32, b: f32) -> f32 {
    -smaller(-a, -b)
}

#[test]
fn minimum_and_maximum() {
    single("min", "ftz", 2, |v| smaller(v[0], v[1]));
    single("max", "ftz", 2, |v| larger(v[0], v[1]));
    for (name, op) in [("min", smaller as fn(f32, f32) -> f32), ("max", larger)] {
        fuzz_float(&format!("{name}.NaN.f32 d, a, b;"), "d32 a32 b32", |v| {
            bits(if f(v[0]).is_nan() || f(v[1]).is_nan() {
                f32::NAN
            } else {
                op(f(v[0]), f(v[1]))
            })
        });
        fuzz_float(
            &format!("{name}.xorsign.abs.f32 d, a, b;"),
            "d32 a32 b32",
            |v| {
                let r = op(f(v[0]).abs(), f(v[1]).abs());
                if r.is_nan() {
                    0x7fff_ffff
                } else {
                    bits(r) | (v[0] ^ v[1]) & 0x8000_0000
                }
            },
        );
        fuzz_float(&format!("{name}.f64 d, a, b;"), "d64 a64 b64", |v| {
            let (a, b) = (d(v[0]), d(v[1]));
            match (a.is_nan(), b.is_nan()) {
                (true, true) => 0xfff8_0000_0000_0000,
                (true, false) => v[1],
                (false, true) => v[0],
                _ if a == b => {
                    if name == "min" {
                        v[0] | v[1]
                    } else {
                        v[0] & v[1]
                    }
                }
                _ => {
                    if (a < b) == (name == "min") {
                        v[0]
                    } else {
                        v[1]
                    }
                }
            }
        });
    }
    row("max.f32 d, a, b;", "d32 a32 b32", &[0x8000_0000, 0], &[0]);
    row(
        "min.f32 d, a, b;",
        "d32 a32 b32",
        &[0, 0x8000_0000],
        &[0x8000_0000],
    );
    refused("max.f32 d, a, b, c;", "d32 a32 b32 c32");
}

#[test]
fn signs() {
    fuzz_float("abs.f32 d, a;", "d32 a32", |v| v[0] & 0x7fff_ffff);
    fuzz_float("neg.f32 d, a;", "d32 a32", |v| v[0] ^ 0x8000_0000);
    fuzz_float("abs.ftz.f32 d, a;", "d32 a32", |v| {
        flush(f(v[0])).to_bits() as u128 & 0x7fff_ffff
    });
    fuzz_float("neg.ftz.f32 d, a;", "d32 a32", |v| {
        flush(f(v[0])).to_bits() as u128 ^ 0x8000_0000
    });
    fuzz_float("abs.f64 d, a;", "d64 a64", |v| v[0] & !(1 << 63));
    fuzz_float("neg.f64 d, a;", "d64 a64", |v| v[0] ^ 1 << 63);
    fuzz_float("copysign.f32 d, a, b;", "d32 a32 b32", |v| {
        v[1] & 0x7fff_ffff | v[0] & 0x8000_0000
    });
    fuzz_float("copysign.f64 d, a, b;", "d64 a64 b64", |v| {
        v[1] & !(1 << 63) | v[0] & 1 << 63
    });
}

#[test]
fn transcendental() {
    let near = |rng: &mut Rng, _: u32| u128::from((rng.next() as u32) & 0x83ff_ffff | 0x3c00_0000);
    for (code, exact) in [
        ("ex2.approx.f32 d, a;", f64::exp2 as fn(f64) -> f64),
        ("ex2.approx.ftz.f32 d, a;", f64::exp2),
        ("tanh.approx.f32 d, a;", f64::tanh),
        ("lg2.approx.f32 d, a;", f64::log2),
        ("lg2.approx.ftz.f32 d, a;", f64::log2),
    ] {
        fuzz_with(code, "d32 a32", near, |v| {
            vec![bits(exact(f(v[0]).into()) as f32)]
        });
    }
    row("ex2.approx.ftz.f32 d, a;", "d32 a32", &[0xc2fe_0000], &[0]); // 2^-127 is subnormal
    row(
        "ex2.approx.f32 d, a;",
        "d32 a32",
        &[0xc2fe_0000],
        &[0x0040_0000],
    );
    row("lg2.approx.ftz.f32 d, a;", "d32 a32", &[1], &[0xff80_0000]);
    row("ex2.approx.f16 d, a;", "d16 a16", &[0x4200], &[0x4800]);
    row(
        "ex2.approx.f16x2 d, a;",
        "d32 a32",
        &[0x4200_0000],
        &[0x4800_3c00],
    );
    row(
        "ex2.approx.ftz.bf16x2 d, a;",
        "d32 a32",
        &[0x4040_0000],
        &[0x4100_3f80],
    );
    row(
        "tanh.approx.f16x2 d, a;",
        "d32 a32",
        &[0x7c00_8000],
        &[0x3c00_8000],
    );
    row("tanh.approx.bf16 d, a;", "d16 a16", &[0xff80], &[0xbf80]);
    refused("ex2.f32 d, a;", "d32 a32");
    refused("ex2.approx.bf16 d, a;", "d16 a16");
    refused("tanh.approx.f64 d, a;", "d64 a64");
}

/// A 16-bit float format: to f64 and to the nearest.
type Format = (fn(u128) -> f64, fn(f64) -> u128);

fn f16_nearest(x: f64) -> u128 {
    // By search: exact, if slow.
    nearest(x, 0x7c00, |b| f16_to_f32(b as u16).into())
}

fn bf16_nearest(x: f64) -> u128 {
    nearest(x, 0x7f80, |b| f32::from_bits((b as u32) << 16).into())
}

fn nearest(x: f64, infinity: u128, value: impl Fn(u128) -> f64) -> u128 {
    if x.is_nan() {
        return 0x7fff;
    }
    let (sign, x) = (u128::from(x.is_sign_negative()) << 15, x.abs());
    let (mut low, mut high) = (0, infinity);
    if x >= value(infinity - 1) {
        let step = value(infinity - 1) - value(infinity - 2);
        return sign
            | if x >= value(infinity - 1) + step / 2.0 {
                infinity
            } else {
                infinity - 1
            };
    }
    while high - low > 1 {
        let middle = (low + high) / 2;
        if value(middle) <= x {
            low = middle
        } else {
            high = middle
        }
    }
    let half = (value(low) + value(high)) / 2.0;
    sign | if x > half || x == half && low & 1 == 1 {
        high
    } else {
        low
    }
}

#[test]
fn halves() {
    let formats: [(&str, Format); 2] = [
        ("f16", (|v| f16_to_f32(v as u16).into(), f16_nearest)),
        (
            "bf16",
            (|v| f32::from_bits((v as u32) << 16).into(), bf16_nearest),
        ),
    ];
    // Values whose products and sums are exact in f64.
    let value = |rng: &mut Rng, width: u32| {
        let half = |rng: &mut Rng| match rng.below(6) {
            0 => corner(rng, 16),
            1 => u128::from(rng.below(0x400)),
            _ => u128::from(rng.next() as u16 & 0x87ff | 0x3800),
        };
        (0..width / 16).fold(0, |v, n| v | half(rng) << (16 * n))
    };
    for (ty, (get, put)) in formats {
        type Op = fn(f64, f64, f64) -> f64;
        let ops: [(&str, usize, Op); 5] = [
            ("add", 2, |a, b, _| a + b),
            ("add.rn", 2, |a, b, _| a + b),
            ("sub", 2, |a, b, _| a - b),
            ("mul", 2, |a, b, _| a * b),
            ("fma.rn", 3, |a, b, c| a * b + c),
        ];
        for (name, sources, op) in ops {
            let operands = ["a, b", "a, b, c"][sources - 2];
            let one = |v: &[u128], at: u32| {
                let of = |n: usize| v.get(n).map_or(0.0, |&v| get(v >> at & 0xffff));
                put(op(of(0), of(1), of(2)))
            };
            let spec = |w: u32| {
                format!(
                    "d{w} a{w} b{w}{}",
                    if sources == 3 {
                        format!(" c{w}")
                    } else {
                        String::new()
                    }
                )
            };
            // bf16 sums of far exponents are not exact in f64: the fused ones are checked where they are.
            let exact = |rng: &mut Rng, width: u32| {
                if ty == "bf16" {
                    value(rng, width) & 0xbfff_bfff | 0x3800_3800 & ((1 << width) - 1)
                } else {
                    value(rng, width)
                }
            };
            fuzz_with(
                &format!("{name}.{ty} d, {operands};"),
                &spec(16),
                exact,
                |v| vec![one(v, 0)],
            );
            fuzz_with(
                &format!("{name}.{ty}x2 d, {operands};"),
                &spec(32),
                exact,
                |v| vec![one(v, 0) | one(v, 16) << 16],
            );
        }
        let nan = |v: u128| get(v).is_nan();
        let pick = |v: &[u128], min: bool| match (nan(v[0]), nan(v[1])) {
            (true, true) => 0x7fff,
            (true, false) => v[1],
            (false, true) => v[0],
            _ if get(v[0]) == get(v[1]) => {
                if min {
                    v[0] | v[1]
                } else {
                    v[0] & v[1]
                }
            }
            _ => {
                if (get(v[0]) < get(v[1])) == min {
                    v[0]
                } else {
                    v[1]
                }
            }
        };
        let halves = |v: &[u128], at: u32| v.iter().map(|v| v >> at & 0xffff).collect::<Vec<_>>();
        for (name, min) in [("min", true), ("max", false)] {
            fuzz_with(
                &format!("{name}.{ty} d, a, b;"),
                "d16 a16 b16",
                value,
                |v| vec![pick(v, min)],
            );
            fuzz_with(
                &format!("{name}.NaN.{ty} d, a, b;"),
                "d16 a16 b16",
                value,
                |v| {
                    vec![if nan(v[0]) || nan(v[1]) {
                        0x7fff
                    } else {
                        pick(v, min)
                    }]
                },
            );
            fuzz_with(
                &format!("{name}.{ty}x2 d, a, b;"),
                "d32 a32 b32",
                value,
                |v| vec![pick(&halves(v, 0), min) | pick(&halves(v, 16), min) << 16],
            );
        }
        fuzz_with(&format!("abs.{ty} d, a;"), "d16 a16", value, |v| {
            vec![v[0] & 0x7fff]
        });
        fuzz_with(&format!("neg.{ty} d, a;"), "d16 a16", value, |v| {
            vec![v[0] ^ 0x8000]
        });
        fuzz_with(&format!("abs.{ty}x2 d, a;"), "d32 a32", value, |v| {
            vec![v[0] & 0x7fff_7fff]
        });
        fuzz_with(&format!("neg.{ty}x2 d, a;"), "d32 a32", value, |v| {
            vec![v[0] ^ 0x8000_8000]
        });
        let minus_three = put(-3.0);
        let one = put(1.0);
        row(
            &format!("fma.rn.relu.{ty} d, a, b, c;"),
            "d16 a16 b16 c16",
            &[minus_three, one, one],
            &[0],
        );
        row(
            &format!("fma.rn.relu.{ty}x2 d, a, b, c;"),
            "d32 a32 b32 c32",
            &[one << 16 | minus_three, one << 16 | one, 0],
            &[one << 16],
        );
    }
    row(
        "add.ftz.f16 d, a, b;",
        "d16 a16 b16",
        &[1, 0x8400],
        &[0x8400],
    );
    row(
        "mul.ftz.f16 d, a, b;",
        "d16 a16 b16",
        &[0x0400, 0x3800],
        &[0],
    );
    row(
        "mul.f16 d, a, b;",
        "d16 a16 b16",
        &[0x0400, 0x3800],
        &[0x0200],
    );
    row(
        "add.sat.f16x2 d, a, b;",
        "d32 a32 b32",
        &[0x3c00_c000, 0x3c00_3c00],
        &[0x3c00_0000],
    );
    // A fused product that rounding twice would get wrong: a tie of bf16, and a hair above it.
    row(
        "fma.rn.bf16 d, a, b, c;",
        "d16 a16 b16 c16",
        &[0x3f81, 0x3f80, 0x3b80],
        &[0x3f82],
    );
    row(
        "fma.rn.bf16 d, a, b, c;",
        "d16 a16 b16 c16",
        &[0x3f91, 0x3f88, 0x0080],
        &[0x3f9a],
    );
    refused("add.rz.f16 d, a, b;", "d16 a16 b16");
    refused("add.ftz.bf16 d, a, b;", "d16 a16 b16");
}

/// A factor that a tensor copy has written outside of its tensor makes the result +0; any other NaN does what NaNs do.
#[test]
fn fma_of_what_lies_outside_of_a_tensor() {
    let outside = u128::from(crate::tensor_map::OOB_NAN);
    for (ty, one, two, three) in [
        ("f16", 0x3c00, 0x4000, 0x4200),
        ("bf16", 0x3f80, 0x4000, 0x4040),
    ] {
        for (relu, minus) in [("", 0x8000 | two), (".relu", 0)] {
            let code = format!("fma.rn.oob{relu}.{ty} d, a, b, c;");
            let one_of = |v: &[u128], want: u128| row(&code, "d16 a16 b16 c16", v, &[want]);
            one_of(&[one, two, one], three);
            one_of(&[outside, two, one], 0);
            one_of(&[two, outside | 0x8000, one], 0);
            one_of(&[0x7fff, two, one], 0x7fff);
            one_of(&[one, two, outside], 0x7fff);
            one_of(&[0x8000 | one, three, one], minus);
        }
        // The halves of a pair on their own.
        let pair = |high: u128, low: u128| high << 16 | low;
        row(
            &format!("fma.rn.oob.{ty}x2 d, a, b, c;"),
            "d32 a32 b32 c32",
            &[pair(outside, one), pair(two, two), pair(one, one)],
            &[pair(0, three)],
        );
    }
    refused("fma.rn.oob.sat.f16 d, a, b, c;", "d16 a16 b16 c16");
    refused("fma.rn.oob.ftz.f16 d, a, b, c;", "d16 a16 b16 c16");
    refused("add.rn.oob.f16 d, a, b;", "d16 a16 b16");
}
