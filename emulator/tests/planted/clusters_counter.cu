// The last CTA may set the counter back with a plain write, after all atomics; the first one may not.
// launch: planted grid=4 block=32
// arg: buffer 4
// expect: global-race
#include "planted.cuh"
extern "C" __global__ void planted(uint32_t *counter) {
  if (threadIdx.x != 0) return;
  uint32_t before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], 1;" : "=r"(before) : "l"(counter) : "memory");
#ifdef BUG
  if (before == 0) *counter = 7;
#else
  if (before == gridDim.x - 1) *counter = 0;
#endif
}
