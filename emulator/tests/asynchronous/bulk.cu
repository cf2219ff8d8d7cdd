// Bulk copies of plain bytes: in, multicast, out, prefetch; and the 1-, 3-, 4- and 5-dimensional tensor copies.
#include "common.cuh"

extern "C" __global__ void round_trip(const char *in, char *out, u32 bytes) {
  extern __shared__ __align__(128) char buffer[];
  __shared__ alignas(8) u64 b;
  if (threadIdx.x == 0) init(&b, 1), init_fence();
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(in), "r"(bytes) : "memory");
    arrive_expect(&b, bytes);
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(address_of(buffer)),
                 "l"(in), "r"(bytes), "r"(address_of(&b))
                 : "memory");
    wait(&b, 0);
    asm volatile("cp.async.bulk.global.shared::cta.bulk_group [%0], [%1], %2;" ::"l"(out), "r"(address_of(buffer)), "r"(bytes) : "memory");
    commit();
    wait_all<0>();
  }
}

extern "C" __global__ void __cluster_dims__(4, 1, 1) broadcast(const u32 *in, u32 *out) {
  __shared__ __align__(128) u32 data[32];
  __shared__ alignas(8) u64 b;
  u32 t = threadIdx.x, rank = cluster_rank();
  if (t == 0) {
    init(&b, 1), init_fence();
    arrive_expect(&b, rank == 2 ? 0 : 128);
  }
  data[t] = 7;
  proxy_fence();
  cluster_sync();
  u16 mask = 0xb;
  if (t == 0 && rank == 0)
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1], %2, [%3], %4;" ::"r"(
            address_of(data)),
        "l"(in), "r"(128), "r"(address_of(&b)), "h"(mask)
        : "memory");
  wait(&b, 0);
  out[rank * 32 + t] = data[t];
  cluster_sync();
}

extern "C" __global__ void dimensions(const __grid_constant__ TensorMap m1, const __grid_constant__ TensorMap m3,
                                      const __grid_constant__ TensorMap m4, const __grid_constant__ TensorMap m5, char *out) {
  __shared__ __align__(128) char data[4][512];
  __shared__ alignas(8) u64 b;
  if (threadIdx.x == 0) init(&b, 1), init_fence();
  for (u32 i = threadIdx.x; i < 2048; i += blockDim.x) data[0][i] = 0;
  proxy_fence();
  __syncthreads();
  u32 bar = address_of(&b);
  u64 policy = 0;
  if (threadIdx.x == 0) {
    arrive_expect(&b, 4 * 512);
    asm volatile("cp.async.bulk.prefetch.tensor.4d.L2.global [%0, {%1, %2, %3, %4}];" ::"l"(&m4), "r"(0), "r"(0), "r"(0), "r"(0) : "memory");
    asm volatile("cp.async.bulk.tensor.1d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2}], [%3];" ::"r"(address_of(data[0])), "l"(&m1), "r"(100), "r"(bar) : "memory");
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1, {%2, %3, %4}], [%5], %6;" ::"r"(address_of(data[1])), "l"(&m3), "r"(-4), "r"(1), "r"(2), "r"(bar), "l"(policy) : "memory");
    asm volatile("cp.async.bulk.tensor.4d.shared::cta.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(address_of(data[2])), "l"(&m4), "r"(0), "r"(-1), "r"(1), "r"(2), "r"(bar) : "memory");
    asm volatile("cp.async.bulk.tensor.5d.shared::cluster.global.tile.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4, %5, %6}], [%7];" ::"r"(address_of(data[3])), "l"(&m5), "r"(4), "r"(1), "r"(0), "r"(-1), "r"(1), "r"(bar) : "memory");
  }
  wait(&b, 0);
  for (u32 i = threadIdx.x; i < 2048; i += blockDim.x) out[i] = data[0][i];
}
