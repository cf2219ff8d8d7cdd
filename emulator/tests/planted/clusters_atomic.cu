// An atomic whose scope ends at the CTA counts what other CTAs count as well.
// launch: planted grid=4 block=64
// arg: buffer 8
// expect: global-race
#include "planted.cuh"
extern "C" __global__ void planted(uint32_t *counters) {
  if (threadIdx.x % 32 != 0) return;
#ifdef BUG
  atomicAdd_block(counters, 1);
#else
  atomicAdd(counters, 1);
#endif
  if (blockIdx.x == 0) atomicAdd_block(counters + 1, 1);
}
