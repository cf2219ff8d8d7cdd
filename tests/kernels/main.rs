//! Every kernel against an f64 reference, on random inputs, over the smallest, the odd and a larger shape.
//!
//! Each file here belongs to the file of the same name in `cuda/` and `src/kernels/`, and has the reference of each kernel beside its
//! test: plain loops in f64. The tests run on the emulator with its checkers on, or on a GPU with `BIRDIE_TEST_DEVICE=cuda`.

mod device;
mod numbers;
#[path = "../common/philox.rs"]
mod philox;

mod adam;
mod attention;
mod attention_backward;
mod attention_output;
mod clip_search;
mod embedding;
mod gemm;
mod gemm_mix;
mod head_loss;
mod muon;
mod norm_mix;
mod planted;
mod qkv;
mod quantize;
mod row_scale;
mod sampling;
