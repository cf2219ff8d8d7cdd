// The frame of a product's kernel: which CTA computes which tile, and who does what meanwhile.
//
// A kernel is a `Variant` (its tile, its stages), the pipeline that follows from it, a struct of shared memory that begins with the
// pipeline's, and an epilogue. The frame runs the producer, and for each tile and consumer
//
//   begin(tile)      before the products: to ask for what the epilogue will read
//   finish(tile, d)  with the accumulators
//
// and `end()` behind the last tile. The epilogue is the consumers' alone; what one of their threads is, it is told as a `Worker`.
#pragma once
#include "gemm_pipeline.cuh"

namespace birdie {

struct GemmShape {
  i32 m, n, k, batches, splits, k_blocks_per_split;
  float alpha, beta;
  i32 together = 1; // pieces of the last split that a cluster takes one after the other
};

// The tiles that src/kernels/gemm.rs chooses from, per CTA 128 rows, and how many CTAs of a cluster lie beside one another along m and n.
template <int BLOCK_N_, int CLUSTER_M_, int CLUSTER_N_> struct TileShape {
  static constexpr int BLOCK_N = BLOCK_N_, CLUSTER_M = CLUSTER_M_, CLUSTER_N = CLUSTER_N_;
  static constexpr bool WIDE = BLOCK_N == 256;
};
using Square = TileShape<128, 1, 1>;
using Wide = TileShape<256, 2, 1>;
using Quad = TileShape<256, 2, 2>;

struct Tile {
  i32 m, n, split, batch, k_begin, k_end; // element offsets of the tile; range of k-blocks
};
// Tiles of a split per cluster of CTAs, all batches.
template <typename P, typename V> __device__ __forceinline__ u32 tile_count(const GemmShape &s) {
  const u32 tiles_n = ceil_div(s.n, P::BLOCK_N * P::CLUSTER_N), tiles_m = ceil_div(s.m, BLOCK_M * P::CLUSTER_M);
  return (V::SYMMETRIC ? tiles_n * (tiles_n + 1) / 2 : tiles_m * tiles_n) * s.batches;
}
// The piece of a tile that number `index` is, for the CTA of this rank: n fastest, then m, batch, split.
template <typename P, typename V> __device__ __forceinline__ Tile tile_at(u32 index, u32 rank, const GemmShape &s) {
  const u32 tiles_n = ceil_div(s.n, P::BLOCK_N * P::CLUSTER_N);
  Tile t;
  if constexpr (V::SYMMETRIC) { // row i of the triangle has tiles 0 .. i
    const u32 triangle = tiles_n * (tiles_n + 1) / 2;
    u32 column = index % triangle, row = 0;
    while (column > row) column -= ++row;
    t.n = i32(column) * P::BLOCK_N;
    t.m = i32(row) * BLOCK_M;
    index /= triangle;
  } else {
    const u32 tiles_m = ceil_div(s.m, BLOCK_M * P::CLUSTER_M);
    t.n = i32(index % tiles_n * P::CLUSTER_N + (P::CLUSTER_N > 1 ? P::place_n(rank) : 0)) * P::BLOCK_N;
    index /= tiles_n;
    t.m = i32(index % tiles_m * P::CLUSTER_M + (P::CLUSTER_M > 1 ? P::place_m(rank) : 0)) * BLOCK_M;
    index /= tiles_m;
  }
  t.batch = i32(index % u32(s.batches));
  t.split = i32(index / u32(s.batches));
  t.k_begin = t.split * s.k_blocks_per_split;
  t.k_end = min(t.k_begin + s.k_blocks_per_split, ceil_div(s.k, BLOCK_K));
  return t;
}

// The pieces that a cluster computes. Those of all splits but the last are dealt one by one, then those of the last, which are shorter, by
// `together`: so that with S splits T (S - 1) clusters are as long at work as T / together others, and none of the device is idle.
struct Deal {
  u32 whole, pieces, together; // pieces of all splits but the last, and of all

  __device__ __forceinline__ Deal(u32 tiles, const GemmShape &s)
      : whole(tiles * u32(s.splits - 1)), pieces(tiles * u32(s.splits)), together(u32(s.together)) {}
  // The first piece of hand `hand`.
  __device__ __forceinline__ u32 first(u32 hand) const { return hand < whole ? hand : whole + (hand - whole) * together; }
  // The piece after `index`, of the same hand, or of the next one of a cluster, `clusters` hands on.
  __device__ __forceinline__ u32 next(u32 index, u32 clusters) const {
    if (index < whole) return first(index + clusters);
    const u32 piece = index - whole;
    return (piece + 1) % together != 0 ? index + 1 : first(whole + piece / together + clusters);
  }
};

// A consumer's thread: which consumer (rows 64 consumer .. +64 of a tile), and which of its 128 threads.
struct Worker {
  u32 consumer, thread;
  __device__ __forceinline__ u32 lane() const { return thread % 32; }
  __device__ __forceinline__ u32 warp() const { return thread / 32; }
  __device__ __forceinline__ i32 row(const Tile &tile) const { return tile.m + 64 * i32(consumer); }
  // Of all threads of this consumer.
  __device__ __forceinline__ void meet() const { named_barrier_sync(1 + consumer, 128); }
};

// The CTA's shared memory as a `Shared`. NOTE: dynamic shared memory is only 16-byte aligned; the swizzle needs 1024.
template <typename Shared> __device__ __forceinline__ Shared &shared_memory() {
  static_assert(sizeof(Shared) <= SHARED_LIMIT, "stages and staging boxes fit into shared memory");
  extern __shared__ u8 shared_bytes[];
  return *reinterpret_cast<Shared *>((reinterpret_cast<u64>(shared_bytes) + 1023) & ~u64(1023));
}

// All threads of a kernel. `init()` is one thread's chance to initialise barriers of the epilogue; `epilogue(worker)` makes the
// epilogue of a thread.
template <typename P, typename V, typename Shared, typename Init, typename MakeEpilogue>
__device__ __forceinline__ void run_tiles(Shared &shared, const TensorMap *a, const TensorMap *b, const GemmShape &shape, Init init,
                                          MakeEpilogue epilogue) {
  const u32 warpgroup = warp_id() / 4;
  if (threadIdx.x == 0) {
    P::init(shared.barriers);
    init();
    fence_barrier_init();
  }
  if constexpr (P::CLUSTER > 1) cluster_sync();
  else __syncthreads();

  const u32 rank = P::CLUSTER > 1 ? cluster_rank() : 0;
  const u32 clusters = gridDim.x / P::CLUSTER;
  const Deal deal(tile_count<P, V>(shape), shape);
  const u32 first = deal.first(blockIdx.x / P::CLUSTER);
  typename P::Ring ring;

  if (warpgroup == 0) { // ---- producer
    registers_decrease<PRODUCER_REGISTERS>();
    if (threadIdx.x == 0) {
      prefetch_tensor_map(a);
      prefetch_tensor_map(b);
      for (u32 index = first; index < deal.pieces; index = deal.next(index, clusters)) {
        const Tile t = tile_at<P, V>(index, rank, shape);
        P::load_blocks(shared.stages, shared.barriers, ring, a, b, t.m, t.n, t.k_begin, t.k_end, t.batch, rank);
      }
    }
    return;
  }

  // ---- consumers
  registers_increase<CONSUMER_REGISTERS>();
  const Worker worker{warpgroup - 1, threadIdx.x % 128};
  auto e = epilogue(worker);

  for (u32 index = first; index < deal.pieces; index = deal.next(index, clusters)) {
    const Tile tile = tile_at<P, V>(index, rank, shape);
    e.begin(tile);
    const i32 blocks = tile.k_end - tile.k_begin;
    float d[P::ACCUMULATORS];
    P::multiply_blocks(d, shared.stages, shared.barriers, ring, blocks, worker.consumer, worker.lane(), blocks >= P::STAGES, rank);
    e.finish(tile, d);
  }
  // The CTA's shared memory must outlive the reads of its last stores, and the releases by other CTAs of the cluster.
  e.end();
  if constexpr (P::CLUSTER > 1) cluster_sync();
}

} // namespace birdie
