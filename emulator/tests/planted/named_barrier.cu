// Two warps meet at one named barrier with different thread counts.
// launch: planted grid=1 block=64
// arg: buffer 256
// expect: named-barrier deadlock
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
  if (threadIdx.x < 32) {
    asm volatile("bar.sync 1, 64;" ::: "memory");
  } else {
#ifdef BUG
    asm volatile("bar.sync 1, 32;" ::: "memory");
#else
    asm volatile("bar.sync 1, 64;" ::: "memory");
#endif
  }
  out[threadIdx.x] = 1.0f;
}
