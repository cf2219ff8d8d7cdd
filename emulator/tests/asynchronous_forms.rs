//! Spellings of the asynchronous family: which load, which do not, and what misuse is reported.

use birdie_emulator::check::FindingKind;
use birdie_emulator::device::{
    Device, Fault, LaunchConfig, LaunchError, LoadError, Module, Policy, Settings,
};

fn device(policy: Policy) -> Device {
    let settings = Settings {
        policy,
        threads: 1,
        memory_bytes: 1 << 30,
        ..Settings::default()
    };
    Device::new(0, settings).unwrap()
}

/// A kernel with one parameter in %rd1, thread index in %r1, 16 KiB of aligned shared memory at %r2 and mbarriers in front.
fn kernel(body: &str) -> String {
    format!(
        ".version 8.6\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .u64 p)\n{{\n\
         .reg .b32 %r<40>; .reg .b64 %rd<40>; .reg .b16 %rs<4>; .reg .pred %p<8>; .reg .f32 %f<8>; .reg .f64 %fd<4>;\n\
         .shared .align 8 .b64 bar[8];\n.shared .align 1024 .b8 data[16384];\n\
         ld.param.u64 %rd1, [p];\nmov.u32 %r1, %tid.x;\nmov.u32 %r2, data;\nmov.u32 %r3, bar;\n\
         cvta.shared.u64 %rd2, %r3_wide;\n{body}\nret;\n}}\n"
    )
    .replace("cvta.shared.u64 %rd2, %r3_wide;", "cvt.u64.u32 %rd3, %r3;\ncvta.shared.u64 %rd2, %rd3;")
}

fn load(device: &Device, body: &str) -> Result<Module, LoadError> {
    device.load_module(&kernel(body))
}

const FORMS: &str = "
mbarrier.init.shared::cta.b64 [%r3], %r4;
mbarrier.init.shared.b64 [bar+8], 3;
mbarrier.init.b64 [%rd2], 1;
mbarrier.inval.shared::cta.b64 [%r3];
mbarrier.inval.b64 [%rd2];
mbarrier.arrive.shared.b64 %rd4, [%r3];
mbarrier.arrive.shared::cta.b64 _, [%r3];
mbarrier.arrive.b64 %rd4, [%rd2], %r4;
mbarrier.arrive.release.cta.shared::cta.b64 %rd4, [%r3], 2;
mbarrier.arrive.relaxed.cluster.shared::cta.b64 %rd4, [%r3];
mbarrier.arrive.shared::cluster.b64 _, [%r3];
mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r3], %r4;
mbarrier.arrive.expect_tx.shared.b64 _, [%r3], 128;
mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 %rd4, [%r3], %r4;
mbarrier.arrive.expect_tx.release.cluster.shared::cluster.b64 _, [%r3], %r4;
mbarrier.arrive.noComplete.release.cta.shared.b64 %rd4, [%r3], 1;
mbarrier.arrive_drop.shared::cta.b64 %rd4, [%r3];
mbarrier.arrive_drop.release.cluster.shared::cluster.b64 _, [%r3], 2;
mbarrier.arrive_drop.expect_tx.shared::cta.release.cta.b64 %rd4, [%r3], 16;
mbarrier.arrive_drop.noComplete.shared::cta.b64 %rd4, [%r3], 1;
mbarrier.expect_tx.shared::cta.b64 [%r3], 64;
mbarrier.expect_tx.relaxed.cluster.shared::cluster.b64 [%r3], %r4;
mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%r3], 64;
mbarrier.test_wait.shared.b64 %p1, [%r3], %rd4;
mbarrier.test_wait.parity.acquire.cta.shared::cta.b64 %p1, [%r3], 0;
mbarrier.test_wait.parity.relaxed.cluster.shared::cta.b64 %p1, [%r3], %r4;
mbarrier.try_wait.shared.b64 %p1, [%r3], %rd4;
mbarrier.try_wait.b64 %p1, [%rd2], %rd4, 20;
mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r3+8], %r4, %r5;
mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p1, [%r3], %r4;
mbarrier.pending_count.b64 %r4, %rd4;
cp.async.ca.shared.global [%r2], [%rd1], 4;
cp.async.ca.shared::cta.global.L2::cache_hint.L2::256B [%r2], [%rd1+16], 8, 4, %rd5;
cp.async.cg.shared.global.L2::128B [%r2], [%rd1], 16;
cp.async.cg.shared.global [%r2], [%rd1], 16, %r4;
cp.async.cg.shared.global [%r2], [%rd1], 16, !%p1;
cp.async.commit_group;
cp.async.wait_group 3;
cp.async.wait_all;
cp.async.mbarrier.arrive.b64 [%rd2];
cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%r3];
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd1], 128, [%r3];
cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes.L2::cache_hint [%r2], [%rd1], %r4, [%r3], %rd5;
cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [%r2], [%rd1], %r4, [%r3], %rs1, %rd5;
cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%r2], [%r2], %r4, [%r3];
cp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r2], 16;
cp.async.bulk.global.shared::cta.bulk_group.L2::cache_hint [%rd1], [%r2], 16, %rd5;
cp.async.bulk.prefetch.L2.global [%rd1], 128;
cp.async.bulk.prefetch.L2.global.L2::cache_hint [%rd1], 128, %rd5;
cp.async.bulk.commit_group;
cp.async.bulk.wait_group 0;
cp.async.bulk.wait_group.read 1;
cp.reduce.async.bulk.global.shared::cta.bulk_group.L2::cache_hint.add.f32 [%rd1], [%r2], 128, %rd5;
cp.reduce.async.bulk.global.shared::cta.bulk_group.add.noftz.bf16 [%rd1], [%r2], 128;
cp.reduce.async.bulk.global.shared::cta.bulk_group.min.f16 [%rd1], [%r2], 128;
cp.reduce.async.bulk.global.shared::cta.bulk_group.xor.b64 [%rd1], [%r2], 128;
cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f64 [%rd1], [%r2], 128;
cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.inc.u32 [%r2], [%r2], 16, [%r3];
cp.async.bulk.tensor.1d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r2], [%rd1, {%r4}], [%r3];
cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd1, {%r4, %r5}], [%r3];
cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r2], [%rd1, {%r4, 0}], [%r3];
cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%r2], [%rd1, {%r4, %r5}], [%r3], %rd5;
cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster.L2::cache_hint [%r2], [%rd1, {%r4, %r5, %r6}], [%r3], %rs1, %rd5;
cp.async.bulk.tensor.4d.shared::cluster.global.tile.mbarrier::complete_tx::bytes.multicast::cluster [%r2], [%rd1+64, {%r4, %r5, %r6, %r7}], [%r3], %rs1;
cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%r2], [%rd1, {%r4, %r5, %r6, %r7, %r8}], [%r3];
cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%rd1, {%r4, %r5, %r6}], [%r2];
cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group.L2::cache_hint [%rd1, {%r4, %r5, %r6, %r7}], [%r2], %rd5;
cp.async.bulk.prefetch.tensor.4d.L2.global [%rd1, {%r4, %r5, %r6, %r7}];
cp.async.bulk.prefetch.tensor.2d.L2.global.tile.L2::cache_hint [%rd1, {%r4, %r5}], %rd5;
cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group [%rd1, {%r4, %r5}], [%r2];
cp.reduce.async.bulk.tensor.5d.global.shared::cta.max.tile.bulk_group.L2::cache_hint [%rd1, {%r4, %r5, %r6, %r7, %r8}], [%r2], %rd5;
st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%r2], {%r4, %r5, %r6, %r7}, [%r3];
st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f64 [%r2], {%fd1, %fd2}, [%r3];
st.async.shared::cluster.mbarrier::complete_tx::bytes.f32 [%r2], %f1, [%r3];
red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.dec.u32 [%r2], %r4, [%r3];
red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.or.b32 [%r2], %r4, [%r3];
red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u64 [%r2], %rd4, [%r3];
tensormap.replace.tile.global_address.global.b1024.b64 [%rd1], %rd4;
tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [%r2], 4, %r4;
tensormap.replace.tile.global_stride.b1024.b64 [%rd1], 1, %rd4;
tensormap.replace.tile.swizzle_atomicity.shared::cta.b1024.b32 [%r2], 0;
tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.sys.sync.aligned [%rd1], [%r2], 128;
prefetch.tensormap [%rd1];
prefetch.param.tensormap [p];
";

#[test]
fn every_form_loads() {
    let device = device(Policy::Random);
    for form in FORMS.trim().lines() {
        if let Err(e) = load(&device, form) {
            panic!("{form}: {e:?}");
        }
    }
}

#[test]
fn what_is_not_understood_does_not_load() {
    let device = device(Policy::Random);
    for (form, why) in [
        (
            "mbarrier.arrive.shared::cluster.b64 %rd4, [%r3];",
            "no state",
        ),
        (
            "mbarrier.arrive.shared::cta.b32 %rd4, [%r3];",
            ".b64 is expected",
        ),
        (
            "mbarrier.arrive.acquire.cta.shared::cta.b64 %rd4, [%r3];",
            ".acquire",
        ),
        (
            "mbarrier.test_wait.shared::cluster.b64 %p1, [%r3], %rd4;",
            ".shared::cluster",
        ),
        (
            "mbarrier.test_wait.shared.b64 %p1, [%r3], %rd4, %r4;",
            "are expected",
        ),
        ("mbarrier.frobnicate.shared.b64 [%r3];", "unknown mbarrier"),
        ("cp.async.cg.shared.global [%r2], [%rd1], 8;", "the size"),
        (
            "cp.async.ca.global.shared [%rd1], [%r2], 4, 4, 4;",
            "are expected",
        ),
        (
            "cp.async.bulk.global.shared::cta.bulk_group.cp_mask [%rd1], [%r2], 16, %rs1;",
            ".cp_mask",
        ),
        (
            "cp.async.bulk.global.shared::cta.mbarrier::complete_tx::bytes [%rd1], [%r2], 16, [%r3];",
            ".bulk_group",
        ),
        (
            "cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes.multicast::cluster [%r2], [%rd1], 16, [%r3], %rs1;",
            ".multicast",
        ),
        (
            "cp.async.bulk.tensor.2d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%r2], [%rd1, {%r4, %r5}], [%r3], {%rs1};",
            "im2col",
        ),
        (
            "cp.async.bulk.tensor.3d.global.shared::cta.im2col.bulk_group [%rd1, {%r4, %r5, %r6}], [%r2];",
            "im2col",
        ),
        (
            "cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%r2], [%rd1, {%r4, %r5, %r6, %r6}], [%r3], {%rs1};",
            "2 im2col offsets",
        ),
        (
            "cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes.cta_group::1 [%r2], [%rd1, {%r4, %r5}], [%r3];",
            ".cta_group::1",
        ),
        (
            "cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r2], [%rd1, {%r4}], [%r3];",
            "2 coordinates",
        ),
        (
            "cp.reduce.async.bulk.global.shared::cta.bulk_group.add.bf16 [%rd1], [%r2], 128;",
            "does not exist",
        ),
        (
            "cp.reduce.async.bulk.global.shared::cta.bulk_group.min.f32 [%rd1], [%r2], 128;",
            "does not exist",
        ),
        (
            "cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.add.f32 [%r2], [%r2], 16, [%r3];",
            "does not exist",
        ),
        (
            "red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.min.u64 [%r2], %rd4, [%r3];",
            "does not exist",
        ),
        (
            "st.async.release.gpu.global.b32 [%rd1], %r4;",
            "complete_tx",
        ),
        (
            "tensormap.replace.tile.colour.shared::cta.b1024.b32 [%r2], 0;",
            "unknown field",
        ),
        (
            "tensormap.replace.tile.rank.shared::cta.b1024.b64 [%r2], %rd4;",
            ".b32 is expected",
        ),
    ] {
        match load(&device, form) {
            Err(LoadError::Lower(e)) => assert!(e.what.contains(why), "{form}: {}", e.what),
            Err(e) => panic!("{form}: {e:?}"),
            Ok(_) => panic!("{form}: loads"),
        }
    }
}

/// Runs the body with `threads` threads in `ctas` CTAs of one cluster and 64 KiB of memory in its parameter.
fn run(policy: Policy, ctas: u32, threads: u32, body: &str) -> Result<(), LaunchError> {
    let device = device(policy);
    let module = load(&device, body).unwrap();
    let memory = device
        .memory
        .allocate(1 << 16, 512, u64::MAX, "operand")
        .unwrap();
    let config = LaunchConfig {
        grid: [ctas, 1, 1],
        block: [threads, 1, 1],
        cluster: [ctas, 1, 1],
        dynamic_shared: 0,
    };
    device
        .launch(&module.entries["k"], config, &memory.to_le_bytes(), 5)
        .map(drop)
}

/// Ends with the finding under every policy.
fn finds(kind: FindingKind, text: &str, ctas: u32, threads: u32, body: &str) {
    for policy in [Policy::Eager, Policy::Latest, Policy::Random] {
        match run(policy, ctas, threads, body) {
            Err(LaunchError::Fault(Fault::Finding(f))) => {
                assert!(
                    f.kind == kind && f.message.contains(text),
                    "{policy:?}: {f:?}"
                );
            }
            other => panic!("{policy:?}: {other:?}, expected {kind:?}: {text}"),
        }
    }
}

fn faults(text: &str, body: &str) {
    match run(Policy::Eager, 1, 1, body) {
        Err(LaunchError::Fault(
            Fault::IllegalAddress(t) | Fault::MisalignedAddress(t) | Fault::IllegalInstruction(t),
        )) => assert!(t.contains(text), "{t}"),
        other => panic!("{other:?}, expected: {text}"),
    }
}

const INIT: &str = "mbarrier.init.shared.b64 [bar], 1;\n";

#[test]
fn misuse_of_mbarriers_is_found() {
    let found = |text, body: &str| finds(FindingKind::MbarrierMisuse, text, 1, 1, body);
    let after = |text, body: &str| found(text, &format!("{INIT}{body}"));
    found("count 0", "mbarrier.init.shared.b64 [bar], 0;");
    found("count 1048576", "mbarrier.init.shared.b64 [bar], 1048576;");
    found(
        "before mbarrier.init",
        "mbarrier.arrive.shared.b64 _, [bar+8];",
    );
    found("where no object is", "mbarrier.inval.shared.b64 [bar];");
    after("mbarrier.inval is missing", INIT);
    after(
        "used for something else",
        &format!("st.shared.u32 [bar], %r1;\n{INIT}"),
    );
    after(
        "overwritten",
        "st.shared.u32 [bar+4], %r1;\nmbarrier.arrive.shared.b64 _, [bar];",
    );
    after(
        "before mbarrier.init",
        "mbarrier.inval.shared.b64 [bar];\nmbarrier.arrive.shared.b64 _, [bar];",
    );
    after(
        "more arrivals than its count",
        "mbarrier.arrive.shared.b64 _, [bar], 2;",
    );
    after(
        "arrival with the count 0",
        "mbarrier.arrive.shared.b64 _, [bar], 0;",
    );
    after(
        "could already complete",
        "mbarrier.arrive.expect_tx.shared.b64 _, [bar], 16;\nmbarrier.expect_tx.shared::cta.b64 [bar], 16;",
    );
    after(
        "outside of",
        "mbarrier.expect_tx.shared::cta.b64 [bar], 1048576;",
    );
    after(
        "more delivered than expected",
        "mbarrier.arrive.expect_tx.shared.b64 _, [bar], 16;\nmbarrier.complete_tx.shared::cta.b64 [bar], 32;",
    );
    after(
        "never expected",
        "mbarrier.complete_tx.shared::cta.b64 [bar], 32;\nmbarrier.arrive.shared.b64 _, [bar];",
    );
    after(
        "exits with transactions",
        "mbarrier.expect_tx.shared::cta.b64 [bar], 16;",
    );
    after(
        "in the middle of a phase",
        "mbarrier.expect_tx.shared::cta.b64 [bar], 16;\nmbarrier.inval.shared.b64 [bar];",
    );
    after(
        "noComplete arrival",
        "mbarrier.arrive.noComplete.shared.b64 %rd4, [bar], 1;",
    );
    let twice = "mbarrier.arrive.shared.b64 %rd4, [bar];\nmbarrier.arrive.shared.b64 _, [bar];\n";
    after(
        "2 phases old",
        &format!("{twice}mbarrier.test_wait.shared.b64 %p1, [bar], %rd4;"),
    );
}

#[test]
fn lanes_that_make_the_same_object_in_one_instruction_make_it_once() {
    for policy in [Policy::Eager, Policy::Latest, Policy::Random] {
        let whole_warp = run(
            policy,
            1,
            32,
            "mbarrier.init.shared.b64 [bar], 32;\nmbarrier.arrive.shared.b64 %rd4, [bar];\n\
             mbarrier.test_wait.parity.shared.b64 %p1, [bar], 0;\n@!%p1 trap;",
        );
        assert!(whole_warp.is_ok(), "{policy:?}: {whole_warp:?}");
    }
    // Two warps are not in step, and lanes that disagree on the count leave any of them behind.
    finds(
        FindingKind::MbarrierMisuse,
        "mbarrier.inval is missing",
        1,
        32,
        "mov.u32 %r4, %laneid;\nadd.u32 %r4, %r4, 1;\nmbarrier.init.shared.b64 [bar], %r4;",
    );
    for policy in [Policy::Eager, Policy::Latest, Policy::Random] {
        let two_warps = run(policy, 1, 64, INIT);
        assert!(two_warps.is_err(), "{policy:?}");
    }
}

#[test]
fn a_suspended_wait_resumes_although_the_next_phase_has_completed_too() {
    // Warp 0 is suspended in phase 0 while warp 1 counts; then warp 1 completes two phases without a pause.
    let body = format!(
        "mov.u32 %r4, %tid.x;\nsetp.eq.u32 %p1, %r4, 0;\n@!%p1 bra READY;\n{INIT}READY: bar.sync 0;\n\
         setp.lt.u32 %p1, %r4, 32;\n@!%p1 bra SECOND;\n\
         WAIT: mbarrier.try_wait.parity.shared.b64 %p1, [bar], 0;\n@!%p1 bra WAIT;\nbra DONE;\n\
         SECOND: mov.u32 %r5, 0;\nCOUNT: add.u32 %r5, %r5, 1;\nsetp.lt.u32 %p1, %r5, 200000;\n@%p1 bra COUNT;\n\
         setp.eq.u32 %p1, %r4, 32;\n@!%p1 bra DONE;\n\
         mbarrier.arrive.shared.b64 _, [bar];\nmbarrier.arrive.shared.b64 _, [bar];\nDONE:"
    );
    for policy in [Policy::Eager, Policy::Latest, Policy::Random] {
        let outcome = run(policy, 1, 64, &body);
        assert!(outcome.is_ok(), "{policy:?}: {outcome:?}");
    }
}

#[test]
fn waiting_on_the_barrier_of_another_cta_is_found() {
    finds(
        FindingKind::MbarrierMisuse,
        "only the own CTA's",
        2,
        1,
        &format!(
            "{INIT}barrier.cluster.arrive;\nbarrier.cluster.wait;\nmov.u32 %r4, %cluster_ctarank;\nxor.b32 %r4, %r4, 1;\n\
             mapa.shared::cluster.u32 %r5, %r3, %r4;\nmbarrier.try_wait.parity.shared::cta.b64 %p1, [%r5], 1;\n\
             barrier.cluster.arrive;\nbarrier.cluster.wait;"
        ),
    );
}

#[test]
fn a_copy_that_outlives_its_cta_is_found() {
    let body = format!(
        "{INIT}mbarrier.arrive.expect_tx.shared.b64 _, [bar], 128;\n\
         cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd1], 128, [%r3];"
    );
    match run(Policy::Latest, 1, 1, &body) {
        Err(LaunchError::Fault(Fault::Finding(f))) => {
            assert!(f.message.contains("outstanding"), "{f:?}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_wait_that_leaves_the_group_in_flight_is_found() {
    // The buffer is overwritten while one group may still read it.
    let body = |wait: &str| {
        format!(
            "st.shared.v4.u32 [%r2], {{%r1, %r1, %r1, %r1}};\n\
             fence.proxy.async.shared::cta;\n\
             cp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r2], 16;\ncp.async.bulk.commit_group;\n\
             {wait}\nst.shared.u32 [%r2], %r2;"
        )
    };
    for policy in [Policy::Eager, Policy::Latest, Policy::Random] {
        let right = run(policy, 1, 1, &body("cp.async.bulk.wait_group.read 0;"));
        assert!(right.is_ok(), "{policy:?}: {right:?}");
        let wrong = run(policy, 1, 1, &body("cp.async.bulk.wait_group.read 1;"));
        match wrong {
            Err(LaunchError::Fault(Fault::Finding(f))) => assert!(
                matches!(f.kind, FindingKind::SharedRace | FindingKind::StageReuse),
                "{f:?}"
            ),
            other => panic!("{policy:?}: {other:?}"),
        }
    }
}

/// Writes the fields of a map of 64 x 64 u32 with boxes of 8 x 8 at %rd1, tensor behind it, with generic stores.
const EDIT: &str = "
tensormap.replace.tile.global_address.global.b1024.b64 [%rd1], %rd1;
tensormap.replace.tile.rank.global.b1024.b32 [%rd1], 1;
tensormap.replace.tile.elemtype.global.b1024.b32 [%rd1], 2;
tensormap.replace.tile.box_dim.global.b1024.b32 [%rd1], 0, 8;
tensormap.replace.tile.box_dim.global.b1024.b32 [%rd1], 1, 8;
tensormap.replace.tile.global_dim.global.b1024.b32 [%rd1], 0, 64;
tensormap.replace.tile.global_dim.global.b1024.b32 [%rd1], 1, 64;
tensormap.replace.tile.global_stride.global.b1024.b64 [%rd1], 0, 256;
tensormap.replace.tile.element_stride.global.b1024.b32 [%rd1], 0, 1;
tensormap.replace.tile.element_stride.global.b1024.b32 [%rd1], 1, 1;
";

#[test]
fn an_edited_map_needs_a_fence() {
    let body = |fence: &str| {
        format!(
            "{INIT}{EDIT}{fence}\nmbarrier.arrive.expect_tx.shared.b64 _, [bar], 256;\n\
             cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%r2], [%rd1, {{0, 1}}], [%r3];\n\
             WAIT:\nmbarrier.try_wait.parity.shared::cta.b64 %p1, [%r3], 0;\n@!%p1 bra WAIT;"
        )
    };
    let fence = "fence.proxy.tensormap::generic.release.gpu;\nfence.proxy.tensormap::generic.acquire.gpu [%rd1], 128;";
    finds(FindingKind::TensorMap, "has changed", 1, 1, &body(""));
    for policy in [Policy::Eager, Policy::Latest, Policy::Random] {
        let right = run(policy, 1, 1, &body(fence));
        assert!(right.is_ok(), "{policy:?}: {right:?}");
    }
}

#[test]
fn a_missed_phase_is_named_in_the_deadlock() {
    // Thread 32 waits for phases 0 and 1 while thread 0 completes phases 0, 1 and 2 without being held up.
    let body = format!(
        "setp.ne.u32 %p2, %r1, 0;\n@!%p2 {}bar.sync 0;\nsetp.eq.u32 %p3, %r1, 32;\n\
         @!%p2 mbarrier.arrive.shared.b64 _, [bar];\nbar.sync 0;\n\
         @%p3 mbarrier.test_wait.parity.shared::cta.b64 %p1, [%r3], 0;\nbar.sync 0;\n\
         @!%p2 mbarrier.arrive.shared.b64 _, [bar];\n@!%p2 mbarrier.arrive.shared.b64 _, [bar];\nbar.sync 0;\n\
         WAIT:\n@!%p3 bra OUT;\nmbarrier.try_wait.parity.shared::cta.b64 %p1, [%r3], 1;\n@!%p1 bra WAIT;\nOUT:",
        INIT
    );
    finds(
        FindingKind::Deadlock,
        "warp 1 saw phase 0 complete last: phase 1 has completed since",
        1,
        64,
        &body,
    );
}

#[test]
fn operands_that_a_device_refuses() {
    let with = |body: &str| format!("{INIT}{body}");
    faults(
        "not a multiple of 8",
        "mbarrier.init.shared.b64 [bar+4], 1;",
    );
    faults("shared address 0x100", "mbarrier.init.shared.b64 [256], 1;");
    faults("not in shared memory", "mbarrier.init.b64 [%rd1], 1;");
    faults(
        "names CTA 4",
        "mov.u32 %r4, 83887104;\nmbarrier.arrive.shared::cluster.b64 _, [%r4];",
    );
    let bulk = |size: &str, to: &str, from: &str| {
        with(&format!(
            "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [{to}], [{from}], {size}, [%r3];"
        ))
    };
    faults("size 20", &bulk("20", "%r2", "%rd1"));
    faults("not a multiple of 16", &bulk("32", "%r2+8", "%rd1"));
    faults("not a multiple of 16", &bulk("32", "%r2", "%rd1+4"));
    faults(
        "behind the start of operand",
        &bulk("32", "%r2", "%rd1+65536"),
    );
    faults("which has", &bulk("32768", "%r2", "%rd1"));
    faults(
        "multicast mask 0x2",
        &with(
            "mov.u16 %rs1, 2;\ncp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%r2], [%rd1], 16, [%r3], %rs1;",
        ),
    );
    let tensor = |map: &str, to: &str| {
        with(&format!(
            "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [{to}], [{map}, {{0, 0}}], [%r3];"
        ))
    };
    // 128 zero bytes are a map of rank 1 with empty boxes.
    faults("box[0] is 0", &tensor("%rd1", "%r2"));
    faults("not a multiple of 64", &tensor("%rd1+32", "%r2"));
    faults("must be in parameter", &tensor("%rd2", "%r2"));
    faults(
        "src-size 9",
        "cp.async.ca.shared.global [%r2], [%rd1], 8, 9;",
    );
    faults(
        "not a multiple of 8",
        "cp.async.ca.shared.global [%r2], [%rd1+4], 8;",
    );
}
