// Ladder of the matrix product, step 6: clusters, and CTAs that stay. C = A B^T as in step 5; m, n, k multiples of 8.
//
// Tiles of 128 x 256, two CTAs above one another in a cluster: they need the same 256 rows of B, so each loads half of them and the
// copy engine delivers (multicasts) the half to both. Per FLOP that is half of the bytes from L2 of step 5. A stage is free when the
// consumers of both CTAs have released it, because each CTA writes into both.
// Persistent: the grid has as many CTAs as the device has multiprocessors, and cluster i takes pairs of tiles i, i + clusters, ...
// The producer (40 registers; consumers 232 registers) runs ahead into the next tile: its first stages fill under the epilogue of this one.
//
//   producer     |ask tile 0 ....|ask tile 1 ....|
//   consumers       |== tile 0 ====|epilogue|== tile 1 ====|epilogue|
//
// What is left to gain, in gemm.cu: one consumer some k-blocks ahead of the other, so that the epilogue of one falls under the products
// of the other; the next group of products issued before the last has ended; epilogues that do more than store; tiles chosen by shape.
// ptxas 13.0: registers: 168, shared: 0 bytes, HGMMA: 4, dynamic: 214,080 bytes
#include "hopper/barrier.cuh"
#include "hopper/cluster.cuh"
#include "hopper/fence.cuh"
#include "hopper/matrix_moves.cuh"
#include "hopper/mbarrier.cuh"
#include "hopper/numeric.cuh"
#include "hopper/tma.cuh"
#include "hopper/wgmma.cuh"

using namespace birdie;

constexpr int STAGES = 3;
constexpr u32 BOX_BYTES = 64 * 64 * sizeof(bf16), A_BYTES = 2 * BOX_BYTES, B_BYTES = 4 * BOX_BYTES;

struct alignas(1024) Shared {
  u8 a[STAGES][A_BYTES], b[STAGES][B_BYTES];
  u8 c[2][4][BOX_BYTES]; // consumer, columns / 64
  u64 full[STAGES], empty[STAGES];
};

extern "C" __global__ __cluster_dims__(2, 1, 1) __launch_bounds__(384, 1) void lab_gemm_6_cluster(const __grid_constant__ TensorMap a,
                                                                                                const __grid_constant__ TensorMap b,
                                                                                                const __grid_constant__ TensorMap c, int m, int n,
                                                                                                int k) {
  extern __shared__ u8 bytes[];
  Shared &shared = *reinterpret_cast<Shared *>((reinterpret_cast<u64>(bytes) + 1023) & ~u64(1023));
  const u32 rank = cluster_rank();
  const int blocks = (k + 63) / 64, tiles_n = (n + 255) / 256, tiles = (m + 255) / 256 * tiles_n; // pairs of tiles
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) {
      mbarrier_init(&shared.full[s], 1);
      mbarrier_init(&shared.empty[s], 2 * 8); // the consumers' warps of both CTAs
    }
    fence_barrier_init();
  }
  cluster_sync(); // Neither copies to nor arrives on barriers of the other that are not initialised.
  RingPosition<STAGES> ring;

  if (threadIdx.x < 128) { // ---- producer
    registers_decrease<40>();
    if (threadIdx.x == 0) {
      for (int tile = blockIdx.x / 2; tile < tiles; tile += gridDim.x / 2) {
        const int row = 256 * (tile / tiles_n) + 128 * rank, column = 256 * (tile % tiles_n), half = 128 * rank;
        for (int block = 0; block < blocks; ++block, ring.advance()) {
          const u32 s = ring.stage;
          mbarrier_wait(&shared.empty[s], ring.phase ^ 1);
          mbarrier_arrive_expect(&shared.full[s], A_BYTES + B_BYTES); // our A, and B from both
          tma_load_3d(shared.a[s], &a, &shared.full[s], 64 * block, row, 0);
          tma_load_3d_multicast(shared.b[s] + rank * (B_BYTES / 2), &b, &shared.full[s], 64 * block, column + half, 0, 0b11);
        }
      }
    }
    return;
  }

  // ---- consumers
  registers_increase<232>();
  const int consumer = threadIdx.x / 128 - 1, thread = threadIdx.x % 128, warp = thread / 32, lane = thread % 32;
  for (int tile = blockIdx.x / 2; tile < tiles; tile += gridDim.x / 2) {
    const int row = 256 * (tile / tiles_n) + 128 * rank + 64 * consumer, column = 256 * (tile % tiles_n);
    float sum[128];
#pragma unroll
    for (int i = 0; i < 128; ++i) sum[i] = 0;
    for (int block = 0; block < blocks; ++block, ring.advance()) {
      const u32 s = ring.stage;
      mbarrier_wait(&shared.full[s], ring.phase);
      const u64 of_a = matrix_descriptor(shared_address(shared.a[s]) + consumer * BOX_BYTES, 16);
      const u64 of_b = matrix_descriptor(shared_address(shared.b[s]), 16);
      wgmma_fence();
#pragma unroll
      for (int j = 0; j < 4; ++j) wgmma_n256<Major::K, Major::K>(sum, of_a + j * K_STEP<Major::K>, of_b + j * K_STEP<Major::K>, true);
      wgmma_commit();
      wgmma_wait<0>();
      if (lane < 2) cluster_arrive_after_reads(cluster_address(&shared.empty[s], lane)); // lane 0 to CTA 0, lane 1 to CTA 1
    }
    accumulator_barrier(sum);

    if (thread == 0) bulk_wait_read<0>(); // the boxes of the last tile have been read
    named_barrier_sync(1 + consumer, 128);
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      const float *x = sum + 8 * j;
      stmatrix_x4(shared_address(shared.c[consumer][j / 4]) + swizzle_128b(16 * warp + lane % 16, 16 * (j % 4) + 8 * (lane / 16)),
                  pack_bf16(x[0], x[1]), pack_bf16(x[2], x[3]), pack_bf16(x[4], x[5]), pack_bf16(x[6], x[7]));
    }
    fence_proxy_async_shared();
    named_barrier_sync(1 + consumer, 128);
    if (thread == 0) {
      for (int box = 0; box < 4; ++box) tma_store_3d(&c, shared.c[consumer][box], column + 64 * box, row, 0);
      bulk_commit();
    }
  }
  if (thread == 0) bulk_wait_read<0>();
  cluster_sync(); // The other CTA's releases must find this one alive.
}
