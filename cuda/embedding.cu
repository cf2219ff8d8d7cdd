// The embedding block (token + bigram gather, RMSNorm, SmearGate), sums of rows by key, and the value embedding's gradient.
//
// 1. Formula, per row p of a sequence, t = p mod T:
//      bigram_index        index[p] = t = 0 ? buckets-1 : ((36313 id[p]) xor (27191 id[p-1])) mod (buckets-1)
//      embedding_forward   e[p] = tok_emb[id] + bigram_table[index];  y = e / rms(e);
//                          x0[p] = (1-g) y[p] + g y[p-1],  y[-1] = 0 in each sequence,  g = sigmoid(smear_gate)
//      embedding_backward  D = dx + dx0;  dy[p] = (1-g) D[p] + g D[p+1];  de = r (dy - y mean(dy y));
//                          dsmear_gate = g (1-g) sum_p y[p] (D[p+1] - D[p])          (D[p+1] = 0 at a sequence's end)
//      segment_*           rows sorted by key (stable counting sort), then one sum per key: the gradient of a gather
//      value_embedding_combine   out = sum_j scale_j table_j,   dscale_j = table_j . projected
//    The bigram table is already projected to d channels (README.md, conventions).
//
// 2. Operands: ids, index, keys u16 [N]; tables bf16; x0, dx, dx0, de bf16 [N, d]; counts i32 [chunks, buckets]; starts i32
//    [buckets + 1]; order i32 [N].
//
// 3. Work. Embedding: row slots as in row.cuh, each slot walks RUN consecutive rows, so the neighbour row that SmearGate needs
//    is in registers already (one extra row per run). Sort: one CTA per chunk of keys to count, one CTA to scan, one warp per
//    chunk to place. segment_sum: one CTA per key; columns/8 threads make a slot that adds every slots-th row of the key.
//
// 4. Pipeline: none.
//
// 5. Floor (predicted), N = 98304, d = 512: forward 302 MB (tables from L2), 101 us; backward 302 MB, 101 us; sums 101 MB, 34 us.
//
// 6. Fences: __syncthreads around shared counters and sums; __syncwarp in segment_place: the group's leaders bump the counters
//    only after all lanes read them, and the next 32 keys read only after the bump.
//
// 7. Limits: d a multiple of 8, at most 2048; keys below 65536; buckets * 4 bytes of dynamic shared memory for the sort (at most
//    12288 buckets without the opt-in); columns a multiple of 8, at most 2048.
//    No float atomics: all sums are in a fixed order. Integer atomics only count.
// 8. Machine code (ptxas 13.0): registers: 16..114, shared: 0..16,384 bytes
#include "row.cuh"

namespace birdie {

constexpr int RUN = 8; // consecutive rows of a slot

// e = tok_emb[id] + bigram_table[index]
template <typename Shape>
__device__ __forceinline__ void gather(const Slot<Shape> &slot, Row<Shape> &e, const u16 *ids, const u16 *index,
                                       const bf16 *tok_emb, const bf16 *bigram_table, i32 row) {
  slot.load(e, tok_emb, ids[row]);
  if (bigram_table != nullptr) {
    Row<Shape> other;
    slot.load(other, bigram_table, index[row]);
    each_channel<Shape>([&](int c, int i) { e.x[c][i] += other.x[c][i]; });
  }
}
template <typename Shape> __device__ __forceinline__ void load_gate(const Slot<Shape> &slot, Row<Shape> &g, const float *smear_gate) {
  slot.load(g, smear_gate);
  each_channel<Shape>([&](int c, int i) { g.x[c][i] = sigmoid(g.x[c][i]); });
}

template <typename Shape>
__device__ __forceinline__ void embedding_forward(const u16 *ids, const u16 *index, const bf16 *tok_emb, const bf16 *bigram_table,
                                                  const float *smear_gate, bf16 *x0, i32 N, i32 T, i32 d) {
  const Slot<Shape> slot(d);
  Row<Shape> g, previous;
  load_gate(slot, g, smear_gate);
  const i32 begin = slot.first_row() * RUN;
  for (i32 p = begin - 1; p < begin + RUN; ++p) { // the first trip only fills `previous`
    const i32 row = min(max(p, 0), N - 1);
    Row<Shape> y;
    gather(slot, y, ids, index, tok_emb, bigram_table, row);
    const float r = slot.inverse_rms(y);
    each_channel<Shape>([&](int c, int i) { y.x[c][i] *= r; });
    if (p >= begin && p < N) {
      const float keep = p % T == 0 ? 0.f : 1.f;
      Row<Shape> out;
      each_channel<Shape>([&](int c, int i) { out.x[c][i] = y.x[c][i] + g.x[c][i] * (keep * previous.x[c][i] - y.x[c][i]); });
      slot.store(out, x0, p);
    }
    previous = y;
  }
}

template <typename Shape>
__device__ __forceinline__ void incoming(const Slot<Shape> &slot, Row<Shape> &D, const bf16 *dx, const bf16 *dx0, i32 row, i32 N) {
  if (row >= N) {
    fill(D, 0.f);
    return;
  }
  slot.load(D, dx, row);
  if (dx0 != nullptr) {
    Row<Shape> other;
    slot.load(other, dx0, row);
    each_channel<Shape>([&](int c, int i) { D.x[c][i] += other.x[c][i]; });
  }
}

template <typename Shape>
__device__ __forceinline__ void embedding_backward(const bf16 *dx, const bf16 *dx0, const u16 *ids, const u16 *index,
                                                   const bf16 *tok_emb, const bf16 *bigram_table, const float *smear_gate,
                                                   bf16 *de, float *partial, float *scratch, i32 N, i32 T, i32 d) {
  const Slot<Shape> slot(d);
  Row<Shape> g, gate_sum, current, next;
  load_gate(slot, g, smear_gate);
  fill(gate_sum, 0.f);
  const i32 begin = slot.first_row() * RUN;
  incoming(slot, current, dx, dx0, begin, N);
  for (i32 p = begin; p < begin + RUN; ++p) {
    incoming(slot, next, dx, dx0, p + 1, N);
    const float keep = (p + 1) % T == 0 ? 0.f : 1.f;
    Row<Shape> y, dy;
    gather(slot, y, ids, index, tok_emb, bigram_table, min(p, N - 1));
    const float r = slot.inverse_rms(y);
    each_channel<Shape>([&](int c, int i) {
      y.x[c][i] *= r;
      const float difference = keep * next.x[c][i] - current.x[c][i];
      dy.x[c][i] = current.x[c][i] + g.x[c][i] * difference;
      gate_sum.x[c][i] += y.x[c][i] * difference;
    });
    const float mean = slot.dot(dy, y) * slot.inverse_d;
    each_channel<Shape>([&](int c, int i) { dy.x[c][i] = r * (dy.x[c][i] - y.x[c][i] * mean); });
    if (p < N) slot.store(dy, de, p);
    current = next;
  }
  each_channel<Shape>([&](int c, int i) { gate_sum.x[c][i] *= g.x[c][i] * (1.f - g.x[c][i]); });
  add_over_slots(gate_sum, scratch, partial + u64(blockIdx.x) * d, d);
}

constexpr int SUM_THREADS = 256;
constexpr int VE_LAYERS = 16; // most layers with a value embedding

// Sum of the rows order[starts[bucket] .. starts[bucket+1]) in a fixed order, each times factor(row). Calls store(column, sum[8]) for the
// bucket.
template <typename Store>
__device__ __forceinline__ void segment_sum(const bf16 *rows, i32 row_stride, const i32 *order, const i32 *starts, i32 columns,
                                            Store store) {
  __shared__ float of_slot[SUM_THREADS * 8];
  const i32 bucket = i32(blockIdx.x), begin = starts[bucket], end = starts[bucket + 1];
  const i32 lanes = columns / 8, slots = SUM_THREADS / lanes, slot = i32(threadIdx.x) / lanes, lane = i32(threadIdx.x) % lanes;
  float sum[8] = {};
  if (slot < slots) {
#pragma unroll 4
    for (i32 i = begin + slot; i < end; i += slots) {
      float x[8];
      load8(rows + i64(order[i]) * row_stride + 8 * lane, x);
#pragma unroll
      for (int j = 0; j < 8; ++j) sum[j] += x[j];
    }
    store8(of_slot + (slot * lanes + lane) * 8, sum);
  }
  __syncthreads();
  if (slot == 0) {
    const i32 used = min(slots, end - begin);
    for (i32 s = 1; s < used; ++s) {
      float x[8];
      load8(of_slot + (s * lanes + lane) * 8, x);
#pragma unroll
      for (int j = 0; j < 8; ++j) sum[j] += x[j];
    }
    store(i64(bucket) * columns + 8 * lane, sum);
  }
}

} // namespace birdie

using namespace birdie;

extern "C" __global__ void __launch_bounds__(256) bigram_index(const u16 *ids, u16 *index, i32 N, i32 T, i32 buckets) {
  const i32 p = i32(blockIdx.x * blockDim.x + threadIdx.x);
  if (p >= N) return;
  u32 bucket = u32(buckets) - 1;
  if (p % T != 0) bucket = ((36313u * ids[p]) ^ (27191u * ids[p - 1])) % (u32(buckets) - 1);
  index[p] = u16(bucket);
}

#define ROW_KERNEL extern "C" __global__ void __launch_bounds__(ROW_THREADS)
#define EMBEDDING_KERNELS(SUFFIX, SHAPE)                                                                               \
  ROW_KERNEL embedding_forward_##SUFFIX(const u16 *ids, const u16 *index, const bf16 *tok_emb,                         \
                                        const bf16 *bigram_table, const float *smear_gate, bf16 *x0, i32 N, i32 T,     \
                                        i32 d) {                                                                       \
    embedding_forward<SHAPE>(ids, index, tok_emb, bigram_table, smear_gate, x0, N, T, d);                              \
  }                                                                                                                    \
  ROW_KERNEL embedding_backward_##SUFFIX(const bf16 *dx, const bf16 *dx0, const u16 *ids, const u16 *index,            \
                                         const bf16 *tok_emb, const bf16 *bigram_table, const float *smear_gate,       \
                                         bf16 *de, float *partial, i32 N, i32 T, i32 d) {                              \
    __shared__ float scratch[SHAPE::SLOTS * SHAPE::WIDTH];                                                             \
    embedding_backward<SHAPE>(dx, dx0, ids, index, tok_emb, bigram_table, smear_gate, de, partial, scratch, N, T, d);  \
  }
EMBEDDING_KERNELS(d128, Row16x1)
EMBEDDING_KERNELS(d512, Row32x2)
EMBEDDING_KERNELS(d1024, Row128x1)
EMBEDDING_KERNELS(d2048, Row256x1)

// counts[chunk][bucket] = keys of this chunk (CTA) equal to bucket.
extern "C" __global__ void __launch_bounds__(256)
    segment_count(const u16 *keys, i32 N, i32 buckets, i32 chunk, i32 *counts) {
  extern __shared__ i32 counter[];
  for (i32 b = i32(threadIdx.x); b < buckets; b += i32(blockDim.x)) counter[b] = 0;
  __syncthreads();
  const i32 begin = i32(blockIdx.x) * chunk, end = min(begin + chunk, N);
  for (i32 i = begin + i32(threadIdx.x); i < end; i += i32(blockDim.x)) atomicAdd(&counter[keys[i]], 1);
  __syncthreads();
  for (i32 b = i32(threadIdx.x); b < buckets; b += i32(blockDim.x)) counts[i64(blockIdx.x) * buckets + b] = counter[b];
}

// starts[b] = keys below b; counts[c][b] becomes the place of chunk c's first key of bucket b. One CTA.
extern "C" __global__ void __launch_bounds__(256) segment_scan(i32 *counts, i32 chunks, i32 buckets, i32 *starts) {
  __shared__ i32 warp_total[8];
  const i32 lane = i32(lane_id()), warp = i32(threadIdx.x / 32);
  i32 carry = 0;
  for (i32 base = 0; base < buckets; base += 256) {
    const i32 b = base + i32(threadIdx.x);
    i32 total = 0;
    if (b < buckets)
      for (i32 c = 0; c < chunks; ++c) total += counts[i64(c) * buckets + b];
    i32 inclusive = total;
#pragma unroll
    for (int step = 1; step < 32; step *= 2) {
      const i32 below = __shfl_up_sync(FULL_MASK, inclusive, step);
      if (lane >= step) inclusive += below;
    }
    if (lane == 31) warp_total[warp] = inclusive;
    __syncthreads();
    i32 place = carry + inclusive - total, slab = 0;
    for (i32 w = 0; w < 8; ++w) {
      if (w < warp) place += warp_total[w];
      slab += warp_total[w];
    }
    if (b < buckets) {
      starts[b] = place;
      for (i32 c = 0; c < chunks; ++c) {
        const i32 here = counts[i64(c) * buckets + b];
        counts[i64(c) * buckets + b] = place;
        place += here;
      }
    }
    carry += slab;
    __syncthreads(); // warp_total is rewritten by the next slab
  }
  if (threadIdx.x == 0) starts[buckets] = carry;
}

// One warp per chunk writes each row's number to its place. Stable: 32 keys at a time, in order.
extern "C" __global__ void __launch_bounds__(32)
    segment_place(const u16 *keys, i32 N, i32 buckets, i32 chunk, const i32 *counts, i32 *order) {
  extern __shared__ i32 counter[];
  const u32 lane = lane_id();
  for (i32 b = i32(lane); b < buckets; b += 32) counter[b] = counts[i64(blockIdx.x) * buckets + b];
  __syncwarp();
  const i32 begin = i32(blockIdx.x) * chunk, end = min(begin + chunk, N);
  for (i32 base = begin; base < end; base += 32) {
    const i32 i = base + i32(lane);
    const u32 key = i < end ? keys[i] : 0x10000u + lane; // lanes past the end match nobody
    const u32 equal = __match_any_sync(FULL_MASK, key);
    const u32 before = __popc(equal & ((1u << lane) - 1u));
    i32 place = 0;
    if (i < end) place = counter[key] + i32(before);
    __syncwarp();
    if (i < end) {
      order[place] = i;
      if (before == 0) counter[key] += __popc(equal);
    }
    __syncwarp();
  }
}

extern "C" __global__ void __launch_bounds__(SUM_THREADS)
    segment_sum_f32(const bf16 *rows, i32 row_stride, const i32 *order, const i32 *starts, i32 buckets, i32 columns,
                    float *out, i32 accumulate) {
  segment_sum(rows, row_stride, order, starts, columns, [&](i64 place, float(&sum)[8]) {
    if (accumulate) {
      float old[8];
      load8(out + place, old);
#pragma unroll
      for (int j = 0; j < 8; ++j) sum[j] += old[j];
    }
    store8(out + place, sum);
  });
}
extern "C" __global__ void __launch_bounds__(SUM_THREADS)
    segment_sum_bf16(const bf16 *rows, i32 row_stride, const i32 *order, const i32 *starts, i32 buckets, i32 columns, bf16 *out) {
  segment_sum(rows, row_stride, order, starts, columns, [&](i64 place, float(&sum)[8]) { store8(out + place, sum); });
}

extern "C" __global__ void __launch_bounds__(256)
    value_embedding_combine(const float *tables, i32 layers, const float *scales, i32 scale_stride, const bf16 *projected,
                            bf16 *out, float *partial, u64 n) {
  __shared__ float of_warp[VE_LAYERS][9]; // one more than warps: the column sums below read a bank each
  float scale[VE_LAYERS], dot[VE_LAYERS] = {};
#pragma unroll
  for (int j = 0; j < VE_LAYERS; ++j) scale[j] = j < layers ? scales[i64(j) * scale_stride] : 0.f;
  for (u64 i = (u64(blockIdx.x) * blockDim.x + threadIdx.x) * 8; i < n; i += u64(gridDim.x) * blockDim.x * 8) {
    float p[8], sum[8] = {};
    load8(projected + i, p);
#pragma unroll
    for (int j = 0; j < VE_LAYERS; ++j) {
      if (j >= layers) break;
      float t[8];
      load8(tables + j * n + i, t);
#pragma unroll
      for (int e = 0; e < 8; ++e) sum[e] += scale[j] * t[e], dot[j] += t[e] * p[e];
    }
    store8(out + i, sum);
  }
#pragma unroll
  for (int j = 0; j < VE_LAYERS; ++j) {
    dot[j] = group_sum(dot[j]);
    if (lane_id() == 0) of_warp[j][threadIdx.x / 32] = dot[j];
  }
  __syncthreads();
  if (threadIdx.x < VE_LAYERS) {
    float total = 0.f;
    for (int w = 0; w < 8; ++w) total += of_warp[threadIdx.x][w];
    partial[blockIdx.x * VE_LAYERS + threadIdx.x] = total;
  }
}
