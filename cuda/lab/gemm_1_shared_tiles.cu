// Ladder of the matrix product, step 1: tiles in shared memory. C = A B^T as in step 0; m, n multiples of 64, k of 16.
//
// 256 threads compute 64 x 64 of C, 4 x 4 each (rows and columns 16 apart), from tiles of 64 x 16 that are read once per CTA:
// an operand from global memory serves 64 products instead of one, one from shared memory four.
// NOTE: rows of 17 floats: the 16 rows that a warp reads of B lie in different banks. A warp that fills two rows meets one bank twice.
// ptxas 13.0: registers: 64, shared: 8,704 bytes
#include <cuda_bf16.h>

#include "hopper/types.cuh"

extern "C" __global__ __launch_bounds__(256) void lab_gemm_1_shared_tiles(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *c, int m, int n,
                                                                         int k) {
  __shared__ float tile_a[64][17], tile_b[64][17];
  const int thread = threadIdx.x, row = blockIdx.y * 64, column = blockIdx.x * 64;
  const int y = thread / 16, x = thread % 16;
  float sum[4][4] = {};
  for (int start = 0; start < k; start += 16) {
    for (int i = thread; i < 64 * 16; i += 256) {
      tile_a[i / 16][i % 16] = __bfloat162float(a[(row + i / 16) * k + start + i % 16]);
      tile_b[i / 16][i % 16] = __bfloat162float(b[(column + i / 16) * k + start + i % 16]);
    }
    __syncthreads();
#pragma unroll
    for (int j = 0; j < 16; ++j)
#pragma unroll
      for (int r = 0; r < 4; ++r)
#pragma unroll
        for (int s = 0; s < 4; ++s) sum[r][s] += tile_a[y + 16 * r][j] * tile_b[x + 16 * s][j];
    __syncthreads(); // The tiles are overwritten next.
  }
  for (int r = 0; r < 4; ++r)
    for (int s = 0; s < 4; ++s) c[(row + y + 16 * r) * n + column + x + 16 * s] = sum[r][s];
}
