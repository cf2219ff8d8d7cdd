//! One cell of shadow memory for as many bytes as possible.
//!
//! Memory is divided into granules of 8 KiB, 1 KiB, 128 bytes (a warp's coalesced access, a row of an operand), 32 bytes (what a wgmma
//! reads of a row), 16 bytes (a chunk of a swizzle, a row of ldmatrix) and 4 bytes. A granule has one cell for all its bytes until an access covers only a part of it; then each
//! of its parts gets a copy, and so on down. An access that leaves all parts alike (a write of the whole) makes them one again. So a bulk
//! copy of 8 KiB or a store of a warp costs a cell or two, and what is remembered of every word is the same as with a cell for each.

/// What lies below a granule, or a cell.
pub(super) trait Part<C: Copy>: Sized {
    const BYTES: u64;
    fn new(cell: C) -> Self;
    /// One cell for all of it.
    fn unite(&mut self, cell: C);
    /// The cell of the first bytes.
    fn first(&self) -> C;
    /// Calls `f(cell, address, bytes)` for all of the part, which starts at `at`. `UNITE`: all cells are alike afterwards.
    fn whole<const UNITE: bool>(&mut self, at: u64, f: &mut impl FnMut(&mut C, u64, u64));
    /// The same for the bytes from `from` to `to`, some of which are of this part. A cell for 4 bytes may be given fewer.
    fn some<const UNITE: bool>(
        &mut self,
        at: u64,
        from: u64,
        to: u64,
        f: &mut impl FnMut(&mut C, u64, u64),
    );
}

/// The cell of four bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Word<C>(C);

impl<C: Copy> Part<C> for Word<C> {
    const BYTES: u64 = 4;

    fn new(cell: C) -> Self {
        Word(cell)
    }

    #[inline(always)]
    fn unite(&mut self, cell: C) {
        self.0 = cell;
    }

    #[inline(always)]
    fn first(&self) -> C {
        self.0
    }

    #[inline(always)]
    fn whole<const UNITE: bool>(&mut self, at: u64, f: &mut impl FnMut(&mut C, u64, u64)) {
        f(&mut self.0, at, 4);
    }

    #[inline(always)]
    fn some<const UNITE: bool>(
        &mut self,
        at: u64,
        from: u64,
        to: u64,
        f: &mut impl FnMut(&mut C, u64, u64),
    ) {
        let start = at.max(from);
        f(&mut self.0, start, (at + 4).min(to) - start);
    }
}

/// A granule of `N` parts.
#[derive(Debug)]
pub(super) struct Granule<C, P, const N: usize> {
    all: C,
    divided: bool,
    /// Kept when the parts are one again: most are divided in the same way soon.
    parts: Option<Box<[P; N]>>,
}

impl<C: Copy, P: Part<C>, const N: usize> Granule<C, P, N> {
    #[inline(always)]
    fn divide(&mut self) -> &mut [P; N] {
        let all = self.all;
        if !self.divided {
            self.divided = true;
            match &mut self.parts {
                Some(parts) => parts.iter_mut().for_each(|p| p.unite(all)),
                None => self.parts = Some(Box::new(std::array::from_fn(|_| P::new(all)))),
            }
        }
        self.parts
            .get_or_insert_with(|| Box::new(std::array::from_fn(|_| P::new(all))))
    }
}

impl<C: Copy, P: Part<C>, const N: usize> Part<C> for Granule<C, P, N> {
    const BYTES: u64 = P::BYTES * N as u64;

    fn new(cell: C) -> Self {
        Granule {
            all: cell,
            divided: false,
            parts: None,
        }
    }

    #[inline(always)]
    fn unite(&mut self, cell: C) {
        self.all = cell;
        self.divided = false;
    }

    #[inline(always)]
    fn first(&self) -> C {
        match &self.parts {
            Some(parts) if self.divided => parts[0].first(),
            _ => self.all,
        }
    }

    #[inline]
    fn whole<const UNITE: bool>(&mut self, at: u64, f: &mut impl FnMut(&mut C, u64, u64)) {
        if !self.divided {
            f(&mut self.all, at, Self::BYTES);
            return;
        }
        for (i, p) in self.divide().iter_mut().enumerate() {
            p.whole::<UNITE>(at + i as u64 * P::BYTES, f);
        }
        if UNITE {
            self.all = self.first();
            self.divided = false;
        }
    }

    #[inline]
    fn some<const UNITE: bool>(
        &mut self,
        at: u64,
        from: u64,
        to: u64,
        f: &mut impl FnMut(&mut C, u64, u64),
    ) {
        if from <= at && to >= at + Self::BYTES {
            return self.whole::<UNITE>(at, f);
        }
        let first = (from.max(at) - at) / P::BYTES;
        let last = (to.min(at + Self::BYTES) - at).div_ceil(P::BYTES);
        for (i, p) in (first..last).zip(&mut self.divide()[first as usize..last as usize]) {
            p.some::<UNITE>(at + i * P::BYTES, from, to, f);
        }
    }
}

type Chunk<C> = Granule<C, Word<C>, 4>;
type Sector<C> = Granule<C, Chunk<C>, 2>;
type Line<C> = Granule<C, Sector<C>, 4>;
type Kibibyte<C> = Granule<C, Line<C>, 8>;
/// The largest granule.
pub(super) type Page<C> = Granule<C, Kibibyte<C>, 8>;

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(page: &mut Page<u32>, from: u64, to: u64) -> Vec<(u32, u64, u64)> {
        let mut all = vec![];
        page.some::<false>(0, from, to, &mut |c, at, bytes| all.push((*c, at, bytes)));
        all
    }

    #[test]
    fn a_whole_granule_is_one_cell_and_a_part_divides_it() {
        let mut p = Page::new(1);
        assert_eq!(ranges(&mut p, 0, 8192), [(1, 0, 8192)]);
        p.some::<true>(0, 130, 132, &mut |c, at, bytes| {
            assert_eq!((at, bytes), (130, 2));
            *c = 7;
        });
        // 1 KiB, lines, sectors, a chunk and words around it, the same values elsewhere.
        let all = ranges(&mut p, 0, 8192);
        assert_eq!(
            all[..4],
            [(1, 0, 128), (7, 128, 4), (1, 132, 4), (1, 136, 4)]
        );
        assert_eq!(all.iter().map(|r| r.2).sum::<u64>(), 8192);
        assert_eq!(all.iter().filter(|r| r.0 == 7).count(), 1);
        assert_eq!(all.len(), 4 + 1 + 3 + 7 + 7);
    }

    #[test]
    fn a_write_of_the_whole_makes_it_one_again() {
        let mut p = Page::new(0);
        for word in 0..2048 {
            p.some::<true>(0, 4 * word, 4 * word + 4, &mut |c, _, _| *c = word as u32);
        }
        assert_eq!(ranges(&mut p, 0, 8192).len(), 2048);
        p.some::<true>(0, 1024, 3072, &mut |c, _, _| *c = 5);
        let all = ranges(&mut p, 1024, 3072);
        assert_eq!(all, [(5, 1024, 1024), (5, 2048, 1024)]);
        p.some::<true>(0, 0, 8192, &mut |c, _, _| *c = 6);
        assert_eq!(ranges(&mut p, 0, 8192), [(6, 0, 8192)]);
        assert_eq!(ranges(&mut p, 8, 12), [(6, 8, 4)]);
        assert_eq!(
            ranges(&mut p, 0, 16),
            [(6, 0, 4), (6, 4, 4), (6, 8, 4), (6, 12, 4)]
        );
    }
}
