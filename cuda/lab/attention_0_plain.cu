// Ladder of attention, step 0: the formula. O = softmax(Q K^T / 8) V, causal; Q, K, V, O [heads, t, 64], bf16 in, f32 out.
//
// One warp per query row and head; the whole row of scores lies in shared memory (t <= 1024), three passes over it: scores, exponentials
// with their sum, weighted sum of V. Keys and values come from global memory for every row.
// ptxas 13.0: registers: 79, shared: 4,096 bytes
#include <cuda_bf16.h>

#include "hopper/types.cuh"

extern "C" __global__ __launch_bounds__(32) void lab_attention_0_plain(const __nv_bfloat16 *q, const __nv_bfloat16 *k, const __nv_bfloat16 *v,
                                                                      float *o, int t) {
  __shared__ float score[1024];
  const int row = blockIdx.x, lane = threadIdx.x;
  const long base = long(blockIdx.y) * t * 64;
  float largest = -1e30f;
  for (int key = lane; key <= row; key += 32) {
    float sum = 0;
    for (int i = 0; i < 64; ++i) sum += __bfloat162float(q[base + row * 64 + i]) * __bfloat162float(k[base + key * 64 + i]);
    score[key] = sum * 0.125f;
    largest = fmaxf(largest, score[key]);
  }
  for (int step = 16; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
  float total = 0;
  for (int key = lane; key <= row; key += 32) {
    score[key] = __expf(score[key] - largest);
    total += score[key];
  }
  for (int step = 16; step > 0; step /= 2) total += __shfl_xor_sync(~0u, total, step);
  __syncwarp();
  for (int i = lane; i < 64; i += 32) {
    float sum = 0;
    for (int key = 0; key <= row; ++key) sum += score[key] * __bfloat162float(v[base + key * 64 + i]);
    o[base + row * 64 + i] = sum / total;
  }
}
