//! Tensor boxes against a reference that computes every element on its own.

use super::retire::load_box;
use super::tensor_box::{self, Coordinates};
use crate::exec::{AlignedBytes, SHARED_BASE};
use crate::tensor_map::{
    ElementType, Interleave, L2Promotion, MAX_RANK, OobFill, Swizzle, TensorMap,
};
use proptest::prelude::*;

const TYPES: [ElementType; 8] = [
    ElementType::U8,
    ElementType::U16,
    ElementType::S32,
    ElementType::U64,
    ElementType::F16,
    ElementType::Bf16,
    ElementType::F32,
    ElementType::F64,
];

/// A tensor in host memory, its map without an address, and where a box starts.
#[derive(Debug, Clone)]
struct Case {
    map: TensorMap,
    start: Coordinates,
    /// Shared offset of the box, in units of 128 bytes.
    place: u32,
}

fn swizzles() -> impl Strategy<Value = Swizzle> {
    prop_oneof![
        Just(Swizzle::None),
        Just(Swizzle::B32),
        Just(Swizzle::B64),
        Just(Swizzle::B128)
    ]
}

fn cases() -> impl Strategy<Value = Case> {
    let dims = prop::collection::vec((1u64..12, 1u32..6, 1u32..4, 0u64..3, -9i32..14), 4);
    (
        1usize..=5,
        0usize..TYPES.len(),
        swizzles(),
        any::<bool>(),
        (1u64..80, 1u32..9, -70i32..90),
        dims,
        0u32..9,
    )
        .prop_map(|(rank, ty, swizzle, nan, inner, outer, place)| {
            let element_type = TYPES[ty];
            let bytes = element_type.bytes();
            let chunk = (16 / bytes) as u32;
            let span = swizzle.span_bytes().unwrap_or(256) as u32;
            let mut map = TensorMap {
                element_type,
                rank,
                global_address: 0,
                dims: [1; MAX_RANK],
                strides: [0; MAX_RANK],
                box_dims: [1; MAX_RANK],
                element_strides: [1; MAX_RANK],
                interleave: Interleave::None,
                swizzle,
                l2_promotion: L2Promotion::None,
                oob_fill: if nan && element_type.is_float() {
                    OobFill::Nan
                } else {
                    OobFill::Zero
                },
                im2col: None,
            };
            let mut start = [0; MAX_RANK];
            map.strides[0] = bytes;
            map.dims[0] = inner.0;
            map.box_dims[0] = (chunk * inner.1).min(span / bytes as u32);
            start[0] = inner.2;
            let mut extent = (map.dims[0] * bytes).next_multiple_of(16);
            for d in 1..rank {
                let (dim, box_dim, step, padding, at) = outer[d - 1];
                map.dims[d] = dim;
                map.box_dims[d] = box_dim;
                map.element_strides[d] = step;
                map.strides[d] = extent + 16 * padding;
                extent = map.strides[d] * dim;
                start[d] = at;
            }
            Case { map, start, place }
        })
}

/// Backing bytes of the tensor: 16-aligned, every byte different from its neighbours.
fn tensor(map: &TensorMap) -> AlignedBytes {
    let bytes: u64 = (0..map.rank)
        .map(|d| (map.dims[d] - 1) * map.strides[d])
        .sum::<u64>()
        + map.element_type.bytes();
    let mut t = AlignedBytes::new(bytes as usize);
    for (i, b) in t.as_mut_slice().iter_mut().enumerate() {
        *b = (i as u32).wrapping_mul(2_654_435_761).to_be_bytes()[0];
    }
    t
}

/// Calls `f(address in shared memory, byte offset in the tensor or None)` for every element of the box.
fn elements(case: &Case, mut f: impl FnMut(u32, Option<usize>)) {
    let map = &case.map;
    let n = map.element_type.bytes() as u32;
    let counts: Vec<u32> = (0..MAX_RANK)
        .map(|d| if d < map.rank { map.copied(d) } else { 1 })
        .collect();
    let mut linear = SHARED_BASE + case.place * 128;
    for i4 in 0..counts[4] {
        for i3 in 0..counts[3] {
            for i2 in 0..counts[2] {
                for i1 in 0..counts[1] {
                    for i0 in 0..counts[0] {
                        let index = [i0, i1, i2, i3, i4];
                        let mut offset = Some(0i64);
                        for (d, &i) in index.iter().enumerate().take(map.rank) {
                            let step = if d == 0 { 1 } else { map.element_strides[d] };
                            let c = i64::from(case.start[d]) + i64::from(i * step);
                            offset = offset.filter(|_| c >= 0 && c < map.dims[d] as i64);
                            offset = offset.map(|o| o + c * map.strides[d] as i64);
                        }
                        let (line, chunk) = (linear / 128, linear / 16 % 8);
                        let bits = map.swizzle.span_bytes().map_or(0, |s| s as u32 / 16 - 1);
                        let chunk = chunk ^ (line & bits);
                        f(
                            line * 128 + chunk * 16 + linear % 16,
                            offset.map(|o| o as usize),
                        );
                        linear += n;
                    }
                }
            }
        }
    }
}

fn shared_bytes(case: &Case) -> usize {
    let bytes = case.map.box_bytes() as u32;
    (case.place * 128 + bytes).next_multiple_of(128) as usize
}

const UNTOUCHED: u8 = 0xa5;

fn check_load(case: &mut Case) {
    let source = tensor(&case.map);
    case.map.global_address = source.as_slice().as_ptr() as u64;
    let mut shared = AlignedBytes::new(shared_bytes(case));
    shared.as_mut_slice().fill(UNTOUCHED);
    let to = SHARED_BASE + case.place * 128;
    load_box(
        &case.map,
        &case.start,
        shared.as_mut_slice().as_mut_ptr(),
        to,
    )
    .unwrap();
    let n = case.map.element_type.bytes() as usize;
    let fill = tensor_box::fill_pattern(&case.map);
    let mut expected = vec![UNTOUCHED; shared.len()];
    elements(case, |at, from| {
        let at = (at - SHARED_BASE) as usize;
        let value = match from {
            Some(o) => &source.as_slice()[o..o + n],
            None => &fill[..n],
        };
        expected[at..at + n].copy_from_slice(value);
    });
    assert!(shared.as_slice() == expected, "{case:?}");
}

/// The rows of the box name exactly the bytes of the tensor that the elements do.
fn check_rows(case: &mut Case) {
    let source = tensor(&case.map);
    case.map.global_address = source.as_slice().as_ptr() as u64;
    let n = case.map.element_type.bytes() as usize;
    let mut expected = Vec::new();
    elements(case, |_, from| {
        expected.extend((0..n).map(|k| from.map(|o| o + k)));
    });
    let mut got = vec![None; case.map.box_bytes() as usize];
    let mut limits: Option<(u64, u64)> = None;
    tensor_box::rows(&case.map, &case.start, |r| {
        for k in 0..r.bytes {
            got[(r.offset + r.skip + k) as usize] =
                Some((r.address - case.map.global_address) as usize + k as usize);
        }
        if r.bytes > 0 {
            let (low, high) = limits.unwrap_or((u64::MAX, 0));
            limits = Some((low.min(r.address), high.max(r.address + u64::from(r.bytes))));
        }
        Ok(())
    })
    .unwrap();
    assert!(got == expected, "{case:?}");
    assert_eq!(
        tensor_box::extent(&case.map, &case.start),
        limits,
        "{case:?}"
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn a_load_equals_the_reference(mut case in cases()) {
        check_load(&mut case);
    }

    #[test]
    fn rows_and_extent_equal_the_reference(mut case in cases()) {
        check_rows(&mut case);
    }
}

#[test]
fn swizzle_permutes_chunks_within_its_span() {
    for (mode, span) in [(Swizzle::B32, 32), (Swizzle::B64, 64), (Swizzle::B128, 128)] {
        for line in 0..16u32 {
            for chunk in 0..8 {
                let a = line * 128 + chunk * 16;
                let b = tensor_box::swizzle(a, mode);
                assert_eq!(a / span, b / span, "{mode:?} {a:#x}");
                assert_eq!(tensor_box::swizzle(b, mode), a);
            }
        }
    }
    // ISA: 128-byte swizzle: row r of a 1024-aligned tile has chunk c at c ^ r.
    assert_eq!(
        tensor_box::swizzle(0x400 + 3 * 128 + 2 * 16, Swizzle::B128),
        0x400 + 3 * 128 + 16
    );
    assert_eq!(tensor_box::swizzle(0x400, Swizzle::None), 0x400);
}

#[test]
fn conversions_of_a_load() {
    let convert = |e, x: u32| {
        let mut b = x.to_le_bytes();
        tensor_box::convert(e, &mut b);
        u32::from_le_bytes(b)
    };
    assert_eq!(convert(ElementType::F32Ftz, 0x8000_0001), 0x8000_0000);
    assert_eq!(convert(ElementType::F32Ftz, 0x0080_0001), 0x0080_0001);
    assert_eq!(convert(ElementType::Tf32, 0x3f80_1000), 0x3f80_0000);
    assert_eq!(convert(ElementType::Tf32, 0x3f80_3000), 0x3f80_4000);
    assert_eq!(convert(ElementType::Tf32, 0x7f80_0001), 0x7f80_0001);
    assert!(!tensor_box::converts(ElementType::F32) && tensor_box::converts(ElementType::Tf32Ftz));
}
