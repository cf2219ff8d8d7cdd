//! im2col copies of images with one, two and three dimensions: the examples of the PTX ISA ("im2col mode"), filters with padding, steps and
//! dilation, columns that go on into the next image and beyond the last, and stores. What is expected is enumerated position by position.
mod common;
use birdie_emulator::device::{LaunchError, Policy};
use birdie_emulator::tensor_map::{EncodeParams, Im2colParams, TensorMap};
use common::*;

/// Images of `size` (W, H, D as many as there are), `count` of them, with `channels` 16-bit channels.
struct Case {
    size: Vec<u64>,
    count: u64,
    channels: u64,
    lower: Vec<i32>,
    upper: Vec<i32>,
    steps: Vec<u32>,
    pixels: u32,
    per_pixel: u32,
    /// Elements are floats, and what is outside is OOB-NaN.
    nan: bool,
}

impl Case {
    fn rank(&self) -> usize {
        self.size.len() + 2
    }

    fn dims(&self) -> Vec<u64> {
        let inner = std::iter::once(self.channels);
        inner.chain(self.size.clone()).chain([self.count]).collect()
    }

    fn map(&self, address: u64) -> TensorMap {
        let dims = self.dims();
        let strides: Vec<u64> = (1..dims.len())
            .map(|d| 2 * dims[..d].iter().product::<u64>())
            .collect();
        let element_strides: Vec<u32> = [1]
            .into_iter()
            .chain(self.steps.clone())
            .chain([1])
            .collect();
        Im2colParams {
            tiled: EncodeParams {
                element_type: if self.nan { 6 } else { 1 },
                rank: self.rank() as u32,
                global_address: address,
                dims: &dims,
                strides: &strides,
                box_dims: &[],
                element_strides: &element_strides,
                interleave: 0,
                swizzle: 0,
                l2_promotion: 0,
                oob_fill: u32::from(self.nan),
            },
            lower: &self.lower,
            upper: &self.upper,
            channels: self.per_pixel,
            pixels: self.pixels,
        }
        .validate()
        .unwrap()
    }

    /// Every element of the tensor in memory order; none is 0.
    fn tensor(&self) -> Vec<u16> {
        let n = self.dims().iter().product::<u64>();
        (0..n).map(|i| (i % 65521) as u16 + 1).collect()
    }

    /// Index of an element, if it is inside.
    fn index(&self, at: &[i64]) -> Option<usize> {
        let dims = self.dims();
        let inside = at
            .iter()
            .zip(&dims)
            .all(|(c, d)| (0..*d as i64).contains(c));
        let index =
            |(i, stride): (i64, i64), (c, d): (&i64, &u64)| (i + c * stride, stride * *d as i64);
        inside.then(|| at.iter().zip(&dims).fold((0, 1), index).0 as usize)
    }

    /// The filter's positions (W, H, D, image) of a column that begins at `first`: W runs fastest, and after the last position of an
    /// image comes the first of the next.
    fn column(&self, first: &[i64]) -> Vec<Vec<i64>> {
        let axes: Vec<Vec<i64>> = (0..self.size.len())
            .map(|d| {
                let end = self.size[d] as i64 - 1 + i64::from(self.upper[d]);
                (i64::from(self.lower[d])..=end)
                    .step_by(self.steps[d] as usize)
                    .collect()
            })
            .chain([(0..self.count as i64 + i64::from(self.pixels)).collect()])
            .collect();
        let mut all: Vec<Vec<i64>> = vec![vec![]];
        for axis in axes.iter().rev() {
            all = all
                .into_iter()
                .flat_map(|rest| axis.iter().map(move |&c| [vec![c], rest.clone()].concat()))
                .collect();
        }
        let from = all.iter().position(|p| p == first);
        let from = from.expect("the corner of the filter lies in the bounding box");
        all[from..from + self.pixels as usize].to_vec()
    }

    /// Index in the tensor of each element of the column, row by row.
    fn elements(&self, channel: i64, first: &[i64], offsets: &[u16]) -> Vec<Option<usize>> {
        let mut out = vec![];
        for p in self.column(first) {
            for c in 0..i64::from(self.per_pixel) {
                let mut at = vec![channel + c];
                at.extend(
                    p.iter()
                        .zip(offsets.iter().chain(std::iter::repeat(&0)))
                        .map(|(p, o)| p + i64::from(*o)),
                );
                out.push(self.index(&at));
            }
        }
        out
    }

    fn coordinates(&self, channel: i64, first: &[i64]) -> (String, String) {
        let all = [vec![channel], first.to_vec()].concat();
        let set = all
            .iter()
            .enumerate()
            .map(|(i, c)| format!("mov.b32 %c{i},{c};"));
        let names: Vec<_> = (0..all.len()).map(|i| format!("%c{i}")).collect();
        (set.collect(), names.join(","))
    }

    fn load(&self, channel: i64, first: &[i64], offsets: &[u16]) {
        let tensor = self.tensor();
        let got = self.loaded(channel, first, offsets).unwrap();
        for (i, e) in self.elements(channel, first, offsets).iter().enumerate() {
            let outside = if self.nan { 0x7ff7 } else { 0 };
            let want = e.map_or(outside, |e| tensor[e]);
            let (pixel, c) = (i / self.per_pixel as usize, i % self.per_pixel as usize);
            assert_eq!(
                got[i], want,
                "{first:?} + {offsets:?}: pixel {pixel} channel {c}"
            );
        }
    }

    /// What a load writes.
    fn loaded(
        &self,
        channel: i64,
        first: &[i64],
        offsets: &[u16],
    ) -> Result<Vec<u16>, LaunchError> {
        let d = device(3, Policy::Random);
        let tensor = self.tensor();
        let map = self.map(upload(&d, &tensor));
        let (set, names) = self.coordinates(channel, first);
        let bytes = map.box_bytes();
        let rank = self.rank();
        let list: Vec<_> = (0..offsets.len()).map(|i| format!("%h{i}")).collect();
        let moves = offsets
            .iter()
            .enumerate()
            .map(|(i, o)| format!("mov.b16 %h{i},{o};"));
        let text = format!(
            ".version 8.6\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .align 64 .b8 map[128], .param .u64 out) {{
             .reg .b32 %r<10>,%c<5>; .reg .b64 %d<5>; .reg .b16 %h<3>; .reg .pred %p; .shared .align 8 .b64 bar; .shared .align 128 .b8 tile[{bytes}];
             mov.b64 %d1,map; cvta.param.u64 %d1,%d1; ld.param.u64 %d2,[out]; mov.u32 %r1,tile; mov.u32 %r2,bar;
             mbarrier.init.shared::cta.b64 [%r2],1; fence.mbarrier_init.release.cluster;
             mbarrier.arrive.expect_tx.shared::cta.b64 _,[%r2],{bytes}; {set} {}
             cp.async.bulk.tensor.{rank}d.shared::cta.global.im2col.mbarrier::complete_tx::bytes [%r1],[%d1,{{{names}}}],[%r2],{{{}}};
             W: mbarrier.try_wait.parity.shared::cta.b64 %p,[%r2],0; @!%p bra W;
             mov.b32 %r7,0; L: add.u32 %r8,%r1,%r7; ld.shared.b32 %r9,[%r8]; cvt.u64.u32 %d3,%r7; add.u64 %d3,%d3,%d2;
             st.global.b32 [%d3],%r9; add.u32 %r7,%r7,4; setp.lt.u32 %p,%r7,{bytes}; @%p bra L; ret; }}",
            moves.collect::<String>(),
            list.join(",")
        );
        let out = upload(&d, &vec![0xffffu16; bytes as usize / 2]);
        let params = Params(map.encode().to_vec()).u64(out);
        launch(&d, &module(&d, &text), "k", config(1, 1), &params)?;
        Ok(download(&d, out, bytes as usize / 2))
    }

    /// Stores a column of known values into a tensor of zeros.
    fn store(&self, channel: i64, first: &[i64]) {
        let d = device(3, Policy::Random);
        let n = self.tensor().len();
        let address = upload(&d, &vec![0u16; n]);
        let map = self.map(address);
        let (set, names) = self.coordinates(channel, first);
        let (bytes, rank) = (map.box_bytes(), self.rank());
        let text = format!(
            ".version 8.6\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .align 64 .b8 map[128]) {{
             .reg .b32 %r<10>,%c<5>; .reg .b64 %d<5>; .reg .pred %p; .shared .align 128 .b8 tile[{bytes}];
             mov.b64 %d1,map; cvta.param.u64 %d1,%d1; mov.u32 %r1,tile; {set} mov.b32 %r7,0;
             L: add.u32 %r8,%r1,%r7; shr.u32 %r9,%r7,1; mad.lo.u32 %r9,%r9,0x10001,0x20001; st.shared.b32 [%r8],%r9; add.u32 %r7,%r7,4;
             setp.lt.u32 %p,%r7,{bytes}; @%p bra L; fence.proxy.async.shared::cta;
             cp.async.bulk.tensor.{rank}d.global.shared::cta.im2col_no_offs.bulk_group [%d1,{{{names}}}],[%r1];
             cp.async.bulk.commit_group; cp.async.bulk.wait_group 0; ret; }}"
        );
        launch(
            &d,
            &module(&d, &text),
            "k",
            config(1, 1),
            &Params(map.encode().to_vec()),
        )
        .unwrap();
        let got: Vec<u16> = download(&d, address, n);
        let mut want = vec![0u16; n];
        for (i, e) in self.elements(channel, first, &[]).iter().enumerate() {
            if let Some(e) = e {
                want[*e] = i as u16 + 1;
            }
        }
        assert!(got == want, "rank {rank}, store from {first:?}");
    }
}

fn case(size: &[u64], lower: &[i32], upper: &[i32], steps: &[u32], count: u64) -> Case {
    Case {
        size: size.to_vec(),
        count,
        channels: 24,
        lower: lower.to_vec(),
        upper: upper.to_vec(),
        steps: steps.to_vec(),
        pixels: 37,
        per_pixel: 16,
        nan: false,
    }
}

/// The three examples of the ISA's section; it writes coordinates as N, H, W, C.
#[test]
fn examples_of_the_isa() {
    let of = |w: u64, lower, upper, step, pixels, per_pixel| Case {
        size: vec![w, 14],
        count: 9,
        channels: 64,
        lower: vec![lower; 2],
        upper: vec![upper; 2],
        steps: vec![step; 2],
        pixels,
        per_pixel,
        nan: false,
    };
    of(9, -1, -1, 1, 64, 8).load(0, &[4, 7, 7], &[0, 0]);
    of(9, 0, -2, 1, 64, 8).load(0, &[4, 7, 7], &[2, 2]);
    of(8, -1, -1, 2, 32, 16).load(0, &[5, 7, 7], &[1, 1]);
}

#[test]
fn one_dimension() {
    for (lower, upper, step) in [(-2, -2, 1), (0, -4, 2), (-3, 3, 3)] {
        let c = case(&[19], &[lower], &[upper], &[step], 3);
        let first = i64::from(lower) + 2 * i64::from(step);
        for offset in [0, 1, 4] {
            c.load(0, &[i64::from(lower), 0], &[offset]);
            c.load(8, &[first, 1], &[offset]);
            // The last image: the column reaches beyond it.
            c.load(16, &[first, 2], &[offset]);
        }
    }
}

#[test]
fn two_dimensions_with_different_corners_and_steps() {
    // A mix-up of W and H would show everywhere.
    let c = case(&[7, 5], &[-2, -1], &[-2, 0], &[1, 2], 2);
    for offsets in [[0, 0], [3, 0], [0, 2], [4, 1]] {
        c.load(0, &[-2, -1, 0], &offsets);
        c.load(8, &[1, 3, 0], &offsets);
        c.load(0, &[0, 1, 1], &offsets);
    }
}

#[test]
fn what_lies_outside_of_floats_can_be_a_special_nan() {
    let mut c = case(&[7, 5], &[-2, -1], &[-2, 0], &[1, 1], 1);
    c.nan = true;
    c.load(16, &[-2, -1, 0], &[1, 0]);
}

#[test]
fn three_dimensions() {
    let c = case(&[5, 4, 3], &[-1, 0, -2], &[-1, -1, 0], &[1, 1, 2], 2);
    for offsets in [[0, 0, 0], [2, 0, 0], [0, 1, 0], [0, 0, 2], [2, 1, 1]] {
        c.load(0, &[-1, 0, -2, 0], &offsets);
        c.load(8, &[2, 1, 0, 0], &offsets);
        c.load(16, &[3, 2, 2, 1], &offsets);
    }
}

#[test]
fn the_filter_stands_in_the_bounding_box_and_offsets_fit() {
    let c = case(&[7, 5], &[-2, -1], &[-2, 0], &[1, 2], 2);
    c.load(0, &[4, -1, 0], &[255, 255]);
    let found = |first: &[i64], offsets: &[u16]| {
        let e = c.loaded(0, first, offsets).unwrap_err();
        format!("{e:?}")
    };
    assert!(
        found(&[5, -1, 0], &[0, 0])
            .contains("coordinate 1 of an im2col copy is 5; the bounding box has -2..=4 there")
    );
    assert!(
        found(&[-2, -2, 0], &[0, 0])
            .contains("coordinate 2 of an im2col copy is -2; the bounding box has -1..=4 there")
    );
    assert!(
        found(&[0, 0, 0], &[0, 256])
            .contains("offset 256 of an im2col copy of rank 4 is not 0..=255")
    );
}

#[test]
fn stores_have_no_offsets() {
    case(&[19], &[0], &[-1], &[1], 3).store(8, &[4, 1]);
    case(&[7, 5], &[1, 0], &[0, -1], &[1, 1], 2).store(0, &[2, 1, 0]);
    // Beyond the last image nothing is written, nor outside of an image.
    case(&[7, 5], &[-1, 0], &[1, 0], &[1, 1], 2).store(8, &[5, 4, 1]);
    case(&[5, 4, 3], &[0, 1, 0], &[0, 0, -1], &[2, 1, 1], 2).store(16, &[2, 1, 0, 0]);
}
