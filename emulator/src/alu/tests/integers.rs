use super::*;

/// Runs `f` for every width and signedness of an opcode; it gets exact values and returns the exact result.
fn each(form: &str, widths: &[u32], sources: usize, f: impl Fn(&[i128], u32) -> i128) {
    for &width in widths {
        for sign in ["u", "s"] {
            let code = format!(
                "{form}.{sign}{width} d, {};",
                ["a", "a, b", "a, b, c"][sources - 1]
            );
            let spec: String = "dabc"[..=sources]
                .chars()
                .map(|c| format!("{c}{width} "))
                .collect();
            fuzz(&code, &spec, |v| {
                let v: Vec<i128> = v
                    .iter()
                    .map(|&v| {
                        if sign == "s" {
                            signed(v, width)
                        } else {
                            v as i128
                        }
                    })
                    .collect();
                low(f(&v, width), width)
            });
        }
    }
}

const ALL: &[u32] = &[16, 32, 64];

#[test]
fn arithmetic() {
    each("add", ALL, 2, |v, _| v[0] + v[1]);
    each("sub", ALL, 2, |v, _| v[0] - v[1]);
    each("mul.lo", ALL, 2, |v, _| v[0].wrapping_mul(v[1]));
    each("mul.hi", ALL, 2, |v, w| high(v[0], v[1], w));
    each("mad.lo", ALL, 3, |v, _| {
        v[0].wrapping_mul(v[1]).wrapping_add(v[2])
    });
    each("mad.hi", ALL, 3, |v, w| high(v[0], v[1], w) + v[2]);
    each(
        "div",
        ALL,
        2,
        |v, _| if v[1] == 0 { -1 } else { v[0] / v[1] },
    );
    each(
        "rem",
        ALL,
        2,
        |v, _| if v[1] == 0 { v[0] } else { v[0] % v[1] },
    );
    each("min", ALL, 2, |v, _| v[0].min(v[1]));
    each("max", ALL, 2, |v, _| v[0].max(v[1]));
    each("sad", ALL, 3, |v, _| (v[0] - v[1]).abs() + v[2]);
}

/// The upper half of a product, unsigned ones up to 128 bits.
fn high(a: i128, b: i128, width: u32) -> i128 {
    if a >= 0 && b >= 0 {
        ((a as u128 * b as u128) >> width) as i128
    } else {
        (a * b) >> width
    }
}

#[test]
fn wide_products() {
    for (form, from, to) in [("u16", 16, 32), ("u32", 32, 64)] {
        fuzz(
            &format!("mul.wide.{form} d, a, b;"),
            &format!("d{to} a{from} b{from}"),
            |v| v[0] * v[1],
        );
        fuzz(
            &format!("mad.wide.{form} d, a, b, c;"),
            &format!("d{to} a{from} b{from} c{to}"),
            |v| low((v[0] * v[1] + v[2]) as i128, to),
        );
    }
    for (form, from, to) in [("s16", 16, 32), ("s32", 32, 64)] {
        fuzz(
            &format!("mul.wide.{form} d, a, b;"),
            &format!("d{to} a{from} b{from}"),
            |v| low(signed(v[0], from) * signed(v[1], from), to),
        );
        fuzz(
            &format!("mad.wide.{form} d, a, b, c;"),
            &format!("d{to} a{from} b{from} c{to}"),
            |v| {
                low(
                    signed(v[0], from) * signed(v[1], from) + signed(v[2], to),
                    to,
                )
            },
        );
    }
}

#[test]
fn signs() {
    for width in [16, 32, 64] {
        let spec = format!("d{width} a{width}");
        fuzz(&format!("neg.s{width} d, a;"), &spec, |v| {
            low(-signed(v[0], width), width)
        });
        fuzz(&format!("abs.s{width} d, a;"), &spec, |v| {
            low(signed(v[0], width).abs(), width)
        });
    }
}

#[test]
fn saturation() {
    let clamp = |v: i128| low(v.clamp(i32::MIN.into(), i32::MAX.into()), 32);
    let s = |v: u128| signed(v, 32);
    fuzz("add.sat.s32 d, a, b;", "d32 a32 b32", |v| {
        clamp(s(v[0]) + s(v[1]))
    });
    fuzz("sub.sat.s32 d, a, b;", "d32 a32 b32", |v| {
        clamp(s(v[0]) - s(v[1]))
    });
    fuzz("mad.hi.sat.s32 d, a, b, c;", "d32 a32 b32 c32", |v| {
        clamp(((s(v[0]) * s(v[1])) >> 32) + s(v[2]))
    });
    fuzz("min.relu.s32 d, a, b;", "d32 a32 b32", |v| {
        low(s(v[0]).min(s(v[1])).max(0), 32)
    });
    fuzz("max.relu.s32 d, a, b;", "d32 a32 b32", |v| {
        low(s(v[0]).max(s(v[1])).max(0), 32)
    });
}

#[test]
fn packed_halves() {
    fn each_half(v: &[u128], f: impl Fn(i128, i128) -> i128, sign: bool) -> u128 {
        (0..2).fold(0, |d, h| {
            let of = |v: u128| {
                if sign {
                    signed(v >> (16 * h), 16)
                } else {
                    (v >> (16 * h) & 0xffff) as i128
                }
            };
            d | low(f(of(v[0]), of(v[1])), 16) << (16 * h)
        })
    }
    let spec = "d32 a32 b32";
    fuzz("add.u16x2 d, a, b;", spec, |v| {
        each_half(v, |a, b| a + b, false)
    });
    fuzz("add.s16x2 d, a, b;", spec, |v| {
        each_half(v, |a, b| a + b, true)
    });
    fuzz("min.u16x2 d, a, b;", spec, |v| {
        each_half(v, i128::min, false)
    });
    fuzz("max.u16x2 d, a, b;", spec, |v| {
        each_half(v, i128::max, false)
    });
    fuzz("min.s16x2 d, a, b;", spec, |v| {
        each_half(v, i128::min, true)
    });
    fuzz("max.s16x2 d, a, b;", spec, |v| {
        each_half(v, i128::max, true)
    });
    fuzz("min.relu.s16x2 d, a, b;", spec, |v| {
        each_half(v, |a, b| a.min(b).max(0), true)
    });
    fuzz("max.relu.s16x2 d, a, b;", spec, |v| {
        each_half(v, |a, b| a.max(b).max(0), true)
    });
}

#[test]
fn products_of_24_bits() {
    let spec = "d32 a32 b32 c32";
    let u = |v: u128| (v & 0xff_ffff) as i128;
    let s = |v: u128| signed(v, 24);
    fuzz("mul24.lo.u32 d, a, b;", "d32 a32 b32", |v| {
        low(u(v[0]) * u(v[1]), 32)
    });
    fuzz("mul24.hi.u32 d, a, b;", "d32 a32 b32", |v| {
        low((u(v[0]) * u(v[1])) >> 16, 32)
    });
    fuzz("mul24.lo.s32 d, a, b;", "d32 a32 b32", |v| {
        low(s(v[0]) * s(v[1]), 32)
    });
    fuzz("mul24.hi.s32 d, a, b;", "d32 a32 b32", |v| {
        low((s(v[0]) * s(v[1])) >> 16, 32)
    });
    fuzz("mad24.lo.u32 d, a, b, c;", spec, |v| {
        low(u(v[0]) * u(v[1]) + v[2] as i128, 32)
    });
    fuzz("mad24.hi.u32 d, a, b, c;", spec, |v| {
        low(((u(v[0]) * u(v[1])) >> 16) + v[2] as i128, 32)
    });
    fuzz("mad24.lo.s32 d, a, b, c;", spec, |v| {
        low(s(v[0]) * s(v[1]) + v[2] as i128, 32)
    });
    fuzz("mad24.hi.s32 d, a, b, c;", spec, |v| {
        low(((s(v[0]) * s(v[1])) >> 16) + v[2] as i128, 32)
    });
    fuzz("mad24.hi.sat.s32 d, a, b, c;", spec, |v| {
        let sum = i128::from(((s(v[0]) * s(v[1])) >> 16) as i32) + signed(v[2], 32);
        low(sum.clamp(i32::MIN.into(), i32::MAX.into()), 32)
    });
}

#[test]
fn dot_products() {
    let spec = "d32 a32 b32 c32";
    for (a, b) in [
        ("u32", "u32"),
        ("u32", "s32"),
        ("s32", "u32"),
        ("s32", "s32"),
    ] {
        let of = |v: u128, at: u32, width: u32, ty: &str| {
            if ty == "s32" {
                signed(v >> at, width)
            } else {
                (v >> at) as i128 & ((1 << width) - 1)
            }
        };
        fuzz(&format!("dp4a.{a}.{b} d, a, b, c;"), spec, |v| {
            low(
                (0..4)
                    .map(|n| of(v[0], 8 * n, 8, a) * of(v[1], 8 * n, 8, b))
                    .sum::<i128>()
                    + v[2] as i128,
                32,
            )
        });
        for (mode, first) in [("lo", 0), ("hi", 16)] {
            fuzz(&format!("dp2a.{mode}.{a}.{b} d, a, b, c;"), spec, |v| {
                let sum: i128 = (0..2)
                    .map(|n| of(v[0], 16 * n, 16, a) * of(v[1], first + 8 * n, 8, b))
                    .sum();
                low(sum + v[2] as i128, 32)
            });
        }
    }
}

#[test]
fn carries() {
    // 128-bit sums, differences and products from 64- and 32-bit words.
    fuzz_with(
        "add.cc.u64 d, a, b; addc.u64 e, f, g;",
        "d64 e64 a64 f64 b64 g64",
        corner,
        |v| {
            let sum = (v[0] | v[1] << 64).wrapping_add(v[2] | v[3] << 64);
            vec![low(sum as i128, 64), sum >> 64]
        },
    );
    fuzz_with(
        "sub.cc.u32 d, a, b; subc.u32 e, f, g;",
        "d32 e32 a32 f32 b32 g32",
        corner,
        |v| {
            let difference = (v[0] | v[1] << 32).wrapping_sub(v[2] | v[3] << 32);
            vec![
                low(difference as i128, 32),
                low(difference as i128, 64) >> 32,
            ]
        },
    );
    fuzz_with(
        "mad.lo.cc.u32 d, a, b, c; madc.hi.u32 e, a, b, f;",
        "d32 e32 a32 b32 c32 f32",
        corner,
        |v| {
            let sum = v[0] * v[1] + (v[2] | v[3] << 32);
            vec![low(sum as i128, 32), low(sum as i128, 64) >> 32]
        },
    );
    fuzz(
        "add.cc.u32 d, a, b; addc.u32 d, 0, 0;",
        "d32 a32 b32",
        |v| (v[0] + v[1]) >> 32,
    );
    fuzz(
        "mad.hi.cc.u64 d, a, b, c; addc.u64 d, 0, 0;",
        "d64 a64 b64 c64",
        |v| (((v[0] * v[1]) >> 64) + v[2]) >> 64,
    );
}

#[test]
fn constants_guards_and_overlaps() {
    row("add.s32 d, a, -1;", "d32 a32", &[5], &[4]);
    row("mul.wide.s32 d, a, -3;", "d64 a32", &[7], &[low(-21, 64)]);
    row("add.s16 d, a, 0x7fff;", "d16 a16", &[1], &[0x8000]);
    row(
        "setp.eq.u32 p, a, 1; @p add.u32 d, a, 1;",
        "p1 d32 a32",
        &[1],
        &[1, 2],
    );
    row(
        "setp.eq.u32 p, a, 0; @!p add.u32 d, a, 1;",
        "p1 d32 a32",
        &[1],
        &[0, 2],
    );
    // Same register as source and destination.
    row(
        "mov.b32 d, a; mad.lo.s32 d, d, d, d;",
        "d32 a32",
        &[5],
        &[30],
    );
    row(
        "mov.b64 d, a; mul.lo.s64 d, d, d;",
        "d64 a64",
        &[1 << 20],
        &[1 << 40],
    );
}

#[test]
fn refusals() {
    assert!(refused("add.sat.u32 d, a, b;", "d32 a32 b32").contains("add.sat.u32"));
    assert!(refused("add.s32.frob d, a, b;", "d32 a32 b32").contains("`.frob` is not supported"));
    assert!(refused("add.s32 d, a;", "d32 a32").contains("3 operands"));
    assert!(refused("mul.s32 d, a, b;", "d32 a32 b32").contains(".lo, .hi or .wide"));
    assert!(refused("mul.wide.s64 d, a, b;", "d64 a64 b64").contains("64-bit"));
    refused("neg.u32 d, a;", "d32 a32");
    refused("min.relu.u32 d, a, b;", "d32 a32 b32");
    refused("add.f32x2 d, a, b;", "d64 a64 b64");
    refused("add.s32 d, a, b;", "d32 a64 b32");
}
