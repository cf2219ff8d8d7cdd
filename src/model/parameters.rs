//! The parameters of a model: published names, shapes, storage, initial values, optimizer groups.
//!
//! Names are those of the unbanked module whatever the recipe: a bank is a layout, and all matrices of one shape lie in one bank
//! on the device in every recipe. The order is that of the published unbanked state dict.

use std::borrow::Cow;

use super::config::{Config, ValueResidual};
use crate::recipe::{ProjectionOptimizer, Recipe, StorageType};

/// One parameter tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Parameter {
    pub name: String,
    pub shape: Vec<usize>,
    /// Storage in training: f32, or bf16 for embedding tables where the recipe says so.
    pub stored: StorageType,
    pub init: Init,
    pub group: Group,
    /// Part of the graph. The first layer's `vr_lambda` is not, unless the layer is replayed: it has no gradient, is never
    /// updated and never decayed.
    pub used: bool,
}

/// Initial values.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    Constant(f64),
    /// One value per row.
    Rows([f64; 2]),
    Normal {
        std: f64,
    },
    /// Q of a Gaussian matrix's QR decomposition (of the transpose for rows < cols), signs fixed, times `gain`.
    Orthogonal {
        gain: f64,
    },
}

/// Who updates a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Group {
    /// Matrices of the blocks, in the bank of their shape.
    Bank(Bank),
    /// A matrix of its own under Muon (`bigram.proj`, `ve_shared.proj` in some recipes).
    Matrix,
    /// AdamW at the scalar learning rate.
    Scalar,
    /// AdamW at the embedding learning rate.
    Table,
}

/// The four banks, in the published order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Bank {
    /// `[2L, d, d]`: c_q of all layers, then attn.proj of all layers.
    QueryOutput,
    /// `[2L, kv, d]`: c_k, then c_v.
    KeyValue,
    /// `[L, F, d]`
    MlpUp,
    /// `[L, d, F]`
    MlpDown,
}

impl Bank {
    pub const ALL: [Self; 4] = [
        Self::QueryOutput,
        Self::KeyValue,
        Self::MlpUp,
        Self::MlpDown,
    ];

    /// The published name.
    pub fn name(self) -> &'static str {
        match self {
            Self::QueryOutput => "qo_bank",
            Self::KeyValue => "kv_bank",
            Self::MlpUp => "mlp_up_bank",
            Self::MlpDown => "mlp_down_bank",
        }
    }

    /// (slices, rows, columns)
    pub fn shape(self, config: &Config) -> (usize, usize, usize) {
        let (layers, d, hidden) = (config.layers, config.dim, config.hidden);
        match self {
            Self::QueryOutput => (2 * layers, d, d),
            Self::KeyValue => (2 * layers, config.kv_dim(), d),
            Self::MlpUp => (layers, hidden, d),
            Self::MlpDown => (layers, d, hidden),
        }
    }
}

/// The matrices of a block and where each lies: name, bank, whether in the bank's second half.
pub const BLOCK_MATRICES: [(&str, Bank, bool); 6] = [
    ("attn.c_q.weight", Bank::QueryOutput, false),
    ("attn.c_k.weight", Bank::KeyValue, false),
    ("attn.c_v.weight", Bank::KeyValue, true),
    ("attn.proj.weight", Bank::QueryOutput, true),
    ("mlp.fc.weight", Bank::MlpUp, false),
    ("mlp.proj.weight", Bank::MlpDown, false),
];

/// Rows of a matrix start at multiples of this many elements: 16 bytes in bf16, as the copies of the products want it.
pub const ROW_STEP: usize = 8;

impl Parameter {
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// Columns of a matrix as it is stored on the device. Up to seven more than it has: they are zero, have a gradient of zero and
    /// stay zero under every update, and nothing that leaves the device has them.
    pub fn pitch(&self) -> usize {
        let columns = self.columns();
        match self.shape.len() {
            2 => columns.next_multiple_of(ROW_STEP),
            _ => columns,
        }
    }

    /// Elements as stored.
    pub fn stored_elements(&self) -> usize {
        match self.columns() {
            0 => 0,
            columns => self.elements() / columns * self.pitch(),
        }
    }

    /// The values of the parameter as they are stored.
    pub fn padded<'a>(&self, values: &'a [f32]) -> Cow<'a, [f32]> {
        if self.pitch() == self.columns() {
            return values.into();
        }
        let mut stored = vec![0.0; self.stored_elements()];
        let rows = stored.chunks_exact_mut(self.pitch());
        for (stored, row) in rows.zip(values.chunks_exact(self.columns())) {
            stored[..row.len()].copy_from_slice(row);
        }
        stored.into()
    }

    /// The values of the parameter from what is stored.
    pub fn unpadded(&self, stored: Vec<f32>) -> Vec<f32> {
        if self.pitch() == self.columns() {
            return stored;
        }
        let rows = stored.chunks_exact(self.pitch());
        rows.flat_map(|row| &row[..self.columns()])
            .copied()
            .collect()
    }

    fn columns(&self) -> usize {
        self.shape.last().copied().unwrap_or(1)
    }
}

/// All parameters in the order of the published state dict.
pub fn inventory(config: &Config, recipe: &Recipe) -> Vec<Parameter> {
    let mut list = Inventory {
        parameters: Vec::new(),
        table: recipe.embedding_dtype,
    };
    let d = config.dim;
    let projection = match recipe.projection_optimizer {
        ProjectionOptimizer::Muon | ProjectionOptimizer::MuonRowSharded => Group::Matrix,
        ProjectionOptimizer::Adamw => Group::Scalar,
    };
    let gain = if config.initial.scaled_projections {
        (2.0 * config.layers as f64).sqrt().recip()
    } else {
        1.0
    };
    list.scalar("skip_weights", &[config.skips(), d], Init::Constant(1.0));
    list.table(
        "tok_emb.weight",
        &[config.vocab, d],
        Init::Normal {
            std: config.initial.embedding_std,
        },
    );
    if let Some(bigram) = config.bigram {
        list.scalar("bigram.scale", &[], Init::Constant(0.05));
        list.table(
            "bigram.embed.weight",
            &[bigram.buckets, bigram.dim],
            Init::Constant(0.0),
        );
        if bigram.dim != d {
            let shape = [d, bigram.dim];
            list.push(
                "bigram.proj.weight",
                &shape,
                projection_init(&shape, gain),
                projection,
            );
        }
    }
    list.scalar("smear.gate", &[d], Init::Constant(0.0));
    for layer in 0..config.layers {
        list.block(config, layer);
    }
    if let Some(embedding) = &config.value_embedding {
        list.scalar("ve_shared.scale", &[], Init::Constant(0.1));
        list.table(
            "ve_shared.embed.weight",
            &[config.vocab, embedding.dim],
            Init::Normal { std: 0.01 },
        );
        if embedding.dim != config.kv_dim() {
            let shape = [config.kv_dim(), embedding.dim];
            list.push(
                "ve_shared.proj.weight",
                &shape,
                projection_init(&shape, gain),
                projection,
            );
        }
        for j in 0..embedding.layers.len() {
            list.scalar(&format!("ve_layer_scales.{j}"), &[1], Init::Constant(1.0));
        }
    }
    for index in 0..config.recycled.len() {
        list.scalar(
            &format!("recycle_mods.{index}.scale"),
            &[d],
            Init::Constant(1.0),
        );
        list.scalar(
            &format!("recycle_mods.{index}.bias"),
            &[d],
            Init::Constant(0.0),
        );
    }
    list.parameters
}

/// The published generic pass re-initialises matrices with both sides of at least 64; smaller projections stay zero.
fn projection_init(shape: &[usize; 2], gain: f64) -> Init {
    if shape.iter().all(|&side| side >= 64) {
        Init::Orthogonal { gain }
    } else {
        Init::Constant(0.0)
    }
}

struct Inventory {
    parameters: Vec<Parameter>,
    table: StorageType,
}

impl Inventory {
    fn push(&mut self, name: &str, shape: &[usize], init: Init, group: Group) {
        self.parameters.push(Parameter {
            name: name.into(),
            shape: shape.into(),
            stored: if group == Group::Table {
                self.table
            } else {
                StorageType::F32
            },
            init,
            group,
            used: shape.iter().product::<usize>() > 0,
        });
    }

    fn scalar(&mut self, name: &str, shape: &[usize], init: Init) {
        self.push(name, shape, init, Group::Scalar);
    }

    fn table(&mut self, name: &str, shape: &[usize], init: Init) {
        self.push(name, shape, init, Group::Table);
    }

    fn block(&mut self, config: &Config, layer: usize) {
        let d = config.dim;
        let name = |rest: &str| format!("blocks.{layer}.{rest}");
        self.scalar(&name("attn_scale"), &[d], Init::Constant(1.0));
        self.scalar(&name("mlp_scale"), &[d], Init::Constant(1.0));
        self.scalar(&name("resid_mix"), &[2, d], Init::Rows([1.0, 0.0]));
        self.scalar(
            &name("attn.q_gain"),
            &[config.heads],
            Init::Constant(config.initial.q_gain),
        );
        match config.value_residual {
            ValueResidual::Gate if layer > 0 => {
                self.scalar(&name("attn.vrl_gate"), &[], Init::Constant(-1.5));
            }
            ValueResidual::Lambda => {
                self.scalar(&name("attn.vr_lambda"), &[2], Init::Constant(0.5));
                if layer == 0 && !config.recycled.contains(&0) {
                    self.parameters.last_mut().expect("just added").used = false;
                }
            }
            _ => {}
        }
        if config.gated_attention {
            self.scalar(
                &name("attn.attn_gate.weight"),
                &[config.heads, d],
                Init::Constant(0.0),
            );
            self.scalar(
                &name("attn.attn_gate.bias"),
                &[config.heads],
                Init::Constant(4.0),
            );
        }
        for (rest, bank, _) in BLOCK_MATRICES {
            let (_, rows, cols) = bank.shape(config);
            // Output projections start at zero, so that every block starts as the identity.
            let init = if rest.ends_with("proj.weight") {
                Init::Constant(0.0)
            } else {
                Init::Orthogonal { gain: 1.0 }
            };
            self.push(&name(rest), &[rows, cols], init, Group::Bank(bank));
        }
    }
}
