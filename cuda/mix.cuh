// The mix of the residual stream at a block's entrance, one channel of it.
//
//   u = x | x + skip_weight skip | scale x + bias;   x_in = bf16(m0 u + m1 x0)
//
// Three kernels make it: the product before it in its epilogue (gemm_mix.cu), a pass of its own where there is none (norm_mix.cu), and the
// backward, which keeps no u and takes x_in from the stored x once more. All have to find the same bits, so each operation is spelled out.
#pragma once
#include "hopper/numeric.cuh"

namespace birdie {

// What enters the mix: Plain u = x, Skip u = x + a skip, Recycle u = a x + b.
enum class Entry { Plain, Skip, Recycle };

__device__ __forceinline__ float enter_skip(float x, float weight, float skip) { return fmaf(weight, skip, x); }
__device__ __forceinline__ float enter_recycle(float x, float scale, float bias) { return fmaf(scale, x, bias); }
// x_in before its rounding.
__device__ __forceinline__ float mix_streams(float m0, float u, float m1, float x0) { return fmaf(m0, u, m1 * x0); }

} // namespace birdie
