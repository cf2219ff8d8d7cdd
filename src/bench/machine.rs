//! What an H100 SXM can do: every constant of the predictions, with where it comes from.
//!
//! `[S]` a named source, `[D]` arithmetic on such figures, `[R]` recalled from the literature (take it as good to a fifth). None was
//! measured by birdie.

use serde::{Deserialize, Serialize};

/// Version of the model: rises whenever a constant or a rule of [`predict`](super::predict) changes, so that records of different models
/// are never compared silently.
pub const MODEL: &str = "h100-sxm/3: counted work, perfect balance and overlap";

/// A constant and its origin.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Constant {
    pub name: &'static str,
    pub value: f64,
    pub unit: &'static str,
    pub source: &'static str,
}

macro_rules! constants {
    ($($name:ident = $value:expr, $unit:literal, $source:literal;)+) => {
        $(pub const $name: f64 = $value;)+
        /// All constants, for records and tables.
        pub const CONSTANTS: &[Constant] = &[
            $(Constant { name: stringify!($name), value: $value, unit: $unit, source: $source }),+
        ];
    };
}

constants! {
    SMS = 132.0, "SMs", "[S] data sheet";
    CLOCK = 1.755e9, "Hz", "[R] clock under load; 1.83e9 is the boost clock of the data sheet";
    TENSOR_FLOPS = 798e12, "FLOP/s", "[S] dense bf16 product of 8192^3 with random data, fast.cu README (cuBLAS 795, its kernel 808)";
    TENSOR_FLOPS_PER_CYCLE = 4096.0, "FLOP per SM and cycle", "[S] wgmma m64nNk16 takes N/2 cycles, arXiv 2402.13499 table VIII";
    HBM = 3.0e12, "B/s", "[R] copies; 2.8e12 [S] coalesced copy, 3.24e12 [S] pure reads";
    L2 = 6.9e12, "B/s", "[D] 3942 B per cycle at CLOCK; [S] H800, arXiv 2402.13499 table V";
    SHARED_PASSES = 1.0, "128-byte passes per SM and cycle", "[S] 33 TB/s in total";
    MUFU = 16.0, "results per SM and cycle", "[R] CUDA programming guide, FlashAttention-3";
    FP32 = 128.0, "results per SM and cycle", "[S] 67 TFLOP/s";
    INT32 = 64.0, "results per SM and cycle", "[R] CUDA programming guide";
    HALF2 = 128.0, "results per SM and cycle", "[R] CUDA programming guide";
    FP64 = 64.0, "results per SM and cycle", "[R] CUDA programming guide";
    CONVERT = 64.0, "results per SM and cycle", "[R] CUDA programming guide";
    EXCHANGE = 32.0, "results per SM and cycle", "[R] CUDA programming guide, shuffles and votes";
    ISSUE = 4.0, "warp instructions per SM and cycle", "[R] one per sub-core";
}

/// The goal for one training step on one of 8 H100, and the floor of the operations it consists of, both in milliseconds.
pub const STEP_GOAL_MS: f64 = 40.0;
pub const STEP_FLOOR_MS: f64 = 34.9;

/// Microseconds that work takes at least: FLOPs at the rate of the tensor cores, bytes at that of memory, each tensor moved once.
pub fn floor_us(flops: f64, bytes: f64, matrix: bool) -> f64 {
    let rate = if matrix {
        TENSOR_FLOPS
    } else {
        2.0 * FP32 * SMS * CLOCK
    };
    1e6 * (flops / rate).max(bytes / HBM)
}

/// What of the machine limits an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    Tensor,
    Mufu,
    Fp32,
    Integer,
    Convert,
    Exchange,
    Issue,
    Shared,
    L2,
    Hbm,
}

impl Resource {
    pub const ALL: [Resource; 10] = [
        Resource::Tensor,
        Resource::Mufu,
        Resource::Fp32,
        Resource::Integer,
        Resource::Convert,
        Resource::Exchange,
        Resource::Issue,
        Resource::Shared,
        Resource::L2,
        Resource::Hbm,
    ];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tensor => "tensor",
            Self::Mufu => "mufu",
            Self::Fp32 => "fp32",
            Self::Integer => "int",
            Self::Convert => "cvt",
            Self::Exchange => "shfl",
            Self::Issue => "issue",
            Self::Shared => "smem",
            Self::L2 => "l2",
            Self::Hbm => "hbm",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floors_of_the_table_in_the_kernel_plan_come_out() {
        // qkv product: 98304 x 1024 x 512, 303 MB.
        let us = floor_us(2.0 * 98304.0 * 1024.0 * 512.0, 303e6, true);
        assert!((us - 129.0).abs() < 1.0, "{us}");
        // Output projection with residual: memory decides.
        let us = floor_us(52e9, 302e6, true);
        assert!((us - 101.0).abs() < 1.0, "{us}");
    }

    #[test]
    fn every_constant_names_its_source() {
        for constant in CONSTANTS {
            assert!(constant.value > 0.0);
            assert!(
                ["[S]", "[D]", "[R]"]
                    .iter()
                    .any(|tag| constant.source.starts_with(tag))
            );
        }
        // The sustained rate is below what the instruction rate allows at the clock of the model.
        const { assert!(TENSOR_FLOPS < TENSOR_FLOPS_PER_CYCLE * SMS * CLOCK) };
    }
}
