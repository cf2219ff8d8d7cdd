// The same where CTAs wait for each other: the value that is handed over is written with a scope that ends at the CTA.
// launch: planted grid=2 block=32
// arg: buffer 8
// expect: global-race
#include "planted.cuh"
extern "C" __global__ void planted(uint32_t *values) {
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 0) {
#ifdef BUG
    atomicExch_block(values, 1);
#else
    atomicExch(values, 1);
#endif
    add_release(values + 1);
  } else {
    while (*(volatile uint32_t *)(values + 1) == 0) {
    }
    values[1] = *(volatile uint32_t *)values;
  }
}
