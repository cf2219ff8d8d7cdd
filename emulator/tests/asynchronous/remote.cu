// Shared memory of the other CTA: st.async, red.async, bulk copies and reductions between CTAs.
#include "common.cuh"

extern "C" __global__ void __cluster_dims__(2, 1, 1) remote(u32 *out) {
  __shared__ __align__(128) u32 inbox[32 * 4], source[32], copied[32], summed[32];
  __shared__ u32 counter, highest;
  __shared__ alignas(8) u64 barrier;
  u32 t = threadIdx.x, rank = cluster_rank(), other = rank ^ 1;
  if (t == 0) {
    init(&barrier, 1);
    counter = 0, highest = 0;
    init_fence();
  }
  source[t] = 100 * rank + t;
  summed[t] = 1000;
  proxy_fence();
  __syncthreads();
  cluster_sync();
  // 32 lanes x (16 + 4 + 4) bytes, and two bulk operations of 128.
  if (t == 0) arrive_expect(&barrier, 32 * 24 + 2 * 128);
  u32 bar = peer(&barrier, other);
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                   peer(inbox + 4 * t, other)),
               "r"(t), "r"(rank), "r"(t * t), "r"(7u), "r"(bar)
               : "memory");
  asm volatile("red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u32 [%0], %1, [%2];" ::"r"(
                   peer(&counter, other)),
               "r"(t + 1), "r"(bar)
               : "memory");
  asm volatile("red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.max.u32 [%0], %1, [%2];" ::"r"(
                   peer(&highest, other)),
               "r"(t * 3 + rank), "r"(bar)
               : "memory");
  if (t == 0) {
    asm volatile("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                     peer(copied, other)),
                 "r"(address_of(source)), "r"(128), "r"(bar)
                 : "memory");
    asm volatile("cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.add.u32 [%0], [%1], %2, [%3];" ::"r"(
                     peer(summed, other)),
                 "r"(address_of(source)), "r"(128), "r"(bar)
                 : "memory");
  }
  u32 done = 0;
  while (!done)
    asm volatile("{\n .reg .pred p;\n mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
                 : "=r"(done)
                 : "r"(address_of(&barrier)), "r"(0)
                 : "memory");
  u32 *o = out + (rank * 32 + t) * 8;
  for (int k = 0; k < 4; k++) o[k] = inbox[4 * t + k];
  o[4] = counter, o[5] = highest, o[6] = copied[t], o[7] = summed[t];
  cluster_sync();
}
