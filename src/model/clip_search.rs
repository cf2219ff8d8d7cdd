//! Clip search on the device: the weights of one matrix travel there, its packed codes come back.
//!
//! Room for the largest matrix is planned with the model. The result has the same bits as [`crate::quantize::clip_search::search`].

use anyhow::{Context, Result, ensure};
use half::f16;

use super::config::Config;
use super::engine::DeviceEngine;
use crate::arena::{Element, Plan, Region, Tensor};
use crate::failure::{Exit, Failure};
use crate::kernels::clip_search::{ClipSearch, candidates, packed_words};
use crate::quantize::RowCodes;
use crate::quantize::clip_search::Found;
use crate::quantize::packing::{packed_len, unpack};

/// Operands of a search.
#[derive(Debug, Clone, Copy)]
pub struct Searching {
    weight: Tensor,
    scales: Tensor,
    row_errors: Tensor,
    errors: Tensor,
    chosen: Tensor,
    packed: Tensor,
}

impl Searching {
    pub fn plan(config: &Config, plan: &mut Plan) -> Self {
        let (d, hidden) = (config.dim, config.hidden);
        let (most_rows, most) = (d.max(hidden), d * d.max(hidden));
        let mut reserve = |what: &str, element, elements: usize| {
            plan.reserve(
                Region::Exchange,
                format!("clip search: {what}"),
                element,
                &[elements],
            )
        };
        let of_rows = candidates(6) as usize * most_rows;
        Self {
            weight: reserve("weight", Element::F32, most),
            scales: reserve("scales", Element::U16, of_rows),
            row_errors: reserve("errors of rows (f64)", Element::U8, 8 * of_rows),
            errors: reserve("errors (f64)", Element::U8, 8 * candidates(6) as usize),
            chosen: reserve("chosen percentile", Element::I32, 1),
            packed: reserve(
                "codes",
                Element::U8,
                4 * packed_words(most as u64, 6) as usize,
            ),
        }
    }
}

impl DeviceEngine {
    /// [`crate::train::engine::Engine::clip_search`].
    pub(super) fn search_clip(&mut self, weights: &[f32], cols: usize, bits: u8) -> Result<Found> {
        let place = self.searching;
        let (count, rows) = (weights.len() as u64, weights.len() / cols.max(1));
        ensure!(
            count > 0
                && rows * cols == weights.len()
                && count <= place.weight.elements
                && candidates(bits) * rows as u64 <= place.scales.elements,
            "no room for the clip search of {count} weights in rows of {cols}"
        );
        let device = self.device();
        let weight = place.weight.slice(0, count);
        device.memory.write(weight, weights)?;
        device.kernels.clip_search(
            &device.stream,
            &ClipSearch {
                weight: device.at(weight),
                rows: rows as u64,
                columns: cols as u64,
                bits,
                scales: device.at(place.scales),
                row_errors: device.at(place.row_errors),
                errors: device.at(place.errors),
                chosen: device.at(place.chosen),
                packed: device.at(place.packed),
            },
        )?;
        let chosen = device.memory.read_bytes(place.chosen)?;
        let chosen = i32::from_le_bytes(chosen.as_slice().try_into().expect("an i32"));
        let Ok(chosen) = usize::try_from(chosen) else {
            return Err(Failure::new(
                Exit::NonFinite,
                "clip search",
                "a weight is not finite",
                "the run has diverged; pack an earlier checkpoint or lower the learning rates",
            )
            .into());
        };
        let errors = place.errors.slice(0, 8 * candidates(bits));
        let errors = device.memory.read_bytes(errors)?;
        let scales = place.scales.slice((chosen * rows) as u64, rows as u64);
        let scales = device.memory.read_bytes(scales)?;
        let bytes = packed_len(weights.len(), bits).context("too many codes")?;
        let packed = device
            .memory
            .read_bytes(place.packed.slice(0, bytes as u64))?;
        Ok(Found {
            codes: RowCodes {
                rows,
                cols,
                bits,
                codes: unpack(&packed, weights.len(), bits)
                    .context("the device packed codes beyond their limit")?,
                scales: scales
                    .as_chunks::<2>()
                    .0
                    .iter()
                    .map(|b| f16::from_le_bytes(*b))
                    .collect(),
            },
            chosen,
            errors: errors
                .as_chunks::<8>()
                .0
                .iter()
                .map(|b| f64::from_le_bytes(*b))
                .collect(),
        })
    }
}
