// Two CTAs share a tile: each loads half of it and multicasts it to both; consumers release the stage in both CTAs.
#include "common.cuh"
constexpr int STAGES = 2, ROWS = 32, HALF = 16, BYTES = ROWS * 128;

extern "C" __global__ void __cluster_dims__(2, 1, 1) multicast(const __grid_constant__ TensorMap map, u32 *out, int tiles) {
  extern __shared__ __align__(1024) char tile[];
  __shared__ alignas(8) u64 full[STAGES], empty[STAGES];
  u32 rank = cluster_rank();
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) init(full + s, 1), init(empty + s, 2 * ROWS);
    init_fence();
  }
  cluster_sync();
  if (threadIdx.x == ROWS) {
    for (int i = 0; i < tiles; i++) {
      int s = i % STAGES, phase = i / STAGES & 1;
      wait(empty + s, phase ^ 1);
      arrive_expect(full + s, BYTES);
      u16 mask = 3;
      asm volatile(
          "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%3, %4}], [%2], %5;" ::"r"(
              address_of(tile + s * BYTES + rank * HALF * 128)),
          "l"(&map), "r"(address_of(full + s)), "r"(i * 32), "r"(int(rank) * HALF), "h"(mask)
          : "memory");
    }
  } else if (threadIdx.x < ROWS) {
    u32 row = threadIdx.x, sum = 0;
    for (int i = 0; i < tiles; i++) {
      int s = i % STAGES, phase = i / STAGES & 1;
      wait(full + s, phase);
      for (u32 c = 0; c < 32; c++) sum += (c + 1) * *(u32 *)(tile + s * BYTES + row * 128 + c * 4);
      arrive_peer(peer(empty + s, 0));
      arrive_peer(peer(empty + s, 1));
    }
    out[rank * ROWS + row] = sum;
  }
  cluster_sync();
}
