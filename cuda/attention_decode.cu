// Attention of one new token per sequence against a cache of keys and values: head dimension 64.
//
// 1. Formula, per sequence b and query head h with kv = h / group, n = lengths[b] >= 1 keys (the new token's among them):
//      p_i = exp(q_h . k_i / 8), i < n;   out_h = sum_i p_i v_i / sum_i p_i
//    attention_decode_d64 gives each part of the context its maximum m (of exponents of 2), sum l and unnormalised output;
//    attention_decode_combine_d64 puts the parts together: y = sum 2^(m_s - M) o_s / sum 2^(m_s - M) l_s, and does XSA and gate to it
//    as attention_forward.cu does, the own value being that of the last key. attention_decode_append_d64 puts the new token's key and
//    value into the cache.
//
// 2. Operands: q bf16, rows of q_stride, first q column; k, v bf16, first column of their part: row t of sequence b begins
//    b kv_sequence + t kv_stride elements behind; lengths i32 [B]; maxima_sums f32 [B, H, splits, 2]; outputs f32 [B, H, splits, 64];
//    out bf16, rows of out_stride; gate logits bf16, rows of gate_stride, null without gate; gate_bias f32 [H]. The new token's k | v: bf16,
//    rows of new_stride; the cache's rows are k | v, too: 2 KV 64 columns.
//
// 3. Work. Grid (splits, H, B): a CTA takes one part of one head's context, ceil(n / splits) keys. 128 threads = 16 units of 8 lanes; a
//    lane has 8 channels; unit u takes keys u, u + 16, ... with a running softmax of its own, four keys at a time so that eight loads
//    are under way. The heads of a group read the same keys one after the other, from L2. Combine: grid (H, B), a warp, two
//    columns a lane. Append: grid (B), 16 bytes a thread at a time.
//    WHY NOT the tensor core: one query row would fill one row of 64.
//
// 4. Pipeline: one pass over the part, then the units' results are put together in order.
//
// 5. Floor (predicted): 256 bytes per key and key/value head at 3.0 TB/s; a context of 2048, KV = 4, one sequence: 2.1 MB, 0.7 us, so
//    that three launches (about 3 us) bound it; 64 sequences: 134 MB, 45 us.
//
// 6. Fences: __syncthreads between the units' results and the threads that add them.
//
// 7. Limits: lengths >= 1; KV divides H; kv_stride, kv_sequence and q_stride multiples of 8.
// 8. Machine code (ptxas 13.0): registers: 30..64, shared: 0..4,224 bytes
#include "hopper/numeric.cuh"
#include "hopper/warp.cuh"

namespace birdie {

constexpr int HEAD_DIM = 64, THREADS = 128, LANES = 8, UNITS = THREADS / LANES, KEYS = 4;
constexpr float SCALE_LOG2 = 0.125f * LOG2_E;

} // namespace birdie

using namespace birdie;

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_decode_d64(const bf16 *q, i32 q_stride, const bf16 *k, const bf16 *v, i32 kv_stride, i64 kv_sequence,
                         const i32 *lengths, float *maxima_sums, float *outputs, i32 group) {
  __shared__ float maxima[UNITS], sums[UNITS], unit_outputs[UNITS][HEAD_DIM];
  const i32 head = i32(blockIdx.y), b = i32(blockIdx.z), lane = i32(threadIdx.x % LANES), unit = i32(threadIdx.x / LANES);
  const i32 length = lengths[b], part = ceil_div(length, i32(gridDim.x));
  const i32 begin = i32(blockIdx.x) * part, end = min(begin + part, length);
  const i64 place = i64(b) * kv_sequence + (head / group) * HEAD_DIM + 8 * lane;

  float query[8], o[8] = {}, maximum = -INFINITY, sum = 0.f;
  load8(q + i64(b) * q_stride + head * HEAD_DIM + 8 * lane, query);
#pragma unroll
  for (int i = 0; i < 8; ++i) query[i] *= SCALE_LOG2;

  // NOTE: the loop bound is that of the CTA, so that all lanes of a warp meet in the shuffles; a key behind the end weighs nothing.
  for (i32 first = begin; first < end; first += UNITS * KEYS) {
    uint4 key[KEYS], value[KEYS];
    float score[KEYS];
#pragma unroll
    for (int j = 0; j < KEYS; ++j) {
      const i64 row = place + i64(min(first + UNITS * j + unit, end - 1)) * kv_stride;
      key[j] = *reinterpret_cast<const uint4 *>(k + row);
      value[j] = *reinterpret_cast<const uint4 *>(v + row);
    }
    float next = maximum;
#pragma unroll
    for (int j = 0; j < KEYS; ++j) {
      float x[8], dot = 0.f;
      unpack8(key[j], x);
#pragma unroll
      for (int i = 0; i < 8; ++i) dot += query[i] * x[i];
      dot = group_sum<LANES>(dot);
      score[j] = first + UNITS * j + unit < end ? dot : -INFINITY;
      next = fmaxf(next, score[j]);
    }
    const float base = next == -INFINITY ? 0.f : next; // no key yet: infinities must not be subtracted
    const float rescale = exp2_approx(maximum - base);
    maximum = next;
    sum *= rescale;
#pragma unroll
    for (int i = 0; i < 8; ++i) o[i] *= rescale;
#pragma unroll
    for (int j = 0; j < KEYS; ++j) {
      const float p = exp2_approx(score[j] - base);
      float x[8];
      unpack8(value[j], x);
      sum += p;
#pragma unroll
      for (int i = 0; i < 8; ++i) o[i] += p * x[i];
    }
  }

  if (lane == 0) maxima[unit] = maximum, sums[unit] = sum;
#pragma unroll
  for (int i = 0; i < 8; ++i) unit_outputs[unit][8 * lane + i] = o[i];
  __syncthreads();
  if (threadIdx.x < HEAD_DIM) {
    float largest = maxima[0], total = 0.f, output = 0.f;
    for (int u = 1; u < UNITS; ++u) largest = fmaxf(largest, maxima[u]);
    const float base = largest == -INFINITY ? 0.f : largest;
    for (int u = 0; u < UNITS; ++u) {
      const float weight = exp2_approx(maxima[u] - base);
      total += weight * sums[u];
      output += weight * unit_outputs[u][threadIdx.x];
    }
    const i64 index = (i64(b) * gridDim.y + head) * gridDim.x + blockIdx.x;
    outputs[index * HEAD_DIM + threadIdx.x] = output;
    if (threadIdx.x == 0) maxima_sums[2 * index] = largest, maxima_sums[2 * index + 1] = total;
  }
}

extern "C" __global__ void __launch_bounds__(32)
    attention_decode_combine_d64(const float *maxima_sums, const float *outputs, i32 splits, const bf16 *v, i32 kv_stride,
                                 i64 kv_sequence, const i32 *lengths, i32 xsa, const bf16 *gate_logits, i32 gate_stride,
                                 const float *gate_bias, bf16 *out, i32 out_stride, i32 group) {
  const i32 h = i32(blockIdx.x), lane = i32(threadIdx.x);
  const i64 b = blockIdx.y, head = b * gridDim.x + h;
  const float *parts = maxima_sums + 2 * head * splits, *values = outputs + head * splits * HEAD_DIM + 2 * lane;
  float largest = parts[0], sum = 0.f, x = 0.f, y = 0.f; // columns 2 lane and 2 lane + 1
  for (i32 s = 1; s < splits; ++s) largest = fmaxf(largest, parts[2 * s]);
  for (i32 s = 0; s < splits; ++s) {
    const float weight = exp2_approx(parts[2 * s] - largest);
    const float2 value = *reinterpret_cast<const float2 *>(values + i64(s) * HEAD_DIM);
    sum += weight * parts[2 * s + 1];
    x += weight * value.x, y += weight * value.y;
  }
  const float inverse_sum = rcp_approx(sum);
  x *= inverse_sum, y *= inverse_sum;
  if (xsa) {
    const u32 own = *reinterpret_cast<const u32 *>(v + b * kv_sequence + i64(lengths[b] - 1) * kv_stride + (h / group) * HEAD_DIM + 2 * lane);
    const float low = bf16_low(own), high = bf16_high(own);
    const float inverse = fminf(rsqrt_approx(group_sum(low * low + high * high)), 1e12f); // 1 / max(|v|, 1e-12)
    const float factor = group_sum(x * low + y * high) * inverse * inverse;
    x -= factor * low, y -= factor * high;
  }
  if (gate_logits != nullptr) {
    const float s = sigmoid(bf16_value(gate_logits[b * gate_stride + h]) + gate_bias[h]);
    x *= s, y *= s;
  }
  *reinterpret_cast<u32 *>(out + b * out_stride + h * HEAD_DIM + 2 * lane) = pack_bf16(x, y);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    attention_decode_append_d64(const bf16 *new_kv, i32 new_stride, const i32 *lengths, bf16 *cache, i32 kv_stride, i64 kv_sequence,
                                i32 columns) {
  const i64 b = blockIdx.x;
  const bf16 *source = new_kv + b * new_stride;
  bf16 *target = cache + b * kv_sequence + i64(lengths[b] - 1) * kv_stride;
  for (i32 c = 8 * i32(threadIdx.x); c < columns; c += 8 * THREADS)
    *reinterpret_cast<uint4 *>(target + c) = *reinterpret_cast<const uint4 *>(source + c);
}
