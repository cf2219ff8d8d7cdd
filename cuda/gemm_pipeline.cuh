// The main loop that all products share: a producer warp fills a ring of stages by TMA, two consumer warpgroups multiply.
//
// A CTA works on tiles of 128 x BLOCK_N; consumer w has rows 64 w .. +64 in BLOCK_N / 2 accumulators per thread. A stage is one
// k-block of 64 of both operands:
//   A   128 rows     K-major: boxes of 64 k x (up to) 128 rows       MN-major: boxes of 64 m x 64 k
//   B   BLOCK_N rows the same
// Either way a row of an operand takes 128 bytes of a stage, and 64 rows one 8 KB box.
//
// Clusters: the CTAs of a cluster work on the same k-blocks at the same time. They are a grid of CLUSTER_M x CLUSTER_N tiles; rank r has
// tile (r % CLUSTER_M, r / CLUSTER_M). CTAs beside one another along n need the same rows of A, those along m the same of B. Each loads
// its part of such an operand and multicasts the part to the others. With clusters of 2 x 2 (i, j):
//
//   half j of A's rows of i   to (i, 0) and (i, 1)        half i of B's rows of j   to (0, j) and (1, j)
//
// So a stage is free when the consumers of all CTAs that our bytes go to have released it: our own, those in our row and those in our
// column, PEERS of them; and consumers release to the same CTAs, because their stage gets bytes from these. The one diagonal to us neither
// gets bytes of ours nor sends any. A full barrier counts bytes that come from all peers.
//
// The lead: consumer 0 runs LEAD k-blocks ahead of consumer 1 (at the start of each tile consumer 1 waits for it to get there).
// One warpgroup alone keeps the tensor cores busy, so the lead costs nothing, and the epilogue of one warpgroup falls under
// products of the other:
//
//   consumer 0   |== tile 0 ==========|epilogue|== tile 1 ==...
//   consumer 1   |wait|== tile 0 ==========|epilogue|== tile 1 ==...       (= products; alone they run twice as fast)
//
// WHY NOT ping-pong (each warpgroup its own tile of 128 x 128, in turns): it hides the epilogue as well, but loads
// 32 KB for the products that a tile of 128 x 256 does with 24 KB, and the products of recipes are short of L2 bandwidth.
//
// NOTE: a barrier between the warpgroups that was arrived at twice before it is waited for once would be broken. Consumer 0 cannot
// get that far ahead when a tile has at least STAGES k-blocks, because the ring ends; smaller tiles go without a lead.
#pragma once
#include "hopper/barrier.cuh"
#include "hopper/cluster.cuh"
#include "hopper/fence.cuh"
#include "hopper/mbarrier.cuh"
#include "hopper/tma.cuh"
#include "hopper/warp.cuh"
#include "hopper/wgmma.cuh"

namespace birdie {

constexpr int BLOCK_M = 128, BLOCK_K = 64;
constexpr int CONSUMERS = 2, THREADS = 128 * (CONSUMERS + 1);
constexpr int PRODUCER_REGISTERS = 40, CONSUMER_REGISTERS = 232;
constexpr u32 ROW_BYTES = BLOCK_K * sizeof(bf16); // of one row of an operand in a stage
constexpr u32 BOX_BYTES = 64 * ROW_BYTES;         // one 64x64 box
constexpr u32 SHARED_LIMIT = 232448 - 1024;       // 227 KiB per CTA, less what aligning to 1024 may take
constexpr u32 LEAD_BARRIER = 1 + CONSUMERS;       // named barriers 1 and 2 belong to the epilogues of the consumers

static_assert(BLOCK_M == 64 * CONSUMERS, "each consumer warpgroup has the 64 rows of one wgmma");
static_assert(ROW_BYTES == 128, "a k-block is one 128-byte swizzled row");
static_assert(PRODUCER_REGISTERS + CONSUMERS * CONSUMER_REGISTERS <= 65536 / 128, "the register file has 512 per thread slot");

constexpr bool is_power_of_two(int n) { return n > 0 && (n & (n - 1)) == 0; }

template <Major A_MAJOR_, Major B_MAJOR_, int BLOCK_N_, int STAGES_, int LEAD_, int CLUSTER_M_ = 1, int CLUSTER_N_ = 1> struct Pipeline {
  static constexpr Major A_MAJOR = A_MAJOR_, B_MAJOR = B_MAJOR_;
  static constexpr int BLOCK_N = BLOCK_N_, STAGES = STAGES_, LEAD = LEAD_;
  static constexpr int CLUSTER_M = CLUSTER_M_, CLUSTER_N = CLUSTER_N_, CLUSTER = CLUSTER_M * CLUSTER_N;
  static constexpr int PEERS = CLUSTER_M + CLUSTER_N - 1;
  static constexpr int ACCUMULATORS = BLOCK_N / 2;
  static constexpr u32 A_BYTES = BLOCK_M * ROW_BYTES, B_BYTES = BLOCK_N * ROW_BYTES;
  static_assert(BLOCK_N == 128 || BLOCK_N == 256, "tiles are 128 or 256 wide");
  static_assert(is_power_of_two(CLUSTER_M) && is_power_of_two(CLUSTER_N), "parts of operands are whole boxes, and ranks of peers differ in bits");
  static_assert(LEAD < STAGES, "a leading consumer needs stages to lead in");

  struct Stages {
    u8 a[STAGES][A_BYTES];
    u8 b[STAGES][B_BYTES];
  };
  struct Barriers {
    u64 full[STAGES], empty[STAGES];
  };
  using Ring = RingPosition<STAGES>;

  // One thread, before the fence and the barrier of all.
  static __device__ __forceinline__ void init(Barriers &barriers) {
    for (int s = 0; s < STAGES; ++s) {
      mbarrier_init(&barriers.full[s], 1);                      // the producer's arrive_expect
      mbarrier_init(&barriers.empty[s], 4 * CONSUMERS * PEERS); // one arrival per consumer warp of our peers, which we are one of
    }
  }

  // Our place in the cluster, along m and along n.
  static __device__ __forceinline__ u32 place_m(u32 rank) { return CLUSTER_N == 1 ? rank : rank % CLUSTER_M; }
  static __device__ __forceinline__ u32 place_n(u32 rank) { return CLUSTER_M == 1 ? rank : rank / CLUSTER_M; }

  // One operand's part of a stage: rows outer .. +ROWS at k; with PARTS > 1 part number `part` of them, to the CTAs `ctas`.
  template <Major MAJOR, int ROWS, int PARTS>
  static __device__ __forceinline__ void load_operand(u8 *stage, const TensorMap *map, u64 *full, i32 outer, i32 k, i32 batch, u32 part, u16 ctas) {
    constexpr int PART = ROWS / PARTS, BOX = MAJOR == Major::K ? (PART < 128 ? PART : 128) : 64;
    static_assert(PART % BOX == 0 && PART % 8 == 0, "a part is whole boxes, and starts where the swizzle starts");
#pragma unroll
    for (int i = 0; i < PART / BOX; ++i) {
      const i32 row = (PARTS > 1 ? i32(part) * PART : 0) + i * BOX;
      const i32 x = MAJOR == Major::K ? k : outer + row, y = MAJOR == Major::K ? outer + row : k;
      u8 *destination = stage + row * i32(ROW_BYTES);
      if constexpr (PARTS > 1) tma_load_3d_multicast(destination, map, full, x, y, batch, ctas);
      else tma_load_3d(destination, map, full, x, y, batch);
    }
  }

  // The producer's part of a tile. One thread.
  static __device__ __forceinline__ void load_blocks(Stages &stages, Barriers &barriers, Ring &ring, const TensorMap *a, const TensorMap *b,
                                                     i32 m, i32 n, i32 k_begin, i32 k_end, i32 batch, u32 rank) {
    // Those beside us along n, every CLUSTER_M-th rank, and those along m, CLUSTER_M neighbouring ranks.
    constexpr u32 ROW = ((1u << CLUSTER) - 1) / ((1u << CLUSTER_M) - 1), COLUMN = (1u << CLUSTER_M) - 1;
    const u16 row = u16(CLUSTER_M == 1 ? ROW : ROW << place_m(rank)), column = u16(CLUSTER_N == 1 ? COLUMN : COLUMN << (CLUSTER_M * place_n(rank)));
    for (i32 kb = k_begin; kb < k_end; ++kb) {
      const u32 s = ring.stage;
      // NOTE: not cluster_wait: nothing is read after it through the generic proxy, and an acquire from the cluster empties L1.
      mbarrier_wait(&barriers.empty[s], ring.phase ^ 1);
      mbarrier_arrive_expect(&barriers.full[s], A_BYTES + B_BYTES);
      load_operand<A_MAJOR, BLOCK_M, CLUSTER_N>(stages.a[s], a, &barriers.full[s], m, kb * BLOCK_K, batch, place_n(rank), row);
      load_operand<B_MAJOR, BLOCK_N, CLUSTER_M>(stages.b[s], b, &barriers.full[s], n, kb * BLOCK_K, batch, place_m(rank), column);
      ring.advance();
    }
  }

  // A warp of a consumer no longer reads a stage: a lane for each peer says so.
  static __device__ __forceinline__ void release(Barriers &barriers, u32 stage, u32 lane, u32 rank) {
    if constexpr (CLUSTER > 1) {
      u32 peer = lane; // all of the cluster, in one row or column
      if constexpr (CLUSTER_M > 1 && CLUSTER_N > 1) peer = rank ^ (lane < CLUSTER_M ? lane : (lane - CLUSTER_M + 1) * CLUSTER_M);
      if (lane < PEERS) cluster_arrive_after_reads(cluster_address(&barriers.empty[stage], peer));
    } else {
      if (lane == 0) mbarrier_arrive(&barriers.empty[stage]);
    }
  }

  // A consumer's part of a tile: d = the products of `blocks` k-blocks. One group stays in flight: a stage is released when the
  // group after its own has been issued. `lead`: see above; the same for both consumers. `rank` matters in clusters of more than one row and
  // column.
  // NOTE: the first k-block is peeled. With the accumulators defined in a loop that starts with them undefined, ptxas 12.3
  // serializes the products (C7515).
  static __device__ __forceinline__ void multiply_blocks(float (&d)[ACCUMULATORS], Stages &stages, Barriers &barriers, Ring &ring, i32 blocks,
                                                         u32 consumer, u32 lane, bool lead, u32 rank = 0) {
    const u64 first_a = matrix_descriptor(shared_address(stages.a) + consumer * BOX_BYTES, 16);
    const u64 first_b = matrix_descriptor(shared_address(stages.b), B_MAJOR == Major::K ? 16 : BOX_BYTES);
    const auto multiply = [&](bool accumulate) {
      const u32 s = ring.stage;
      mbarrier_wait(&barriers.full[s], ring.phase);
      const u64 da = first_a + s * DESCRIPTOR_STEP<A_BYTES>, db = first_b + s * DESCRIPTOR_STEP<B_BYTES>;
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < BLOCK_K / 16; ++k)
        wgmma<A_MAJOR, B_MAJOR>(d, da + k * K_STEP<A_MAJOR>, db + k * K_STEP<B_MAJOR>, accumulate || k != 0);
      wgmma_commit();
      ring.advance();
    };
    if (lead && consumer == 1) named_barrier_sync(LEAD_BARRIER, 128 * CONSUMERS);
    u32 previous = ring.stage;
    multiply(false);
    for (i32 block = 1; block < blocks; ++block) {
      const u32 current = ring.stage;
      multiply(true);
      wgmma_wait<1>();
      release(barriers, previous, lane, rank);
      if (lead && consumer == 0 && block == LEAD) named_barrier_arrive(LEAD_BARRIER, 128 * CONSUMERS);
      previous = current;
    }
    wgmma_wait<0>();
    release(barriers, previous, lane, rank);
    accumulator_barrier(d);
  }
};

} // namespace birdie
