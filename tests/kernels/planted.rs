//! Each fence, wait and arrive of the pipelined kernels is taken out in turn; the emulator must find what breaks.
//!
//! The bug is planted in the PTX: the instruction's line is emptied, or, for a wait on an mbarrier, replaced by "already over". What acquires
//! or releases is also left in place without doing so. The kernel then runs under several seeds and retirement policies until a launch fails. What may stay unfound is listed with the reason.
//! These tests talk to the emulator itself, not to a driver: a launch that fails leaves nothing behind.

use birdie::driver::modules::kernel_file;
use birdie_emulator::check::{Finding, FindingKind};
use birdie_emulator::device::{Device, LaunchConfig, Policy, Settings};

use operands::{
    Attention, Product, attention_parameters, head_parameters, mix_parameters, output_parameters,
    qkv_parameters,
};

mod operands;

/// What is taken out, or weakened.
const SYNCHRONISATION: [&str; 18] = [
    "mbarrier.try_wait",
    "mbarrier.arrive.shared",
    "mbarrier.arrive.release.cluster",
    "barrier.cluster.arrive",
    "barrier.cluster.wait",
    "bar.arrive",
    "fence.proxy.async",
    "fence.mbarrier_init",
    "bar.sync",
    "barrier.sync",
    "bar.warp.sync",
    "wgmma.fence",
    "wgmma.wait_group",
    "cp.async.bulk.wait_group.read",
    "cp.async.bulk.wait_group ",
    "ld.acquire.gpu",
    "red.release.gpu",
    "atom.acq_rel.gpu",
];

/// Allocates a launch's tensors and gives its parameter bytes.
type Parameters = Box<dyn Fn(&Device) -> Vec<u8>>;

/// What becomes of a line with the instruction of `pattern`.
fn without(pattern: &str, line: &str) -> Vec<String> {
    let weakened = |from: &str, to: &str| line.replace(from, to);
    match pattern {
        "mbarrier.try_wait" => vec!["setp.ne.u32 p, 1, 0;".into()],
        "ld.acquire.gpu" => vec![String::new(), weakened(".acquire.", ".relaxed.")],
        "red.release.gpu" => vec![String::new(), weakened(".release.", ".relaxed.")],
        // Its result is wanted.
        "atom.acq_rel.gpu" => [".relaxed.", ".acquire.", ".release."]
            .map(|to| weakened(".acq_rel.", to))
            .into(),
        _ => vec![String::new()],
    }
}

/// A launch: the kernel, its file, grid, dynamic shared memory, and its parameters for a device.
struct Case {
    file: &'static str,
    entry: &'static str,
    grid: u32,
    /// CTAs of a cluster.
    cluster: u32,
    shared: u32,
    parameters: Parameters,
    /// Its sums depend on the order of CTAs, and the emulator notes it.
    unordered: bool,
    /// Instructions whose removal may go unnoticed, with how often.
    unfound: &'static [(&'static str, usize)],
}

fn device(policy: Policy, seed: u64) -> Device {
    let settings = Settings {
        policy,
        seed,
        threads: 1,
        memory_bytes: 1 << 28,
        step_limit: 4_000_000,
        strict: true,
        ..Settings::default()
    };
    Device::new(0, settings).expect("address space")
}

/// Launches; `Err` is the finding or fault.
fn launch(case: &Case, device: &Device, text: &str) -> Result<(), String> {
    let module = device.load_module(text).map_err(|e| format!("{e:?}"))?;
    let program = module.entries.get(case.entry).expect("the entry exists");
    let config = LaunchConfig {
        grid: [case.grid, 1, 1],
        block: [384, 1, 1],
        cluster: [case.cluster, 1, 1],
        dynamic_shared: case.shared,
    };
    let parameters = (case.parameters)(device);
    let report = device
        .launch(program, config, &parameters, device.settings.seed)
        .map_err(|e| format!("{e:?}"))?;
    let unordered = |f: &Finding| f.kind == FindingKind::OrderDependentSum && case.unordered;
    match report.findings.iter().find(|f| !unordered(f)) {
        Some(note) => Err(note.message.clone()),
        None => Ok(()),
    }
}

fn every_removal_is_found(case: &Case) {
    let text = kernel_file(case.file).unwrap().ptx;
    let start = text
        .find(&format!(".entry {}(", case.entry))
        .expect("the entry");
    let end = text[start..]
        .find(".visible .entry")
        .map_or(text.len(), |e| start + e);
    launch(case, &device(Policy::Random, 0), text).expect("the kernel as it is has no finding");

    let lines: Vec<&str> = text[start..end].lines().collect();
    let (mut planted, mut unfound) = (0, Vec::new());
    for (index, line) in lines.iter().enumerate() {
        let Some(pattern) = SYNCHRONISATION.iter().find(|p| line.contains(**p)) else {
            continue;
        };
        for planted_line in without(pattern, line) {
            planted += 1;
            let mut changed = lines.clone();
            changed[index] = &planted_line;
            let mutant = format!("{}{}\n{}", &text[..start], changed.join("\n"), &text[end..]);
            let first = [(Policy::Random, 0), (Policy::Latest, 0), (Policy::Eager, 0)];
            let more = (1..4).flat_map(|seed| [(Policy::Random, seed), (Policy::Latest, seed)]);
            let found = first
                .into_iter()
                .chain(more)
                .find_map(|(policy, seed)| launch(case, &device(policy, seed), &mutant).err());
            let instruction = |line: &'_ str| line.split_whitespace().next().map(str::to_string);
            match found {
                Some(what) => assert!(
                    !what.contains("Parse"),
                    "{}: {}: {what}",
                    case.entry,
                    line.trim()
                ),
                None => unfound.extend(instruction(&planted_line).or(instruction(line))),
            }
        }
    }
    assert!(
        planted > 8,
        "{}: only {planted} instructions to take out",
        case.entry
    );
    let mut expected: Vec<String> = case
        .unfound
        .iter()
        .flat_map(|&(instruction, times)| std::iter::repeat_n(instruction.to_string(), times))
        .collect();
    unfound.sort_unstable();
    expected.sort_unstable();
    assert_eq!(
        unfound, expected,
        "{}: removed without being noticed",
        case.entry
    );
}

// Unfound everywhere:
// Where products continue on the same accumulators the ISA does not ask for wgmma.fence, but ptxas does; where they overwrite
// accumulators that were only read since, the emulator does not mind.
// The turns of attention's halves are there for speed alone.
const FENCE: (&str, usize) = ("wgmma.fence.sync.aligned;", 1);
// - the wait of the second consumer for the first one's lead: an order that is good for speed alone. (The first one's arrival is
//   found: the second waits for ever.)
const LEAD: (&str, usize) = ("bar.sync", 1);

/// Four square tiles on two CTAs.
const SQUARE: [u64; 3] = [256, 256, 384];
/// Four wide tiles, in rows of two, on two clusters; two quad tiles on one.
const WIDE: [u64; 3] = [512, 512, 256];

#[test]
fn gemm_store() {
    Product("gemm_nt_bf16").check();
}

#[test]
fn gemm_add() {
    Product("gemm_nt_add_bf16").check();
}

#[test]
fn gemm_add_squares() {
    Product("gemm_nt_add_squares_bf16").check();
}

#[test]
fn gemm_add_norm() {
    Product("gemm_nn_add_norm_bf16").check();
}

#[test]
fn gemm_wide_add_norm() {
    Product("gemm_nn_add_norm_bf16_wide").check();
}

#[test]
fn gemm_scaled() {
    Product("gemm_nt_scaled_bf16").check();
}

#[test]
fn gemm_activation() {
    Product("gemm_nt_leaky2").check();
}

#[test]
fn gemm_activation_gradient() {
    Product("gemm_nn_dleaky2").check();
}

#[test]
fn gemm_partial_sums() {
    Product("gemm_tn_f32").check();
}

#[test]
fn gemm_symmetric_add() {
    Product("gemm_nt_symmetric_add_bf16").check();
}

#[test]
fn gemm_wide() {
    Product("gemm_nt_bf16_wide").check();
}

#[test]
fn gemm_wide_add() {
    Product("gemm_nt_add_bf16_wide").check();
}

#[test]
fn gemm_wide_add_squares() {
    Product("gemm_nt_add_squares_bf16_wide").check();
}

#[test]
fn gemm_wide_activation() {
    Product("gemm_nt_leaky2_wide").check();
}

#[test]
fn gemm_wide_activation_gradient() {
    Product("gemm_nn_dleaky2_wide").check();
}

#[test]
fn gemm_quad_store() {
    Product("gemm_nn_bf16_quad").check();
}

#[test]
fn gemm_quad_add_in_data_gradients() {
    Product("gemm_nn_add_bf16_quad").check();
}

#[test]
fn gemm_quad_add_squares() {
    Product("gemm_nt_add_squares_bf16_quad").check();
}

#[test]
fn gemm_quad_add_norm() {
    Product("gemm_nn_add_norm_bf16_quad").check();
}

#[test]
fn gemm_quad_activation() {
    Product("gemm_nt_leaky2_quad").check();
}

#[test]
fn gemm_quad_activation_gradient() {
    Product("gemm_nn_dleaky2_quad").check();
}

#[test]
fn gemm_wide_partial_sums() {
    Product("gemm_tn_f32_wide").check();
}

/// With 20 pairs a box of q or k goes through shared memory too, where a column and its partner belong to different lanes.
fn check_qkv(entry: &'static str, sizes: [u64; 3], pairs: u64) {
    every_removal_is_found(&Case {
        file: "gemm_qkv",
        parameters: Box::new(move |device| qkv_parameters(device, entry, sizes, pairs)),
        unordered: false,
        unfound: &[FENCE, LEAD],
        ..Product(entry).case(sizes)
    });
}

// One tile of a row is all v heads, so that every box takes every way.
#[test]
fn gemm_qkv() {
    check_qkv("gemm_nt_qkv", [256, 512, 384], 8);
}

#[test]
fn gemm_qkv_any_pairs() {
    check_qkv("gemm_nt_qkv_any_pairs", [256, 512, 384], 20);
}

#[test]
fn gemm_qkv_wide() {
    check_qkv("gemm_nt_qkv_wide", [512, 1024, 256], 8);
}

#[test]
fn gemm_qkv_quad() {
    check_qkv("gemm_nt_qkv_quad", [256, 1024, 256], 8);
}

#[test]
fn gemm_mix() {
    every_removal_is_found(&Case {
        file: "gemm_mix",
        parameters: Box::new(|device| mix_parameters(device, [256, 384, 384])),
        unordered: false,
        unfound: &[FENCE, LEAD],
        ..Product("gemm_nt_mix").case(SQUARE)
    });
}

/// Three tiles of a row on two clusters: a CTA's tiles have other columns each.
#[test]
fn gemm_mix_wide() {
    every_removal_is_found(&Case {
        file: "gemm_mix",
        parameters: Box::new(|device| mix_parameters(device, [512, 768, 256])),
        unordered: false,
        unfound: &[FENCE, LEAD],
        ..Product("gemm_nt_mix_wide").case(WIDE)
    });
}

#[test]
fn gemm_attention_output() {
    every_removal_is_found(&Case {
        file: "gemm_attention_output",
        entry: "gemm_nn_attention_output_wide",
        grid: 4,
        cluster: 2,
        shared: birdie::kernels::gemm_attention_output::SHARED,
        parameters: Box::new(|device| output_parameters(device, WIDE)),
        unordered: false,
        unfound: &[FENCE, LEAD],
    });
}

#[test]
fn gemm_symmetric() {
    // Of ten tiles the first CTA has 0, 2, 4, 6 and 8: tiles with a mirror image come after one another, and one is the last.
    every_removal_is_found(&Product("gemm_nt_symmetric_bf16").case([512, 512, 384]));
}

/// On one cluster.
fn check_head(entry: &'static str, cluster: u32, sizes: [u64; 2]) {
    every_removal_is_found(&Case {
        file: "head_loss",
        entry,
        grid: cluster,
        cluster,
        shared: birdie::kernels::head_loss::shared_bytes(entry),
        parameters: Box::new(move |device| head_parameters(device, sizes)),
        unordered: false,
        unfound: &[FENCE, LEAD],
    });
}

/// Two row blocks at a time; the second of the third time does not exist.
#[test]
fn head_loss() {
    check_head("head_loss_2", 4, [640, 2]);
}

#[test]
fn head_loss_of_one_row_block() {
    check_head("head_loss_8", 8, [384, 8]);
}

#[test]
fn attention_forward() {
    every_removal_is_found(&Case {
        file: "attention_forward",
        entry: "attention_forward_causal_d64",
        grid: 1,
        cluster: 1,
        shared: birdie::kernels::attention_forward::SHARED,
        parameters: Box::new(|device| attention_parameters(device, Attention::Forward)),
        unordered: false,
        unfound: &[("bar.sync", 1)],
    });
}

fn backward(entry: &'static str, unfound: &'static [(&'static str, usize)]) -> Case {
    Case {
        file: "attention_backward",
        entry,
        grid: Attention::Backward.tokens().div_ceil(128) as u32,
        cluster: 1,
        shared: birdie::kernels::attention_backward::SHARED,
        parameters: Box::new(|device| attention_parameters(device, Attention::Backward)),
        unordered: entry.contains("unordered"),
        unfound,
    }
}

/// `wgmma.wait_group`: that of the first step, which has no dQ before it, and in the unordered one that of the last dV and dK, whose registers
/// are read after the wait for dQ. Without either, ptxas 12.3 and 13.0 serialise the products (C7511, C7512, C7514), which
/// scripts/kernel-compiler refuses. `wgmma.fence`: one before which no register was written.
#[test]
fn attention_backward() {
    every_removal_is_found(&backward(
        "attention_backward_causal_d64",
        &[
            ("wgmma.fence.sync.aligned;", 1),
            ("wgmma.wait_group.sync.aligned", 1),
        ],
    ));
}

#[test]
fn attention_backward_unordered() {
    every_removal_is_found(&backward(
        "attention_backward_unordered_causal_d64",
        &[
            ("wgmma.fence.sync.aligned;", 1),
            ("wgmma.wait_group.sync.aligned", 2),
        ],
    ));
}

/// Blocks that wait for each other go by tickets: one SM, CTAs that start in any order. By index they would wait for ever.
#[test]
fn attention_backward_ends_whatever_the_order_of_starts() {
    let case = backward("attention_backward_causal_d64", &[]);
    let by_ticket = kernel_file(case.file).unwrap().ptx;
    let asks = by_ticket
        .lines()
        .find(|line| line.contains("atom.relaxed.gpu.global.inc.u32"))
        .expect("a CTA takes a ticket");
    let register = asks.split([' ', ',']).nth(1).expect("its destination");
    let by_index = by_ticket.replace(asks, &format!("mov.u32 {register}, %ctaid.x;"));
    let run = |text: &str, seed: u64| {
        let mut device = device(Policy::Random, seed);
        device.settings.sm_count = 1;
        device.settings.start_any = true;
        launch(&case, &device, text)
    };
    for seed in 0..6 {
        run(by_ticket, seed).expect("it ends");
    }
    let stuck = (0..6).find_map(|seed| run(&by_index, seed).err());
    let stuck = stuck.expect("some order of starts leaves a block waiting");
    assert!(stuck.contains("turn.cuh"), "{stuck}");
}
