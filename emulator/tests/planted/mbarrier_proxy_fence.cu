// A bulk copy signals an mbarrier that was initialised through the generic proxy, with no fence between. (Strict.)
// launch: planted grid=1 block=64 strict=1
// arg: buffer 512
// expect: missing-proxy-fence
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
  __shared__ alignas(128) float tile[64];
  __shared__ uint64_t barrier;
  if (threadIdx.x == 0) {
    barrier_init(&barrier, 1);
#ifndef BUG
    barrier_init_fence();
#endif
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    arrive_expect(&barrier, 256);
    bulk_load(tile, out, 256, &barrier);
  }
  wait(&barrier, 0);
  out[64 + threadIdx.x] = tile[threadIdx.x] + 1.0f;
}
