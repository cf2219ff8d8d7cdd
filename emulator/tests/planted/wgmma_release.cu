// One thread releases the stage that all four warps' wgmma read. After wait_group that is enough: a group belongs to the warpgroup.
// launch: planted grid=1 block=160
// arg: buffer 8192
// arg: buffer 2048
// expect: stage-reuse deadlock
#include "planted.cuh"
extern "C" __global__ void planted(const float *in, float *out) {
  __shared__ alignas(1024) uint16_t a[64 * 16];
  __shared__ alignas(1024) uint16_t b[8 * 64];
  __shared__ uint64_t full, empty;
  if (threadIdx.x == 0) {
    barrier_init(&full, 1);
    barrier_init(&empty, 1);
    barrier_init_fence();
  }
  for (int i = threadIdx.x; i < 8 * 64; i += 160) b[i] = 0x3f80;
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x >= 128) {
    for (int i = 0; i < 4; i++) {
      wait(&empty, (i & 1) ^ 1);
      if (threadIdx.x == 128) {
        arrive_expect(&full, 2048);
        bulk_load(a, in + 512 * i, 2048, &full);
      }
      __syncwarp();
    }
  } else {
    float d[4] = {0, 0, 0, 0};
    for (int i = 0; i < 4; i++) {
      wait(&full, i & 1);
      pin(d);
      wgmma_fence();
      wgmma_m64n8k16(d, descriptor(a, 256, 3), descriptor(b, 1024, 1), 1);
      wgmma_commit();
#ifdef BUG
      if (threadIdx.x == 0) arrive(&empty);
      wgmma_wait();
#else
      wgmma_wait();
      if (threadIdx.x == 0) arrive(&empty);
#endif
    }
    for (int i = 0; i < 4; i++) out[threadIdx.x * 4 + i] = d[i];
  }
}
