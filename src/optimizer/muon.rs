//! Muon over banks and single matrices.
//!
//! Per matrix: momentum and Nesterov direction (with the clipped gradient), division by the Frobenius norm, five Newton-Schulz
//! steps, decay and update by learning rate times sqrt(max(1, rows / columns)). All matrices of one shape go through the same
//! launches; a single matrix is a bank of one. The scratch of one group is reused by the next.

use anyhow::Result;

use crate::arena::{Element, Plan, Region, Tensor};
use crate::kernels::DevPtr;
use crate::kernels::muon::{Bank, NewtonSchulz};
use crate::model::device::Device;
use crate::model::layout::Layout;
use crate::recipe::{Recipe, StorageType};

#[derive(Debug, Clone)]
pub struct Muon {
    groups: Vec<Group>,
    bf16_state: bool,
    weight_decay: f32,
}

/// Matrices of one shape, from `start` on in the flat arrays.
#[derive(Debug, Clone, Copy)]
struct Group {
    bank: Bank,
    /// `sqrt(max(1, rows / columns))` of the matrices without the padding of their rows.
    shape_factor: f32,
    start: u64,
    x: Tensor,
    y: Tensor,
    gram: Tensor,
    polynomial: Tensor,
    partial: Tensor,
}

impl Muon {
    pub fn plan(recipe: &Recipe, layout: &Layout, plan: &mut Plan) -> Self {
        let mut groups = Vec::new();
        // Largest bank first, as published.
        let mut banks: Vec<(usize, Bank)> = Vec::new();
        for members in layout.bank_members() {
            let Some(&first) = members.first() else {
                continue;
            };
            banks.push((first, matrix_bank(layout, first, members.len())));
        }
        banks.sort_by_key(|(_, bank)| std::cmp::Reverse(bank.matrices * bank.elements()));
        for &index in &layout.matrices {
            banks.push((index, matrix_bank(layout, index, 1)));
        }
        for (first, bank) in banks {
            groups.push(plan.scratch(|plan| Group::plan(layout, first, bank, plan)));
        }
        Self {
            groups,
            bf16_state: recipe.muon_momentum_dtype == StorageType::Bf16,
            weight_decay: recipe.muon_wd as f32,
        }
    }

    pub fn launch(
        &self,
        device: &Device,
        layout: &Layout,
        step: DevPtr,
        clip: DevPtr,
    ) -> Result<()> {
        let (kernels, stream) = (&device.kernels, &device.stream);
        for group in &self.groups {
            let bank = group.bank;
            let total = bank.matrices * bank.elements();
            let part = |flat: Tensor| device.at(flat.slice(group.start, total));
            let (x, partial) = (device.at(group.x), device.at(group.partial));
            kernels.muon_momentum(
                stream,
                bank,
                part(layout.gradients),
                part(layout.momentum),
                self.bf16_state,
                x,
                partial,
                step,
                Some(clip),
            )?;
            kernels.muon_normalize(stream, bank, x, partial)?;
            let buffers = NewtonSchulz {
                x,
                y: device.at(group.y),
                gram: device.at(group.gram),
                polynomial: device.at(group.polynomial),
            };
            let (result, _) = kernels.newton_schulz(stream, bank, buffers)?;
            kernels.muon_update(
                stream,
                bank,
                part(layout.masters),
                result,
                step,
                1.0,
                self.weight_decay,
                group.shape_factor,
            )?;
        }
        Ok(())
    }
}

fn matrix_bank(layout: &Layout, index: usize, matrices: usize) -> Bank {
    let parameter = &layout.parameters[index];
    Bank {
        matrices: matrices as u64,
        rows: parameter.shape[0] as u64,
        columns: parameter.pitch() as u64,
    }
}

impl Group {
    /// `first` is the bank's first matrix.
    fn plan(layout: &Layout, first: usize, bank: Bank, plan: &mut Plan) -> Self {
        let unpadded = layout.parameters[first].shape[1] as u64;
        let (count, side) = (bank.matrices as usize, bank.side() as usize);
        let (rows, columns) = (bank.rows as usize, bank.columns as usize);
        let mut reserve = |name: &str, element, shape: &[usize]| {
            let name = format!("muon {count} x {rows} x {columns}: {name}");
            plan.reserve(Region::Workspace, name, element, shape)
        };
        Self {
            bank,
            shape_factor: Bank {
                columns: unpadded,
                ..bank
            }
            .shape_factor(),
            start: layout.offset(first),
            x: reserve("x", Element::Bf16, &[count, rows, columns]),
            y: reserve("y", Element::Bf16, &[count, rows, columns]),
            gram: reserve("gram", Element::Bf16, &[count, side, side]),
            polynomial: reserve("polynomial", Element::Bf16, &[count, side, side]),
            partial: reserve(
                "partial sums",
                Element::F32,
                &[count, bank.partials() as usize],
            ),
        }
    }
}
