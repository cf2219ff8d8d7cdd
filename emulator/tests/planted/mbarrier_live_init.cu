// Initialises a barrier that is in use.
// launch: planted grid=1 block=32
// arg: buffer 128
// expect: mbarrier-misuse
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
  __shared__ uint64_t barrier;
  if (threadIdx.x == 0) {
    barrier_init(&barrier, 2);
    arrive(&barrier);
#ifndef BUG
    arrive(&barrier);
    barrier_inval(&barrier);
#endif
    barrier_init(&barrier, 1);
    arrive(&barrier);
  }
  out[threadIdx.x] = 1.0f;
}
