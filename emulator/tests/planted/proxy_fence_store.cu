// A bulk store reads what threads wrote, without fence.proxy.async by the writers.
// launch: planted grid=1 block=64
// arg: buffer 256
// expect: missing-proxy-fence
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
  __shared__ alignas(128) float tile[64];
  tile[threadIdx.x] = (float)threadIdx.x;
#ifndef BUG
  fence_proxy_async();
#endif
  __syncthreads();
  if (threadIdx.x == 0) {
    bulk_store(out, tile, 256);
    bulk_wait();
  }
}
