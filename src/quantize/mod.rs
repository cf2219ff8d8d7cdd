//! From trained weights to integers.
//!
//! [`quantize`] walks the parameters of a model and stores each as the recipe says ([`policy`]): attention and
//! MLP matrices as int6 or int5 codes with one f16 scale per row ([`clip_search`] or [`gptq`]), the embedding tables as
//! int8 rows, everything small as f16. All of it repeats the published arithmetic: IEEE f32, ties to even, the scale
//! floors 1/31, 1/15 and 1/127, one clip percentile per matrix.

pub mod clip_search;
pub mod gptq;
pub mod packing;
pub mod policy;
pub mod prune;

use crate::failure::Failure;
use crate::recipe::{Quantizer, Recipe};
use crate::train::engine::{Element, NamedTensor};
use anyhow::Result;
use clip_search::Found;
use half::f16;
use policy::Storage;
use std::collections::HashMap;

/// Integer codes of a matrix: `codes[r * cols + c] * scales[r]` is the weight.
#[derive(Clone, Debug, PartialEq)]
pub struct RowCodes {
    pub rows: usize,
    pub cols: usize,
    /// 5, 6 or 8; codes lie in ±15, ±31 or ±127.
    pub bits: u8,
    pub codes: Vec<i8>,
    pub scales: Vec<f16>,
}

impl RowCodes {
    /// The weights as f32: f32(code) * f32(scale).
    pub fn dequantize(&self) -> Vec<f32> {
        let mut values = Vec::with_capacity(self.codes.len());
        for (row, scale) in self.codes.chunks_exact(self.cols.max(1)).zip(&self.scales) {
            let scale = scale.to_f32();
            values.extend(row.iter().map(|code| f32::from(*code) * scale));
        }
        values
    }

    /// Mean squared error against `weights`, in f64.
    pub fn mse(&self, weights: &[f32]) -> f64 {
        let mut sum = 0.0;
        for (r, row) in weights.chunks_exact(self.cols.max(1)).enumerate() {
            let scale = f64::from(self.scales[r].to_f32());
            for (weight, code) in row.iter().zip(&self.codes[r * self.cols..]) {
                sum += (f64::from(*weight) - f64::from(*code) * scale).powi(2);
            }
        }
        sum / weights.len().max(1) as f64
    }

    /// Largest magnitude that `bits` can hold in the symmetric ranges used here.
    pub fn limit(bits: u8) -> i8 {
        (1i16 << (bits - 1)).wrapping_sub(1) as i8
    }
}

/// How one parameter is stored.
#[derive(Clone, Debug, PartialEq)]
pub enum Stored {
    F16(Vec<f16>),
    Rows(RowCodes),
}

/// A parameter ready for the artifact.
#[derive(Clone, Debug, PartialEq)]
pub struct QuantizedTensor {
    pub name: String,
    pub shape: Vec<usize>,
    /// Type of the parameter when it is loaded again.
    pub restored: Element,
    pub stored: Stored,
}

impl QuantizedTensor {
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// The parameter as the scored model sees it.
    pub fn restore(&self) -> NamedTensor {
        let mut values = match &self.stored {
            Stored::F16(values) => values.iter().map(|v| v.to_f32()).collect(),
            Stored::Rows(rows) => rows.dequantize(),
        };
        if self.restored == Element::Bf16 {
            for value in &mut values {
                *value = half::bf16::from_f32(*value).to_f32();
            }
        }
        NamedTensor {
            name: self.name.clone(),
            shape: self.shape.clone(),
            stored: self.restored,
            values,
        }
    }
}

/// Hessians of layer inputs by parameter name: `cols * cols` values, row-major.
pub type Hessians = HashMap<String, Vec<f32>>;

/// Finds the clip percentile and the codes of a matrix: weights, length of its rows, bits.
pub type Search<'a> = dyn FnMut(&[f32], usize, u8) -> Result<Found> + 'a;

/// Quantizes a model. With `quantizer = "gptq"`, every attention and MLP matrix needs its Hessian.
/// `search` is [`clip_search::search`], or gives the same bits.
pub fn quantize(
    recipe: &Recipe,
    tensors: &[NamedTensor],
    hessians: &Hessians,
    search: &mut Search<'_>,
) -> Result<Vec<QuantizedTensor>> {
    let mut quantized = Vec::with_capacity(tensors.len());
    for tensor in tensors {
        if let Some(at) = tensor.values.iter().position(|v| !v.is_finite()) {
            return Err(Failure::new(
                crate::failure::Exit::NonFinite,
                format!("parameter {}", tensor.name),
                format!("element {at} is {}", tensor.values[at]),
                "the run has diverged; pack an earlier checkpoint or lower the learning rates",
            )
            .into());
        }
        let stored = match policy::storage(recipe, &tensor.name, &tensor.shape) {
            Storage::F16 => Stored::F16(to_f16(tensor)?),
            Storage::Int8 => Stored::Rows(clip_search::int8_rows(&tensor.values, tensor.shape[1])),
            Storage::Low(bits) => {
                let cols = tensor.shape[1];
                let rows = match (recipe.quantizer, hessians.get(&tensor.name)) {
                    (Quantizer::ClipSearch, _) => search(&tensor.values, cols, bits)?.codes,
                    (Quantizer::Gptq, Some(hessian)) => {
                        match gptq::quantize(&tensor.values, cols, hessian, bits) {
                            Ok(found) => found.codes,
                            Err(_) => search(&tensor.values, cols, bits)?.codes,
                        }
                    }
                    (Quantizer::Gptq, None) => {
                        return Err(Failure::user(
                            format!("parameter {}", tensor.name),
                            "GPTQ needs the Hessian of its inputs, and none was collected",
                            "use --set quantizer=clip_search",
                        )
                        .into());
                    }
                };
                Stored::Rows(rows)
            }
        };
        quantized.push(QuantizedTensor {
            name: tensor.name.clone(),
            shape: tensor.shape.clone(),
            restored: tensor.stored,
            stored,
        });
    }
    Ok(quantized)
}

fn to_f16(tensor: &NamedTensor) -> Result<Vec<f16>> {
    let values: Vec<f16> = tensor.values.iter().map(|v| f16::from_f32(*v)).collect();
    if let Some(at) = values.iter().position(|v| v.is_infinite()) {
        return Err(Failure::user(
            format!("parameter {}", tensor.name),
            format!("element {at} = {} does not fit f16", tensor.values[at]),
            "the run has probably diverged; pack an earlier checkpoint",
        )
        .into());
    }
    Ok(values)
}
