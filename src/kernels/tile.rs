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
        TILES
            .iter()
            .find(|facts| !facts.suffix.is_empty() && entry.ends_with(facts.suffix))
            .map_or(Tile::Square, |facts| facts.tile)
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

/// How the sum over k is cut into parts, each a partial sum of its own. A function of the shape alone, so that the sums have the same bits on
/// every device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cut {
    /// Parts of every tile.
    pub parts: u64,
    /// k-blocks of each but the last, which has what is left.
    pub blocks: u64,
    /// Tiles whose last parts a cluster computes one after the other: as much work as another part.
    pub together: u64,
}

/// Most parts, and fewest k-blocks of one that is not the last: a partial sum is written and read again.
const MOST_PARTS: u64 = 32;
const FEWEST_BLOCKS: u64 = 16;
/// Clusters that would be idle are only worth one more partial sum if the product gets faster by more than this part of its time: the sum of
/// 1024 x 512 f32 costs as much memory traffic as 1 % of its product.
const DEAL_GAIN: u64 = 40;

impl Cut {
    /// All parts of about the same length. The number of parts is what comes of that: never is one empty.
    pub fn even(k: u64, parts: u64) -> Cut {
        let all = k.div_ceil(BLOCK_K);
        Cut::into(all, all.div_ceil(parts))
    }

    /// `all` k-blocks into parts of so many.
    fn into(all: u64, blocks: u64) -> Cut {
        Cut {
            parts: all.div_ceil(blocks),
            blocks,
            together: 1,
        }
    }

    /// The cut with which an `[m, n]` product fills an H100: a cluster for each part of each tile, and where that leaves clusters over, a last part for
    /// them, short enough that a few tiles' last parts are as much work as one other part.
    pub fn of(m: u64, n: u64, k: u64, batches: u64) -> Cut {
        let all = k.div_ceil(BLOCK_K);
        let room = Room::of(m, n, batches);
        let even = Cut::into(all, all.div_ceil(room.parts).max(FEWEST_BLOCKS));
        let dealt = room.together.map(|together| {
            let blocks = (all * together).div_ceil(room.parts * together + 1);
            Cut {
                parts: room.parts + 1,
                blocks,
                together,
            }
        });
        let pays = |cut: &Cut| {
            cut.blocks >= FEWEST_BLOCKS
                && room.parts * cut.blocks < all
                && cut.blocks + even.blocks / DEAL_GAIN < even.blocks
        };
        dealt.filter(pays).unwrap_or(even)
    }

    /// The most parts that [`Cut::of`] makes for any `k`.
    pub fn most_parts(m: u64, n: u64, batches: u64) -> u64 {
        let room = Room::of(m, n, batches);
        room.parts + u64::from(room.together.is_some())
    }
}

/// What an H100 has for the tiles of a product.
struct Room {
    /// Clusters for each tile.
    parts: u64,
    /// Tiles for each cluster that is left over, if there are any.
    together: Option<u64>,
}

impl Room {
    fn of(m: u64, n: u64, batches: u64) -> Room {
        let tile = Tile::of_split(m, n);
        let clusters = MULTIPROCESSORS / tile.cluster();
        let tiles = tile.count(m, n) / tile.cluster() * batches;
        let parts = clusters / tiles;
        let over = clusters % tiles;
        Room {
            parts: parts.clamp(1, MOST_PARTS),
            together: (over > 0 && (1..MOST_PARTS).contains(&parts)).then(|| tiles.div_ceil(over)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of the recipes' weight gradients.
    #[test]
    fn cuts_of_the_recipes() {
        let cut = |m, n| {
            let Cut {
                parts,
                blocks,
                together,
            } = Cut::of(m, n, 98_304, 1);
            (parts, blocks, together)
        };
        // 12 tiles, 66 clusters: 60 have 280 k-blocks, six have twice 136.
        assert_eq!(cut(1536, 512), (6, 280, 2));
        assert_eq!(cut(512, 1536), (6, 280, 2));
        // 8 tiles: 64 have 187, two have four times 40.
        assert_eq!(cut(1024, 512), (9, 187, 4));
        // 4 tiles, 64 of 66 clusters at work: a seventeenth sum would cost more than it gains.
        assert_eq!(cut(512, 512), (16, 96, 1));
    }

    #[test]
    fn no_part_is_empty_and_no_hand_is_longer_than_a_part() {
        let sides = [8, 64, 128, 200, 256, 512, 520, 1024, 1040, 1536, 2048, 4096];
        for (m, n) in sides.iter().flat_map(|&m| sides.map(|n| (m, n))) {
            for (k, batches) in [
                (8, 1),
                (64, 3),
                (1000, 1),
                (4096, 2),
                (20_000, 1),
                (98_304, 1),
                (786_432, 1),
            ] {
                let cut = Cut::of(m, n, k, batches);
                let what = format!("{batches} x {m} x {n} x {k}: {cut:?}");
                let all = k.div_ceil(BLOCK_K);
                let before = (cut.parts - 1) * cut.blocks;
                assert!(before < all && all <= cut.parts * cut.blocks, "{what}");
                assert!(cut.together * (all - before) <= cut.blocks, "{what}");
                assert!(cut.parts <= Cut::most_parts(m, n, batches), "{what}");
                assert!(cut.parts <= MOST_PARTS, "{what}");
                assert!(cut.parts == 1 || cut.blocks >= FEWEST_BLOCKS, "{what}");
            }
        }
    }
}
