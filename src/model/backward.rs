//! The backward pass: logits to the gradient of every parameter.
//!
//! Gradients are added to with `accumulate` (a later micro-step) and overwritten without, so they are never cleared. Where a
//! layer is replayed, its second visit (the earlier pass, backwards) adds to what the first left. The sums' order is fixed.

use anyhow::Result;

use super::buffers::{PassActivations, Projected, Unscaled};
use super::config::{Before, Pass, ValueResidual};
use super::device::Device;
use super::forward::Input;
use super::network::Network;
use crate::arena::Tensor;
use crate::kernels::attention_backward::{AttentionGradient, QuerySum, QuerySums, ValueGradient};
use crate::kernels::attention_output::{AttentionOutputGradients, attention_output_partials};
use crate::kernels::embedding::{Segments, embedding_partials};
use crate::kernels::flat_grid;
use crate::kernels::gemm::{self, Orientation, SplitReduce};
use crate::kernels::head_loss::head_partials;
use crate::kernels::norm_mix::{MixGradients, ResidualDot, row_partials};
use crate::kernels::qkv::{FirstRole, QkvOperands, ValueGradients, ValueMix};
use crate::kernels::{DevPtr, MOST_VALUE_EMBEDDINGS, Matrix};

/// One parameter's part of a weight gradient: rows of the product, and the scale folded into the weight.
struct Piece {
    row_begin: usize,
    rows: usize,
    name: String,
    /// Name of the scale, and the f32 weight without it.
    scale: Option<(String, Tensor)>,
    accumulate: bool,
}

impl Network {
    /// Loss and all gradients of a batch that [`Network::forward_hidden`] has just seen, for the mean over `micro_steps` batches.
    pub fn backward(
        &self,
        device: &Device,
        input: &Input,
        micro_steps: usize,
        accumulate: bool,
    ) -> Result<()> {
        let config = &self.config;
        let w = &self.workspace;
        self.sort_segments(device, input)?;
        self.head_backward(device, input, micro_steps, accumulate)?;
        let mut visited = vec![accumulate; config.layers];
        let mut current = 0;
        for (index, pass) in config.passes.iter().enumerate().rev() {
            let (g, dx) = (w.dx[current], w.dx[1 - current]);
            let add = std::mem::replace(&mut visited[pass.layer], true);
            self.pass_backward(device, input, index, pass, [g, dx], [add, accumulate])?;
            current = 1 - current;
        }
        self.embedding_backward(device, input, w.dx[current], accumulate)
    }

    /// From the head's hidden rows to the gradient of the last residual stream, in `workspace.dx[0]`.
    fn head_backward(
        &self,
        device: &Device,
        input: &Input,
        micro_steps: usize,
        accumulate: bool,
    ) -> Result<()> {
        let (kernels, stream) = (&device.kernels, &device.stream);
        let (config, a, w) = (&self.config, &self.activations, &self.workspace);
        let (n, d, vocab) = (input.batch.tokens(), config.dim, config.vocab);
        let share = 1.0 / (n * micro_steps) as f32;
        let partial = device.at(w.partial);
        let operands = self.head(device, input);
        kernels.head_loss(stream, operands, None, partial, share)?;
        let count = head_partials(n as u64, vocab as u64);
        let loss = device.at(self.exchange.loss);
        kernels.head_loss_sum(stream, partial, count, loss, share, accumulate)?;

        let dlogits = operands.dlogits;
        let head = Piece {
            row_begin: 0,
            rows: vocab,
            name: "tok_emb.weight".into(),
            scale: None,
            accumulate,
        };
        self.weight_gradient(device, dlogits, operands.hidden, &[head])?;
        let table = device.matrix(self.table("tok_emb.weight"), vocab, d);
        let inner = device.matrix(w.d_inner, n, d);
        kernels.gemm(stream, Orientation::Nn, dlogits, table, inner)?;
        kernels.norm_backward(
            stream,
            None,
            device.at(a.last()),
            device.at(w.d_inner),
            device.at(w.dx[0]),
            true,
            n as u64,
            d as u64,
        )?;
        Ok(())
    }

    /// From the gradient `g` of a pass's output to `dx`, that of its input. `add_layer`: the layer's parameters have a gradient
    /// already; `add_pass`: so have those of the pass (skip weight, recycle modulation, value scales).
    fn pass_backward(
        &self,
        device: &Device,
        input: &Input,
        index: usize,
        pass: &Pass,
        [g, dx]: [Tensor; 2],
        [add_layer, add_pass]: [bool; 2],
    ) -> Result<()> {
        let (kernels, stream) = (&device.kernels, &device.stream);
        let (config, w) = (&self.config, &self.workspace);
        let (n, d) = (input.batch.tokens(), config.dim);
        let a = &self.activations.passes[index];
        self.mlp_backward(device, input, a, pass, g, add_layer)?;
        self.attention_part_backward(device, input, index, pass, add_layer)?;

        let mix = self.mix(device, input, index, pass);
        let partial = device.at(w.partial);
        // The input is an encoder's output that a skip has used too: its gradient is ready, since decoders run backwards first.
        let extra = index.checked_sub(1).and_then(|before| w.dskip[before]);
        let dskip = match pass.before {
            Before::Skip { from, .. } => w.dskip[from],
            _ => None,
        };
        let first = index + 1 == config.passes.len();
        let gradients = MixGradients {
            sum: device.at(w.d_inner),
            residual: ResidualDot {
                dots: device.at(w.residual_dots),
                delta: device.at(w.delta),
                shape: self.attention_shape(input.batch),
            },
            extra: extra.map(|t| device.at(t)),
            dx: device.at(dx),
            dx0: device.at(w.dx0),
            dx0_accumulate: !first,
            dskip: dskip.map(|t| device.at(t)),
            partial,
        };
        kernels.mix_norm_backward(stream, &mix, &gradients)?;
        let (count, sums) = (
            u64::from(row_partials(n as u64, d as u64)),
            mix.entry.sums(),
        );
        let d = d as u64;
        let finish = |vector: u64, columns: u64, out: DevPtr, add: bool| {
            let stride = sums * d;
            kernels.column_sum(
                stream,
                partial,
                count,
                stride,
                vector * d,
                columns,
                out,
                1.0,
                add,
            )
        };
        let gradient = |name: &str| device.at(self.layout.named_gradient(name));
        let resid_mix = gradient(&Self::block_name(pass.layer, "resid_mix"));
        finish(0, 2 * d, resid_mix, add_layer)?;
        match pass.before {
            Before::Nothing => {}
            Before::Skip { row, .. } => {
                let out = gradient("skip_weights").offset(4 * d * row as u64);
                finish(2, d, out, add_pass)?;
            }
            Before::Recycle { index } => {
                finish(
                    2,
                    d,
                    gradient(&format!("recycle_mods.{index}.scale")),
                    add_pass,
                )?;
                finish(
                    3,
                    d,
                    gradient(&format!("recycle_mods.{index}.bias")),
                    add_pass,
                )?;
            }
        }
        Ok(())
    }

    /// From the gradient `g` of a pass's output to that of the stream between attention and MLP, `workspace.dx1`.
    fn mlp_backward(
        &self,
        device: &Device,
        input: &Input,
        a: &PassActivations,
        pass: &Pass,
        g: Tensor,
        accumulate: bool,
    ) -> Result<()> {
        let (kernels, stream) = (&device.kernels, &device.stream);
        let (config, w, layer) = (&self.config, &self.workspace, pass.layer);
        let (n, d, hidden) = (input.batch.tokens(), config.dim, config.hidden);
        let dout = device.matrix(g, n, d);
        let dpre = device.matrix(w.dpre, n, hidden);
        let down = device.matrix(self.layer(self.weights.down, layer), d, hidden);
        let pre = device.matrix(a.pre, n, hidden);
        let norm = self.mlp_norm(device, a, layer);
        let dots = device.at(w.dots);
        kernels.gemm_dleaky2(stream, dout, down, dpre, pre, Some(norm), Some(dots))?;
        let weight = self.unscaled_weight(input, layer, "mlp.proj.weight", |u| u.down);
        let piece = Piece {
            row_begin: 0,
            rows: d,
            name: Self::block_name(layer, "mlp.proj.weight"),
            scale: Some((Self::block_name(layer, "mlp_scale"), weight)),
            accumulate,
        };
        self.weight_gradient(
            device,
            dout,
            device.matrix(a.activated, n, hidden),
            &[piece],
        )?;
        let piece = Piece {
            row_begin: 0,
            rows: hidden,
            name: Self::block_name(layer, "mlp.fc.weight"),
            scale: None,
            accumulate,
        };
        let x1 = device.matrix(a.x1, n, d);
        self.weight_gradient(device, dpre, x1, &[piece])?;
        let up = device.matrix(self.layer(self.weights.up, layer), hidden, d);
        let dx1 = device.matrix(w.dx1, n, d);
        let sums = Some(device.at(w.residual_dots));
        kernels.gemm_add_norm(stream, dpre, up, dx1, dout, x1.pointer, norm, dots, sums)?;
        Ok(())
    }

    /// From `workspace.dx1` through output projection, gate, XSA, attention and QKV to the gradient of its normalised input,
    /// times the norm's factor; its sum with `dx1` in `workspace.d_inner`.
    fn attention_part_backward(
        &self,
        device: &Device,
        input: &Input,
        index: usize,
        pass: &Pass,
        accumulate: bool,
    ) -> Result<()> {
        let (kernels, stream) = (&device.kernels, &device.stream);
        let (config, w, layer) = (&self.config, &self.workspace, pass.layer);
        let (n, d) = (input.batch.tokens(), config.dim);
        let a = &self.activations.passes[index];
        let shape = self.attention_shape(input.batch);
        let partial = device.at(w.partial);

        let dx1 = device.matrix(w.dx1, n, d);
        let weight = self.unscaled_weight(input, layer, "attn.proj.weight", |u| u.attn_out);
        let piece = Piece {
            row_begin: 0,
            rows: d,
            name: Self::block_name(layer, "attn.proj.weight"),
            scale: Some((Self::block_name(layer, "attn_scale"), weight)),
            accumulate,
        };
        self.weight_gradient(device, dx1, device.matrix(a.z, n, d), &[piece])?;

        let output = self.attention_output(device, input, index, pass);
        let (xsa, gated) = (output.along.is_some(), output.gate.is_some());
        let gradients = AttentionOutputGradients {
            dy: device.at(w.dy),
            delta: device.at(w.delta),
            dv_extra: xsa.then(|| device.at(w.dv_extra)),
            dqkv: gated.then(|| device.at(w.dqkv)),
            scale: Some(self.attention_norm(device, a, layer)),
            dqkv_stride: config.projected_columns() as u64,
            partial: gated.then_some(partial),
        };
        let out_weight = device.matrix(self.layer(self.weights.attn_out, layer), d, d);
        let inner = device.at(w.d_inner);
        kernels.attention_output_gradient(stream, [dx1, out_weight], inner, &output, &gradients)?;
        if gated {
            let bias = Self::block_name(layer, "attn.attn_gate.bias");
            let (count, heads) = (attention_output_partials(shape, xsa), shape.heads());
            let out = device.at(self.layout.named_gradient(&bias));
            kernels.gate_bias_sum(stream, partial, count, heads, out, accumulate)?;
        }
        let qkv = self.qkv(device, input, index, pass);
        let role = self.first_role(index);
        let dv = w.dv.map(|t| device.at(t));
        let values = match dv {
            Some(dv) if role != FirstRole::None => ValueGradient::Kept { dv },
            Some(dv) if pass.value_embedding.is_some() => ValueGradient::ProjectedAndKept { dv },
            _ => ValueGradient::Projected,
        };
        let gain_sums = device.at(w.gain_sums);
        let gradient = AttentionGradient {
            qkv,
            dout: device.at(w.dy),
            lse: device.at(a.lse),
            delta: device.at(w.delta),
            dv_extra: xsa.then(|| device.at(w.dv_extra)),
            dqkv: device.at(w.dqkv),
            stride: config.projected_columns() as u64,
            scale: Some(self.attention_norm(device, a, layer)),
            values,
            gain_sums,
            scratch: QuerySums {
                sums: device.at(w.query_sums),
                turns: device.at(w.query_turns),
            },
            order: QuerySum::Ordered,
        };
        kernels.attention_backward(stream, &gradient)?;
        let gain = Self::block_name(layer, "attn.q_gain");
        let out = device.at(self.layout.named_gradient(&gain));
        kernels.q_gain_gradient(stream, shape, gain_sums, out, accumulate)?;

        // With a gate later layers mix in the first layer's V without its value embedding, which then has the gradient of the
        // layer's own attention alone.
        let own = role == FirstRole::Take && config.value_residual == ValueResidual::Gate;
        if let (Some(j), true) = (pass.value_embedding, own) {
            self.sum_values_by_token(device, input, j)?;
        }
        if let ValueGradient::Kept { dv } = values {
            self.value_backward(device, a, layer, (&qkv, dv, role), accumulate)?;
        }
        if let (Some(j), false) = (pass.value_embedding, own) {
            self.sum_values_by_token(device, input, j)?;
        }
        self.qkv_projection_backward(device, input, a, layer, accumulate)
    }

    /// From the gradient of attention's V to those of the projection's V, of the first pass's V and of the mix.
    fn value_backward(
        &self,
        device: &Device,
        a: &PassActivations,
        layer: usize,
        (qkv, dv, role): (&QkvOperands, DevPtr, FirstRole),
        accumulate: bool,
    ) -> Result<()> {
        let (kernels, stream, w) = (&device.kernels, &device.stream, &self.workspace);
        let partial = device.at(w.partial);
        let gradients = ValueGradients {
            dv,
            dqkv: device.at(w.dqkv),
            stride: self.config.projected_columns() as u64,
            scale: Some(self.attention_norm(device, a, layer)),
            dv_first: w.dv_first.map(|t| device.at(t)),
            role,
            partial,
        };
        kernels.value_backward(stream, qkv, &gradients)?;
        let name = match qkv.mix {
            ValueMix::None => return Ok(()),
            ValueMix::Gate { .. } => "attn.vrl_gate",
            ValueMix::Lambda { .. } => "attn.vr_lambda",
        };
        // NOTE: a replayed first layer mixes in its later pass alone; that one comes first here, and the other leaves the factors'
        // gradient as it is.
        let out = device.at(self.layout.named_gradient(&Self::block_name(layer, name)));
        kernels.value_backward_finish(stream, qkv.shape, partial, qkv.mix, out, accumulate)?;
        Ok(())
    }

    /// Weight gradients of the QKV product, and the gradient of its normalised input, times the norm's factor: its sum with `workspace.dx1`
    /// in `workspace.d_inner`.
    fn qkv_projection_backward(
        &self,
        device: &Device,
        input: &Input,
        a: &PassActivations,
        layer: usize,
        accumulate: bool,
    ) -> Result<()> {
        let (config, w) = (&self.config, &self.workspace);
        let (n, d, kv) = (input.batch.tokens(), config.dim, config.kv_dim());
        let columns = config.projected_columns();
        let dqkv = device.matrix(w.dqkv, n, columns);
        let mut pieces = Vec::with_capacity(4);
        let mut piece = |row_begin, rows, name: &str| {
            pieces.push(Piece {
                row_begin,
                rows,
                name: Self::block_name(layer, name),
                scale: None,
                accumulate,
            });
        };
        piece(0, d, "attn.c_q.weight");
        piece(d, kv, "attn.c_k.weight");
        piece(d + kv, kv, "attn.c_v.weight");
        if config.gated_attention {
            piece(d + 2 * kv, config.heads, "attn.attn_gate.weight");
        }
        self.weight_gradient(device, dqkv, device.matrix(a.x_in, n, d), &pieces)?;
        let weight = device.matrix(self.layer(self.weights.qkv, layer), columns, d);
        let sum = device.matrix(w.d_inner, n, d);
        let dx1 = device.matrix(w.dx1, n, d);
        let (kernels, stream) = (&device.kernels, &device.stream);
        kernels.gemm_add(stream, Orientation::Nn, dqkv, weight, sum, dx1, 1.0, 1.0)?;
        Ok(())
    }

    /// What a pass does with the gradient of the first layer's V: passes mix backwards, the last one first.
    fn first_role(&self, index: usize) -> FirstRole {
        let passes = self.config.passes.len();
        match index {
            _ if !self.config.passes_on_values() => FirstRole::None,
            0 => FirstRole::Take,
            _ if index + 1 == passes => FirstRole::Write,
            _ => FirstRole::Add,
        }
    }

    /// V's gradient of a value-embedding layer, in `workspace.dv`, summed by token.
    fn sum_values_by_token(&self, device: &Device, input: &Input, j: usize) -> Result<()> {
        let (config, w) = (&self.config, &self.workspace);
        let kv = config.kv_dim();
        let planned = "planned with the value embedding";
        let (tables, dv) = (w.ve_tables.expect(planned), w.dv.expect(planned));
        let each = (config.vocab * kv) as u64;
        device.kernels.segment_sum_f32(
            &device.stream,
            &self.token_segments(device, input),
            device.at(dv),
            kv as u64,
            kv as u64,
            device.at(tables.slice(each * j as u64, each)),
            false,
        )?;
        Ok(())
    }

    /// The tokens' rows sorted by id; sorted by [`Network::sort_segments`].
    fn token_segments(&self, device: &Device, input: &Input) -> Segments {
        segments(device, &self.workspace.token_segments, input)
    }

    /// Sorts the batch's rows by token and by bigram bucket.
    fn sort_segments(&self, device: &Device, input: &Input) -> Result<()> {
        let (kernels, stream) = (&device.kernels, &device.stream);
        let tokens = self.token_segments(device, input);
        kernels.segment_sort(stream, device.at(input.tokens), &tokens)?;
        if let (Some(index), Some(s)) = (
            self.activations.bigram_index,
            self.workspace.bigram_segments,
        ) {
            let s = segments(device, &s, input);
            kernels.segment_sort(stream, device.at(index), &s)?;
        }
        Ok(())
    }

    /// From the gradient of the first pass's input (and of x0) to the tables.
    fn embedding_backward(
        &self,
        device: &Device,
        input: &Input,
        dx: Tensor,
        accumulate: bool,
    ) -> Result<()> {
        let (kernels, stream) = (&device.kernels, &device.stream);
        let (config, w) = (&self.config, &self.workspace);
        let (n, d) = (input.batch.tokens() as u64, config.dim as u64);
        let partial = device.at(w.partial);
        let de = device.at(w.d_inner);
        let embedding = self.embedding(device, input);
        let dx0 = Some(device.at(w.dx0));
        kernels.embedding_backward(stream, &embedding, device.at(dx), dx0, de, partial)?;
        let count = u64::from(embedding_partials(n, d));
        let gate = device.at(self.layout.named_gradient("smear.gate"));
        kernels.column_sum(stream, partial, count, d, 0, d, gate, 1.0, accumulate)?;

        // The head has left its part in the same gradient.
        let table = device.at(self.layout.named_gradient("tok_emb.weight"));
        let tokens = self.token_segments(device, input);
        kernels.segment_sum_f32(stream, &tokens, de, d, d, table, true)?;
        if let (Some(projected), Some(s)) = (self.weights.bigram, w.bigram_segments) {
            let s = segments(device, &s, input);
            let dtable = w.dtable.expect("planned with the bigram embedding");
            kernels.segment_sum_bf16(stream, &s, de, d, d, device.at(dtable))?;
            let quantized = projected.for_backward(input.quantizing);
            self.projected_backward(device, "bigram", &quantized, w.row_sums[0], accumulate)?;
        }
        if let Some(projected) = self.weights.value_embedding {
            self.combine_values(device, &projected, accumulate)?;
            let quantized = projected.for_backward(input.quantizing);
            self.projected_backward(device, "ve_shared", &quantized, w.row_sums[1], accumulate)?;
        }
        Ok(())
    }

    /// The layers' V gradients by token, weighted by the layers' scales, in `workspace.dtable`; gradients of the scales.
    fn combine_values(
        &self,
        device: &Device,
        projected: &Projected,
        accumulate: bool,
    ) -> Result<()> {
        let (kernels, stream) = (&device.kernels, &device.stream);
        let w = &self.workspace;
        let layers = self
            .config
            .value_embedding
            .as_ref()
            .map_or(0, |v| v.layers.len());
        let name = |j: usize| format!("ve_layer_scales.{j}");
        let scales: Vec<DevPtr> = (0..layers)
            .map(|j| device.at(self.layout.named(&name(j))))
            .collect();
        let n = (projected.rows * projected.width) as u64;
        let partial = device.at(w.partial);
        kernels.value_embedding_combine(
            stream,
            device.at(w.ve_tables.expect("planned with the value embedding")),
            &scales,
            device.at(projected.table),
            device.at(w.dtable.expect("planned with the value embedding")),
            partial,
            n,
        )?;
        let count = u64::from(flat_grid(n));
        for j in 0..layers {
            let out = device.at(self.layout.named_gradient(&name(j)));
            kernels.column_sum(
                stream,
                partial,
                count,
                MOST_VALUE_EMBEDDINGS,
                j as u64,
                1,
                out,
                1.0,
                accumulate,
            )?;
        }
        Ok(())
    }

    /// From the gradient of a projected table, bf16 in `workspace.dtable`, to its table, projection and scale. `row_sums` keeps the
    /// rows' shares of the scale's gradient from micro-step to micro-step.
    fn projected_backward(
        &self,
        device: &Device,
        prefix: &str,
        projected: &Projected,
        row_sums: Tensor,
        accumulate: bool,
    ) -> Result<()> {
        let (kernels, stream) = (&device.kernels, &device.stream);
        let w = &self.workspace;
        let Projected {
            proj,
            unscaled,
            rows,
            dim,
            width,
            ..
        } = *projected;
        let dtable = w.dtable.expect("planned with the projected tables");
        let (embed, scale) = (format!("{prefix}.embed.weight"), format!("{prefix}.scale"));
        let gradient = |name: &str| device.at(self.layout.named_gradient(name));
        let mut reduce = SplitReduce {
            partial: device.at(w.split),
            splits: 1,
            partial_rows: rows as u64,
            row_begin: 0,
            rows: rows as u64,
            columns: dim as u64,
            scale: None,
            one_scale: true,
            weight: None,
            grad: gradient(&embed),
            scale_grad: None,
            accumulate,
        };
        let summed_rows;
        if let Some(proj) = proj {
            let dtable = device.matrix(dtable, rows, width);
            let embed_rows = device.matrix(self.table(&embed), rows, dim);
            let proj_rows = device.matrix(proj, width, dim);
            kernels.gemm_f32(
                stream,
                Orientation::Nn,
                dtable,
                proj_rows,
                reduce.partial,
                gemm::Cut::even(width as u64, 1),
            )?;
            kernels.split_reduce(stream, reduce)?;
            let name = format!("{prefix}.proj.weight");
            let cut = gemm::Cut::of(width as u64, dim as u64, rows as u64, 1);
            kernels.gemm_f32(
                stream,
                Orientation::Tn,
                dtable,
                embed_rows,
                reduce.partial,
                cut,
            )?;
            reduce = SplitReduce {
                splits: cut.parts,
                partial_rows: width as u64,
                rows: width as u64,
                weight: Some(device.at(unscaled.unwrap_or_else(|| self.layout.named(&name)))),
                grad: gradient(&name),
                ..reduce
            };
            summed_rows = width;
        } else {
            // The table's gradient, widened, takes the place of a product's result.
            let n = (rows * dim) as u64;
            let storage = crate::kernels::adam::Storage::Bf16;
            kernels.cast(stream, storage, device.at(dtable), reduce.partial, n)?;
            reduce.weight = Some(device.at(self.f32_table(device, &embed)?));
            summed_rows = rows;
        }
        let row_sums = device.at(row_sums);
        kernels.split_reduce(
            stream,
            SplitReduce {
                scale: Some(device.at(self.layout.named(&scale))),
                scale_grad: Some(row_sums),
                ..reduce
            },
        )?;
        // `row_sums` was overwritten or added to, as the gradients are; so its sum is the whole gradient.
        let count = summed_rows as u64;
        kernels.column_sum(
            stream,
            row_sums,
            count,
            1,
            0,
            1,
            gradient(&scale),
            1.0,
            false,
        )?;
        Ok(())
    }

    /// A layer's output projection as the forward used it, before its scale, f32.
    fn unscaled_weight(
        &self,
        input: &Input,
        layer: usize,
        name: &str,
        pick: impl Fn(Unscaled) -> Tensor,
    ) -> Tensor {
        match self.weights.unscaled.filter(|_| input.quantizing) {
            Some(unscaled) => self.layer(pick(unscaled), layer),
            None => self.layout.named(&Self::block_name(layer, name)),
        }
    }

    /// `dyᵀ x` over all tokens, dealt out to parameters, with the gradients of their scales.
    fn weight_gradient(
        &self,
        device: &Device,
        dy: Matrix,
        x: Matrix,
        pieces: &[Piece],
    ) -> Result<()> {
        let (kernels, stream) = (&device.kernels, &device.stream);
        let split = device.at(self.workspace.split);
        let cut = gemm::Cut::of(dy.columns, x.columns, dy.rows, 1);
        kernels.gemm_f32(stream, Orientation::Tn, dy, x, split, cut)?;
        for piece in pieces {
            let scale = piece.scale.as_ref();
            let named = |name: &str| device.at(self.layout.named(name));
            let gradient = |name: &str| device.at(self.layout.named_gradient(name));
            kernels.split_reduce(
                stream,
                SplitReduce {
                    partial: split,
                    splits: cut.parts,
                    partial_rows: dy.columns,
                    row_begin: piece.row_begin as u64,
                    rows: piece.rows as u64,
                    columns: x.columns,
                    scale: scale.map(|(name, _)| named(name)),
                    one_scale: false,
                    weight: scale.map(|(_, weight)| device.at(*weight)),
                    grad: gradient(&piece.name),
                    scale_grad: scale.map(|(name, _)| gradient(name)),
                    accumulate: piece.accumulate,
                },
            )?;
        }
        Ok(())
    }
}

fn segments(device: &Device, s: &super::buffers::Segments, input: &Input) -> Segments {
    Segments {
        rows: input.batch.tokens() as u64,
        buckets: s.buckets as u64,
        counts: device.at(s.counts),
        starts: device.at(s.starts),
        order: device.at(s.order),
    }
}
