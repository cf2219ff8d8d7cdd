//! Operands of the kernels of [`planted`](super): tensors on the device, and the bytes of the parameters.

use birdie::kernels::gemm::Tile;
use birdie_emulator::device::Device;
use birdie_emulator::tensor_map::{
    ElementType, Interleave, L2Promotion, OobFill, Swizzle, TensorMap,
};

use super::{Case, FENCE, LEAD, SQUARE, WIDE, every_removal_is_found};
use crate::numbers::Random;

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
pub struct Product(pub &'static str);

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
        bytes.extend(ints([m, n, k, 1]));
        if to_f32 {
            // Two parts, of which the last has three k-blocks; two last ones are computed together.
            bytes.extend(ints([2, k.div_ceil(64) - 3, 2]));
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
    pub fn case(self, sizes: [u64; 3]) -> Case {
        Case {
            file: "gemm",
            entry: self.0,
            grid: if self.tile() == Tile::Square { 2 } else { 4 },
            cluster: self.tile().cluster() as u32,
            shared: birdie::kernels::gemm::shared_bytes(self.0),
            parameters: Box::new(move |device| self.parameters(device, sizes)),
            unordered: false,
            unfound: &[FENCE, LEAD],
        }
    }

    pub fn check(self) {
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
pub fn qkv_parameters(
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
    bytes.extend(ints([m, n, k, 1, 1, 0])); // the last one is padding
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
    bytes.extend(pointers([
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
    ])); // pairs and v_first_stride with their padding are like pointers
    bytes.extend(ints([2, tokens, heads, kv_heads]));
    bytes
}

/// Parameters of 4 bytes.
fn ints<const N: usize>(values: [u64; N]) -> Vec<u8> {
    values.map(|v| (v as i32).to_le_bytes()).concat()
}

/// Parameters of 8 bytes.
fn pointers<const N: usize>(values: [u64; N]) -> Vec<u8> {
    values.map(u64::to_le_bytes).concat()
}

/// Operands of the product with the mix behind it, with a skip.
pub fn mix_parameters(device: &Device, [m, n, k]: [u64; 3]) -> Vec<u8> {
    let mut random = Random::new(4);
    let mut bytes = map(bf16(device, &mut random, m * k), [m, k], [0, k], 128);
    bytes.extend(map(bf16(device, &mut random, n * k), [n, k], [0, k], 128));
    for _ in ["x", "x_in"] {
        bytes.extend(map(bf16(device, &mut random, m * n), [m, n], [0, n], 64));
    }
    bytes.extend(ints([m, n, k, 1]));
    for _ in ["aux", "x0", "skip"] {
        bytes.extend(bf16(device, &mut random, m * n).to_le_bytes());
    }
    let floats = |n: u64| upload(device, &vec![0.5f32; n as usize]);
    let (weight, mix, squares) = (floats(n), floats(2 * n), floats(n.div_ceil(128) * m));
    bytes.extend(pointers([weight, 0, 0, mix, squares]));
    bytes
}

/// Operands of the output projection's data gradient with XSA and gate. Each query head has its own value, so that every box takes one and
/// leaves its gradient.
pub fn output_parameters(device: &Device, [m, n, k]: [u64; 3]) -> Vec<u8> {
    let mut random = Random::new(4);
    let (heads, tokens) = (n / 64, 100);
    let (kv_heads, sequences, padded) = (heads, m.div_ceil(tokens), 128);
    let mut bytes = map(bf16(device, &mut random, m * k), [m, k], [0, k], 128);
    bytes.extend(map(bf16(device, &mut random, n * k), [k, n], [0, n], 64));
    for _ in ["out", "dy"] {
        bytes.extend(map(bf16(device, &mut random, m * n), [m, n], [0, n], 64));
    }
    bytes.extend(ints([m, n, k, 1]));
    let floats = |n: u64| upload(device, &vec![0.5f32; n as usize]);
    let [along, delta] = [(); 2].map(|()| floats(sequences * heads * padded));
    let mut halves = |columns: u64| bf16(device, &mut random, m * columns);
    bytes.extend(pointers([
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
    ])); // strides with their padding are like pointers
    bytes.extend(floats(m).to_le_bytes());
    bytes.extend(1i32.to_le_bytes());
    for factor in [1f32 / 512.0, 1.0, 0.0] {
        bytes.extend(factor.to_le_bytes());
    }
    bytes.extend(floats(m / 16 * heads).to_le_bytes());
    bytes.extend(ints([tokens, padded, heads, kv_heads]));
    bytes
}

const COLUMNS: u64 = 256;

#[derive(Clone, Copy, PartialEq)]
pub enum Attention {
    Forward,
    Backward,
}

impl Attention {
    /// The forward has more key blocks than stages; its launch takes the last tile of queries alone.
    pub const fn tokens(self) -> u64 {
        match self {
            Self::Forward => 700,
            Self::Backward => 400,
        }
    }
}

/// One sequence, two query heads, one key/value head.
pub fn attention_parameters(device: &Device, kernel: Attention) -> Vec<u8> {
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
        bytes.extend(pointers([ones(4 * tokens), ones(2 * pairs * tokens)])); // what normed the heads, and angles
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

/// A row of `ctas` CTAs has two sweeps over its columns, two row blocks at a time or one, and more k-blocks than stages.
pub fn head_parameters(device: &Device, [rows, ctas]: [u64; 2]) -> Vec<u8> {
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
    bytes.extend(pointers([targets, losses, partial]));
    let sums = upload(device, &vec![d as f32; 2 * rows as usize]);
    bytes.extend(sums.to_le_bytes());
    bytes.extend(2i32.to_le_bytes());
    // 1 / d and the norm's factor, padding, gradient scale, softcap.
    for factor in [1.0 / d as f32, 1.0, 0.0, 1.0, 30.0] {
        bytes.extend(factor.to_le_bytes());
    }
    bytes.extend(ints([rows, vocabulary, d]));
    bytes
}
