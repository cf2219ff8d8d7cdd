// A relaxed arrive at the cluster barrier publishes the initialisation of an mbarrier only together with fence.mbarrier_init.
// launch: planted grid=2 block=64 cluster=2
// arg: buffer 256
// expect: shared-race
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
  __shared__ uint64_t barrier;
  if (threadIdx.x == 0) {
    barrier_init(&barrier, 64);
#ifndef BUG
    barrier_init_fence();
#endif
  }
  asm volatile("barrier.cluster.arrive.relaxed.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
  arrive(&barrier);
  wait(&barrier, 0);
  out[threadIdx.x] = 1.0f;
}
