// Backward of what lies between the QKV product and attention, as far as attention's backward does not do it itself: the value mix, and the
// last sums of the gradients of the queries' gains. The forward is the product's epilogue (gemm_qkv.cu); norms, RoPE, gains and the values of
// layers without a mix are the end of attention_backward.cu.
//
// 1. Formula, per token and value channel:
//      value_backward         g = dv (+ dv_first, role 3);  dv = c1 g;  dqkv = f c1 g;  dv_first (+)= c0 g;  dc0 = sum g v_first, dc1 = sum g w
//      value_backward_finish  dc0, dc1 to the gradient of mix
//      q_gain_gradient        dq_gain[h] (+)= sum of gain_sums[b, h, i] over b and i
//    where the forward made c0 v_first + c1 w, w = v_raw + ve_scale ve_table[id]; f is the row's factor (row_scale.cuh).
//
// 2. Operands: dv bf16 [N, KV 64], in place; dqkv bf16, first v column, rows of S; ve_table bf16 [V, KV 64]; v_raw, v_first as in gemm_qkv.cu, only
//    with a mix; v_first: the raw v columns of layer 0; dv_first bf16 [N, KV 64]; partial f32 [G, 2]: dc0, dc1; gain_sums f32 [B, H, Tp / 32].
//
// 3. Work. value_backward: 256 threads, a thread has 8 channels (16 bytes) of a token at a time, a grid of a few CTAs per SM.
//    q_gain_gradient: a CTA per head; threads take every 256th sum.
//
// 4. Pipeline: one pass.
//
// 5. Floor (predicted), N = 98304, KV = 4, with a mix: dv twice, dqkv, v_raw, v_first, dv_first twice 50 MB each, 117 us; layer 0, which adds
//    what others left: 67 us.
//
// 6. Fences: __syncthreads between the warps' sums and the thread that adds them in order.
//
// 7. Limits: S a multiple of 8.
// 8. Machine code (ptxas 13.0): registers: 22..48, shared: 0..64 bytes
#include "hopper/warp.cuh"
#include "qkv.cuh"
#include "row_scale.cuh"

namespace birdie {

constexpr int THREADS = 256, WARPS = THREADS / 32;

enum FirstRole { FIRST_NONE = 0, FIRST_WRITE = 1, FIRST_ADD = 2, FIRST_TAKE = 3 };

__device__ __forceinline__ float dot8(const float (&a)[8], const float (&b)[8]) {
  float total = 0.f;
#pragma unroll
  for (int i = 0; i < 8; ++i) total += a[i] * b[i];
  return total;
}

// w = v_raw + value embedding, for channel offset `c` of the `width` value channels.
__device__ __forceinline__ void add_value_embedding(float (&w)[8], const ValueSource &s, i32 token, i32 width, i32 c) {
  if (s.ve_table == nullptr) return;
  const float scale = *s.ve_scale;
  float e[8];
  load8(s.ve_table + i64(s.ids[token]) * width + c, e);
#pragma unroll
  for (int i = 0; i < 8; ++i) w[i] += scale * e[i];
}

// The sum over the CTA, in order; for thread 0.
__device__ __forceinline__ float sum_of_all(float x, float (&of_warp)[WARPS]) {
  x = group_sum(x);
  if (lane_id() == 0) of_warp[threadIdx.x / 32] = x;
  __syncthreads();
  float total = 0.f;
#pragma unroll
  for (int w = 0; w < WARPS; ++w) total += of_warp[w];
  return total;
}

} // namespace birdie

using namespace birdie;

extern "C" __global__ void __launch_bounds__(THREADS)
    value_backward(bf16 *dv, const bf16 *v_raw, bf16 *dqkv, i32 S, const u16 *ids, const bf16 *ve_table, const float *ve_scale,
                   const bf16 *v_first, i32 v_first_stride, const float *mix, i32 v_mode, bf16 *dv_first, i32 dv_first_role, float *partial,
                   RowScale scale, i32 N, i32 KV) {
  __shared__ float c0_sums[WARPS], c1_sums[WARPS];
  const ValueSource source{ids, ve_table, ve_scale, v_first, v_first_stride, mix, v_mode};
  const MixCoefficients c(source);
  const i32 width = 64 * KV, pieces = width / 8;
  float c0_sum = 0.f, c1_sum = 0.f;
  for (i64 piece = i64(blockIdx.x) * THREADS + threadIdx.x; piece < i64(N) * pieces; piece += i64(gridDim.x) * THREADS) {
    const i32 token = i32(piece / pieces), column = 8 * i32(piece % pieces);
    const i64 place = 8 * piece;
    float g[8], x[8], other[8];
    load8(dv + place, g);
    if (dv_first_role == FIRST_TAKE) {
      load8(dv_first + place, other);
#pragma unroll
      for (int i = 0; i < 8; ++i) g[i] += other[i];
    }
    if (v_mode != VALUE_PLAIN) {
      load8(v_raw + place, x);
      add_value_embedding(x, source, token, width, column);
      load8(v_first + i64(token) * v_first_stride + column, other);
      c0_sum += dot8(g, other), c1_sum += dot8(g, x);
      if (dv_first_role == FIRST_ADD) {
        load8(dv_first + place, other);
      } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) other[i] = 0.f;
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) other[i] += c.c0 * g[i];
      store8(dv_first + place, other);
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) g[i] *= c.c1;
    store8(dv + place, g);
    const float factor = row_factor_at(scale, token, N);
#pragma unroll
    for (int i = 0; i < 8; ++i) g[i] *= factor;
    store8(dqkv + i64(token) * S + column, g);
  }
  const float c0_total = sum_of_all(c0_sum, c0_sums), c1_total = sum_of_all(c1_sum, c1_sums);
  if (threadIdx.x == 0) partial[2 * blockIdx.x] = c0_total, partial[2 * blockIdx.x + 1] = c1_total;
}

// One warp: lane j sums column j of partial, then the two become the gradient of mix.
extern "C" __global__ void __launch_bounds__(32)
    value_backward_finish(const float *partial, i32 count, const float *mix, i32 v_mode, float *mix_grad, i32 accumulate) {
  float total = 0.f;
  if (lane_id() < 2)
    for (i32 g = 0; g < count; ++g) total += partial[2 * g + lane_id()];
  const float dc0 = __shfl_sync(FULL_MASK, total, 0), dc1 = __shfl_sync(FULL_MASK, total, 1);
  if (lane_id() == 0 && v_mode == VALUE_GATE) {
    const float g = sigmoid(mix[0]), grad = (dc0 - dc1) * g * (1.f - g);
    mix_grad[0] = accumulate ? mix_grad[0] + grad : grad;
  }
  if (lane_id() < 2 && v_mode == VALUE_LAMBDA) mix_grad[lane_id()] = accumulate ? mix_grad[lane_id()] + total : total;
}

// CTA h: head h. `parts` sums of a head and sequence.
extern "C" __global__ void __launch_bounds__(THREADS)
    q_gain_gradient(const float *gain_sums, i32 parts, i32 B, float *q_gain_grad, i32 accumulate) {
  __shared__ float of_warp[WARPS];
  const i32 head = i32(blockIdx.x), heads = i32(gridDim.x);
  float sum = 0.f;
  for (i32 i = i32(threadIdx.x); i < B * parts; i += THREADS) sum += gain_sums[(i64(i / parts) * heads + head) * parts + i % parts];
  const float total = sum_of_all(sum, of_warp);
  if (threadIdx.x == 0) q_gain_grad[head] = accumulate ? q_gain_grad[head] + total : total;
}
