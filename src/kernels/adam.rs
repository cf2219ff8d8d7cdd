//! Twin of `cuda/adam.cu`: AdamW, gradient norm and clip, weight averages.

use anyhow::Result;
use cust::stream::Stream;

use super::{Checks, DevPtr, Kernels, Work, address, flat_grid, step_values};

/// Type of a parameter and of what is kept in its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Storage {
    F32,
    Bf16,
}

impl Storage {
    pub fn bytes(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }

    fn pick(self, f32: &'static str, bf16: &'static str) -> &'static str {
        match self {
            Self::F32 => f32,
            Self::Bf16 => bf16,
        }
    }
}

/// Hyper-parameters of a group.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adam {
    pub learning_rate: f32,
    pub beta1: f32,
    pub beta2: f32,
    pub epsilon: f32,
    pub weight_decay: f32,
}

/// What an update of `n` elements reads and writes; returns the bytes of an element of the parameter.
fn check_update(
    checks: Checks,
    storage: Storage,
    n: u64,
    state: &[(&str, DevPtr)],
    grad: DevPtr,
    step: DevPtr,
) -> Result<u64> {
    check_flat(checks, n)?;
    let bytes = storage.bytes();
    for (name, pointer) in state {
        checks.array(name, *pointer, bytes, &[n])?;
    }
    checks.array("grad", grad, 4, &[n])?;
    checks.array("step", step, 1, &[step_values::BYTES])?;
    Ok(bytes)
}

fn check_flat(checks: Checks, n: u64) -> Result<()> {
    checks.limit(n > 0 && n.is_multiple_of(8), || {
        format!("n = {n} is not a positive multiple of 8")
    })
}

impl Kernels {
    /// One update of `n` elements. `m` and `v` have the parameter's type, `grad` is f32.
    #[allow(clippy::too_many_arguments)] // the operands of one operation
    pub fn adamw(
        &self,
        stream: &Stream,
        storage: Storage,
        n: u64,
        param: DevPtr,
        grad: DevPtr,
        m: DevPtr,
        v: DevPtr,
        step: DevPtr,
        clip: Option<DevPtr>,
        adam: Adam,
    ) -> Result<Work> {
        let checks = Checks(storage.pick("adamw_f32", "adamw_bf16"));
        let state = [("param", param), ("m", m), ("v", v)];
        let bytes = check_update(checks, storage, n, &state, grad, step)?;
        let coefficient = address(clip);
        self.launch(
            stream,
            checks.0,
            [flat_grid(n), 1, 1],
            256,
            0,
            &[
                &param,
                &grad,
                &m,
                &v,
                &n,
                &step,
                &coefficient,
                &adam.learning_rate,
                &adam.beta1,
                &adam.beta2,
                &adam.epsilon,
                &adam.weight_decay,
            ],
        )?;
        self.done(Work {
            flops: 16 * n,
            bytes: n * (4 + 6 * bytes),
        })
    }

    /// One update of `n` elements by gradient descent with momentum; `m` has the parameter's type, `grad` is f32.
    #[allow(clippy::too_many_arguments)] // the operands of one operation
    pub fn sgd(
        &self,
        stream: &Stream,
        storage: Storage,
        n: u64,
        param: DevPtr,
        grad: DevPtr,
        m: DevPtr,
        step: DevPtr,
        clip: Option<DevPtr>,
        learning_rate: f32,
        momentum: f32,
    ) -> Result<Work> {
        let checks = Checks(storage.pick("sgd_f32", "sgd_bf16"));
        let state = [("param", param), ("m", m)];
        let bytes = check_update(checks, storage, n, &state, grad, step)?;
        let coefficient = address(clip);
        self.launch(
            stream,
            checks.0,
            [flat_grid(n), 1, 1],
            256,
            0,
            &[
                &param,
                &grad,
                &m,
                &n,
                &step,
                &coefficient,
                &learning_rate,
                &momentum,
            ],
        )?;
        self.done(Work {
            flops: 5 * n,
            bytes: n * (4 + 4 * bytes),
        })
    }

    /// Partial sums of squares of `x` f32 `[n]`: `partial` f32 `[flat_grid(n)]`.
    pub fn sum_squares(&self, stream: &Stream, x: DevPtr, n: u64, partial: DevPtr) -> Result<Work> {
        let checks = Checks("sum_squares_f32");
        check_flat(checks, n)?;
        checks.array("x", x, 4, &[n])?;
        checks.list("partial", partial, 4, &[u64::from(flat_grid(n))])?;
        self.launch(
            stream,
            checks.0,
            [flat_grid(n), 1, 1],
            256,
            0,
            &[&x, &n, &partial],
        )?;
        self.done(Work {
            flops: 2 * n,
            bytes: 4 * n,
        })
    }

    /// `out = (min(1, max_norm / (norm + 1e-6)), norm)` from `count` partial sums.
    pub fn clip_coefficient(
        &self,
        stream: &Stream,
        partial: DevPtr,
        count: u64,
        max_norm: f32,
        out: DevPtr,
    ) -> Result<Work> {
        let checks = Checks("clip_coefficient");
        checks.list("partial", partial, 4, &[count])?;
        checks.list("out", out, 4, &[2])?;
        let count_int = checks.int("count", count)?;
        self.launch(
            stream,
            checks.0,
            [1, 1, 1],
            256,
            0,
            &[&partial, &count_int, &max_norm, &out],
        )?;
        self.done(Work {
            flops: count,
            bytes: 4 * count,
        })
    }

    /// Exponential moving average, f32, of a parameter of either type.
    pub fn average(
        &self,
        stream: &Stream,
        storage: Storage,
        avg: DevPtr,
        param: DevPtr,
        n: u64,
        step: DevPtr,
    ) -> Result<Work> {
        let checks = Checks(storage.pick("average_f32", "average_bf16"));
        check_flat(checks, n)?;
        checks.array("avg", avg, 4, &[n])?;
        checks.array("param", param, storage.bytes(), &[n])?;
        checks.array("step", step, 1, &[step_values::BYTES])?;
        self.launch(
            stream,
            checks.0,
            [flat_grid(n), 1, 1],
            256,
            0,
            &[&avg, &param, &n, &step],
        )?;
        self.done(Work {
            flops: 3 * n,
            bytes: n * (8 + storage.bytes()),
        })
    }

    /// Adds the parameter to `sum`, which has its type, when the step's values say so.
    pub fn collect(
        &self,
        stream: &Stream,
        storage: Storage,
        sum: DevPtr,
        param: DevPtr,
        n: u64,
        step: DevPtr,
    ) -> Result<Work> {
        let checks = Checks(storage.pick("collect_f32", "collect_bf16"));
        check_flat(checks, n)?;
        checks.array("sum", sum, storage.bytes(), &[n])?;
        checks.array("param", param, storage.bytes(), &[n])?;
        checks.array("step", step, 1, &[step_values::BYTES])?;
        self.launch(
            stream,
            checks.0,
            [flat_grid(n), 1, 1],
            256,
            0,
            &[&sum, &param, &n, &step],
        )?;
        self.done(Work {
            flops: n,
            bytes: 3 * n * storage.bytes(),
        })
    }
}
