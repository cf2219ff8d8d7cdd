//! Between the CTAs of a cluster: barriers, mapped addresses, remote arrivals.

use super::{Bench, Program, words};

pub fn run(bench: &mut Bench) {
    // CTA c writes 100 c + lane; each reads the other's.
    for (arrive, wait) in [
        ("barrier.cluster.arrive;", "barrier.cluster.wait;"),
        (
            "barrier.cluster.arrive.aligned;",
            "barrier.cluster.wait.aligned;",
        ),
        (
            "barrier.cluster.arrive.release.aligned;",
            "barrier.cluster.wait.acquire.aligned;",
        ),
        (
            "barrier.cluster.arrive.release;",
            "barrier.cluster.wait.acquire;",
        ),
    ] {
        let body = format!(
            ".shared .align 4 .b32 s[32]; mov.u32 %s,s; mad.lo.u32 %y,%t,4,%s; mad.lo.u32 %x,%c,100,%t; st.shared.u32 [%y],%x;
             {arrive} {wait} xor.b32 %z,%c,1; mapa.shared::cluster.u32 %r0,%y,%z; ld.shared::cluster.u32 %x,[%r0];
             {arrive} {wait} mad.lo.u32 %z,%c,32,%t; mul.wide.u32 %a,%z,4; add.u64 %a,%o,%a; st.global.u32 [%a],%x;"
        );
        let mut p = Program::new(&body, &[0], &[0; 256]);
        p.cluster = 2;
        let want = words((0..64).map(|i| 100 * (1 - i / 32) + i % 32));
        bench.run(&p, &want);
    }
    // Each thread arrives at the other CTA's mbarrier, and waits at its own.
    for (arrive, wait) in [
        (
            "mbarrier.arrive.shared::cluster.b64",
            "mbarrier.try_wait.parity.shared::cta.b64",
        ),
        (
            "mbarrier.arrive.release.cluster.shared::cluster.b64",
            "mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64",
        ),
    ] {
        remote_arrivals(bench, arrive, wait);
    }
}

fn remote_arrivals(bench: &mut Bench, arrive: &str, wait: &str) {
    let body = format!(
        ".shared .align 8 .b64 bar; mov.u32 %bar,bar; setp.ne.u32 %q,%t,0; @%q bra A;
        mbarrier.init.shared::cta.b64 [%bar],32; fence.mbarrier_init.release.cluster;
        A: bar.warp.sync -1; barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;
        xor.b32 %z,%c,1; mapa.shared::cluster.u32 %r0,%bar,%z; {arrive} _,[%r0];
        W: {wait} %p,[%bar],0; @!%p bra W;
        barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
        mad.lo.u32 %z,%c,32,%t; mul.wide.u32 %a,%z,4; add.u64 %a,%o,%a; st.global.u32 [%a],%z;"
    );
    let mut p = Program::new(&body, &[0], &[0; 256]);
    p.cluster = 2;
    bench.run(&p, &words(0..64));
}
