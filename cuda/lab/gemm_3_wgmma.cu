// Ladder of the matrix product, step 3: the tensor core, four warps at a time. C = A B^T as in step 0; m, n, k multiples of 64.
//
// 128 threads compute 64 x 64 of C by wgmma, which reads both operands from shared memory itself: no fragment loads. The tiles lie
// there under the 128-byte swizzle: chunk c of 16 bytes of row r is at c ^ (r % 8).
// What is left to gain: threads still carry the tiles from global memory, and the tensor core waits meanwhile (cuda/gemm.cu: the copy
// engine fills a ring of stages, one warp does nothing but ask for them).
// ptxas 13.0: registers: 64, shared: 16,384 bytes, HGMMA: 4
#include <cuda_bf16.h>

#include "hopper/fence.cuh"
#include "hopper/types.cuh"
#include "hopper/wgmma.cuh"

extern "C" __global__ __launch_bounds__(128) void lab_gemm_3_wgmma(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *c, int m, int n, int k) {
  using namespace birdie;
  __shared__ __align__(1024) uint4 tile_a[64 * 8], tile_b[64 * 8];
  const int thread = threadIdx.x, row = blockIdx.y * 64, column = blockIdx.x * 64;
  const int warp = thread / 32, lane = thread % 32;
  float sum[32] = {};
  const u64 of_a = matrix_descriptor(shared_address(tile_a), 1), of_b = matrix_descriptor(shared_address(tile_b), 1);
  for (int start = 0; start < k; start += 64) {
    for (int i = thread; i < 64 * 8; i += 128) {
      const int r = i / 8, s = i % 8, at = 8 * r + (s ^ r % 8);
      tile_a[at] = *reinterpret_cast<const uint4 *>(&a[(row + r) * k + start + 8 * s]);
      tile_b[at] = *reinterpret_cast<const uint4 *>(&b[(column + r) * k + start + 8 * s]);
    }
    // Written by the generic proxy, read by the async proxy: without the fence the product may read old bytes.
    fence_proxy_async_shared();
    __syncthreads();
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; ++j)
      wgmma_n64<Major::K, Major::K>(sum, of_a + j * K_STEP<Major::K>, of_b + j * K_STEP<Major::K>, true);
    wgmma_commit();
    wgmma_wait<0>();
    accumulator_barrier(sum);
    __syncthreads(); // The tiles are overwritten next.
  }
  for (int i = 0; i < 32; ++i)
    c[(row + 16 * warp + lane / 4 + 8 * (i >> 1 & 1)) * n + column + 8 * (i >> 2) + 2 * (lane % 4) + (i & 1)] = sum[i];
}
