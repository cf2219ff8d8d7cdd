// One lane stores with a bulk copy what all lanes of its warp have written; the __syncwarp between is missing.
// launch: planted grid=1 block=32
// arg: buffer 128
// expect: shared-race
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
  __shared__ alignas(128) float tile[32];
  tile[threadIdx.x] = (float)threadIdx.x;
  fence_proxy_async();
#ifndef BUG
  __syncwarp();
#endif
  if (threadIdx.x == 0) {
    bulk_store(out, tile, sizeof(tile));
    bulk_wait();
  }
}
