// From a CTA over its cluster's barrier and a counter to another cluster, and over the barrier there to the second CTA, which does not wait.
// launch: planted grid=4 block=32 cluster=2
// arg: buffer 128
// arg: buffer 4
// expect: global-race
#include "planted.cuh"
extern "C" __global__ void __cluster_dims__(2, 1, 1) planted(float *part, uint32_t *counter) {
  const bool sends = blockIdx.x < 2;
  if (sends) {
    if (cluster_rank() == 1) part[threadIdx.x] = float(threadIdx.x + 1);
    cluster_sync();
    if (cluster_rank() == 0 && threadIdx.x == 0) add_release(counter);
  } else {
    if (cluster_rank() == 0 && threadIdx.x == 0)
      while (load_acquire(counter) == 0) {
      }
    __syncwarp();
#ifndef BUG
    cluster_sync();
#endif
    if (cluster_rank() == 1) part[threadIdx.x] += 1.0f;
#ifdef BUG
    cluster_sync();
#endif
  }
}
