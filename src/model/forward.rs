//! The forward pass: tokens to the hidden rows of the head, and to logits where somebody wants to see them.

use anyhow::Result;

use super::buffers::{Batch, PassActivations, logit_pitch};
use super::cache::Cache;
use super::config::{Before, Pass, ValueResidual};
use super::device::Device;
use super::network::Network;
use crate::arena::Tensor;
use crate::kernels::attention_forward::{AttentionForward, Gate};
use crate::kernels::attention_output::AttentionOutput;
use crate::kernels::embedding::{Bigram, Embedding};
use crate::kernels::head_loss::Head;
use crate::kernels::norm_mix::{Entry, Mix};
use crate::kernels::qkv::{FirstValue, QkvOperands, ValueEmbedding, ValueMix};
use crate::kernels::row_scale::{RowScale, square_parts};

/// A batch on the device.
#[derive(Debug, Clone, Copy)]
pub struct Input {
    pub batch: Batch,
    /// u16 ids.
    pub tokens: Tensor,
    pub targets: Tensor,
    /// Cosines and sines of the batch's sequence length.
    pub rope: Tensor,
    /// The weights were prepared for a backward in which they may be fake-quantized.
    pub quantizing: bool,
    /// The last row of each sequence attends to the keys in there; see [`super::cache`].
    pub cache: Option<Cache>,
}

impl Network {
    /// Logits of every token, with all activations kept. The weights must be prepared.
    pub fn forward(&self, device: &Device, input: &Input) -> Result<()> {
        self.forward_hidden(device, input)?;
        let head = self.head(device, input);
        let (kernels, stream) = (&device.kernels, &device.stream);
        kernels.gemm_scaled(stream, head.hidden, head.table, head.dlogits, head.norm)?;
        Ok(())
    }

    /// The same up to the last residual stream, which is all that losses and gradients need.
    pub fn forward_hidden(&self, device: &Device, input: &Input) -> Result<()> {
        let (kernels, stream) = (&device.kernels, &device.stream);
        let (config, activations) = (&self.config, &self.activations);
        let n = input.batch.tokens();
        if let (Some(index), Some(bigram)) = (activations.bigram_index, config.bigram) {
            kernels.bigram_index(
                stream,
                device.at(input.tokens),
                device.at(index),
                n as u64,
                input.batch.seq_len as u64,
                bigram.buckets as u64,
            )?;
        }
        let x0 = device.at(activations.x0);
        kernels.embedding_forward(stream, &self.embedding(device, input), x0)?;
        // Later passes' mix is the last thing that the pass before does.
        let mix = self.mix(device, input, 0, &config.passes[0]);
        let first = &activations.passes[0];
        let (x_in, squares) = (device.at(first.x_in), device.at(first.x_in_squares));
        kernels.mix_norm_forward(stream, &mix, x_in, squares)?;
        for (index, pass) in config.passes.iter().enumerate() {
            self.pass_forward(device, input, index, pass)?;
        }
        Ok(())
    }

    /// The head's operands.
    pub(super) fn head(&self, device: &Device, input: &Input) -> Head {
        let (config, a) = (&self.config, &self.activations);
        let (n, vocab) = (input.batch.tokens(), config.vocab);
        Head {
            hidden: device.matrix(a.last(), n, config.dim),
            table: device.matrix(self.table("tok_emb.weight"), vocab, config.dim),
            dlogits: device.pitched(a.logits, n, vocab, logit_pitch(vocab)),
            targets: device.at(input.targets),
            norm: Some(RowScale {
                sums: device.at(a.final_squares),
                parts: square_parts(config.dim as u64),
                d: config.dim as u64,
                factor: 1.0,
            }),
            softcap: config.softcap,
        }
    }

    fn pass_forward(
        &self,
        device: &Device,
        input: &Input,
        index: usize,
        pass: &Pass,
    ) -> Result<()> {
        let (kernels, stream) = (&device.kernels, &device.stream);
        let config = &self.config;
        let (n, d, hidden) = (input.batch.tokens(), config.dim, config.hidden);
        let a = &self.activations.passes[index];
        let layer = pass.layer;

        let columns = config.projected_columns();
        let x_in = device.matrix(a.x_in, n, d);
        kernels.gemm_qkv(
            stream,
            &self.qkv(device, input, index, pass),
            x_in,
            device.matrix(self.layer(self.weights.qkv, layer), columns, d),
            Some(self.attention_norm(device, a, layer)),
            a.gates.map(|gates| device.at(gates)),
        )?;
        if let Some(cache) = &input.cache {
            self.attention_cached(device, input, cache, index, pass)?;
        } else {
            let attention = AttentionForward {
                shape: self.attention_shape(input.batch),
                first: 0,
                qkv: device.at(a.qkv_ready),
                out: device.at(a.z),
                lse: device.at(a.lse),
                along: a.along.map(|t| device.at(t)),
                gate: self.gate(device, index, pass),
            };
            kernels.attention_forward(stream, &attention)?;
        }
        let x1 = device.matrix(a.x1, n, d);
        let out_weight = device.matrix(self.layer(self.weights.attn_out, layer), d, d);
        let z = device.matrix(a.z, n, d);
        let squares = device.at(a.x1_squares);
        kernels.gemm_add_squares(stream, z, out_weight, x1, x_in, squares)?;

        let activated = device.matrix(a.activated, n, hidden);
        kernels.gemm_leaky2(
            stream,
            x1,
            device.matrix(self.layer(self.weights.up, layer), hidden, d),
            device.matrix(a.pre, n, hidden),
            activated,
            Some(self.mlp_norm(device, a, layer)),
        )?;
        let down = device.matrix(self.layer(self.weights.down, layer), d, hidden);
        match config.passes.get(index + 1) {
            Some(next) => {
                let mix = self.mix(device, input, index + 1, next);
                let next = &self.activations.passes[index + 1];
                let (x_in, squares) = (device.at(next.x_in), device.at(next.x_in_squares));
                kernels.gemm_mix(stream, activated, down, x1.pointer, &mix, x_in, squares)?;
            }
            None => {
                let out = device.matrix(a.out, n, d);
                let squares = device.at(self.activations.final_squares);
                kernels.gemm_add_squares(stream, activated, down, out, x1, squares)?;
            }
        }
        Ok(())
    }

    /// The norm at the entrance of attention, as a factor of the QKV product's rows.
    pub(super) fn attention_norm(
        &self,
        device: &Device,
        a: &PassActivations,
        layer: usize,
    ) -> RowScale {
        RowScale {
            sums: device.at(a.x_in_squares),
            parts: a.x_in_parts as u64,
            d: self.config.dim as u64,
            factor: self.config.norm_scale(layer),
        }
    }

    /// The norm at the entrance of the MLP, as a factor of the up product's rows.
    pub(super) fn mlp_norm(&self, device: &Device, a: &PassActivations, layer: usize) -> RowScale {
        let d = self.config.dim as u64;
        RowScale {
            sums: device.at(a.x1_squares),
            parts: square_parts(d),
            d,
            factor: self.config.norm_scale(layer),
        }
    }

    /// The residual stream that enters a pass.
    pub(super) fn pass_input(&self, index: usize) -> Tensor {
        match index {
            0 => self.activations.x0,
            _ => self.activations.passes[index - 1].out,
        }
    }

    pub(super) fn embedding(&self, device: &Device, input: &Input) -> Embedding {
        let config = &self.config;
        let bigram = self.activations.bigram_index.zip(self.weights.bigram);
        Embedding {
            sequences: input.batch.sequences as u64,
            tokens: input.batch.seq_len as u64,
            d: config.dim as u64,
            ids: device.at(input.tokens),
            tok_emb: device.at(self.table("tok_emb.weight")),
            vocabulary: config.vocab as u64,
            bigram: bigram.map(|(index, projected)| Bigram {
                index: device.at(index),
                table: device.at(projected.table),
                buckets: projected.rows as u64,
            }),
            smear_gate: device.at(self.layout.named("smear.gate")),
        }
    }

    pub(super) fn mix(&self, device: &Device, input: &Input, index: usize, pass: &Pass) -> Mix {
        let d = self.config.dim as u64;
        let named = |name: &str| device.at(self.layout.named(name));
        let entry = match pass.before {
            Before::Nothing => Entry::Plain,
            Before::Skip { row, from } => Entry::Skip {
                skip: device.at(self.activations.passes[from].out),
                weight: named("skip_weights").offset(4 * d * row as u64),
            },
            Before::Recycle { index } => Entry::Recycle {
                scale: named(&format!("recycle_mods.{index}.scale")),
                bias: named(&format!("recycle_mods.{index}.bias")),
            },
        };
        Mix {
            rows: input.batch.tokens() as u64,
            d,
            x: device.at(self.pass_input(index)),
            x0: device.at(self.activations.x0),
            entry,
            resid_mix: named(&Self::block_name(pass.layer, "resid_mix")),
        }
    }

    pub(super) fn qkv(
        &self,
        device: &Device,
        input: &Input,
        index: usize,
        pass: &Pass,
    ) -> QkvOperands {
        let config = &self.config;
        let a: &PassActivations = &self.activations.passes[index];
        let named = |name: &str| device.at(self.layout.named(name));
        let parameter = |name: &str| named(&Self::block_name(pass.layer, name));
        let mixes = config.mixes_values(index);
        let mix = match config.value_residual {
            _ if !mixes => ValueMix::None,
            ValueResidual::Off => ValueMix::None,
            ValueResidual::Gate => ValueMix::Gate {
                parameter: parameter("attn.vrl_gate"),
            },
            ValueResidual::Lambda => ValueMix::Lambda {
                parameters: parameter("attn.vr_lambda"),
            },
        };
        let embedding = pass.value_embedding.zip(self.weights.value_embedding);
        QkvOperands {
            shape: self.attention_shape(input.batch),
            ready: device.at(a.qkv_ready),
            inverse_rms: device.at(a.inverse_rms),
            v_raw: a.v_raw.map(|raw| device.at(raw)),
            q_gain: parameter("attn.q_gain"),
            rope: device.at(input.rope),
            rope_dims: config.rope_dims as u64,
            value_embedding: embedding.map(|(j, projected)| ValueEmbedding {
                ids: device.at(input.tokens),
                table: device.at(projected.table),
                vocabulary: config.vocab as u64,
                scale: named(&format!("ve_layer_scales.{j}")),
            }),
            mix,
            v_first: mixes.then(|| self.first_value(device)),
        }
    }

    /// V of the first pass as others mix it in: the gate takes it without value embedding, the two factors as attention has seen it.
    fn first_value(&self, device: &Device) -> FirstValue {
        let (columns, kv) = (self.config.qkv_columns(), self.config.kv_dim());
        let first = &self.activations.passes[0];
        match first.v_raw {
            Some(raw) => FirstValue {
                pointer: device.at(raw),
                stride: kv as u64,
            },
            None => FirstValue {
                pointer: device.at(first.qkv_ready).offset(2 * (columns - kv) as u64),
                stride: columns as u64,
            },
        }
    }

    pub(super) fn attention_output(
        &self,
        device: &Device,
        input: &Input,
        index: usize,
        pass: &Pass,
    ) -> AttentionOutput {
        let a = &self.activations.passes[index];
        AttentionOutput {
            shape: self.attention_shape(input.batch),
            out: device.at(a.z),
            qkv_in: device.at(a.qkv_ready),
            along: a.along.map(|t| device.at(t)),
            gate: self.gate(device, index, pass),
        }
    }

    pub(super) fn gate(&self, device: &Device, index: usize, pass: &Pass) -> Option<Gate> {
        let config = &self.config;
        self.activations.passes[index].gates.map(|logits| Gate {
            logits: device.at(logits),
            stride: (config.projected_columns() - config.qkv_columns()) as u64,
            bias: device.at(self
                .layout
                .named(&Self::block_name(pass.layer, "attn.attn_gate.bias"))),
        })
    }
}
