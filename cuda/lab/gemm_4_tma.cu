// Ladder of the matrix product, step 4: tiles by the copy engine. C = A B^T as in step 0; m, n multiples of 64, k of 8.
//
// 128 threads compute 64 x 64 of C as in step 3, but none of them carries an operand: one thread names a box of 64 x 64 of the tensor map,
// and the copy engine (TMA) writes it into shared memory, swizzled, and zero where k ends. An mbarrier per stage tells when its bytes have
// landed. There are two stages: while one is multiplied the other fills.
//
//   thread 0   |ask 0|ask 1|                |ask 2|                    ask n+1 when the product of n-1 has ended: its stage is free
//   copies           |== 0 ==|== 1 ==|            |== 2 ==|
//   products                 |== 0 ==|      |== 1 ==|     |== 2 ==|
//
// No fence of the proxies: copies and products are both asynchronous. What is left to gain: all four warps stop between two products, and
// a tile of 64 x 64 loads 16 KB for 0.5 MFLOP (step 5).
// ptxas 13.0: registers: 58, shared: 32,784 bytes, HGMMA: 4
#include "hopper/fence.cuh"
#include "hopper/mbarrier.cuh"
#include "hopper/tma.cuh"
#include "hopper/wgmma.cuh"

using namespace birdie;

constexpr int STAGES = 2;
constexpr u32 TILE_BYTES = 64 * 64 * sizeof(bf16);

extern "C" __global__ __launch_bounds__(128) void lab_gemm_4_tma(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap b, float *c,
                                                                int m, int n, int k) {
  __shared__ __align__(1024) u8 tile_a[STAGES][TILE_BYTES], tile_b[STAGES][TILE_BYTES];
  __shared__ u64 full[STAGES];
  const int thread = threadIdx.x, row = blockIdx.y * 64, column = blockIdx.x * 64, blocks = (k + 63) / 64;
  const int warp = thread / 32, lane = thread % 32;
  if (thread == 0) {
    for (int s = 0; s < STAGES; ++s) mbarrier_init(&full[s], 1);
    fence_barrier_init();
  }
  __syncthreads();
  const auto ask = [&](int block) {
    if (thread != 0 || block >= blocks) return;
    const int s = block % STAGES;
    mbarrier_arrive_expect(&full[s], 2 * TILE_BYTES);
    tma_load_3d(tile_a[s], &a, &full[s], 64 * block, row, 0);
    tma_load_3d(tile_b[s], &b, &full[s], 64 * block, column, 0);
  };

  float sum[32] = {};
  for (int block = 0; block < STAGES - 1; ++block) ask(block);
  for (int block = 0; block < blocks; ++block) {
    ask(block + STAGES - 1);
    const int s = block % STAGES;
    mbarrier_wait(&full[s], block / STAGES & 1);
    const u64 of_a = matrix_descriptor(shared_address(tile_a[s]), 16), of_b = matrix_descriptor(shared_address(tile_b[s]), 16);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; ++j) wgmma_n64<Major::K, Major::K>(sum, of_a + j * K_STEP<Major::K>, of_b + j * K_STEP<Major::K>, true);
    wgmma_commit();
    wgmma_wait<0>();
    __syncthreads(); // All four warps have read the stage: it is asked for again next.
  }
  accumulator_barrier(sum);
  for (int i = 0; i < 32; ++i)
    c[(row + 16 * warp + lane / 4 + 8 * (i >> 1 & 1)) * n + column + 8 * (i >> 2) + 2 * (lane % 4) + (i & 1)] = sum[i];
}
