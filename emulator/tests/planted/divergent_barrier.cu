// bar.sync.aligned in a branch that half of the warp takes.
// launch: planted grid=1 block=64
// arg: buffer 256
// expect: divergent-aligned deadlock
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
#ifdef BUG
  if (threadIdx.x % 32 < 16) asm volatile("barrier.sync.aligned 0;" ::: "memory");
  else asm volatile("barrier.sync.aligned 1;" ::: "memory");
#else
  asm volatile("barrier.sync.aligned 0;" ::: "memory");
#endif
  out[threadIdx.x] = 1.0f;
}
