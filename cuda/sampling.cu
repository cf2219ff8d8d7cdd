// The next token of each sequence, sampled from its last logits with a counter-based generator.
//
// 1. Formula, per row: l_j = bf16(bf16(C tanh(z_j / C)) / temperature);  token = argmax_j (l_j - ln(-ln u_j)),  u_j uniform in (0, 1).
//    The second term is a Gumbel variable, so the token is a sample of softmax(l) (rounded as the published calibration rounds it), and
//    no sum over the row is needed. Without logits all l_j are 0: the token is uniform. Ties go to the smaller id.
//    u_j comes from Philox4x32-10: key = seed, counter = (j / 4, sequence, position, 0), word j % 4. So a token depends on seed,
//    sequence, position and logits alone, not on how sequences are batched or on the device.
//
// 2. Operands: logits bf16, row r at logits + r row_stride, V of them (null: uniform), row_stride at least V rounded up to 8; out u16 [rows].
//
// 3. Work. One warp per row, 8 rows per CTA; lane l holds columns 8 (32 c + l) .. +8 of chunk c, two generator calls each.
//
// 4. Pipeline: none.   5. Floor (predicted): latency of one launch; 64 rows of 1024 logits are 131 KB.   6. Fences: none.
//
// 7. Limits: V up to 65536, row_stride a multiple of 8. u has 23 bits: it is (k + 1/2) / 2^23, exact in f32, so both logarithms are finite;
//    the smallest probability that can be drawn is about 2^-24.
// 8. Machine code (ptxas 13.0): registers: 32, shared: 0 bytes
#include "hopper/numeric.cuh"
#include "hopper/warp.cuh"

namespace birdie {

constexpr int SAMPLING_THREADS = 256;

// Philox4x32 with 10 rounds (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3").
__device__ __forceinline__ uint4 philox(uint4 counter, u32 key0, u32 key1) {
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const u32 high0 = __umulhi(0xd2511f53u, counter.x), low0 = 0xd2511f53u * counter.x;
    const u32 high1 = __umulhi(0xcd9e8d57u, counter.z), low1 = 0xcd9e8d57u * counter.z;
    counter = make_uint4(high1 ^ counter.y ^ key0, low1, high0 ^ counter.w ^ key1, low0);
    key0 += 0x9e3779b9u;
    key1 += 0xbb67ae85u;
  }
  return counter;
}

// -ln(-ln u). NOTE: the exact logarithm, not lg2.approx: near u = 1 the approximation's absolute error exceeds -ln u.
__device__ __forceinline__ float gumbel(u32 bits) {
  const float u = (float(bits >> 9) + 0.5f) * (1.f / 8388608.f);
  return -logf(-logf(u));
}

} // namespace birdie

using namespace birdie;

extern "C" __global__ void __launch_bounds__(SAMPLING_THREADS)
    sample_tokens(const bf16 *logits, i64 row_stride, u16 *out, i32 rows, i32 V, float softcap, float temperature, u64 seed, i32 first_sequence,
                  i32 position) {
  const i32 row = i32(blockIdx.x) * (SAMPLING_THREADS / 32) + i32(threadIdx.x / 32), lane = i32(lane_id());
  if (row >= rows) return;
  const float slope = 2.f * __frcp_rn(softcap);
  float best = -INFINITY;
  i32 token = 0;
  for (i32 column = 8 * lane; column < V; column += 256) {
    float l[8] = {};
    if (logits != nullptr) {
      load8(logits + row * row_stride + column, l);
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const float capped = round_bf16(softcap * (1.f - 2.f * rcp_approx(exp_approx(l[i] * slope) + 1.f)));
        l[i] = round_bf16(__fdiv_rn(capped, temperature));
      }
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const uint4 counter = make_uint4(u32(column / 4 + half), u32(first_sequence + row), u32(position), 0);
      const uint4 r = philox(counter, u32(seed), u32(seed >> 32));
      const u32 bits[4] = {r.x, r.y, r.z, r.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float score = l[4 * half + i] + gumbel(bits[i]);
        if (column + 4 * half + i < V && score > best) best = score, token = column + 4 * half + i;
      }
    }
  }
#pragma unroll
  for (int step = 16; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(FULL_MASK, best, step);
    const i32 other_token = __shfl_xor_sync(FULL_MASK, token, step);
    if (other > best || (other == best && other_token < token)) best = other, token = other_token;
  }
  if (lane == 0) out[row] = u16(token);
}
