// Ladder of the matrix product, step 2: the tensor core, a warp at a time. C = A B^T as in step 0; m, n multiples of 64, k of 64.
//
// 128 threads compute 64 x 64 of C; each warp 16 rows by mma.sync m16n8k16. Operands stay bf16 in shared memory.
// NOTE: rows of 72 bf16 (36 words): the 8 rows x 4 words of one fragment load lie in 32 different banks.
// ISA: fragment layouts of mma.m16n8k16.
// ptxas 13.0: registers: 64, shared: 18,432 bytes
#include <cuda_bf16.h>

#include "hopper/types.cuh"

extern "C" __global__ __launch_bounds__(128) void lab_gemm_2_mma_sync(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *c, int m, int n, int k) {
  __shared__ __align__(16) __nv_bfloat16 tile_a[64][72], tile_b[64][72];
  const int thread = threadIdx.x, row = blockIdx.y * 64, column = blockIdx.x * 64;
  const int warp = thread / 32, lane = thread % 32, group = lane / 4, pair = 2 * (lane % 4);
  float sum[8][4] = {};
  for (int start = 0; start < k; start += 64) {
    for (int i = thread; i < 64 * 8; i += 128) {
      const int r = i / 8, s = 8 * (i % 8);
      *reinterpret_cast<uint4 *>(&tile_a[r][s]) = *reinterpret_cast<const uint4 *>(&a[(row + r) * k + start + s]);
      *reinterpret_cast<uint4 *>(&tile_b[r][s]) = *reinterpret_cast<const uint4 *>(&b[(column + r) * k + start + s]);
    }
    __syncthreads();
    auto word = [](const __nv_bfloat16 &at) { return *reinterpret_cast<const unsigned *>(&at); };
#pragma unroll
    for (int j = 0; j < 64; j += 16) {
      const int r = 16 * warp + group;
      const unsigned a0 = word(tile_a[r][j + pair]), a1 = word(tile_a[r + 8][j + pair]);
      const unsigned a2 = word(tile_a[r][j + pair + 8]), a3 = word(tile_a[r + 8][j + pair + 8]);
#pragma unroll
      for (int t = 0; t < 8; ++t) {
        const unsigned b0 = word(tile_b[8 * t + group][j + pair]), b1 = word(tile_b[8 * t + group][j + pair + 8]);
        asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
                     : "+f"(sum[t][0]), "+f"(sum[t][1]), "+f"(sum[t][2]), "+f"(sum[t][3])
                     : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
      }
    }
    __syncthreads(); // The tiles are overwritten next.
  }
  for (int t = 0; t < 8; ++t)
    for (int i = 0; i < 4; ++i) c[(row + 16 * warp + group + 8 * (i / 2)) * n + column + 8 * t + pair + i % 2] = sum[t][i];
}
