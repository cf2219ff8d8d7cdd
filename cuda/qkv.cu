// Backward of the step between the QKV product and attention: q/k RMSNorm, partial RoPE and gain; value embedding and value mix.
// The forward is the product's epilogue (gemm_qkv.cu).
//
// 1. Formula, per token at position t = n mod T and head of 64 channels, for what the forward stored: z = gain rope_t(y), y = x / rms,
//    r = f / rms (gain 1 for k; x is the raw projection, which is not kept; f its row factor, row_scale.cuh). rope_t is a rotation, so with g = dout:
//      q, k: dot = g . z;  dgain = sum dot / gain;  dx = r rope_t^T(gain g - z dot / (64 gain))
//      v: g = dout + dv_extra (+ dv_first, role 3);  dx = f c1 g;  dv_first (+)= c0 g;  dc0 = sum g v_first, dc1 = sum g w
//    where out = c0 v_first + c1 w, w = v_raw + ve_scale ve_table[id]. qkv_backward_finish turns dc0, dc1 into the gradient of mix.
//
// 2. Operands: ready, dout bf16 [N, C], C = (H + 2 KV) 64, columns q | k | v; inverse_rms f32 [N, R] (qkv.cuh); dqkv bf16 [N, S]; rope f32
//    [T, 2 P] = P cosines, P sines; ve_table bf16 [V, KV 64]; v_raw bf16 [N, KV 64], only with a mix; v_first: the raw v columns of
//    layer 0; dv_first, dv_extra, dv (g c1, for a value embedding) bf16 [N, KV 64]; partial f32 [G, H+2]: dgain of each head, dc0, dc1.
//
// 3. Work. A unit is one head of one token: 8 lanes with 8 channels (16 bytes) each. 256 threads = 32 units; units are
//    numbered token-major. The host makes the grid a multiple of heads / gcd(heads, 32), heads = H + 2 KV: the units of a trip are
//    then whole tokens, and a lane keeps its head in all trips.
//
// 4. Pipeline: one pass.
//
// 5. Floor (predicted), N = 98304, H = 8, KV = 4: dout and dqkv 201 MB each, ready 151 MB (v is not read without a mix), 184 us. Lanes meet in banks when
//    a CTA adds its units' sums at its end: a third of accesses to shared memory that all take 0.1 us.
//
// 6. Fences: __syncthreads between the units' sums and the threads that add them in order.
//
// 7. Limits: 1 <= P <= 32; with P = 8, as published, the partner of a channel comes from the neighbour lane, else from memory. H at most 64,
//    any KV that divides it; S a multiple of 8. The gain is used_gain (qkv.cuh), so that z / gain is y whatever the parameter is.
// 8. Machine code (ptxas 13.0): registers: 32..48, shared: 8..384 bytes
#include "hopper/warp.cuh"
#include "qkv.cuh"
#include "row_scale.cuh"

namespace birdie {

constexpr int THREADS = 256, LANES = 8, UNITS = THREADS / LANES, FINISH_THREADS = 128;

enum FirstRole { FIRST_NONE = 0, FIRST_WRITE = 1, FIRST_ADD = 2, FIRST_TAKE = 3 };

// Rotates the first 16 channels of a head back. The partner of lane 0 (channels 0..7) is lane 1 (8..15).
__device__ __forceinline__ void rotate_back(float (&x)[8], const float *rope, i32 t, i32 lane) {
  float partner[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) partner[i] = __shfl_xor_sync(FULL_MASK, x[i], 1);
  if (lane < 2) {
    float cosine[8], sine[8];
    load8(rope + i64(t) * 2 * ROPE_PAIRS, cosine);
    load8(rope + i64(t) * 2 * ROPE_PAIRS + ROPE_PAIRS, sine);
    const float sign = lane == 0 ? -1.f : 1.f;
#pragma unroll
    for (int i = 0; i < 8; ++i) x[i] = x[i] * cosine[i] + sign * sine[i] * partner[i];
  }
}

// The same for any number of pairs; `partner` gives another channel of the head.
template <typename F>
__device__ __forceinline__ void rotate_pairs_back(float (&x)[8], const float *rope, i32 pairs, i32 t, i32 lane, F partner) {
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const i32 channel = 8 * lane + i;
    if (channel < 2 * pairs) {
      const bool low = channel < pairs;
      const float *angle = rope + i64(t) * 2 * pairs + (low ? channel : channel - pairs);
      x[i] = x[i] * angle[0] + (low ? -1.f : 1.f) * angle[pairs] * partner(low ? channel + pairs : channel - pairs);
    }
  }
}

__device__ __forceinline__ float dot8(const float (&a)[8], const float (&b)[8]) {
  float total = 0.f;
#pragma unroll
  for (int i = 0; i < 8; ++i) total += a[i] * b[i];
  return total;
}

// w = v_raw + value embedding, for channel offset `c` of the KV 64 value channels.
__device__ __forceinline__ void add_value_embedding(float (&w)[8], const ValueSource &s, i32 token, i32 width, i32 c) {
  if (s.ve_table == nullptr) return;
  const float scale = *s.ve_scale;
  float e[8];
  load8(s.ve_table + i64(s.ids[token]) * width + c, e);
#pragma unroll
  for (int i = 0; i < 8; ++i) w[i] += scale * e[i];
}

} // namespace birdie

using namespace birdie;

extern "C" __global__ void __launch_bounds__(THREADS)
    qkv_backward(const bf16 *dout, const bf16 *dv_extra, const bf16 *ready, const float *inverse_rms, const bf16 *v_raw, bf16 *dqkv, i32 S,
                 const float *q_gain, const float *rope, i32 pairs, const u16 *ids, const bf16 *ve_table, const float *ve_scale,
                 const bf16 *v_first, i32 v_first_stride, const float *mix, i32 v_mode, bf16 *dv_first, i32 dv_first_role,
                 bf16 *dv, float *partial, RowScale scale, i32 N, i32 T, i32 H, i32 KV) {
  __shared__ float gain_sums[UNITS], c0_sums[UNITS], c1_sums[UNITS];
  const ValueSource source{ids, ve_table, ve_scale, v_first, v_first_stride, mix, v_mode};
  const i32 heads = H + 2 * KV, lane = i32(threadIdx.x % LANES), unit = i32(threadIdx.x / LANES);
  const i32 first = i32(blockIdx.x) * UNITS + unit, head = first % heads, tokens_per_trip = i32(gridDim.x) * UNITS / heads;
  const i32 r_pitch = inverse_rms_pitch(H, KV);
  const bool is_value = head >= H + KV;
  const MixCoefficients c(source);
  const float gain = head < H ? used_gain(q_gain[head]) : 1.f, inverse_gain = rcp_approx(gain);
  const i32 column = head * 64 + 8 * lane, value_column = column - (H + KV) * 64;
  float gain_sum = 0.f, c0_sum = 0.f, c1_sum = 0.f;

  const i32 ahead = first / heads - i32(blockIdx.x) * UNITS / heads; // the loop bound is that of the CTA's first unit
  for (i32 n = first / heads; n - ahead < N; n += tokens_per_trip) {
    const i32 token = min(n, N - 1);
    const bool live = n < N;
    float x[8] = {}, g[8];
    load8(dout + i64(token) * heads * 64 + column, g);
    if (!is_value) load8(ready + i64(token) * heads * 64 + column, x);
    const float dot = group_sum<LANES>(dot8(g, x)) * inverse_gain; // g . rope_t(y)
    if (!is_value) {
      if (live) gain_sum += dot;
      const float r = inverse_rms[i64(token) * r_pitch + head], mean = dot * inverse_gain * (1.f / 64.f);
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] = r * gain * (g[i] - x[i] * mean);
      if (pairs != ROPE_PAIRS) {
        const i64 row = i64(token) * heads * 64 + head * 64;
        rotate_pairs_back(x, rope, pairs, token % T, lane, [&](i32 channel) {
          return r * gain * (bf16_value(dout[row + channel]) - bf16_value(ready[row + channel]) * mean);
        });
      }
    } else {
      const i64 place = i64(token) * KV * 64 + value_column;
      float other[8];
      if (dv_extra != nullptr) {
        load8(dv_extra + place, other);
#pragma unroll
        for (int i = 0; i < 8; ++i) g[i] += other[i];
      }
      if (dv_first_role == FIRST_TAKE) {
        load8(dv_first + place, other);
#pragma unroll
        for (int i = 0; i < 8; ++i) g[i] += other[i];
      }
      if (v_mode != VALUE_PLAIN) {
        load8(v_raw + place, x);
        add_value_embedding(x, source, token, KV * 64, value_column);
        load8(v_first + i64(token) * v_first_stride + value_column, other);
        if (live) c0_sum += dot8(g, other), c1_sum += dot8(g, x);
        if (dv_first_role == FIRST_ADD && live) { // NOTE: without a row of its own the unit would read what another one writes
          load8(dv_first + place, other);
        } else {
#pragma unroll
          for (int i = 0; i < 8; ++i) other[i] = 0.f;
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) other[i] += c.c0 * g[i];
        if (live) store8(dv_first + place, other);
      }
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] = c.c1 * g[i];
      if (dv != nullptr && live) store8(dv + place, x);
      const float factor = row_factor_at(scale, token, N);
#pragma unroll
      for (int i = 0; i < 8; ++i) x[i] *= factor;
    }
    if (pairs == ROPE_PAIRS) rotate_back(x, rope, token % T, is_value ? 2 : lane);
    if (live) store8(dqkv + i64(n) * S + column, x);
  }

  c0_sum = group_sum<LANES>(c0_sum);
  c1_sum = group_sum<LANES>(c1_sum);
  if (lane == 0) gain_sums[unit] = gain_sum, c0_sums[unit] = c0_sum, c1_sums[unit] = c1_sum;
  __syncthreads();
  const i32 j = i32(threadIdx.x);
  if (j < H + 2) {
    float total = 0.f;
    // Units of head j: from the first one at or behind the CTA's first head on. The value sums of other heads' units are zero.
    const i32 head0 = i32(blockIdx.x) * UNITS % heads, u0 = j < H ? (j - head0 + heads) % heads : 0;
    for (i32 u = u0; u < UNITS; u += j < H ? heads : 1) total += j < H ? gain_sums[u] : j == H ? c0_sums[u] : c1_sums[u];
    partial[i64(blockIdx.x) * (H + 2) + j] = total;
  }
}

// One CTA; thread j sums column j of partial, then the two mix columns become the gradient of mix.
extern "C" __global__ void __launch_bounds__(FINISH_THREADS)
    qkv_backward_finish(const float *partial, i32 count, i32 H, float *q_gain_grad, const float *mix, i32 v_mode,
                        float *mix_grad, i32 accumulate) {
  __shared__ float dc[2];
  const i32 j = i32(threadIdx.x);
  float total = 0.f;
  if (j < H + 2)
    for (i32 g = 0; g < count; ++g) total += partial[i64(g) * (H + 2) + j];
  if (j < H) q_gain_grad[j] = accumulate ? q_gain_grad[j] + total : total;
  else if (j < H + 2) dc[j - H] = total;
  __syncthreads();
  if (j == 0 && v_mode == VALUE_GATE) {
    const float g = sigmoid(mix[0]), grad = (dc[0] - dc[1]) * g * (1.f - g);
    mix_grad[0] = accumulate ? mix_grad[0] + grad : grad;
  }
  if (j < 2 && v_mode == VALUE_LAMBDA) mix_grad[j] = accumulate ? mix_grad[j] + dc[j] : dc[j];
}
