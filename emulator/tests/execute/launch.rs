//! What the driver refuses, and that a result depends on the seed alone.
use super::common::*;
use birdie_emulator::device::{Device, LaunchConfig, LaunchError, Policy, Settings};

const BOUNDED: &str = ".version 8.5\n.target sm_90a\n.address_size 64\n
.visible .entry any(.param .u64 a, .param .u32 b) { ret; }
.visible .entry most(.param .u64 a) .maxntid 128,1,1 { ret; }
.visible .entry exactly(.param .u64 a) .reqntid 64,2,1 { ret; }
.visible .entry cluster(.param .u64 a) .explicitcluster .reqnctapercluster 2,1,1 { ret; }
.visible .entry greedy(.param .u64 a) .maxnreg 255 { ret; }";

fn attempt(
    entry: &str,
    grid: [u32; 3],
    block: [u32; 3],
    cluster: [u32; 3],
    shared: u32,
    bytes: usize,
) -> Result<(), LaunchError> {
    let d = device(0, Policy::Random);
    let m = module(&d, BOUNDED);
    let config = LaunchConfig {
        grid,
        block,
        cluster,
        dynamic_shared: shared,
    };
    launch(&d, &m, entry, config, &Params(vec![0; bytes])).map(drop)
}

#[test]
fn limits_of_the_device_and_of_the_kernel() {
    use LaunchError::*;
    let one = [1, 1, 1];
    assert!(attempt("any", one, [1024, 1, 1], one, 227 << 10, 12).is_ok());
    assert!(matches!(
        attempt("any", one, [1025, 1, 1], one, 0, 12),
        Err(InvalidValue(_))
    ));
    assert!(matches!(
        attempt("any", one, [1, 1, 65], one, 0, 12),
        Err(InvalidValue(_))
    ));
    assert!(matches!(
        attempt("any", [0, 1, 1], one, one, 0, 12),
        Err(InvalidValue(_))
    ));
    assert!(matches!(
        attempt("any", [1, 65536, 1], one, one, 0, 12),
        Err(InvalidValue(_))
    ));
    assert!(matches!(
        attempt("any", one, one, one, (227 << 10) + 1, 12),
        Err(InvalidValue(_))
    ));
    assert!(matches!(
        attempt("any", one, one, one, 0, 8),
        Err(InvalidValue(_))
    ));
    assert!(attempt("most", one, [128, 1, 1], one, 0, 8).is_ok());
    assert!(matches!(
        attempt("most", one, [129, 1, 1], one, 0, 8),
        Err(OutOfResources(_))
    ));
    assert!(attempt("exactly", one, [64, 2, 1], one, 0, 8).is_ok());
    assert!(matches!(
        attempt("exactly", one, [128, 1, 1], one, 0, 8),
        Err(InvalidValue(_))
    ));
    assert!(attempt("cluster", [4, 1, 1], [32, 1, 1], [2, 1, 1], 0, 8).is_ok());
    assert!(attempt("cluster", [4, 1, 1], [32, 1, 1], one, 0, 8).is_ok());
    assert!(matches!(
        attempt("cluster", [4, 1, 1], [32, 1, 1], [4, 1, 1], 0, 8),
        Err(InvalidClusterSize(_))
    ));
    assert!(matches!(
        attempt("any", [3, 1, 1], one, [2, 1, 1], 0, 12),
        Err(InvalidClusterSize(_))
    ));
    assert!(matches!(
        attempt("any", [32, 1, 1], one, [32, 1, 1], 0, 12),
        Err(InvalidClusterSize(_))
    ));
    assert!(attempt("greedy", one, [256, 1, 1], one, 0, 8).is_ok());
    assert!(matches!(
        attempt("greedy", one, [512, 1, 1], one, 0, 8),
        Err(OutOfResources(_))
    ));
}

#[test]
fn a_result_does_not_depend_on_the_number_of_host_threads() {
    // Tickets in the order in which CTAs come: any order is right, the same seed gives the same one.
    let text = kernel(
        ".reg .u32 %t,%c,%x; .reg .u64 %o,%i,%a; .reg .pred %p; mov.u32 %t,%tid.x; mov.u32 %c,%ctaid.x;
         ld.param.u64 %o,[out]; ld.param.u64 %i,[in]; setp.ne.u32 %p,%t,0; @%p exit;
         atom.global.add.u32 %x,[%i],1; mul.wide.u32 %a,%c,4; add.u64 %a,%a,%o; st.global.u32 [%a],%x;",
    );
    let run = |threads: usize, seed: u64| -> Vec<u32> {
        let settings = Settings {
            threads,
            memory_bytes: 1 << 30,
            ..Settings::default()
        };
        let d = Device::new(0, settings).unwrap();
        let m = module(&d, &text);
        let (out, counter) = (upload(&d, &[0u32; 200]), upload(&d, &[0u32]));
        let params = Params::default().u64(out).u64(counter);
        d.launch(&m.entries["k"], config(200, 64), &params.0, seed)
            .unwrap();
        download(&d, out, 200)
    };
    let mut orders = std::collections::HashSet::new();
    for seed in 0..4 {
        let a = run(1, seed);
        assert_eq!(a, run(2, seed));
        assert_eq!(a, run(7, seed));
        let mut sorted = a.clone();
        sorted.sort_unstable();
        assert!(sorted.iter().enumerate().all(|(i, &t)| i as u32 == t));
        orders.insert(a);
    }
    assert!(orders.len() > 1, "the seed changes the order");
}

/// Two CTAs on a device that holds one: the second of an order (`{order}` puts it into %c) waits for a flag that the first sets.
fn one_after_the_other(order: &str, start_any: bool, seed: u64) -> Result<(), LaunchError> {
    let text = kernel(&format!(
        ".reg .u32 %c,%x; .reg .u64 %i; .reg .pred %p; ld.param.u64 %i,[in]; {order} setp.eq.u32 %p,%c,0; @%p bra SET;
         WAIT: ld.acquire.gpu.global.u32 %x,[%i]; setp.eq.u32 %p,%x,0; @%p bra WAIT; bra DONE;
         SET: st.release.gpu.global.u32 [%i],1; DONE:"
    ));
    let settings = Settings {
        sm_count: 1,
        start_any,
        memory_bytes: 1 << 30,
        step_limit: 1_000_000,
        ..Settings::default()
    };
    let d = Device::new(0, settings).unwrap();
    let m = module(&d, &text);
    let (out, flags) = (upload(&d, &[0u32]), upload(&d, &[0u32; 2]));
    let config = LaunchConfig {
        dynamic_shared: 200 << 10,
        ..config(2, 1)
    };
    let params = Params::default().u64(out).u64(flags);
    d.launch(&m.entries["k"], config, &params.0, seed).map(drop)
}

#[test]
fn who_relies_on_the_order_in_which_ctas_start_is_found_and_tickets_are_not() {
    let by_index = "mov.u32 %c,%ctaid.x;";
    let by_ticket = "atom.global.add.u32 %c,[%i+4],1;";
    let seeds = 0..8;
    for seed in seeds.clone() {
        one_after_the_other(by_index, false, seed).expect("CTAs start by index");
        one_after_the_other(by_ticket, false, seed).expect("tickets");
        one_after_the_other(by_ticket, true, seed).expect("tickets in any order");
    }
    let found = seeds
        .filter_map(|seed| one_after_the_other(by_index, true, seed).err())
        .collect::<Vec<_>>();
    assert!(!found.is_empty(), "no seed starts the second CTA first");
    for f in found {
        // Which CTA waits, and where.
        let text = format!("{f:?}");
        assert!(
            text.contains("CTA 1,0,0") && text.contains("line 7"),
            "{text}"
        );
    }
}

/// What a kernel without launch bounds names is more than its machine code keeps: a block of 1024 threads must fit.
#[test]
fn an_estimate_of_registers_does_not_forbid_a_block() {
    let n = 120;
    let loads: String = (0..n)
        .map(|i| format!("ld.global.u32 %r{i},[%i+{}];", 4 * i))
        .collect();
    let sums: String = (1..n).map(|i| format!("add.u32 %r0,%r0,%r{i};")).collect();
    let text = kernel(&format!(
        ".reg .u32 %r<{n}>; .reg .u64 %i,%o; ld.param.u64 %i,[in]; ld.param.u64 %o,[out]; {loads} {sums} st.global.u32 [%o],%r0;"
    ));
    let d = device(0, Policy::Random);
    let m = module(&d, &text);
    assert!(m.entries["k"].registers >= n);
    let ones = upload(&d, &vec![1u32; n as usize]);
    let out = upload(&d, &[0u32]);
    let params = Params::default().u64(out).u64(ones);
    launch(&d, &m, "k", config(1, 1024), &params).unwrap();
    assert_eq!(download::<u32>(&d, out, 1), [n]);
}

#[test]
fn special_registers_of_the_system() {
    let text = kernel(
        ".reg .u32 %r<8>; .reg .u64 %o,%d; ld.param.u64 %o,[out]; mov.u32 %r0,%envreg3; mov.u32 %r1,%pm2; mov.u64 %d,%pm7_64;
         mov.u32 %r2,%reserved_smem_offset_begin; mov.u32 %r3,%reserved_smem_offset_end; mov.u32 %r4,%reserved_smem_offset_cap;
         mov.u32 %r5,%reserved_smem_offset_1; st.global.v4.u32 [%o],{%r0,%r1,%r2,%r3}; st.global.v2.u32 [%o+16],{%r4,%r5};
         st.global.u64 [%o+24],%d;",
    );
    let d = device(0, Policy::Random);
    let m = module(&d, &text);
    let out = upload(&d, &[7u32; 8]);
    let params = Params::default().u64(out).u64(0);
    launch(&d, &m, "k", config(1, 1), &params).unwrap();
    assert_eq!(download::<u32>(&d, out, 8), [0, 0, 0, 1024, 1024, 0, 0, 0]);
}

#[test]
fn special_registers_of_clusters() {
    let text = ".version 8.5\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 out) {
        .reg .u32 %r<12>; .reg .u64 %o,%a; ld.param.u64 %o,[out];
        mov.u32 %r0,%ctaid.x; mov.u32 %r1,%ctaid.y; mov.u32 %r2,%nctaid.x; mad.lo.u32 %r3,%r1,%r2,%r0;
        mul.wide.u32 %a,%r3,4; add.u64 %a,%a,%o;
        mov.u32 %r4,%cluster_ctarank; mov.u32 %r5,%clusterid.x; mov.u32 %r6,%clusterid.y; mov.u32 %r7,%cluster_ctaid.y;
        shl.b32 %r5,%r5,8; shl.b32 %r6,%r6,16; shl.b32 %r7,%r7,24; or.b32 %r4,%r4,%r5; or.b32 %r4,%r4,%r6; or.b32 %r4,%r4,%r7;
        st.global.u32 [%a],%r4; ret; }";
    let d = device(0, Policy::Random);
    let m = module(&d, text);
    let out = upload(&d, &[0u32; 24]);
    let config = LaunchConfig {
        grid: [6, 4, 1],
        block: [1, 1, 1],
        cluster: [2, 2, 1],
        dynamic_shared: 0,
    };
    launch(&d, &m, "k", config, &Params::default().u64(out)).unwrap();
    let r: Vec<u32> = download(&d, out, 24);
    for y in 0..4u32 {
        for x in 0..6u32 {
            let want = (x % 2 + 2 * (y % 2)) | (x / 2) << 8 | (y / 2) << 16 | (y % 2) << 24;
            assert_eq!(r[(y * 6 + x) as usize], want);
        }
    }
}
