//! Twin of `cuda/sampling.cu`: the next token of each sequence.

use anyhow::Result;
use cust::stream::Stream;

use super::{Checks, DevPtr, Kernels, Work};

/// What a sampled token depends on besides the logits.
#[derive(Clone, Copy, Debug)]
pub struct Sampling {
    /// Logits are capped at this, C tanh(z / C).
    pub softcap: f32,
    pub temperature: f32,
    pub seed: u64,
    /// Number of the first row's sequence.
    pub first_sequence: u64,
    /// Position of the token in its sequence.
    pub position: u64,
}

impl Kernels {
    /// Samples a token for each of `rows` rows into `out` u16. `logits` is the first row, bf16 `[V]`, and the elements to the next, a
    /// multiple of 8; without logits the tokens are uniform.
    pub fn sample_tokens(
        &self,
        stream: &Stream,
        logits: Option<(DevPtr, u64)>,
        out: DevPtr,
        rows: u64,
        vocabulary: u64,
        sampling: Sampling,
    ) -> Result<Work> {
        let checks = Checks("sample_tokens");
        checks.limit(rows > 0 && (1..=65_536).contains(&vocabulary), || {
            format!("{rows} rows, V = {vocabulary}: 1 to 65536 are needed")
        })?;
        let (temperature, softcap) = (sampling.temperature, sampling.softcap);
        super::head_loss::check_softcap(checks, softcap)?;
        checks.limit(temperature > 0.0 && temperature.is_finite(), || {
            format!("temperature = {temperature}")
        })?;
        if let Some((logits, stride)) = logits {
            checks.limit(stride.is_multiple_of(8) && stride >= vocabulary, || {
                format!("rows of {vocabulary} logits {stride} apart")
            })?;
            checks.array(
                "logits",
                logits,
                2,
                &[(rows - 1) * stride + vocabulary.next_multiple_of(8)],
            )?;
        }
        checks.list("out", out, 2, &[rows])?;
        let (address, stride) = logits.map_or((0u64, 0i64), |(p, s)| (p.address, s as i64));
        let (n, v) = (checks.int("rows", rows)?, vocabulary as i32);
        let first = checks.int("first_sequence", sampling.first_sequence)?;
        let position = checks.int("position", sampling.position)?;
        self.launch(
            stream,
            checks.0,
            [rows.div_ceil(8) as u32, 1, 1],
            256,
            0,
            &[
                &address,
                &stride,
                &out,
                &n,
                &v,
                &softcap,
                &temperature,
                &sampling.seed,
                &first,
                &position,
            ],
        )?;
        self.done(Work {
            flops: 40 * rows * vocabulary,
            bytes: 2 * rows * vocabulary,
        })
    }
}
