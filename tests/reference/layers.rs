//! Single layers, forward and backward. Tensors are row-major slices; `n` counts tokens (batch times sequence length).

/// x [n, k], w [m, k] → x wᵀ [n, m]: a linear layer.
pub fn matmul_nt(x: &[f64], w: &[f64], k: usize) -> Vec<f64> {
    let m = w.len() / k;
    let mut y = Vec::with_capacity(x.len() / k * m);
    for row in x.chunks_exact(k) {
        y.extend(w.chunks_exact(k).map(|weights| dot(row, weights)));
    }
    y
}

/// dy [n, m], w [m, k] → dy w [n, k]: the gradient of a linear layer's input.
pub fn matmul_nn(dy: &[f64], w: &[f64], k: usize) -> Vec<f64> {
    let m = w.len() / k;
    let mut dx = vec![0.0; dy.len() / m * k];
    for (out, row) in dx.chunks_exact_mut(k).zip(dy.chunks_exact(m)) {
        for (weights, &scale) in w.chunks_exact(k).zip(row) {
            add_scaled(out, weights, scale);
        }
    }
    dx
}

/// dy [n, m], x [n, k] → dyᵀ x [m, k]: the gradient of a linear layer's weight.
pub fn matmul_tn(dy: &[f64], x: &[f64], m: usize, k: usize) -> Vec<f64> {
    let mut dw = vec![0.0; m * k];
    for (grad, row) in dy.chunks_exact(m).zip(x.chunks_exact(k)) {
        for (out, &scale) in dw.chunks_exact_mut(k).zip(grad) {
            add_scaled(out, row, scale);
        }
    }
    dw
}

/// Four partial sums: faster than one chain of dependent additions.
pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    let mut sums = [0.0; 4];
    let (a4, a_rest) = a.as_chunks::<4>();
    let (b4, b_rest) = b.as_chunks::<4>();
    for (x, y) in a4.iter().zip(b4) {
        for lane in 0..4 {
            sums[lane] += x[lane] * y[lane];
        }
    }
    let rest: f64 = a_rest.iter().zip(b_rest).map(|(x, y)| x * y).sum();
    sums.iter().sum::<f64>() + rest
}

/// out += scale * x
pub fn add_scaled(out: &mut [f64], x: &[f64], scale: f64) {
    assert_eq!(out.len(), x.len());
    for (o, &v) in out.iter_mut().zip(x) {
        *o += scale * v;
    }
}

pub fn add(a: &[f64], b: &[f64]) -> Vec<f64> {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(x, y)| x + y).collect()
}

pub fn scaled(x: &[f64], scale: f64) -> Vec<f64> {
    x.iter().map(|v| v * scale).collect()
}

/// x [n, d] ⊙ vector [d]
pub fn times_columns(x: &[f64], vector: &[f64]) -> Vec<f64> {
    let d = vector.len();
    x.iter()
        .enumerate()
        .map(|(i, v)| v * vector[i % d])
        .collect()
}

/// Σ over rows of a ⊙ b: the gradient of a per-channel scale.
pub fn column_sums(a: &[f64], b: &[f64], d: usize) -> Vec<f64> {
    assert_eq!(a.len(), b.len());
    let mut sums = vec![0.0; d];
    for (i, (x, y)) in a.iter().zip(b).enumerate() {
        sums[i % d] += x * y;
    }
    sums
}

pub fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// y = x * r with r = (mean(x²) + eps)^(-1/2) per group of `width`. Returns y and r.
pub fn rms_norm(x: &[f64], width: usize, eps: f64) -> (Vec<f64>, Vec<f64>) {
    let mut y = Vec::with_capacity(x.len());
    let mut rs = Vec::with_capacity(x.len() / width);
    for group in x.chunks_exact(width) {
        let r = (dot(group, group) / width as f64 + eps).sqrt().recip();
        y.extend(group.iter().map(|v| v * r));
        rs.push(r);
    }
    (y, rs)
}

/// dx = r * (dy - y * mean(dy ⊙ y)), from the outputs of [`rms_norm`].
pub fn rms_norm_backward(dy: &[f64], y: &[f64], rs: &[f64]) -> Vec<f64> {
    let width = y.len() / rs.len();
    let mut dx = Vec::with_capacity(y.len());
    for ((dy, y), r) in dy.chunks_exact(width).zip(y.chunks_exact(width)).zip(rs) {
        let mean = dot(dy, y) / width as f64;
        dx.extend(dy.iter().zip(y).map(|(g, v)| r * (g - v * mean)));
    }
    dx
}

/// Rotates the first `dims` of every head: pairs (i, i + dims/2), angle position * base^(-2i/dims).
///
/// x [n, heads * head_dim]; positions count within each sequence. `direction` is 1 forward, -1 backward (the transpose).
pub fn rotate(
    x: &[f64],
    shape: &AttentionShape,
    heads: usize,
    dims: usize,
    base: f64,
    direction: f64,
) -> Vec<f64> {
    let mut y = x.to_vec();
    let half = dims / 2;
    for (row, values) in y.chunks_exact_mut(heads * shape.head_dim).enumerate() {
        let position = (row % shape.seq_len) as f64;
        for head in values.chunks_exact_mut(shape.head_dim) {
            for i in 0..half {
                let angle = position * base.powf(-2.0 * i as f64 / dims as f64);
                let (sin, cos) = angle.sin_cos();
                let (a, b) = (head[i], head[i + half]);
                head[i] = a * cos + direction * b * sin;
                head[i + half] = -direction * a * sin + b * cos;
            }
        }
    }
    y
}

/// Sizes of a causal attention with `heads` query heads; query head h reads KV head h / (heads / kv_heads).
#[derive(Debug, Clone, Copy)]
pub struct AttentionShape {
    pub batch: usize,
    pub seq_len: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl AttentionShape {
    /// Slice of head `h` of token `t` of sequence `b` in a tensor with `heads` heads per token.
    fn at(&self, b: usize, t: usize, h: usize, heads: usize) -> std::ops::Range<usize> {
        let start = ((b * self.seq_len + t) * heads + h) * self.head_dim;
        start..start + self.head_dim
    }

    /// Softmax probabilities of query (b, h, t) over keys 0 ..= t, scale 1 / sqrt(head_dim).
    fn probabilities(&self, q: &[f64], k: &[f64], b: usize, h: usize, t: usize) -> Vec<f64> {
        let scale = (self.head_dim as f64).sqrt().recip();
        let kv = h / (self.heads / self.kv_heads);
        let query = &q[self.at(b, t, h, self.heads)];
        let mut p: Vec<f64> = (0..=t)
            .map(|s| scale * dot(query, &k[self.at(b, s, kv, self.kv_heads)]))
            .collect();
        let max = p.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        p.iter_mut().for_each(|x| *x = (*x - max).exp());
        let sum: f64 = p.iter().sum();
        p.iter_mut().for_each(|x| *x /= sum);
        p
    }
}

/// q [n, heads * D], k and v [n, kv_heads * D] → y [n, heads * D].
pub fn attention(q: &[f64], k: &[f64], v: &[f64], shape: &AttentionShape) -> Vec<f64> {
    let mut y = vec![0.0; q.len()];
    for b in 0..shape.batch {
        for h in 0..shape.heads {
            let kv = h / (shape.heads / shape.kv_heads);
            for t in 0..shape.seq_len {
                let p = shape.probabilities(q, k, b, h, t);
                let out = &mut y[shape.at(b, t, h, shape.heads)];
                for (s, &weight) in p.iter().enumerate() {
                    add_scaled(out, &v[shape.at(b, s, kv, shape.kv_heads)], weight);
                }
            }
        }
    }
    y
}

/// Gradients (dq, dk, dv). With p the probabilities and δ = dy · y: ds = p ⊙ (dy vᵀ - δ).
pub fn attention_backward(
    (q, k, v): (&[f64], &[f64], &[f64]),
    y: &[f64],
    dy: &[f64],
    shape: &AttentionShape,
) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
    let scale = (shape.head_dim as f64).sqrt().recip();
    let (mut dq, mut dk, mut dv) = (vec![0.0; q.len()], vec![0.0; k.len()], vec![0.0; v.len()]);
    for b in 0..shape.batch {
        for h in 0..shape.heads {
            let kv = h / (shape.heads / shape.kv_heads);
            for t in 0..shape.seq_len {
                let p = shape.probabilities(q, k, b, h, t);
                let row = shape.at(b, t, h, shape.heads);
                let grad = &dy[row.clone()];
                let delta = dot(grad, &y[row.clone()]);
                for (s, &weight) in p.iter().enumerate() {
                    let key = shape.at(b, s, kv, shape.kv_heads);
                    add_scaled(&mut dv[key.clone()], grad, weight);
                    let ds = scale * weight * (dot(grad, &v[key.clone()]) - delta);
                    add_scaled(&mut dq[row.clone()], &k[key.clone()], ds);
                    add_scaled(&mut dk[key], &q[row.clone()], ds);
                }
            }
        }
    }
    (dq, dk, dv)
}

/// The unit vector of one token's V and the norm it was divided by (clamped at 1e-12).
fn unit(v: &[f64]) -> (Vec<f64>, f64) {
    let norm = dot(v, v).sqrt().max(1e-12);
    (scaled(v, norm.recip()), norm)
}

/// Exclusive self-attention: y - (y · v̂) v̂, v̂ the unit vector of the token's own V.
pub fn exclude_self(y: &[f64], v: &[f64], shape: &AttentionShape) -> Vec<f64> {
    let mut out = y.to_vec();
    for b in 0..shape.batch {
        for t in 0..shape.seq_len {
            for h in 0..shape.heads {
                let kv = h / (shape.heads / shape.kv_heads);
                let (direction, _) = unit(&v[shape.at(b, t, kv, shape.kv_heads)]);
                let row = shape.at(b, t, h, shape.heads);
                let along = dot(&y[row.clone()], &direction);
                add_scaled(&mut out[row], &direction, -along);
            }
        }
    }
    out
}

/// Gradients (dy, dv) of [`exclude_self`] for the gradient g of its output.
pub fn exclude_self_backward(
    g: &[f64],
    y: &[f64],
    v: &[f64],
    shape: &AttentionShape,
) -> (Vec<f64>, Vec<f64>) {
    let mut dy = g.to_vec();
    let mut dv = vec![0.0; v.len()];
    for b in 0..shape.batch {
        for t in 0..shape.seq_len {
            for h in 0..shape.heads {
                let kv = h / (shape.heads / shape.kv_heads);
                let value = shape.at(b, t, kv, shape.kv_heads);
                let (direction, norm) = unit(&v[value.clone()]);
                let row = shape.at(b, t, h, shape.heads);
                let (grad, out) = (&g[row.clone()], &y[row.clone()]);
                let (g_along, y_along) = (dot(grad, &direction), dot(out, &direction));
                add_scaled(&mut dy[row.clone()], &direction, -g_along);
                // dv̂ = -[(y·v̂) g + (g·v̂) y]; dv = (dv̂ - (dv̂·v̂) v̂) / ‖v‖
                let mut d = scaled(grad, -y_along);
                add_scaled(&mut d, out, -g_along);
                let d_along = dot(&d, &direction);
                add_scaled(&mut d, &direction, -d_along);
                add_scaled(&mut dv[value], &d, norm.recip());
            }
        }
    }
    (dy, dv)
}

/// out[t] = (1 - g) ⊙ x[t] + g ⊙ x[t-1] within each sequence, x[-1] = 0, g = σ(gate).
pub fn smear(x: &[f64], gate: &[f64], seq_len: usize) -> Vec<f64> {
    let d = gate.len();
    (0..x.len())
        .map(|i| {
            let g = sigmoid(gate[i % d]);
            let previous = if (i / d).is_multiple_of(seq_len) {
                0.0
            } else {
                x[i - d]
            };
            (1.0 - g) * x[i] + g * previous
        })
        .collect()
}

/// Gradients (dx, dgate) of [`smear`].
pub fn smear_backward(dy: &[f64], x: &[f64], gate: &[f64], seq_len: usize) -> (Vec<f64>, Vec<f64>) {
    let d = gate.len();
    let mut dx = vec![0.0; x.len()];
    let mut dgate = vec![0.0; d];
    for i in 0..x.len() {
        let g = sigmoid(gate[i % d]);
        let first = (i / d).is_multiple_of(seq_len);
        dx[i] += (1.0 - g) * dy[i];
        let previous = if first { 0.0 } else { x[i - d] };
        if !first {
            dx[i - d] += g * dy[i];
        }
        dgate[i % d] += g * (1.0 - g) * dy[i] * (previous - x[i]);
    }
    (dx, dgate)
}

/// Buckets of the bigram hash; the first position of each sequence has the last bucket, which no hash reaches.
pub fn bigram_buckets(ids: &[u32], seq_len: usize, buckets: usize) -> Vec<usize> {
    (0..ids.len())
        .map(|i| {
            if i % seq_len == 0 {
                return buckets - 1;
            }
            ((36313 * ids[i]) ^ (27191 * ids[i - 1])) as usize % (buckets - 1)
        })
        .collect()
}

/// Rows of a table [_, d].
pub fn gather(table: &[f64], rows: impl Iterator<Item = usize>, d: usize) -> Vec<f64> {
    rows.flat_map(|row| table[row * d..(row + 1) * d].iter().copied())
        .collect()
}

/// The gradient of [`gather`]'s table of `len` elements.
pub fn scatter_add(
    dy: &[f64],
    rows: impl Iterator<Item = usize>,
    d: usize,
    len: usize,
) -> Vec<f64> {
    let mut table = vec![0.0; len];
    for (row, grad) in rows.zip(dy.chunks_exact(d)) {
        add_scaled(&mut table[row * d..(row + 1) * d], grad, 1.0);
    }
    table
}

/// LeakyReLU(0.5)²: p² for p > 0, (p/2)² otherwise.
pub fn leaky_square(p: &[f64]) -> Vec<f64> {
    p.iter()
        .map(|&p| if p > 0.0 { p * p } else { 0.25 * p * p })
        .collect()
}

/// Its gradient: 2p for p > 0, p/2 otherwise.
pub fn leaky_square_backward(dy: &[f64], p: &[f64]) -> Vec<f64> {
    dy.iter()
        .zip(p)
        .map(|(g, &p)| g * if p > 0.0 { 2.0 * p } else { 0.5 * p })
        .collect()
}

/// Cross-entropy of `cap * tanh(z / cap)` per token, and dz of the mean over tokens.
pub fn head_loss(z: &[f64], targets: &[u32], cap: f64) -> (Vec<f64>, Vec<f64>) {
    let vocab = z.len() / targets.len();
    let mut losses = Vec::with_capacity(targets.len());
    let mut dz = Vec::with_capacity(z.len());
    for (row, &target) in z.chunks_exact(vocab).zip(targets) {
        let logits: Vec<f64> = row.iter().map(|x| cap * (x / cap).tanh()).collect();
        let max = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = logits.iter().map(|x| (x - max).exp()).sum();
        let lse = max + sum.ln();
        losses.push(lse - logits[target as usize]);
        for (id, x) in logits.iter().enumerate() {
            let hit = if id == target as usize { 1.0 } else { 0.0 };
            let slope = 1.0 - (x / cap).powi(2);
            dz.push(((x - lse).exp() - hit) / targets.len() as f64 * slope);
        }
    }
    (losses, dz)
}

/// Fake quantization to int6 per output row, in IEEE f32 with a true division: exact ties are common with bf16 weights.
pub fn fake_quantize_int6(w: &[f64], cols: usize) -> Vec<f64> {
    let mut out = Vec::with_capacity(w.len());
    for row in w.chunks_exact(cols) {
        let max = row.iter().fold(0f32, |m, &x| m.max((x as f32).abs()));
        let scale = (max / 31.0).max(1.0 / 31.0);
        out.extend(row.iter().map(|&x| {
            let code = (x as f32 / scale).round_ties_even().clamp(-32.0, 31.0);
            f64::from(code * scale)
        }));
    }
    out
}
