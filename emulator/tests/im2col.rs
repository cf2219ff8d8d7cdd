//! Tensor copies in im2col mode through whole kernels, against the convolution's own indices; and the rules of cuTensorMapEncodeIm2col.
mod common;
use birdie_emulator::device::Policy;
use birdie_emulator::tensor_map::{EncodeParams, Im2colParams, TensorMap};
use common::*;

/// Images N x H x W x C of 16-bit elements, and a filter's walk over them.
struct Images {
    dims: [u64; 4],
    lower: [i32; 2],
    upper: [i32; 2],
    steps: [u32; 2],
}

const PIXELS: u32 = 32;
const CHANNELS: u32 = 16;

impl Images {
    fn map(&self, address: u64, swizzle: u32) -> Result<TensorMap, String> {
        let [c, w, h, _] = self.dims;
        let [sw, sh] = self.steps;
        Im2colParams {
            tiled: EncodeParams {
                element_type: 1,
                rank: 4,
                global_address: address,
                dims: &self.dims,
                strides: &[2 * c, 2 * c * w, 2 * c * w * h],
                box_dims: &[],
                element_strides: &[1, sw, sh, 1],
                interleave: 0,
                swizzle,
                l2_promotion: 0,
                oob_fill: 0,
            },
            lower: &self.lower,
            upper: &self.upper,
            channels: CHANNELS,
            pixels: PIXELS,
        }
        .validate()
    }

    fn value(&self, [c, w, h, n]: [i64; 4]) -> u16 {
        let inside = [c, w, h, n]
            .iter()
            .zip(self.dims)
            .all(|(i, d)| (0..d as i64).contains(i));
        if inside {
            (1 + c + 16 * (w + 8 * (h + 8 * n))) as u16
        } else {
            0
        }
    }

    /// The pixels (w, h, n) of a column: every position of the bounding box in turn, from one on.
    fn column(&self, first: [i64; 3]) -> Vec<[i64; 3]> {
        let axis = |d: usize| {
            let end = self.dims[d + 1] as i64 + i64::from(self.upper[d]);
            (i64::from(self.lower[d])..end).step_by(self.steps[d] as usize)
        };
        (0..self.dims[3] as i64 + 9)
            .flat_map(|n| axis(1).flat_map(move |h| axis(0).map(move |w| [w, h, n])))
            .skip_while(|p| *p != first)
            .take(PIXELS as usize)
            .collect()
    }
}

fn run(images: &Images, swizzle: u32, [c, w, h, n]: [i32; 4], offsets: [u16; 2]) -> Vec<u16> {
    let d = device(0, Policy::Random);
    let [dc, dw, dh, dn] = images.dims.map(|d| d as i64);
    let mut tensor = vec![];
    for at in 0..dn * dh * dw * dc {
        let (pixel, c) = (at / dc, at % dc);
        tensor.push(images.value([c, pixel % dw, pixel / dw % dh, pixel / dw / dh]));
    }
    let map = images.map(upload(&d, &tensor), swizzle).unwrap();
    let bytes = map.box_bytes();
    assert_eq!(bytes, u64::from(2 * PIXELS * CHANNELS));
    let text = format!(
        ".version 8.6\n.target sm_90a\n.address_size 64\n
         .visible .entry k(.param .align 64 .b8 map[128], .param .u64 out) {{
         .reg .b32 %r<10>; .reg .b64 %d<5>; .reg .b16 %h<2>; .reg .pred %p; .shared .align 8 .b64 bar; .shared .align 1024 .b8 tile[{bytes}];
         mov.b64 %d1,map; cvta.param.u64 %d1,%d1; ld.param.u64 %d2,[out]; mov.u32 %r1,tile; mov.u32 %r2,bar;
         mbarrier.init.shared::cta.b64 [%r2],1; fence.mbarrier_init.release.cluster;
         mbarrier.arrive.expect_tx.shared::cta.b64 _,[%r2],{bytes};
         mov.b32 %r3,{c}; mov.b32 %r4,{w}; mov.b32 %r5,{h}; mov.b32 %r6,{n}; mov.b16 %h0,{}; mov.b16 %h1,{};
         cp.async.bulk.prefetch.tensor.4d.L2.global.im2col [%d1,{{%r3,%r4,%r5,%r6}}],{{%h0,%h1}};
         cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%r1],[%d1,{{%r3,%r4,%r5,%r6}}],[%r2],{{%h0,%h1}};
         W: mbarrier.try_wait.parity.shared::cta.b64 %p,[%r2],0; @!%p bra W;
         mov.b32 %r7,0; L: add.u32 %r8,%r1,%r7; ld.shared.b32 %r9,[%r8]; cvt.u64.u32 %d3,%r7; add.u64 %d3,%d3,%d2;
         st.global.b32 [%d3],%r9; add.u32 %r7,%r7,4; setp.lt.u32 %p,%r7,{bytes}; @%p bra L; ret; }}",
        offsets[0], offsets[1]
    );
    let out = upload(&d, &vec![0u16; bytes as usize / 2]);
    let params = Params(map.encode().to_vec()).u64(out);
    launch(&d, &module(&d, &text), "k", config(1, 1), &params).unwrap();
    download(&d, out, bytes as usize / 2)
}

#[test]
fn a_column_is_what_the_filter_meets_at_consecutive_positions() {
    // A 3 x 3 filter with padding 1, and one with steps of 2 and no padding; both reach beyond the last image.
    let padded = Images {
        dims: [32, 5, 4, 2],
        lower: [-1, -1],
        upper: [-1, -1],
        steps: [1, 1],
    };
    let stepped = Images {
        dims: [32, 7, 8, 3],
        lower: [0, 0],
        upper: [-2, -2],
        steps: [2, 2],
    };
    for images in [&padded, &stepped] {
        let every = images.column([i64::from(images.lower[0]), i64::from(images.lower[1]), 0]);
        for first in [every[0], every[3], every[11]] {
            for offsets in [[0u16, 0], [1, 2], [2, 1]] {
                for (c, swizzle) in [(0, 0), (16, 1), (24, 0)] {
                    let start = [c, first[0] as i32, first[1] as i32, first[2] as i32];
                    let got = run(images, swizzle, start, offsets);
                    for (p, at) in images.column(first).iter().enumerate() {
                        for channel in 0..CHANNELS as usize {
                            let want = images.value([
                                c as i64 + channel as i64,
                                at[0] + i64::from(offsets[0]),
                                at[1] + i64::from(offsets[1]),
                                at[2],
                            ]);
                            // The 32-byte swizzle exchanges the halves of a row where bit 7 of the address is set.
                            let byte = 32 * p + 2 * channel;
                            let byte = byte ^ if swizzle == 1 { byte >> 3 & 16 } else { 0 };
                            assert_eq!(got[byte / 2], want, "{start:?} {offsets:?} pixel {p}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn rules_of_the_driver() {
    let good = Images {
        dims: [32, 5, 4, 2],
        lower: [-1, -1],
        upper: [-1, -1],
        steps: [1, 1],
    };
    let map = good.map(4096, 0).unwrap();
    assert_eq!(TensorMap::decode(&map.encode()), Ok(map));
    let bad = |change: &dyn Fn(&mut Images)| {
        let mut images = Images { ..good };
        change(&mut images);
        images.map(4096, 0).unwrap_err()
    };
    assert!(bad(&|i| i.lower[0] = -129).contains("pixelBoxLowerCorner[0]"));
    assert!(bad(&|i| i.upper[1] = 128).contains("pixelBoxUpperCorner[1]"));
    assert!(bad(&|i| i.lower[1] = 5).contains("is empty"));
    assert!(bad(&|i| i.steps[0] = 9).contains("elementStrides[1]"));
    let params = |rank: usize, channels, pixels| {
        let full = Im2colParams {
            tiled: EncodeParams {
                element_type: 6,
                rank: rank as u32,
                global_address: 64,
                dims: &[64; 5][..rank],
                strides: &[128; 4][..rank - 1],
                box_dims: &[],
                element_strides: &[1; 5][..rank],
                interleave: 0,
                swizzle: 3,
                l2_promotion: 0,
                oob_fill: 0,
            },
            lower: &[0; 3][..rank.max(2) - 2],
            upper: &[0; 3][..rank.max(2) - 2],
            channels,
            pixels,
        };
        full.validate().map(drop)
    };
    assert_eq!(params(3, 64, 1024), Ok(()));
    assert_eq!(params(5, 64, 1), Ok(()));
    assert!(params(2, 64, 8).unwrap_err().contains("rank 2"));
    assert!(params(4, 0, 8).unwrap_err().contains("channelsPerPixel"));
    assert!(params(4, 257, 8).unwrap_err().contains("channelsPerPixel"));
    assert!(params(4, 64, 1025).unwrap_err().contains("pixelsPerColumn"));
    assert!(params(4, 72, 8).unwrap_err().contains("swizzle"));
}

#[test]
fn modes_of_copy_and_map_must_agree() {
    let images = Images {
        dims: [32, 5, 4, 2],
        lower: [0, 0],
        upper: [0, 0],
        steps: [1, 1],
    };
    let d = device(0, Policy::Eager);
    let map = images.map(upload(&d, &[0u16; 32 * 5 * 4 * 2]), 0).unwrap();
    let text = ".version 8.6\n.target sm_90a\n.address_size 64\n.visible .entry k(.param .align 64 .b8 map[128]) {
        .reg .b64 %d; .reg .b32 %r<2>; .shared .align 128 .b8 tile[1024]; mov.b64 %d,map; cvta.param.u64 %d,%d; mov.u32 %r1,tile; mov.b32 %r0,0;
        cp.async.bulk.tensor.4d.global.shared::cta.tile.bulk_group [%d,{%r0,%r0,%r0,%r0}],[%r1]; ret; }";
    let params = Params(map.encode().to_vec());
    let e = launch(&d, &module(&d, text), "k", config(1, 1), &params).unwrap_err();
    assert!(
        format!("{e:?}").contains("a tiled copy with an im2col tensor map"),
        "{e:?}"
    );
}
