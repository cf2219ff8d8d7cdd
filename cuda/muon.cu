// Muon: the element-wise and norm parts. The products of the Newton-Schulz iteration are gemm.cu's.
//
// 1. Formula, per matrix of a bank of b equal ones, g = clip * grad:
//      muon_momentum    M <- mu M + g;  x = bf16(g + mu M)              (_bf16: g, M and the sum are rounded to bf16)
//      muon_normalize   x <- bf16(x / (|x| + 1e-7)), |x| the Frobenius norm
//      then 5 times (host, with gemm.cu), X being r x c with r <= c; for r > c the products are taken from the other side:
//          A = X X^T;   Bm = -4.7750 A + 2.0315 A A;   X <- 3.4445 X + Bm X
//      muon_update      W <- W (1 - lr wd) - lr shape_factor x,  lr = learning_rate * learning_rate_scale
//
// 2. Operands: grad, param f32; momentum f32 or bf16; x bf16; partial f32 [b, G]; all [b, n], n elements per matrix.
//
// 3. Work. Grid (G, b) of 256 threads, 8 elements per thread and trip; G depends on n alone. muon_update: the bank is flat.
//
// 4. Pipeline: none.
//
// 5. Floor (predicted): bytes / 3.0 TB/s: momentum 14 bytes per element (10 with bf16 state), normalize 4, update 10.
//
// 6. Fences: __syncthreads between the warps' sums of squares and their reader.
//
// 7. Limits: n a multiple of 8.
// 8. Machine code (ptxas 13.0): registers: 31..32, shared: 0..32 bytes
#include "hopper/numeric.cuh"
#include "hopper/warp.cuh"
#include "step_values.cuh"

namespace birdie {

constexpr int THREADS = 256;

__device__ __forceinline__ u64 first_vector() { return (u64(blockIdx.x) * THREADS + threadIdx.x) * 8; }
__device__ __forceinline__ u64 vector_stride() { return u64(gridDim.x) * THREADS * 8; }

// Adds `x` over the CTA in a fixed order; thread 0 has the result.
__device__ __forceinline__ float cta_sum(float x) {
  __shared__ float of_warp[THREADS / 32];
  x = group_sum(x);
  if (lane_id() == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  float total = 0.f;
  if (threadIdx.x == 0)
    for (int w = 0; w < THREADS / 32; ++w) total += of_warp[w];
  return total;
}

template <bool ROUND, typename State>
__device__ __forceinline__ void momentum_step(const float *grad, State *momentum, bf16 *x, float *partial, u64 n,
                                              const StepValues *step, const float *clip) {
  const float coefficient = clip != nullptr ? *clip : 1.f, mu = step->muon_momentum;
  const u64 matrix = u64(blockIdx.y) * n;
  float squares = 0.f;
  for (u64 i = first_vector(); i < n; i += vector_stride()) {
    float g[8], m[8];
    load8(grad + matrix + i, g);
    load8(momentum + matrix + i, m);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      g[j] *= coefficient;
      if constexpr (ROUND) g[j] = round_bf16(g[j]);
      m[j] = mu * m[j] + g[j];
      if constexpr (ROUND) m[j] = round_bf16(m[j]);
      g[j] = round_bf16(g[j] + mu * m[j]);
      squares += g[j] * g[j];
    }
    store8(momentum + matrix + i, m);
    store8(x + matrix + i, g);
  }
  squares = cta_sum(squares);
  if (threadIdx.x == 0) partial[u64(blockIdx.y) * gridDim.x + blockIdx.x] = squares;
}

} // namespace birdie

using namespace birdie;

extern "C" __global__ void __launch_bounds__(THREADS)
    muon_momentum_f32(const float *grad, float *momentum, bf16 *x, float *partial, u64 n, const StepValues *step,
                      const float *clip) {
  momentum_step<false>(grad, momentum, x, partial, n, step, clip);
}
extern "C" __global__ void __launch_bounds__(THREADS)
    muon_momentum_bf16(const float *grad, bf16 *momentum, bf16 *x, float *partial, u64 n, const StepValues *step,
                       const float *clip) {
  momentum_step<true>(grad, momentum, x, partial, n, step, clip);
}

extern "C" __global__ void __launch_bounds__(THREADS) muon_normalize(bf16 *x, const float *partial, i32 count, u64 n) {
  float squares = 0.f;
  for (i32 g = 0; g < count; ++g) squares += partial[u64(blockIdx.y) * count + g]; // every thread, the same order
  const float inverse = __fdiv_rn(1.f, __fsqrt_rn(squares) + 1e-7f);
  const u64 matrix = u64(blockIdx.y) * n;
  for (u64 i = first_vector(); i < n; i += vector_stride()) {
    float v[8];
    load8(x + matrix + i, v);
#pragma unroll
    for (int j = 0; j < 8; ++j) v[j] *= inverse;
    store8(x + matrix + i, v);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    muon_update(float *param, const bf16 *x, u64 n, const StepValues *step, float learning_rate, float weight_decay,
                float shape_factor) {
  const float lr = learning_rate * step->learning_rate_scale, keep = 1.f - lr * weight_decay, rate = lr * shape_factor;
  for (u64 i = first_vector(); i < n; i += vector_stride()) {
    float p[8], v[8];
    load8(param + i, p);
    load8(x + i, v);
#pragma unroll
    for (int j = 0; j < 8; ++j) p[j] = p[j] * keep - rate * v[j];
    store8(param + i, p);
  }
}
