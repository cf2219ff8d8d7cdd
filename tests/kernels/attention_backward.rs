//! `attention_backward`, from dO down to the raw projection. With the forward and in f64 it is tested in `attention.rs`.

use birdie::kernels::attention_backward::{AttentionGradient, QuerySum, QuerySums, ValueGradient};
use birdie::kernels::attention_forward::{AttentionShape, gate_columns};
use birdie::kernels::qkv::{QkvOperands, ValueMix, inverse_rms_pitch, rope_table};

use crate::attention::shape;
use crate::device::{Buffer, Gpu};
use crate::numbers::{Random, assert_bf16, assert_close, assert_f32, distance};
use crate::qkv::rotate;
use crate::row_scale::Sums;

const D: usize = 64;

/// What made attention's input of the raw projection, on the device too. The factors are such that the gradients stay of their size.
pub struct Projection {
    shape: AttentionShape,
    /// Of the projection: there are columns of gates behind q, k and v.
    stride: usize,
    inverse_rms: Vec<f64>,
    gain: Vec<f64>,
    /// Published are 16.
    rope_dims: u64,
    rope: Vec<f64>,
    sums: Option<Sums>,
    extra: Option<Vec<f64>>,
    /// 0 to the projection, 1 there and as it is, 2 as it is.
    values: u64,
    on_device: [Buffer; 3],
    extra_on_device: Option<Buffer>,
}

/// What a backward leaves.
pub struct Gradients {
    dqkv: Vec<f64>,
    dv: Vec<f64>,
    gain: Vec<f64>,
}

impl Projection {
    pub fn new(gpu: &Gpu, shape: AttentionShape, seed: u64) -> Self {
        let mut random = Random::new(900 + seed);
        let rows = shape.sequences * shape.tokens;
        let pitch = inverse_rms_pitch(shape.heads(), shape.kv_heads);
        let mut between = |n: u64, low: f64, high: f64| -> Vec<f64> {
            let share = |random: &mut Random| random.below(1 << 20) as f64 / (1 << 20) as f64;
            (0..n)
                .map(|_| f64::from((low + (high - low) * share(&mut random)) as f32))
                .collect()
        };
        let inverse_rms = between(rows * pitch, 0.3, 0.6);
        let mut gain = between(shape.heads(), 1.2, 1.6);
        gain.iter_mut().skip(1).step_by(2).for_each(|g| *g = -*g);
        let rope_dims = [16, 16, 64, 16, 2, 16, 62, 16, 24][seed as usize % 9];
        // At position 0 nothing is rotated: the first token stands at 1.
        let rope: Vec<f64> = rope_table(shape.tokens + 1, 10_000.0, rope_dims)
            .into_iter()
            .skip(rope_dims as usize)
            .map(f64::from)
            .collect();
        let extra = (seed % 4 < 2).then(|| random.bf16(rows * shape.kv_heads * D as u64, 1.0));
        Self {
            shape,
            stride: (shape.columns() + gate_columns(shape)) as usize,
            on_device: [gpu.f32(&inverse_rms), gpu.f32(&gain), gpu.f32(&rope)],
            inverse_rms,
            gain,
            rope_dims,
            rope,
            sums: (seed % 5 != 4).then(|| Sums::new(gpu, seed, rows, 512, 1 + seed % 5)),
            extra_on_device: extra.as_ref().map(|extra| gpu.bf16(extra)),
            extra,
            values: seed % 3,
        }
    }

    /// Two launches on the same scratch, which has to be left as it was found.
    pub fn backward(
        &self,
        gpu: &Gpu,
        qkv: &Buffer,
        dout: &Buffer,
        lse: &Buffer,
        delta: &[f64],
        order: QuerySum,
    ) -> Gradients {
        let shape = self.shape;
        let rows = shape.sequences * shape.tokens;
        let delta = gpu.f32(delta);
        let turns = gpu.f32(&vec![0.0; shape.query_turns() as usize]);
        let sums = match order {
            QuerySum::Ordered => gpu.poison(4 * shape.query_sums()),
            QuerySum::Unordered => gpu.f32(&vec![0.0; shape.query_sums() as usize]),
        };
        let [inverse_rms, gain, rope] = [0, 1, 2].map(|i| self.on_device[i].ptr());
        let results = [(); 2].map(|()| {
            let dqkv = gpu.poison(2 * rows * self.stride as u64);
            let dv = gpu.poison(2 * rows * shape.kv_heads * D as u64);
            let gain_sums = gpu.poison(4 * shape.gain_sums());
            let gradient = AttentionGradient {
                qkv: QkvOperands {
                    shape,
                    ready: qkv.ptr(),
                    inverse_rms,
                    v_raw: None,
                    q_gain: gain,
                    rope,
                    rope_dims: self.rope_dims,
                    value_embedding: None,
                    mix: ValueMix::None,
                    v_first: None,
                },
                dout: dout.ptr(),
                lse: lse.ptr(),
                delta: delta.ptr(),
                dv_extra: self.extra_on_device.as_ref().map(Buffer::ptr),
                dqkv: dqkv.ptr(),
                stride: self.stride as u64,
                scale: self.sums.as_ref().map(Sums::scale),
                values: match self.values {
                    0 => ValueGradient::Projected,
                    1 => ValueGradient::ProjectedAndKept { dv: dv.ptr() },
                    _ => ValueGradient::Kept { dv: dv.ptr() },
                },
                gain_sums: gain_sums.ptr(),
                scratch: QuerySums {
                    sums: sums.ptr(),
                    turns: turns.ptr(),
                },
                order,
            };
            let gain_grad = gpu.f32(&vec![1.0; shape.heads() as usize]);
            gpu.kernels
                .attention_backward(&gpu.stream, &gradient)
                .unwrap();
            gpu.kernels
                .q_gain_gradient(&gpu.stream, shape, gain_sums.ptr(), gain_grad.ptr(), true)
                .unwrap();
            gpu.wait();
            [dqkv, dv, gain_grad]
        });
        assert!(
            turns.bytes().iter().all(|&b| b == 0),
            "{shape:?}: turns are left at zero"
        );
        match order {
            QuerySum::Ordered => assert!(
                (0..3).all(|i| results[0][i].bytes() == results[1][i].bytes()),
                "{shape:?}: the same inputs, other bits"
            ),
            QuerySum::Unordered => assert!(
                sums.bytes().iter().all(|&b| b == 0),
                "{shape:?}: sums are left at zero"
            ),
        }
        let [dqkv, dv, gain] = &results[0];
        Gradients {
            dqkv: dqkv.read_bf16(),
            dv: dv.read_bf16(),
            gain: gain.read_f32(),
        }
    }

    fn name(&self, what: &str) -> String {
        format!(
            "{what}, {} rotated, extra {}, values {}",
            self.rope_dims,
            self.extra.is_some(),
            self.values
        )
    }

    /// From the gradient of attention's input `qkv` to those of the projection, of V and of the gains, in f64; and for each gain the spread
    /// of what it is the sum of.
    fn expected(&self, qkv: &[f64], dqkv: &[f64]) -> (Gradients, Vec<f64>) {
        let shape = self.shape;
        let (heads, kv) = (shape.heads() as usize, shape.kv_heads as usize);
        let (columns, dims) = (shape.columns() as usize, self.rope_dims as usize);
        let pitch = inverse_rms_pitch(shape.heads(), shape.kv_heads) as usize;
        let mut want = vec![f64::NAN; qkv.len() / columns * self.stride];
        let mut want_dv = vec![];
        let (mut want_gain, mut spread) = (vec![1.0; heads], vec![0.0; heads]);
        for (row, (z, g)) in qkv
            .chunks_exact(columns)
            .zip(dqkv.chunks_exact(columns))
            .enumerate()
        {
            let want = &mut want[row * self.stride..][..columns];
            let angles = &self.rope[row % shape.tokens as usize * dims..][..dims];
            for h in 0..heads + kv {
                let gain = self.gain.get(h).copied().unwrap_or(1.0);
                let (mut e, mut y) = (g[h * D..][..D].to_vec(), z[h * D..][..D].to_vec());
                let norm = |x: &[f64]| x.iter().map(|x| x * x).sum::<f64>();
                let dot: f64 = e.iter().zip(&y).map(|(e, z)| e * z).sum();
                if h < heads {
                    want_gain[h] += dot / gain;
                    spread[h] += norm(&e) * norm(&y) / (gain * gain);
                }
                rotate(&mut e, angles, -1.0);
                rotate(&mut y, angles, -1.0);
                let r = self.inverse_rms[row * pitch + h];
                for c in 0..D {
                    want[h * D + c] = r * (gain * e[c] - y[c] * dot / (D as f64 * gain));
                }
            }
            let factor = self.sums.as_ref().map_or(1.0, |sums| sums.factors[row]);
            for c in 0..kv * D {
                let extra = self.extra.as_ref().map_or(0.0, |x| x[row * kv * D + c]);
                let dv = g[(heads + kv) * D + c] + extra;
                want_dv.push(dv);
                want[(heads + kv) * D + c] = factor * dv;
            }
        }
        let gradients = Gradients {
            dqkv: want,
            dv: want_dv,
            gain: want_gain,
        };
        (gradients, spread)
    }

    /// What is asked for, by name: as it is and as it should be. Nothing else is written.
    fn pairs(
        &self,
        what: &str,
        got: &Gradients,
        want: &Gradients,
    ) -> Vec<(&'static str, Vec<f64>, Vec<f64>)> {
        let shape = self.shape;
        let (heads, kv) = (shape.heads() as usize, shape.kv_heads as usize);
        let columns = shape.columns() as usize;
        let part = |x: &[f64], range: std::ops::Range<usize>| -> Vec<f64> {
            x.chunks_exact(self.stride)
                .flat_map(|row| row[range.clone()].to_vec())
                .collect()
        };
        let mut parts = vec![("dq", 0..heads * D), ("dk", heads * D..(heads + kv) * D)];
        let values = (heads + kv) * D..columns;
        if self.values < 2 {
            parts.push(("dv", values));
        } else {
            let left = part(&got.dqkv, values);
            assert!(
                left.iter().all(|x| x.is_nan()),
                "{what}: v is not asked for"
            );
        }
        let gates = part(&got.dqkv, columns..self.stride);
        assert!(gates.iter().all(|x| x.is_nan()), "{what}: gates");
        let mut pairs: Vec<_> = parts
            .into_iter()
            .map(|(name, range)| {
                let both = [&got.dqkv, &want.dqkv].map(|x| part(x, range.clone()));
                let [got, want] = both;
                (name, got, want)
            })
            .collect();
        if self.values > 0 {
            pairs.push(("dv kept", got.dv.clone(), want.dv.clone()));
        } else {
            assert!(got.dv.iter().all(|x| x.is_nan()), "{what}: dv was written");
        }
        pairs
    }

    /// Within the errors of attention's products, whose operands are rounded to bf16.
    pub fn check(&self, what: &str, qkv: &[f64], dqkv: &[f64], got: &Gradients) {
        let (what, shape) = (self.name(what), self.shape);
        let (want, spread) = self.expected(qkv, dqkv);
        for (name, got, want) in self.pairs(&what, got, &want) {
            // A query that sees one key only has no gradient: compare with the scale of the inputs.
            let error = distance(&got, &want);
            assert!(
                error < 0.01 || (shape.tokens == 1 && !name.starts_with("dv")),
                "{name} {what}: distance {error}"
            );
            assert_close(&format!("{name} {what}"), &got, &want, 0.02, 0.06);
        }
        for (h, spread) in spread.iter().enumerate() {
            // The rows' errors, a hundredth of each at most, are independent: four standard deviations, next to the sum's own rounding.
            let bound = 0.04 * spread.sqrt() / (D as f64).sqrt() + 1e-3;
            let (got, want) = (got.gain[h], want.gain[h]);
            assert!(
                (got - want).abs() < bound,
                "dq_gain {h} {what}: got {got}, want {want} within {bound}"
            );
        }
    }
}

/// Where attention's gradients are small whole numbers of eighths, bf16 has its operands exactly: what is left are the errors of the way back to
/// the projection, and that is f32 until one rounding.
#[test]
fn the_way_back_to_the_projection_is_exact() {
    let gpu = Gpu::new();
    for (seed, (kv_heads, group)) in [(1, 1), (2, 2), (1, 4), (2, 1), (1, 3), (3, 2)]
        .into_iter()
        .cycle()
        .take(9)
        .enumerate()
    {
        let shape = shape(12, 1, kv_heads, group);
        let (heads, kv) = (shape.heads() as usize, kv_heads as usize);
        let (columns, padded) = (shape.columns() as usize, shape.padded_tokens() as usize);
        let mut random = Random::new(4000 + seed as u64);
        let mut small =
            |n: u64| -> Vec<f64> { (0..n).map(|_| random.below(5) as f64 - 2.0).collect() };
        let qkv = small(shape.sequences * shape.columns());
        let dout = small(shape.sequences * shape.heads() * D as u64);
        let delta = small(shape.sequences * shape.heads());
        let dot = |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };

        // A token that sees itself alone: P = 1, whatever the score. With any delta dS = dO V - delta is a whole number.
        let mut dqkv = vec![0.0; qkv.len()];
        let mut lse = vec![f64::INFINITY; shape.statistics() as usize];
        let mut padded_delta = vec![0.0; lse.len()];
        for (b, (x, dx)) in qkv
            .chunks_exact(columns)
            .zip(dqkv.chunks_exact_mut(columns))
            .enumerate()
        {
            for h in 0..heads {
                let head = |h: usize| h * D..(h + 1) * D;
                let (q, k, v) = (
                    head(h),
                    head(heads + h / group as usize),
                    head(heads + kv + h / group as usize),
                );
                let g = &dout[(b * heads + h) * D..][..D];
                let ds = dot(g, &x[v.clone()]) - delta[b * heads + h];
                assert!(ds.abs() <= 256.0, "bf16 has it");
                let place = (b * heads + h) * padded;
                lse[place] = dot(&x[q.clone()], &x[k.clone()]) * 0.125 * std::f64::consts::LOG2_E;
                padded_delta[place] = delta[b * heads + h];
                for c in 0..D {
                    dx[q.start + c] = ds * x[k.start + c] / 8.0;
                    dx[k.start + c] += ds * x[q.start + c] / 8.0;
                    dx[v.start + c] += g[c];
                }
            }
        }
        let (qkv_d, dout_d, lse) = (gpu.bf16(&qkv), gpu.bf16(&dout), gpu.f32(&lse));
        for order in [QuerySum::Ordered, QuerySum::Unordered] {
            let projection = Projection::new(&gpu, shape, seed as u64);
            let what = projection.name(&format!("{shape:?} {order:?}"));
            let got = projection.backward(&gpu, &qkv_d, &dout_d, &lse, &padded_delta, order);
            let (want, _) = projection.expected(&qkv, &dqkv);
            for (name, got, want) in projection.pairs(&what, &got, &want) {
                assert_bf16(&format!("{name}, {what}"), &got, &want, 1.0);
            }
            assert_f32(&format!("dq_gain, {what}"), &got.gain, &want.gain, 30.0);
        }
    }
}
