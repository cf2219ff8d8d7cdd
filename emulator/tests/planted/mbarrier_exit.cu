// The CTA exits while bytes are announced that never come.
// launch: planted grid=1 block=32
// arg: buffer 256
// arg: buffer 256
// expect: mbarrier-misuse
#include "planted.cuh"
extern "C" __global__ void planted(const float *in, float *out) {
  __shared__ alignas(128) float tile[64];
  __shared__ uint64_t barrier;
  if (threadIdx.x == 0) {
    barrier_init(&barrier, 1);
    barrier_init_fence();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    arrive_expect(&barrier, 256);
#ifndef BUG
    bulk_load(tile, in, 256, &barrier);
#endif
  }
#ifndef BUG
  wait(&barrier, 0);
#endif
  out[threadIdx.x] = 1.0f;
}
