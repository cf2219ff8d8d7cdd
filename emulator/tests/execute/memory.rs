//! Loads, stores, atomics and addresses in every space.
use super::common::*;
use birdie_emulator::device::{Fault, LaunchConfig, LaunchError, Policy};

const HEAD: &str = ".reg .u32 %t,%x,%y,%z; .reg .u64 %o,%i,%a,%b,%c,%w; .reg .pred %p,%q; mov.u32 %t,%tid.x;
ld.param.u64 %o,[out]; ld.param.u64 %i,[in]; mul.wide.u32 %a,%t,4; add.u64 %b,%i,%a; add.u64 %a,%a,%o;";

fn run(text: &str, input: &[u32], block: u32) -> Vec<u32> {
    run_body(
        &format!("{HEAD}\n{text}\nst.global.u32 [%a],%x;"),
        block,
        input,
        block as usize,
    )
    .unwrap()
}

#[test]
fn narrow_loads_extend_and_narrow_stores_cut() {
    let input = [0x8182_f384u32, 0x7fff_8001];
    let cases: [(&str, u32); 8] = [
        ("ld.global.u8 %x,[%i];", 0x84),
        ("ld.global.s8 %x,[%i];", 0xffff_ff84),
        ("ld.global.u16 %x,[%i+2];", 0x8182),
        ("ld.global.s16 %x,[%i+4];", 0xffff_8001),
        (
            ".reg .b16 %h; ld.global.s8 %h,[%i]; cvt.u32.u16 %x,%h;",
            0xff84,
        ),
        (
            "ld.global.s16 %w,[%i+2]; shr.u64 %w,%w,32; cvt.u32.u64 %x,%w;",
            0xffff_ffff,
        ),
        (
            "ld.global.u32 %w,[%i]; shr.u64 %w,%w,8; cvt.u32.u64 %x,%w;",
            0x81_82f3,
        ),
        (
            "ld.global.s32 %w,[%i]; shr.u64 %w,%w,16; cvt.u32.u64 %x,%w;",
            0xffff_8182,
        ),
    ];
    for (text, want) in cases {
        assert_eq!(run(text, &input, 32), vec![want; 32], "{text}");
    }
    let r = run(
        ".shared .align 8 .b32 s[64]; .reg .u32 %s; shl.b32 %s,%t,3; mov.u32 %y,s; add.u32 %s,%s,%y;
         st.shared.u32 [%s],-1; st.shared.u8 [%s+1],%t; st.shared.b16 [%s+2],%t; ld.shared.u32 %x,[%s];",
        &[],
        32,
    );
    for t in 0..32 {
        assert_eq!(r[t as usize], t << 16 | t << 8 | 0xff);
    }
}

#[test]
fn vectors_in_every_space_and_pattern() {
    let input: Vec<u32> = (0..1024).map(|i| i * 77 + 5).collect();
    // Neighbouring, one address for all, scattered.
    for (pattern, index) in [
        ("%t", (|t| t) as fn(u32) -> u32),
        ("0", |_| 0),
        ("%y", |t| (t * 7) % 32),
    ] {
        for (n, list) in [(2u32, "{%e0,%e1}"), (4, "{%e0,%e1,%e2,%e3}")] {
            let sum: String = (1..n)
                .map(|k| format!("mad.lo.u32 %x,%e{k},{},%x;", k + 1))
                .collect();
            for space in ["global", "shared", "local", "generic"] {
                let copy = match space {
                    "global" => "mov.u64 %c,%i;".to_string(),
                    "generic" | "shared" => "mov.u32 %z,0; L: shl.b32 %y,%z,2; cvt.u64.u32 %w,%y; add.u64 %w,%w,%i; ld.global.u32 %x,[%w];
                        mov.u32 %e0,s; add.u32 %y,%y,%e0; st.shared.u32 [%y],%x; add.u32 %z,%z,1; setp.lt.u32 %p,%z,128; @%p bra L;
                        bar.sync 0; mov.u64 %c,s;"
                        .to_string()
                        + if space == "generic" { "cvta.shared.u64 %c,%c;" } else { "" },
                    _ => "mov.u64 %c,l; mov.u32 %z,0; L: mul.wide.u32 %w,%z,4; add.u64 %b,%w,%i; ld.global.u32 %x,[%b]; add.u64 %w,%w,%c;
                        st.local.u32 [%w],%x; add.u32 %z,%z,1; setp.lt.u32 %p,%z,128; @%p bra L;"
                        .to_string(),
                };
                let dot = if space == "generic" {
                    String::new()
                } else {
                    format!(".{space}")
                };
                let text = format!(
                    ".reg .u32 %e<4>; .shared .align 16 .b32 s[128]; .local .align 16 .b32 l[128]; {copy}
                     mul.lo.u32 %y,%t,7; and.b32 %y,%y,31; mov.u32 %z,{pattern}; mul.wide.u32 %w,%z,{}; add.u64 %w,%w,%c;
                     ld{dot}.v{n}.u32 {list},[%w]; mov.u32 %x,%e0; {sum}",
                    4 * n
                );
                // One warp: all lanes write the same bytes of shared memory, which is no race within a warp.
                let r = run(&text, &input, 32);
                for t in 0..32u32 {
                    let at = index(t) * n;
                    let want = (0..n).fold(0u32, |s, k| {
                        s.wrapping_add(input[(at + k) as usize].wrapping_mul(k + 1))
                    });
                    assert_eq!(r[t as usize], want, "{space} v{n} {pattern} thread {t}");
                }
            }
        }
    }
}

#[test]
fn constants_initialisers_and_relocations() {
    let text = ".version 8.5\n.target sm_90a\n.address_size 64\n
        .const .align 4 .b32 c[3] = {11, 22, 33};
        .global .align 8 .u64 p = c;
        .global .align 8 .u64 q = generic(v)+4;
        .global .align 4 .u32 v[2] = {5, 6};
        .visible .entry k(.param .u64 out, .param .align 16 .b8 s[24]) {
        .reg .u64 %o,%a,%b; .reg .u32 %x,%y; .reg .pred %p; ld.param.u64 %o,[out];
        ld.const.u32 %x,[c+4]; st.global.u32 [%o],%x;
        ld.global.u64 %a,[p]; ld.u32 %x,[%a+8]; st.global.u32 [%o+4],%x;
        ld.global.u64 %a,[q]; ld.u32 %x,[%a]; st.global.u32 [%o+8],%x;
        mov.b64 %a,s; ld.param.u32 %x,[%a+20]; st.global.u32 [%o+12],%x;
        cvta.param.u64 %b,%a; ld.v2.u32 {%x,%y},[%b+8]; add.u32 %x,%x,%y; st.global.u32 [%o+16],%x;
        isspacep.const %p,%a; selp.u32 %x,1,0,%p; isspacep.global %p,%o; @%p add.u32 %x,%x,2; st.global.u32 [%o+20],%x;
        .reg .b32 %s; mov.b32 %s,s; cvt.u64.u32 %a,%s; cvta.param.u64 %b,%a; ld.u32 %x,[%b+12];
        mov.b32 %s,s+16; cvt.u64.u32 %a,%s; cvta.param.u64 %b,%a; ld.u32 %y,[%b]; shl.b32 %y,%y,8; or.b32 %x,%x,%y; st.global.u32 [%o+24],%x;
        ret; }";
    let d = device(0, Policy::Random);
    let m = module(&d, text);
    assert_eq!(m.globals["v"].1, 8);
    let out = upload(&d, &[0u32; 7]);
    let mut params = Params::default().u64(out).0;
    params.resize(16, 0);
    params.extend((1..=6u32).flat_map(|v| v.to_le_bytes()));
    launch(&d, &m, "k", config(1, 1), &Params(params)).unwrap();
    assert_eq!(
        download::<u32>(&d, out, 7),
        [22, 33, 6, 6, 7, 2, 4 | 5 << 8]
    );
    let used = d.memory.used();
    d.unload_module(&m);
    assert!(d.memory.used() < used);
}

#[test]
fn atomics_of_every_operation() {
    // Each thread applies the operation to one word; the final value is that of any order.
    let cases: [(&str, u32, u32); 9] = [
        ("red.global.add.u32 [%i],%t;", 7, 7 + 496),
        ("atom.global.min.s32 %y,[%i],%z;", 7, (-31i32) as u32),
        ("atom.global.max.u32 %y,[%i],%t;", 7, 31),
        (
            "red.global.and.b32 [%i],%z;",
            0xffff_ffff,
            (0..32).fold(u32::MAX, |a, t: i32| a & (-t) as u32),
        ),
        ("red.relaxed.gpu.global.or.b32 [%i],%t;", 64, 64 | 31),
        ("atom.global.xor.b32 %y,[%i],%t;", 9, 9),
        ("atom.global.inc.u32 %y,[%i],9;", 0, 2),
        ("atom.global.dec.u32 %y,[%i],9;", 0, 8),
        ("red.global.add.f32 [%i],0f3F800000;", 0, 0x4200_0000),
    ];
    for (text, start, want) in cases {
        for (seed, policy) in schedules() {
            let d = device(seed, policy);
            let body = format!("{HEAD} sub.u32 %z,0,%t; {text}");
            let m = module(&d, &kernel(&body));
            let inp = upload(&d, &[start]);
            launch(
                &d,
                &m,
                "k",
                config(1, 32),
                &Params::default().u64(inp).u64(inp),
            )
            .unwrap();
            assert_eq!(download::<u32>(&d, inp, 1)[0], want, "{text}");
        }
    }
}

#[test]
fn atomics_of_wide_half_and_vector_types() {
    let run = |text: &str, start: &[u32]| -> Vec<u32> {
        let d = device(3, Policy::Random);
        let m = module(
            &d,
            &kernel(&format!(
                "{HEAD} .reg .b16 %h; .reg .f32 %f; .reg .b128 %k,%l,%n; {text}"
            )),
        );
        let inp = upload(&d, start);
        launch(
            &d,
            &m,
            "k",
            config(1, 32),
            &Params::default().u64(inp).u64(inp),
        )
        .unwrap();
        download(&d, inp, start.len())
    };
    assert_eq!(
        run(
            "cvt.u64.u32 %w,%t; shl.b64 %w,%w,31; red.global.add.u64 [%i],%w;",
            &[0, 0]
        ),
        [0, 248]
    );
    assert_eq!(
        run(
            "mov.u64 %w,0d3FE0000000000000; red.global.add.f64 [%i],%w;",
            &[0, 0]
        ),
        [0, 0x4030_0000]
    );
    // 32 times 0.5 in both halves: 16.0 is 0x4c00 in f16 and 0x4180 in bf16.
    assert_eq!(
        run(
            "mov.u32 %x,0x38003800; red.global.add.noftz.f16x2 [%i],%x;",
            &[0]
        ),
        [0x4c00_4c00]
    );
    assert_eq!(
        run(
            "mov.u32 %x,0x3f003f00; red.global.add.noftz.bf16x2 [%i],%x;",
            &[0]
        ),
        [0x4180_4180]
    );
    assert_eq!(
        run(
            "mov.b16 %h,0x3800; red.global.add.noftz.f16 [%i+2],%h;",
            &[0]
        ),
        [0x4c00_0000]
    );
    assert_eq!(
        run(
            "mov.f32 %f,0f3F800000; red.global.add.v4.f32 [%i],{%f,%f,%f,%f};",
            &[0; 4]
        ),
        [0x4200_0000; 4]
    );
    assert_eq!(
        run(
            "mov.u32 %x,0x3f003f00; red.global.add.noftz.v2.bf16x2 [%i],{%x,%x};",
            &[0; 2]
        ),
        [0x4180_4180; 2]
    );
    // Each lane swaps in its own number while it finds the one before: cas succeeds 32 times in some order or fails.
    assert_eq!(
        run(
            "setp.eq.u32 %p,%t,3; @%p bra A; exit; A: atom.global.cas.b32 %x,[%i],5,9; st.global.u32 [%i+4],%x;",
            &[5, 0]
        ),
        [9, 5]
    );
    assert_eq!(
        run(
            "setp.ne.u32 %p,%t,3; @%p exit; mov.b16 %h,5; atom.global.cas.b16 %h,[%i],%h,7;",
            &[5]
        ),
        [7]
    );
    assert_eq!(
        run(
            "setp.ne.u32 %p,%t,3; @%p exit; mov.u64 %w,1; mov.u64 %c,2; mov.b128 %k,{%w,%w}; mov.b128 %l,{%c,%w};
             atom.global.exch.b128 %n,[%i],%k; atom.global.cas.b128 %n,[%i],%k,%l;",
            &[0; 4]
        ),
        [2, 0, 1, 0]
    );
}

#[test]
fn shared_memory_of_other_ctas() {
    let text = ".version 8.5\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 out) {
        .shared .align 4 .b32 s[32]; .reg .u32 %t,%r,%n,%x,%y,%z; .reg .u64 %o,%a,%g; .reg .pred %p;
        mov.u32 %t,%tid.x; mov.u32 %r,%cluster_ctarank; ld.param.u64 %o,[out];
        mov.u32 %x,s; shl.b32 %y,%t,2; add.u32 %x,%x,%y; mad.lo.u32 %y,%r,100,%t; st.shared.u32 [%x],%y;
        barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
        add.u32 %n,%r,1; and.b32 %n,%n,3;
        mapa.shared::cluster.u32 %z,%x,%n; ld.shared::cluster.u32 %y,[%z];
        cvt.u64.u32 %g,%x; cvta.shared.u64 %g,%g; mapa.u64 %g,%g,%n; atom.add.u32 %z,[%g],1000;
        getctarank.u64 %n,%g; shl.b32 %n,%n,16; add.u32 %y,%y,%n;
        barrier.cluster.arrive.release; barrier.cluster.wait.acquire;
        ld.shared.u32 %z,[%x]; add.u32 %y,%y,%z;
        mad.lo.u32 %z,%r,32,%t; mul.wide.u32 %a,%z,4; add.u64 %a,%a,%o; st.global.u32 [%a],%y; ret; }";
    for (seed, policy) in schedules() {
        let d = device(seed, policy);
        let m = module(&d, text);
        let out = upload(&d, &[0u32; 128]);
        let config = LaunchConfig {
            grid: [4, 1, 1],
            block: [32, 1, 1],
            cluster: [4, 1, 1],
            dynamic_shared: 0,
        };
        launch(&d, &m, "k", config, &Params::default().u64(out)).unwrap();
        let r: Vec<u32> = download(&d, out, 128);
        for rank in 0..4u32 {
            for t in 0..32u32 {
                let next = (rank + 1) & 3;
                let want = (next * 100 + t) + (next << 16) + (rank * 100 + t + 1000);
                assert_eq!(r[(rank * 32 + t) as usize], want);
            }
        }
    }
}

fn fault(text: &str) -> Fault {
    match run_body(&format!("{HEAD}\n{text}"), 32, &[0; 100], 32) {
        Err(LaunchError::Fault(f)) => f,
        other => panic!("{other:?}"),
    }
}

#[test]
fn bad_addresses_are_named() {
    let text = |f: Fault| match f {
        Fault::IllegalAddress(t) | Fault::MisalignedAddress(t) => t,
        other => panic!("{other:?}"),
    };
    let t = text(fault("ld.global.u32 %x,[%b+376]; st.global.u32 [%a],%x;"));
    assert!(
        t.contains("lane 6") && t.contains("0 bytes past the end of test buffer"),
        "{t}"
    );
    let t = text(fault("ld.global.u32 %x,[%o+-4]; st.global.u32 [%a],%x;"));
    assert!(
        t.contains("before the start of test buffer") || t.contains("past the end of"),
        "{t}"
    );
    let t = text(fault(
        "mov.u64 %w,16; ld.global.u32 %x,[%w]; st.global.u32 [%a],%x;",
    ));
    assert!(t.contains("null pointer"), "{t}");
    let t = text(fault("ld.global.u32 %x,[%b+2]; st.global.u32 [%a],%x;"));
    assert!(t.contains("not a multiple of 4"), "{t}");
    let t = text(fault(
        ".shared .align 4 .b32 s[8]; shl.b32 %y,%t,2; mov.u32 %z,s; add.u32 %y,%y,%z; st.shared.u32 [%y],%t;",
    ));
    assert!(
        t.contains("lane 8") && t.contains("shared memory is 0x400..0x420"),
        "{t}"
    );
    let t = text(fault(
        ".local .align 4 .b32 l[4]; mov.u64 %w,l; add.u64 %w,%w,%a; sub.u64 %w,%w,%o; st.local.u32 [%w],%t;",
    ));
    assert!(t.contains("local address 0x10"), "{t}");
}
