// Backward of what attention_forward.cu does to its output, exclusive self-attention (XSA) and the per-head gate; and delta. For groups
// of query heads that gemm_attention_output.cu does not serve: those with XSA whose size is not 1, 2 or 4.
//
// 1. Formula, per token and query head h with kv = h / R, R = H / KV, v the value that attention used (not rotated, not normalised):
//      forward   v^ = v / max(|v|, 1e-12);  a = y . v^;  z = y - a v^;  out = z s,  s = sigmoid(logit + bias[h])
//                (s = 1 without gate; y is attention's output)
//      dlogit = (dout . z) s (1 - s) = (dout . out) (1 - s), stored times f (row_scale.cuh)
//      g = s dout;  dy = g - (g . v^) v^
//      dv^ = - sum over the group's R heads of [a g + (g . v^) y];  dv_extra = (dv^ - (dv^ . v^) v^) / |v|
//      delta = dy . y   (what attention_backward.cu needs), 0 for rows t >= T
//      gate_bias_sum     out[h] (+)= sum over g of partial[g][h], the gradient of bias
//    The forward stored out and a. y = out / s + a v^ has bf16's precision relative to each part, since out is rounded relatively; in
//    dv^ the share of y along v^ is projected away, and (g . v^) z = (dout . v^) out. Where s underflows so does dy, and delta is 0.
//
// 2. Operands: out, dout, dy bf16 [N, H 64]; along (a), delta f32 [B, H, Tp]; v bf16, rows of v_stride, first v column; gate logits
//    bf16, rows of gate_stride; bias f32 [H]; dv_extra bf16 [N, KV 64]; dgate like the logits, the padding of its
//    16 ceil(H / 16) columns is zeroed; partial f32 [G, H]: sums of dlogit.
//
// 3. Work. A unit is one KV head of one token with its R query heads: 8 lanes of 8 channels, which hold v^ and walk the heads. 256
//    threads = 32 units, token-major. The host makes the grid a multiple of KV / gcd(KV, 32): the units of a trip are then whole
//    tokens, and a lane keeps its KV head in all trips. gate_bias_sum: one CTA of 256 threads per head.
//
// 4. Pipeline: one pass; the loads of a head do not depend on the head before.
//
// 5. Floor (predicted), N = 98304, H = 8, KV = 1: 334 MB, 111 us, behind a product of its own.
//
// 6. Fences: __syncthreads between sums (of a unit's biases; of a warp's rows) and the threads that add them in order. A unit's sums are
//    written and read by its lane 0 alone before.
//
// 7. Limits: H at most 64, any KV that divides it.
// 8. Machine code (ptxas 13.0): registers: 18..102, shared: 32..8,192 bytes
#include "hopper/numeric.cuh"
#include "hopper/warp.cuh"
#include "row_scale.cuh"

namespace birdie {

constexpr int THREADS = 256, LANES = 8, UNITS = THREADS / LANES, MOST_HEADS = 64;

__device__ __forceinline__ float dot_head(const float (&a)[8], const float (&b)[8]) {
  float total = 0.f;
#pragma unroll
  for (int i = 0; i < 8; ++i) total += a[i] * b[i];
  return group_sum<LANES>(total);
}
// v <- v / max(|v|, 1e-12); returns 1 / max(|v|, 1e-12).
__device__ __forceinline__ float normalise(float (&v)[8]) {
  const float inverse = fminf(rsqrt_approx(dot_head(v, v)), 1e12f);
#pragma unroll
  for (int i = 0; i < 8; ++i) v[i] *= inverse;
  return inverse;
}

// The unit of a thread: its KV head, the token of its first trip, and the tokens of a trip.
struct Unit {
  i32 lane, unit, kv, first, per_trip, ahead;
  __device__ __forceinline__ explicit Unit(i32 KV)
      : lane(i32(threadIdx.x % LANES)), unit(i32(threadIdx.x / LANES)), kv((i32(blockIdx.x) * UNITS + unit) % KV),
        first((i32(blockIdx.x) * UNITS + unit) / KV), per_trip(i32(gridDim.x) * UNITS / KV),
        ahead(first - i32(blockIdx.x) * UNITS / KV) {}
  // NOTE: the loop bound is that of the CTA's first unit, so that all lanes of a warp meet in the shuffles.
  __device__ __forceinline__ bool more(i32 row, i32 rows) const { return row - ahead < rows; }
};

} // namespace birdie

using namespace birdie;

extern "C" __global__ void __launch_bounds__(THREADS, 2)
    attention_output_backward(const bf16 *dout, const bf16 *out, const float *along, const bf16 *v, i32 v_stride,
                              const bf16 *gate_logits, i32 gate_stride, const float *gate_bias, bf16 *dy, float *delta,
                              bf16 *dv_extra, bf16 *dgate, i32 dgate_stride, RowScale scale, float *partial, i32 B, i32 T, i32 Tp, i32 H,
                              i32 KV) {
  __shared__ float bias_sums[UNITS * MOST_HEADS]; // [unit][head of its group]
  const Unit u(KV);
  const i32 group = H / KV, rows = B * Tp;
  float *mine = bias_sums + u.unit * group;
  if (u.lane == 0)
    for (i32 r = 0; r < group; ++r) mine[r] = 0.f;

  for (i32 padded = u.first; u.more(padded, rows); padded += u.per_trip) {
    const i32 row = min(padded, rows - 1), b = row / Tp, t = row - b * Tp, token = b * T + min(t, T - 1);
    const bool live = padded < rows && t < T;
    const float factor = gate_logits != nullptr ? row_factor_at(scale, token, B * T) : 1.f;
    float direction[8], dv[8] = {};
    load8(v + i64(token) * v_stride + u.kv * 64 + 8 * u.lane, direction);
    const float inverse = normalise(direction);
#pragma unroll 2
    for (i32 r = 0; r < group; ++r) {
      const i32 head = u.kv * group + r;
      const i64 place = (i64(token) * H + head) * 64 + 8 * u.lane;
      const i64 statistic = (i64(b) * H + head) * Tp + t;
      float g[8], x[8]; // x: out, then y
      load8(dout + place, g);
      load8(out + place, x);
      const float a = along[statistic];
      float s = 1.f, inverse_s = 1.f;
      if (gate_logits != nullptr) {
        // NOTE: below 2^-127 s is flushed to zero, and its inverse must not become infinite.
        inverse_s = fminf(1.f + exp_approx(-(bf16_value(gate_logits[i64(token) * gate_stride + head]) + gate_bias[head])), 1e38f);
        s = rcp_approx(inverse_s);
        const float dlogit = dot_head(g, x) * (1.f - s);
        if (live && u.lane == 0) {
          mine[r] += dlogit;
          dgate[i64(token) * dgate_stride + head] = to_bf16(factor * dlogit);
        }
      }
      const float e = dot_head(g, direction); // dout . v^
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        g[i] *= s;
        dv[i] -= a * g[i] + e * x[i];
        g[i] -= s * e * direction[i];
        x[i] = x[i] * inverse_s + a * direction[i];
      }
      if (live) store8(dy + place, g);
      // From dy as it is stored: the backward pass subtracts delta from products with the stored values, and what the two do not
      // share would stay in the gradients of q and k.
#pragma unroll
      for (int i = 0; i < 8; ++i) g[i] = bf16_value(to_bf16(g[i]));
      const float d = dot_head(g, x);
      if (padded < rows && u.lane == 0) delta[statistic] = live ? d : 0.f;
    }
    const float radial = dot_head(dv, direction);
#pragma unroll
    for (int i = 0; i < 8; ++i) dv[i] = (dv[i] - radial * direction[i]) * inverse;
    if (live) store8(dv_extra + (i64(token) * KV + u.kv) * 64 + 8 * u.lane, dv);
    if (gate_logits != nullptr && live && u.kv == 0)
      for (i32 column = H + u.lane; column < (H + 15) / 16 * 16; column += LANES)
        dgate[i64(token) * dgate_stride + column] = to_bf16(0.f);
  }

  if (partial != nullptr) {
    __syncthreads();
    const i32 j = i32(threadIdx.x);
    if (j < H) {
      // Units of head j's group: from the first one at or behind the CTA's first KV head on.
      const i32 kv0 = i32(blockIdx.x) * UNITS % KV;
      float total = 0.f;
      for (i32 unit = (j / group - kv0 + KV) % KV; unit < UNITS; unit += KV) total += bias_sums[unit * group + j % group];
      partial[i64(blockIdx.x) * H + j] = total;
    }
  }
}

// One CTA per head; a thread adds every 256th of the G rows.
extern "C" __global__ void __launch_bounds__(THREADS) gate_bias_sum(const float *partial, i32 count, i32 H, float *out, i32 accumulate) {
  __shared__ float sums[THREADS / 32];
  const i32 head = i32(blockIdx.x);
  float total = 0.f;
  for (i32 g = i32(threadIdx.x); g < count; g += THREADS) total += partial[i64(g) * H + head];
  total = group_sum(total);
  if (lane_id() == 0) sums[threadIdx.x / 32] = total;
  __syncthreads();
  if (threadIdx.x == 0) {
    total = 0.f;
    for (int warp = 0; warp < THREADS / 32; ++warp) total += sums[warp];
    out[head] = accumulate ? out[head] + total : total;
  }
}
