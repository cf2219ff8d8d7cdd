//! Every form of every instruction that exists for sm_90a loads: `data/forms.txt`, which ptxas was asked about, in one module. What the
//! instructions do is tested elsewhere; here also those few that have no better place.
mod common;
use birdie_emulator::device::{Device, Settings};
use common::*;

/// `{%r4..%r7}` written out.
fn spelled_out(line: &str) -> String {
    let mut out = String::new();
    let mut rest = line;
    while let Some(at) = rest.find("..") {
        let open = rest[..at].rfind('{').expect("a range stands in braces");
        let close = at + rest[at..].find('}').expect("a range stands in braces");
        let number = |name: &str| name[2..].parse::<u32>().expect("a register's number");
        let (first, last) = (&rest[open + 1..at], &rest[at + 2..close]);
        out.push_str(&rest[..=open]);
        let names: Vec<String> = (number(first)..=number(last))
            .map(|n| format!("{}{n}", &first[..2]))
            .collect();
        out.push_str(&names.join(","));
        rest = &rest[close..];
    }
    out + rest
}

#[test]
fn ranges_of_registers() {
    assert_eq!(
        spelled_out("x {%r8..%r11},{%d1..%d2},%r1;"),
        "x {%r8,%r9,%r10,%r11},{%d1,%d2},%r1;"
    );
    assert_eq!(spelled_out("x %r1;"), "x %r1;");
}

#[test]
fn every_form_of_sm_90a_loads() {
    let list = include_str!("data/forms.txt");
    let lines: Vec<&str> = list.lines().filter(|l| !l.starts_with('#')).collect();
    assert!(lines.len() > 3000, "the list is there");
    let mut text = String::from(
        ".version 9.0\n.target sm_90a\n.address_size 64\n.global .align 16 .b8 gl[64];\n.const .align 16 .b8 cn[64];\n.func fn() { ret; }\n",
    );
    // The PTX line of each form.
    let mut forms = vec![""; text.lines().count()];
    for (k, part) in lines.chunks(200).enumerate() {
        text += &format!(
            ".visible .entry k{k}(.param .align 64 .b8 prm[128]) .maxntid 128 {{ \
             .reg .pred %p<8>; .reg .b8 %b<8>; .reg .b16 %h<40>; .reg .b32 %r<256>; .reg .b64 %d<64>; .reg .b128 %w<32>; \
             .reg .f32 %f<8>; .reg .f64 %e<8>; .shared .align 128 .b8 sh[1024]; .local .align 16 .b8 lo[64];\n"
        );
        forms.push("");
        for (n, line) in part.iter().enumerate() {
            let label = format!("L{n}");
            text += &spelled_out(line).replace("L@", &label);
            text += &if line.contains("L@") {
                format!(" {label}:\n")
            } else {
                "\n".into()
            };
            forms.push(line);
        }
        text += "ret; }\n";
        forms.push("");
    }
    let device = Device::new(
        0,
        Settings {
            memory_bytes: 1 << 26,
            ..Settings::default()
        },
    )
    .expect("address space");
    let found = device
        .inspect_module(&text)
        .unwrap_or_else(|e| panic!("{e:?}"));
    let refused: Vec<String> = found
        .errors
        .iter()
        .map(|e| format!("{}: {}", forms[e.line as usize - 1], e.what))
        .collect();
    assert!(refused.is_empty(), "{refused:#?}");
    assert_eq!(found.kernels.len(), lines.len().div_ceil(200));
}

#[test]
fn coordinates_as_a_vector_and_half_of_the_grid_s_number() {
    let body = ".reg .b32 %r<8>; .reg .b64 %d<4>; ld.param.u64 %d0,[out]; mov.v4.u32 {%r0,%r1,%r2,%r3},%tid; mul.wide.u32 %d1,%r0,16; add.u64 %d0,%d0,%d1;
        mov.v4.u32 {%r4,_,_,_},%ntid; add.u32 %r1,%r1,%r4; mov.u32 %r5,%gridid; mov.u64 %d2,%gridid; cvt.u32.u64 %r6,%d2; sub.u32 %r2,%r5,%r6;
        st.global.v4.u32 [%d0],{%r0,%r1,%r2,%r3};";
    let got = run_body(body, 32, &[], 128).unwrap();
    for (lane, v) in got.chunks(4).enumerate() {
        assert_eq!(v, [lane as u32, 32, 0, 0]);
    }
}

#[test]
fn a_unified_address_is_an_address() {
    let body = ".reg .b32 %r; .reg .b64 %d<2>; ld.param.u64 %d0,[out]; ld.param.u64 %d1,[in]; ld.global.u32 %r,[%d1+4].unified; st.global.u32 [%d0],%r;";
    assert_eq!(run_body(body, 1, &[3, 9], 1).unwrap(), [9]);
}

/// All of A and B is zero but for k = 0, so that every element of D is one fused multiply-add.
#[test]
fn products_of_doubles_round_as_they_are_told() {
    let list = |letter: &str, n: usize| {
        let names: Vec<_> = (0..n).map(|i| format!("%{letter}{i}")).collect();
        format!("{{{}}}", names.join(","))
    };
    // x y + 1 with a product too small to matter but for its sign.
    for (sign, down, up) in [
        (1.0f64, 1.0, 1.0 + f64::EPSILON),
        (-1.0, 1.0 - f64::EPSILON / 2.0, 1.0),
    ] {
        let x = sign * 2f64.powi(-60);
        for (mode, want) in [
            ("", 1.0),
            (".rn", 1.0),
            (".rm", down),
            (".rp", up),
            (".rz", down),
        ] {
            for (shape, a, b, c) in [
                ("m8n8k4", 1, 1, 2),
                ("m16n8k4", 2, 1, 4),
                ("m16n8k8", 4, 2, 4),
                ("m16n8k16", 8, 4, 4),
            ] {
                let zero: String = (0..a)
                    .map(|i| format!("mov.f64 %a{i},0d0000000000000000;"))
                    .chain((0..b).map(|i| format!("mov.f64 %b{i},0d0000000000000000;")))
                    .chain((0..c).map(|i| format!("mov.f64 %c{i},0d3ff0000000000000;")))
                    .collect();
                let first: String = (0..a.min(2))
                    .map(|i| format!("@%p mov.f64 %a{i},0d{:016x};", x.to_bits()))
                    .collect();
                let stores: String = (0..c)
                    .map(|i| format!("st.global.f64 [%o+{}],%c{i};", 8 * i))
                    .collect();
                let body = format!(
                    ".reg .f64 %a<8>,%b<4>,%c<4>; .reg .b32 %t,%q; .reg .pred %p; .reg .b64 %o; mov.u32 %t,%tid.x; ld.param.u64 %o,[out];
                     mad.wide.u32 %o,%t,{},%o; and.b32 %q,%t,3; setp.eq.u32 %p,%q,0; {zero} {first} @%p mov.f64 %b0,0d3ff0000000000000;
                     mma.sync.aligned.{shape}.row.col{mode}.f64.f64.f64.f64 {d},{},{},{d}; {stores}",
                    8 * c, list("a", a), list("b", b), d = list("c", c)
                );
                let got = run_body(&body, 32, &[], 64 * c).unwrap();
                for v in got.chunks(2) {
                    let v = f64::from_bits(u64::from(v[0]) | u64::from(v[1]) << 32);
                    assert_eq!(v, want, "{shape}{mode} {sign}");
                }
            }
            let body = format!(
                ".reg .f64 %a,%b,%c<2>; .reg .b32 %t; .reg .b64 %o,%i,%w; .reg .pred %p; ld.param.u64 %o,[out]; ld.param.u64 %i,[in];
                 wmma.load.a.sync.aligned.row.m8n8k4.global.f64 {{%a}},[%i]; wmma.load.b.sync.aligned.col.m8n8k4.global.f64 {{%b}},[%i+256];
                 mov.f64 %c0,0d3ff0000000000000; mov.f64 %c1,0d3ff0000000000000;
                 wmma.mma.sync.aligned.row.col.m8n8k4{mode}.f64.f64.f64.f64 {{%c0,%c1}},{{%a}},{{%b}},{{%c0,%c1}};
                 wmma.store.d.sync.aligned.row.m8n8k4.global.f64 [%o],{{%c0,%c1}};"
            );
            let halves = |v: f64| [v.to_bits() as u32, (v.to_bits() >> 32) as u32];
            let input: Vec<u32> = [x, 1.0]
                .into_iter()
                .flat_map(|v| (0..32).flat_map(move |i| halves(if i % 4 == 0 { v } else { 0.0 })))
                .collect();
            let got = run_body(&body, 32, &input, 128).unwrap();
            for v in got.chunks(2) {
                let v = f64::from_bits(u64::from(v[0]) | u64::from(v[1]) << 32);
                assert_eq!(v, want, "wmma{mode} {sign}");
            }
        }
    }
}
