//! The network on the device: its plan, and the weights' way into the products.
//!
//! A [`Network`] is the plan of everything that forward and backward touch; it holds no memory, so that it can be made and
//! printed without a device. [`super::forward`] and [`super::backward`] put launches into a [`Device`]'s stream; they neither
//! allocate nor wait, so a whole step can be captured.

use anyhow::Result;

use super::buffers::{
    Activations, Batch, Exchange, Projected, Sizes, Weights, Workspace, logit_pitch,
};
use super::calibration::Calibration;
use super::config::{Config, FakeQuantize};
use super::device::Device;
use super::layout::Layout;
use super::parameters::Bank;
use crate::arena::{Plan, Tensor};
use crate::kernels::adam::Storage;
use crate::kernels::attention_forward::AttentionShape;
use crate::kernels::attention_output::attention_output_partials;
use crate::kernels::embedding::{embedding_partials, segment_chunks};
use crate::kernels::gemm::{self, Orientation};
use crate::kernels::head_loss::head_partials;
use crate::kernels::norm_mix::row_partials;
use crate::kernels::qkv::value_partials;
use crate::kernels::quantize::{CastWeight, FakeQuantize as When};
use crate::kernels::{MOST_VALUE_EMBEDDINGS, flat_grid};
use crate::recipe::{Quantizer, Recipe, StorageType};

/// Everything that forward and backward touch, planned.
#[derive(Debug, Clone)]
pub struct Network {
    pub config: Config,
    pub layout: Layout,
    pub weights: Weights,
    pub activations: Activations,
    pub workspace: Workspace,
    pub exchange: Exchange,
    /// What calibration for GPTQ needs, where the recipe asks for it.
    pub calibration: Option<Calibration>,
    pub sizes: Sizes,
}

impl Network {
    /// Plans the network of a recipe. `ranks` share the batch of a step.
    pub fn plan(config: Config, recipe: &Recipe, ranks: usize, plan: &mut Plan) -> Self {
        let layout = Layout::new(&config, recipe, plan);
        let sizes = sizes(&config, recipe, ranks, &layout);
        let f32_tables = (layout.table_type == StorageType::F32)
            .then(|| layout.tables.end - layout.tables.start);
        Self {
            weights: Weights::plan(&config, f32_tables, plan),
            activations: Activations::plan(&config, &sizes, plan),
            workspace: Workspace::plan(&config, &sizes, plan),
            exchange: Exchange::plan(&config, &sizes, plan),
            calibration: (recipe.quantizer == Quantizer::Gptq)
                .then(|| Calibration::plan(&config, recipe, plan)),
            config,
            layout,
            sizes,
        }
    }

    pub fn attention_shape(&self, batch: Batch) -> AttentionShape {
        AttentionShape {
            sequences: batch.sequences as u64,
            tokens: batch.seq_len as u64,
            kv_heads: self.config.kv_heads as u64,
            group: (self.config.heads / self.config.kv_heads) as u64,
        }
    }

    /// A parameter of a block, or its gradient with [`Layout::named_gradient`].
    pub fn block_name(layer: usize, name: &str) -> String {
        format!("blocks.{layer}.{name}")
    }

    /// An embedding table as the kernels read it: bf16.
    pub fn table(&self, name: &str) -> Tensor {
        let index = self
            .layout
            .find(name)
            .unwrap_or_else(|| panic!("the model has no table {name}"));
        match self.weights.bf16_tables {
            Some(tables) => tables.slice(
                self.layout.offset(index) - self.layout.tables.start,
                self.layout.parameters[index].stored_elements() as u64,
            ),
            None => self.layout.values(index),
        }
    }

    /// One layer's slice of a per-layer tensor.
    pub fn layer(&self, tensor: Tensor, layer: usize) -> Tensor {
        let each = tensor.elements / self.config.layers as u64;
        tensor.slice(each * layer as u64, each)
    }

    /// Half of a bank: its slices `half * L .. (half + 1) * L`.
    fn bank_half(&self, bank: Bank, half: usize) -> Tensor {
        let (_, rows, columns) = bank.shape(&self.config);
        let each = (self.config.layers * rows * columns) as u64;
        let start = self.layout.banks[bank as usize].start;
        self.layout.masters.slice(start + half as u64 * each, each)
    }

    /// A per-channel parameter of all layers, which the layout keeps together.
    fn all_layers(&self, name: &str) -> Tensor {
        let first = self
            .layout
            .find(&Self::block_name(0, name))
            .unwrap_or_else(|| panic!("the model has no {name}"));
        let each = self.layout.parameters[first].elements() as u64;
        self.layout
            .masters
            .slice(self.layout.offset(first), each * self.config.layers as u64)
    }

    /// Casts all weights to bf16 with their scales (and fake quantization, if the step's values ask for it), and projects the
    /// tables of the bigram and value embeddings. `quantizing`: a backward follows whose weights may be fake-quantized.
    pub fn prepare(&self, device: &Device, quantizing: bool) -> Result<()> {
        let (config, weights) = (&self.config, &self.weights);
        let (d, kv, hidden) = (config.dim, config.kv_dim(), config.hidden);
        let reach = config.fake_quantize;
        let blocks = when(reach == FakeQuantize::Linear);
        let qkv_stride = config.projected_columns() * d;
        let row = |rows: usize| {
            let start = (rows * d) as u64;
            weights.qkv.slice(start, weights.qkv.elements - start)
        };
        if let Some(tables) = weights.bf16_tables {
            let source = self
                .layout
                .masters
                .slice(self.layout.tables.start, tables.elements);
            device.kernels.cast(
                &device.stream,
                Storage::F32,
                device.at(source),
                device.at(tables),
                tables.elements,
            )?;
        }
        let q = self.bank_half(Bank::QueryOutput, 0);
        let k = self.bank_half(Bank::KeyValue, 0);
        let v = self.bank_half(Bank::KeyValue, 1);
        self.cast(device, q, [d, d], None, (weights.qkv, qkv_stride), blocks)?;
        self.cast(device, k, [kv, d], None, (row(d), qkv_stride), blocks)?;
        self.cast(device, v, [kv, d], None, (row(d + kv), qkv_stride), blocks)?;
        if config.gated_attention {
            let gates = self.all_layers("attn.attn_gate.weight");
            let out = (row(d + 2 * kv), qkv_stride);
            self.cast(device, gates, [config.heads, d], None, out, When::Never)?;
        }
        let out = self.bank_half(Bank::QueryOutput, 1);
        let attn_scale = Some(self.all_layers("attn_scale"));
        let unscaled = weights.unscaled.filter(|_| quantizing);
        if let Some(unscaled) = unscaled {
            // The bf16 weights' place serves for a moment.
            self.cast(device, out, [d, d], None, (weights.attn_out, d * d), blocks)?;
            self.widen(device, weights.attn_out, unscaled.attn_out)?;
        }
        self.cast(
            device,
            out,
            [d, d],
            attn_scale,
            (weights.attn_out, d * d),
            blocks,
        )?;
        let up = self.bank_half(Bank::MlpUp, 0);
        self.cast(
            device,
            up,
            [hidden, d],
            None,
            (weights.up, hidden * d),
            blocks,
        )?;
        let down = self.bank_half(Bank::MlpDown, 0);
        let mlp_scale = Some(self.all_layers("mlp_scale"));
        if let Some(unscaled) = unscaled {
            let place = (weights.down, hidden * d);
            self.cast(device, down, [d, hidden], None, place, blocks)?;
            self.widen(device, weights.down, unscaled.down)?;
        }
        self.cast(
            device,
            down,
            [d, hidden],
            mlp_scale,
            (weights.down, hidden * d),
            blocks,
        )?;
        if let Some(bigram) = &weights.bigram {
            self.project(device, "bigram", bigram, quantizing)?;
        }
        if let Some(embedding) = &weights.value_embedding {
            self.project(device, "ve_shared", embedding, quantizing)?;
        }
        Ok(())
    }

    /// Casts f32 matrices of all layers; `out` is the first of them and the elements from one to the next.
    fn cast(
        &self,
        device: &Device,
        weight: Tensor,
        [rows, columns]: [usize; 2],
        scale: Option<Tensor>,
        (out, stride): (Tensor, usize),
        quantize: When,
    ) -> Result<()> {
        let cast = CastWeight {
            weight: device.at(weight),
            batches: self.config.layers as u64,
            rows: rows as u64,
            columns: columns as u64,
            scale: scale.map(|scale| device.at(scale)),
            one_scale: false,
            out: device.at(out),
            out_batch_stride: stride as u64,
            quantize,
            bits: self.config.quant_bits as u32,
            step: device.at(self.exchange.step_values[0]),
        };
        device.kernels.cast_weight(&device.stream, &cast)?;
        Ok(())
    }

    /// bf16 to f32.
    fn widen(&self, device: &Device, from: Tensor, to: Tensor) -> Result<()> {
        let (source, destination) = (device.at(from), device.at(to));
        let n = from.elements;
        let stream = &device.stream;
        device
            .kernels
            .cast(stream, Storage::Bf16, source, destination, n)?;
        Ok(())
    }

    /// `table = embed (scale proj)^T`, or `scale embed` where there is no projection.
    fn project(
        &self,
        device: &Device,
        prefix: &str,
        projected: &Projected,
        quantizing: bool,
    ) -> Result<()> {
        let (kernels, stream) = (&device.kernels, &device.stream);
        let Projected {
            proj,
            unscaled,
            table,
            rows,
            dim,
            width,
        } = *projected;
        let cast = |weight: Tensor, rows: usize, out: Tensor, quantize: When| CastWeight {
            weight: device.at(weight),
            batches: 1,
            rows: rows as u64,
            columns: dim as u64,
            scale: Some(device.at(self.layout.named(&format!("{prefix}.scale")))),
            one_scale: true,
            out: device.at(out),
            out_batch_stride: (rows * dim) as u64,
            quantize,
            bits: 6,
            step: device.at(self.exchange.step_values[0]),
        };
        let embed_name = format!("{prefix}.embed.weight");
        match proj {
            Some(proj) => {
                let master = self.layout.named(&format!("{prefix}.proj.weight"));
                let quantize = when(self.config.fake_quantizes_projections());
                let scaled = cast(master, width, proj, quantize);
                if let Some(unscaled) = unscaled.filter(|_| quantizing) {
                    kernels.cast_weight(
                        stream,
                        &CastWeight {
                            scale: None,
                            ..scaled
                        },
                    )?;
                    self.widen(device, proj, unscaled)?;
                }
                kernels.cast_weight(stream, &scaled)?;
                kernels.gemm(
                    stream,
                    Orientation::Nt,
                    device.matrix(self.table(&embed_name), rows, dim),
                    device.matrix(proj, width, dim),
                    device.matrix(table, rows, width),
                )?;
            }
            None => {
                let source = self.f32_table(device, &embed_name)?;
                kernels.cast_weight(stream, &cast(source, rows, table, When::Never))?;
            }
        }
        Ok(())
    }

    /// A table in f32: its master, or the bf16 table widened into the workspace.
    pub fn f32_table(&self, device: &Device, name: &str) -> Result<Tensor> {
        let stored = self.layout.named(name);
        if self.layout.table_type == StorageType::F32 {
            return Ok(stored);
        }
        let wide = self
            .workspace
            .wide_table
            .expect("planned where a table has no projection");
        let n = stored.elements;
        device.kernels.cast(
            &device.stream,
            Storage::Bf16,
            device.at(stored),
            device.at(wide),
            n,
        )?;
        Ok(wide.slice(0, n))
    }
}

fn when(step_decides: bool) -> When {
    if step_decides {
        When::ByStep
    } else {
        When::Never
    }
}

/// Micro-steps of one rank: as the recipe says, or 8 / ranks as published.
pub fn micro_steps(recipe: &Recipe, ranks: usize) -> usize {
    match recipe.grad_accum_steps {
        0 => (8 / ranks).max(1),
        steps => steps,
    }
}

fn sizes(config: &Config, recipe: &Recipe, ranks: usize, layout: &Layout) -> Sizes {
    let micro_steps = micro_steps(recipe, ranks);
    let sequences = recipe.train_batch_tokens / recipe.train_seq_len / micro_steps / ranks;
    let train = Batch {
        sequences: sequences.max(1),
        seq_len: recipe.train_seq_len,
    };
    // At least one sequence of either length must fit; a longer evaluation than training takes what it needs.
    let one = Batch {
        sequences: 1,
        seq_len: recipe.eval_seq_len,
    };
    // Test-time training runs backward, too, over batches of its own.
    let adapt = Batch {
        sequences: recipe.ttt_batch_seqs,
        ..one
    };
    let backward: Vec<Batch> = std::iter::once(train)
        .chain(recipe.ttt_enabled.then_some(adapt))
        .collect();
    let largest = |size: fn(Batch) -> usize| backward.iter().map(|&b| size(b)).max().unwrap_or(0);
    let (backward_tokens, backward_padded_tokens) =
        (largest(Batch::tokens), largest(Batch::padded_tokens));
    let d = config.dim as u64;
    let n = backward_tokens as u64;
    let largest_shape = |partials: &dyn Fn(AttentionShape) -> u32| {
        let shape = |batch: &Batch| AttentionShape {
            sequences: batch.sequences as u64,
            tokens: batch.seq_len as u64,
            kv_heads: config.kv_heads as u64,
            group: (config.heads / config.kv_heads) as u64,
        };
        let counts = backward
            .iter()
            .map(|batch| u64::from(partials(shape(batch))));
        counts.max().unwrap_or(0)
    };
    let heads = config.heads as u64;
    let table = (config.vocab * config.kv_dim()) as u64;
    let partial = [
        u64::from(row_partials(n, d)) * 4 * d,
        largest_shape(&value_partials) * 2,
        largest_shape(&|shape| {
            let partials = [false, true].map(|xsa| attention_output_partials(shape, xsa));
            partials[0].max(partials[1])
        }) * heads,
        u64::from(embedding_partials(n, d)) * d,
        head_partials(n, config.vocab as u64),
        u64::from(flat_grid(table)) * MOST_VALUE_EMBEDDINGS,
    ];
    let mut products = weight_products(config);
    if recipe.quantizer == Quantizer::Gptq {
        products.extend([(config.dim, config.dim), (config.hidden, config.hidden)]);
    }
    let total = layout.gradients.elements;
    Sizes {
        train,
        micro_steps,
        backward_tokens,
        backward_padded_tokens,
        max_tokens: backward_tokens.max(one.tokens()),
        max_padded_tokens: backward_padded_tokens.max(one.padded_tokens()),
        max_seq_len: recipe.train_seq_len.max(recipe.eval_seq_len),
        partial: partial.into_iter().max().unwrap_or(1) as usize,
        split: products.into_iter().map(split_elements).max().unwrap_or(1),
        squares: flat_grid(total) as usize,
        segment_chunks: segment_chunks(n) as usize,
    }
}

/// Shapes of all weight gradients.
fn weight_products(config: &Config) -> Vec<(usize, usize)> {
    let (d, hidden) = (config.dim, config.hidden);
    let mut shapes = vec![
        (config.projected_columns(), d),
        (d, d),
        (hidden, d),
        (d, hidden),
        (logit_pitch(config.vocab), d),
    ];
    if let Some(bigram) = config.bigram {
        shapes.push((d, bigram.pitch()));
        shapes.push((bigram.buckets, d.max(bigram.pitch())));
    }
    if let Some(embedding) = &config.value_embedding {
        let kv = config.kv_dim();
        shapes.push((kv, embedding.pitch()));
        shapes.push((config.vocab, kv.max(embedding.pitch())));
    }
    shapes
}

/// f32 elements of the splits of a weight gradient.
fn split_elements((m, n): (usize, usize)) -> usize {
    m * n * gemm::Cut::most_parts(m as u64, n as u64, 1) as usize
}
