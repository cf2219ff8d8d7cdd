//! Where parameters, gradients, optimizer state and averages lie.
//!
//! All f32 parameters are one flat array, in sections that kernels can walk in one launch:
//!
//! ```text
//! qo_bank | kv_bank | mlp_up_bank | mlp_down_bank | single matrices | scalars | unused scalars | tables (if f32)
//! ```
//!
//! bf16 tables are a flat array of their own. Gradients and averages are f32 flat arrays over everything, with the same order and
//! offsets, tables last. So the global gradient norm is one sum, and each AdamW group is one span. Every tensor starts at a
//! multiple of 8 elements, and so does every row of a matrix ([`Parameter::pitch`]); the gaps are zero and stay zero.

use std::collections::BTreeMap;
use std::ops::Range;

use super::config::Config;
use super::parameters::{BLOCK_MATRICES, Bank, Group, Parameter, inventory};
use crate::arena::{Element, Plan, Region, Tensor};
use crate::recipe::{Recipe, StorageType};

/// Tensors start at multiples of this many elements: kernels take 8 at a time.
const STEP: u64 = 8;

/// Parameters and what belongs to each, as flat arrays.
#[derive(Debug, Clone)]
pub struct Layout {
    /// In published order.
    pub parameters: Vec<Parameter>,
    /// Offset of each parameter in the order of the flat arrays, in elements.
    offsets: Vec<u64>,
    by_name: BTreeMap<String, usize>,
    /// Spans of the flat arrays, in elements.
    pub banks: [Range<u64>; 4],
    pub matrices: Vec<usize>,
    pub scalars: Range<u64>,
    pub tables: Range<u64>,
    pub table_type: StorageType,
    /// f32 parameters: everything, or all but the tables.
    pub masters: Tensor,
    /// Tables in bf16, if they are stored so.
    pub bf16_tables: Option<Tensor>,
    pub gradients: Tensor,
    /// Exponential moving average of everything; absent with a decay of 0.
    pub ema: Option<Tensor>,
    /// Sums of snapshots in the parameters' types, f32 parameters and bf16 tables; absent without snapshots.
    pub snapshots: Option<(Tensor, Option<Tensor>)>,
    /// Momentum of the banks and single matrices.
    pub momentum: Tensor,
    /// First and second moments of the scalars.
    pub scalar_moments: [Tensor; 2],
    /// First and second moments of the tables, in their type.
    pub table_moments: [Tensor; 2],
}

impl Layout {
    pub fn new(config: &Config, recipe: &Recipe, plan: &mut Plan) -> Self {
        let parameters = inventory(config, recipe);
        let order = flat_order(config, &parameters);
        let mut offsets = vec![0; parameters.len()];
        let mut end = 0;
        let mut spans: BTreeMap<(Group, bool), Range<u64>> = BTreeMap::new();
        for &index in &order {
            let parameter = &parameters[index];
            offsets[index] = end;
            let start = end;
            end += (parameter.stored_elements() as u64).next_multiple_of(STEP);
            spans
                .entry((parameter.group, parameter.used))
                .and_modify(|span| span.end = end)
                .or_insert(start..end);
        }
        let span = |group, used| spans.get(&(group, used)).cloned().unwrap_or(0..0);
        let tables = span(Group::Table, true);
        let scalars = span(Group::Scalar, true);
        let matrices: Vec<usize> = order
            .iter()
            .copied()
            .filter(|&i| parameters[i].group == Group::Matrix)
            .collect();
        let table_type = recipe.embedding_dtype;
        let table_element = element(table_type);
        let mut flat = |region, name: &str, element, elements: u64| {
            plan.reserve(region, name, element, &[elements as usize])
        };
        let table_count = tables.end - tables.start;
        let scalar_count = scalars.end - scalars.start;
        let is_bf16 = table_type == StorageType::Bf16;
        let master_count = if is_bf16 { tables.start } else { end };
        Self {
            by_name: parameters
                .iter()
                .enumerate()
                .map(|(i, p)| (p.name.clone(), i))
                .collect(),
            offsets,
            banks: Bank::ALL.map(|bank| span(Group::Bank(bank), true)),
            masters: flat(
                Region::Parameters,
                "f32 parameters",
                Element::F32,
                master_count,
            ),
            bf16_tables: is_bf16.then(|| {
                flat(
                    Region::Parameters,
                    "bf16 tables",
                    Element::Bf16,
                    table_count,
                )
            }),
            gradients: flat(Region::Gradients, "gradients", Element::F32, end),
            ema: (recipe.ema_decay > 0.0)
                .then(|| flat(Region::Averages, "moving average", Element::F32, end)),
            snapshots: recipe.swa_enabled.then(|| {
                let sum = flat(
                    Region::Averages,
                    "sum of snapshots, f32 parameters",
                    Element::F32,
                    master_count,
                );
                let tables = is_bf16.then(|| {
                    flat(
                        Region::Averages,
                        "sum of snapshots, bf16 tables",
                        Element::Bf16,
                        table_count,
                    )
                });
                (sum, tables)
            }),
            momentum: flat(
                Region::Optimizer,
                "muon momentum",
                element(recipe.muon_momentum_dtype),
                scalars.start,
            ),
            scalar_moments: ["first", "second"].map(|which| {
                flat(
                    Region::Optimizer,
                    &format!("scalars' {which} moment"),
                    Element::F32,
                    scalar_count,
                )
            }),
            table_moments: ["first", "second"].map(|which| {
                flat(
                    Region::Optimizer,
                    &format!("tables' {which} moment"),
                    table_element,
                    table_count,
                )
            }),
            parameters,
            matrices,
            scalars,
            tables,
            table_type,
        }
    }

    /// Index of a parameter by published name.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// Indices of the parameters of each bank, in the bank's order.
    pub fn bank_members(&self) -> [Vec<usize>; 4] {
        Bank::ALL.map(|bank| {
            let mut members: Vec<usize> = (0..self.parameters.len())
                .filter(|&i| self.parameters[i].group == Group::Bank(bank))
                .collect();
            members.sort_by_key(|&i| self.offsets[i]);
            members
        })
    }

    /// Offset of a parameter in the flat arrays, in elements.
    pub fn offset(&self, index: usize) -> u64 {
        self.offsets[index]
    }

    fn elements(&self, index: usize) -> u64 {
        self.parameters[index].stored_elements() as u64
    }

    /// The stored values of a parameter: f32, or bf16 for a bf16 table. Like the other places below they have the padding of rows.
    pub fn values(&self, index: usize) -> Tensor {
        self.within(index, self.masters, self.bf16_tables)
    }

    /// The sum of a parameter's snapshots, in its type.
    pub fn snapshot_sum(&self, index: usize) -> Option<Tensor> {
        let (masters, tables) = self.snapshots?;
        Some(self.within(index, masters, tables))
    }

    /// A parameter's place in arrays like those of the parameters.
    fn within(&self, index: usize, masters: Tensor, tables: Option<Tensor>) -> Tensor {
        let offset = self.offsets[index];
        match tables {
            Some(tables) if self.parameters[index].group == Group::Table => {
                tables.slice(offset - self.tables.start, self.elements(index))
            }
            _ => masters.slice(offset, self.elements(index)),
        }
    }

    /// The f32 gradient of a parameter.
    pub fn gradient(&self, index: usize) -> Tensor {
        self.gradients
            .slice(self.offsets[index], self.elements(index))
    }

    /// The moving average of a parameter.
    pub fn average(&self, index: usize) -> Option<Tensor> {
        Some(self.ema?.slice(self.offsets[index], self.elements(index)))
    }

    /// The f32 values of a parameter by name.
    ///
    /// # Panics
    /// If the model has no such parameter: a defect of the caller, which knows the configuration.
    pub fn named(&self, name: &str) -> Tensor {
        self.values(self.index(name))
    }

    /// The f32 gradient of a parameter by name; panics as [`Self::named`].
    pub fn named_gradient(&self, name: &str) -> Tensor {
        self.gradient(self.index(name))
    }

    fn index(&self, name: &str) -> usize {
        self.find(name)
            .unwrap_or_else(|| panic!("the model has no parameter {name}"))
    }

    /// State tensors that a checkpoint holds, with their names.
    pub fn state(&self) -> Vec<(&'static str, Tensor)> {
        let mut state = vec![("param/f32", self.masters)];
        state.extend(self.bf16_tables.map(|t| ("param/bf16_tables", t)));
        state.push(("muon/momentum", self.momentum));
        state.push(("adam/scalars_m", self.scalar_moments[0]));
        state.push(("adam/scalars_v", self.scalar_moments[1]));
        state.push(("adam/tables_m", self.table_moments[0]));
        state.push(("adam/tables_v", self.table_moments[1]));
        state.extend(self.ema.map(|t| ("ema/f32", t)));
        if let Some((masters, tables)) = self.snapshots {
            state.push(("swa/f32", masters));
            state.extend(tables.map(|t| ("swa/bf16_tables", t)));
        }
        state
    }
}

fn element(storage: StorageType) -> Element {
    match storage {
        StorageType::F32 => Element::F32,
        StorageType::Bf16 => Element::Bf16,
    }
}

/// Indices of the parameters in the order of the flat arrays.
///
/// Inside the scalars, what a batched launch reads for all layers comes first, each kind contiguous over the layers.
fn flat_order(config: &Config, parameters: &[Parameter]) -> Vec<usize> {
    let rank = |index: &usize| {
        let parameter = &parameters[*index];
        let section = match parameter.group {
            Group::Bank(bank) => bank as usize,
            Group::Matrix => 4,
            Group::Scalar if parameter.used => 5,
            Group::Scalar => 6,
            Group::Table => 7,
        };
        (section, within_section(config, parameter))
    };
    let mut order: Vec<usize> = (0..parameters.len()).collect();
    // Stable: what ranks the same keeps the published order.
    order.sort_by_key(rank);
    order
}

fn within_section(config: &Config, parameter: &Parameter) -> usize {
    let block = parameter
        .name
        .strip_prefix("blocks.")
        .and_then(|rest| rest.split_once('.'));
    let Some((layer, rest)) = block else {
        return usize::MAX;
    };
    let layer: usize = layer.parse().expect("layer numbers are ours");
    if let Some(&(_, _, second)) = BLOCK_MATRICES.iter().find(|(name, _, _)| *name == rest) {
        return layer + if second { config.layers } else { 0 };
    }
    let kinds = ["attn_scale", "mlp_scale", "attn.attn_gate.weight"];
    match kinds.iter().position(|kind| *kind == rest) {
        Some(kind) => kind * config.layers + layer,
        None => usize::MAX,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(recipe: &Recipe) -> (Config, Layout) {
        let config = Config::new(recipe).unwrap();
        let layout = Layout::new(&config, recipe, &mut Plan::default());
        (config, layout)
    }

    #[test]
    fn banks_are_contiguous_and_in_published_order() {
        let (config, layout) = layout(&Recipe::default());
        let d = config.dim as u64;
        for layer in 0..config.layers as u64 {
            let q = layout.index(&format!("blocks.{layer}.attn.c_q.weight"));
            let out = layout.index(&format!("blocks.{layer}.attn.proj.weight"));
            assert_eq!(layout.offset(q), layer * d * d);
            assert_eq!(layout.offset(out), (config.layers as u64 + layer) * d * d);
            let scale = layout.index(&format!("blocks.{layer}.attn_scale"));
            assert_eq!(layout.offset(scale), layout.scalars.start + layer * d);
        }
        assert_eq!(layout.banks[0], 0..22 * d * d);
        assert_eq!(layout.banks[3].end, layout.offset(layout.matrices[0]));
    }

    #[test]
    fn nothing_overlaps_and_groups_are_spans() {
        for embedding_dtype in [StorageType::F32, StorageType::Bf16] {
            let recipe = Recipe {
                vrl_enabled: false,
                value_residual: true,
                gated_attention: true,
                embedding_dtype,
                ..Recipe::default()
            };
            let (_, layout) = layout(&recipe);
            let mut ranges: Vec<(u64, u64)> = (0..layout.parameters.len())
                .map(|i| (layout.offset(i), layout.offset(i) + layout.elements(i)))
                .collect();
            ranges.sort_unstable();
            assert!(ranges.windows(2).all(|pair| pair[0].1 <= pair[1].0));
            for (index, parameter) in layout.parameters.iter().enumerate() {
                let offset = layout.offset(index);
                assert_eq!(offset % STEP, 0);
                let in_scalars = layout.scalars.contains(&offset);
                assert_eq!(
                    in_scalars,
                    parameter.group == Group::Scalar && parameter.used,
                    "{}",
                    parameter.name
                );
                assert_eq!(
                    layout.tables.contains(&offset),
                    parameter.group == Group::Table
                );
                assert_eq!(
                    layout.values(index).elements,
                    parameter.stored_elements() as u64
                );
            }
            let unused: Vec<&str> = layout
                .parameters
                .iter()
                .filter(|p| !p.used)
                .map(|p| p.name.as_str())
                .collect();
            assert_eq!(unused, ["blocks.0.attn.vr_lambda"]);
        }
    }
}
