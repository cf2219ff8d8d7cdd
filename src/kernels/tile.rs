//! Which part of a product a CTA computes at a time, and who shares what it loads: a choice by shape, from a table.
//!
//! The choice is for an H100 SXM whatever device runs: where sums are cut, results would depend on it.

use super::gemm::{BLOCK_K, Shape};

/// The part of D that a CTA computes at a time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tile {
    /// 128 x 128, every CTA for itself.
    Square,
    /// 128 x 256, two CTAs above one another load B together.
    Wide,
    /// 128 x 256, two by two: those above one another load B together, those beside one another A.
    Quad,
}

/// What there is to know about a tile.
struct TileFacts {
    tile: Tile,
    /// What names of kernels end in.
    suffix: &'static str,
    columns: u64,
    /// CTAs of a cluster along m and along n.
    cluster: [u64; 2],
    /// CTAs that run at once.
    at_once: u64,
}

const ROWS: u64 = 128;
/// Multiprocessors.
const MULTIPROCESSORS: u64 = 132;
/// FLOPs per clock of a multiprocessor: 798 TFLOP/s, what large bf16 products reach (`bench::machine`), at 1.755 GHz.
const FLOPS_PER_CLOCK: u64 = 3445;
/// Bytes that L2 delivers per clock, to all multiprocessors together: measured on an H800 by arXiv 2402.13499, table V.
const L2_BYTES_PER_CLOCK: u64 = 3942;
/// Bytes of memory per clock: 3.0 TB/s.
const HBM_BYTES_PER_CLOCK: u64 = 1709;

/// In the order in which equals are preferred.
const TILES: [TileFacts; 3] = [
    // Large products that the tensor cores or memory bound, and all that are cut along k. All multiprocessors at once want 1097 clocks of L2
    // for a k-block that takes 1218 clocks to multiply, but what the epilogue moves comes on top. Without the cluster it would be 1646, and
    // 128 x 128 with a cluster asks for more, too.
    TileFacts {
        tile: Tile::Wide,
        suffix: "_wide",
        columns: 256,
        cluster: [2, 1],
        at_once: MULTIPROCESSORS,
    },
    // Small products, where wide tiles would leave multiprocessors idle (Newton-Schulz on few 512 x 512), and narrow ones, where they
    // would multiply zeros (N <= 128). With all multiprocessors at work L2 takes 1097 clocks for what is multiplied in 609.
    // WHY NOT 64-row tiles: half the products per loaded byte, and no shape of the recipes has fewer than 64 x 132 rows
    // and is on the critical path.
    TileFacts {
        tile: Tile::Square,
        suffix: "",
        columns: 128,
        cluster: [1, 1],
        at_once: MULTIPROCESSORS,
    },
    // Large products that L2 would bound: 798 clocks of it per k-block. Clusters of four leave multiprocessors idle where a GPC has a number of
    // them that four does not divide: an H100 SXM with GPCs of 16 and 18 runs 32 clusters at once, on 128 of them.
    TileFacts {
        tile: Tile::Quad,
        suffix: "_quad",
        columns: 256,
        cluster: [2, 2],
        at_once: 128,
    },
];

/// A quad tile must be predicted to save this part of the time: there are devices that run fewer of its clusters than 32, and its CTAs wait
/// for two others at every stage.
const QUAD_GAIN: u64 = 50;

impl Tile {
    fn facts(self) -> &'static TileFacts {
        let facts = TILES.iter().find(|facts| facts.tile == self);
        facts.expect("all tiles are in the table")
    }

    /// What names of kernels with this tile end in.
    pub fn suffix(self) -> &'static str {
        self.facts().suffix
    }

    /// The tile of a kernel of this name.
    pub fn of_entry(entry: &str) -> Tile {
        let clustered = [Tile::Wide, Tile::Quad].into_iter();
        clustered
            .filter(|tile| entry.ends_with(tile.suffix()))
            .next_back()
            .unwrap_or(Tile::Square)
    }

    /// CTAs of a cluster.
    pub fn cluster(self) -> u64 {
        self.facts().cluster.iter().product()
    }

    pub(super) fn columns(self) -> u64 {
        self.facts().columns
    }

    /// Rows of A and of B that a CTA loads for a k-block: what it needs, less what others of the cluster load for it.
    pub(super) fn parts(self) -> [u64; 2] {
        self.facts().parts()
    }

    /// CTA-sized tiles of an `[m, n]` matrix, whole clusters.
    pub(super) fn count(self, m: u64, n: u64) -> u64 {
        self.facts().count(m, n)
    }

    /// The tile that is predicted to take least time on an H100; with equal times the one that multiplies less. `element_bytes` are what the
    /// epilogue reads and writes for each element of D, `quad` says whether there is a kernel with quad tiles.
    pub fn of(shape: Shape, element_bytes: u64, quad: bool) -> Tile {
        let best = TILES
            .iter()
            .filter(|t| quad || t.tile != Tile::Quad)
            .min_by_key(|t| {
                let Shape { m, n, batches, .. } = shape;
                let clocks = t.clocks(shape, element_bytes);
                let more = match t.tile {
                    Tile::Quad => clocks / QUAD_GAIN,
                    Tile::Wide | Tile::Square => 0,
                };
                (clocks + more, t.count(m, n) * batches * t.columns)
            });
        best.expect("there are tiles").tile
    }

    /// The tile for sums that are cut along k: the cuts fill the device, so only padding speaks against wide tiles.
    pub fn of_split(m: u64, n: u64) -> Tile {
        if m > ROWS && n > ROWS {
            Tile::Wide
        } else {
            Tile::Square
        }
    }

    /// Bytes that a product reads through L2: each tile its rows and columns, less what a cluster shares.
    pub fn l2_bytes(self, shape: Shape) -> u64 {
        let Shape { m, n, k, batches } = shape;
        let facts = self.facts();
        facts.count(m, n) * batches * k.div_ceil(BLOCK_K) * facts.block_bytes()
    }
}

impl TileFacts {
    /// CTA-sized tiles of an `[m, n]` matrix, whole clusters.
    fn count(&self, m: u64, n: u64) -> u64 {
        let [along_m, along_n] = self.cluster;
        m.div_ceil(ROWS * along_m) * along_m * n.div_ceil(self.columns * along_n) * along_n
    }

    fn parts(&self) -> [u64; 2] {
        let [along_m, along_n] = self.cluster;
        [ROWS / along_n, self.columns / along_m]
    }

    /// Bytes per k-block that a CTA asks of L2.
    fn block_bytes(&self) -> u64 {
        self.parts().iter().sum::<u64>() * 2 * BLOCK_K
    }

    /// Clocks that a product takes at least: in waves over the device, by tensor cores or L2, whichever is slower, and no less than memory
    /// takes for its operands and results.
    fn clocks(&self, shape: Shape, element_bytes: u64) -> u64 {
        let Shape { m, n, k, batches } = shape;
        let (blocks, elements) = (k.div_ceil(BLOCK_K), ROWS * self.columns);
        let products = blocks * 2 * BLOCK_K * elements / FLOPS_PER_CLOCK;
        let bytes = blocks * self.block_bytes() + elements * element_bytes;
        let wave = |ctas: u64| {
            let most = if ctas == 0 { 0 } else { products };
            most.max(ctas * bytes / L2_BYTES_PER_CLOCK)
        };
        let count = self.count(m, n) * batches;
        let waves = count / self.at_once * wave(self.at_once) + wave(count % self.at_once);
        let memory = batches * (2 * k * (m + n) + element_bytes * m * n) / HBM_BYTES_PER_CLOCK;
        waves.max(memory)
    }
}

/// Into how many parts to cut k so that an `[m, n]` product fills an H100: as many as there are multiprocessors per tile, but at
/// least 16 k-blocks each and at most 32 parts. Never leaves a part empty. A function of the shape alone: so the sums have the
/// same bits on every device.
pub fn splits(m: u64, n: u64, k: u64, batches: u64) -> u64 {
    let blocks = k.div_ceil(BLOCK_K);
    let each = blocks.div_ceil(most_splits(m, n, batches)).max(16);
    blocks.div_ceil(each)
}

/// The most that [`splits`] says for any `k`.
pub fn most_splits(m: u64, n: u64, batches: u64) -> u64 {
    let tiles = Tile::of_split(m, n).count(m, n) * batches;
    (MULTIPROCESSORS / tiles).clamp(1, 32)
}
