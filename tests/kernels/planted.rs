//! Each fence, wait and arrive of the pipelined kernels is taken out in turn; the emulator must find what breaks.
//!
//! The bug is planted in the PTX: the instruction's line is emptied, or, for a wait on an mbarrier, replaced by "already over". The
//! kernel then runs under several seeds and retirement policies until a launch fails. What may stay unfound is listed with the reason.
//! These tests talk to the emulator itself, not to a driver: a launch that fails leaves nothing behind.

use birdie::driver::modules::kernel_file;
use birdie::kernels::gemm::Tile;
use birdie_emulator::device::{Device, LaunchConfig, Policy, Settings};
use birdie_emulator::tensor_map::{
    ElementType, Interleave, L2Promotion, OobFill, Swizzle, TensorMap,
};

use crate::numbers::Random;

/// What is taken out.
const SYNCHRONISATION: [&str; 17] = [
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
];

/// Allocates a launch's tensors and gives its parameter bytes.
type Parameters = Box<dyn Fn(&Device) -> Vec<u8>>;

/// A launch: the kernel, its file, grid, dynamic shared memory, and its parameters for a device.
struct Case {
    file: &'static str,
    entry: &'static str,
    grid: u32,
    /// CTAs of a cluster.
    cluster: u32,
    shared: u32,
    parameters: Parameters,
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

fn upload<T: bytemuck::Pod>(device: &Device, values: &[T]) -> u64 {
    let bytes: &[u8] = bytemuck::cast_slice(values);
    let size = bytes.len() as u64;
    let address = device
        .memory
        .allocate(size, 512, u64::MAX, "operand")
        .expect("memory");
    // SAFETY: a fresh allocation of this size; device addresses are host addresses.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), address as *mut u8, bytes.len()) };
    address
}

fn bf16(device: &Device, random: &mut Random, elements: u64) -> u64 {
    let values: Vec<u16> = random
        .bf16(elements, 1.0)
        .into_iter()
        .map(|x| half::bf16::from_f64(x).to_bits())
        .collect();
    upload(device, &values)
}

/// A map of a dense matrix's columns from `start` on, boxes of 64 columns.
fn map(matrix: u64, [rows, pitch]: [u64; 2], [start, columns]: [u64; 2], box_rows: u32) -> Vec<u8> {
    TensorMap {
        element_type: ElementType::Bf16,
        rank: 3,
        global_address: matrix + 2 * start,
        dims: [columns, rows, 1, 0, 0],
        strides: [2, 2 * pitch, 2 * rows * pitch, 0, 0],
        box_dims: [64, box_rows, 1, 0, 0],
        element_strides: [1; 5],
        interleave: Interleave::None,
        swizzle: Swizzle::B128,
        l2_promotion: L2Promotion::B256,
        oob_fill: OobFill::Zero,
        im2col: None,
    }
    .encode()
    .to_vec()
}

/// What a product's entry point is, told by its name: `gemm_ORIENTATION_EPILOGUE[_wide|_quad]`.
#[derive(Clone, Copy)]
struct Product(&'static str);

impl Product {
    fn has(self, part: &str) -> bool {
        self.0.contains(part)
    }

    fn tile(self) -> Tile {
        Tile::of_entry(self.0)
    }

    /// Rows of A that a CTA loads at a time where k is contiguous. Of B they are 128.
    fn rows_of_a(self) -> u32 {
        if self.tile() == Tile::Quad { 64 } else { 128 }
    }

    /// An operand, as its map: rows of k elements, or k rows of `outer` elements.
    fn operand(
        device: &Device,
        random: &mut Random,
        k_rows: bool,
        [outer, k]: [u64; 2],
        rows: u32,
    ) -> Vec<u8> {
        let matrix = bf16(device, random, outer * k);
        if k_rows {
            map(matrix, [k, outer], [0, outer], 64)
        } else {
            map(matrix, [outer, k], [0, k], rows)
        }
    }

    fn parameters(self, device: &Device, [m, n, k]: [u64; 3]) -> Vec<u8> {
        let mut random = Random::new(1);
        let (k_rows, rows) = (self.has("_tn_"), self.rows_of_a());
        let mut bytes = Self::operand(device, &mut random, k_rows, [m, k], rows);
        let k_rows = !self.has("_nt_");
        bytes.extend(Self::operand(device, &mut random, k_rows, [n, k], 128));
        let to_f32 = self.has("_f32");
        if to_f32 {
            let parts = vec![0f32; (2 * m * n) as usize];
            bytes.extend(upload(device, &parts).to_le_bytes());
        } else {
            // The result, and what is added, or the second result.
            let extra = self.has("_add_") || self.has("leaky2");
            for _ in 0..1 + usize::from(extra) {
                bytes.extend(map(bf16(device, &mut random, m * n), [m, n], [0, n], 64));
            }
        }
        for size in [m, n, k, 1] {
            bytes.extend((size as i32).to_le_bytes());
        }
        if to_f32 {
            // Two parts, of which the last has three k-blocks; two last ones are computed together.
            for size in [2, k.div_ceil(64) - 3, 2] {
                bytes.extend((size as i32).to_le_bytes());
            }
        }
        if self.has("_add_") {
            if self.has("_norm") {
                bytes.extend(bf16(device, &mut random, m * n).to_le_bytes());
            } else if self.has("_squares") {
                let parts = n.div_ceil(128);
                bytes.extend(upload(device, &vec![0f32; (parts * m) as usize]).to_le_bytes());
            } else {
                bytes.extend(1f32.to_le_bytes());
                bytes.extend(1f32.to_le_bytes());
            }
        }
        if self.has("_scaled_") || self.has("leaky2") || self.has("_norm") {
            let sums = upload(device, &vec![1f32; m as usize]);
            bytes.extend(sums.to_le_bytes());
            bytes.extend(1i32.to_le_bytes());
            for factor in [1f32 / 512.0, 1.0, 0.0] {
                bytes.extend(factor.to_le_bytes());
            }
        }
        if self.has("_dleaky2") || self.has("_norm") {
            let parts = n.div_ceil(128).max(k.div_ceil(128));
            bytes.extend(upload(device, &vec![1f32; (parts * m) as usize]).to_le_bytes());
        }
        if self.has("_norm") {
            bytes.extend((k.div_ceil(128) as i32).to_le_bytes());
            bytes.extend([0; 4]); // pointers lie at multiples of 8
            let sums = vec![0f32; (n.div_ceil(128) * m) as usize];
            bytes.extend(upload(device, &sums).to_le_bytes());
        }
        bytes
    }

    /// On two CTAs, two clusters of two, or a cluster of four; more k-blocks than stages over the tiles of a CTA.
    fn case(self, sizes: [u64; 3]) -> Case {
        Case {
            file: "gemm",
            entry: self.0,
            grid: if self.tile() == Tile::Square { 2 } else { 4 },
            cluster: self.tile().cluster() as u32,
            shared: birdie::kernels::gemm::shared_bytes(self.0),
            parameters: Box::new(move |device| self.parameters(device, sizes)),
            unfound: &[FENCE, LEAD],
        }
    }

    fn check(self) {
        let [m, n, k] = match self.tile() {
            Tile::Square => SQUARE,
            Tile::Wide | Tile::Quad => WIDE,
        };
        // The first part alone has as many k-blocks as a whole sum.
        let sizes = [m, n, if self.has("_f32") { k + 3 * 64 } else { k }];
        every_removal_is_found(&self.case(sizes));
    }
}

/// Operands of the QKV product with all that its epilogue can do: value embedding, value mix, raw values. Two query heads per key head.
fn qkv_parameters(
    device: &Device,
    entry: &'static str,
    [m, n, k]: [u64; 3],
    pairs: u64,
) -> Vec<u8> {
    let mut random = Random::new(3);
    let (kv_heads, tokens, vocabulary) = (n / 256, 100, 10);
    let (heads, width) = (2 * kv_heads, 64 * kv_heads);
    let rows = Product(entry).rows_of_a();
    let mut bytes = map(bf16(device, &mut random, m * k), [m, k], [0, k], rows);
    bytes.extend(map(bf16(device, &mut random, n * k), [n, k], [0, k], 128));
    // What attention reads, raw values, and gates that there are none of.
    for columns in [n, width, n] {
        let matrix = bf16(device, &mut random, m * columns);
        bytes.extend(map(matrix, [m, columns], [0, columns], 64));
    }
    for size in [m, n, k, 1, 1, 0] {
        bytes.extend((size as i32).to_le_bytes()); // the last one is padding
    }
    bytes.extend(upload(device, &vec![1f32; m as usize]).to_le_bytes());
    bytes.extend(1i32.to_le_bytes());
    for factor in [1f32 / 512.0, 1.0, 0.0] {
        bytes.extend(factor.to_le_bytes());
    }
    let mut floats = |n: u64| {
        let values: Vec<f32> = random.f32(n, 1.0).iter().map(|&x| x as f32).collect();
        upload(device, &values)
    };
    let [inverse_rms, gain, rope, ve_scale, mix] =
        [4 * m * kv_heads, heads, 2 * pairs * tokens, 1, 2].map(&mut floats);
    let ids = upload(device, &random.ids(m, vocabulary));
    let table = bf16(device, &mut random, vocabulary * width);
    let v_first = bf16(device, &mut random, m * width);
    for pointer in [
        inverse_rms,
        gain,
        rope,
        pairs,
        ids,
        table,
        ve_scale,
        v_first,
        width,
        mix,
    ] {
        bytes.extend(pointer.to_le_bytes()); // pairs and v_first_stride with their padding are like pointers
    }
    for size in [2, tokens, heads, kv_heads] {
        bytes.extend((size as i32).to_le_bytes());
    }
    bytes
}

/// Operands of the product with the mix behind it, with a skip.
fn mix_parameters(device: &Device, [m, n, k]: [u64; 3]) -> Vec<u8> {
    let mut random = Random::new(4);
    let mut bytes = map(bf16(device, &mut random, m * k), [m, k], [0, k], 128);
    bytes.extend(map(bf16(device, &mut random, n * k), [n, k], [0, k], 128));
    for _ in ["x", "x_in"] {
        bytes.extend(map(bf16(device, &mut random, m * n), [m, n], [0, n], 64));
    }
    for size in [m, n, k, 1] {
        bytes.extend((size as i32).to_le_bytes());
    }
    for _ in ["aux", "x0", "skip"] {
        bytes.extend(bf16(device, &mut random, m * n).to_le_bytes());
    }
    let floats = |n: u64| upload(device, &vec![0.5f32; n as usize]);
    let (weight, mix, squares) = (floats(n), floats(2 * n), floats(n.div_ceil(128) * m));
    for pointer in [weight, 0, 0, mix, squares] {
        bytes.extend(pointer.to_le_bytes());
    }
    bytes
}

/// Operands of the output projection's data gradient with XSA and gate. Each query head has its own value, so that every box takes one and
/// leaves its gradient.
fn output_parameters(device: &Device, [m, n, k]: [u64; 3]) -> Vec<u8> {
    let mut random = Random::new(4);
    let (heads, tokens) = (n / 64, 100);
    let (kv_heads, sequences, padded) = (heads, m.div_ceil(tokens), 128);
    let mut bytes = map(bf16(device, &mut random, m * k), [m, k], [0, k], 128);
    bytes.extend(map(bf16(device, &mut random, n * k), [k, n], [0, n], 64));
    for _ in ["out", "dy"] {
        bytes.extend(map(bf16(device, &mut random, m * n), [m, n], [0, n], 64));
    }
    for size in [m, n, k, 1] {
        bytes.extend((size as i32).to_le_bytes());
    }
    let floats = |n: u64| upload(device, &vec![0.5f32; n as usize]);
    let [along, delta] = [(); 2].map(|()| floats(sequences * heads * padded));
    let mut halves = |columns: u64| bf16(device, &mut random, m * columns);
    for pointer in [
        along,
        halves(64 * kv_heads),
        64 * kv_heads,
        halves(16),
        16,
        floats(heads),
        delta,
        halves(64 * kv_heads),
        halves(16),
        16,
    ] {
        bytes.extend(pointer.to_le_bytes()); // strides with their padding are like pointers
    }
    bytes.extend(floats(m).to_le_bytes());
    bytes.extend(1i32.to_le_bytes());
    for factor in [1f32 / 512.0, 1.0, 0.0] {
        bytes.extend(factor.to_le_bytes());
    }
    bytes.extend(floats(m / 16 * heads).to_le_bytes());
    for size in [tokens, padded, heads, kv_heads] {
        bytes.extend((size as i32).to_le_bytes());
    }
    bytes
}

const COLUMNS: u64 = 256;

#[derive(Clone, Copy, PartialEq)]
enum Attention {
    Forward,
    Backward,
}

impl Attention {
    /// The forward has more key blocks than stages; its launch takes the last tile of queries alone.
    const fn tokens(self) -> u64 {
        match self {
            Self::Forward => 700,
            Self::Backward => 400,
        }
    }
}

/// One sequence, two query heads, one key/value head.
fn attention_parameters(device: &Device, kernel: Attention) -> Vec<u8> {
    let (tokens, padded) = (kernel.tokens(), kernel.tokens().next_multiple_of(64));
    let mut random = Random::new(2);
    let qkv = bf16(device, &mut random, tokens * COLUMNS);
    let gradient = bf16(device, &mut random, tokens * COLUMNS);
    let heads = bf16(device, &mut random, tokens * 128);
    let lse = upload(device, &vec![5f32; 2 * padded as usize]);
    let delta = upload(device, &vec![0.1f32; 2 * padded as usize]);
    let kv_rows = if kernel == Attention::Forward {
        128
    } else {
        64
    };
    let part =
        |tensor, start, columns, rows| map(tensor, [tokens, COLUMNS], [start, columns], rows);
    let mut bytes = part(qkv, 0, 128, 64);
    bytes.extend(part(qkv, 128, 64, kv_rows));
    bytes.extend(part(qkv, 192, 64, kv_rows));
    // The output, or its gradient.
    bytes.extend(map(heads, [tokens, 128], [0, 128], 64));
    if kernel == Attention::Backward {
        bytes.extend(part(gradient, 128, 64, 64));
        bytes.extend(part(gradient, 192, 64, 64));
        // What is added to the gradient of v, and the sum.
        for _ in 0..2 {
            let values = bf16(device, &mut random, tokens * 64);
            bytes.extend(map(values, [tokens, 64], [0, 64], 64));
        }
        bytes.extend(7u64.to_le_bytes()); // flags and padding: all of it
    }
    bytes.extend(lse.to_le_bytes());
    bytes.extend(delta.to_le_bytes()); // along, in the forward
    bytes.extend(qkv.to_le_bytes()); // gate logits, in the forward
    bytes.extend(COLUMNS.to_le_bytes()); // with padding: pointers lie at multiples of 8
    if kernel == Attention::Forward {
        bytes.extend(upload(device, &[1f32; 2]).to_le_bytes()); // gate bias
    } else {
        let ones = |n: u64| upload(device, &vec![1f32; n as usize]);
        bytes.extend(gradient.to_le_bytes());
        bytes.extend(COLUMNS.to_le_bytes());
        let pairs = 20; // partners go through shared memory, and through the sums
        for pointer in [ones(4 * tokens), ones(2 * pairs * tokens)] {
            bytes.extend(pointer.to_le_bytes()); // what normed the heads, and angles
        }
        bytes.extend(pairs.to_le_bytes());
        bytes.extend(ones(2).to_le_bytes()); // gains
        bytes.extend(ones(2 * padded / 32).to_le_bytes()); // their sums
        bytes.extend(ones(tokens).to_le_bytes());
        bytes.extend(1i32.to_le_bytes());
        for factor in [1f32 / 512.0, 1.0, 0.0] {
            bytes.extend(factor.to_le_bytes());
        }
        let sums = vec![0f32; 2 * 64 * padded as usize];
        bytes.extend(upload(device, &sums).to_le_bytes());
        let turns = vec![0u32; 2 * padded as usize / 32 + 1];
        bytes.extend(upload(device, &turns).to_le_bytes());
    }
    bytes.extend((tokens as i32).to_le_bytes());
    bytes.extend((padded as i32).to_le_bytes());
    bytes.extend(2i32.to_le_bytes()); // group
    if kernel == Attention::Forward {
        bytes.extend(2i32.to_le_bytes()); // heads per CTA
        bytes.extend(640i32.to_le_bytes()); // first row
    }
    bytes
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
    assert!(
        report.findings.is_empty(),
        "findings are errors unless collected"
    );
    Ok(())
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
        planted += 1;
        let mut changed = lines.clone();
        changed[index] = if *pattern == "mbarrier.try_wait" {
            "setp.ne.u32 p, 1, 0;"
        } else {
            ""
        };
        let mutant = format!("{}{}\n{}", &text[..start], changed.join("\n"), &text[end..]);
        let first = [(Policy::Random, 0), (Policy::Latest, 0), (Policy::Eager, 0)];
        let more = (1..4).flat_map(|seed| [(Policy::Random, seed), (Policy::Latest, seed)]);
        let found = first
            .into_iter()
            .chain(more)
            .find_map(|(policy, seed)| launch(case, &device(policy, seed), &mutant).err());
        match found {
            Some(what) => assert!(
                !what.contains("Parse"),
                "{}: {}: {what}",
                case.entry,
                line.trim()
            ),
            None => unfound.push(line.split_whitespace().next().unwrap_or_default()),
        }
    }
    assert!(
        planted > 8,
        "{}: only {planted} instructions to take out",
        case.entry
    );
    let mut expected: Vec<&str> = case
        .unfound
        .iter()
        .flat_map(|&(instruction, times)| std::iter::repeat_n(instruction, times))
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
// Two asynchronous writes of different CTAs that a turn orders are in order for the emulator without a proxy fence behind the turn.
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
        unfound: &[FENCE, LEAD],
    });
}

#[test]
fn gemm_symmetric() {
    // Of ten tiles the first CTA has 0, 2, 4, 6 and 8: tiles with a mirror image come after one another, and one is the last.
    every_removal_is_found(&Product("gemm_nt_symmetric_bf16").case([512, 512, 384]));
}

/// A row of `ctas` CTAs has two sweeps over its columns, two row blocks at a time or one, and more k-blocks than stages.
fn head_parameters(device: &Device, [rows, ctas]: [u64; 2]) -> Vec<u8> {
    let (vocabulary, d) = (512 * ctas - 24, 256u64);
    let mut random = Random::new(3);
    let hidden = bf16(device, &mut random, rows * d);
    let table = bf16(device, &mut random, vocabulary * d);
    let dlogits = bf16(device, &mut random, rows * vocabulary);
    let targets = upload(device, &random.ids(rows, vocabulary));
    let losses = upload(device, &vec![0f32; rows as usize]);
    let partials = rows.div_ceil(128) * ctas * 2;
    let partial = upload(device, &vec![0f32; partials as usize]);
    let mut bytes = map(hidden, [rows, d], [0, d], 128 / ctas as u32);
    bytes.extend(map(table, [vocabulary, d], [0, d], 128));
    bytes.extend(map(dlogits, [rows, vocabulary], [0, vocabulary], 64));
    for pointer in [targets, losses, partial] {
        bytes.extend(pointer.to_le_bytes());
    }
    let sums = upload(device, &vec![d as f32; 2 * rows as usize]);
    bytes.extend(sums.to_le_bytes());
    bytes.extend(2i32.to_le_bytes());
    // 1 / d and the norm's factor, padding, gradient scale, softcap.
    for factor in [1.0 / d as f32, 1.0, 0.0, 1.0, 30.0] {
        bytes.extend(factor.to_le_bytes());
    }
    for size in [rows, vocabulary, d] {
        bytes.extend((size as i32).to_le_bytes());
    }
    bytes
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
            ("fence.proxy.async.global;", 1),
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
