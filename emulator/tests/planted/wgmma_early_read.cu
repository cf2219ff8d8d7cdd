// The accumulators are read before wgmma.wait_group.
// launch: planted grid=1 block=128
// arg: buffer 2048
// expect: wgmma-registers
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
  __shared__ alignas(1024) uint16_t a[64 * 16];
  __shared__ alignas(1024) uint16_t b[8 * 16];
  for (int i = threadIdx.x; i < 64 * 16; i += 128) a[i] = 0x3f80;
  b[threadIdx.x] = 0x3f80;
  fence_proxy_async();
  __syncthreads();
  float d[4] = {0, 0, 0, 0};
  pin(d);
  wgmma_fence();
  wgmma_m64n8k16(d, descriptor(a, 256, 3), descriptor(b, 256, 3), 1);
  wgmma_commit();
#ifdef BUG
  for (int i = 0; i < 4; i++) asm volatile("st.global.f32 [%0], %1;" ::"l"(out + threadIdx.x * 4 + i), "f"(d[i]) : "memory");
  wgmma_wait();
#else
  wgmma_wait();
  for (int i = 0; i < 4; i++) asm volatile("st.global.f32 [%0], %1;" ::"l"(out + threadIdx.x * 4 + i), "f"(d[i]) : "memory");
#endif
}
