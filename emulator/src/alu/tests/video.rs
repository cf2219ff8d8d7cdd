//! Video instructions against plain Rust that is written per form, not from the handler's record.
use super::*;

/// Byte or half-word of a register, extended.
fn piece(v: u128, name: &str, sign: bool) -> i128 {
    let (shift, width) = match name {
        "" => (0, 32),
        "b0" => (0, 8),
        "b1" => (8, 8),
        "b2" => (16, 8),
        "b3" => (24, 8),
        "h0" => (0, 16),
        _ => (16, 16),
    };
    let v = v >> shift & ((1 << width) - 1);
    if sign { signed(v, width) } else { v as i128 }
}

fn dot(part: &str) -> String {
    if part.is_empty() {
        String::new()
    } else {
        format!(".{part}")
    }
}

fn range(width: u32, sign: bool) -> (i128, i128) {
    if sign {
        (-(1 << (width - 1)), (1 << (width - 1)) - 1)
    } else {
        (0, (1 << width) - 1)
    }
}

const PARTS: [&str; 7] = ["", "b0", "b1", "b2", "b3", "h0", "h1"];

type Form = (&'static str, fn(i128, i128) -> i128);

const FORMS: [Form; 5] = [
    ("vadd", |a, b| a + b),
    ("vsub", |a, b| a - b),
    ("vabsdiff", |a, b| (a - b).abs()),
    ("vmin", |a, b| a.min(b)),
    ("vmax", |a, b| a.max(b)),
];

fn name(sign: bool) -> &'static str {
    if sign { "s32" } else { "u32" }
}

#[test]
fn scalar_arithmetic_on_parts() {
    let mut rng = Rng(3);
    for (form, f) in FORMS {
        for types in 0..8 {
            let [d, a, b] = [1, 2, 4].map(|bit| types & bit != 0);
            for sat in [false, true] {
                let [pa, pb] = [0, 0].map(|_| PARTS[rng.below(7) as usize]);
                let pd = PARTS[1 + rng.below(6) as usize];
                let op = format!(
                    "{form}.{}.{}.{}{}",
                    name(d),
                    name(a),
                    name(b),
                    if sat { ".sat" } else { "" }
                );
                let result = move |v: &[u128], width: u32| {
                    let t = f(piece(v[0], pa, a), piece(v[1], pb, b));
                    let (low, high) = range(width, d);
                    if sat { t.clamp(low, high) } else { t }
                };
                let (da, db) = (dot(pa), dot(pb));
                fuzz(&format!("{op} d, a{da}, b{db};"), "d32 a32 b32", |v| {
                    low(result(v, 32), 32)
                });
                for second in ["add", "min", "max"] {
                    fuzz(
                        &format!("{op}.{second} d, a{da}, b{db}, c;"),
                        "d32 a32 b32 c32",
                        |v| {
                            let (t, c) = (result(v, 32), piece(v[2], "", d));
                            low(
                                match second {
                                    "add" => t + c,
                                    "min" => t.min(c),
                                    _ => t.max(c),
                                },
                                32,
                            )
                        },
                    );
                }
                fuzz(
                    &format!("{op} d.{pd}, a{da}, b{db}, c;"),
                    "d32 a32 b32 c32",
                    |v| {
                        let width = if pd.starts_with('b') { 8 } else { 16 };
                        let at = width * pd[1..].parse::<u32>().unwrap();
                        let mask = ((1u128 << width) - 1) << at;
                        low(result(v, width), width) << at | v[2] & !mask & 0xffff_ffff
                    },
                );
            }
        }
    }
}

#[test]
fn scalar_shifts_and_comparisons() {
    for (form, left) in [("vshl", true), ("vshr", false)] {
        for sign in [false, true] {
            for mode in ["clamp", "wrap"] {
                let code = format!("{form}.{s}.{s}.u32.{mode} d, a, b.b0;", s = name(sign));
                fuzz(&code, "d32 a32 b32", |v| {
                    let count = v[1] & 0xff;
                    let count = if mode == "wrap" {
                        count % 32
                    } else {
                        count.min(32)
                    };
                    let a = piece(v[0], "", sign);
                    low(if left { a << count } else { a >> count }, 32)
                });
            }
        }
    }
    type Relation = fn(&i128, &i128) -> bool;
    let relations: [(&str, Relation); 6] = [
        ("eq", i128::eq),
        ("ne", i128::ne),
        ("lt", i128::lt),
        ("le", i128::le),
        ("gt", i128::gt),
        ("ge", i128::ge),
    ];
    for (relation, f) in relations {
        fuzz(
            &format!("vset.s32.u32.{relation} d, a.h1, b.b3;"),
            "d32 a32 b32",
            |v| u128::from(f(&piece(v[0], "h1", true), &piece(v[1], "b3", false))),
        );
        fuzz(
            &format!("vset.u32.u32.{relation}.add d, a.b0, b.b0, c;"),
            "d32 a32 b32 c32",
            |v| {
                let t = f(&piece(v[0], "b0", false), &piece(v[1], "b0", false));
                (v[2] + u128::from(t)) & 0xffff_ffff
            },
        );
        fuzz(
            &format!("vset4.s32.s32.{relation}.add d, a, b, c;"),
            "d32 a32 b32 c32",
            |v| {
                let count = ["b0", "b1", "b2", "b3"]
                    .iter()
                    .filter(|p| f(&piece(v[0], p, true), &piece(v[1], p, true)))
                    .count();
                (v[2] + count as u128) & 0xffff_ffff
            },
        );
    }
}

#[test]
fn multiply_and_add() {
    for scale in [0u32, 7, 15] {
        let dots = if scale == 0 {
            String::new()
        } else {
            format!(".shr{scale}")
        };
        let shifted = move |v: i128| low(v >> scale, 32);
        fuzz(
            &format!("vmad.u32.u32.u32{dots} d, a.h0, b.h1, c;"),
            "d32 a32 b32 c32",
            move |v| shifted(piece(v[0], "h0", false) * piece(v[1], "h1", false) + v[2] as i128),
        );
        fuzz(
            &format!("vmad.s32.s32.u32{dots} d, a.b1, -b.h0, c;"),
            "d32 a32 b32 c32",
            move |v| {
                shifted(piece(v[2], "", true) - piece(v[0], "b1", true) * piece(v[1], "h0", false))
            },
        );
        fuzz(
            &format!("vmad.s32.s32.s32{dots} d, a, b, -c;"),
            "d32 a32 b32 c32",
            move |v| {
                // -c is formed in 32 bits: the most negative value is its own negation less one and one more.
                let c = signed(!v[2] & 0xffff_ffff, 32) + 1;
                shifted(piece(v[0], "", true) * piece(v[1], "", true) + c)
            },
        );
        fuzz(
            &format!("vmad.u32.u32.u32.po{dots} d, a.h0, b.h1, c;"),
            "d32 a32 b32 c32",
            move |v| {
                shifted(piece(v[0], "h0", false) * piece(v[1], "h1", false) + v[2] as i128 + 1)
            },
        );
    }
    fuzz("vmad.s32.s32.s32.sat d, a, b, c;", "d32 a32 b32 c32", |v| {
        let t = piece(v[0], "", true) * piece(v[1], "", true) + piece(v[2], "", true);
        low(t.clamp(i32::MIN.into(), i32::MAX.into()), 32)
    });
}

#[test]
fn simd_of_half_words_and_bytes() {
    let average: Form = ("vavrg", |a, b| {
        if a + b >= 0 {
            (a + b + 1) >> 1
        } else {
            (a + b) >> 1
        }
    });
    for (form, f) in FORMS.into_iter().chain([average]) {
        for types in 0..8 {
            let [d, a, b] = [1, 2, 4].map(|bit| types & bit != 0);
            for (lanes, kind, sa, sb, mask) in [
                (2u32, "h", "10", "32", "10"),
                (2, "h", "31", "20", "1"),
                (2, "h", "00", "33", "0"),
                (4, "b", "3210", "7654", "3210"),
                (4, "b", "7102", "0066", "320"),
                (4, "b", "5555", "3210", "1"),
            ] {
                let width = 32 / lanes;
                let pick = move |v: &[u128], select: &str, lane: u32, sign: bool| {
                    let digit = select.as_bytes()[(lanes - 1 - lane) as usize] - b'0';
                    let both = v[0] | v[1] << 32;
                    let v = both >> (u32::from(digit) * width) & ((1 << width) - 1);
                    if sign { signed(v, width) } else { v as i128 }
                };
                let of = move |v: &[u128], lane: u32| f(pick(v, sa, lane, a), pick(v, sb, lane, b));
                let written = move |lane: u32| mask.contains(char::from(b'0' + lane as u8));
                let operands = format!("d.{kind}{mask}, a.{kind}{sa}, b.{kind}{sb}, c;");
                let op = format!("{form}{lanes}.{}.{}.{}", name(d), name(a), name(b));
                for sat in ["", ".sat"] {
                    fuzz(&format!("{op}{sat} {operands}"), "d32 a32 b32 c32", |v| {
                        (0..lanes).fold(0, |out, lane| {
                            let (least, most) = range(width, d);
                            let t = of(v, lane);
                            let t = if sat.is_empty() {
                                t
                            } else {
                                t.clamp(least, most)
                            };
                            let old = v[2] >> (lane * width) & ((1 << width) - 1);
                            let new = if written(lane) { low(t, width) } else { old };
                            out | new << (lane * width)
                        })
                    });
                }
                fuzz(&format!("{op}.add {operands}"), "d32 a32 b32 c32", |v| {
                    let sum: i128 = (0..lanes).filter(|l| written(*l)).map(|l| of(v, l)).sum();
                    low(v[2] as i128 + sum, 32)
                });
            }
        }
    }
    // Without selectors the lanes are those of a and of b.
    fuzz("vadd2.u32.u32.u32 d, a, b, c;", "d32 a32 b32 c32", |v| {
        (v[0] + v[1]) & 0xffff | (((v[0] >> 16) + (v[1] >> 16)) & 0xffff) << 16
    });
}

#[test]
fn forms_that_do_not_exist() {
    for (code, spec, why) in [
        (
            "vadd.s32.s32 d, a, b;",
            "d32 a32 b32",
            "types of d, a and b",
        ),
        (
            "vadd.s32.s32.s32 d, a.b4, b;",
            "d32 a32 b32",
            "unknown part",
        ),
        (
            "vadd.s32.s32.s32.add d, a, b;",
            "d32 a32 b32",
            "c goes with",
        ),
        ("vadd.s32.s32.s32 d, -a, b;", "d32 a32 b32", "negated"),
        (
            "vadd2.s32.s32.s32.sat.add d, a, b, c;",
            "d32 a32 b32 c32",
            "together",
        ),
        (
            "vadd4.s32.s32.s32 d, a.b32, b, c;",
            "d32 a32 b32 c32",
            "unknown part",
        ),
        ("vshl.s32.s32.u32 d, a, b;", "d32 a32 b32", "together"),
        ("vset.s32.s32 d, a, b;", "d32 a32 b32", "together"),
    ] {
        let what = refused(code, spec);
        assert!(what.contains(why), "{code}: {what}");
    }
}
