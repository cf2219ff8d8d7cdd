// Ladder of attention, step 1: tiles and the online softmax. The operation of step 0; t a multiple of 64.
//
// 64 threads own 64 query rows of a head, one each, with the row's query and output in registers. K and V pass by in tiles of 64 keys that
// are read once per CTA. The largest score so far and the sum of exponentials relative to it are kept per row; when a tile raises the
// maximum by m, what has been summed is multiplied by exp(-m). No row of scores is ever stored whole: any t.
// NOTE: all threads of a warp read the same element of a tile: a broadcast, no bank conflict.
// What is left to gain: the products on the tensor core, tiles by the copy engine, softmax of one warpgroup under the products of another
// (cuda/attention_forward.cu).
// ptxas 13.0: registers: 168, shared: 32,768 bytes
#include <cuda_bf16.h>

#include "hopper/types.cuh"

extern "C" __global__ __launch_bounds__(64) void lab_attention_1_online_softmax(const __nv_bfloat16 *q, const __nv_bfloat16 *k,
                                                                               const __nv_bfloat16 *v, float *o, int t) {
  __shared__ float tile_k[64][64], tile_v[64][64];
  const int thread = threadIdx.x, row = 64 * blockIdx.x + thread;
  const long base = long(blockIdx.y) * t * 64;
  float query[64], out[64], largest = -1e30f, total = 0;
#pragma unroll
  for (int i = 0; i < 64; ++i) {
    query[i] = 0.125f * __bfloat162float(q[base + row * 64 + i]);
    out[i] = 0;
  }
  for (int start = 0; start <= 64 * int(blockIdx.x); start += 64) {
    for (int i = thread; i < 64 * 64; i += 64) {
      tile_k[i / 64][i % 64] = __bfloat162float(k[base + (start + i / 64) * 64 + i % 64]);
      tile_v[i / 64][i % 64] = __bfloat162float(v[base + (start + i / 64) * 64 + i % 64]);
    }
    __syncthreads();
    for (int key = 0; key < 64; ++key) {
      float score = 0;
#pragma unroll
      for (int i = 0; i < 64; ++i) score += query[i] * tile_k[key][i];
      if (start + key > row) score = -1e30f; // masked: weighs nothing, since key 0 came before
      const float now = fmaxf(largest, score), correction = __expf(largest - now), weight = __expf(score - now);
      largest = now;
      total = total * correction + weight;
#pragma unroll
      for (int i = 0; i < 64; ++i) out[i] = out[i] * correction + weight * tile_v[key][i];
    }
    __syncthreads(); // The tiles are overwritten next.
  }
#pragma unroll
  for (int i = 0; i < 64; ++i) o[base + row * 64 + i] = out[i] / total;
}
