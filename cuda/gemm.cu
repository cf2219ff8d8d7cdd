// Matrix products: bf16 in, f32 accumulation, bf16 or f32 out, on wgmma fed by TMA.
//
// 1. Formula, for each batch b:
//      gemm_nt_*   D[m,n] = sum_k A[m,k] B[n,k]     forward       y  = x W^T
//      gemm_nn_*   D[m,n] = sum_k A[m,k] B[k,n]     data gradient dx = dy W
//      gemm_tn_*   D[m,n] = sum_k A[k,m] B[k,n]     weight grad.  dW = dy^T x
//    and then, by suffix:
//      _bf16       out = bf16(D)
//      _add_bf16   out = bf16(alpha D + beta aux)                      residual add; Newton-Schulz polynomials
//      _leaky2     out = p = bf16(D), out2 = q = bf16(r^2), r = p > 0 ? p : p/2
//      _dleaky2    out = bf16(bf16(D) * dq/dp), dq/dp = p > 0 ? 2p : p/2, aux = p
//      _f32        out_f32[split][m][n] = the partial sum of this split of K (one split: D itself)
//    A per-channel scale of the output (attn_scale, mlp_scale, ...) is not applied here: it is folded into W when the
//    f32 master is cast to bf16 (quantize.cu), and its gradient falls out of the weight gradient (split_reduce).
//
// 2. Operands. All global tensors are row-major with a leading batch dimension; maps are 3-D, 128-byte swizzle.
//      a, b    bf16  as in the formula        box 64 k x 128 rows (k contiguous) or 64 m|n x 64 k (m or n contiguous)
//      out, out2, aux  bf16 [batch, M, N]     box 64 n x 64 m
//      out_f32 f32 [batch, splits, M, N]      plain pointer, 8-byte stores
//    Shared: STAGES x (A 16 KB, B 16 KB), then per consumer warpgroup and output a staging tile of two 64x64 boxes.
//
// 3. Work. Persistent grid of up to one CTA per SM; CTA c takes tiles c, c + grid, ... of 128x128, n fastest (the A
//    tile stays in L2), then m, then split, then batch. 384 threads: warpgroup 0 is the producer (one thread works,
//    40 registers), warpgroups 1 and 2 are consumers of 64 rows each (232 registers).
//
// 4. Pipeline of one tile, STAGES = 4, k-block = 64:
//      producer   |load 0|load 1|load 2|load 3|wait empty 0, load 4|...            next tile's loads go on without a pause
//      consumer          |mma 0 |mma 1, 0 done: release 0|mma 2, ...|epilogue|
//      aux tile   |load ---------------------------------------------> |        (first thread of the warpgroup)
//      store                                                            |----->  read out while the next tile multiplies
//
// 5. Floor (predicted, recipes' largest case M = 98304): 2MNK / 798 TFLOP/s or (MK + NK + MN) * 2 B / 3.0 TB/s, whichever
//    is longer: 129 us for [98304x512]x[512x1024], compute-bound; 65 against 101 us for N = K = 512 with aux, memory-bound.
//
// 6. Fences and waits, and what breaks without them:
//      full[s]                consumers multiply bytes that have not landed
//      empty[s]               the producer overwrites a stage that wgmma still reads
//      wgmma_wait<1> before the release of the previous stage: as above
//      wgmma_fence            accumulators written by the epilogue's reads of the last tile are not ordered before mma
//      accumulator_barrier    the compiler may read accumulators before wgmma_wait<0>
//      bulk_wait_read<0>      the staging tile is rewritten while the last store still reads it
//      fence_proxy_async      the store engine reads stale staging bytes
//      named barrier          the store starts before the other warps have written
//
// 7. Limits: N and K multiples of 8 (16-byte rows for TMA), M with m contiguous likewise; rest by clipping: what lies
//    outside loads as zero and is not stored. k_blocks_per_split * (splits - 1) < ceil(K / 64): no empty split.
#include "hopper/barrier.cuh"
#include "hopper/fence.cuh"
#include "hopper/matrix_moves.cuh"
#include "hopper/mbarrier.cuh"
#include "hopper/numeric.cuh"
#include "hopper/tma.cuh"
#include "hopper/warp.cuh"
#include "hopper/wgmma.cuh"

namespace birdie {

constexpr int BLOCK_M = 128, BLOCK_N = 128, BLOCK_K = 64, STAGES = 4;
constexpr int CONSUMERS = 2, THREADS = 128 * (CONSUMERS + 1);
constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;
constexpr u32 OPERAND_BYTES = 128 * BLOCK_K * sizeof(bf16);      // A or B of one stage
constexpr u32 BOX_BYTES = 64 * 64 * sizeof(bf16);                // one 64x64 box
constexpr u32 STAGING_BYTES = 2 * BOX_BYTES;                     // 64x128 outputs of one warpgroup

static_assert(BLOCK_M == 64 * CONSUMERS, "each consumer warpgroup has the 64 rows of one wgmma");
static_assert(BLOCK_K * sizeof(bf16) == 128, "a k-block is one 128-byte swizzled row");
static_assert(PRODUCER_REGISTERS + CONSUMERS * CONSUMER_REGISTERS <= 65536 / 128, "the register file has 512 per thread slot");

enum class Epilogue { Store, Add, Leaky2, DLeaky2, StoreF32 };

struct GemmShape {
  i32 m, n, k, batches, splits, k_blocks_per_split;
  float alpha, beta;
};

template <Epilogue EPILOGUE> struct alignas(1024) GemmShared {
  static constexpr int OUTPUTS = EPILOGUE == Epilogue::StoreF32 ? 0 : EPILOGUE == Epilogue::Leaky2 ? 2 : 1;
  u8 a[STAGES][OPERAND_BYTES];
  u8 b[STAGES][OPERAND_BYTES];
  u8 staging[CONSUMERS][OUTPUTS == 0 ? 1 : OUTPUTS][OUTPUTS == 0 ? 1024 : STAGING_BYTES];
  u64 full[STAGES], empty[STAGES], aux_full[CONSUMERS];
};
static_assert(sizeof(GemmShared<Epilogue::Leaky2>) <= 232448 - 1024, "227 KiB per CTA, less what aligning to 1024 may take");

struct Tile {
  i32 m, n, split, batch, k_begin, k_end; // element offsets of the tile; range of k-blocks
};
__device__ __forceinline__ Tile tile_at(u32 index, const GemmShape &s) {
  const u32 tiles_n = ceil_div(s.n, BLOCK_N), tiles_m = ceil_div(s.m, BLOCK_M);
  Tile t;
  t.n = i32(index % tiles_n) * BLOCK_N;
  index /= tiles_n;
  t.m = i32(index % tiles_m) * BLOCK_M;
  index /= tiles_m;
  t.split = i32(index % u32(s.splits));
  t.batch = i32(index / u32(s.splits));
  t.k_begin = t.split * s.k_blocks_per_split;
  t.k_end = min(t.k_begin + s.k_blocks_per_split, ceil_div(s.k, BLOCK_K));
  return t;
}

// One operand's part of a stage. `outer` is the offset in m or n, `k` the offset in k, both in elements.
template <Major MAJOR>
__device__ __forceinline__ void load_operand(u8 *stage, const TensorMap *map, u64 *full, i32 outer, i32 k, i32 batch) {
  if constexpr (MAJOR == Major::K) {
    tma_load_3d(stage, map, full, k, outer, batch);
  } else {
    tma_load_3d(stage, map, full, outer, k, batch);
    tma_load_3d(stage + BOX_BYTES, map, full, outer + 64, k, batch);
  }
}

// Activation of the MLP on a bf16-rounded pre-activation, and its derivative.
__device__ __forceinline__ float leaky2(float p) {
  const float r = p > 0.f ? p : 0.5f * p;
  return r * r;
}
__device__ __forceinline__ float leaky2_derivative(float p) { return p > 0.f ? 2.f * p : 0.5f * p; }

// Turns one packed pair of accumulators into the pair(s) to store. `aux` is the pair of the aux tensor at the same place.
template <Epilogue EPILOGUE>
__device__ __forceinline__ u32 finish_pair(float low, float high, u32 aux, float alpha, float beta) {
  if constexpr (EPILOGUE == Epilogue::Add) {
    return pack_bf16(alpha * low + beta * bf16_low(aux), alpha * high + beta * bf16_high(aux));
  } else if constexpr (EPILOGUE == Epilogue::DLeaky2) {
    const u32 dq = pack_bf16(low, high);
    return pack_bf16(bf16_low(dq) * leaky2_derivative(bf16_low(aux)), bf16_high(dq) * leaky2_derivative(bf16_high(aux)));
  } else {
    return pack_bf16(low, high);
  }
}

template <Major A_MAJOR, Major B_MAJOR, Epilogue EPILOGUE>
__device__ __forceinline__ void gemm(const TensorMap *a, const TensorMap *b, const TensorMap *out, const TensorMap *out2,
                                     const TensorMap *aux, float *out_f32, const GemmShape shape) {
  using Shared = GemmShared<EPILOGUE>;
  constexpr bool HAS_AUX = EPILOGUE == Epilogue::Add || EPILOGUE == Epilogue::DLeaky2;
  extern __shared__ u8 shared_bytes[];
  // NOTE: dynamic shared memory is only 16-byte aligned; the swizzle needs 1024.
  Shared &shared = *reinterpret_cast<Shared *>((reinterpret_cast<u64>(shared_bytes) + 1023) & ~u64(1023));

  const u32 warpgroup = warp_id() / 4;
  if (threadIdx.x == 0) {
    for (int s = 0; s < STAGES; ++s) {
      mbarrier_init(&shared.full[s], 1);               // the producer's arrive_expect
      mbarrier_init(&shared.empty[s], 4 * CONSUMERS);  // one arrival per consumer warp
    }
    for (int w = 0; w < CONSUMERS; ++w) mbarrier_init(&shared.aux_full[w], 1);
    fence_barrier_init();
  }
  __syncthreads();

  const u32 tiles = ceil_div(shape.m, BLOCK_M) * ceil_div(shape.n, BLOCK_N) * shape.splits * shape.batches;
  RingPosition<STAGES> ring;

  if (warpgroup == 0) { // ---- producer
    registers_decrease<PRODUCER_REGISTERS>();
    if (threadIdx.x == 0) {
      prefetch_tensor_map(a);
      prefetch_tensor_map(b);
      for (u32 index = blockIdx.x; index < tiles; index += gridDim.x) {
        const Tile tile = tile_at(index, shape);
        for (i32 kb = tile.k_begin; kb < tile.k_end; ++kb) {
          const u32 s = ring.stage;
          mbarrier_wait(&shared.empty[s], ring.phase ^ 1);
          mbarrier_arrive_expect(&shared.full[s], 2 * OPERAND_BYTES);
          load_operand<A_MAJOR>(shared.a[s], a, &shared.full[s], tile.m, kb * BLOCK_K, tile.batch);
          load_operand<B_MAJOR>(shared.b[s], b, &shared.full[s], tile.n, kb * BLOCK_K, tile.batch);
          ring.advance();
        }
      }
    }
    return;
  }

  // ---- consumers
  registers_increase<CONSUMER_REGISTERS>();
  const u32 consumer = warpgroup - 1;
  const u32 thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32;
  // This lane's row of the staging tile for ldmatrix/stmatrix, and the chunk it starts from (see matrix_moves.cuh).
  const u32 staging_row = 16 * warp + (lane & 7) + 8 * ((lane >> 3) & 1), staging_chunk = lane >> 4;
  u32 aux_phase = 0;

  for (u32 index = blockIdx.x; index < tiles; index += gridDim.x) {
    const Tile tile = tile_at(index, shape);
    const i32 row = tile.m + 64 * i32(consumer);

    if constexpr (HAS_AUX) {
      if (thread == 0) {
        bulk_wait_read<0>(); // the store of the last tile has left the staging tile
        mbarrier_arrive_expect(&shared.aux_full[consumer], STAGING_BYTES);
        u8 *staging = shared.staging[consumer][0];
        tma_load_3d(staging, aux, &shared.aux_full[consumer], tile.n, row, tile.batch);
        tma_load_3d(staging + BOX_BYTES, aux, &shared.aux_full[consumer], tile.n + 64, row, tile.batch);
      }
    }

    // Products. One group stays in flight: a stage is released when the group after its own has been issued.
    // NOTE: the first k-block is peeled. With the accumulators defined in a loop that starts with them undefined, ptxas 12.3
    // serializes the products (C7515).
    float d[64];
    const auto multiply = [&](bool accumulate) {
      const u32 s = ring.stage;
      mbarrier_wait(&shared.full[s], ring.phase);
      const u64 da = matrix_descriptor(shared_address(shared.a[s]) + consumer * BOX_BYTES, 16);
      const u64 db = matrix_descriptor(shared_address(shared.b[s]), B_MAJOR == Major::K ? 16 : BOX_BYTES);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < BLOCK_K / 16; ++k)
        wgmma_n128<A_MAJOR, B_MAJOR>(d, da + k * K_STEP<A_MAJOR>, db + k * K_STEP<B_MAJOR>, accumulate || k != 0);
      wgmma_commit();
      ring.advance();
    };
    u32 previous = ring.stage;
    multiply(false);
    for (i32 kb = tile.k_begin + 1; kb < tile.k_end; ++kb) {
      const u32 current = ring.stage;
      multiply(true);
      wgmma_wait<1>();
      if (lane == 0) mbarrier_arrive(&shared.empty[previous]);
      previous = current;
    }
    wgmma_wait<0>();
    if (lane == 0) mbarrier_arrive(&shared.empty[previous]);
    accumulator_barrier(d);

    // Epilogue.
    if constexpr (EPILOGUE == Epilogue::StoreF32) {
      float *base = out_f32 + (u64(tile.batch) * shape.splits + tile.split) * u64(shape.m) * shape.n;
      const i32 r = row + i32(16 * warp + lane / 4), c = tile.n + 2 * i32(lane % 4);
      float *upper = base + u64(r) * shape.n + c, *lower = upper + 8 * u64(shape.n);
#pragma unroll
      for (int j = 0; j < BLOCK_N / 8; ++j) {
        if (c + 8 * j < shape.n) {
          if (r < shape.m) *reinterpret_cast<float2 *>(upper + 8 * j) = make_float2(d[4 * j], d[4 * j + 1]);
          if (r + 8 < shape.m) *reinterpret_cast<float2 *>(lower + 8 * j) = make_float2(d[4 * j + 2], d[4 * j + 3]);
        }
      }
    } else {
      if constexpr (HAS_AUX) {
        mbarrier_wait(&shared.aux_full[consumer], aux_phase);
        aux_phase ^= 1;
      } else {
        if (thread == 0) bulk_wait_read<0>();
        named_barrier_sync(1 + consumer, 128);
      }
      const u32 staging = shared_address(shared.staging[consumer][0]) + staging_row * 128;
#pragma unroll
      for (int j = 0; j < BLOCK_N / 16; ++j) {
        const u32 address = staging + (j / 4) * BOX_BYTES + (((2 * (j % 4) + staging_chunk) ^ (staging_row & 7)) * 16);
        const float *x = d + 8 * j;
        u32 old[4] = {0, 0, 0, 0};
        if constexpr (HAS_AUX) ldmatrix_x4(old, address);
        u32 y[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) y[i] = finish_pair<EPILOGUE>(x[2 * i], x[2 * i + 1], old[i], shape.alpha, shape.beta);
        stmatrix_x4(address, y[0], y[1], y[2], y[3]);
        if constexpr (EPILOGUE == Epilogue::Leaky2) {
          u32 q[4];
#pragma unroll
          for (int i = 0; i < 4; ++i) q[i] = pack_bf16(leaky2(bf16_low(y[i])), leaky2(bf16_high(y[i])));
          stmatrix_x4(address + STAGING_BYTES, q[0], q[1], q[2], q[3]);
        }
      }
      fence_proxy_async_shared();
      named_barrier_sync(1 + consumer, 128);
      if (thread == 0 && row < shape.m) {
#pragma unroll
        for (int box = 0; box < 2; ++box) {
          const i32 column = tile.n + 64 * box;
          if (column >= shape.n) break;
          tma_store_3d(out, shared.staging[consumer][0] + box * BOX_BYTES, column, row, tile.batch);
          if constexpr (EPILOGUE == Epilogue::Leaky2)
            tma_store_3d(out2, shared.staging[consumer][1] + box * BOX_BYTES, column, row, tile.batch);
        }
        bulk_commit();
      }
    }
  }
  // The CTA's shared memory must outlive the reads of its last stores.
  if (thread == 0) bulk_wait_read<0>();
}

} // namespace birdie

using namespace birdie;

// Entry points differ in nothing but majors and epilogue. Parameters that an epilogue does not use are not in its list.
#define GEMM_SHAPE_PARAMETERS i32 m, i32 n, i32 k, i32 batches
#define GEMM_BOUNDS extern "C" __global__ void __launch_bounds__(THREADS, 1)
#define MAP const __grid_constant__ TensorMap

#define GEMM_STORE(NAME, A_MAJOR, B_MAJOR)                                                                             \
  GEMM_BOUNDS NAME(MAP a, MAP b, MAP out, GEMM_SHAPE_PARAMETERS) {                                                     \
    gemm<A_MAJOR, B_MAJOR, Epilogue::Store>(&a, &b, &out, nullptr, nullptr, nullptr,                                   \
                                            {m, n, k, batches, 1, ceil_div(k, BLOCK_K), 1.f, 0.f});                    \
  }
#define GEMM_ADD(NAME, A_MAJOR, B_MAJOR)                                                                               \
  GEMM_BOUNDS NAME(MAP a, MAP b, MAP out, MAP aux, GEMM_SHAPE_PARAMETERS, float alpha, float beta) {                   \
    gemm<A_MAJOR, B_MAJOR, Epilogue::Add>(&a, &b, &out, nullptr, &aux, nullptr,                                        \
                                          {m, n, k, batches, 1, ceil_div(k, BLOCK_K), alpha, beta});                   \
  }

GEMM_STORE(gemm_nt_bf16, Major::K, Major::K)
GEMM_STORE(gemm_nn_bf16, Major::K, Major::MN)
GEMM_STORE(gemm_tn_bf16, Major::MN, Major::MN)
GEMM_ADD(gemm_nt_add_bf16, Major::K, Major::K)
GEMM_ADD(gemm_nn_add_bf16, Major::K, Major::MN)

GEMM_BOUNDS gemm_nt_leaky2(MAP a, MAP b, MAP out, MAP out2, GEMM_SHAPE_PARAMETERS) {
  gemm<Major::K, Major::K, Epilogue::Leaky2>(&a, &b, &out, &out2, nullptr, nullptr,
                                             {m, n, k, batches, 1, ceil_div(k, BLOCK_K), 1.f, 0.f});
}
GEMM_BOUNDS gemm_nn_dleaky2(MAP a, MAP b, MAP out, MAP aux, GEMM_SHAPE_PARAMETERS) {
  gemm<Major::K, Major::MN, Epilogue::DLeaky2>(&a, &b, &out, nullptr, &aux, nullptr,
                                               {m, n, k, batches, 1, ceil_div(k, BLOCK_K), 1.f, 0.f});
}
#define GEMM_F32(NAME, A_MAJOR, B_MAJOR)                                                                               \
  GEMM_BOUNDS NAME(MAP a, MAP b, float *out_f32, GEMM_SHAPE_PARAMETERS, i32 splits, i32 k_blocks_per_split) {          \
    gemm<A_MAJOR, B_MAJOR, Epilogue::StoreF32>(&a, &b, nullptr, nullptr, nullptr, out_f32,                             \
                                               {m, n, k, batches, splits, k_blocks_per_split, 1.f, 0.f});              \
  }
GEMM_F32(gemm_tn_f32, Major::MN, Major::MN)
GEMM_F32(gemm_nn_f32, Major::K, Major::MN)

// Second stage of a weight gradient: sums the splits in order, and turns the gradient of the folded weight W' = scale W
// into those of W and scale.  G = sum_s partial[s, row_begin + r];  grad[r,c] (+)= scale[r] G[r,c];
// scale_grad[r] (+)= sum_c W[r,c] G[r,c].  partial is [splits, partial_rows, columns]: a product for q, k and v together is
// taken apart by three launches with their row_begin. One warp per row, columns a multiple of 4. `scale` may be null (scale
// 1), `scale_grad` too; `scale_stride` is 1, or 0 for one scale for all rows: then scale_grad is still one value per row, to
// be summed by column_sum's caller.
extern "C" __global__ void __launch_bounds__(256)
    split_reduce(const float *partial, i32 splits, i32 partial_rows, i32 row_begin, i32 rows, i32 columns, const float *scale, i32 scale_stride,
                 const float *weight, float *grad, float *scale_grad, i32 accumulate) {
  const u32 lane = lane_id();
  const i32 row = i32(blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32);
  if (row >= rows) return;
  const float s = scale != nullptr ? scale[u64(row) * scale_stride] : 1.f;
  const u64 offset = u64(row) * columns, split_stride = u64(partial_rows) * columns;
  partial += u64(row_begin) * columns;
  float dot = 0.f;
  for (i32 c = 4 * i32(lane); c < columns; c += 128) {
    float4 g = *reinterpret_cast<const float4 *>(partial + offset + c);
    for (i32 p = 1; p < splits; ++p) {
      const float4 x = *reinterpret_cast<const float4 *>(partial + p * split_stride + offset + c);
      g.x += x.x, g.y += x.y, g.z += x.z, g.w += x.w;
    }
    if (scale_grad != nullptr) {
      const float4 w = *reinterpret_cast<const float4 *>(weight + offset + c);
      dot += w.x * g.x + w.y * g.y + w.z * g.z + w.w * g.w;
    }
    float4 r = make_float4(s * g.x, s * g.y, s * g.z, s * g.w);
    float4 *out = reinterpret_cast<float4 *>(grad + offset + c);
    if (accumulate) {
      const float4 old = *out;
      r.x += old.x, r.y += old.y, r.z += old.z, r.w += old.w;
    }
    *out = r;
  }
  if (scale_grad != nullptr) {
    dot = group_sum(dot);
    if (lane == 0) scale_grad[row] = accumulate ? scale_grad[row] + dot : dot;
  }
}
