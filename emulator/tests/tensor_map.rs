//! Tensor maps: the driver's rules one by one, the round trip through the 128 bytes, edits as
//! `tensormap.replace` makes them, and arbitrary bytes.

use birdie_emulator::tensor_map::{
    ElementType, EncodeParams, FieldEdit, Interleave, OobFill, Swizzle, TENSOR_MAP_BYTES, TensorMap,
};
use proptest::prelude::*;

/// A legal 2-D bf16 map: 256 x 128 elements, box 64 x 64, swizzle 128 B.
const LEGAL: EncodeParams<'static> = EncodeParams {
    element_type: ElementType::Bf16 as u32,
    rank: 2,
    global_address: 0x1000,
    dims: &[128, 256],
    strides: &[256],
    box_dims: &[64, 64],
    element_strides: &[1, 1],
    interleave: 0,
    swizzle: 3,
    l2_promotion: 2,
    oob_fill: 0,
};

fn reason(params: EncodeParams) -> String {
    params
        .validate()
        .expect_err("the map should have been refused")
}

#[test]
fn legal_map_round_trips() {
    let map = LEGAL.validate().unwrap();
    assert_eq!(map.box_bytes(), 64 * 64 * 2);
    assert_eq!(map.strides, [2, 256, 0, 0, 0]);
    assert_eq!(TensorMap::decode(&map.encode()).unwrap(), map);
}

#[test]
fn each_rule_of_the_driver_is_applied() {
    let cases: Vec<(EncodeParams, &str)> = vec![
        (EncodeParams { rank: 0, ..LEGAL }, "rank 0"),
        (EncodeParams { rank: 6, ..LEGAL }, "rank 6"),
        (
            EncodeParams {
                element_type: 13,
                ..LEGAL
            },
            "data type 13",
        ),
        (
            EncodeParams {
                global_address: 0x1008,
                ..LEGAL
            },
            "aligned to 16",
        ),
        (
            EncodeParams {
                dims: &[0, 256],
                ..LEGAL
            },
            "globalDim[0]",
        ),
        (
            EncodeParams {
                dims: &[128, (1 << 32) + 1],
                ..LEGAL
            },
            "globalDim[1]",
        ),
        (
            EncodeParams {
                strides: &[250],
                ..LEGAL
            },
            "globalStrides[0]",
        ),
        (
            EncodeParams {
                strides: &[1 << 40],
                ..LEGAL
            },
            "globalStrides[0]",
        ),
        (
            EncodeParams {
                box_dims: &[0, 64],
                ..LEGAL
            },
            "boxDim[0]",
        ),
        (
            EncodeParams {
                box_dims: &[64, 257],
                ..LEGAL
            },
            "boxDim[1]",
        ),
        (
            EncodeParams {
                box_dims: &[4, 64],
                ..LEGAL
            },
            "multiple of 16",
        ),
        (
            EncodeParams {
                box_dims: &[72, 64],
                ..LEGAL
            },
            "more than the 128",
        ),
        (
            EncodeParams {
                element_strides: &[1, 0],
                ..LEGAL
            },
            "elementStrides[1]",
        ),
        (
            EncodeParams {
                element_strides: &[1, 9],
                ..LEGAL
            },
            "elementStrides[1]",
        ),
        (
            EncodeParams {
                interleave: 3,
                ..LEGAL
            },
            "interleave 3",
        ),
        (
            EncodeParams {
                interleave: 1,
                ..LEGAL
            },
            "at least 3",
        ),
        (
            EncodeParams {
                swizzle: 4,
                ..LEGAL
            },
            "swizzle 4",
        ),
        (
            EncodeParams {
                swizzle: 1,
                ..LEGAL
            },
            "more than the 32",
        ),
        (
            EncodeParams {
                l2_promotion: 4,
                ..LEGAL
            },
            "L2 promotion 4",
        ),
        (
            EncodeParams {
                oob_fill: 2,
                ..LEGAL
            },
            "fill 2",
        ),
        (
            EncodeParams {
                oob_fill: 1,
                element_type: 1,
                ..LEGAL
            },
            "NaN fill",
        ),
    ];
    for (params, expected) in cases {
        let why = reason(params);
        assert!(why.contains(expected), "{why:?} does not say {expected:?}");
    }
    let interleaved = EncodeParams {
        rank: 3,
        dims: &[16, 8, 8],
        strides: &[512, 4096],
        box_dims: &[16, 8, 8],
        element_strides: &[1, 1, 1],
        interleave: 2,
        swizzle: 1,
        ..LEGAL
    };
    assert_eq!(interleaved.validate().unwrap().interleave, Interleave::B32);
    let misaligned = EncodeParams {
        global_address: 0x1010,
        ..interleaved
    };
    assert!(reason(misaligned).contains("aligned to 32"));
    assert!(
        reason(EncodeParams {
            swizzle: 0,
            ..interleaved
        })
        .contains("requires swizzle 32B")
    );
    assert!(
        reason(EncodeParams {
            strides: &[528, 4096],
            ..interleaved
        })
        .contains("multiple of 32")
    );
}

#[test]
fn element_strides_thin_the_box_except_along_dimension_zero() {
    let map = EncodeParams {
        element_strides: &[4, 3],
        ..LEGAL
    }
    .validate()
    .unwrap();
    assert_eq!((map.copied(0), map.copied(1)), (64, 22));
}

#[test]
fn a_zeroed_map_can_be_built_field_by_field() {
    let mut bytes = [0u8; TENSOR_MAP_BYTES];
    assert!(
        TensorMap::decode(&bytes).is_err(),
        "an empty box is unusable"
    );
    let edits = [
        FieldEdit::GlobalAddress(0x1000),
        FieldEdit::RankMinusOne(1),
        FieldEdit::BoxDim {
            ordinal: 0,
            value: 64,
        },
        FieldEdit::BoxDim {
            ordinal: 1,
            value: 64,
        },
        FieldEdit::GlobalDim {
            ordinal: 0,
            value: 128,
        },
        FieldEdit::GlobalDim {
            ordinal: 1,
            value: 256,
        },
        FieldEdit::GlobalStride {
            ordinal: 0,
            bytes: 256,
        },
        FieldEdit::ElementStride {
            ordinal: 0,
            value: 1,
        },
        FieldEdit::ElementStride {
            ordinal: 1,
            value: 1,
        },
        FieldEdit::ElementType(10),
        FieldEdit::Interleave(0),
        FieldEdit::SwizzleMode(3),
        FieldEdit::FillMode(1),
    ];
    for edit in edits {
        TensorMap::replace_field(&mut bytes, edit).unwrap();
    }
    let map = TensorMap::decode(&bytes).unwrap();
    assert_eq!(map.element_type, ElementType::Bf16);
    assert_eq!(map.swizzle, Swizzle::B128);
    assert_eq!(map.oob_fill, OobFill::Nan);
    assert_eq!(map.dims[..2], [128, 256]);
}

#[test]
fn edits_out_of_range_are_refused() {
    let mut bytes = LEGAL.validate().unwrap().encode();
    for edit in [
        FieldEdit::RankMinusOne(5),
        FieldEdit::BoxDim {
            ordinal: 5,
            value: 1,
        },
        FieldEdit::GlobalDim {
            ordinal: 5,
            value: 1,
        },
        FieldEdit::GlobalStride {
            ordinal: 4,
            bytes: 16,
        },
        FieldEdit::ElementStride {
            ordinal: 5,
            value: 1,
        },
        FieldEdit::ElementType(13),
    ] {
        assert!(
            TensorMap::replace_field(&mut bytes, edit).is_err(),
            "{edit:?}"
        );
    }
    TensorMap::replace_field(
        &mut bytes,
        FieldEdit::BoxDim {
            ordinal: 0,
            value: 70_000,
        },
    )
    .unwrap();
    assert!(TensorMap::decode(&bytes).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_driver_accepts_survives_the_round_trip(
        element_type in 0u32..15,
        rank in 0u32..7,
        address in prop_oneof![Just(0u64), 0u64..1 << 20, (0u64..1 << 16).prop_map(|x| x * 32)],
        dims in prop::collection::vec(prop_oneof![0u64..600, Just(1 << 32), any::<u64>()], 6),
        strides in prop::collection::vec(prop_oneof![(0u64..1 << 16).prop_map(|x| x * 32), any::<u64>()], 5),
        boxes in prop::collection::vec(prop_oneof![(0u32..33).prop_map(|x| x * 8), any::<u32>()], 6),
        steps in prop::collection::vec(0u32..10, 6),
        interleave in 0u32..4,
        swizzle in 0u32..8,
        l2_promotion in 0u32..5,
        oob_fill in 0u32..3,
    ) {
        let n = (rank as usize).min(5);
        let params = EncodeParams {
            element_type,
            rank,
            global_address: address,
            dims: &dims[..n],
            strides: &strides[..n.saturating_sub(1)],
            box_dims: &boxes[..n],
            element_strides: &steps[..n],
            interleave,
            swizzle,
            l2_promotion,
            oob_fill,
        };
        match params.validate() {
            Ok(map) => prop_assert_eq!(TensorMap::decode(&map.encode()), Ok(map)),
            Err(reason) => prop_assert!(!reason.is_empty() && !reason.contains('\n')),
        }
    }

    #[test]
    fn arbitrary_bytes_decode_or_say_why(bytes in prop::collection::vec(any::<u8>(), TENSOR_MAP_BYTES)) {
        let mut map = [0u8; TENSOR_MAP_BYTES];
        map.copy_from_slice(&bytes);
        if let Err(reason) = TensorMap::decode(&map) {
            prop_assert!(reason.starts_with("tensor map: "));
        }
    }
}
