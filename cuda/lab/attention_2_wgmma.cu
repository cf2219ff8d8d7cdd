// Ladder of attention, step 2: both products on the tensor core. The operation of step 0; t a multiple of 64.
//
// 128 threads own 64 query rows of a head. S = Q K^T reads both operands from shared memory. A thread then holds 16 scores of each of
// ptxas 13.0: registers: 103, shared: 24,576 bytes, HGMMA: 8
// accumulator, packed to bf16, is the layout of an A operand, so O += P V takes them as they are, and V as it lies (its columns contiguous).
// Exponents are of 2, the scale of the scores folded into them: one FMA and one ex2 per score.
// What is left to gain: threads carry the tiles, and the tensor core waits for them and for the exponentials (step 3).
#include "hopper/fence.cuh"
#include "hopper/numeric.cuh"
#include "hopper/warp.cuh"
#include "hopper/wgmma.cuh"

using namespace birdie;

constexpr float SCALE_LOG2 = 0.125f * LOG2_E;

extern "C" __global__ __launch_bounds__(128) void lab_attention_2_wgmma(const bf16 *q, const bf16 *k, const bf16 *v, float *o, int t) {
  __shared__ __align__(1024) uint4 tile_q[64 * 8], tile_k[64 * 8], tile_v[64 * 8];
  const int thread = threadIdx.x, warp = thread / 32, lane = thread % 32, first = 64 * blockIdx.x, row = first + 16 * warp + lane / 4;
  const i64 base = i64(blockIdx.y) * t * 64;
  const auto load = [&](uint4 *tile, const bf16 *from) { // 64 rows of 8 chunks, under the 128-byte swizzle
    for (int i = thread; i < 64 * 8; i += 128) tile[i ^ i / 8 % 8] = reinterpret_cast<const uint4 *>(from)[i];
  };
  const u64 of_q = matrix_descriptor(shared_address(tile_q), 16), of_k = matrix_descriptor(shared_address(tile_k), 16);
  const u64 of_v = matrix_descriptor(shared_address(tile_v), 16);
  float out[32] = {}, largest[2] = {-INFINITY, -INFINITY}, total[2] = {};
  load(tile_q, q + base + 64 * first);
  for (int start = 0; start <= first; start += 64) {
    load(tile_k, k + base + 64 * start);
    load(tile_v, v + base + 64 * start);
    fence_proxy_async_shared();
    __syncthreads();

    float s[32]; // the first product overwrites what they hold
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; ++j) wgmma_n64<Major::K, Major::K>(s, of_q + j * K_STEP<Major::K>, of_k + j * K_STEP<Major::K>, j != 0);
    wgmma_commit();
    wgmma_wait<0>();
    accumulator_barrier(s);

    if (start == first) { // the diagonal
#pragma unroll
      for (int i = 0; i < 32; ++i)
        if (start + 8 * (i >> 2) + 2 * (lane % 4) + (i & 1) > row + 8 * (i >> 1 & 1)) s[i] = -INFINITY;
    }
#pragma unroll
    for (int half = 0; half < 2; ++half) { // rows `row` and `row + 8`
      float now = largest[half];
#pragma unroll
      for (int i = 0; i < 32; i += 4) now = fmaxf(now, fmaxf(s[i + 2 * half], s[i + 2 * half + 1]));
      now = group_max<4>(now);
      const float correction = exp2_approx((largest[half] - now) * SCALE_LOG2);
      largest[half] = now;
      total[half] *= correction;
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        if ((i >> 1 & 1) != half) continue;
        s[i] = exp2_approx(s[i] * SCALE_LOG2 - now * SCALE_LOG2);
        total[half] += s[i];
        out[i] *= correction;
      }
    }
    u32 p[4][4];
#pragma unroll
    for (int i = 0; i < 16; ++i) p[i / 4][i % 4] = pack_bf16(s[2 * i], s[2 * i + 1]);
    accumulator_barrier(out); // The compiler may not move the corrections behind the fence.
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; ++j) wgmma_n64<Major::MN>(out, p[j], of_v + j * K_STEP<Major::MN>, true);
    wgmma_commit();
    wgmma_wait<0>();
    accumulator_barrier(out);
    __syncthreads(); // The tiles are overwritten next.
  }
#pragma unroll
  for (int half = 0; half < 2; ++half) total[half] = group_sum<4>(total[half]);
#pragma unroll
  for (int i = 0; i < 32; ++i) {
    const int half = i >> 1 & 1;
    o[base + (row + 8 * half) * 64 + 8 * (i >> 2) + 2 * (lane % 4) + (i & 1)] = out[i] / total[half];
  }
}
