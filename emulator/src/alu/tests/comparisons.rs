use super::*;

type Relation = fn(i128, i128) -> bool;

const RELATIONS: [(&str, Relation); 6] = [
    ("eq", |a, b| a == b),
    ("ne", |a, b| a != b),
    ("lt", |a, b| a < b),
    ("le", |a, b| a <= b),
    ("gt", |a, b| a > b),
    ("ge", |a, b| a >= b),
];

/// Pairs that are often equal.
fn near(rng: &mut Rng, width: u32) -> u128 {
    if rng.below(2) == 0 {
        u128::from(rng.below(3))
    } else {
        corner(rng, width)
    }
}

#[test]
fn integers() {
    for width in [16, 32, 64] {
        for (name, f) in RELATIONS {
            let spec = format!("p1 q1 a{width} b{width}");
            fuzz_with(
                &format!("setp.{name}.u{width} p|q, a, b;"),
                &spec,
                near,
                |v| {
                    let t = f(v[0] as i128, v[1] as i128);
                    vec![t.into(), (!t).into()]
                },
            );
            fuzz_with(
                &format!("setp.{name}.s{width} p|q, a, b;"),
                &spec,
                near,
                |v| {
                    let t = f(signed(v[0], width), signed(v[1], width));
                    vec![t.into(), (!t).into()]
                },
            );
            let spec = format!("d32 a{width} b{width}");
            fuzz_with(
                &format!("set.{name}.u32.s{width} d, a, b;"),
                &spec,
                near,
                |v| {
                    vec![if f(signed(v[0], width), signed(v[1], width)) {
                        0xffff_ffff
                    } else {
                        0
                    }]
                },
            );
        }
        let spec = format!("p1 a{width} b{width}");
        fuzz_with(&format!("setp.eq.b{width} p, a, b;"), &spec, near, |v| {
            vec![(v[0] == v[1]).into()]
        });
        fuzz_with(&format!("setp.ne.b{width} p, a, b;"), &spec, near, |v| {
            vec![(v[0] != v[1]).into()]
        });
        for (name, f) in [
            ("lo", RELATIONS[2].1),
            ("ls", RELATIONS[3].1),
            ("hi", RELATIONS[4].1),
            ("hs", RELATIONS[5].1),
        ] {
            fuzz_with(
                &format!("setp.{name}.u{width} p, a, b;"),
                &spec,
                near,
                |v| vec![f(v[0] as i128, v[1] as i128).into()],
            );
        }
    }
    refused("setp.lt.b32 p, a, b;", "p1 a32 b32");
    refused("setp.ltu.s32 p, a, b;", "p1 a32 b32");
    refused("setp.lo.s32 p, a, b;", "p1 a32 b32");
}

/// What a float relation gives: ordered operands decide by `order`, else the third.
fn float_relation(name: &str, a: f64, b: f64) -> bool {
    let unordered = a.is_nan() || b.is_nan();
    match name {
        "eq" => a == b,
        "ne" => a != b && !unordered,
        "lt" => a < b,
        "le" => a <= b,
        "gt" => a > b,
        "ge" => a >= b,
        "equ" => a == b || unordered,
        "neu" => a != b || unordered,
        "ltu" => a < b || unordered,
        "leu" => a <= b || unordered,
        "gtu" => a > b || unordered,
        "geu" => a >= b || unordered,
        "num" => !unordered,
        _ => unordered,
    }
}

const FLOAT_RELATIONS: [&str; 14] = [
    "eq", "ne", "lt", "le", "gt", "ge", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan",
];

#[test]
fn floats() {
    let f = |v: u128| f64::from(f32::from_bits(v as u32));
    let flushed = |v: u128| if v & 0x7f80_0000 == 0 { 0.0 } else { f(v) };
    let half = |v: u128| f64::from(crate::tensor::format::f16_to_f32(v as u16));
    let brain = |v: u128| f64::from(f32::from_bits((v as u32) << 16));
    for name in FLOAT_RELATIONS {
        let is = |a: f64, b: f64| u128::from(float_relation(name, a, b));
        let spec = "p1 q1 a32 b32";
        let both = |t: u128| vec![t, 1 - t];
        fuzz_with(
            &format!("setp.{name}.f32 p|q, a, b;"),
            spec,
            corner_float,
            |v| both(is(f(v[0]), f(v[1]))),
        );
        fuzz_with(
            &format!("setp.{name}.ftz.f32 p|q, a, b;"),
            spec,
            corner_float,
            |v| both(is(flushed(v[0]), flushed(v[1]))),
        );
        fuzz_with(
            &format!("setp.{name}.f64 p, a, b;"),
            "p1 a64 b64",
            corner_float,
            |v| vec![is(f64::from_bits(v[0] as u64), f64::from_bits(v[1] as u64))],
        );
        fuzz_with(
            &format!("setp.{name}.f16 p, a, b;"),
            "p1 a16 b16",
            near,
            |v| vec![is(half(v[0]), half(v[1]))],
        );
        fuzz_with(
            &format!("setp.{name}.bf16 p, a, b;"),
            "p1 a16 b16",
            near,
            |v| vec![is(brain(v[0]), brain(v[1]))],
        );
        fuzz_with(&format!("setp.{name}.f16x2 p|q, a, b;"), spec, near, |v| {
            vec![
                is(half(v[0]), half(v[1])),
                is(half(v[0] >> 16), half(v[1] >> 16)),
            ]
        });
        fuzz_with(&format!("setp.{name}.bf16x2 p|q, a, b;"), spec, near, |v| {
            vec![
                is(brain(v[0]), brain(v[1])),
                is(brain(v[0] >> 16), brain(v[1] >> 16)),
            ]
        });
        fuzz_with(
            &format!("set.{name}.f32.f32 d, a, b;"),
            "d32 a32 b32",
            corner_float,
            |v| vec![is(f(v[0]), f(v[1])) * 0x3f80_0000],
        );
        let pair = |v: &[u128], of: &dyn Fn(u128) -> f64, one: u128| {
            vec![
                (is(of(v[0]), of(v[1])) * one) | ((is(of(v[0] >> 16), of(v[1] >> 16)) * one) << 16),
            ]
        };
        let spec = "d32 a32 b32";
        fuzz_with(
            &format!("set.{name}.f16x2.f16x2 d, a, b;"),
            spec,
            near,
            |v| pair(v, &half, 0x3c00),
        );
        fuzz_with(
            &format!("set.{name}.bf16x2.bf16x2 d, a, b;"),
            spec,
            near,
            |v| pair(v, &brain, 0x3f80),
        );
        fuzz_with(&format!("set.{name}.u32.f16x2 d, a, b;"), spec, near, |v| {
            pair(v, &half, 0xffff)
        });
        fuzz_with(
            &format!("set.{name}.u16.f16 d, a, b;"),
            "d16 a16 b16",
            near,
            |v| vec![is(half(v[0]), half(v[1])) * 0xffff],
        );
        fuzz_with(
            &format!("set.{name}.f16.f16 d, a, b;"),
            "d16 a16 b16",
            near,
            |v| vec![is(half(v[0]), half(v[1])) * 0x3c00],
        );
    }
    // Without .ftz a subnormal f16 is not zero, with it it is.
    row("setp.eq.f16 p, a, 0;", "p1 a16", &[1], &[0]);
    row("setp.eq.ftz.f16 p, a, 0;", "p1 a16", &[0x8001], &[1]);
    row(
        "setp.eq.ftz.f16x2 p|q, a, b;",
        "p1 q1 a32 b32",
        &[0x3c00_0001, 0],
        &[1, 0],
    );
}

#[test]
fn combined_with_a_predicate() {
    for (name, f) in [
        ("and", (|t, c| t & c) as fn(bool, bool) -> bool),
        ("or", |t, c| t | c),
        ("xor", |t, c| t ^ c),
    ] {
        let bit = |rng: &mut Rng, width: u32| {
            if width == 1 {
                u128::from(rng.below(2))
            } else {
                near(rng, width)
            }
        };
        fuzz_with(
            &format!("setp.lt.{name}.s32 p|q, a, b, c;"),
            "p1 q1 a32 b32 c1",
            bit,
            |v| {
                let t = signed(v[0], 32) < signed(v[1], 32);
                vec![f(t, v[2] != 0).into(), f(!t, v[2] != 0).into()]
            },
        );
        fuzz_with(
            &format!("setp.lt.{name}.s32 _|q, a, b, !c;"),
            "q1 a32 b32 c1",
            bit,
            |v| {
                let t = signed(v[0], 32) < signed(v[1], 32);
                vec![f(!t, v[2] == 0).into()]
            },
        );
        fuzz_with(
            &format!("set.eq.{name}.s32.u32 d, a, b, c;"),
            "d32 a32 b32 c1",
            bit,
            |v| {
                vec![if f(v[0] == v[1], v[2] != 0) {
                    0xffff_ffff
                } else {
                    0
                }]
            },
        );
        fuzz_with(&format!("{name}.pred p, a, b;"), "p1 a1 b1", bit, |v| {
            vec![f(v[0] != 0, v[1] != 0).into()]
        });
        fuzz_with(&format!("{name}.pred p, a, !b;"), "p1 a1 b1", bit, |v| {
            vec![f(v[0] != 0, v[1] == 0).into()]
        });
    }
    row("not.pred p, a;", "p1 a1", &[0], &[1]);
    row("mov.pred p, a;", "p1 a1", &[0], &[0]);
    row("mov.pred p, -1;", "p1", &[], &[1]);
    row("mov.pred p, 0;", "p1", &[], &[0]);
}

#[test]
fn selections() {
    let bit = |rng: &mut Rng, width: u32| {
        if width == 1 {
            u128::from(rng.below(2))
        } else {
            corner(rng, width)
        }
    };
    for (ty, width) in [
        ("b16", 16),
        ("u16", 16),
        ("s16", 16),
        ("b32", 32),
        ("u32", 32),
        ("s32", 32),
        ("f32", 32),
        ("b64", 64),
        ("u64", 64),
        ("s64", 64),
        ("f64", 64),
    ] {
        let w = width;
        fuzz_with(
            &format!("selp.{ty} d, a, b, c;"),
            &format!("d{w} a{w} b{w} c1"),
            bit,
            |v| vec![if v[2] != 0 { v[0] } else { v[1] }],
        );
        fuzz_with(
            &format!("slct.{ty}.s32 d, a, b, c;"),
            &format!("d{w} a{w} b{w} c32"),
            bit,
            |v| vec![if signed(v[2], 32) >= 0 { v[0] } else { v[1] }],
        );
        fuzz_with(
            &format!("slct.{ty}.f32 d, a, b, c;"),
            &format!("d{w} a{w} b{w} c32"),
            corner_float,
            |v| {
                vec![if f32::from_bits(v[2] as u32) >= 0.0 {
                    v[0]
                } else {
                    v[1]
                }]
            },
        );
    }
    row(
        "slct.f32.f32 d, 1.0, 2.0, a;",
        "d32 a32",
        &[0x8000_0001],
        &[0x4000_0000],
    );
    row(
        "slct.ftz.f32.f32 d, 1.0, 2.0, a;",
        "d32 a32",
        &[0x8000_0001],
        &[0x3f80_0000],
    );
}

#[test]
fn properties() {
    for (name, f) in [
        ("finite", f64::is_finite as fn(f64) -> bool),
        ("infinite", f64::is_infinite),
        ("number", |v| !v.is_nan()),
        ("notanumber", f64::is_nan),
        ("normal", |v| v.is_normal() || v == 0.0),
        ("subnormal", f64::is_subnormal),
    ] {
        fuzz_with(
            &format!("testp.{name}.f64 p, a;"),
            "p1 a64",
            corner_float,
            |v| vec![f(f64::from_bits(v[0] as u64)).into()],
        );
    }
    row("testp.subnormal.f32 p, a;", "p1 a32", &[1], &[1]);
    row("testp.normal.f32 p, a;", "p1 a32", &[1], &[0]);
    row("testp.normal.f32 p, a;", "p1 a32", &[1 << 31], &[1]);
}
