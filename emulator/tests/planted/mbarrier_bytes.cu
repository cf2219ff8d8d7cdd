// The barrier expects more bytes than the copy delivers: the waiter never wakes.
// launch: planted grid=1 block=32
// arg: buffer 256
// arg: buffer 256
// expect: deadlock
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
#ifdef BUG
    arrive_expect(&barrier, 512);
#else
    arrive_expect(&barrier, 256);
#endif
    bulk_load(tile, in, 256, &barrier);
  }
  wait(&barrier, 0);
  out[threadIdx.x] = tile[threadIdx.x] + tile[threadIdx.x + 32];
}
