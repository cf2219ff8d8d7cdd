//! The engine: a network and its optimizer on a device, as the training loop sees them.
//!
//! One optimizer step is captured as a CUDA graph when it first comes up and replayed from then on. Between replays only three
//! things change on the device: the tokens, the step values, and what the last step left. What a graph has built into it (the
//! number of micro-steps, the largest gradient norm) is part of its key; another value captures another graph.

use std::collections::HashMap;

use anyhow::{Result, ensure};
use cust::memory::LockedBuffer;

use super::adapt::Adapter;
use super::buffers::Batch;
use super::clip_search::Searching;
use super::config::Config;
use super::device::Device;
use super::feed::Feed;
use super::forward::Input;
use super::init::initial_values;
use super::network::Network;
use crate::arena::memory::finish;
use crate::arena::{Element as ArenaElement, Plan, Tensor};
use crate::driver::DriverError;
use crate::driver::graph::{Graph, GraphExec};
use crate::kernels::adam::Storage;
use crate::kernels::qkv::rope_table;
use crate::kernels::step_values::StepValues;
use crate::optimizer::Optimizer;
use crate::quantize::Hessians;
use crate::quantize::clip_search::Found;
use crate::recipe::{Recipe, StorageType};
use crate::train::engine::{
    AdaptInputs, Element, Engine, Logits, NamedTensor, StateTensor, StepInputs, StepOutput, Weights,
};

/// A model on a device with its optimizer.
pub struct DeviceEngine {
    network: Network,
    optimizer: Optimizer,
    device: Device,
    /// Captured steps by (micro-steps, bits of the largest gradient norm). `None` launches every kernel by itself.
    graphs: Option<HashMap<(usize, u32), GraphExec>>,
    /// The way of tokens and targets.
    feed: Feed,
    /// Page-locked: the three [`StepValues`] of the next step, and what comes back from a step: loss, clip coefficient, gradient norm.
    step_values: LockedBuffer<u64>,
    outcome: LockedBuffer<f32>,
    /// Sequence length of the rotary table of evaluations.
    score_rope_len: usize,
    pub(super) adapter: Option<Adapter>,
    pub(super) searching: Searching,
    /// Optimizer updates so far.
    updates: u64,
}

/// Network and optimizer of a recipe with the plan of their memory: all that `--dry-run` needs.
pub struct Planned {
    pub network: Network,
    pub optimizer: Optimizer,
    adapter: Option<Adapter>,
    searching: Searching,
    pub plan: Plan,
}

/// Plans a recipe's model for one of `ranks` devices.
pub fn plan(recipe: &Recipe, ranks: usize) -> Result<Planned> {
    plan_model(Config::new(recipe)?, recipe, ranks)
}

/// The same for a configuration that differs from the recipe's own.
pub fn plan_model(config: Config, recipe: &Recipe, ranks: usize) -> Result<Planned> {
    let mut plan = Plan::default();
    let network = Network::plan(config, recipe, ranks, &mut plan);
    let optimizer = Optimizer::plan(recipe, &network.layout, &mut plan);
    let adapter = recipe
        .ttt_enabled
        .then(|| Adapter::plan(&network.layout, &mut plan));
    let searching = Searching::plan(&network.config, &mut plan);
    Ok(Planned {
        network,
        optimizer,
        adapter,
        searching,
        plan,
    })
}

impl DeviceEngine {
    /// Allocates what was planned in the current context, and writes the initial weights.
    pub fn new(planned: Planned, what: &str) -> Result<Self> {
        let mut engine = Self::allocate(planned, what)?;
        engine.initialise()?;
        Ok(engine)
    }

    /// The same with weights that are given: every parameter of the model.
    pub fn with_weights(planned: Planned, what: &str, weights: &[NamedTensor]) -> Result<Self> {
        let mut engine = Self::allocate(planned, what)?;
        let parameters = &engine.network.layout.parameters;
        if let Some(p) = parameters
            .iter()
            .find(|p| !weights.iter().any(|w| w.name == p.name))
        {
            anyhow::bail!("no weights for {}", p.name);
        }
        engine.import(weights)?;
        Ok(engine)
    }

    fn allocate(planned: Planned, what: &str) -> Result<Self> {
        let Planned {
            network,
            optimizer,
            adapter,
            searching,
            plan,
        } = planned;
        let device = Device::new(&plan, what)?;
        let engine = Self {
            feed: Feed::new(&network.exchange)?,
            step_values: LockedBuffer::new(&0, 3 * size_of::<StepValues>() / 8)
                .map_err(DriverError::from)?,
            outcome: LockedBuffer::new(&0.0, 3).map_err(DriverError::from)?,
            network,
            optimizer,
            device,
            graphs: Some(HashMap::new()),
            adapter,
            searching,
            score_rope_len: 0,
            updates: 0,
        };
        let seq_len = engine.network.sizes.train.seq_len;
        engine.write_rope(engine.network.exchange.rope, seq_len)?;
        Ok(engine)
    }

    /// Launches every kernel of a step by itself instead of replaying a captured graph.
    pub fn eager(mut self) -> Self {
        self.graphs = None;
        self
    }

    pub fn network(&self) -> &Network {
        &self.network
    }

    pub(crate) fn device(&self) -> &Device {
        &self.device
    }

    /// Graphs captured so far; `None` for an eager engine.
    pub fn captured(&self) -> Option<usize> {
        self.graphs.as_ref().map(HashMap::len)
    }

    fn initialise(&mut self) -> Result<()> {
        let seed = self.network.config.initial.seed;
        let parameters = self.network.layout.parameters.clone();
        let tensors: Vec<NamedTensor> = std::thread::scope(|scope| {
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            // Dealt round-robin: the costly matrices lie next to each other.
            let handles: Vec<_> = (0..threads.min(parameters.len()))
                .map(|thread| {
                    let mine = parameters.iter().skip(thread).step_by(threads);
                    scope.spawn(move || {
                        mine.map(|parameter| NamedTensor {
                            name: parameter.name.clone(),
                            shape: parameter.shape.clone(),
                            stored: element(parameter.stored),
                            values: initial_values(parameter, seed),
                        })
                        .collect::<Vec<_>>()
                    })
                })
                .collect();
            handles
                .into_iter()
                .flat_map(|handle| handle.join().expect("initial values are plain arithmetic"))
                .collect()
        });
        self.import(&tensors)
    }

    fn write_rope(&self, table: Tensor, seq_len: usize) -> Result<()> {
        let base = self.network.config.rope_base_at(seq_len);
        let dims = self.network.config.rope_dims as u64;
        let values = rope_table(seq_len as u64, base, dims);
        self.device
            .memory
            .write_floats(table.slice(0, values.len() as u64), &values)
    }

    /// Puts tokens and targets where the model reads them, in order with the stream's work.
    fn send_tokens(&mut self, tokens: &[u16], targets: &[u16]) -> Result<()> {
        self.feed.deliver(
            &self.device.memory,
            &self.network.exchange,
            [tokens, targets],
            self.network.config.vocab,
            &self.device.stream,
        )
    }

    /// Starts the copy of what the next step or the next scored batch will be given.
    fn announce(&mut self, tokens: &[u16], targets: &[u16]) -> Result<()> {
        let vocab = self.network.config.vocab;
        self.feed
            .announce(&self.device.memory, [tokens, targets], vocab)
    }

    pub(super) fn send_step_values(&mut self, values: &[StepValues; 3]) -> Result<()> {
        let Device { memory, stream, .. } = &self.device;
        // Copies out of the page-locked values that were started earlier must be over.
        self.device.finish()?;
        self.step_values
            .copy_from_slice(bytemuck::cast_slice(values));
        let each = self.step_values.chunks(size_of::<StepValues>() / 8);
        for (place, values) in self.network.exchange.step_values.iter().zip(each) {
            memory.send(*place, values, stream)?;
        }
        Ok(())
    }

    /// The micro-step's part of the exchange buffers.
    fn micro_batch(&self, micro_step: usize) -> Input {
        let exchange = &self.network.exchange;
        let batch = self.network.sizes.train;
        let (start, n) = ((micro_step * batch.tokens()) as u64, batch.tokens() as u64);
        Input {
            batch,
            tokens: exchange.tokens.slice(start, n),
            targets: exchange.targets.slice(start, n),
            rope: exchange.rope,
            quantizing: self.network.config.fake_quantize_steps,
            cache: None,
        }
    }

    /// Puts one step into the stream.
    fn launch_step(&self, micro_steps: usize, max_norm: f32) -> Result<()> {
        let quantizing = self.network.config.fake_quantize_steps;
        self.network.prepare(&self.device, quantizing)?;
        for micro_step in 0..micro_steps {
            let input = self.micro_batch(micro_step);
            self.network.forward_hidden(&self.device, &input)?;
            self.network
                .backward(&self.device, &input, micro_steps, micro_step > 0)?;
        }
        self.optimizer.launch(&self.device, &self.network, max_norm)
    }

    /// Forward and backward of one batch without an update: gradients and activations stay on the device.
    pub(crate) fn forward_backward(
        &mut self,
        tokens: &[u16],
        targets: &[u16],
        fake_quantize: bool,
    ) -> Result<Vec<f32>> {
        let input = Input {
            quantizing: fake_quantize,
            ..self.micro_batch(0)
        };
        ensure!(
            tokens.len() == input.batch.tokens(),
            "{} tokens, planned for {}",
            tokens.len(),
            input.batch.tokens()
        );
        self.send_tokens(tokens, targets)?;
        let values = StepValues {
            fake_quantize: u32::from(fake_quantize),
            ..bytemuck::Zeroable::zeroed()
        };
        self.send_step_values(&[values; 3])?;
        self.network.prepare(&self.device, input.quantizing)?;
        self.network.forward_hidden(&self.device, &input)?;
        self.launch_scores(&input, Logits::F32)?;
        self.network.backward(&self.device, &input, 1, false)?;
        let losses = self.network.exchange.token_losses;
        self.device
            .memory
            .read_floats(losses.slice(0, tokens.len() as u64))
    }

    /// The last step's mean loss.
    pub(crate) fn loss(&self) -> Result<f32> {
        Ok(self.device.memory.read_floats(self.network.exchange.loss)?[0])
    }

    fn launch_scores(&self, input: &Input, logits: Logits) -> Result<()> {
        let device = &self.device;
        device.kernels.head_score(
            &device.stream,
            self.network.head(device, input),
            device.at(self.network.exchange.token_losses),
            logits == Logits::Bf16,
        )?;
        Ok(())
    }

    /// Sequences of a length that one forward can take.
    pub(super) fn sequences_at_once(&self, seq_len: usize) -> usize {
        let sizes = &self.network.sizes;
        let padded = seq_len.next_multiple_of(64);
        (sizes.max_tokens / seq_len).min(sizes.max_padded_tokens / padded)
    }

    /// Writes the rotary table for evaluations at a length.
    pub(super) fn rotate_for(&mut self, seq_len: usize) -> Result<()> {
        let longest = self.network.sizes.max_seq_len;
        ensure!(
            (1..=longest).contains(&seq_len),
            "sequences of {seq_len}, the engine was built for up to {longest}"
        );
        if self.score_rope_len != seq_len {
            self.write_rope(self.network.exchange.score_rope, seq_len)?;
            self.score_rope_len = seq_len;
        }
        Ok(())
    }

    /// Casts the live weights, never fake-quantized, and sets the length of what is evaluated.
    pub(super) fn prepare_evaluation(&mut self, seq_len: usize) -> Result<()> {
        self.rotate_for(seq_len)?;
        self.send_step_values(&[bytemuck::Zeroable::zeroed(); 3])?;
        self.network.prepare(&self.device, false)
    }

    /// One forward of each part, and a loss of every target for each kind of logits.
    fn score_with<const N: usize>(
        &mut self,
        tokens: &[u16],
        targets: &[u16],
        seq_len: usize,
        kinds: [Logits; N],
    ) -> Result<[Vec<f32>; N]> {
        ensure!(
            seq_len > 0 && tokens.len() == targets.len() && tokens.len().is_multiple_of(seq_len),
            "{} tokens and {} targets in sequences of {seq_len}",
            tokens.len(),
            targets.len()
        );
        self.prepare_evaluation(seq_len)?;
        let at_once = self.sequences_at_once(seq_len) * seq_len;
        let mut losses = kinds.map(|_| Vec::with_capacity(tokens.len()));
        let mut batches = tokens
            .chunks(at_once)
            .zip(targets.chunks(at_once))
            .peekable();
        while let Some((tokens, targets)) = batches.next() {
            let input = self.send_evaluation(tokens, targets, seq_len)?;
            self.network.forward_hidden(&self.device, &input)?;
            for (index, (losses, kind)) in losses.iter_mut().zip(kinds).enumerate() {
                self.launch_scores(&input, kind)?;
                if let (0, Some((tokens, targets))) = (index, batches.peek()) {
                    self.announce(tokens, targets)?;
                }
                let scored = self.network.exchange.token_losses;
                let scored = scored.slice(0, tokens.len() as u64);
                losses.extend(self.device.memory.read_floats(scored)?);
            }
        }
        Ok(losses)
    }

    /// Sends sequences that fit into one forward.
    pub(super) fn send_evaluation(
        &mut self,
        tokens: &[u16],
        targets: &[u16],
        seq_len: usize,
    ) -> Result<Input> {
        self.send_tokens(tokens, targets)?;
        let n = tokens.len() as u64;
        let exchange = &self.network.exchange;
        Ok(Input {
            batch: Batch {
                sequences: tokens.len() / seq_len,
                seq_len,
            },
            tokens: exchange.tokens.slice(0, n),
            targets: exchange.targets.slice(0, n),
            rope: exchange.score_rope,
            quantizing: false,
            cache: None,
        })
    }

    /// Everything that is non-finite in a flat array of parameters, by name.
    fn non_finite_in(&self, flat: Tensor, start: u64, kind: &str) -> Result<Option<String>> {
        let values = self.device.memory.read_floats(flat)?;
        let Some(place) = values.iter().position(|x| !x.is_finite()) else {
            return Ok(None);
        };
        let place = start + place as u64;
        let layout = &self.network.layout;
        let owner = (0..layout.parameters.len())
            .filter(|&i| layout.offset(i) <= place)
            .max_by_key(|&i| layout.offset(i));
        Ok(owner.map(|i| format!("{kind} {}", layout.parameters[i].name)))
    }
}

impl Engine for DeviceEngine {
    fn step(&mut self, inputs: &StepInputs<'_>) -> Result<StepOutput> {
        let sizes = &self.network.sizes;
        let micro_steps = inputs.micro_steps;
        ensure!(
            (1..=sizes.micro_steps).contains(&micro_steps),
            "{micro_steps} micro-steps, planned for {}",
            sizes.micro_steps
        );
        let expected = micro_steps * sizes.train.tokens();
        ensure!(
            inputs.tokens.len() == expected && inputs.targets.len() == expected,
            "{} tokens and {} targets, {expected} expected",
            inputs.tokens.len(),
            inputs.targets.len()
        );
        let update = u32::try_from(self.updates + 1)?;
        let max_norm = inputs.rates.grad_clip_norm;
        let values = self.optimizer.step_values(
            &inputs.rates,
            update,
            inputs.fake_quantize,
            inputs.update_ema,
        );
        self.send_step_values(&values)?;
        self.send_tokens(inputs.tokens, inputs.targets)?;
        let key = (micro_steps, max_norm.to_bits());
        match &self.graphs {
            None => self.launch_step(micro_steps, max_norm)?,
            Some(graphs) => {
                if !graphs.contains_key(&key) {
                    let stream = &self.device.stream;
                    let graph = Graph::capture(stream, || self.launch_step(micro_steps, max_norm))?;
                    let exec = graph.instantiate()?;
                    self.graphs.get_or_insert_default().insert(key, exec);
                }
                if let Some(exec) = self.graphs.as_ref().and_then(|graphs| graphs.get(&key)) {
                    exec.launch(&self.device.stream)?;
                }
            }
        }
        self.updates += 1;
        let Device { memory, stream, .. } = &self.device;
        let (loss, clip) = self.outcome.split_at_mut(1);
        memory.fetch(self.network.exchange.loss, loss, stream)?;
        memory.fetch(self.network.workspace.clip, clip, stream)?;
        if let Some([tokens, targets]) = inputs.ahead {
            self.announce(tokens, targets)?;
        }
        self.device.finish()?;
        Ok(StepOutput {
            loss: self.outcome[0],
            grad_norm: self.outcome[2],
        })
    }

    fn score(
        &mut self,
        tokens: &[u16],
        targets: &[u16],
        seq_len: usize,
        logits: Logits,
    ) -> Result<Vec<f32>> {
        let [losses] = self.score_with(tokens, targets, seq_len, [logits])?;
        Ok(losses)
    }

    fn score_both(
        &mut self,
        tokens: &[u16],
        targets: &[u16],
        seq_len: usize,
    ) -> Result<[Vec<f32>; 2]> {
        self.score_with(tokens, targets, seq_len, [Logits::F32, Logits::Bf16])
    }

    fn export(&mut self, which: Weights) -> Result<Vec<NamedTensor>> {
        let layout = &self.network.layout;
        let parameters = layout.parameters.iter().enumerate();
        parameters
            .map(|(index, parameter)| {
                let place = match which {
                    Weights::Live => layout.values(index),
                    Weights::Ema => layout.average(index).ok_or_else(|| {
                        anyhow::anyhow!("ema_decay = 0: there is no moving average")
                    })?,
                    Weights::SnapshotSum => layout.snapshot_sum(index).ok_or_else(|| {
                        anyhow::anyhow!("swa_enabled = false: there are no snapshots")
                    })?,
                };
                Ok(NamedTensor {
                    name: parameter.name.clone(),
                    shape: parameter.shape.clone(),
                    stored: element(parameter.stored),
                    values: parameter.unpadded(self.device.memory.read_floats(place)?),
                })
            })
            .collect()
    }

    /// Before the first update the moving average takes the values over, too: it starts at the initial weights.
    fn import(&mut self, tensors: &[NamedTensor]) -> Result<()> {
        let layout = &self.network.layout;
        let mut places = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            let index = layout
                .find(&tensor.name)
                .ok_or_else(|| anyhow::anyhow!("the model has no parameter {}", tensor.name))?;
            let shape = &layout.parameters[index].shape;
            let elements: usize = shape.iter().product();
            ensure!(
                *shape == tensor.shape && elements == tensor.values.len(),
                "{} has shape {shape:?}, given are {:?} with {} values",
                tensor.name,
                tensor.shape,
                tensor.values.len()
            );
            places.push(index);
        }
        for (tensor, &index) in tensors.iter().zip(&places) {
            let memory = &self.device.memory;
            let values = layout.parameters[index].padded(&tensor.values);
            memory.write_floats(layout.values(index), &values)?;
            if let (0, Some(average)) = (self.updates, layout.average(index)) {
                let stored = memory.read_floats(layout.values(index))?;
                memory.write_floats(average, &stored)?;
            }
        }
        Ok(())
    }

    fn collect_snapshot(&mut self, first: bool) -> Result<()> {
        let layout = &self.network.layout;
        let Some((sum, table_sum)) = layout.snapshots else {
            anyhow::bail!("swa_enabled = false: there is no place for snapshots");
        };
        let tables = table_sum.zip(layout.bf16_tables);
        let masters = layout.masters;
        if first {
            for tensor in std::iter::once(sum).chain(table_sum) {
                let zeros = vec![0; tensor.bytes() as usize];
                self.device.memory.write_bytes(tensor, &zeros)?;
            }
        }
        let values = StepValues {
            collect_average: 1,
            ..bytemuck::Zeroable::zeroed()
        };
        self.send_step_values(&[values; 3])?;
        let Device {
            kernels, stream, ..
        } = &self.device;
        let at = |tensor| self.device.at(tensor);
        let step = at(self.network.exchange.step_values[0]);
        let pairs = [
            (Storage::F32, Some((sum, masters))),
            (Storage::Bf16, tables),
        ];
        for (storage, pair) in pairs {
            if let Some((sum, values)) = pair {
                let n = values.elements;
                kernels.collect(stream, storage, at(sum), at(values), n, step)?;
            }
        }
        Ok(())
    }

    fn save_state(&mut self) -> Result<Vec<StateTensor>> {
        let mut state = vec![StateTensor {
            name: "counter/updates".into(),
            element: Element::U64,
            shape: vec![1],
            bytes: self.updates.to_le_bytes().to_vec(),
        }];
        for (name, place) in self.network.layout.state() {
            state.push(StateTensor {
                name: name.into(),
                element: state_element(place.element),
                shape: vec![place.elements as usize],
                bytes: self.device.memory.read_bytes(place)?,
            });
        }
        Ok(state)
    }

    fn load_state(&mut self, state: &[StateTensor]) -> Result<()> {
        let find = |name: &str| {
            let found = state.iter().find(|tensor| tensor.name == name);
            found.ok_or_else(|| anyhow::anyhow!("the state lacks {name}"))
        };
        let expected = self.network.layout.state();
        ensure!(
            state.len() == expected.len() + 1,
            "the state has {} tensors, this model has {}",
            state.len(),
            expected.len() + 1
        );
        let counter = find("counter/updates")?;
        let updates = <[u8; 8]>::try_from(counter.bytes.as_slice())
            .map_err(|_| anyhow::anyhow!("counter/updates has {} bytes", counter.bytes.len()))?;
        for (name, place) in &expected {
            let tensor = find(name)?;
            ensure!(
                tensor.element == state_element(place.element)
                    && tensor.bytes.len() as u64 == place.bytes(),
                "{name} has {} bytes of {:?}, this model's has {} of {:?}",
                tensor.bytes.len(),
                tensor.element,
                place.bytes(),
                state_element(place.element)
            );
        }
        for (name, place) in expected {
            self.device.memory.write_bytes(place, &find(name)?.bytes)?;
        }
        self.updates = u64::from_le_bytes(updates);
        Ok(())
    }

    fn calibrates(&self) -> bool {
        self.network.calibration.is_some()
    }

    fn hessians(&mut self, tokens: &[u16], seq_len: usize) -> Result<Hessians> {
        self.collect_hessians(tokens, seq_len)
    }

    fn generate(
        &mut self,
        sequences: usize,
        seq_len: usize,
        temperature: f32,
        seed: u64,
    ) -> Result<Vec<u16>> {
        self.write_text(sequences, seq_len, temperature, seed)
    }

    fn clip_search(&mut self, weights: &[f32], cols: usize, bits: u8) -> Result<Found> {
        self.search_clip(weights, cols, bits)
    }

    fn adapt(&mut self, inputs: &AdaptInputs<'_>) -> Result<StepOutput> {
        self.adapt_step(inputs)
    }

    fn find_non_finite(&mut self) -> Result<Option<String>> {
        let layout = &self.network.layout;
        let mut places = vec![
            (layout.gradients, 0, "gradient"),
            (layout.masters, 0, "parameter"),
            (layout.momentum, 0, "muon momentum"),
            (
                layout.scalar_moments[0],
                layout.scalars.start,
                "first moment",
            ),
            (
                layout.scalar_moments[1],
                layout.scalars.start,
                "second moment",
            ),
            (layout.table_moments[0], layout.tables.start, "first moment"),
            (
                layout.table_moments[1],
                layout.tables.start,
                "second moment",
            ),
        ];
        places.extend(
            layout
                .bf16_tables
                .map(|t| (t, layout.tables.start, "parameter")),
        );
        places.extend(layout.ema.map(|t| (t, 0, "moving average")));
        for (flat, start, kind) in places {
            if let Some(name) = self.non_finite_in(flat, start, kind)? {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }
}

impl Drop for DeviceEngine {
    fn drop(&mut self) {
        // Graphs and copies in flight use what is about to be freed. An error has been reported by whoever met it first.
        let _ = finish();
    }
}

fn element(stored: StorageType) -> Element {
    match stored {
        StorageType::F32 => Element::F32,
        StorageType::Bf16 => Element::Bf16,
    }
}

fn state_element(element: ArenaElement) -> Element {
    match element {
        ArenaElement::U8 => Element::U8,
        ArenaElement::Bf16 => Element::Bf16,
        ArenaElement::F32 => Element::F32,
        ArenaElement::I32 => Element::I32,
        ArenaElement::U16 => unreachable!("no state is kept in u16"),
    }
}
