//! Loads, stores, conversions of addresses, atomics.

use super::{Bench, Program, pattern, words};
use std::collections::BTreeSet;

/// A load or store taken apart: state space, elements, bits and type of each.
struct Access<'a> {
    space: &'a str,
    elements: usize,
    ty: &'a str,
    bits: usize,
}

fn access(spelling: &str) -> Access<'_> {
    let parts: Vec<&str> = spelling.split('.').collect();
    let spaces = [
        "global",
        "shared",
        "shared::cta",
        "shared::cluster",
        "local",
        "param",
    ];
    let space = parts[1..].iter().find(|p| spaces.contains(p));
    let vector = parts[1..]
        .iter()
        .find(|p| matches!(**p, "v2" | "v4" | "v8"));
    let ty = parts[parts.len() - 1];
    Access {
        space: space.copied().unwrap_or(""),
        elements: vector.map_or(1, |v| v[1..].parse().expect("a number")),
        ty,
        bits: ty[1..]
            .parse()
            .unwrap_or_else(|_| panic!("type of {spelling}")),
    }
}

/// Copies bytes one by one: `n` of them from `[from]` to `[to]`.
fn bytes(n: usize, load: &str, from: &str, store: &str, to: &str) -> String {
    (0..n)
        .map(|k| format!("ld{load}.u8 %h7,[{from}+{k}]; st{store}.u8 [{to}+{k}],%h7;\n"))
        .collect()
}

/// Every thread moves its bytes from `in` to `out` with the spelling in the middle.
fn moves(bench: &mut Bench, spelling: &str) {
    let a = access(spelling);
    let size = a.elements * a.bits / 8;
    let (registers, list): (Vec<String>, Vec<String>) = (0..a.elements)
        .map(|k| {
            (
                format!(".reg .b{} %e{k};", a.bits.max(16)),
                format!("%e{k}"),
            )
        })
        .unzip();
    let list = match a.elements {
        1 => list[0].clone(),
        _ => format!("{{{}}}", list.join(",")),
    };
    let dot = match a.space {
        "" => String::new(),
        s => format!(".{s}"),
    };
    // Where the thread's bytes lie in the space.
    let place = match a.space {
        "shared" | "shared::cta" | "shared::cluster" => format!(
            ".shared .align 16 .b8 s[{}]; mov.u64 %b,s; mad.wide.u32 %b,%t,{size},%b;",
            32 * size
        ),
        "local" => format!(".local .align 16 .b8 l[{size}]; mov.u64 %b,l;"),
        "param" => String::new(),
        // Global and generic.
        _ => "mov.u64 %b,%w;".into(),
    };
    let scratch = matches!(
        a.space,
        "shared" | "shared::cta" | "shared::cluster" | "local"
    );
    let start = format!(
        "{} {place} mul.wide.u32 %a,%t,{size}; add.u64 %m,%i,%a; add.u64 %a,%o,%a;",
        registers.concat()
    );
    let plain = |load: bool, address: &str| -> String {
        (0..a.elements)
            .map(|k| {
                let (ty, at) = (format!("b{}", a.bits), k * a.bits / 8);
                if load {
                    format!("ld.global.{ty} %e{k},[{address}+{at}];\n")
                } else {
                    format!("st.global.{ty} [{address}+{at}],%e{k};\n")
                }
            })
            .collect()
    };
    let input = pattern(32 * size);
    let body = match (&spelling[..2], a.space) {
        ("ld", "param") => {
            // The parameter is the map: the same for all threads.
            format!("{start} {spelling} {list},[map+16]; {}", plain(false, "%a"))
        }
        ("ld", _) if scratch => format!(
            "{start} {} {spelling} {list},[%b]; {}",
            bytes(size, ".global", "%m", &dot, "%b"),
            plain(false, "%a")
        ),
        ("ld", _) => format!("{start} {spelling} {list},[%m]; {}", plain(false, "%a"))
            .replace("mov.u64 %b,%w;", ""),
        (_, _) if scratch => format!(
            "{start} {} {spelling} [%b],{list}; {}",
            plain(true, "%m"),
            bytes(size, &dot, "%b", ".global", "%a")
        ),
        _ => format!("{start} {} {spelling} [%a],{list};", plain(true, "%m"))
            .replace("mov.u64 %b,%w;", ""),
    };
    let given = pattern(128);
    let map = |_, _| given.clone().try_into().expect("128 bytes");
    let want = match a.space {
        "param" => given[16..16 + size].repeat(32),
        _ => input.clone(),
    };
    let mut p = Program::new(&body, &input, &[0; 1024][..32 * size]);
    p.map = Some(&map);
    bench.run(&p, &want);
    assert!(bench.executed.contains(spelling), "{spelling}: {body}");
    let _ = a.ty;
}

/// One thread applies an atomic to 5 with operand 7; what it returns and what it leaves.
fn atomic(bench: &mut Bench, spelling: &str) {
    let parts: Vec<&str> = spelling.split('.').collect();
    let operation = parts.iter().find(|p| {
        matches!(
            **p,
            "add" | "exch" | "inc" | "dec" | "cas" | "min" | "max" | "and" | "or" | "xor"
        )
    });
    let (operands, left) = match operation.copied() {
        Some("add") => ("7", 12),
        Some("exch") => ("7", 7),
        // 5 >= 7 does not hold, so it counts on.
        Some("inc") => ("7", 6),
        Some("dec") => ("7", 4),
        Some("cas") => ("5,7", 7),
        Some("min") => ("7", 5),
        Some("max") => ("7", 7),
        Some("and") => ("7", 5),
        Some("or") => ("2", 7),
        Some("xor") => ("1", 4),
        _ => panic!("no program for {spelling}"),
    };
    let shared = parts.contains(&"shared");
    let (start, place, end) = if shared {
        (
            ".shared .align 4 .b32 s; st.shared.u32 [s],5;",
            "[s]",
            "ld.shared.u32 %y,[s]; st.global.u32 [%o],%y;",
        )
    } else {
        ("", "[%o]", "")
    };
    let read = if parts[0] == "red" { "" } else { "%x," };
    let body = format!(
        "mov.u32 %x,5; {start} {spelling} {read}{place},{operands}; {end} st.global.u32 [%o+4],%x;"
    );
    let mut p = Program::new(&body, &[0; 4], &[5, 0, 0, 0, 0, 0, 0, 0]);
    p.block = 1;
    bench.run(&p, &words([left, 5]));
}

pub fn run(bench: &mut Bench, wanted: &BTreeSet<&str>) {
    for spelling in wanted {
        match spelling.split('.').next() {
            Some("ld" | "st") => moves(bench, spelling),
            Some("atom" | "red") => atomic(bench, spelling),
            _ => {}
        }
    }
    // Addresses between the windows: each reads the same word in two ways.
    let word = pattern(128);
    let want = word[..4].to_vec();
    for body in [
        "cvta.global.u64 %b,%i; ld.u32 %y,[%b]; st.global.u32 [%o],%y;",
        "cvta.to.global.u64 %a,%i; ld.global.u32 %y,[%a]; st.global.u32 [%o],%y;",
        "mov.u64 %a,map; cvta.param.u64 %b,%a; ld.u32 %y,[%b]; st.global.u32 [%o],%y;",
        ".shared .align 4 .b32 s; ld.global.u32 %x,[%i]; st.shared.u32 [s],%x; mov.u64 %a,s; cvta.shared.u64 %b,%a; ld.u32 %y,[%b]; st.global.u32 [%o],%y;",
        ".shared .align 4 .b32 s; ld.global.u32 %x,[%i]; st.shared.u32 [s],%x; mov.u64 %a,s; cvta.shared.u64 %b,%a; cvta.to.shared.u64 %a,%b; ld.shared.u32 %y,[%a]; st.global.u32 [%o],%y;",
        // A hint: what is read is the same behind it.
        "prefetch.global.L2 [%i]; ld.global.u32 %y,[%i]; st.global.u32 [%o],%y;",
    ] {
        let given = word.clone();
        let map = |_, _| given.clone().try_into().expect("128 bytes");
        let mut p = Program::new(body, &word, &[0; 4]);
        p.block = 1;
        p.map = Some(&map);
        bench.run(&p, &want);
    }
}
