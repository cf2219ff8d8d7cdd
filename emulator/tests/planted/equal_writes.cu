// Warps write one shared word without order, and different values. The twin's warps write the same value, its CTAs set the same
// flags and the same array in global memory, and all lanes of a warp issue the same bulk store: nobody can tell who came last.
// launch: planted grid=4 block=64
// arg: buffer 1024
// expect: shared-race
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
  __shared__ alignas(128) float tile[64];
  __shared__ float flag;
#ifdef BUG
  flag = float(threadIdx.x / 32);
#else
  flag = 1.0f;
#endif
  tile[threadIdx.x] = 2.0f;
  fence_proxy_async();
  __syncthreads();
  if (flag > 0) out[0] = flag;
  out[64 + threadIdx.x] = 3.0f;
  if (threadIdx.x < 32) {
    bulk_store(out + 128, tile, 256);
    bulk_wait();
  }
}
