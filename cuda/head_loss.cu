// Softcap and cross-entropy over a row of logits, with the gradient in place.
//
// 1. Formula, per row: c = 30 tanh(z / 30);  loss = ln sum_j exp(c_j) - c_target;
//      dz_j = gradient_scale (exp(c_j - ln sum) - [j = target]) (1 - (c_j / 30)^2)
//    softcap_score rounds c to bf16 first when asked (published sliding evaluation does).
//    30 is the published cap; the kernels take any C in its place. No maximum is subtracted: |c| <= C, so the sum stays within
//    e^-C .. V e^C, which f32 holds for C up to 64.
//
// 2. Operands: logits bf16 [N, V] in rows of `pitch` elements (from gemm_nt_bf16; dlogits replace them), targets u16 [N], losses f32 [N], partial f32 [G].
//    NOTE: this version passes the logits through global memory once, as bf16; f32 logits exist in registers only.
//
// 3. Work. One warp per row, 8 rows per CTA and trip; lane l holds columns 8 (32 c + l) .. +8 of chunk c. G depends on N.
//
// 4. Pipeline: one pass, the row stays in registers (as tanh values).
//
// 5. Floor (predicted), N = 98304, V = 1024: 403 MB, 134 us.
//
// 6. Fences: __syncthreads between the warps' losses and their sum. The target's logit is read before any lane overwrites the row:
//    the warp's reductions lie between.
//
// 7. Limits: 0 < C <= 64; V at most the suffix (256, 1024, 4096); pitch = V rounded up to 8. The gradient of the padding is zero.
#include "hopper/numeric.cuh"
#include "hopper/warp.cuh"

namespace birdie {

constexpr int THREADS = 256, WARPS = THREADS / 32;

// The softcap C with what follows from it.
struct Cap {
  float c, inverse, slope;
  __device__ __forceinline__ explicit Cap(float cap) : c(cap), inverse(__frcp_rn(cap)), slope(2.f * LOG2_E * inverse) {}
  // tanh(z / C) = 1 - 2 / (e^(2 z / C) + 1): exact limits at both ends, absolute error about 1e-7.
  __device__ __forceinline__ float tanh(float z) const { return 1.f - 2.f * rcp_approx(exp2_approx(z * slope) + 1.f); }
};

// Reads a row as tanh values, returns the natural log of the sum of exponentials. Columns past V are left undefined.
template <int CHUNKS, bool ROUND>
__device__ __forceinline__ float read_row(const bf16 *row, float (&t)[CHUNKS][8], const Cap &cap, i32 V, i32 lane) {
  const float to_exponent = cap.c * LOG2_E;
  float sum = 0.f;
#pragma unroll
  for (int c = 0; c < CHUNKS; ++c) {
    const i32 column = 8 * (32 * c + lane), left = V - column;
    if (left > 0) {
      load8(row + column, t[c]);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        t[c][i] = cap.tanh(t[c][i]);
        if constexpr (ROUND) t[c][i] = round_bf16(cap.c * t[c][i]) * cap.inverse;
        const float e = exp2_approx(t[c][i] * to_exponent);
        sum += i < left ? e : 0.f;
      }
    }
  }
  return log2_approx(group_sum(sum)) * LN_2;
}

template <int CHUNKS>
__device__ __forceinline__ void softcap_loss(bf16 *logits, const u16 *targets, float *partial, float gradient_scale, float softcap, i32 N, i32 V, i32 pitch) {
  __shared__ float of_warp[WARPS];
  const Cap cap(softcap);
  const i32 lane = i32(lane_id()), warp = i32(threadIdx.x / 32);
  float loss = 0.f;
  for (i32 n = i32(blockIdx.x) * WARPS + warp; n < N; n += i32(gridDim.x) * WARPS) {
    bf16 *row = logits + i64(n) * pitch;
    const i32 target = targets[n];
    const float target_logit = cap.c * cap.tanh(bf16_value(row[target]));
    float t[CHUNKS][8];
    const float log_sum = read_row<CHUNKS, false>(row, t, cap, V, lane);
    loss += log_sum - target_logit;
#pragma unroll
    for (int c = 0; c < CHUNKS; ++c) {
      const i32 column = 8 * (32 * c + lane);
      if (column < V) {
#pragma unroll
        for (int i = 0; i < 8; ++i) {
          float p = exp2_approx((t[c][i] * cap.c - log_sum) * LOG2_E);
          if (column + i == target) p -= 1.f;
          t[c][i] = column + i < V ? gradient_scale * p * (1.f - t[c][i] * t[c][i]) : 0.f;
        }
        store8(row + column, t[c]);
      }
    }
  }
  if (lane == 0) of_warp[warp] = loss;
  __syncthreads();
  if (threadIdx.x == 0) {
    float total = 0.f;
    for (int w = 0; w < WARPS; ++w) total += of_warp[w];
    partial[blockIdx.x] = total;
  }
}

template <int CHUNKS, bool ROUND>
__device__ __forceinline__ void softcap_score(const bf16 *logits, const u16 *targets, float *losses, float softcap, i32 N, i32 V, i32 pitch) {
  const Cap cap(softcap);
  const i32 lane = i32(lane_id());
  for (i32 n = i32(blockIdx.x) * WARPS + i32(threadIdx.x / 32); n < N; n += i32(gridDim.x) * WARPS) {
    const bf16 *row = logits + i64(n) * pitch;
    float target_logit = cap.c * cap.tanh(bf16_value(row[targets[n]]));
    if constexpr (ROUND) target_logit = round_bf16(target_logit);
    float t[CHUNKS][8];
    const float log_sum = read_row<CHUNKS, ROUND>(row, t, cap, V, lane);
    if (lane == 0) losses[n] = log_sum - target_logit;
  }
}

} // namespace birdie

using namespace birdie;

#define HEAD_KERNELS(SUFFIX, CHUNKS)                                                                                   \
  extern "C" __global__ void __launch_bounds__(THREADS) softcap_loss_##SUFFIX(                                         \
      bf16 *logits, const u16 *targets, float *partial, float gradient_scale, float softcap, i32 N, i32 V, i32 pitch) {   \
    softcap_loss<CHUNKS>(logits, targets, partial, gradient_scale, softcap, N, V, pitch);                             \
  }                                                                                                                    \
  extern "C" __global__ void __launch_bounds__(THREADS) softcap_score_##SUFFIX(                                        \
      const bf16 *logits, const u16 *targets, float *losses, i32 round_bf16, float softcap, i32 N, i32 V, i32 pitch) {    \
    if (round_bf16) softcap_score<CHUNKS, true>(logits, targets, losses, softcap, N, V, pitch);               \
    else softcap_score<CHUNKS, false>(logits, targets, losses, softcap, N, V, pitch);                         \
  }

HEAD_KERNELS(v256, 1)
HEAD_KERNELS(v1024, 4)
HEAD_KERNELS(v4096, 16)
