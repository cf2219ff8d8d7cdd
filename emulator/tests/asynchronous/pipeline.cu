// A producer warp streams tiles of 64 rows x 64 bf16-sized elements through a ring of stages; consumers sum them.
#include "common.cuh"
constexpr int STAGES = 3, ROWS = 64, COLUMNS = 64, BYTES = ROWS * COLUMNS * 2, CONSUMERS = 64;

// out[c * 64 + r] over c < 2 consumers' halves: sum of the row over all tiles.
extern "C" __global__ void pipeline(const __grid_constant__ TensorMap map, u32 *out, int tiles) {
  extern __shared__ __align__(1024) char tile[];
  __shared__ alignas(8) u64 full[STAGES], empty[STAGES];
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; s++) init(full + s, 1), init(empty + s, CONSUMERS);
    init_fence();
  }
  __syncthreads();
  if (threadIdx.x >= CONSUMERS) {
    if (threadIdx.x == CONSUMERS)
      for (int i = 0; i < tiles; i++) {
        int s = i % STAGES, phase = i / STAGES & 1;
        wait(empty + s, phase ^ 1);
        arrive_expect(full + s, BYTES);
        load_2d(tile + s * BYTES, &map, i * COLUMNS, int(blockIdx.x) * ROWS, full + s);
      }
  } else {
    u32 row = threadIdx.x, sum = 0;
    for (int i = 0; i < tiles; i++) {
      int s = i % STAGES, phase = i / STAGES & 1;
      wait(full + s, phase);
      for (u32 c = 0; c < COLUMNS; c++) {
        u32 chunk = (c / 8) ^ (row & 7);
        sum += *(u16 *)(tile + s * BYTES + row * 128 + chunk * 16 + c % 8 * 2);
      }
      arrive(empty + s);
    }
    out[blockIdx.x * ROWS + row] = sum;
  }
}
