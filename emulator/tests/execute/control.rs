//! Branches, divergence, barriers, and what happens when nothing can go on.
use super::common::*;
use birdie_emulator::check::FindingKind;
use birdie_emulator::device::{Fault, LaunchError, Policy};

const TID: &str = ".reg .u32 %t; mov.u32 %t, %tid.x; .reg .u64 %o,%i,%a,%b; ld.param.u64 %o,[out]; ld.param.u64 %i,[in];
mul.wide.u32 %a,%t,4; add.u64 %b,%i,%a; add.u64 %a,%a,%o; .reg .u32 %x,%y,%z; .reg .pred %p,%q;";

fn body(text: &str) -> String {
    format!("{TID}\n{text}\nst.global.u32 [%a], %x;")
}

#[test]
fn branch_tables_split_a_warp() {
    let r = run_body(
        &body(
            "and.b32 %y,%t,3; mov.u32 %x,0;
             ts: .branchtargets L0, L1, L2, L1;
             brx.idx %y, ts;
             L0: add.u32 %x,%x,10; bra.uni D;
             L1: add.u32 %x,%x,20; bra.uni D;
             L2: add.u32 %x,%x,30;
             D: add.u32 %x,%x,%t;",
        ),
        64,
        &[],
        64,
    )
    .unwrap();
    for t in 0..64 {
        assert_eq!(r[t], [10, 20, 30, 20][t % 4] + t as u32);
    }
}

#[test]
fn loops_of_different_length_come_together_again() {
    // After the loop all lanes vote: only a warp that has reconverged sees all of them.
    let r = run_body(
        &body(
            "mov.u32 %x,0; and.b32 %y,%t,7;
             L: add.u32 %x,%x,%y; setp.eq.u32 %p,%y,0; @%p bra D; sub.u32 %y,%y,1; bra L;
             D: activemask.b32 %z; popc.b32 %z,%z; shl.b32 %z,%z,16; or.b32 %x,%x,%z;",
        ),
        32,
        &[],
        32,
    )
    .unwrap();
    for t in 0..32u32 {
        let n = t & 7;
        assert_eq!(r[t as usize], (n * (n + 1) / 2) | 32 << 16);
    }
}

#[test]
fn partial_exit_and_barriers() {
    let r = run_body(
        ".reg .u32 %t,%x; .reg .u64 %o,%a; .reg .pred %p; mov.u32 %t,%tid.x; ld.param.u64 %o,[out];
         .shared .align 4 .b32 s;
         setp.ge.u32 %p,%t,64; @%p exit;
         setp.eq.u32 %p,%t,0; @%p st.shared.u32 [s], 77;
         bar.sync 0;
         ld.shared.u32 %x,[s]; mul.wide.u32 %a,%t,4; add.u64 %a,%a,%o; st.global.u32 [%a],%x;",
        128,
        &[],
        64,
    )
    .unwrap();
    assert_eq!(r, vec![77; 64]);
}

#[test]
fn named_barriers_order_producers_and_consumers() {
    // Warp 0 produces for warp 1 through barriers 1 (full) and 2 (empty), ten times.
    let r = run_body(
        &format!(
            "{TID} .shared .align 4 .b32 s[32]; .reg .u32 %l,%k,%w; .reg .u32 %s;
             shr.u32 %w,%t,5; and.b32 %l,%t,31; shl.b32 %s,%l,2; mov.u32 %y,s; add.u32 %s,%s,%y;
             mov.u32 %k,0; mov.u32 %x,0;
             setp.eq.u32 %p,%w,0; @%p bra P;
             C: bar.sync 1,64; ld.shared.u32 %y,[%s]; add.u32 %x,%x,%y; bar.arrive 2,64;
             add.u32 %k,%k,1; setp.lt.u32 %p,%k,10; @%p bra C; bra D;
             P: add.u32 %y,%k,%l; st.shared.u32 [%s],%y; bar.arrive 1,64; bar.sync 2,64;
             add.u32 %k,%k,1; setp.lt.u32 %p,%k,10; @%p bra P;
             D: st.global.u32 [%a],%x;"
        ),
        64,
        &[],
        64,
    )
    .unwrap();
    for l in 0..32u32 {
        assert_eq!(r[32 + l as usize], 45 + 10 * l);
    }
}

#[test]
fn barrier_reductions() {
    let r = run_body(
        &body(
            "setp.lt.u32 %p,%t,70; bar.red.popc.u32 %x,0,%p;
             bar.red.and.pred %q,0,%p; selp.u32 %y,1000,0,%q; add.u32 %x,%x,%y;
             barrier.cta.red.or.pred %q,1,128,%p; selp.u32 %y,10000,0,%q; add.u32 %x,%x,%y;",
        ),
        128,
        &[],
        128,
    )
    .unwrap();
    assert_eq!(r, vec![10070; 128]);
}

fn finding(text: &str, block: u32) -> (FindingKind, String) {
    match run_body(text, block, &[], 128) {
        Err(LaunchError::Fault(Fault::Finding(f))) => (f.kind, f.message),
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_deadlock_names_who_waits_for_what() {
    let (kind, text) = finding(
        &format!(
            "{TID} setp.lt.u32 %p,%t,32; @%p bar.sync 3, 64; setp.ge.u32 %q,%t,32; @%q bar.sync 4, 96;"
        ),
        64,
    );
    assert_eq!(kind, FindingKind::Deadlock);
    assert!(text.contains("named barrier 3: 32 of 64"), "{text}");
    assert!(text.contains("named barrier 4: 32 of 96"), "{text}");
}

#[test]
fn an_aligned_barrier_in_divergent_code_is_found() {
    let (kind, text) = finding(
        &format!("{TID} setp.lt.u32 %p,%t,16; @%p bra A; bar.sync 0; bra B; A: bar.sync 0; B: "),
        32,
    );
    assert_eq!(kind, FindingKind::DivergentAligned, "{text}");
}

#[test]
fn polling_memory_that_nobody_writes_is_a_livelock() {
    let (kind, text) = finding(
        &format!("{TID} L: ld.volatile.global.u32 %x,[%i]; setp.eq.u32 %p,%x,0; @%p bra L;"),
        64,
    );
    assert_eq!(kind, FindingKind::Livelock, "{text}");
}

#[test]
fn the_watchdog_ends_a_loop() {
    let d = birdie_emulator::device::Device::new(
        0,
        birdie_emulator::device::Settings {
            step_limit: 100_000,
            ..device(0, Policy::Random).settings.clone()
        },
    )
    .unwrap();
    let m = module(&d, &kernel("L: bra L;"));
    let r = launch(&d, &m, "k", config(1, 32), &Params::default().u64(0).u64(0));
    assert!(
        matches!(r, Err(LaunchError::Fault(Fault::Timeout(_)))),
        "{r:?}"
    );
}

#[test]
fn setmaxnreg_moves_registers_between_warps() {
    // 256 threads with 128 registers each: one warpgroup gives what the other takes.
    let text = ".version 8.5\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 out) .maxntid 256,1,1 .minnctapersm 2 {
        .reg .u32 %t; .reg .pred %p; mov.u32 %t,%tid.x; setp.lt.u32 %p,%t,128; @%p bra A;
        setmaxnreg.inc.sync.aligned.u32 200; bra B;
        A: setmaxnreg.dec.sync.aligned.u32 56;
        B: ret; }";
    for (seed, policy) in schedules() {
        let d = device(seed, policy);
        let m = module(&d, text);
        launch(&d, &m, "k", config(1, 256), &Params::default().u64(0)).unwrap();
        let m = module(&d, &text.replace("56;", "64;"));
        match launch(&d, &m, "k", config(1, 256), &Params::default().u64(0)) {
            Err(LaunchError::Fault(Fault::Finding(f))) => {
                assert_eq!(f.kind, FindingKind::Deadlock);
                assert!(f.message.contains("setmaxnreg.inc waits"), "{}", f.message);
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_kernel_starts_with_no_more_registers_than_setmaxnreg_asks_for() {
    // What ptxas 13.0 prints for such kernels: threads, the count of .inc, registers per thread.
    for (threads, inc, registers) in [
        (128, 248, 248),
        (256, 248, 248),
        (256, 232, 232),
        (256, 256, 255),
        (384, 160, 160),
        (384, 240, 168),
        (512, 104, 104),
    ] {
        let text = format!(
            ".version 8.5\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 out) .maxntid {threads},1,1 {{
            .reg .u32 %t; .reg .pred %p; mov.u32 %t,%tid.x; setp.lt.u32 %p,%t,128; @%p bra A;
            setmaxnreg.inc.sync.aligned.u32 {inc}; bra B;
            A: setmaxnreg.dec.sync.aligned.u32 40;
            B: ret; }}"
        );
        let d = device(1, Policy::Random);
        let m = module(&d, &text);
        assert_eq!(m.entries["k"].registers_per_thread(), registers);
        if threads < 384 {
            launch(&d, &m, "k", config(1, threads), &Params::default().u64(0)).unwrap();
        }
    }
}

#[test]
fn clocks_advance() {
    let r = run_body(
        &body(
            ".reg .u64 %c,%d; mov.u64 %c,%clock64; mov.u64 %d,%clock64; setp.gt.u64 %p,%d,%c; selp.u32 %x,1,0,%p;
             mov.u64 %c,%globaltimer; nanosleep.u32 100; mov.u64 %d,%globaltimer; setp.gt.u64 %p,%d,%c; @%p add.u32 %x,%x,2;
             mov.u32 %y,%clock; mov.u32 %z,%clock; setp.ne.u32 %p,%y,%z; @%p add.u32 %x,%x,4;",
        ),
        32,
        &[],
        32,
    )
    .unwrap();
    assert_eq!(r, vec![7; 32]);
}
