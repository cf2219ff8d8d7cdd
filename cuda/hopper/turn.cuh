// Turns: CTAs that work on one piece of global memory in a fixed order. A counter says how many are done with it.
//
// NOTE: a CTA may only wait for one that has started, and CUDA promises no order of starts. So those who wait for each other take
// tickets as they start: whoever comes first in the order has the smaller ticket.
#pragma once
#include "types.cuh"

namespace birdie {

// The n-th of `count` CTAs to ask gets n, and the counter is at zero again after the last. ISA: "atom", .inc wraps at its operand.
__device__ __forceinline__ u32 turn_ticket(u32 *counter, u32 count) {
  u32 ticket;
  asm volatile("atom.relaxed.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(ticket) : "l"(counter), "r"(count - 1) : "memory");
  return ticket;
}
// ISA: "ld": an acquire at device scope: what the one who set the counter did before is seen by the calling thread after.
__device__ __forceinline__ u32 turn_load(const u32 *counter) {
  u32 value;
  asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
  return value;
}
__device__ __forceinline__ void turn_wait(const u32 *counter, u32 turn) {
  while (turn_load(counter) != turn) {
  }
}
// ISA: "red": a release at device scope.
__device__ __forceinline__ void turn_pass(u32 *counter) {
  asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(counter), "r"(1) : "memory");
}
// ISA: "atom": acquire and release. Returns how many passed before.
__device__ __forceinline__ u32 turn_count(u32 *counter) {
  u32 before;
  asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(before) : "l"(counter), "r"(1) : "memory");
  return before;
}

} // namespace birdie
