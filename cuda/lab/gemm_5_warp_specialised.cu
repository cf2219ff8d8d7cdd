// Ladder of the matrix product, step 5: warps with roles. C = A B^T as in step 0, C bf16 from here on; m, n, k multiples of 8.
//
// 384 threads compute 128 x 128 of C. Warpgroup 0 is the producer: one thread asks for all k-blocks, waiting only for free stages, and
// keeps 40 registers (`setmaxnreg` gives the rest to the others). Warpgroups 1 and 2 are the consumers, 232 registers and 64 rows of C each:
// products of 64 x 128, half as many bytes of L2 per FLOP as in step 4. While one consumer waits for its product or stores, the other's
// products keep the tensor core busy.
//
//   producer     |ask 0|ask 1|ask 2|ask 3|wait empty 0|ask 4|...          full[s]: bytes of stage s have landed
//   consumer 0   |wait full 0|== 0 ==|release 0|== 1 ==|...              empty[s]: all 8 warps of the consumers have released it
//   consumer 1   |wait full 0        |== 0 ==|release 0|== 1 ==|...
//
// Epilogue: packed to bf16, by stmatrix into boxes of 64 x 64, out by the copy engine in whole lines (step 4 stores half sectors), which
// clips what lies outside of C.
// What is left to gain: CTAs above one another load the same B; the grid starts and drains per tile (step 6).
// ptxas 13.0: registers: 168, shared: 0 bytes, HGMMA: 4, dynamic: 164,928 bytes
#include "hopper/barrier.cuh"
#include "hopper/fence.cuh"
#include "hopper/matrix_moves.cuh"
#include "hopper/mbarrier.cuh"
#include "hopper/numeric.cuh"
#include "hopper/tma.cuh"
#include "hopper/wgmma.cuh"

using namespace birdie;

constexpr int STAGES = 4;
constexpr u32 BOX_BYTES = 64 * 64 * sizeof(bf16), TILE_BYTES = 2 * BOX_BYTES;

struct alignas(1024) Shared {
  u8 a[STAGES][TILE_BYTES], b[STAGES][TILE_BYTES];
  u8 c[2][2][BOX_BYTES]; // consumer, columns / 64
  u64 full[STAGES], empty[STAGES];
};

extern "C" __global__ __launch_bounds__(384, 1) void lab_gemm_5_warp_specialised(const __grid_constant__ TensorMap a,
                                                                                const __grid_constant__ TensorMap b,
                                                                                const __grid_constant__ TensorMap c, int m, int n, int k) {
  extern __shared__ u8 bytes[];
  Shared &shared = *reinterpret_cast<Shared *>((reinterpret_cast<u64>(bytes) + 1023) & ~u64(1023)); // the swizzle wants multiples of 1024
  const int row = blockIdx.y * 128, column = blockIdx.x * 128, blocks = (k + 63) / 64;
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) {
      mbarrier_init(&shared.full[s], 1);
      mbarrier_init(&shared.empty[s], 8);
    }
    fence_barrier_init();
  }
  __syncthreads();
  RingPosition<STAGES> ring;

  if (threadIdx.x < 128) { // ---- producer
    registers_decrease<40>();
    if (threadIdx.x == 0) {
      for (int block = 0; block < blocks; ++block, ring.advance()) {
        const u32 s = ring.stage;
        mbarrier_wait(&shared.empty[s], ring.phase ^ 1); // the first trip round the ring waits for nobody
        mbarrier_arrive_expect(&shared.full[s], 2 * TILE_BYTES);
        tma_load_3d(shared.a[s], &a, &shared.full[s], 64 * block, row, 0);
        tma_load_3d(shared.b[s], &b, &shared.full[s], 64 * block, column, 0);
      }
    }
    return;
  }

  // ---- consumers
  registers_increase<232>();
  const int consumer = threadIdx.x / 128 - 1, thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
  float sum[64] = {};
  for (int block = 0; block < blocks; ++block, ring.advance()) {
    const u32 s = ring.stage;
    mbarrier_wait(&shared.full[s], ring.phase);
    const u64 of_a = matrix_descriptor(shared_address(shared.a[s]) + consumer * BOX_BYTES, 16);
    const u64 of_b = matrix_descriptor(shared_address(shared.b[s]), 16);
    wgmma_fence();
#pragma unroll
    for (int j = 0; j < 4; ++j) wgmma_n128<Major::K, Major::K>(sum, of_a + j * K_STEP<Major::K>, of_b + j * K_STEP<Major::K>, true);
    wgmma_commit();
    wgmma_wait<0>();
    if (lane == 0) mbarrier_arrive(&shared.empty[s]);
  }
  accumulator_barrier(sum);

#pragma unroll
  for (int j = 0; j < 8; ++j) { // 16 columns at a time: four 8 x 8 tiles of this warp's 16 rows
    const float *x = sum + 8 * j;
    stmatrix_x4(shared_address(shared.c[consumer][j / 4]) + swizzle_128b(16 * warp + lane % 16, 16 * (j % 4) + 8 * (lane / 16)),
                pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
  }
  fence_proxy_async_shared(); // each writer, before the barrier: the copy engine sees what it reads
  named_barrier_sync(1 + consumer, 128);
  if (thread == 0) {
    for (int box = 0; box < 2; ++box) tma_store_3d(&c, shared.c[consumer][box], column + 64 * box, row + 64 * consumer, 0);
    bulk_commit();
    bulk_wait_read<0>(); // shared memory must outlive the reads
  }
}
