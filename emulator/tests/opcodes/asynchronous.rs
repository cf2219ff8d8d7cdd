//! mbarriers, cp.async, bulk and tensor copies, edited tensor maps.

use super::{Bench, Program, pattern, words};
use birdie_emulator::tensor_map::EncodeParams;
use std::collections::BTreeSet;

/// A map of 32-bit words over a whole tensor of `rank` dimensions, the box as large as the tensor.
const DIMS: [u64; 5] = [8, 4, 2, 2, 2];

fn elements(rank: usize) -> usize {
    DIMS[..rank].iter().product::<u64>() as usize
}

fn map(rank: usize, address: u64) -> [u8; 128] {
    let strides: Vec<u64> = (1..rank)
        .map(|d| 4 * DIMS[..d].iter().product::<u64>())
        .collect();
    let boxed: Vec<u32> = DIMS[..rank].iter().map(|&d| d as u32).collect();
    EncodeParams {
        element_type: 2,
        rank: rank as u32,
        global_address: address,
        dims: &DIMS[..rank],
        strides: &strides,
        box_dims: &boxed,
        element_strides: &vec![1; rank],
        interleave: 0,
        swizzle: 0,
        l2_promotion: 0,
        oob_fill: 0,
    }
    .validate()
    .expect("a legal map")
    .encode()
}

/// Shared memory, an mbarrier and the address of the map; thread 0 has %q.
const START: &str = ".shared .align 1024 .b8 s[4096]; .shared .align 8 .b64 bar; mov.u32 %s,s; mov.u32 %bar,bar; mov.u64 %m,map;
cvta.param.u64 %m,%m; setp.eq.u32 %q,%t,0; mov.u64 %w,0;\n";

/// Copies `n` words between `[%s]` and global memory at `pointer`, word by word over the threads.
fn words_of(n: usize, to_shared: bool, pointer: &str, label: &str) -> String {
    let moved = if to_shared {
        "ld.global.u32 %x,[%a]; st.shared.u32 [%z],%x;"
    } else {
        "ld.shared.u32 %x,[%z]; st.global.u32 [%a],%x;"
    };
    format!(
        "mov.u32 %y,%t; {label}: setp.ge.u32 %p,%y,{n}; @%p bra {label}E; mul.wide.u32 %a,%y,4; add.u64 %a,{pointer},%a;
         mad.lo.u32 %z,%y,4,%s; {moved} add.u32 %y,%y,32; bra {label}; {label}E:\n"
    )
}

fn rank_of(spelling: &str) -> usize {
    let part = spelling
        .split('.')
        .find(|p| p.len() == 2 && p.ends_with('d'));
    part.map_or(0, |p| p[..1].parse().expect("a digit"))
}

fn coordinates(rank: usize) -> String {
    format!("{{{}}}", vec!["0"; rank].join(","))
}

/// A load into shared memory that signals the mbarrier: tensor or plain bytes.
fn load(bench: &mut Bench, spelling: &str) {
    let rank = rank_of(spelling);
    let n = if rank == 0 { 64 } else { elements(rank) };
    let bytes = 4 * n;
    let source = match rank {
        0 => "[%i]".to_owned(),
        _ => format!("[%m,{}]", coordinates(rank)),
    };
    let size = if rank == 0 {
        format!(",{bytes}")
    } else {
        String::new()
    };
    let multicast = spelling.contains("multicast");
    let (mask, issuer) = if multicast {
        (",%h0", "setp.eq.u32 %p,%c,0; and.pred %p,%p,%q;")
    } else {
        ("", "mov.pred %p,%q;")
    };
    let hint = if spelling.contains("cache_hint") {
        ",%w"
    } else {
        ""
    };
    let prefetch = if rank > 0 {
        "@%q prefetch.tensormap [%m];"
    } else {
        ""
    };
    let (meet, leave) = if multicast {
        (
            "fence.mbarrier_init.release.cluster; barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;",
            "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;",
        )
    } else {
        ("bar.sync 0;", "")
    };
    let body = format!(
        "{START} mov.b16 %h0,3; @%q mbarrier.init.shared::cta.b64 [%bar],1; {prefetch} {meet}
         @%q mbarrier.arrive.expect_tx.shared::cta.b64 _,[%bar],{bytes}; {issuer}
         @%p {spelling} [%s],{source}{size},[%bar]{mask}{hint};
         W: mbarrier.try_wait.parity.shared::cta.b64 %p,[%bar],0; @!%p bra W;
         mul.wide.u32 %d0,%c,{bytes}; add.u64 %d0,%o,%d0; {} {leave}",
        words_of(n, false, "%d0", "C")
    );
    let input = pattern(bytes);
    let ctas = if multicast { 2 } else { 1 };
    let make = |_, input| map(rank.max(1), input);
    let empty = vec![0; bytes * ctas];
    let mut p = Program::new(&body, &input, &empty);
    p.cluster = ctas as u32;
    p.map = Some(&make);
    bench.run(&p, &input.repeat(ctas));
}

/// A copy or reduction out of shared memory.
fn store(bench: &mut Bench, spelling: &str) {
    let rank = rank_of(spelling);
    let n = if rank == 0 { 64 } else { elements(rank) };
    let bytes = 4 * n;
    let hint = if spelling.contains("cache_hint") {
        ",%w"
    } else {
        ""
    };
    let operands = match rank {
        0 => format!("[%o],[%s],{bytes}{hint}"),
        _ => format!("[%m,{}],[%s]{hint}", coordinates(rank)),
    };
    for read in ["", "cp.async.bulk.wait_group.read 0;"] {
        let body = format!(
            "{START} {} fence.proxy.async.shared::cta; bar.sync 0; @!%q bra E; {spelling} {operands};
             cp.async.bulk.commit_group; {read} cp.async.bulk.wait_group 0; E:",
            words_of(n, true, "%i", "C")
        );
        let make = |out, _| map(rank.max(1), out);
        let (input, output, want) = if spelling.ends_with("f32") {
            let f = |k: usize| ((k as f32) / 4.0, 100.0 - k as f32);
            (
                words((0..n).map(|k| f(k).0.to_bits())),
                words((0..n).map(|k| f(k).1.to_bits())),
                words((0..n).map(|k| (f(k).0 + f(k).1).to_bits())),
            )
        } else if spelling.contains(".add.") {
            let f = |k: usize| (k as u32 * 3, 1000 + k as u32);
            (
                words((0..n).map(|k| f(k).0)),
                words((0..n).map(|k| f(k).1)),
                words((0..n).map(|k| f(k).0 + f(k).1)),
            )
        } else {
            (pattern(bytes), vec![0; bytes], pattern(bytes))
        };
        let mut p = Program::new(&body, &input, &output);
        p.map = Some(&make);
        bench.run(&p, &want);
    }
}

/// A load through `cp.async.bulk…`, with the given ways to initialise, expect, wait and invalidate.
fn barrier(bench: &mut Bench, init: &str, expect: &str, wait: &str) {
    let body = format!(
        "{START} @%q {init} [%bar],1; bar.sync 0; @!%q bra R; {expect}
         cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%s],[%i],256,[%bar];
         R: {wait} {} bar.sync 0; @%q mbarrier.inval.shared::cta.b64 [%bar];",
        words_of(64, false, "%o", "C")
    );
    let input = pattern(256);
    bench.run(&Program::new(&body, &input, &[0; 256]), &input);
}

fn barriers(bench: &mut Bench) {
    let expect = |s: &str| format!("{s} _,[%bar],256;");
    let parity = |s: &str| format!("W: {s} %p,[%bar],0; @!%p bra W;");
    let first = "mbarrier.init.shared::cta.b64";
    let plain = "mbarrier.arrive.expect_tx.shared::cta.b64";
    barrier(
        bench,
        "mbarrier.init.shared.b64",
        &expect("mbarrier.arrive.expect_tx.shared.b64"),
        &parity("mbarrier.try_wait.parity.shared.b64"),
    );
    barrier(
        bench,
        first,
        &expect("mbarrier.arrive.expect_tx.release.cta.shared::cta.b64"),
        &parity("mbarrier.try_wait.parity.acquire.cta.shared::cta.b64"),
    );
    for arrive in [
        "mbarrier.arrive.shared::cta.b64",
        "mbarrier.arrive.release.cta.shared::cta.b64",
    ] {
        barrier(
            bench,
            first,
            &format!("mbarrier.expect_tx.shared::cta.b64 [%bar],256; {arrive} _,[%bar];"),
            &parity("mbarrier.try_wait.parity.shared::cta.b64"),
        );
    }
    // The state that the arrival returns is what thread 0 waits for; the others wait for the parity.
    barrier(
        bench,
        first,
        &format!("{plain} %d1,[%bar],256;"),
        "@%q bra T; W: mbarrier.try_wait.parity.shared::cta.b64 %p,[%bar],0; @!%p bra W; bra.uni U;
         T: mbarrier.try_wait.shared.b64 %p,[%bar],%d1; @!%p bra T; U:",
    );
}

/// Each lane copies its 4 or 16 bytes.
fn plain_copy(bench: &mut Bench, spelling: &str, wait: &str) {
    let size = if spelling.contains(".cg.") { 16 } else { 4 };
    let body = format!(
        "{START} mul.wide.u32 %a,%t,{size}; add.u64 %a,%i,%a; mad.lo.u32 %z,%t,{size},%s; {spelling} [%z],[%a],{size};
         {wait} bar.sync 0; {}",
        words_of(8 * size, false, "%o", "C")
    );
    let input = pattern(32 * size);
    bench.run(&Program::new(&body, &input, &vec![0; 32 * size]), &input);
}

/// A map made field by field in shared memory, published in `out`, and used.
fn edited(bench: &mut Bench) {
    let replace = |field: &str, width: u32, operands: &str| {
        format!("@%q tensormap.replace.tile.{field}.shared::cta.b1024.b{width} [%s],{operands};\n")
    };
    let fields: String = [
        ("global_address", 64, "%i"),
        ("rank", 32, "1"),
        ("box_dim", 32, "0,8"),
        ("box_dim", 32, "1,4"),
        ("global_dim", 32, "0,8"),
        ("global_dim", 32, "1,4"),
        ("global_stride", 64, "0,%d0"),
        ("element_stride", 32, "0,1"),
        ("element_stride", 32, "1,1"),
        ("elemtype", 32, "2"),
        ("interleave_layout", 32, "0"),
        ("swizzle_mode", 32, "0"),
        ("fill_mode", 32, "0"),
    ]
    .iter()
    .map(|(f, w, o)| replace(f, *w, o))
    .collect();
    let body = format!(
        "{START} mov.u64 %d0,32; mov.u32 %x,0; mad.lo.u32 %z,%t,4,%s; st.shared.u32 [%z],%x; @%q mbarrier.init.shared::cta.b64 [%bar],1;
         bar.sync 0; {fields} bar.warp.sync -1;
         tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%o],[%s],128;
         fence.proxy.tensormap::generic.acquire.gpu [%o],128;
         @%q mbarrier.arrive.expect_tx.shared::cta.b64 _,[%bar],128; add.u32 %s,%s,1024;
         @%q cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%s],[%o,{{0,0}}],[%bar];
         W: mbarrier.try_wait.parity.shared::cta.b64 %p,[%bar],0; @!%p bra W; {}",
        words_of(32, false, "%d1", "C").replace("mov.u32 %y,%t;", "add.u64 %d1,%o,128; mov.u32 %y,%t;")
    );
    let input = pattern(128);
    for policy in [
        birdie_emulator::device::Policy::Eager,
        birdie_emulator::device::Policy::Random,
    ] {
        // In front of the result lies the map.
        let got = bench.once(&Program::new(&body, &input, &[0; 256]), policy);
        assert_eq!(got[128..], input, "{policy:?}");
    }
}

pub fn run(bench: &mut Bench, wanted: &BTreeSet<&str>) {
    for spelling in wanted {
        if spelling.starts_with("cp.async.bulk.prefetch") {
            let rank = rank_of(spelling);
            let body = format!(
                "{START} @%q {spelling} [%m,{}]; st.global.u32 [%o],%t;",
                coordinates(rank)
            );
            let make = |_, input| map(rank, input);
            let input = pattern(4 * elements(rank));
            let mut p = Program::new(&body, &input, &[9; 4]);
            p.block = 1;
            p.map = Some(&make);
            bench.run(&p, &[0; 4]);
        } else if spelling.starts_with("cp.async.bulk") && spelling.contains("complete_tx") {
            load(bench, spelling);
        } else if spelling.starts_with("cp.") && spelling.contains("bulk_group") {
            store(bench, spelling);
        } else if spelling.starts_with("cp.async.c") && spelling.contains(".shared.global") {
            plain_copy(
                bench,
                spelling,
                "cp.async.commit_group; cp.async.wait_group 0;",
            );
            plain_copy(bench, spelling, "cp.async.wait_all;");
        }
    }
    barriers(bench);
    edited(bench);
}
