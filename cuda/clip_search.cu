// Weights on their way into the artifact: the search for a matrix's clip percentile, codes of 5 or 6 bits, packed.
//
// 1. Formula. K = 31 (int6) or 15 (int5). For each candidate percentile p and row r:
//      clip = quantile(|w[r,:]|, p): the place p (columns - 1) in f32, between its two neighbours in f64, rounded once
//      s[p,r] = f16(max(clip / K, 1 / K));  q = clamp(rne(w / s), -K, K)              (IEEE f32)
//      error[p] = sum_rc (w - q s)^2 / n                                              (difference in f32, sums in f64)
//    The percentile with the smallest error wins, the first one at a tie. Its codes are stored as q + K in 5 or 6 bits each, row after row
//    without gaps, least significant bits first. Same bits as src/quantize/clip_search.rs and packing.rs: a square of an f32 is exact in
//    f64, and both sides add in the same order: 32 lanes, each every 32nd term, then the lanes as a butterfly; columns first, then rows.
//
// 2. Operands: weight f32 [rows, columns], any shape; scales f16 [candidates, rows]; row_errors f64 [candidates, rows]; errors f64
//    [candidates]; chosen i32 [1]; packed u32 [ceil(rows columns bits / 32)], the last word padded with zeros.
//    A row with a value that is not finite has the error -1; then chosen = -1 and nothing is packed.
//
// 3. Work. rows: a warp per row, 8 rows per CTA. Every percentile is within 0.1 % of the largest value, so nothing is sorted: each trip
//    over the row finds the largest magnitude below the last one and how often it occurs, until the lowest place is covered (2 values of
//    512, 4 of 2048); one more trip adds up the errors of all candidates. The row comes from L1 after the first trip.
//    choose: one CTA, a warp per candidate.   pack: a thread per word of the result; it works out the codes that have bits in it (of 6 bits
//    6.3 on average, so a sixth of the divisions are made twice; codes in memory would cost 2 bytes each).
//
// 4. Pipeline: none; three launches, since every row's error decides over all codes.
//
// 5. Floor (predicted): rows 4 bytes, pack 4.75 bytes per weight of int6 at 3.0 TB/s: 79 us for the 27 million weights of the largest recipe. By
//    instructions: 5 IEEE divisions per weight.
//
// 6. Fences: __syncthreads in choose, between the errors and their comparison.
//
// 7. Limits: columns and rows below 2^31; at most 2^31 weights. CANDIDATES[0] is the smallest: the lowest place is its.
// 8. Machine code (ptxas 13.0): registers: 27..43, shared: 0..60 bytes
#include "hopper/numeric.cuh"
#include "hopper/warp.cuh"

namespace birdie {

template <int BITS> struct Clip {
  static constexpr i32 LIMIT = (1 << (BITS - 1)) - 1;
  static constexpr int CANDIDATES = BITS == 6 ? 5 : 4;
  static __device__ __forceinline__ float percentile(int candidate) {
    constexpr float OF_6[5] = {0.999f, 0.9995f, 0.9999f, 0.99999f, 1.f}, OF_5[4] = {0.999f, 0.9995f, 0.9999f, 1.f};
    return BITS == 6 ? OF_6[candidate] : OF_5[candidate % 4];
  }
};

// ISA: "cvt": f32 to f16 and back.
__device__ __forceinline__ u16 to_f16(float x) {
  u16 bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(x));
  return bits;
}
__device__ __forceinline__ float f16_value(u16 bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}

__device__ __forceinline__ double sum_of_lanes(double x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x = __dadd_rn(x, __shfl_xor_sync(FULL_MASK, x, step));
  return x;
}

template <int BITS> __device__ __forceinline__ float code(float weight, float scale) {
  constexpr float LIMIT = Clip<BITS>::LIMIT;
  return fminf(fmaxf(rintf(__fdiv_rn(weight, scale)), -LIMIT), LIMIT);
}

template <int BITS>
__device__ __forceinline__ void clip_search_rows(const float *weight, u16 *scales, double *row_errors, i32 rows, i32 columns) {
  constexpr int CANDIDATES = Clip<BITS>::CANDIDATES;
  constexpr float LIMIT = Clip<BITS>::LIMIT;
  const i32 row = i32(blockIdx.x * 8 + threadIdx.x / 32), lane = i32(lane_id());
  if (row >= rows) return;
  const float *w = weight + i64(row) * columns;

  // Places are counted from the largest magnitude: place 0. A quantile lies between places below and above, `part` of the way up.
  i32 below[CANDIDATES], above[CANDIDATES];
  float part[CANDIDATES], of_below[CANDIDATES], of_above[CANDIDATES];
#pragma unroll
  for (int p = 0; p < CANDIDATES; ++p) {
    const i32 last = columns - 1;
    const float rank = __fmul_rn(Clip<BITS>::percentile(p), float(last));
    const i32 low = min(i32(floorf(rank)), last);
    below[p] = last - low, above[p] = last - min(low + 1, last);
    part[p] = __fsub_rn(rank, float(low));
    of_below[p] = of_above[p] = 0.f;
  }
  u32 bound = 0xffffffffu; // magnitudes as integers: the order is the same
  i32 seen = 0;            // places found so far
  bool finite = true;
  while (seen <= below[0]) {
    u32 largest = 0;
    i32 count = 0;
    for (i32 c = lane; c < columns; c += 32) {
      const u32 magnitude = __float_as_uint(w[c]) & 0x7fffffffu;
      if (magnitude < bound) {
        count = magnitude > largest ? 1 : count + (magnitude == largest ? 1 : 0);
        largest = max(largest, magnitude);
      }
    }
    const u32 found = __reduce_max_sync(FULL_MASK, largest);
    const i32 times = i32(__reduce_add_sync(FULL_MASK, largest == found ? u32(count) : 0u));
    finite &= found < 0x7f800000u;
#pragma unroll
    for (int p = 0; p < CANDIDATES; ++p) {
      if (below[p] >= seen && below[p] < seen + times) of_below[p] = __uint_as_float(found);
      if (above[p] >= seen && above[p] < seen + times) of_above[p] = __uint_as_float(found);
    }
    seen += times;
    bound = found;
  }

  float scale[CANDIDATES];
  double error[CANDIDATES];
#pragma unroll
  for (int p = 0; p < CANDIDATES; ++p) {
    const double a = of_below[p], b = of_above[p];
    const float clip = __double2float_rn(__dadd_rn(a, __dmul_rn(double(part[p]), __dsub_rn(b, a))));
    const u16 bits = to_f16(fmaxf(__fdiv_rn(clip, LIMIT), __fdiv_rn(1.f, LIMIT)));
    if (lane == 0) scales[i64(p) * rows + row] = bits;
    scale[p] = f16_value(bits);
    error[p] = 0.;
  }
  for (i32 c = lane; c < columns; c += 32) {
    const float x = w[c];
#pragma unroll
    for (int p = 0; p < CANDIDATES; ++p) {
      const double difference = __fsub_rn(x, __fmul_rn(code<BITS>(x, scale[p]), scale[p]));
      error[p] = __dadd_rn(error[p], __dmul_rn(difference, difference));
    }
  }
#pragma unroll
  for (int p = 0; p < CANDIDATES; ++p) {
    const double sum = sum_of_lanes(error[p]);
    if (lane == 0) row_errors[i64(p) * rows + row] = finite ? sum : -1.;
  }
}

template <int BITS> __device__ __forceinline__ void clip_search_choose(const double *row_errors, double *errors, i32 *chosen, i32 rows, i32 columns) {
  constexpr int CANDIDATES = Clip<BITS>::CANDIDATES;
  __shared__ double of_candidate[CANDIDATES];
  __shared__ u32 refused[CANDIDATES];
  const i32 p = i32(threadIdx.x / 32), lane = i32(lane_id());
  double sum = 0.;
  bool bad = false;
  for (i32 row = lane; row < rows; row += 32) {
    const double error = row_errors[i64(p) * rows + row];
    bad |= error < 0.;
    sum = __dadd_rn(sum, error);
  }
  sum = sum_of_lanes(sum);
  const u32 any = __any_sync(FULL_MASK, bad);
  if (lane == 0) of_candidate[p] = __ddiv_rn(sum, double(i64(rows) * columns)), refused[p] = any;
  __syncthreads();
  if (threadIdx.x == 0) {
    i32 best = 0;
    for (int candidate = 0; candidate < CANDIDATES; ++candidate) {
      if (of_candidate[candidate] < of_candidate[best]) best = candidate;
      errors[candidate] = of_candidate[candidate];
    }
    *chosen = refused[0] ? -1 : best;
  }
}

template <int BITS>
__device__ __forceinline__ void clip_search_pack(const float *weight, const u16 *scales, const i32 *chosen, u32 *packed, i32 rows, i32 columns) {
  const u64 n = u64(rows) * u64(columns), words = (n * BITS + 31) / 32;
  if (*chosen < 0) return;
  const u16 *scale = scales + i64(*chosen) * rows;
  for (u64 word = u64(blockIdx.x) * 256 + threadIdx.x; word < words; word += u64(gridDim.x) * 256) {
    u64 index = word * 32 / BITS;
    i32 position = i32(i64(index * BITS) - i64(word * 32)); // of the code's lowest bit in our word; negative for one that begins before
    u32 row = u32(index) / u32(columns), column = u32(index) % u32(columns);
    float s = f16_value(scale[row]);
    u32 bits = 0;
    for (; position < 32 && index < n; ++index, position += BITS) {
      const u32 raw = u32(i32(code<BITS>(weight[index], s)) + Clip<BITS>::LIMIT);
      bits |= position < 0 ? raw >> -position : raw << position;
      if (++column == u32(columns)) {
        column = 0, ++row;
        if (index + 1 < n) s = f16_value(scale[row]);
      }
    }
    packed[word] = bits;
  }
}

} // namespace birdie

using namespace birdie;

#define CLIP_KERNELS(BITS)                                                                                                     \
  extern "C" __global__ void __launch_bounds__(256)                                                                            \
      clip_search_rows_int##BITS(const float *weight, u16 *scales, double *row_errors, i32 rows, i32 columns) {                \
    clip_search_rows<BITS>(weight, scales, row_errors, rows, columns);                                                         \
  }                                                                                                                            \
  extern "C" __global__ void __launch_bounds__(32 * Clip<BITS>::CANDIDATES)                                                    \
      clip_search_choose_int##BITS(const double *row_errors, double *errors, i32 *chosen, i32 rows, i32 columns) {             \
    clip_search_choose<BITS>(row_errors, errors, chosen, rows, columns);                                                       \
  }                                                                                                                            \
  extern "C" __global__ void __launch_bounds__(256) clip_search_pack_int##BITS(                                                \
      const float *weight, const u16 *scales, const i32 *chosen, u32 *packed, i32 rows, i32 columns) {                         \
    clip_search_pack<BITS>(weight, scales, chosen, packed, rows, columns);                                                     \
  }

CLIP_KERNELS(6)
CLIP_KERNELS(5)
