//! Test-time training on the device: the forward and backward of training, an optimizer of its own over all parameters.
//!
//! The matrices, which Muon trains, are here updated like everything else; so the flat array of f32 parameters falls into four
//! spans by learning rate, and the bf16 tables are a fifth. State has the parameter's type.

use anyhow::{Context, Result, ensure};

use super::engine::DeviceEngine;
use super::forward::Input;
use super::layout::Layout;
use super::parameters::Bank;
use crate::arena::{Element, Plan, Region, Tensor};
use crate::kernels::adam::{Adam, Storage};
use crate::kernels::flat_grid;
use crate::kernels::step_values::StepValues;
use crate::train::engine::{AdaptInputs, AdaptRule, StepOutput};

/// State of the optimizer: first and second moments, or the momentum in the first.
#[derive(Debug, Clone, Copy)]
pub struct Adapter {
    f32_moments: [Tensor; 2],
    table_moments: Option<[Tensor; 2]>,
}

impl Adapter {
    pub fn plan(layout: &Layout, plan: &mut Plan) -> Self {
        let mut pair = |what: &str, like: Tensor| {
            ["first", "second"].map(|which| {
                let name = format!("test-time training: {which} moment of {what}");
                let elements = like.elements as usize;
                plan.reserve(Region::Optimizer, name, like.element, &[elements])
            })
        };
        Self {
            f32_moments: pair("f32 parameters", layout.masters),
            table_moments: layout.bf16_tables.map(|tables| pair("bf16 tables", tables)),
        }
    }
}

/// A stretch of parameters with one learning rate.
struct Span {
    storage: Storage,
    values: Tensor,
    gradient: Tensor,
    moments: [Tensor; 2],
    factor: f32,
}

impl DeviceEngine {
    /// [`crate::train::engine::Engine::adapt`].
    pub(super) fn adapt_step(&mut self, inputs: &AdaptInputs<'_>) -> Result<StepOutput> {
        let adapter = self
            .adapter
            .context("the engine was built without test-time training")?;
        let (count, seq_len) = (inputs.tokens.len(), inputs.seq_len);
        let room = self.network().sizes.backward_tokens;
        ensure!(
            count > 0
                && count.is_multiple_of(seq_len)
                && count <= room
                && inputs.targets.len() == count,
            "{count} tokens and {} targets in sequences of {seq_len}, planned for {room}",
            inputs.targets.len()
        );
        if inputs.update == 1 {
            self.clear_state(&adapter)?;
        }
        self.rotate_for(seq_len)?;
        let mut values = StepValues {
            learning_rate_scale: inputs.learning_rate,
            fake_quantize: u32::from(inputs.fake_quantize),
            ..bytemuck::Zeroable::zeroed()
        };
        if let AdaptRule::Adamw { beta1, beta2, .. } = inputs.rule {
            values.set_adam_corrections(beta1, beta2, inputs.update);
        }
        self.send_step_values(&[values; 3])?;
        let input = Input {
            quantizing: inputs.fake_quantize,
            ..self.send_evaluation(inputs.tokens, inputs.targets, seq_len)?
        };
        let (network, device) = (self.network(), self.device());
        network.prepare(device, input.quantizing)?;
        network.forward_hidden(device, &input)?;
        network.backward(device, &input, 1, false)?;
        self.launch_adaptation(&adapter, inputs)?;
        let clip = self
            .device()
            .memory
            .read_floats(self.network().workspace.clip)?;
        Ok(StepOutput {
            loss: self.loss()?,
            grad_norm: clip[1],
        })
    }

    fn clear_state(&self, adapter: &Adapter) -> Result<()> {
        let tables = adapter.table_moments.into_iter().flatten();
        for tensor in adapter.f32_moments.into_iter().chain(tables) {
            let zeros = vec![0; tensor.bytes() as usize];
            self.device().memory.write_bytes(tensor, &zeros)?;
        }
        Ok(())
    }

    fn launch_adaptation(&self, adapter: &Adapter, inputs: &AdaptInputs<'_>) -> Result<()> {
        let (network, device) = (self.network(), self.device());
        let (kernels, stream) = (&device.kernels, &device.stream);
        let (layout, w) = (&network.layout, &network.workspace);
        let n = layout.gradients.elements;
        let (squares, clip) = (device.at(w.squares), device.at(w.clip));
        kernels.sum_squares(stream, device.at(layout.gradients), n, squares)?;
        let partials = u64::from(flat_grid(n));
        kernels.clip_coefficient(stream, squares, partials, inputs.grad_clip_norm, clip)?;
        let step = device.at(network.exchange.step_values[0]);
        for span in spans(layout, adapter, inputs) {
            let [m, v] = span.moments.map(|tensor| device.at(tensor));
            let (param, grad) = (device.at(span.values), device.at(span.gradient));
            let n = span.values.elements;
            match inputs.rule {
                AdaptRule::Sgd { momentum } => kernels.sgd(
                    stream,
                    span.storage,
                    n,
                    param,
                    grad,
                    m,
                    step,
                    Some(clip),
                    span.factor,
                    momentum,
                )?,
                AdaptRule::Adamw {
                    beta1,
                    beta2,
                    epsilon,
                } => kernels.adamw(
                    stream,
                    span.storage,
                    n,
                    param,
                    grad,
                    m,
                    v,
                    step,
                    Some(clip),
                    Adam {
                        learning_rate: span.factor,
                        beta1: beta1 as f32,
                        beta2: beta2 as f32,
                        epsilon,
                        weight_decay: 0.0,
                    },
                )?,
            };
        }
        Ok(())
    }
}

fn spans(layout: &Layout, adapter: &Adapter, inputs: &AdaptInputs<'_>) -> Vec<Span> {
    let up = layout.banks[Bank::MlpUp as usize].clone();
    let down = layout.banks[Bank::MlpDown as usize].clone();
    let end = layout.masters.elements;
    let stretches = [
        (0, up.start, 1.0),
        (up.start, up.end, inputs.mlp_fc_factor),
        (down.start, down.end, inputs.mlp_proj_factor),
        (down.end, end, 1.0),
    ];
    let mut spans: Vec<Span> = stretches
        .into_iter()
        .filter(|(start, end, _)| start < end)
        .map(|(start, end, factor)| {
            let part = |tensor: Tensor| tensor.slice(start, end - start);
            Span {
                storage: Storage::F32,
                values: part(layout.masters),
                gradient: part(layout.gradients),
                moments: adapter.f32_moments.map(part),
                factor,
            }
        })
        .collect();
    if let (Some(values), Some(moments)) = (layout.bf16_tables, adapter.table_moments) {
        debug_assert_eq!(values.element, Element::Bf16);
        spans.push(Span {
            storage: Storage::Bf16,
            values,
            gradient: layout.gradients.slice(layout.tables.start, values.elements),
            moments,
            factor: 1.0,
        });
    }
    spans
}
