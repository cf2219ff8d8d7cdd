// An operand whose swizzle atom does not start where its pattern repeats (1024 bytes for the 128-byte swizzle).
// launch: planted grid=1 block=128
// arg: buffer 2048
// expect: wgmma-operand
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
  __shared__ alignas(1024) uint16_t a[64 * 64 + 512];
  __shared__ alignas(1024) uint16_t b[8 * 64 + 512];
  for (int i = threadIdx.x; i < 64 * 64 + 512; i += 128) a[i] = 0x3f80;
  for (int i = threadIdx.x; i < 8 * 64 + 512; i += 128) b[i] = 0x3f80;
  fence_proxy_async();
  __syncthreads();
#ifdef BUG
  const uint16_t *start = a + 128;
#else
  const uint16_t *start = a;
#endif
  float d[4] = {0, 0, 0, 0};
  pin(d);
  wgmma_fence();
  wgmma_m64n8k16(d, descriptor(start, 1024, 1), descriptor(b, 1024, 1), 1);
  wgmma_commit();
  wgmma_wait();
  for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = d[i];
}
