//! Calibration on the device: sums of x xᵀ over the inputs of every layer, and text that the model writes itself.
//!
//! After a forward all inputs of the products are still there, but for their norms, so a Hessian is one more product of an activation
//! with itself, summed in f32. Q, K and V share an input, and so a Hessian. A layer that is replayed sees the inputs of both its passes.
//!
//! Text is written token by token. As long as the prefix is not longer than the training length of the rotary table, earlier keys and
//! values are kept and a token takes a forward of its own row ([`super::cache`]); its scores differ from those of a whole forward by
//! bf16 roundings (here the probabilities stay in f32). Beyond, each token takes a forward over its whole prefix: the rotary base
//! follows the length of the prefix, so all earlier keys change with every token, and keys that were kept would be the keys of
//! another model.

use anyhow::{Result, ensure};

use super::buffers::logit_pitch;
use super::cache::{self, Cache};
use super::config::Config;
use super::engine::DeviceEngine;
use super::network::Network;
use crate::arena::{Element, Plan, Region, Tensor};
use crate::kernels::gemm::{self, Orientation, SplitReduce};
use crate::kernels::sampling::Sampling;
use crate::quantize::Hessians;
use crate::recipe::Recipe;

/// Device memory of calibration.
#[derive(Debug, Clone)]
pub struct Calibration {
    /// By layer: the inputs of QKV, of the output projection, of MLP up and down; f32, square.
    sums: Vec<[Tensor; 4]>,
    /// One sampled token for each sequence u16.
    next: Tensor,
    cache: Cache,
}

/// Parameters that read each of the four inputs.
const READERS: [&[&str]; 4] = [
    &["attn.c_q.weight", "attn.c_k.weight", "attn.c_v.weight"],
    &["attn.proj.weight"],
    &["mlp.fc.weight"],
    &["mlp.proj.weight"],
];

impl Calibration {
    pub fn plan(config: &Config, recipe: &Recipe, plan: &mut Plan) -> Self {
        let sequences = recipe.calibration_sequences;
        let mut square = |layer: usize, name: &str, side: usize| {
            let name = format!("layer {layer}: hessian of {name}");
            plan.reserve(Region::Workspace, name, Element::F32, &[side, side])
        };
        let (d, hidden) = (config.dim, config.hidden);
        let sums = (0..config.layers)
            .map(|layer| {
                [
                    square(layer, "attention input", d),
                    square(layer, "attention output", d),
                    square(layer, "mlp input", d),
                    square(layer, "mlp activated", hidden),
                ]
            })
            .collect();
        Self {
            sums,
            cache: Cache::plan(config, sequences, recipe.train_seq_len, plan),
            next: plan.reserve(
                Region::Exchange,
                "sampled tokens",
                Element::U16,
                &[sequences],
            ),
        }
    }
}

impl DeviceEngine {
    /// Adds x xᵀ of the last forward's inputs to the sums; `first` overwrites them.
    fn launch_hessians(&self, calibration: &Calibration, n: usize, first: bool) -> Result<()> {
        let (network, device) = (self.network(), self.device());
        let (d, hidden) = (network.config.dim, network.config.hidden);
        let mut visited = vec![!first; network.config.layers];
        for (pass, a) in network
            .config
            .passes
            .iter()
            .zip(&network.activations.passes)
        {
            let accumulate = std::mem::replace(&mut visited[pass.layer], true);
            let inputs = [
                (a.x_in, d, true),
                (a.z, d, false),
                (a.x1, d, true),
                (a.activated, hidden, false),
            ];
            for ((mut input, side, normed), sum) in
                inputs.into_iter().zip(calibration.sums[pass.layer])
            {
                let (kernels, stream) = (&device.kernels, &device.stream);
                if normed {
                    // Products norm the rows of their result, not their input. Nobody reads the stream behind the pass any more.
                    let (x, y) = (device.at(input), device.at(a.out));
                    let factor = network.config.norm_scale(pass.layer);
                    kernels.norm_forward(stream, x, y, factor, n as u64, d as u64)?;
                    input = a.out;
                }
                let x = device.matrix(input, n, side);
                let columns = side as u64;
                let cut = gemm::Cut::of(columns, columns, n as u64, 1);
                let partial = device.at(network.workspace.split);
                kernels.gemm_f32(stream, Orientation::Tn, x, x, partial, cut)?;
                kernels.split_reduce(
                    stream,
                    SplitReduce {
                        partial,
                        splits: cut.parts,
                        partial_rows: columns,
                        row_begin: 0,
                        rows: columns,
                        columns,
                        scale: None,
                        one_scale: false,
                        weight: None,
                        grad: device.at(sum),
                        scale_grad: None,
                        accumulate,
                    },
                )?;
            }
        }
        Ok(())
    }

    /// [`crate::train::engine::Engine::hessians`].
    pub(super) fn collect_hessians(&mut self, tokens: &[u16], seq_len: usize) -> Result<Hessians> {
        let calibration = self.calibration()?;
        ensure!(
            !tokens.is_empty() && tokens.len().is_multiple_of(seq_len),
            "{} tokens in sequences of {seq_len}",
            tokens.len()
        );
        self.prepare_evaluation(seq_len)?;
        let at_once = self.sequences_at_once(seq_len) * seq_len;
        for (index, tokens) in tokens.chunks(at_once).enumerate() {
            let input = self.send_evaluation(tokens, tokens, seq_len)?;
            self.network().forward_hidden(self.device(), &input)?;
            self.launch_hessians(&calibration, tokens.len(), index == 0)?;
        }
        let mut hessians = Hessians::new();
        for (layer, sums) in calibration.sums.iter().enumerate() {
            for (sum, readers) in sums.iter().zip(READERS) {
                let values = self.device().memory.read_floats(*sum)?;
                for reader in readers {
                    hessians.insert(Network::block_name(layer, reader), values.clone());
                }
            }
        }
        Ok(hessians)
    }

    /// [`crate::train::engine::Engine::generate`].
    pub(super) fn write_text(
        &mut self,
        sequences: usize,
        seq_len: usize,
        temperature: f32,
        seed: u64,
    ) -> Result<Vec<u16>> {
        let calibration = self.calibration()?;
        let room = calibration.next.elements as usize;
        let mut text = Vec::with_capacity(sequences * seq_len);
        let at_once = self.sequences_at_once(seq_len).min(room);
        self.prepare_evaluation(seq_len)?;
        let mut first = 0;
        while first < sequences {
            let count = at_once.min(sequences - first);
            let mut rows = vec![Vec::with_capacity(seq_len); count];
            for position in 0..seq_len {
                let sampling = Sampling {
                    softcap: self.network().config.softcap,
                    temperature,
                    seed,
                    first_sequence: first as u64,
                    position: position as u64,
                };
                let next = self.sample(&calibration, &rows, sampling)?;
                rows.iter_mut().zip(next).for_each(|(row, id)| row.push(id));
            }
            text.extend(rows.concat());
            first += count;
        }
        Ok(text)
    }

    /// The next token of each of these prefixes, which have the same length and grow by a token from call to call.
    fn sample(
        &mut self,
        calibration: &Calibration,
        prefixes: &[Vec<u16>],
        sampling: Sampling,
    ) -> Result<Vec<u16>> {
        let (count, prefix) = (prefixes.len(), prefixes[0].len());
        let vocab = self.network().config.vocab;
        let cache = Some(calibration.cache).filter(|cache| prefix <= cache.room);
        let length = match cache {
            Some(_) => cache::window(prefix),
            None => prefix,
        };
        if prefix > 0 {
            let tokens: Vec<u16> = prefixes
                .iter()
                .flat_map(|row| &row[prefix - length..])
                .copied()
                .collect();
            self.rotate_for(cache.map_or(prefix, |cache| cache.room))?;
            let mut input = self.send_evaluation(&tokens, &tokens, length)?;
            if let Some(cache) = cache {
                let lengths = vec![prefix as i32; count];
                let place = cache.lengths.slice(0, count as u64);
                self.device().memory.write(place, &lengths)?;
                let dims = self.network().config.rope_dims as u64;
                let first = (prefix - length) as u64;
                input.rope = input.rope.slice(first * dims, length as u64 * dims);
                input.cache = Some(cache);
            }
            self.network().forward(self.device(), &input)?;
        }
        let device = self.device();
        let pitch = logit_pitch(vocab) as u64;
        let last = (prefix > 0).then(|| {
            let logits = device.at(self.network().activations.logits);
            (
                logits.offset(2 * pitch * (length as u64 - 1)),
                pitch * length as u64,
            )
        });
        let next = calibration.next.slice(0, count as u64);
        device.kernels.sample_tokens(
            &device.stream,
            last,
            device.at(next),
            count as u64,
            vocab as u64,
            sampling,
        )?;
        let bytes = device.memory.read_bytes(next)?;
        Ok(bytes
            .as_chunks::<2>()
            .0
            .iter()
            .map(|b| u16::from_le_bytes(*b))
            .collect())
    }

    fn calibration(&self) -> Result<Calibration> {
        let planned = self.network().calibration.clone();
        planned.ok_or_else(crate::train::engine::no_calibration)
    }
}
