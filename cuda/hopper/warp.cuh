// One warp: shuffles and reductions over lane groups, election of one lane.
#pragma once
#include "types.cuh"

namespace birdie {

constexpr u32 FULL_MASK = 0xffffffffu;

// Sum / maximum over aligned groups of LANES lanes, by butterfly: every lane gets the same bits, so a reduction is
// deterministic and needs no broadcast.
template <int LANES = 32> __device__ __forceinline__ float group_sum(float x) {
  static_assert(LANES == 2 || LANES == 4 || LANES == 8 || LANES == 16 || LANES == 32, "a power of two up to a warp");
#pragma unroll
  for (int step = LANES / 2; step > 0; step /= 2) x += __shfl_xor_sync(FULL_MASK, x, step);
  return x;
}
template <int LANES = 32> __device__ __forceinline__ float group_max(float x) {
#pragma unroll
  for (int step = LANES / 2; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(FULL_MASK, x, step));
  return x;
}

__device__ __forceinline__ u32 lane_id() { return threadIdx.x & 31u; }
// The warp's index as a value the compiler knows to be the same in all lanes.
__device__ __forceinline__ u32 warp_id() { return __shfl_sync(FULL_MASK, threadIdx.x / 32u, 0); }

// ISA: "elect.sync": true in exactly one lane of a converged warp; which one is unspecified.
__device__ __forceinline__ bool elect_one() {
  u32 chosen;
  asm volatile("{\n .reg .pred p;\n elect.sync _|p, 0xffffffff;\n selp.u32 %0, 1, 0, p;\n}" : "=r"(chosen));
  return chosen != 0;
}

} // namespace birdie
