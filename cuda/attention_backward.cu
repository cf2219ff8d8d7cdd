// Causal softmax attention, backward, down to the raw projection: head dimension 64, any number of query heads per key/value head. Five
// products, and at their end the backward of q/k RMSNorm, partial RoPE and gain.
//
// 1. Formula, per sequence and query head h with kv = h / group, group = H / KV, S and lse as in attention_forward.cu:
//      P = 2^(S log2(e) - lse)         dP = dO_h V_kv^T          dS = P (dP - delta),   delta = rowsum(dO_h O_h)
//      dV_kv = sum_h P^T dO_h          dK_kv = sum_h dS^T Q_h / 8          dQ_h = dS K_kv / 8
//    delta comes from gemm_attention_output.cu. Then, for what the forward (gemm_qkv.cu) stored as q and k, z = gain rope_t(y), y = x / rms, at
//    position t, with r = f / rms (gain 1 for k; x is the raw projection, which is not kept; f its row factor, row_scale.cuh); rope_t is a
//    rotation, so with g = dQ or dK:
//      q, k: dot = g . z;  dgain = sum dot / gain;  dx = r rope_t^T(gain g - z dot / (64 gain))
//      v:    dv = dV + dv_extra;  dx = f dv
//    A value mix is left to qkv.cu, which gets dv. dQ is a sum over CTAs: each adds its share in f32 to `dq_sum` through the copy engine; the
//    CTA that is the last one of a sequence and key/value head turns the sums into dx. Two entry points:
//      attention_backward_causal_d64            blocks of keys add in a fixed order, the diagonal first: same inputs, same bits
//      attention_backward_unordered_causal_d64  they add as they come: no CTA waits for another, bits change from run to run
//
// 2. Operands. Maps are 3-D over [B, T, columns], start at the first column of their part, boxes 64 x 64, 128-byte swizzle:
//      q, dout: heads;  k, v, dk, dv (of dqkv), dv_extra, dv_own: key/value heads, all bf16;  lse, delta f32 [B, H, Tp], read as rows of 64
//      ready, dqkv  bf16, first q column: attention's input, rows of C, and the gradient of the projection, rows of S
//      value_flags  1 there is a dv_extra, 2 dv times f goes to dqkv, 4 dv goes to dv_own
//      inverse_rms  f32 [N, R], r (qkv.cuh); rope f32 [T, 2 pairs], cosines, then sines; q_gain f32 [H]
//      gain_sums    f32 [B, H, Tp/32]: dgain of 32 queries each, for q_gain_gradient of qkv.cu
//      dq_sum   f32 [B, H, Tp/64, 2, 2048]: a tile's queries 0..31 and 32..63, each in the order of the accumulator of dQ^T:
//               [4][thread][4]. Ordered: written before it is read. Unordered: zero before the first launch, zero again after each.
//      turns    u32 [B, H, Tp/64, 2]: how many have added; then [B, KV]: tickets. Zero before the first launch, zero again after each.
//    Shared: K, V of 128 keys (later staging of dK, dV), dv_extra (later staging of dv_own), STAGES x (Q 8 KB, dO 8 KB, lse, delta), SCORES x
//    dS^T 16 KB, 2 x dQ 16 KB.
//
// 3. Work. Grid (ceil(T/128), KV, B), block 0 has the last keys. 384 threads. Warpgroup 0 (40 registers): warp 0 loads, warps 1 and 2
//    add dQ of queries 0..31 and 32..63 to dq_sum, a lane each. Warpgroups 1 and 2 (232 registers) own 64 keys each and 32 queries of dQ; they walk
//    the query tiles of the group's heads: dK 32, dV 32, S^T 32, dP^T 32 (dQ^T in half of it), P and dS packed 32, K as an operand 16,
//    half of V as one 8, K^T of all 128 keys as one 32.
//    NOTE: the scores are computed transposed (keys are the rows), so P^T and dS^T are already the register operand of dV and dK.
//    Only dS goes through shared memory, for dQ, which needs all 128 keys.
//    NOTE: dQ is computed transposed, too: its left operand is then K^T, which never changes and stays in registers, and only dS^T is
//    read from shared memory. It comes a step late, into the registers of dP, which are free then.
//    WHY NOT all of V there, too: half of it is enough for the products to be the bound, and all of it with what is under way is too much for
//    240 registers (ptxas: C7511). The unordered kernel has none of V there: of what was tried, nothing else suited ptxas 12.3 and 13.0.
//    END of a CTA: dK in the accumulators and K as an operand have the same layout, a row in a quad, and channels i and i+8 in one thread: the
//    dot product is 16 FMAs and two shuffles, the published RoPE needs none. dv_extra comes with K and V and is read as an operand, too.
//    The last CTA's eight consumer warps then take 32 queries of a head at a time: 8 lanes have a row, of dQ^T's order 4 columns and the 4
//    that are 8 further on, so that RoPE's partners are one lane's again; pairs of lanes exchange 8 bytes to read z and store dx in 16.
//    Other numbers of pairs take partners through K's place, or through that of the sums.
//    WHY NOT the warps that add, as each sum is complete: one warp for 32 queries takes longer than a step, and the last CTA waits for it in
//    every step; its registers would hold a row of eight lanes at a time, 232 the loads of four.
//    ORDER: a query tile gets its shares from the block on the diagonal first, then downwards. All blocks start on their diagonal,
//    so block j comes to a tile two steps after block j+1: in lockstep nobody waits. Which block a CTA is, its ticket says: block j+1
//    has started before block j, in whatever order the device starts CTAs, which is why waiting for it ends.
//
// 4. Pipeline of a warpgroup, from step n (one query tile of one head) to n+1; on the right what the tensor core has in its queue:
//      issue dV(n), dQ(n-1)                                  |
//      dS(n) to shared memory, for both warpgroups           |dV(n), dQ(n-1)
//      wait: dQ(n-1) to staging                              |the other warpgroup's
//      issue S(n+1), dP(n+1), dK(n)                          |
//      wait S(n+1): exp                                      |dP(n+1), dK(n)
//      wait: P(n+1), dS(n+1); release the stage of n         |the other warpgroup's
//    NOTE: the warpgroups meet over dS a whole step before dQ needs it, so neither waits and they may drift apart by a step: what one
//    computes stands under the products of the other.
//    NOTE: every second wait is for everything, also where nothing asks for it (the first step has no dQ before it). With longer queues
//    (S before dQ is handed over, dK into the next step, dP and dK as one group) ptxas finds no registers for all that is under way and
//    waits for each product. Which sources it takes is a matter of luck: try 12.3 and 13.0 after each change.
//
// 5. Floor (predicted), T = 2048, N = 98304, H = 8: 515 GFLOP, 646 us at 798 TFLOP/s; exponentials 217 us. Memory: qkv and dO read, dqkv
//    written, with statistics 0.97 GB, 323 us, which stands under the rest: as a pass of its own the step to the projection took 185 us, all of
//    it memory. Here it is less than 1 % more shared memory and 15 % more L2, neither of it in the main loop. Predicted over 11 layers: 1.9 ms less.
//    Cycles per SM and step (128 keys, 64 queries), products and shared memory (wavefronts, no conflicts), instructions from the loop
//    that ptxas 13.0 makes:
//                                      products | ex2 | instructions | shared memory
//      this                                1280 | 512 |          800 |          1510
//      no V in registers                   1280 | 512 |          800 |          1574
//      K of dQ in shared memory            1280 | 512 |          804 |          1823
//      two kernels of 4 and 3 products     1692 | 967 |         1296 |          1924
//    Shared memory: S, dV, dK, dQ 4 x 128 (their right operand), dP 192, dS 128, staging of dQ 128 written and 128 read, tiles
//    arriving 150, lse and delta 256. Predicted bound: shared memory, 1.18 times the products at equal clocks, but as long as they take at the
//    rate that tensor cores sustain. Between SM and L2: Q and dO 16 KB and the sum of dQ 16 KB a step, 43 KB with K, V, dK, dV and the way to the
//    projection, 24 bytes a cycle, 0.96 of what the products take.
//    WHY NOT clusters that share Q and dO (8 of the 43 KB), or the sum of dQ of two CTAs through distributed shared memory: L2 is not what
//    limits it, and the second would add passes to what does. WHY NOT blocks of 192 or 256 keys, with fewer sums of dQ: dK and dV alone
//    would take 96 or 128 registers of a thread.
//    FlashAttention-3 (commit 0251105a, head 64, causal, grouped, 128 x 128, nvcc 13.0.88) does the same five products with 24 bytes
//    spilled, a pass before to clear dQ and one after to round it; 673 instructions for 8192 scores. Counts: docs/benchmarks.md.
//
// 6. Fences and waits, and what breaks without them:
//      full/empty             products of missing bytes; a stage overwritten under a product
//      wgmma_wait<0>, <2>, <0>     dQ, S, dP used too early; P or dS overwritten while a product reads it; a stage released too early
//      fence + ds_full        dQ is a product of stale or missing dS; one of SCORES overwritten under the other warpgroup's dQ
//      __syncwarp before ds_full, dq_full   another lane of the warp still writes dS or dQ, or reads lse or delta of the stage
//      fence before dq_full   the copy engine adds stale staging bytes; dq_empty: staging overwritten while it is read
//      bulk_wait<0>, turn_*   shares are added out of order, or the sum is read before it is complete
//      dq_empty, both halves' of the last two steps   the same within the CTA
//      BOTH_WARPGROUPS        unordered: a warpgroup does not know yet whether the CTA is the last one
//      __syncwarp between stores and reads of partners, and before a sum is cleared   RoPE with any pairs reads what is not there or has been
//                             overwritten; a lane clears what another one has not read
//      fence_proxy_async_global    the turn is taken in the generic proxy, the copy after it runs in the async proxy
//      fence_proxy_async + named barrier   the store engine reads stale or missing staging bytes
//
// 7. Limits: as attention_forward.cu. Rows t >= T have lse = +inf and delta = 0, so they add nothing. Any number of pairs from 1 to 32;
//    the gain is used_gain (qkv.cuh), so that z / gain is y whatever the parameter is.
// 8. Machine code (ptxas 13.0): registers: 168, shared: 0 bytes, HGMMA: 64, dynamic: 200,704 bytes
#include "hopper/barrier.cuh"
#include "hopper/fence.cuh"
#include "hopper/matrix_moves.cuh"
#include "hopper/mbarrier.cuh"
#include "hopper/numeric.cuh"
#include "hopper/shared.cuh"
#include "hopper/tma.cuh"
#include "hopper/turn.cuh"
#include "hopper/warp.cuh"
#include "hopper/wgmma.cuh"
#include "qkv.cuh"
#include "row_scale.cuh"

namespace birdie {

constexpr int HEAD_DIM = 64, TILE = 64, HALVES = 2, STAGES = 4, SCORES = 3, THREADS = 384, DQ_FLOATS = TILE * HEAD_DIM / HALVES;
constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;
constexpr u32 TILE_BYTES = TILE * HEAD_DIM * sizeof(bf16);
constexpr float SCALE = 0.125f, SCALE_LOG2 = SCALE * LOG2_E;
constexpr u32 ONE_WARPGROUP = 1, BOTH_WARPGROUPS = 3; // named barriers: that of warpgroup `half` is ONE_WARPGROUP + half

template <bool VALUE> struct Flag { static constexpr bool value = VALUE; };

static_assert(HEAD_DIM * sizeof(bf16) == 128, "a head is one 128-byte swizzled row");

struct alignas(1024) BackwardShared {
  u8 k[HALVES][TILE_BYTES], v[HALVES][TILE_BYTES], dv[HALVES][TILE_BYTES]; // dv: what is added, then the result
  u8 q[STAGES][TILE_BYTES], dout[STAGES][TILE_BYTES];
  u8 ds[SCORES][HALVES][TILE_BYTES]; // dS^T: rows are keys. One is written, one is read, one is still read by the other warpgroup
  float dq[HALVES][2][DQ_FLOATS];
  float lse[STAGES][TILE], delta[STAGES][TILE];
  u64 full_kv, full[STAGES], empty[STAGES], ds_full, dq_full[HALVES][2], dq_empty[HALVES][2];
  u32 place;    // among the blocks of this sequence and head, the last keys first
  u32 finished; // how many of them had added all their dQ before this one; unordered
};

// C[64,64] = A[64,64] B[64,64]^T, A packed in registers, B in shared memory with its k contiguous.
__device__ __forceinline__ void multiply_transposed(float (&c)[32], const u32 (&a)[4][4], u64 b) {
#pragma unroll
  for (int step = 0; step < HEAD_DIM / 16; ++step) wgmma_n64<Major::K>(c, a[step], b + step * K_STEP<Major::K>, step != 0);
}
// The same with A in shared memory, its k contiguous; of its four slices of k the first SLICES are in registers.
template <int SLICES> __device__ __forceinline__ void multiply_transposed(float (&c)[32], const u32 (&a)[4][4], u64 rest, u64 b) {
#pragma unroll
  for (int step = 0; step < HEAD_DIM / 16; ++step) {
    if (step < SLICES) wgmma_n64<Major::K>(c, a[step], b + step * K_STEP<Major::K>, step != 0);
    else wgmma_n64<Major::K, Major::K>(c, rest + step * K_STEP<Major::K>, b + step * K_STEP<Major::K>, step != 0);
  }
}
// C[64,64] += A[64,64] B[64,64], A packed in registers, B with its columns contiguous.
__device__ __forceinline__ void multiply_add(float (&c)[32], const u32 (&a)[4][4], u64 b) {
#pragma unroll
  for (int step = 0; step < TILE / 16; ++step) wgmma_n64<Major::MN>(c, a[step], b + step * K_STEP<Major::MN>, true);
}
// Half of dQ^T[64,64] = K^T[64,128] dS^T[128,64]: all keys, 32 queries. K^T packed in registers.
__device__ __forceinline__ void multiply_queries(float (&c)[32], const u32 (&keys)[8][4], u64 ds) {
#pragma unroll
  for (int step = 0; step < HALVES * TILE / 16; ++step)
    wgmma_n32<Major::MN>(c, keys[step], ds + step * K_STEP<Major::MN>, step != 0);
}
__device__ __forceinline__ void pack_operand(u32 (&a)[4][4], const float (&x)[32]) {
#pragma unroll
  for (int i = 0; i < 16; ++i) a[i / 4][i % 4] = pack_bf16(x[2 * i], x[2 * i + 1]);
}
// The operand of 64 rows of a swizzled tile, or its first slices of k.
template <int SLICES = 4> __device__ __forceinline__ void load_operand(u32 (&a)[4][4], const u8 *tile, u32 warp, u32 lane) {
#pragma unroll
  for (int j = 0; j < SLICES; ++j) ldmatrix_x4(a[j], shared_address(tile) + swizzle_128b(16 * warp + (lane & 15), 16 * j + 8 * (lane >> 4)));
}
// The operand of the transposed tiles: row 16 warp + .. is a column of them, their rows are k.
__device__ __forceinline__ void load_operand_transposed(u32 (&a)[8][4], const u8 *tiles, u32 warp, u32 lane) {
#pragma unroll
  for (int j = 0; j < 8; ++j)
    ldmatrix_x4_transposed(a[j], shared_address(tiles) + swizzle_128b(16 * j + 8 * (lane >> 4) + (lane & 7), 16 * warp + (lane & 8)));
}
// Writes a packed operand as a swizzled tile; `place` is operand_place of the thread, the rest of the swizzle an XOR.
__device__ __forceinline__ u32 operand_place(u32 warp, u32 lane) { return swizzle_128b(16 * warp + (lane & 15), 8 * (lane >> 4)); }
__device__ __forceinline__ void store_operand(u8 *tile, const u32 (&a)[4][4], u32 place) {
  const u32 first = shared_address(tile) + place;
#pragma unroll
  for (int j = 0; j < 4; ++j) stmatrix_x4(first ^ 32 * j, a[j][0], a[j][1], a[j][2], a[j][3]);
}
// What lies between the raw projection and attention's input, on the way back: see qkv.cuh.
struct Projection {
  const bf16 *ready;        // attention's input, first q column
  i32 ready_stride;
  bf16 *dqkv;               // the gradient of the projection, first q column
  i32 stride;
  const float *inverse_rms; // what normed the heads of q and k, times the row's factor
  const float *rope;
  i32 pairs;
  const float *q_gain;
  float *gain_sums;         // of each half of a tile of queries
  RowScale scale;
  i32 T;
};

// Between lanes 2 n and 2 n + 1: of 16 bytes each the 8-byte pieces 0 1 | 2 3 become 0 2 | 1 3, and back.
__device__ __forceinline__ void exchange_pieces(u32 (&x)[4], bool odd) {
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const u32 other = __shfl_xor_sync(FULL_MASK, odd ? x[i] : x[2 + i], 1);
    (odd ? x[i] : x[2 + i]) = other;
  }
}

// From the sum of 32 rows x 64 columns of dQ, in the accumulator's order, to the gradient of their raw projection; its share of the
// gradient of the head's gain to `gain_sum`. One warp. `t`: the first of them, of the sequence whose first row is `row`.
template <bool CLEAR>
__device__ __forceinline__ void project_queries(const Projection &of, float *sum, i32 head, i32 pitch, i32 row, i32 t, float *gain_sum) {
  // A lane has two rows at a time, of the accumulator's order one j, warp and lane % 4: of lane / 4 four, columns 4 (eight % 2) and on of
  // 16, and those 8 further on, which are the other row of dQ^T. So the partners of the published RoPE are its own.
  const u32 lane = lane_id(), eight = lane % 8;
  const bool odd = eight % 2, published = of.pairs == ROPE_PAIRS;
  const float gain = used_gain(of.q_gain[head]), inverse_gain = rcp_approx(gain);
  float gain_total = 0.f;
#pragma unroll 2
  for (i32 query = 2 * i32(lane / 8); query < TILE / HALVES; query += 8) {
    float4 *place = reinterpret_cast<float4 *>(sum) + query / 8 * 128 + eight / 2 * 32 + eight % 2 * 16 + query % 8 / 2;
    float x[4][4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const float4 v = place[4 * i];
      x[i][0] = v.x, x[i][1] = v.y, x[i][2] = v.z, x[i][3] = v.w;
    }
#pragma unroll
    for (i32 second = 0; second < 2; ++second) {
      const bool live = t + query + second < of.T;
      const i32 position = min(t + query + second, of.T - 1);
      const i64 token = row + position;
      const uint4 ready = *reinterpret_cast<const uint4 *>(of.ready + token * of.ready_stride + head * HEAD_DIM + 8 * eight);
      u32 z[4] = {ready.x, ready.y, ready.z, ready.w};
      exchange_pieces(z, odd);
      float z_low[4], z_high[4], dot = 0.f;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        z_low[i] = i % 2 ? bf16_high(z[i / 2]) : bf16_low(z[i / 2]);
        z_high[i] = i % 2 ? bf16_high(z[2 + i / 2]) : bf16_low(z[2 + i / 2]);
        dot += x[i][second] * z_low[i] + x[i][2 + second] * z_high[i];
      }
      dot = SCALE * group_sum<8>(dot) * inverse_gain; // g . rope_t(y)
      if (live) gain_total += dot;
      const float r = of.inverse_rms[token * pitch + head] * gain, mean = dot * inverse_gain * (1.f / HEAD_DIM);
      const float *angles = of.rope + position * (2 * ROPE_PAIRS) + 4 * eight;
      float4 cosine = make_float4(1.f, 1.f, 1.f, 1.f), sine = make_float4(0.f, 0.f, 0.f, 0.f);
      if (published && eight < 2)
        cosine = *reinterpret_cast<const float4 *>(angles), sine = *reinterpret_cast<const float4 *>(angles + ROPE_PAIRS);
      const float c[4] = {cosine.x, cosine.y, cosine.z, cosine.w}, s[4] = {sine.x, sine.y, sine.z, sine.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float low = r * (SCALE * x[i][second] - z_low[i] * mean), high = r * (SCALE * x[i][2 + second] - z_high[i] * mean);
        x[i][second] = low * c[i] - high * s[i], x[i][2 + second] = high * c[i] + low * s[i];
      }
      if (!published) continue;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        z[i] = pack_bf16(x[2 * i][second], x[2 * i + 1][second]);
        z[2 + i] = pack_bf16(x[2 * i][2 + second], x[2 * i + 1][2 + second]);
      }
      exchange_pieces(z, odd);
      if (live) *reinterpret_cast<uint4 *>(of.dqkv + token * of.stride + head * HEAD_DIM + 8 * eight) = make_uint4(z[0], z[1], z[2], z[3]);
    }
    if (!published) {
#pragma unroll
      for (int i = 0; i < 4; ++i) place[4 * i] = make_float4(x[i][0], x[i][1], x[i][2], x[i][3]);
    }
  }
  gain_total += __shfl_xor_sync(FULL_MASK, gain_total, 8);
  gain_total += __shfl_xor_sync(FULL_MASK, gain_total, 16);
  if (lane == 0) *gain_sum = gain_total;
  if (!published) { // a row at a time, partners from the sum's place
    __syncwarp(); // all lanes have written
#pragma unroll 1
    for (i32 query = 0; query < min(of.T - t, TILE / HALVES); ++query) {
      const auto at = [&](i32 channel) {
        return sum[(query / 8 * 128 + channel / 16 * 32 + channel % 8 * 4 + query % 8 / 2) * 4 + channel / 8 % 2 * 2 + query % 2];
      };
      const i32 channel = 2 * i32(lane);
      float two[2] = {at(channel), at(channel + 1)};
      rotate_pairs_back(two, of.rope + i64(t + query) * 2 * of.pairs, of.pairs, channel, at);
      *reinterpret_cast<u32 *>(of.dqkv + i64(row + t + query) * of.stride + head * HEAD_DIM + channel) = pack_bf16(two[0], two[1]);
    }
  }
  if (CLEAR) {
    __syncwarp(); // all lanes have read
#pragma unroll 1
    for (u32 i = lane; i < DQ_FLOATS / 4; i += 32) reinterpret_cast<float4 *>(sum)[i] = make_float4(0.f, 0.f, 0.f, 0.f);
  }
}

// Rotates a head of two rows in the accumulators' layout back, by any number of pairs: partners come from `place`, 2 KB of the warp, a row
// of every quad at a time. NOTE: reading a partner, lanes of different rows meet in a bank. Published models do not come here.
__device__ __forceinline__ void rotate_any_back(float (&x)[32], const float *const (&angles)[2], i32 pairs, u32 place, u32 lane) {
  const i32 row = i32(lane / 4), first = 2 * i32(lane % 4);
  const auto address = [&](i32 column) { return place + u32(row * 256 + ((column / 8) ^ row) * 32 + column % 8 * 4); };
#pragma unroll
  for (int half = 0; half < 2; ++half) {
    if (half != 0) __syncwarp(); // the first half's have been read
#pragma unroll
    for (int j = 0; j < 8; ++j) store_shared(address(8 * j + first), x[4 * j + 2 * half], x[4 * j + 2 * half + 1]);
    __syncwarp();
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      float two[2] = {x[4 * j + 2 * half], x[4 * j + 2 * half + 1]};
      rotate_pairs_back(two, angles[half], pairs, 8 * j + first, [&](i32 channel) { return load_shared(address(channel)); });
      x[4 * j + 2 * half] = two[0], x[4 * j + 2 * half + 1] = two[1];
    }
  }
  __syncwarp(); // the second half's have been read
}

struct BackwardMaps {
  const TensorMap *q, *k, *v, *dout, *dk, *dv, *dv_extra, *dv_own;
};

// What becomes of the gradient of v.
enum ValueFlags { VALUE_EXTRA = 1, VALUE_PROJECTED = 2, VALUE_OWN = 4 };

template <bool ORDERED>
__device__ __forceinline__ void attention_backward(const BackwardMaps &maps, const Projection &projection, i32 value_flags,
                                                   const float *lse, const float *delta, float *dq_sum, u32 *turns, i32 Tp, i32 group) {
  extern __shared__ u8 shared_bytes[];
  // NOTE: an offset and not a rounded address: the compiler still sees shared memory, and loads and stores need not find out.
  BackwardShared &shared = *reinterpret_cast<BackwardShared *>(shared_bytes + ((0u - shared_address(shared_bytes)) & 1023u));
  const u32 warpgroup = warp_id() / 4, lane = threadIdx.x % 32;
  const i32 kv = i32(blockIdx.y), b = i32(blockIdx.z), T = projection.T, tiles = Tp / TILE;
  const u64 pair = u64(b) * gridDim.y + kv, first_head = pair * group; // of all sequences

  if (threadIdx.x == 0) {
    const u64 tickets = u64(gridDim.z) * gridDim.y * group * tiles * HALVES;
    shared.place = ORDERED ? turn_ticket(turns + tickets + pair, gridDim.x) : blockIdx.x;
    mbarrier_init(&shared.full_kv, 1);
    for (int s = 0; s < STAGES; ++s) {
      mbarrier_init(&shared.full[s], 1);
      mbarrier_init(&shared.empty[s], 4 * HALVES);
    }
    for (int half = 0; half < HALVES; ++half)
      for (int s = 0; s < 2; ++s) {
        mbarrier_init(&shared.dq_full[half][s], 4);
        mbarrier_init(&shared.dq_empty[half][s], 1);
      }
    mbarrier_init(&shared.ds_full, 4 * HALVES);
    fence_barrier_init();
  }
  __syncthreads();
  const i32 block = i32(gridDim.x - 1 - shared.place), block_key = block * HALVES * TILE, first_tile = HALVES * block;

  if (warpgroup == 0) {
    registers_decrease<PRODUCER_REGISTERS>();
    const u32 role = warp_id();
    if (role == 0 && lane == 0) { // ---- producer
      RingPosition<STAGES> ring;
      const bool extra = value_flags & VALUE_EXTRA;
      mbarrier_arrive_expect(&shared.full_kv, (extra ? 3 : 2) * HALVES * TILE_BYTES);
      for (int half = 0; half < HALVES; ++half) {
        tma_load_3d(shared.k[half], maps.k, &shared.full_kv, kv * HEAD_DIM, block_key + half * TILE, b);
        tma_load_3d(shared.v[half], maps.v, &shared.full_kv, kv * HEAD_DIM, block_key + half * TILE, b);
        if (extra) tma_load_3d(shared.dv[half], maps.dv_extra, &shared.full_kv, kv * HEAD_DIM, block_key + half * TILE, b);
      }
      for (i32 member = 0; member < group; ++member) {
        const i32 column = (group * kv + member) * HEAD_DIM;
        const u64 row = (first_head + member) * Tp;
        for (i32 tile = first_tile; tile < tiles; ++tile) {
          const u32 s = ring.stage;
          mbarrier_wait(&shared.empty[s], ring.phase ^ 1);
          mbarrier_arrive_expect(&shared.full[s], 2 * TILE_BYTES + 2 * TILE * sizeof(float));
          tma_load_3d(shared.q[s], maps.q, &shared.full[s], column, tile * TILE, b);
          tma_load_3d(shared.dout[s], maps.dout, &shared.full[s], column, tile * TILE, b);
          bulk_load(shared.lse[s], lse + row + tile * TILE, TILE * sizeof(float), &shared.full[s]);
          bulk_load(shared.delta[s], delta + row + tile * TILE, TILE * sizeof(float), &shared.full[s]);
          ring.advance();
        }
      }
    } else if ((role == 1 || role == 2) && lane == 0) { // ---- 32 queries of each tile of dQ
      const u32 half = role - 1;
      u32 index = (u32(first_head) * u32(tiles) + u32(first_tile)) * HALVES + half, step = 0;
      for (i32 member = 0; member < group; ++member) {
#pragma unroll 1
        for (i32 tile = first_tile; tile < tiles; ++tile, ++step, index += HALVES) {
          const u32 turn = u32(tile / HALVES - block); // the last one is that of block 0
          float *sum = dq_sum + u64(index) * DQ_FLOATS;
          const float *source = shared.dq[half][step % 2];
          mbarrier_wait(&shared.dq_full[half][step % 2], step / 2 & 1);
          if (ORDERED && turn != 0) {
            turn_wait(turns + index, turn);
            fence_proxy_async_global();
          }
          if (ORDERED && turn == 0) {
            bulk_store(sum, source, DQ_FLOATS * sizeof(float));
          } else {
            bulk_add_f32(sum, source, DQ_FLOATS * sizeof(float));
          }
          bulk_commit();
          bulk_wait<0>();
          mbarrier_arrive(&shared.dq_empty[half][step % 2]);
          if (ORDERED) {
            if (block != 0) turn_pass(turns + index);
            else turns[index] = 0;
          }
        }
        index += HALVES * u32(first_tile);
      }
    }
    return;
  }

  // ---- consumers: 64 keys each
  registers_increase<CONSUMER_REGISTERS>();
  const u32 half = warpgroup - 1, thread = threadIdx.x % 128, warp = thread / 32;
  const i32 first_key = block_key + i32(half) * TILE, key = first_key + i32(16 * warp + lane / 4);
  constexpr int VALUE_SLICES = ORDERED ? 2 : 0; // in registers, see 3
  const u64 descriptor_v = matrix_descriptor(shared_address(shared.v[half]), 16);
  u32 operand_k[4][4], operand_v[4][4], keys[8][4], p[4][4], ds[4][4];
  float s[32], dp[32], dk_sum[32], dv_sum[32];
#pragma unroll
  for (int i = 0; i < 32; ++i) dk_sum[i] = dv_sum[i] = 0.f;
  accumulator_barrier(dk_sum);
  accumulator_barrier(dv_sum);
  mbarrier_wait(&shared.full_kv, 0);
  load_operand(operand_k, shared.k[half], warp, lane);
  load_operand<VALUE_SLICES>(operand_v, shared.v[half], warp, lane);
  load_operand_transposed(keys, shared.k[0], warp, lane);

  const auto tile_descriptor = [&](const u8 *tile) { return matrix_descriptor(shared_address(tile), 16); };
  const u32 place = operand_place(warp, lane);
  i32 tile = first_tile;
  // P from S; the probabilities stay for the scores' gradient.
  const auto probabilities = [&](i32 step, float (&probability)[32]) {
    const i32 first_query = tile * TILE;
    const float *lse_of = shared.lse[step % STAGES] + 2 * (lane % 4); // of the group's queries column, column + 1
    accumulator_barrier(s);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 l = *reinterpret_cast<const float2 *>(lse_of + 8 * j);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float &x = probability[4 * j + i];
        x = exp2_approx(s[4 * j + i] * SCALE_LOG2 - ((i & 1) ? l.y : l.x));
      }
    }
    const auto mask = [&] {
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const i32 query = first_query + 8 * (i >> 2) + 2 * i32(lane % 4) + (i & 1);
        if (query < key + 8 * ((i >> 1) & 1)) probability[i] = 0.f;
      }
    };
    // The diagonal, or before it. NOTE: that it is rare is told where ptxas makes better use of registers by it.
    if constexpr (ORDERED) {
      if (__builtin_expect(first_query <= first_key, 0)) mask();
    } else if (first_query <= first_key) {
      mask();
    }
  };
  const auto score_gradients = [&](i32 step, float (&probability)[32]) {
    const float *delta_of = shared.delta[step % STAGES] + 2 * (lane % 4);
    accumulator_barrier(dp);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const float2 d = *reinterpret_cast<const float2 *>(delta_of + 8 * j);
#pragma unroll
      for (int i = 0; i < 4; ++i) probability[4 * j + i] *= dp[4 * j + i] - ((i & 1) ? d.y : d.x);
    }
  };
  // dS of a step to both warpgroups.
  const auto publish = [&](i32 step) {
    store_operand(shared.ds[u32(step) % SCORES][half], ds, place);
    fence_proxy_async_shared();
    __syncwarp();
    if (lane == 0) mbarrier_arrive(&shared.ds_full);
  };
  const auto query_gradients = [&](i32 step) {
    const u64 queries = DESCRIPTOR_STEP<TILE / HALVES * sizeof(bf16)> * half; // our 32 of them
    multiply_queries(dp, keys, tile_descriptor(shared.ds[u32(step) % SCORES][0]) + queries);
  };
  // dS of a step, of both warpgroups. NOTE: waited for before the next one is published, so the parity tells which it is.
  const auto wait_for_scores = [&](i32 step) { mbarrier_wait(&shared.ds_full, step & 1); };
  const auto wait_for_place = [&](i32 step) { mbarrier_wait(&shared.dq_empty[half][step % 2], (step / 2 & 1) ^ 1); };
  // dQ of a step from registers to the warp that adds it.
  const auto hand_over = [&](i32 step) {
    const u32 buffer = step % 2;
    accumulator_barrier(dp);
    float4 *target = reinterpret_cast<float4 *>(shared.dq[half][buffer]) + thread;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      target[128 * i] = make_float4(dp[4 * i], dp[4 * i + 1], dp[4 * i + 2], dp[4 * i + 3]);
    fence_proxy_async_shared();
    __syncwarp();
    if (lane == 0) mbarrier_arrive(&shared.dq_full[half][buffer]);
  };
  // Finishes a step, but for its dQ, and the dQ of the one before; starts the next.
  const auto advance = [&](i32 step, auto first) { // NOTE: the first step has none before it
    const u32 stage = step % STAGES, next = (step + 1) % STAGES;
    if (++tile == tiles) tile = first_tile;
    mbarrier_wait(&shared.full[next], (step + 1) / STAGES & 1);
    if (!first.value) wait_for_scores(step - 1), wait_for_place(step - 1);
    wgmma_fence();
    multiply_add(dv_sum, p, tile_descriptor(shared.dout[stage]));
    if (!first.value) query_gradients(step - 1);
    wgmma_commit();
    publish(step);
    wgmma_wait<0>();
    if (!first.value) hand_over(step - 1);
    wgmma_fence();
    multiply_transposed(s, operand_k, tile_descriptor(shared.q[next]));
    wgmma_commit();
    multiply_transposed<VALUE_SLICES>(dp, operand_v, descriptor_v, tile_descriptor(shared.dout[next]));
    wgmma_commit();
    multiply_add(dk_sum, ds, tile_descriptor(shared.q[stage]));
    wgmma_commit();

    float probability[32];
    wgmma_wait<2>();
    probabilities(step + 1, probability);
    wgmma_wait<0>();
    if (lane == 0) mbarrier_arrive(&shared.empty[stage]); // its lse and delta were read before dS was published
    accumulator_barrier(probability);
    pack_operand(p, probability);
    score_gradients(step + 1, probability);
    pack_operand(ds, probability);
  };

  mbarrier_wait(&shared.full[0], 0);
  wgmma_fence();
  multiply_transposed(s, operand_k, tile_descriptor(shared.q[0]));
  wgmma_commit();
  multiply_transposed<VALUE_SLICES>(dp, operand_v, descriptor_v, tile_descriptor(shared.dout[0]));
  wgmma_commit();
  wgmma_wait<0>();
  {
    float probability[32];
    probabilities(0, probability);
    pack_operand(p, probability);
    score_gradients(0, probability);
    pack_operand(ds, probability);
  }
  const i32 last = group * (tiles - first_tile) - 1;
  if (last > 0) advance(0, Flag<true>{});
  for (i32 step = 1; step < last; ++step) advance(step, Flag<false>{});
  wait_for_scores(last - 1); // no wait if there is none: the barrier is fresh then
  publish(last);
  wgmma_fence();
  multiply_add(dv_sum, p, tile_descriptor(shared.dout[last % STAGES]));
  multiply_add(dk_sum, ds, tile_descriptor(shared.q[last % STAGES]));
  wgmma_commit();
  wgmma_wait<0>();
  accumulator_barrier(dk_sum);
  accumulator_barrier(dv_sum);
  for (i32 step = max(last - 1, 0); step <= last; ++step) {
    if (step == last) wait_for_scores(last);
    wait_for_place(step);
    wgmma_fence();
    query_gradients(step);
    wgmma_commit();
    wgmma_wait<0>();
    hand_over(step);
  }

  const i32 pitch = inverse_rms_pitch(group * i32(gridDim.y), i32(gridDim.y));
  // ---- to the raw projection. This thread has, of keys t[0] and t[1], two channels of every 8.
  const float *angles[2];
  float normed[2], share[2];
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const i32 t = min(key + 8 * i, T - 1), row = b * T + t;
    normed[i] = SCALE * projection.inverse_rms[i64(row) * pitch + group * i32(gridDim.y) + kv];
    share[i] = quad_row_share(projection.scale, row, i32(gridDim.z) * T, lane);
    angles[i] = projection.rope + i64(t) * 2 * projection.pairs;
  }
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    float even = 0.f, odd = 0.f;
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const u32 z = operand_k[j / 2][j % 2 * 2 + i];
      even += dk_sum[4 * j + 2 * i] * bf16_low(z), odd += dk_sum[4 * j + 2 * i + 1] * bf16_high(z);
    }
    const float mean = group_sum<4>(even + odd) * (1.f / HEAD_DIM);
#pragma unroll
    for (int j = 0; j < 8; ++j) {
      const u32 z = operand_k[j / 2][j % 2 * 2 + i];
      float *g = dk_sum + 4 * j + 2 * i;
      g[0] = normed[i] * (g[0] - bf16_low(z) * mean), g[1] = normed[i] * (g[1] - bf16_high(z) * mean);
    }
    if (projection.pairs == ROPE_PAIRS) { // channels c and c + 8 are both ours
      const float2 c = *reinterpret_cast<const float2 *>(angles[i] + 2 * (lane % 4));
      const float2 s = *reinterpret_cast<const float2 *>(angles[i] + ROPE_PAIRS + 2 * (lane % 4));
      float *low = dk_sum + 2 * i, *high = low + 4;
      const float2 l = make_float2(low[0], low[1]), h = make_float2(high[0], high[1]);
      low[0] = l.x * c.x - h.x * s.x, low[1] = l.y * c.y - h.y * s.y;
      high[0] = h.x * c.x + l.x * s.x, high[1] = h.y * c.y + l.y * s.y;
    }
  }
  if (projection.pairs != ROPE_PAIRS) rotate_any_back(dk_sum, angles, projection.pairs, shared_address(shared.k[half]) + 2048 * warp, lane);
  pack_operand(ds, dk_sum);
  store_operand(shared.k[half], ds, place);

  if (value_flags & VALUE_EXTRA) {
    load_operand(p, shared.dv[half], warp, lane);
#pragma unroll
    for (int i = 0; i < 16; ++i) dv_sum[2 * i] += bf16_low(p[i / 4][i % 4]), dv_sum[2 * i + 1] += bf16_high(p[i / 4][i % 4]);
  }
  if (value_flags & VALUE_OWN) {
    pack_operand(p, dv_sum);
    store_operand(shared.dv[half], p, place);
  }
  share[0] = quad_row_factor(projection.scale, share[0]), share[1] = quad_row_factor(projection.scale, share[1]);
#pragma unroll
  for (int i = 0; i < 32; ++i) dv_sum[i] *= share[i / 2 % 2];
  pack_operand(p, dv_sum);
  store_operand(shared.v[half], p, place);
  fence_proxy_async_shared();
  named_barrier_sync(ONE_WARPGROUP + half, 128);
  if (thread == 0 && first_key < T) {
    tma_store_3d(maps.dk, shared.k[half], kv * HEAD_DIM, first_key, b);
    if (value_flags & VALUE_PROJECTED) tma_store_3d(maps.dv, shared.v[half], kv * HEAD_DIM, first_key, b);
    if (value_flags & VALUE_OWN) tma_store_3d(maps.dv_own, shared.dv[half], kv * HEAD_DIM, first_key, b);
    bulk_commit();
    bulk_wait_read<0>();
  }

  // ---- dQ of all queries of the sequence, by the block whose share is the last one
  for (i32 step = max(last - 1, 0); step <= last; ++step)
    for (i32 of = 0; of < HALVES; ++of) mbarrier_wait(&shared.dq_empty[of][step % 2], step / 2 & 1); // all of ours are added
  if (ORDERED) {
    if (block != 0) return;
  } else {
    if (threadIdx.x == 128) {
      u32 *finished = turns + u64(gridDim.z) * gridDim.y * group * tiles * HALVES + pair;
      shared.finished = turn_count(finished);
      if (shared.finished == gridDim.x - 1) *finished = 0;
    }
    named_barrier_sync(BOTH_WARPGROUPS, 256);
    if (shared.finished != gridDim.x - 1) return;
  }
#pragma unroll 1
  for (i32 part = i32(threadIdx.x / 32) - 4; part < group * tiles * HALVES; part += 8) {
    const u32 index = u32(first_head) * u32(tiles * HALVES) + u32(part);
    const i32 member = part / (tiles * HALVES), t = part % (tiles * HALVES) * (TILE / HALVES);
    project_queries<!ORDERED>(projection, dq_sum + u64(index) * DQ_FLOATS, group * kv + member, pitch, b * T, t,
                              projection.gain_sums + index);
  }
}

} // namespace birdie

using namespace birdie;

#define MAP const __grid_constant__ TensorMap
#define ATTENTION_BACKWARD(NAME, ORDERED)                                                                                             \
  extern "C" __global__ void __launch_bounds__(THREADS, 1)                                                                            \
      NAME(MAP q, MAP k, MAP v, MAP dout, MAP dk, MAP dv, MAP dv_extra, MAP dv_own, i32 value_flags, const float *lse,                \
           const float *delta, const bf16 *ready, i32 C, bf16 *dqkv, i32 S, const float *inverse_rms, const float *rope, i32 pairs,   \
           const float *q_gain, float *gain_sums, RowScale scale, float *dq_sum, u32 *turns, i32 T, i32 Tp, i32 group) {              \
    attention_backward<ORDERED>({&q, &k, &v, &dout, &dk, &dv, &dv_extra, &dv_own},                                                    \
                                {ready, C, dqkv, S, inverse_rms, rope, pairs, q_gain, gain_sums, scale, T}, value_flags, lse, delta,  \
                                dq_sum, turns, Tp, group);                                                                            \
  }

ATTENTION_BACKWARD(attention_backward_causal_d64, true)
ATTENTION_BACKWARD(attention_backward_unordered_causal_d64, false)
