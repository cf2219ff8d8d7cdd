// mbarrier: the counters in shared memory on which asynchronous copies and their consumers meet.
//
// A barrier is in a phase. The phase ends when all expected arrivals came *and* all announced bytes landed; then the
// next one begins with the same expected count. A waiter names the parity of the phase it waits for, so a fresh
// barrier lets parity 1 through at once (nothing is being waited for) and holds parity 0. A ring of S stages thus
// needs one bit per trip: consumers wait on full[s] with `phase`, producers on empty[s] with `phase ^ 1`.
//
// Default semantics are used throughout: arrive releases, wait acquires, at CTA scope.
#pragma once
#include "types.cuh"

namespace birdie {

// ISA: "mbarrier.init". One thread; then fence_barrier_init() and a CTA barrier before anyone else touches it.
__device__ __forceinline__ void mbarrier_init(u64 *barrier, u32 arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// ISA: "mbarrier.arrive".
__device__ __forceinline__ void mbarrier_arrive(u64 *barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
// ISA: "mbarrier.arrive.expect_tx": announce bytes, then arrive: the phase cannot end in between.
__device__ __forceinline__ void mbarrier_arrive_expect(u64 *barrier, u32 bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
}
// ISA: "mbarrier.try_wait": true once the phase with this parity is over; may return false early, hence the loop.
__device__ __forceinline__ bool mbarrier_try_wait(u64 *barrier, u32 parity) {
  u32 done;
  asm volatile("{\n .reg .pred p;\n mbarrier.try_wait.parity.shared::cta.b64 p, [%1], %2;\n selp.u32 %0, 1, 0, p;\n}"
               : "=r"(done)
               : "r"(shared_address(barrier)), "r"(parity)
               : "memory");
  return done != 0;
}
__device__ __forceinline__ void mbarrier_wait(u64 *barrier, u32 parity) {
  while (!mbarrier_try_wait(barrier, parity)) {
  }
}

// Position in a ring of stages: which stage, and the parity of the current trip round the ring.
template <int STAGES> struct RingPosition {
  u32 stage = 0, phase = 0;
  __device__ __forceinline__ void advance() {
    if (++stage == STAGES) stage = 0, phase ^= 1;
  }
};

} // namespace birdie
