// Causal softmax attention, backward: head dimension 64, any number of query heads per key/value head. Deterministic.
//
// 1. Formula, per sequence and query head h with kv = h / group, group = H / KV, S and lse as in attention_forward.cu:
//      P = 2^(S log2(e) - lse)         dP = dO_h V_kv^T          dS = P (dP - delta),   delta = rowsum(dO_h O_h)
//      dV_kv = sum_h P^T dO_h          dK_kv = sum_h dS^T Q_h / 8          dQ_h = dS K_kv / 8
//    delta comes from attention_output.cu. Two kernels: _dkdv walks query tiles for a block of keys, _dq walks key blocks for a
//    tile of queries.
//    WHY NOT one kernel with five products: its dQ must be added across CTAs; in a fixed order that costs a wait, and without
//    one the bits change from run to run. Here P is computed twice instead, seven products for five.
//
// 2. Operands. Maps are 3-D over [B, T, columns], start at the first column of their part, boxes 64 x 64, 128-byte swizzle:
//      q, dout, dq: heads;  k, v, dk, dv: key/value heads, all bf16;  lse, delta f32 [B, H, Tp], read as rows of 64
//    Shared, _dkdv: K, V of 128 keys (later staging of dK, dV), STAGES x (Q 8 KB, dO 8 KB, lse, delta)
//            _dq:   Q, dO of 64 queries of two heads or 128 of one (Q later staging of dQ), STAGES x (K 8 KB, V 8 KB)
//
// 3. Work. _dkdv: grid (ceil(T/128), KV, B), block 0 has the most queries and comes first; warpgroups 1 and 2 own 64 keys each,
//    all heads of the group one after the other: registers 240 = dK 32, dV 32, S^T 32, dP^T 32, packed 32.
//    _dq: grid (ceil(T / (128 / R)), H / R, B), longest first, R heads per CTA as in attention_forward.cu; warpgroups 1 and 2 own 64
//    rows of one head each. Warpgroup 0 loads (24 registers).
//    NOTE: _dkdv computes the transposes S^T and dP^T (keys are the rows), so P^T and dS^T are already the register operand of the
//    products that follow; nothing goes through shared memory.
//
// 4. Pipeline, one step (query tile or key block):
//      |S, dP issued together|S done: exp|dP done: dS|dV and dK (or dQ)|release|      the other warpgroup fills the gaps
//
// 5. Floor (predicted), T = 2048, N = 98304, H = 8: 515 GFLOP for five products, 646 us at 798 TFLOP/s; this version does 721
//    GFLOP, 904 us, and the exponentials twice (434 us, overlapped).
//
// 6. Fences and waits, and what breaks without them:
//      full/empty             products of missing bytes; a stage overwritten under a product
//      wgmma_wait<1>, <0>     S used before dP is done but after S is; accumulators touched too early; stage released too early
//      __syncwarp before release   another lane of the warp still reads lse or delta of the stage
//      fence_proxy_async + named barrier   the store engine reads stale or missing staging bytes
//
// 7. Limits: as attention_forward.cu. Rows t >= T have lse = +inf and delta = 0, so they add nothing.
#include "hopper/barrier.cuh"
#include "hopper/fence.cuh"
#include "hopper/matrix_moves.cuh"
#include "hopper/mbarrier.cuh"
#include "hopper/numeric.cuh"
#include "hopper/tma.cuh"
#include "hopper/warp.cuh"
#include "hopper/wgmma.cuh"

namespace birdie {

constexpr int HEAD_DIM = 64, TILE = 64, HALVES = 2, STAGES = 3, THREADS = 384;
constexpr u32 TILE_BYTES = TILE * HEAD_DIM * sizeof(bf16);
constexpr float SCALE = 0.125f, SCALE_LOG2 = SCALE * LOG2_E;

static_assert(HEAD_DIM * sizeof(bf16) == 128, "a head is one 128-byte swizzled row");

struct alignas(1024) KeysShared { // _dkdv
  u8 k[2][TILE_BYTES], v[2][TILE_BYTES];
  u8 q[STAGES][TILE_BYTES], dout[STAGES][TILE_BYTES];
  float lse[STAGES][TILE], delta[STAGES][TILE];
  u64 full_kv, full[STAGES], empty[STAGES];
};
struct alignas(1024) QueriesShared { // _dq
  u8 q[HALVES][TILE_BYTES], dout[HALVES][TILE_BYTES];
  u8 k[STAGES][TILE_BYTES], v[STAGES][TILE_BYTES];
  u64 full_q, full[STAGES], empty[STAGES];
};

// C[64,64] (+)= A[64,64] B[64,64]^T, both tiles K-major in shared memory.
__device__ __forceinline__ void multiply_shared(float (&c)[32], u64 a, u64 b) {
#pragma unroll
  for (int step = 0; step < HEAD_DIM / 16; ++step)
    wgmma_n64<Major::K, Major::K>(c, a + step * K_STEP<Major::K>, b + step * K_STEP<Major::K>, step != 0);
}
// C[64,64] += A[64,64] B[64,64], A packed in registers, B with its columns contiguous.
__device__ __forceinline__ void multiply_add_registers(float (&c)[32], const u32 (&a)[4][4], u64 b) {
#pragma unroll
  for (int step = 0; step < TILE / 16; ++step) wgmma_n64<Major::MN>(c, a[step], b + step * K_STEP<Major::MN>, true);
}
__device__ __forceinline__ void pack_operand(u32 (&a)[4][4], const float (&x)[32]) {
#pragma unroll
  for (int i = 0; i < 16; ++i) a[i / 4][i % 4] = pack_bf16(x[2 * i], x[2 * i + 1]);
}
// Scales an accumulator and writes it as a bf16 tile under the 128-byte swizzle.
__device__ __forceinline__ void stage_tile(u8 *tile, const float (&x)[32], float scale, u32 warp, u32 lane) {
  const u32 base = shared_address(tile);
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const float *y = x + 8 * j;
    stmatrix_x4(base + swizzle_128b(16 * warp + (lane & 15), 16 * j + 8 * (lane >> 4)), pack_bf16(y[0] * scale, y[1] * scale),
                pack_bf16(y[2] * scale, y[3] * scale), pack_bf16(y[4] * scale, y[5] * scale), pack_bf16(y[6] * scale, y[7] * scale));
  }
}
__device__ __forceinline__ void clear(float (&x)[32]) {
#pragma unroll
  for (int i = 0; i < 32; ++i) x[i] = 0.f;
}

} // namespace birdie

using namespace birdie;

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_backward_dkdv_causal_d64(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k,
                                       const __grid_constant__ TensorMap v, const __grid_constant__ TensorMap dout,
                                       const __grid_constant__ TensorMap dk, const __grid_constant__ TensorMap dv,
                                       const float *lse, const float *delta, i32 T, i32 Tp, i32 group) {
  extern __shared__ u8 shared_bytes[];
  KeysShared &shared = *reinterpret_cast<KeysShared *>((reinterpret_cast<u64>(shared_bytes) + 1023) & ~u64(1023));
  const u32 warpgroup = warp_id() / 4;
  const i32 block_key = i32(blockIdx.x) * 2 * TILE, kv = i32(blockIdx.y), b = i32(blockIdx.z);
  const i32 first_tile = block_key / TILE, tiles = ceil_div(T, TILE);

  if (threadIdx.x == 0) {
    mbarrier_init(&shared.full_kv, 1);
    for (int s = 0; s < STAGES; ++s) {
      mbarrier_init(&shared.full[s], 1);
      mbarrier_init(&shared.empty[s], 8);
    }
    fence_barrier_init();
  }
  __syncthreads();
  RingPosition<STAGES> ring;

  if (warpgroup == 0) { // ---- producer
    registers_decrease<24>();
    if (threadIdx.x == 0) {
      mbarrier_arrive_expect(&shared.full_kv, 4 * TILE_BYTES);
      for (int half = 0; half < 2; ++half) {
        tma_load_3d(shared.k[half], &k, &shared.full_kv, kv * HEAD_DIM, block_key + half * TILE, b);
        tma_load_3d(shared.v[half], &v, &shared.full_kv, kv * HEAD_DIM, block_key + half * TILE, b);
      }
      for (int member = 0; member < group; ++member) {
        const i32 head = group * kv + member;
        const u64 row = (u64(b) * gridDim.y * group + head) * Tp;
        for (i32 tile = first_tile; tile < tiles; ++tile) {
          const u32 s = ring.stage;
          mbarrier_wait(&shared.empty[s], ring.phase ^ 1);
          mbarrier_arrive_expect(&shared.full[s], 2 * TILE_BYTES + 2 * TILE * sizeof(float));
          tma_load_3d(shared.q[s], &q, &shared.full[s], head * HEAD_DIM, tile * TILE, b);
          tma_load_3d(shared.dout[s], &dout, &shared.full[s], head * HEAD_DIM, tile * TILE, b);
          bulk_load(shared.lse[s], lse + row + tile * TILE, TILE * sizeof(float), &shared.full[s]);
          bulk_load(shared.delta[s], delta + row + tile * TILE, TILE * sizeof(float), &shared.full[s]);
          ring.advance();
        }
      }
    }
    return;
  }

  // ---- consumers: 64 keys each
  registers_increase<240>();
  const u32 half = warpgroup - 1, thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32;
  const i32 first_key = block_key + i32(half) * TILE, key = first_key + i32(16 * warp + lane / 4);
  const u64 descriptor_k = matrix_descriptor(shared_address(shared.k[half]), 16);
  const u64 descriptor_v = matrix_descriptor(shared_address(shared.v[half]), 16);
  float dk_sum[32], dv_sum[32];
  clear(dk_sum);
  clear(dv_sum);

  mbarrier_wait(&shared.full_kv, 0);
  for (int member = 0; member < group; ++member) {
    for (i32 tile = first_tile; tile < tiles; ++tile) {
      const u32 stage = ring.stage;
      mbarrier_wait(&shared.full[stage], ring.phase);
      const i32 first_query = tile * TILE;
      if (first_query >= first_key) { // else every query of the tile comes before all of our keys
        const u64 descriptor_q = matrix_descriptor(shared_address(shared.q[stage]), 16);
        const u64 descriptor_do = matrix_descriptor(shared_address(shared.dout[stage]), 16);
        float s[32], dp[32];
        wgmma_fence();
        multiply_shared(s, descriptor_k, descriptor_q);
        wgmma_commit();
        multiply_shared(dp, descriptor_v, descriptor_do);
        wgmma_commit();

        wgmma_wait<1>();
        accumulator_barrier(s);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const i32 column = 8 * j + 2 * i32(lane % 4); // this thread's queries of the group: column, column + 1
          const float2 l = *reinterpret_cast<const float2 *>(&shared.lse[stage][column]);
#pragma unroll
          for (int i = 0; i < 4; ++i) {
            float &x = s[4 * j + i];
            x = exp2_approx(x * SCALE_LOG2 - ((i & 1) ? l.y : l.x));
            if (first_query == first_key && first_query + column + (i & 1) < key + 8 * (i >> 1)) x = 0.f;
          }
        }
        u32 p[4][4], ds[4][4];
        pack_operand(p, s);
        wgmma_wait<0>();
        accumulator_barrier(dp);
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const float2 d = *reinterpret_cast<const float2 *>(&shared.delta[stage][8 * j + 2 * (lane % 4)]);
#pragma unroll
          for (int i = 0; i < 4; ++i) dp[4 * j + i] = s[4 * j + i] * (dp[4 * j + i] - ((i & 1) ? d.y : d.x));
        }
        pack_operand(ds, dp);
        wgmma_fence();
        multiply_add_registers(dv_sum, p, descriptor_do);
        multiply_add_registers(dk_sum, ds, descriptor_q);
        wgmma_commit();
        wgmma_wait<0>();
        accumulator_barrier(dv_sum);
        accumulator_barrier(dk_sum);
      }
      __syncwarp();
      if (lane == 0) mbarrier_arrive(&shared.empty[stage]);
      ring.advance();
    }
  }

  stage_tile(shared.k[half], dk_sum, SCALE, warp, lane);
  stage_tile(shared.v[half], dv_sum, 1.f, warp, lane);
  fence_proxy_async_shared();
  named_barrier_sync(1 + half, 128);
  if (thread == 0 && first_key < T) {
    tma_store_3d(&dk, shared.k[half], kv * HEAD_DIM, first_key, b);
    tma_store_3d(&dv, shared.v[half], kv * HEAD_DIM, first_key, b);
    bulk_commit();
    bulk_wait_read<0>();
  }
}

extern "C" __global__ void __launch_bounds__(THREADS, 1)
    attention_backward_dq_causal_d64(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k,
                                     const __grid_constant__ TensorMap v, const __grid_constant__ TensorMap dout,
                                     const __grid_constant__ TensorMap dq, const float *lse, const float *delta, i32 T,
                                     i32 Tp, i32 group, i32 heads_per_cta) {
  extern __shared__ u8 shared_bytes[];
  QueriesShared &shared = *reinterpret_cast<QueriesShared *>((reinterpret_cast<u64>(shared_bytes) + 1023) & ~u64(1023));
  const u32 warpgroup = warp_id() / 4;
  // Half h of the CTA owns head first_head + h head_step, rows first_row + h row_step and the 63 after.
  const i32 head_step = heads_per_cta - 1, row_step = (1 - head_step) * TILE;
  const i32 first_row = i32(gridDim.x - 1 - blockIdx.x) * (TILE + row_step), first_head = i32(blockIdx.y) * heads_per_cta;
  const i32 kv = first_head / group, b = i32(blockIdx.z), last_tile = min(first_row + row_step, T - 1) / TILE;

  if (threadIdx.x == 0) {
    mbarrier_init(&shared.full_q, 1);
    for (int s = 0; s < STAGES; ++s) {
      mbarrier_init(&shared.full[s], 1);
      mbarrier_init(&shared.empty[s], 4 * HALVES);
    }
    fence_barrier_init();
  }
  __syncthreads();
  RingPosition<STAGES> ring;

  if (warpgroup == 0) { // ---- producer
    registers_decrease<24>();
    if (threadIdx.x == 0) {
      mbarrier_arrive_expect(&shared.full_q, 2 * HALVES * TILE_BYTES);
      for (int h = 0; h < HALVES; ++h) {
        const i32 x = (first_head + h * head_step) * HEAD_DIM, y = first_row + h * row_step;
        tma_load_3d(shared.q[h], &q, &shared.full_q, x, y, b);
        tma_load_3d(shared.dout[h], &dout, &shared.full_q, x, y, b);
      }
      for (i32 tile = 0; tile <= last_tile; ++tile) {
        const u32 s = ring.stage;
        mbarrier_wait(&shared.empty[s], ring.phase ^ 1);
        mbarrier_arrive_expect(&shared.full[s], 2 * TILE_BYTES);
        tma_load_3d(shared.k[s], &k, &shared.full[s], kv * HEAD_DIM, tile * TILE, b);
        tma_load_3d(shared.v[s], &v, &shared.full[s], kv * HEAD_DIM, tile * TILE, b);
        ring.advance();
      }
    }
    return;
  }

  // ---- consumers: 64 rows of one head each
  registers_increase<240>();
  const u32 half_index = warpgroup - 1, thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32;
  const i32 head = first_head + i32(half_index) * head_step, q0 = first_row + i32(half_index) * row_step;
  const i32 row = q0 + i32(16 * warp + lane / 4);
  const u64 statistics = (u64(b) * gridDim.y * heads_per_cta + head) * Tp + row;
  // A half may lie behind the padded end.
  const float l[2] = {q0 < Tp ? lse[statistics] : INFINITY, q0 < Tp ? lse[statistics + 8] : INFINITY};
  const float d[2] = {q0 < Tp ? delta[statistics] : 0.f, q0 < Tp ? delta[statistics + 8] : 0.f};
  const u64 descriptor_q = matrix_descriptor(shared_address(shared.q[half_index]), 16);
  const u64 descriptor_do = matrix_descriptor(shared_address(shared.dout[half_index]), 16);
  float dq_sum[32];
  clear(dq_sum);

  mbarrier_wait(&shared.full_q, 0);
  for (i32 tile = 0; tile <= last_tile; ++tile) {
    const u32 stage = ring.stage;
    mbarrier_wait(&shared.full[stage], ring.phase);
    if (tile <= q0 / TILE) { // else every key of the tile comes after all of our rows
      const u64 descriptor_k = matrix_descriptor(shared_address(shared.k[stage]), 16);
      const u64 descriptor_v = matrix_descriptor(shared_address(shared.v[stage]), 16);
      float s[32], dp[32];
      wgmma_fence();
      multiply_shared(s, descriptor_q, descriptor_k);
      wgmma_commit();
      multiply_shared(dp, descriptor_do, descriptor_v);
      wgmma_commit();

      wgmma_wait<1>();
      accumulator_barrier(s);
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        const int half = (i >> 1) & 1;
        s[i] = exp2_approx(s[i] * SCALE_LOG2 - l[half]);
        const i32 key = tile * TILE + 8 * (i >> 2) + 2 * i32(lane % 4) + (i & 1);
        if (tile == q0 / TILE && key > row + 8 * half) s[i] = 0.f;
      }
      wgmma_wait<0>();
      accumulator_barrier(dp);
#pragma unroll
      for (int i = 0; i < 32; ++i) dp[i] = s[i] * (dp[i] - d[(i >> 1) & 1]);
      u32 ds[4][4];
      pack_operand(ds, dp);
      wgmma_fence();
      multiply_add_registers(dq_sum, ds, descriptor_k);
      wgmma_commit();
      wgmma_wait<0>();
      accumulator_barrier(dq_sum);
    }
    if (lane == 0) mbarrier_arrive(&shared.empty[stage]);
    ring.advance();
  }

  stage_tile(shared.q[half_index], dq_sum, SCALE, warp, lane);
  fence_proxy_async_shared();
  named_barrier_sync(1 + half_index, 128);
  if (thread == 0) {
    tma_store_3d(&dq, shared.q[half_index], head * HEAD_DIM, q0, b);
    bulk_commit();
    bulk_wait_read<0>();
  }
}
