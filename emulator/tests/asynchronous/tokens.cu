// States, counts, and the forms of arrival and waiting that carry them.
#include "common.cuh"

extern "C" __global__ void tokens(u32 *out) {
  __shared__ alignas(8) u64 b, unused;
  __shared__ u32 data[64];
  u32 t = threadIdx.x;
  if (t == 0) init(&b, 64), init(&unused, 3);
  __syncthreads();
  u32 total = 0;
  for (int i = 0; i < 3; i++) {
    data[t] = t * (i + 1);
    u64 state;
    asm volatile("mbarrier.arrive.release.cta.shared::cta.b64 %0, [%1];" : "=l"(state) : "r"(address_of(&b)) : "memory");
    u32 done = 0;
    while (!done)
      asm volatile("{\n .reg .pred p;\n mbarrier.test_wait.acquire.cta.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
                   : "=r"(done)
                   : "r"(address_of(&b)), "l"(state)
                   : "memory");
    total += data[63 - t];
    asm volatile("mbarrier.arrive.shared.b64 %0, [%1];" : "=l"(state) : "r"(address_of(&b)) : "memory");
    done = 0;
    while (!done)
      asm volatile("{\n .reg .pred p;\n mbarrier.try_wait.shared::cta.b64 p, [%1], %2, %3;\n selp.u32 %0, 1, 0, p;\n}"
                   : "=r"(done)
                   : "r"(address_of(&b)), "l"(state), "r"(1000)
                   : "memory");
  }
  out[t] = total;
  if (t == 0) {
    u64 first, second;
    u32 n0, n1;
    asm volatile("mbarrier.arrive.noComplete.shared.b64 %0, [%1], 2;" : "=l"(first) : "r"(address_of(&unused)) : "memory");
    asm volatile("mbarrier.arrive_drop.shared::cta.b64 %0, [%1];" : "=l"(second) : "r"(address_of(&unused)) : "memory");
    asm volatile("mbarrier.pending_count.b64 %0, %1;" : "=r"(n0) : "l"(first));
    asm volatile("mbarrier.pending_count.b64 %0, %1;" : "=r"(n1) : "l"(second));
    out[64] = n0, out[65] = n1;
    // Two are expected from now on; the second phase completes with them and 32 bytes.
    u64 generic = (u64)&unused;
    asm volatile("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%0], 32;" ::"r"(address_of(&unused)) : "memory");
    asm volatile("mbarrier.arrive.b64 %0, [%1], 2;" : "=l"(first) : "l"(generic) : "memory");
    u32 before, after;
    asm volatile("{\n .reg .pred p;\n mbarrier.test_wait.parity.b64 p, [%1], 1;\n selp.u32 %0, 1, 0, p;\n}" : "=r"(before) : "l"(generic) : "memory");
    asm volatile("mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%0], 32;" ::"r"(address_of(&unused)) : "memory");
    asm volatile("{\n .reg .pred p;\n mbarrier.test_wait.parity.b64 p, [%1], 1;\n selp.u32 %0, 1, 0, p;\n}" : "=r"(after) : "l"(generic) : "memory");
    out[66] = before, out[67] = after;
    asm volatile("mbarrier.inval.shared::cta.b64 [%0];" ::"r"(address_of(&unused)) : "memory");
  }
}
