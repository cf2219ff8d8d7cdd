//! `all_P`: every tensor of the full-size models: shape, training type, optimizer, bank, and how the artifact stores it.
//!
//! The models are those of the recipe files; nothing is allocated.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde::Deserialize;

use super::compare::Tally;
use crate::failure::Failure;
use crate::model::config::Config;
use crate::model::parameters::{Group, Parameter, inventory};
use crate::quantize::policy::{self, Storage};
use crate::recipe::{self, CodeLayout, Quantizer, Recipe, StorageType};

#[derive(Debug, Deserialize)]
pub struct StorageCase {
    policies: Vec<Policy>,
}

#[derive(Debug, Deserialize)]
struct Policy {
    recipe: String,
    parameters: i64,
    tensors: Vec<Tensor>,
}

#[derive(Debug, Deserialize)]
struct Tensor {
    name: String,
    shape: Vec<usize>,
    train_dtype: String,
    optimizer: String,
    bank: Option<String>,
    stored: String,
    dtype: Option<String>,
    method: Option<String>,
}

impl StorageCase {
    /// Refuses recipes that do not exist.
    pub(super) fn check(&self) -> Result<()> {
        ensure!(
            !self.policies.is_empty(),
            Failure::user("policies", "the case has none", "see src/parity/storage.rs")
        );
        self.policies
            .iter()
            .try_for_each(|policy| published(&policy.recipe).map(drop))
    }

    pub(super) fn run(&self) -> Result<Vec<Tally>> {
        self.policies.iter().map(Policy::compare).collect()
    }
}

/// The recipe file as it is, whatever the environment says.
fn published(name: &str) -> Result<Recipe> {
    Ok(recipe::load(name, [], &[])?.recipe)
}

impl Policy {
    fn compare(&self) -> Result<Tally> {
        let recipe = published(&self.recipe)?;
        let config = Config::new(&recipe)?;
        let ours = inventory(&config, &recipe);
        let mut tally = Tally::exact(format!("all P {}", self.recipe));
        let elements: usize = ours.iter().map(Parameter::elements).sum();
        tally.require_count("parameters", self.parameters, elements as i64);
        tally.require_count("tensors", self.tensors.len() as i64, ours.len() as i64);
        let by_name: BTreeMap<&str, &Parameter> =
            ours.iter().map(|p| (p.name.as_str(), p)).collect();
        for tensor in &self.tensors {
            let got = by_name.get(tensor.name.as_str()).map_or_else(
                || "missing".to_owned(),
                |parameter| describe(&recipe, parameter).to_string(),
            );
            tally.require_text(&tensor.name, tensor.description().to_string(), got);
        }
        Ok(tally)
    }
}

/// What is said of a tensor, in words.
struct Description<'a> {
    shape: &'a [usize],
    train_dtype: &'a str,
    optimizer: &'a str,
    bank: Option<&'a str>,
    stored: &'a str,
    detail: Option<&'a str>,
}

impl std::fmt::Display for Description<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{:?} {} {}",
            self.shape, self.train_dtype, self.optimizer
        )?;
        if let Some(bank) = self.bank {
            write!(f, " {bank}")?;
        }
        write!(f, " {}", self.stored)?;
        self.detail.map_or(Ok(()), |detail| write!(f, " {detail}"))
    }
}

impl Tensor {
    fn description(&self) -> Description<'_> {
        Description {
            shape: &self.shape,
            train_dtype: &self.train_dtype,
            optimizer: &self.optimizer,
            bank: self.bank.as_deref(),
            stored: &self.stored,
            detail: self.dtype.as_deref().or(self.method.as_deref()),
        }
    }
}

fn describe<'a>(recipe: &Recipe, parameter: &'a Parameter) -> Description<'a> {
    // The published 2-D recipes have no banks: birdie groups equal matrices all the same, which changes no number.
    let bank = match parameter.group {
        Group::Bank(bank) if recipe.banked => Some(bank.name()),
        _ => None,
    };
    let packed = recipe.code_layout == CodeLayout::Packed;
    let (stored, detail) = match policy::storage(recipe, &parameter.name, &parameter.shape) {
        Storage::F16 => ("passthrough", "float16"),
        Storage::Int8 => ("int8", "rows"),
        Storage::Low(bits) => (
            match (bits, packed) {
                (5, true) => "int5_packed",
                (5, false) => "int5",
                (6, true) => "int6_packed",
                _ => "int6",
            },
            match recipe.quantizer {
                Quantizer::ClipSearch => "clip search",
                Quantizer::Gptq => "GPTQ",
            },
        ),
    };
    Description {
        shape: &parameter.shape,
        train_dtype: match parameter.stored {
            StorageType::Bf16 => "bfloat16",
            StorageType::F32 => "float32",
        },
        optimizer: match parameter.group {
            Group::Bank(_) | Group::Matrix => "muon",
            Group::Scalar => "adamw_scalars",
            Group::Table => "adamw_embeddings",
        },
        bank,
        stored,
        detail: Some(detail),
    }
}
