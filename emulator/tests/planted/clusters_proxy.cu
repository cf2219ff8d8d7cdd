// What a thread of another CTA has written is read by the copy engine: acquired, but without a proxy fence.
// launch: planted grid=2 block=32
// arg: buffer 256
// arg: buffer 4
// expect: missing-proxy-fence
#include "planted.cuh"
extern "C" __global__ void planted(float *part, uint32_t *counter) {
  __shared__ alignas(128) float tile[32];
  __shared__ uint64_t full;
  if (blockIdx.x == 0) {
    part[threadIdx.x] = float(threadIdx.x + 1);
    __syncwarp();
    if (threadIdx.x == 0) add_release(counter);
    return;
  }
  if (threadIdx.x == 0) {
    barrier_init(&full, 1);
    fence_proxy_async();
    while (load_acquire(counter) == 0) {
    }
#ifndef BUG
    fence_proxy_async_global();
#endif
    arrive_expect(&full, sizeof tile);
    bulk_load(tile, part, sizeof tile, &full);
  }
  __syncwarp();
  wait(&full, 0);
  part[32 + threadIdx.x] = tile[threadIdx.x];
}
