// A CTA exits while a bulk copy may still read its shared memory. (Strict: devices keep the memory so long; CUDA's guide waits.)
// launch: planted grid=1 block=32 strict=1
// arg: buffer 128
// expect: cluster-lifetime
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
  __shared__ alignas(128) float tile[32];
  tile[threadIdx.x] = (float)threadIdx.x;
  fence_proxy_async();
  __syncwarp();
  if (threadIdx.x == 0) {
    bulk_store(out, tile, 128);
#ifndef BUG
    bulk_wait_read();
#endif
  }
}
