// CTAs take turns to add to a sum by bulk copies. The turn is taken in the generic proxy, and without a proxy fence the copy behind it
// does not follow the copy of another thread block.
// launch: planted grid=4 block=32
// arg: buffer 128
// arg: buffer 4
// expect: missing-proxy-fence
#include "planted.cuh"
extern "C" __global__ void planted(float *sum, uint32_t *turns) {
  __shared__ alignas(128) float tile[32];
  tile[threadIdx.x] = float(blockIdx.x + threadIdx.x);
  fence_proxy_async();
  __syncwarp();
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 0) {
    bulk_store(sum, tile, sizeof tile);
  } else {
    while (load_acquire(turns) != blockIdx.x) {
    }
#ifndef BUG
    fence_proxy_async_global();
#endif
    asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.f32 [%0], [%1], %2;" ::"l"(sum), "r"(shared_address(tile)),
                 "r"(uint32_t(sizeof tile))
                 : "memory");
    asm volatile("cp.async.bulk.commit_group;" ::: "memory");
  }
  bulk_wait();
  add_release(turns);
}
