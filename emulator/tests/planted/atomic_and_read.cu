// A CTA reads plainly what others count in. (Nothing waits for anything, so that the clusters run independently.)
// launch: planted grid=4 block=32
// arg: buffer 64
// expect: global-race
#include "planted.cuh"
extern "C" __global__ void planted(uint32_t *counters) {
  if (threadIdx.x != 0) return;
  if (blockIdx.x < 3) {
    asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(counters) : "memory");
  } else {
#ifdef BUG
    counters[1] = counters[0];
#else
    counters[1] = counters[2];
#endif
  }
}
