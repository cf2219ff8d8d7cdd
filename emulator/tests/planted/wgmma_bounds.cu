// The stride of a descriptor leads out of shared memory. The twin's operand starts 256 bytes into the 1024 bytes over which the swizzle
// repeats, which is fine with base offset 0: the address that is swizzled is absolute, for the operand and for who wrote it.
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
  const uint32_t stride = 0x4000;
#else
  const uint32_t stride = 1024;
#endif
  float d[4] = {0, 0, 0, 0};
  pin(d);
  wgmma_fence();
  wgmma_m64n8k16(d, descriptor(a + 128, stride, 1), descriptor(b, 1024, 1), 1);
  wgmma_commit();
  wgmma_wait();
  for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = d[i];
}
