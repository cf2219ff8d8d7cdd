//! Between the threads of a CTA: shuffles, votes, barriers, registers, control.

use super::{Bench, Program, words};
use std::collections::BTreeSet;

const STORE: &str = "mul.wide.u32 %a,%t,4; add.u64 %a,%o,%a; st.global.u32 [%a],%x;";

/// Each lane gives 3 * lane + 1 and gets that of the lane the mode says.
fn shuffle(bench: &mut Bench, spelling: &str) {
    let (operand, clamp, from): (u32, u32, fn(u32) -> u32) = match spelling.split('.').nth(2) {
        Some("bfly") => (5, 31, |l| l ^ 5),
        Some("down") => (4, 31, |l| if l + 4 < 32 { l + 4 } else { l }),
        Some("up") => (4, 0, |l| if l >= 4 { l - 4 } else { l }),
        Some("idx") => (9, 31, |_| 9),
        _ => panic!("no program for {spelling}"),
    };
    let body = format!("mad.lo.u32 %y,%t,3,1; {spelling} %x|%p,%y,{operand},{clamp},-1; {STORE}");
    let want = words((0..32).map(|l| 3 * from(l) + 1));
    bench.run(&Program::new(&body, &[0], &[0; 128]), &want);
}

/// Threads exchange words through shared memory around a barrier; `meet` is run by all, with warp 0 in %p.
fn exchange(bench: &mut Bench, meet: &str, block: u32, partner: fn(u32) -> u32, one_way: bool) {
    let body = format!(
        ".shared .align 4 .b32 s[256]; setp.lt.u32 %p,%t,32; mov.u32 %s,s; mad.lo.u32 %y,%t,4,%s; add.u32 %x,%t,1000;
         st.shared.u32 [%y],%x; {meet} xor.b32 %z,%t,{}; mad.lo.u32 %z,%z,4,%s; {} ld.shared.u32 %x,[%z]; {STORE}",
        partner(0),
        if one_way { "@%p exit;" } else { "" },
    );
    let mut p = Program::new(&body, &[0], &[0; 1024][..4 * block as usize]);
    p.block = block;
    let want = words((0..block).map(|t| match one_way && t < 32 {
        true => 0,
        false => partner(t) + 1000,
    }));
    bench.run(&p, &want);
}

pub fn run(bench: &mut Bench, wanted: &BTreeSet<&str>) {
    for spelling in wanted.iter().filter(|s| s.starts_with("shfl.")) {
        shuffle(bench, spelling);
    }
    let other_warp: fn(u32) -> u32 = |t| t ^ 32;
    exchange(bench, "bar.sync 0;", 64, other_warp, false);
    exchange(bench, "barrier.sync 3;", 64, other_warp, false);
    exchange(bench, "bar.warp.sync -1;", 32, |t| t ^ 1, false);
    // Warp 0 goes on without waiting.
    exchange(
        bench,
        "@%p bar.arrive 2,64; @!%p bar.sync 2,64;",
        64,
        other_warp,
        true,
    );
    let single = |bench: &mut Bench, body: &str, want: &dyn Fn(u32) -> u32| {
        let body = format!("{body} {STORE}");
        bench.run(
            &Program::new(&body, &[0], &[0; 128]),
            &words((0..32).map(want)),
        );
    };
    single(
        bench,
        "and.b32 %y,%t,3; match.any.sync.b32 %x,%y,-1;",
        &|l| 0x1111_1111 << (l & 3),
    );
    single(
        bench,
        "setp.eq.u32 %p,%t,9; vote.sync.any.pred %q,%p,-1; selp.u32 %x,1,0,%q;",
        &|_| 1,
    );
    let sum = (0..32).map(|l| 3 * l + 1).sum::<u32>();
    for (operation, want) in [("add", sum), ("max", 94), ("min", 1)] {
        let body = format!("mad.lo.u32 %y,%t,3,1; redux.sync.{operation}.u32 %x,%y,-1;");
        single(bench, &body, &|_| want);
    }
    // Exactly one lane, and all agree which.
    single(
        bench,
        "elect.sync %y|%p,-1; selp.u32 %z,1,0,%p; shfl.sync.idx.b32 %r0,%z,%y,31,-1; setp.eq.u32 %q,%t,%y;
         xor.pred %q,%q,%p; selp.u32 %x,0,%r0,%q;",
        &|_| 1,
    );
    single(
        bench,
        "nanosleep.u32 20; griddepcontrol.wait; fence.proxy.async.global; setp.lt.u32 %p,%t,7; mov.u32 %x,1; @%p bra A; mov.u32 %x,2; bra.uni B; A: add.u32 %x,%x,10; B:",
        &|l| if l < 7 { 11 } else { 2 },
    );
    single(
        bench,
        "mov.u32 %x,5; setp.lt.u32 %p,%t,7; @%p bra A; mov.u32 %x,6; A:",
        &|l| if l < 7 { 5 } else { 6 },
    );
    // Three warpgroups of 168 registers: one gives, two take.
    let body = format!(
        "setp.lt.u32 %p,%t,128; @%p bra A; setmaxnreg.inc.sync.aligned.u32 232; bra B; A: setmaxnreg.dec.sync.aligned.u32 40; B: add.u32 %x,%t,3; {STORE}"
    );
    let mut p = Program::new(&body, &[0], &[0; 4 * 384]);
    p.block = 384;
    p.directives = ".maxntid 384,1,1 .minnctapersm 1";
    bench.run(&p, &words((0..384).map(|t| t + 3)));
}
