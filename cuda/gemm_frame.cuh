// The frame of a product's kernel: which CTA computes which tile, and who does what meanwhile.
//
// A kernel is a `Variant` (its tile, its stages), the pipeline that follows from it, a struct of shared memory that begins with the pipeline's, and an epilogue. The
// frame runs the producer, and for each tile and consumer
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
// Tiles of a launch per cluster of CTAs, and one of them for the CTA of this rank.
template <typename P, typename V> __device__ __forceinline__ u32 tile_count(const GemmShape &s) {
  const u32 tiles_n = ceil_div(s.n, P::BLOCK_N * P::CLUSTER_N), tiles_m = ceil_div(s.m, BLOCK_M * P::CLUSTER_M);
  return (V::SYMMETRIC ? tiles_n * (tiles_n + 1) / 2 : tiles_m * tiles_n) * s.splits * s.batches;
}
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
  t.split = i32(index % u32(s.splits));
  t.batch = i32(index / u32(s.splits));
  t.k_begin = t.split * s.k_blocks_per_split;
  t.k_end = min(t.k_begin + s.k_blocks_per_split, ceil_div(s.k, BLOCK_K));
  return t;
}

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
  const u32 first = blockIdx.x / P::CLUSTER, clusters = gridDim.x / P::CLUSTER, tiles = tile_count<P, V>(shape);
  typename P::Ring ring;

  if (warpgroup == 0) { // ---- producer
    registers_decrease<PRODUCER_REGISTERS>();
    if (threadIdx.x == 0) {
      prefetch_tensor_map(a);
      prefetch_tensor_map(b);
      for (u32 index = first; index < tiles; index += clusters) {
        const Tile t = tile_at<P, V>(index, rank, shape);
        P::load_blocks(shared.stages, shared.barriers, ring, a, b, t.m, t.n, t.k_begin, t.k_end, t.batch, rank);
      }
    }
    return;
  }

  // ---- consumers
  registers_increase<CONSUMER_REGISTERS>();
  const Worker worker{warpgroup - 1, threadIdx.x % 128};
  const i32 blocks = ceil_div(shape.k, BLOCK_K), last = blocks - (shape.splits - 1) * shape.k_blocks_per_split;
  const bool lead = last >= P::STAGES; // the last split has the fewest k-blocks
  auto e = epilogue(worker);

  for (u32 index = first; index < tiles; index += clusters) {
    const Tile tile = tile_at<P, V>(index, rank, shape);
    e.begin(tile);
    float d[P::ACCUMULATORS];
    P::multiply_blocks(d, shared.stages, shared.barriers, ring, tile.k_end - tile.k_begin, worker.consumer, worker.lane(), lead, rank);
    e.finish(tile, d);
  }
  // The CTA's shared memory must outlive the reads of its last stores, and the releases by other CTAs of the cluster.
  e.end();
  if constexpr (P::CLUSTER > 1) cluster_sync();
}

} // namespace birdie
