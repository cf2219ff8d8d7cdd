//! One forward and backward, with everything that parity cases and diagnostics look at brought to the host.
//!
//! The kernels never make some of these tensors: the outputs of the last projections exist only after their per-channel scale
//! (it is folded into the weight), the embeddings' outputs only as rows of projected tables. They are computed here, from
//! what the backward reads, with the same kernels.

use std::collections::BTreeMap;

use anyhow::Result;

use super::config::{Before, FakeQuantize};
use super::engine::DeviceEngine;
use super::network::Network;
use crate::arena::{Element, Tensor};
use crate::kernels::gemm::Orientation;
use crate::kernels::quantize::{CastWeight, FakeQuantize as When};

/// What one forward and backward leave.
pub struct Inspection {
    pub loss: f32,
    /// Per token, from f32 logits.
    pub token_loss: Vec<f32>,
    /// By the names of the parity cases.
    pub activations: BTreeMap<String, Vec<f32>>,
    /// By published parameter names; parameters that are not in the graph are left out.
    pub grads: BTreeMap<String, Vec<f32>>,
}

impl DeviceEngine {
    /// Runs one micro-step's batch forward and backward without an update. No parameter or state changes.
    pub fn inspect(
        &mut self,
        tokens: &[u16],
        targets: &[u16],
        fake_quantize: bool,
    ) -> Result<Inspection> {
        let token_loss = self.forward_backward(tokens, targets, fake_quantize)?;
        let loss = self.loss()?;
        Ok(Inspection {
            loss,
            token_loss,
            activations: self.activations(tokens)?,
            grads: self.gradients()?,
        })
    }

    fn gradients(&self) -> Result<BTreeMap<String, Vec<f32>>> {
        let layout = &self.network().layout;
        let used = layout.parameters.iter().enumerate().filter(|(_, p)| p.used);
        used.map(|(index, parameter)| {
            let values = self.device().memory.read_floats(layout.gradient(index))?;
            Ok((parameter.name.clone(), parameter.unpadded(values)))
        })
        .collect()
    }

    fn activations(&self, tokens: &[u16]) -> Result<BTreeMap<String, Vec<f32>>> {
        let network = self.network();
        let (config, a) = (&network.config, &network.activations);
        let (n, d) = (tokens.len(), config.dim);
        let read = |tensor: Tensor, columns: usize| {
            let used = tensor.slice(0, (n * columns) as u64);
            self.device().memory.read_floats(used)
        };
        let mut all = BTreeMap::new();
        all.insert("act.embed".to_owned(), read(a.x0, d)?);
        // Products norm the rows of their result; the normed rows themselves are made for this alone.
        let (last, normed) = (a.last(), network.workspace.d_inner);
        let (x, y) = (self.device().at(last), self.device().at(normed));
        let (kernels, stream) = (&self.device().kernels, &self.device().stream);
        kernels.norm_forward(stream, x, y, 1.0, n as u64, d as u64)?;
        all.insert("act.final_norm".to_owned(), read(normed, d)?);
        if let (Some(index), Some(projected)) = (a.bigram_index, network.weights.bigram) {
            let bytes = self.device().memory.read_bytes(index.slice(0, n as u64))?;
            let rows: Vec<u16> = bytes
                .as_chunks::<2>()
                .0
                .iter()
                .map(|b| u16::from_le_bytes(*b))
                .collect();
            let table = self.device().memory.read_floats(projected.table)?;
            all.insert("act.bigram".to_owned(), gather(&table, &rows, d));
        }
        if let Some(projected) = network.weights.value_embedding {
            let table = self.device().memory.read_floats(projected.table)?;
            all.insert("act.ve".to_owned(), gather(&table, tokens, projected.width));
        }
        for (index, pass) in config.passes.iter().enumerate() {
            let name = match pass.before {
                Before::Recycle { index } => format!("act.replay.{index}.layer.{}", pass.layer),
                _ => format!("act.layer.{}", pass.layer),
            };
            let p = &a.passes[index];
            let attn = self.unscaled(p.z, "attn.proj.weight", pass.layer, n, d)?;
            let mlp =
                self.unscaled(p.activated, "mlp.proj.weight", pass.layer, n, config.hidden)?;
            all.insert(format!("{name}.attn"), attn);
            all.insert(format!("{name}.mlp"), mlp);
            all.insert(name, read(p.out, d)?);
        }
        Ok(all)
    }

    /// `x W^T` of an output projection without the scale that is folded into the bf16 weight. Uses workspace that is free
    /// once the backward is done.
    fn unscaled(
        &self,
        x: Tensor,
        name: &str,
        layer: usize,
        n: usize,
        columns: usize,
    ) -> Result<Vec<f32>> {
        let (network, device) = (self.network(), self.device());
        let d = network.config.dim;
        let master = network.layout.named(&Network::block_name(layer, name));
        let weight = Tensor {
            element: Element::Bf16,
            elements: (d * columns) as u64,
            ..network.workspace.split
        };
        let quantize = match network.config.fake_quantize {
            FakeQuantize::Linear => When::ByStep,
            _ => When::Never,
        };
        device.kernels.cast_weight(
            &device.stream,
            &CastWeight {
                weight: device.at(master),
                batches: 1,
                rows: d as u64,
                columns: columns as u64,
                scale: None,
                one_scale: false,
                out: device.at(weight),
                out_batch_stride: (d * columns) as u64,
                quantize,
                bits: network.config.quant_bits as u32,
                step: device.at(network.exchange.step_values[0]),
            },
        )?;
        let out = network.workspace.d_inner;
        device.kernels.gemm(
            &device.stream,
            Orientation::Nt,
            device.matrix(x, n, columns),
            device.matrix(weight, d, columns),
            device.matrix(out, n, d),
        )?;
        device.memory.read_floats(out.slice(0, (n * d) as u64))
    }
}

fn gather(table: &[f32], rows: &[u16], width: usize) -> Vec<f32> {
    rows.iter()
        .flat_map(|&row| {
            let start = usize::from(row) * width;
            table[start..start + width].iter().copied()
        })
        .collect()
}
