// Between attention and its output projection: exclusive self-attention (XSA) and the per-head gate.
//
// 1. Formula, per token and query head h with kv = h / 2, v the value that attention used (not rotated, not normalised):
//      XSA   v^ = v / max(|v|, 1e-12);  a = y . v^;  y' = y - a v^         (y' = y without XSA)
//      gate  out = y' sigmoid(logit + bias[h])                             (out = y' without gate)
//    Backward, g = dout sigmoid(...):  dlogit = (dout . y') s (1 - s);  dy = g - (g . v^) v^;
//      dv^ = - sum over the group's 2 heads of [(y . v^) g + (g . v^) y];  dv_extra = (dv^ - (dv^ . v^) v^) / |v|
//      delta = dy . y   (what attention_backward.cu needs), 0 for rows t >= T
//
// 2. Operands: y, out, dout, dy bf16 [N, H 64]; v bf16, rows of v_stride, first v column; gate logits bf16, rows of
//    gate_stride; bias f32 [H]; delta f32 [B, H, Tp]; dv_extra bf16 [N, KV 64]; dgate like the logits, the padding of its 16
//    columns is zeroed; partial f32 [G, H]: sums of dlogit.
//
// 3. Work. A unit is one head of one token: 8 lanes of 8 channels; 256 threads = 32 units, token-major. The heads of a group
//    are neighbouring units of one warp. H is a power of two, so a lane keeps its head in all trips.
//
// 4. Pipeline: one pass.
//
// 5. Floor (predicted), N = 98304, H = 8: forward 252 MB, 84 us; backward with XSA 453 MB, 151 us; delta alone 201 MB, 67 us.
//
// 6. Fences: __syncthreads between the units' bias sums and the threads that add them in order.
//
// 7. Limits: H = 2 KV, H in {2, 4, 8, 16}.
#include "hopper/numeric.cuh"
#include "hopper/warp.cuh"

namespace birdie {

constexpr int THREADS = 256, LANES = 8, UNITS = THREADS / LANES, GATE_COLUMNS = 16;

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

} // namespace birdie

using namespace birdie;

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_output_forward(const bf16 *y, const bf16 *v, i32 v_stride, const bf16 *gate_logits, i32 gate_stride,
                             const float *gate_bias, i32 xsa, bf16 *out, i32 N, i32 H) {
  const i32 lane = i32(threadIdx.x % LANES), unit = i32(threadIdx.x / LANES), first = i32(blockIdx.x) * UNITS + unit;
  const i32 head = first % H, tokens_per_trip = i32(gridDim.x) * UNITS / H;
  for (i32 n = first / H; n - unit / H < N; n += tokens_per_trip) {
    const i32 token = min(n, N - 1);
    float x[8] = {}, direction[8];
    if (n < N) load8(y + (i64(n) * H + head) * 64 + 8 * lane, x);
    if (xsa) {
      load8(v + i64(token) * v_stride + (head / 2) * 64 + 8 * lane, direction);
      normalise(direction);
      const float a = dot_head(x, direction);
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] -= a * direction[i];
    }
    if (gate_logits != nullptr) {
      const float s = sigmoid(bf16_value(gate_logits[i64(token) * gate_stride + head]) + gate_bias[head]);
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] *= s;
    }
    if (n < N) store8(out + (i64(n) * H + head) * 64 + 8 * lane, x);
  }
}

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_output_backward(const bf16 *dout, const bf16 *y, const bf16 *v, i32 v_stride, const bf16 *gate_logits,
                              i32 gate_stride, const float *gate_bias, i32 xsa, bf16 *dy, float *delta, bf16 *dv_extra,
                              bf16 *dgate, i32 dgate_stride, float *partial, i32 B, i32 T, i32 Tp, i32 H) {
  __shared__ float bias_sums[UNITS];
  const i32 lane = i32(threadIdx.x % LANES), unit = i32(threadIdx.x / LANES), first = i32(blockIdx.x) * UNITS + unit;
  const i32 head = first % H, rows_per_trip = i32(gridDim.x) * UNITS / H, rows = B * Tp;
  float bias_sum = 0.f;

  for (i32 padded = first / H; padded - unit / H < rows; padded += rows_per_trip) {
    const i32 row = min(padded, rows - 1), b = row / Tp, t = row - b * Tp, token = b * T + min(t, T - 1);
    const bool live = padded < rows && t < T;
    const i64 place = (i64(token) * H + head) * 64 + 8 * lane;
    float g[8], value[8];
    load8(dout + place, g);
    load8(y + place, value);
    float direction[8], inverse = 0.f, a = 0.f;
    if (xsa) {
      load8(v + i64(token) * v_stride + (head / 2) * 64 + 8 * lane, direction);
      inverse = normalise(direction);
      a = dot_head(value, direction); // y . v^
    }
    if (gate_logits != nullptr) {
      const float s = sigmoid(bf16_value(gate_logits[i64(token) * gate_stride + head]) + gate_bias[head]);
      float dot = dot_head(g, value);
      if (xsa) dot -= a * dot_head(g, direction); // dout . y'
      const float dlogit = dot * s * (1.f - s);
      if (live) {
        bias_sum += dlogit;
        // Lane 0 writes the logit's gradient, the others zero the padding columns of this head's residue class.
        const i32 column = head + H * lane;
        if (column < GATE_COLUMNS) dgate[i64(token) * dgate_stride + column] = to_bf16(lane == 0 ? dlogit : 0.f);
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) g[i] *= s;
    }
    float d = dot_head(g, value);
    if (xsa) {
      const float e = dot_head(g, direction); // g . v^
      d -= a * e;
      float dv[8];
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        dv[i] = -(a * g[i] + e * value[i]);
        dv[i] += __shfl_xor_sync(FULL_MASK, dv[i], LANES); // the group's other head
        g[i] -= e * direction[i];
      }
      const float along = dot_head(dv, direction);
#pragma unroll
      for (int i = 0; i < 8; ++i) dv[i] = (dv[i] - along * direction[i]) * inverse;
      if (live && head % 2 == 0) store8(dv_extra + i64(token) * H * 32 + (head / 2) * 64 + 8 * lane, dv);
    }
    if (live && dy != nullptr) store8(dy + place, g);
    if (padded < rows && lane == 0) delta[(i64(b) * H + head) * Tp + t] = live ? d : 0.f;
  }

  if (partial != nullptr) {
    if (lane == 0) bias_sums[unit] = bias_sum;
    __syncthreads();
    const i32 j = i32(threadIdx.x);
    if (j < H) {
      float total = 0.f;
      for (i32 u = j; u < UNITS; u += H) total += bias_sums[u];
      partial[i64(blockIdx.x) * H + j] = total;
    }
  }
}
