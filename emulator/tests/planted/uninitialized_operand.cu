// wgmma multiplies rows of shared memory that nobody has written.
// launch: planted grid=1 block=128
// arg: buffer 2048
// expect: uninitialized
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
  __shared__ alignas(1024) uint16_t a[64 * 16];
  __shared__ alignas(1024) uint16_t b[8 * 16];
#ifdef BUG
  const int rows = 63;
#else
  const int rows = 64;
#endif
  for (int i = threadIdx.x; i < rows * 16; i += 128) a[i] = 0x3f80;
  b[threadIdx.x] = 0x3f80;
  fence_proxy_async();
  __syncthreads();
  float d[4] = {0, 0, 0, 0};
  pin(d);
  wgmma_fence();
  wgmma_m64n8k16(d, descriptor(a, 256, 3), descriptor(b, 256, 3), 1);
  wgmma_commit();
  wgmma_wait();
  for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = d[i];
}
