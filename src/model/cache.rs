//! Keys and values of earlier tokens, so that a token that is written costs one row and not its whole prefix.
//!
//! A forward with a cache takes the last tokens of each sequence, [`window`] of them: its first rows are there for the embedding of the last
//! one, which reads the token before (SmearGate), whose own embedding reads the one before that (bigram). Only the last row has an
//! attention, against the cache; what the others hold from there on is nobody's.
//!
//! The rotary base must be the same for all lengths that the cache serves: [`Cache::room`] ends where it starts to move.

use anyhow::Result;

use super::buffers::PassActivations;
use super::config::{Config, Pass};
use super::device::Device;
use super::forward::Input;
use super::network::Network;
use crate::arena::{Element, Plan, Region, Tensor};
use crate::kernels::attention_decode::{AttentionDecode, NewKeys, decode_scratch};
use crate::kernels::attention_forward::{AttentionShape, Gate};

/// Device memory of the cache.
#[derive(Debug, Clone, Copy)]
pub struct Cache {
    /// bf16 `[passes, sequences, room, 2 KV 64]`, k | v.
    keys_values: Tensor,
    /// Tokens of each sequence, the newest counted i32.
    pub lengths: Tensor,
    scratch: Tensor,
    sequences: usize,
    /// The longest prefix.
    pub room: usize,
}

/// Tokens of a sequence that a forward with a cache takes when the prefix has `length`.
pub fn window(length: usize) -> usize {
    length.min(3)
}

impl Cache {
    pub fn plan(config: &Config, sequences: usize, longest: usize, plan: &mut Plan) -> Self {
        let room = longest.min(config.rope_train_seq_len);
        let mut reserve = |name: &str, element, shape: &[usize]| {
            plan.reserve(Region::Workspace, name, element, shape)
        };
        let (passes, columns) = (config.passes.len(), 2 * config.kv_dim());
        let shape = shape(config, sequences, room);
        Self {
            keys_values: reserve(
                "keys and values of written text",
                Element::Bf16,
                &[passes, sequences, room, columns],
            ),
            lengths: reserve("lengths of written text", Element::I32, &[sequences]),
            scratch: reserve(
                "parts of one token's attention",
                Element::F32,
                &[decode_scratch(shape) as usize],
            ),
            sequences,
            room,
        }
    }
}

/// Of one new token each against the cache.
fn shape(config: &Config, sequences: usize, room: usize) -> AttentionShape {
    AttentionShape {
        sequences: sequences as u64,
        tokens: room as u64,
        kv_heads: config.kv_heads as u64,
        group: (config.heads / config.kv_heads) as u64,
    }
}

impl Network {
    /// Attention, XSA and gate of the last row of each sequence; its key and value join the cache.
    pub(super) fn attention_cached(
        &self,
        device: &Device,
        input: &Input,
        cache: &Cache,
        index: usize,
        pass: &Pass,
    ) -> Result<()> {
        let (kernels, stream, config) = (&device.kernels, &device.stream, &self.config);
        let a: &PassActivations = &self.activations.passes[index];
        let (d, kv) = (config.dim as u64, config.kv_dim() as u64);
        let (rows, columns) = (input.batch.seq_len as u64, config.qkv_columns() as u64);
        let shape = shape(config, input.batch.sequences, cache.room);
        let each = (cache.sequences * cache.room) as u64 * 2 * kv;
        let keys = device.at(cache.keys_values.slice(each * index as u64, each));
        let last = |tensor: Tensor, pitch: u64| device.at(tensor).offset(2 * (rows - 1) * pitch);
        let lengths = device.at(cache.lengths);
        let ready = last(a.qkv_ready, columns);
        let new = NewKeys {
            shape,
            keys_values: ready.offset(2 * d),
            stride: rows * columns,
            lengths,
            cache: keys,
        };
        kernels.attention_decode_append(stream, &new)?;
        let decode = AttentionDecode {
            shape,
            q: ready,
            q_stride: rows * columns,
            k: keys,
            v: keys.offset(2 * kv),
            kv_stride: 2 * kv,
            kv_sequence: cache.room as u64 * 2 * kv,
            lengths,
            scratch: device.at(cache.scratch),
            xsa: config.xsa[pass.layer],
            gate: self.gate(device, index, pass).map(|gate| Gate {
                logits: last(a.gates.expect("planned with the gate"), gate.stride),
                stride: rows * gate.stride,
                ..gate
            }),
            out: last(a.z, d),
            out_stride: rows * d,
        };
        kernels.attention_decode(stream, &decode)?;
        Ok(())
    }
}
