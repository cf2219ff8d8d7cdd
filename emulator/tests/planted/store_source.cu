// The source of a bulk store is rewritten before cp.async.bulk.wait_group.read.
// launch: planted grid=1 block=32
// arg: buffer 256
// expect: shared-race stage-reuse
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
  __shared__ alignas(128) float tile[32];
  for (int i = 0; i < 2; i++) {
    tile[threadIdx.x] = (float)(threadIdx.x + i);
    fence_proxy_async();
    __syncwarp();
    if (threadIdx.x == 0) {
      bulk_store(out + 32 * i, tile, 128);
#ifndef BUG
      bulk_wait_read();
#endif
    }
    __syncwarp();
  }
  if (threadIdx.x == 0) bulk_wait();
}
