// The last row of A was never written: its row of the product is stored although nobody has computed it.
// launch: planted grid=1 block=32
// arg: buffer 512
// expect: uninitialized
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
  __shared__ alignas(16) uint16_t a[16 * 16];
#ifdef BUG
  const int rows = 15;
#else
  const int rows = 16;
#endif
  for (int i = threadIdx.x; i < rows * 16; i += 32) a[i] = 0x3f80;
  __syncwarp();
  uint32_t fragment[4];
  load_matrices(fragment, a + threadIdx.x % 16 * 16 + threadIdx.x / 16 * 8);
  const uint32_t b[2] = {0x3f803f80, 0x3f803f80};
  float d[4] = {0, 0, 0, 0};
  mma_m16n8k16(d, fragment, b);
  const int row = threadIdx.x / 4, column = threadIdx.x % 4 * 2;
  for (int i = 0; i < 4; i++) out[(row + i / 2 * 8) * 8 + column + i % 2] = d[i];
}
