use super::*;

#[test]
fn logic() {
    for width in [16, 32, 64] {
        let (two, three) = (
            format!("d{width} a{width}"),
            format!("d{width} a{width} b{width}"),
        );
        fuzz(&format!("and.b{width} d, a, b;"), &three, |v| v[0] & v[1]);
        fuzz(&format!("or.b{width} d, a, b;"), &three, |v| v[0] | v[1]);
        fuzz(&format!("xor.b{width} d, a, b;"), &three, |v| v[0] ^ v[1]);
        fuzz(&format!("not.b{width} d, a;"), &two, |v| {
            low(!v[0] as i128, width)
        });
        fuzz(&format!("cnot.b{width} d, a;"), &two, |v| {
            u128::from(v[0] == 0)
        });
    }
}

#[test]
fn shifts_clamp() {
    for width in [16, 32, 64] {
        let spec = format!("d{width} a{width} n32").replace('n', "b");
        let count = |v: u128| v.min(127) as u32;
        fuzz(&format!("shl.b{width} d, a, b;"), &spec, |v| {
            low(v[0].wrapping_shl(count(v[1])) as i128, width)
        });
        fuzz(&format!("shr.u{width} d, a, b;"), &spec, |v| {
            v[0] >> count(v[1])
        });
        fuzz(&format!("shr.b{width} d, a, b;"), &spec, |v| {
            v[0] >> count(v[1])
        });
        fuzz(&format!("shr.s{width} d, a, b;"), &spec, |v| {
            low(signed(v[0], width) >> count(v[1]), width)
        });
    }
    row("shl.b32 d, a, 32;", "d32 a32", &[1], &[0]);
    row(
        "shr.s32 d, a, 1000;",
        "d32 a32",
        &[0x8000_0000],
        &[0xffff_ffff],
    );
}

#[test]
fn funnels() {
    let spec = "d32 a32 b32 c32";
    let both = |v: &[u128]| v[1] << 32 | v[0];
    fuzz("shf.l.wrap.b32 d, a, b, c;", spec, |v| {
        low((both(v) << (v[2] & 31) >> 32) as i128, 32)
    });
    fuzz("shf.l.clamp.b32 d, a, b, c;", spec, |v| {
        low((both(v) << v[2].min(32) >> 32) as i128, 32)
    });
    fuzz("shf.r.wrap.b32 d, a, b, c;", spec, |v| {
        low((both(v) >> (v[2] & 31)) as i128, 32)
    });
    fuzz("shf.r.clamp.b32 d, a, b, c;", spec, |v| {
        low((both(v) >> v[2].min(32)) as i128, 32)
    });
}

#[test]
fn lop3_of_every_table() {
    for table in 0..=255u32 {
        fuzz(
            &format!("lop3.b32 d, a, b, c, {table};"),
            "d32 a32 b32 c32",
            |v| {
                (0..32).fold(0, |d, n| {
                    let index = (v[0] >> n & 1) << 2 | (v[1] >> n & 1) << 1 | v[2] >> n & 1;
                    d | u128::from(table >> index & 1) << n
                })
            },
        );
    }
    row(
        "lop3.or.b32 d|p, a, b, c, 0x80, q;",
        "d32 p1 a32 b32 c32 q1",
        &[3, 5, 1],
        &[1, 1, 1],
    );
    row(
        "mov.pred q, 0; lop3.or.b32 d|p, a, b, c, 0x80, q;",
        "d32 p1 a32 b32 c32 q1",
        &[3, 4, 1],
        &[0, 0, 0],
    );
    row(
        "mov.pred q, 0; lop3.and.b32 _|p, a, b, c, 0xfe, q;",
        "p1 a32 b32 c32 q1",
        &[3, 4, 1],
        &[0, 0],
    );
    assert!(refused("lop3.b32 d, a, b, c, 256;", "d32 a32 b32 c32").contains("table"));
}

#[test]
fn permutations() {
    fuzz("prmt.b32 d, a, b, c;", "d32 a32 b32 c32", |v| {
        let bytes = v[1] << 32 | v[0];
        (0..4).fold(0, |d, n| {
            let selector = v[2] >> (4 * n) & 15;
            let byte = bytes >> (8 * (selector & 7)) & 255;
            let byte = if selector & 8 == 0 {
                byte
            } else if byte & 128 != 0 {
                255
            } else {
                0
            };
            d | byte << (8 * n)
        })
    });
    let (a, b) = (0x3322_1100, 0x7766_5544);
    row(
        "prmt.b32.f4e d, a, b, c;",
        "d32 a32 b32 c32",
        &[a, b, 1],
        &[0x4433_2211],
    );
    row(
        "prmt.b32.b4e d, a, b, c;",
        "d32 a32 b32 c32",
        &[a, b, 1],
        &[0x6677_0011],
    );
    row(
        "prmt.b32.rc8 d, a, b, c;",
        "d32 a32 b32 c32",
        &[a, b, 2],
        &[0x2222_2222],
    );
    row(
        "prmt.b32.ecl d, a, b, c;",
        "d32 a32 b32 c32",
        &[a, b, 2],
        &[0x3322_2222],
    );
    row(
        "prmt.b32.ecr d, a, b, c;",
        "d32 a32 b32 c32",
        &[a, b, 2],
        &[0x2222_1100],
    );
    row(
        "prmt.b32.rc16 d, a, b, c;",
        "d32 a32 b32 c32",
        &[a, b, 1],
        &[0x3322_3322],
    );
}

#[test]
fn fields() {
    for width in [32u32, 64] {
        let spec = format!("d{width} a{width} b32 c32");
        for sign in ["u", "s"] {
            fuzz(&format!("bfe.{sign}{width} d, a, b, c;"), &spec, |v| {
                // The loop of the ISA.
                let (position, length) = ((v[1] & 255) as u32, (v[2] & 255) as u32);
                let bit = |n: u32| v[0] >> n & 1;
                let fill = if sign == "u" || length == 0 {
                    0
                } else {
                    bit((position + length - 1).min(width - 1))
                };
                (0..width).fold(0, |d, n| {
                    let b = if n < length && position + n < width {
                        bit(position + n)
                    } else {
                        fill
                    };
                    d | b << n
                })
            });
        }
        fuzz(
            &format!("bfi.b{width} d, a, b, c, f;"),
            &format!("d{width} a{width} b{width} c32 f32"),
            |v| {
                let (position, length) = ((v[2] & 255) as u32, (v[3] & 255) as u32);
                (0..length)
                    .filter(|n| position + n < width)
                    .fold(v[1], |d, n| {
                        d & !(1 << (position + n)) | (v[0] >> n & 1) << (position + n)
                    })
            },
        );
    }
    fuzz("bmsk.clamp.b32 d, a, b;", "d32 a32 b32", |v| {
        (0..32u128)
            .filter(|&n| n >= v[0] && n - v[0] < v[1])
            .fold(0, |d, n| d | 1 << n)
    });
    fuzz("bmsk.wrap.b32 d, a, b;", "d32 a32 b32", |v| {
        (0..32u128)
            .filter(|&n| n >= v[0] & 31 && n - (v[0] & 31) < v[1] & 31)
            .fold(0, |d, n| d | 1 << n)
    });
    for (mode, wrap) in [("wrap", true), ("clamp", false)] {
        fuzz(&format!("szext.{mode}.u32 d, a, b;"), "d32 a32 b32", |v| {
            let n = if wrap { v[1] & 31 } else { v[1].min(32) };
            v[0] & ((1 << n) - 1)
        });
        fuzz(&format!("szext.{mode}.s32 d, a, b;"), "d32 a32 b32", |v| {
            let n = if wrap { v[1] & 31 } else { v[1].min(32) } as u32;
            if n == 0 { 0 } else { low(signed(v[0], n), 32) }
        });
    }
}

#[test]
fn counts() {
    for width in [32u32, 64] {
        let (count, same) = (format!("d32 a{width}"), format!("d{width} a{width}"));
        fuzz(&format!("popc.b{width} d, a;"), &count, |v| {
            v[0].count_ones().into()
        });
        fuzz(&format!("clz.b{width} d, a;"), &count, |v| {
            (v[0].leading_zeros() - (128 - width)).into()
        });
        fuzz(&format!("brev.b{width} d, a;"), &same, |v| {
            v[0].reverse_bits() >> (128 - width)
        });
        for sign in ["u", "s"] {
            let find = |v: u128| {
                let v = if sign == "s" && v >> (width - 1) != 0 {
                    low(!v as i128, width)
                } else {
                    v
                };
                if v == 0 {
                    None
                } else {
                    Some(u128::from(127 - v.leading_zeros()))
                }
            };
            fuzz(&format!("bfind.{sign}{width} d, a;"), &count, |v| {
                find(v[0]).unwrap_or(0xffff_ffff)
            });
            fuzz(
                &format!("bfind.shiftamt.{sign}{width} d, a;"),
                &count,
                |v| find(v[0]).map_or(0xffff_ffff, |n| u128::from(width) - 1 - n),
            );
        }
    }
    for (mask, base, offset, want) in [
        (0xaaaa_aaaau128, 3, 1, 3),
        (0xaaaa_aaaa, 3, -1, 3),
        (0xaaaa_aaaa, 2, 1, 3),
        (0xaaaa_aaaa, 2, -1, 1),
        (0xaaaa_aaaa, 2, 3, 7),
        (0xaaaa_aaaa, 3, 0, 3),
        (0xaaaa_aaaa, 2, 0, 0xffff_ffff),
        (0x0000_0001, 1, 1, 0xffff_ffff),
    ] {
        row(
            &format!("fns.b32 d, a, {base}, {offset};"),
            "d32 a32",
            &[mask],
            &[want],
        );
    }
}

#[test]
fn moves() {
    for (ty, width) in [
        ("b16", 16),
        ("u16", 16),
        ("s16", 16),
        ("b32", 32),
        ("u32", 32),
        ("s32", 32),
        ("f32", 32),
    ] {
        fuzz(
            &format!("mov.{ty} d, a;"),
            &format!("d{width} a{width}"),
            |v| v[0],
        );
    }
    for (ty, width) in [
        ("b64", 64),
        ("u64", 64),
        ("s64", 64),
        ("f64", 64),
        ("b128", 128),
    ] {
        fuzz(
            &format!("mov.{ty} d, a;"),
            &format!("d{width} a{width}"),
            |v| v[0],
        );
    }
    row("mov.f32 d, 0fBF800000;", "d32", &[], &[0xbf80_0000]);
    row(
        "mov.f64 d, 0d3FF0000000000000;",
        "d64",
        &[],
        &[0x3ff0_0000_0000_0000],
    );
    row("mov.b32 d, 0fBF800000;", "d32", &[], &[0xbf80_0000]);
    row("mov.u64 d, -1;", "d64", &[], &[u64::MAX.into()]);
    row("mov.u16 d, -1;", "d16", &[], &[0xffff]);
    row("mov.u32 d, WARP_SZ;", "d32", &[], &[32]);
}

#[test]
fn vectors() {
    fuzz("mov.b32 d, {a, b};", "d32 a16 b16", |v| v[0] | v[1] << 16);
    fuzz("mov.b64 d, {a, b};", "d64 a32 b32", |v| v[0] | v[1] << 32);
    fuzz("mov.b128 d, {a, b};", "d128 a64 b64", |v| v[0] | v[1] << 64);
    fuzz("mov.b64 d, {a, b, c, f};", "d64 a16 b16 c16 f16", |v| {
        v[0] | v[1] << 16 | v[2] << 32 | v[3] << 48
    });
    fuzz("mov.b128 d, {a, b, c, f};", "d128 a32 b32 c32 f32", |v| {
        v[0] | v[1] << 32 | v[2] << 64 | v[3] << 96
    });
    fuzz("mov.b32 d, {a, b, c, f};", "d32 a16 b16 c16 f16", |v| {
        v.iter()
            .enumerate()
            .fold(0, |d, (n, v)| d | (v & 255) << (8 * n))
    });
    row("mov.b64 d, {a, 7};", "d64 a32", &[1], &[7 << 32 | 1]);
    let halves = |v: &[u128], width: u32| vec![low(v[0] as i128, width), v[0] >> width];
    fuzz_with("mov.b32 {d, e}, a;", "d16 e16 a32", corner, |v| {
        halves(v, 16)
    });
    fuzz_with("mov.b64 {d, e}, a;", "d32 e32 a64", corner, |v| {
        halves(v, 32)
    });
    fuzz_with("mov.b128 {d, e}, a;", "d64 e64 a128", corner, |v| {
        halves(v, 64)
    });
    fuzz("mov.b64 {_, d}, a;", "d32 a64", |v| v[0] >> 32);
    fuzz("mov.b64 {_, _, d, _}, a;", "d16 a64", |v| {
        v[0] >> 32 & 0xffff
    });
    fuzz_with(
        "mov.b64 {d, e, b, c}, a; xor.b16 e, e, c;",
        "d16 e16 a64 b16 c16",
        corner,
        |v| vec![v[0] & 0xffff, (v[0] >> 16 ^ v[0] >> 48) & 0xffff],
    );
    fuzz_with("mov.b32 {_, d, _, e}, a;", "d16 e16 a32", corner, |v| {
        vec![v[0] >> 8 & 255, v[0] >> 24]
    });
    fuzz_with("mov.b128 {d, _, _, e}, a;", "d32 e32 a128", corner, |v| {
        vec![v[0] & 0xffff_ffff, v[0] >> 96]
    });
    assert!(refused("mov.b64 d, {a, a, a};", "d64 a32").contains("3 elements"));
}
