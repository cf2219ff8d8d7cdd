// The head: logits, softcap, cross-entropy and the gradient of the logits, which themselves never leave the registers.
//
// 1. Formula, per row: z = bf16(f x W^T), W the token table, f = 1 / rms(x) the final norm as a factor of the row (row_scale.cuh);
//      c = C tanh(z / C);  loss = ln sum_j exp(c_j) - c_target;
//      dz_j = f gradient_scale (exp(c_j - ln sum) - [j = target]) (1 - (c_j / C)^2)
//    f is in the gradient as well: dW = dz^T x and dz W is the gradient of x but for the term through rms.
//    head_score_* stop at the loss, and round c to bf16 first when asked (published sliding evaluation does).
//    C is 30 as published. No maximum is subtracted: |c| <= C, so the sum stays within e^-C .. V e^C, which f32 holds for C up to 64.
//
// 2. Operands: x bf16 [N, d] (box 64 x 128 / CTAS), W bf16 [V, d] (box 64 x 128), dlogits bf16 [N, V] with any pitch (box 64 x 64; what
//    lies between V and the pitch is not written), targets u16 [N], losses f32 [N], partial f32 [row blocks, CTAS, 2], sums of
//    squares of x's rows f32 [parts, N].
//
// 3. Work. CTAS = 1, 2, 4 or 8 CTAs have 128 rows and 256 CTAS columns at a time, 256 per CTA; so with V <= 2048 a row's logits
//    are in accumulators at one time. The rows' parts of x are the same for all and multicast. A cluster is two such row blocks, whose parts
//    of W are the same and multicast as well, but with CTAS = 8 one, since 8 CTAs are what is portable. Warp roles are those of
//    gemm.cu (producer 40 registers, consumers 232 registers). Persistent: cluster c takes (pairs of) row blocks c, c + clusters, ...
//    L2 reads per k-block and CTA, CTAS = 4: 20 KB; with one row block 36.
//    Wider vocabularies take several sweeps over the columns: each adds to the sum of exponentials, the last one keeps its logits, and the
//    others' are computed again once the sum is known.
//    WHY NOT keep them in memory: a logit computed twice costs 2 d FLOPs, 1.3 ps of an H100 with d = 512; written and read back as bf16
//    also 4 bytes, 1.3 ps, and one sweep of S is not computed twice.
//    WHY NOT always two sweeps by one CTA: every product twice, 103 GFLOP more for the largest recipe, 129 us.
//    WHY NOT keep the row block's logits in shared memory: 128 x 1024 bf16 are 256 KB; with 64 rows W would be read twice as often, 1.5 GB
//    out of L2.
//    WHY NOT clusters of 16: they are not portable, and how many fit at once depends on where a device's multiprocessors are fused off.
//
// 4. Pipeline of a row block, V <= 256 CTAS: the main loop of gemm_pipeline.cuh with a lead of 3 k-blocks, then per consumer
//      logits to tanh and sum of exponentials | sums to all CTAs | wait for theirs | dlogits, box by box, stored while the next is computed
//    With S sweeps: S times main loop and sums, the exchange, dlogits, then S - 1 times main loop, tanh and dlogits.
//    Sums travel as stores to distributed shared memory, twofold buffered, with a barrier each: a CTA that is through with row block t + 1
//    has proof that all have read the sums of t (they sent theirs of t + 1 afterwards).
//
// 5. Floor (predicted), N = 98304, d = 512, V = 1024: 103 GFLOP, 129 us; 302 MB, 101 us; 4 special functions per logit, 109 us. Logits in
//    memory, a product and a pass over them, cost 403 MB and 134 us more. V = 4096: 618 GFLOP, 774 us, 1.5 times the products.
//    V = 1024 by the emulator's counts (`bench kernels`, 2026-11-22): with one row block per cluster L2 took 167 us; with two it takes 121, and the
//    tensor cores of 128 SMs are the bound with 133 us, as expected.
//
// 6. Fences and waits beyond those of gemm.cu:
//      exchange barrier       a sum is read before it has arrived
//      __syncwarp before arriving on it: the other lanes' sums are not released
//      bulk_wait_read, barrier before a box is written: the store of the last box still reads it
//      barrier after the losses of the warps: read before written
//      cluster_sync, last     a CTA of the other row block releases a stage of one that has exited
//
// 7. Limits: 0 < C <= 64; V at most 65536 (targets are u16), rows of dlogits a multiple of 8 apart; d a multiple of 8.
// 8. Machine code (ptxas 13.0): registers: 31..168, shared: 0..32 bytes, HGMMA: 0..8, dynamic: 0..223,232 bytes
#include "gemm_pipeline.cuh"
#include "hopper/matrix_moves.cuh"
#include "hopper/numeric.cuh"
#include "hopper/warp.cuh"
#include "row_scale.cuh"

namespace birdie {

constexpr int SUM_THREADS = 256, SUM_WARPS = SUM_THREADS / 32;

// The softcap C with what follows from it.
struct Cap {
  float c, inverse, slope, to_exponent;
  __device__ __forceinline__ explicit Cap(float cap)
      : c(cap), inverse(__frcp_rn(cap)), slope(2.f * LOG2_E * inverse), to_exponent(cap * LOG2_E) {}
  // tanh(z / C) = 1 - 2 / (e^(2 z / C) + 1): exact limits at both ends, absolute error about 1e-7.
  __device__ __forceinline__ float tanh(float z) const { return 1.f - 2.f * rcp_approx(exp2_approx(z * slope) + 1.f); }
};

constexpr int HEAD_COLUMNS = 256; // per CTA

constexpr int MOST_CLUSTER = 8; // CTAs of a cluster that is portable

// A cluster has CTAS CTAs for a row block's columns, and two row blocks where that is portable.
template <int CTAS>
using HeadPipeline = Pipeline<Major::K, Major::K, HEAD_COLUMNS, 4, 3, 2 * CTAS <= MOST_CLUSTER ? 2 : 1, CTAS>;

template <int CTAS> struct alignas(1024) HeadShared {
  typename HeadPipeline<CTAS>::Stages stages;
  u8 staging[CONSUMERS][BOX_BYTES];
  float sums[CONSUMERS][2][CTAS][64]; // [row block modulo 2][CTA][row]
  float of_warp[CONSUMERS][4];
  typename HeadPipeline<CTAS>::Barriers barriers;
  u64 exchange[CONSUMERS][2];
};

struct HeadOperands {
  const u16 *targets;
  float *losses;  // may be null when partial is not
  float *partial; // null: scores only
  RowScale norm;
  float gradient_scale;
  i32 round_bf16; // of capped logits
  float softcap;
  i32 N, V, d;
};

// Sum over the columns of all CTAs of a row block of a value of rows `r` and `r + 8`, which the four lanes of a quad have. `visit` counts row
// blocks.
template <int CTAS>
__device__ __forceinline__ void exchange_sums(HeadShared<CTAS> &shared, float (&sum)[2], u32 consumer, u32 rank, u32 r, u32 lane, u32 visit) {
  using P = HeadPipeline<CTAS>;
  sum[0] = group_sum<4>(sum[0]);
  sum[1] = group_sum<4>(sum[1]);
  if constexpr (CTAS > 1) {
    const u32 buffer = visit & 1, place = P::place_n(rank);
    const auto of_row = [&](u32 place) { return P::CLUSTER_M == 1 ? place : P::CLUSTER_M * place + P::place_m(rank); };
    for (u32 to = lane % 4; to < CTAS; to += 4) {
      const u32 address = cluster_address(&shared.sums[consumer][buffer][place][r], of_row(to));
      cluster_store(address, sum[0]);
      cluster_store(address + 8 * sizeof(float), sum[1]);
    }
    __syncwarp();
    if (lane < CTAS) cluster_arrive(cluster_address(&shared.exchange[consumer][buffer], of_row(lane)));
    cluster_wait(&shared.exchange[consumer][buffer], visit >> 1 & 1);
    sum[0] = sum[1] = 0.f;
#pragma unroll
    for (int from = 0; from < CTAS; ++from) { // the same order in all CTAs: the same bits
      sum[0] += shared.sums[consumer][buffer][from][r];
      sum[1] += shared.sums[consumer][buffer][from][r + 8];
    }
  }
}

template <int CTAS, bool GRADIENT>
__device__ __forceinline__ void head(const TensorMap *x, const TensorMap *table, const TensorMap *dlogits, const HeadOperands o) {
  using P = HeadPipeline<CTAS>;
  using Shared = HeadShared<CTAS>;
  static_assert(sizeof(Shared) <= SHARED_LIMIT, "stages, boxes and sums fit into shared memory");
  extern __shared__ u8 shared_bytes[];
  Shared &shared = *reinterpret_cast<Shared *>((reinterpret_cast<u64>(shared_bytes) + 1023) & ~u64(1023));

  const u32 warpgroup = warp_id() / 4;
  if (threadIdx.x == 0) {
    P::init(shared.barriers);
    for (int w = 0; w < CONSUMERS; ++w)
      for (int b = 0; b < 2; ++b) mbarrier_init(&shared.exchange[w][b], 4 * CTAS); // one arrival per warp of this consumer in each CTA
    fence_barrier_init();
  }
  if constexpr (P::CLUSTER > 1) cluster_sync();
  else __syncthreads();

  typename P::Ring ring;
  const i32 sweeps = ceil_div(o.V, CTAS * HEAD_COLUMNS), steps = GRADIENT ? 2 * sweeps - 1 : sweeps;
  const u32 seat = P::CLUSTER > 1 ? cluster_rank() : 0;                    // our rank in the cluster
  const i32 rank = CTAS > 1 ? i32(P::place_n(seat)) : 0; // in the row block
  // Row blocks of this CTA: with clusters of two every other one.
  const u32 first_block = blockIdx.x / P::CLUSTER * P::CLUSTER_M + (P::CLUSTER_M > 1 ? P::place_m(seat) : 0);
  const u32 blocks_apart = gridDim.x / P::CLUSTER * P::CLUSTER_M, row_blocks = ceil_div(ceil_div(o.N, BLOCK_M), P::CLUSTER_M) * P::CLUSTER_M;
  // The columns of a step: those of its sweep; after the last sweep, of the first ones again.
  const auto first_column = [&](i32 step) { return ((step < sweeps ? step : step - sweeps) * CTAS + rank) * HEAD_COLUMNS; };

  if (warpgroup == 0) { // ---- producer
    registers_decrease<PRODUCER_REGISTERS>();
    if (threadIdx.x == 0) {
      prefetch_tensor_map(x);
      prefetch_tensor_map(table);
      for (u32 block = first_block; block < row_blocks; block += blocks_apart)
        for (i32 step = 0; step < steps; ++step)
          P::load_blocks(shared.stages, shared.barriers, ring, x, table, i32(block) * BLOCK_M, first_column(step), 0,
                         ceil_div(o.d, BLOCK_K), 0, seat);
    }
    return;
  }

  // ---- consumers
  registers_increase<CONSUMER_REGISTERS>();
  const u32 consumer = warpgroup - 1;
  const u32 thread = threadIdx.x % 128, lane = thread % 32, warp = thread / 32;
  const u32 r = 16 * warp + lane / 4; // our rows of the consumer's 64: r and r + 8
  const u32 box_row = 16 * warp + (lane & 7) + 8 * ((lane >> 3) & 1), box_chunk = lane >> 4;
  const u32 box_address = shared_address(shared.staging[consumer]) + box_row * ROW_BYTES;

  const i32 blocks = ceil_div(o.d, BLOCK_K);
  const Cap cap(o.softcap);

  for (u32 block = first_block, visit = 0; block < row_blocks; block += blocks_apart, ++visit) {
    const i32 row_begin = i32(block) * BLOCK_M + 64 * i32(consumer);
    // The target's place from our first column of the first sweep on, where ours are 8 j + i, i = 0 or 1. Far away past the last row.
    i32 place[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const i32 row = row_begin + i32(r) + 8 * h;
      place[h] = row < o.N ? i32(o.targets[row]) - rank * HEAD_COLUMNS - 2 * i32(lane % 4) : -(1 << 20);
    }
    const float share[2] = {quad_row_share(o.norm, row_begin + i32(r), o.N, lane), quad_row_share(o.norm, row_begin + i32(r) + 8, o.N, lane)};
    float sum[2] = {0.f, 0.f}, own[2] = {0.f, 0.f}, log2_sum[2]; // own: tanh of the target's logit

    for (i32 step = 0; step < steps; ++step) {
      float t[P::ACCUMULATORS]; // products, then tanh values
      P::multiply_blocks(t, shared.stages, shared.barriers, ring, blocks, consumer, lane, blocks >= P::STAGES, seat);
      const float factor[2] = {quad_row_factor(o.norm, share[0]), quad_row_factor(o.norm, share[1])};

      const i32 begin = first_column(step), columns = o.V - begin, end = columns - 2 * i32(lane % 4);
      const i32 target[2] = {place[0] + rank * HEAD_COLUMNS - begin, place[1] + rank * HEAD_COLUMNS - begin};
#pragma unroll
      for (int j = 0; j < HEAD_COLUMNS / 8; ++j) {
        // NOTE: also a fence for ptxas, which would otherwise interleave all groups and spill.
        if (8 * j >= columns) continue;
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const u32 z = pack_bf16(factor[h] * t[4 * j + 2 * h], factor[h] * t[4 * j + 2 * h + 1]);
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            float y = cap.tanh(i == 0 ? bf16_low(z) : bf16_high(z));
            if constexpr (!GRADIENT) y = o.round_bf16 ? round_bf16(cap.c * y) * cap.inverse : y;
            const float e = exp2_approx(y * cap.to_exponent);
            if (8 * j + i < end) sum[h] += e; // columns past V are products with zeros
            if (target[h] == 8 * j + i) own[h] = y;
            t[4 * j + 2 * h + i] = y;
          }
        }
      }

      float loss = 0.f;
      if (step == sweeps - 1) {
        exchange_sums<CTAS>(shared, sum, consumer, seat, r, lane, visit);
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          log2_sum[h] = log2_approx(sum[h]);
          const bool owner = place[h] >= 0 && place[h] % (CTAS * HEAD_COLUMNS) < HEAD_COLUMNS && (place[h] & 7) < 2;
          if (owner) {
            const float row_loss = log2_sum[h] * LN_2 - cap.c * own[h];
            if (o.losses != nullptr) o.losses[row_begin + i32(r) + 8 * h] = row_loss;
            loss += row_loss;
          }
        }
        if constexpr (GRADIENT) {
          loss = group_sum(loss);
          if (lane == 0) shared.of_warp[consumer][warp] = loss;
        }
      }

      if constexpr (GRADIENT) {
        if (step < sweeps - 1) continue;
        const float gradient_factor[2] = {o.gradient_scale * factor[0], o.gradient_scale * factor[1]};
#pragma unroll
        for (int box = 0; box < HEAD_COLUMNS / 64; ++box) {
          if (box > 0 && 64 * box >= columns) continue; // NOTE: a fence for ptxas, too
          u32 y[16];
#pragma unroll
          for (int e = 0; e < 16; ++e) { // pair e: columns 8 (8 box + e / 2), row h = e % 2
            const int j = 8 * box + e / 2, h = e % 2;
            float g[2];
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              const float v = t[4 * j + 2 * h + i];
              float p = exp2_approx(v * cap.to_exponent - log2_sum[h]);
              if (target[h] == 8 * j + i) p -= 1.f;
              g[i] = gradient_factor[h] * p * (1.f - v * v);
            }
            y[e] = pack_bf16(g[0], g[1]);
          }
          if (thread == 0) bulk_wait_read<0>(); // the last box has been read out
          named_barrier_sync(1 + consumer, 128);
          if (box == 0 && step == sweeps - 1 && thread == 0 && i32(block) * BLOCK_M < o.N) {
            const float *w = shared.of_warp[consumer];
            o.partial[(u64(block) * CTAS + u32(rank)) * CONSUMERS + consumer] = (w[0] + w[1]) + (w[2] + w[3]);
          }
#pragma unroll
          for (int j = 0; j < 4; ++j)
            stmatrix_x4(box_address + (((2 * j + box_chunk) ^ (box_row & 7)) * 16), y[4 * j], y[4 * j + 1], y[4 * j + 2], y[4 * j + 3]);
          fence_proxy_async_shared();
          named_barrier_sync(1 + consumer, 128);
          if (thread == 0 && row_begin < o.N && 64 * box < columns) {
            tma_store_3d(dlogits, shared.staging[consumer], begin + 64 * box, row_begin, 0);
            bulk_commit();
          }
        }
      }
    }
  }
  if constexpr (GRADIENT) {
    if (thread == 0) bulk_wait_read<0>();
  }
  // NOTE: one row block, after one sweep: no need to wait for the cluster. The last exchange is proof that the other CTAs have done all that
  // they do to our shared memory: their releases of stages come before their sums. Steps after the exchange release stages, too, and so do
  // the CTAs of the other row block, with which there is no exchange.
  if constexpr (P::CLUSTER_M > 1) {
    cluster_sync();
  } else if constexpr (CTAS > 1 && GRADIENT) {
    if (sweeps > 1) cluster_sync();
  }
}

} // namespace birdie

using namespace birdie;

#define MAP const __grid_constant__ TensorMap
#define HEAD_KERNELS(CTAS)                                                                                            \
  extern "C" __global__ void __cluster_dims__(HeadPipeline<CTAS>::CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)                                \
      head_loss_##CTAS(MAP x, MAP table, MAP dlogits, const u16 *targets, float *losses, float *partial,               \
                       RowScale norm, float gradient_scale, float softcap, i32 N, i32 V, i32 d) {                                     \
    head<CTAS, true>(&x, &table, &dlogits, {targets, losses, partial, norm, gradient_scale, 0, softcap, N, V, d});           \
  }                                                                                                                    \
  extern "C" __global__ void __cluster_dims__(HeadPipeline<CTAS>::CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)                                \
      head_score_##CTAS(MAP x, MAP table, const u16 *targets, float *losses, RowScale norm, i32 round_bf16, float softcap, i32 N,    \
                       i32 V, i32 d) {                                                                                 \
    head<CTAS, false>(&x, &table, nullptr, {targets, losses, nullptr, norm, 0.f, round_bf16, softcap, N, V, d});             \
  }

HEAD_KERNELS(1)
HEAD_KERNELS(2)
HEAD_KERNELS(4)
HEAD_KERNELS(8)

// out (+)= factor sum_i partial[i], by one CTA: thread t has i = t, t + 256, ..., then the threads in order of a tree.
extern "C" __global__ void __launch_bounds__(SUM_THREADS) head_loss_sum(const float *partial, i32 count, float *out, float factor, i32 accumulate) {
  __shared__ float of_warp[SUM_WARPS];
  float total = 0.f;
  for (i32 i = i32(threadIdx.x); i < count; i += SUM_THREADS) total += partial[i];
  total = group_sum(total);
  if (lane_id() == 0) of_warp[threadIdx.x / 32] = total;
  __syncthreads();
  if (threadIdx.x == 0) {
    total = 0.f;
    for (int w = 0; w < SUM_WARPS; ++w) total += of_warp[w];
    total *= factor;
    *out = accumulate ? *out + total : total;
  }
}
