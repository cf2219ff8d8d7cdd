//! The optimizer step on the device: clip, AdamW for tables and scalars, Muon for matrices, moving average.
//!
//! It reads the gradients and writes parameters, state and average of a [`Layout`]; what changes from step to step (learning
//! rates, momentum, bias corrections, decay) it reads from the step values in device memory, so that a captured step can be
//! replayed. Each group has step values of its own, whose `learning_rate_scale` is the group's learning rate itself.
//!
//! As published: the clip acts on all gradients before any optimizer; both AdamW groups decay every member, scales and gates
//! included; Muon orthogonalises each matrix by itself, also in a bank; the average follows the update.

mod muon;

use anyhow::Result;

use crate::arena::Plan;
use crate::kernels::adam::{Adam, Storage};
use crate::kernels::step_values::StepValues;
use crate::kernels::{DevPtr, flat_grid};
use crate::model::device::Device;
use crate::model::layout::Layout;
use crate::model::network::Network;
use crate::recipe::{Recipe, StorageType};
use crate::train::engine::Rates;

/// What the optimizer needs beyond the network's plan.
#[derive(Debug, Clone)]
pub struct Optimizer {
    muon: muon::Muon,
    beta1: f64,
    beta2: f64,
    epsilon: f32,
    adam_decay: f32,
    ema_decay: f32,
    /// `1 - ema_decay`.
    ema_share: f32,
}

impl Optimizer {
    pub fn plan(recipe: &Recipe, layout: &Layout, plan: &mut Plan) -> Self {
        Self {
            muon: muon::Muon::plan(recipe, layout, plan),
            beta1: recipe.beta1,
            beta2: recipe.beta2,
            epsilon: recipe.adam_eps as f32,
            adam_decay: recipe.adam_wd as f32,
            ema_decay: recipe.ema_decay as f32,
            ema_share: (1.0 - recipe.ema_decay) as f32,
        }
    }

    /// Step values of the three groups (matrices, tables, scalars) for update number `update`, counted from 1.
    pub fn step_values(
        &self,
        rates: &Rates,
        update: u32,
        fake_quantize: bool,
        update_ema: bool,
    ) -> [StepValues; 3] {
        let mut values = StepValues {
            muon_momentum: rates.muon_momentum,
            // A decay of one leaves the average as it is.
            average_decay: if update_ema { self.ema_decay } else { 1.0 },
            average_share: if update_ema { self.ema_share } else { 0.0 },
            fake_quantize: u32::from(fake_quantize),
            step: update - 1,
            ..bytemuck::Zeroable::zeroed()
        };
        values.set_adam_corrections(self.beta1, self.beta2, update);
        [rates.matrix_lr, rates.embedding_lr, rates.scalar_lr].map(|rate| StepValues {
            learning_rate_scale: rate,
            ..values
        })
    }

    /// Puts one update into the stream. The gradients stay as they are.
    pub fn launch(&self, device: &Device, network: &Network, max_norm: f32) -> Result<()> {
        let (kernels, stream) = (&device.kernels, &device.stream);
        let (layout, w) = (&network.layout, &network.workspace);
        let [matrices, tables, scalars] = network.exchange.step_values.map(|t| device.at(t));
        let clip = device.at(w.clip);
        let n = layout.gradients.elements;
        let squares = device.at(w.squares);
        kernels.sum_squares(stream, device.at(layout.gradients), n, squares)?;
        let count = u64::from(flat_grid(n));
        kernels.clip_coefficient(stream, squares, count, max_norm, clip)?;

        let span = &layout.tables;
        let table_values = match layout.bf16_tables {
            Some(tables) => tables,
            None => layout.masters.slice(span.start, span.end - span.start),
        };
        self.adamw(
            device,
            storage(layout.table_type),
            device.at(table_values),
            device.at(layout.gradients.slice(span.start, span.end - span.start)),
            layout.table_moments.map(|t| device.at(t)),
            span.end - span.start,
            tables,
            clip,
        )?;
        self.muon.launch(device, layout, matrices, clip)?;
        let span = &layout.scalars;
        let count = span.end - span.start;
        self.adamw(
            device,
            Storage::F32,
            device.at(layout.masters.slice(span.start, count)),
            device.at(layout.gradients.slice(span.start, count)),
            layout.scalar_moments.map(|t| device.at(t)),
            count,
            scalars,
            clip,
        )?;
        self.average(device, layout, matrices)
    }

    #[allow(clippy::too_many_arguments)] // the operands of one group
    fn adamw(
        &self,
        device: &Device,
        storage: Storage,
        param: DevPtr,
        grad: DevPtr,
        [m, v]: [DevPtr; 2],
        n: u64,
        step: DevPtr,
        clip: DevPtr,
    ) -> Result<()> {
        let adam = Adam {
            learning_rate: 1.0,
            beta1: self.beta1 as f32,
            beta2: self.beta2 as f32,
            epsilon: self.epsilon,
            weight_decay: self.adam_decay,
        };
        let (kernels, stream) = (&device.kernels, &device.stream);
        kernels.adamw(
            stream,
            storage,
            n,
            param,
            grad,
            m,
            v,
            step,
            Some(clip),
            adam,
        )?;
        Ok(())
    }

    fn average(&self, device: &Device, layout: &Layout, step: DevPtr) -> Result<()> {
        let Some(ema) = layout.ema else {
            return Ok(());
        };
        let (kernels, stream) = (&device.kernels, &device.stream);
        let masters = layout.masters;
        let average = device.at(ema);
        let values = device.at(masters);
        kernels.average(
            stream,
            Storage::F32,
            average,
            values,
            masters.elements,
            step,
        )?;
        if let Some(tables) = layout.bf16_tables {
            let average = device.at(ema.slice(layout.tables.start, tables.elements));
            let values = device.at(tables);
            kernels.average(
                stream,
                Storage::Bf16,
                average,
                values,
                tables.elements,
                step,
            )?;
        }
        Ok(())
    }
}

fn storage(of: StorageType) -> Storage {
    match of {
        StorageType::F32 => Storage::F32,
        StorageType::Bf16 => Storage::Bf16,
    }
}
