//! cuTensorMapEncodeTiled as a C function; its rules are tested in `tests/tensor_map.rs`.

use birdie_emulator::tensor_map::{Swizzle, TENSOR_MAP_BYTES, TensorMap};

use crate::refused;
use crate::setup::{Context, INVALID_VALUE, alloc, ffi};

#[repr(align(64))]
struct Place([u8; 2 * TENSOR_MAP_BYTES]);

#[test]
fn a_map_is_encoded_or_refused() {
    let _context = Context::new();
    let address = alloc(256 * 256);
    let mut place = Place([0; 2 * TENSOR_MAP_BYTES]);
    let mut encode = |offset: usize, address: u64, rank: u32, inner_box: u32, null: bool| {
        let (dims, strides, boxes, steps) = ([128u64, 256], [256u64], [inner_box, 64], [1u32, 1]);
        let map = place.0[offset..]
            .as_mut_ptr()
            .cast::<[u8; TENSOR_MAP_BYTES]>();
        let boxes = if null {
            std::ptr::null()
        } else {
            boxes.as_ptr()
        };
        // SAFETY: the arrays have two elements, and the place has room for a map at each offset used.
        let code = unsafe {
            ffi::cuTensorMapEncodeTiled(
                map,
                9,
                rank,
                address,
                dims.as_ptr(),
                strides.as_ptr(),
                boxes,
                steps.as_ptr(),
                0,
                3,
                2,
                0,
            )
        };
        let mut bytes = [0; TENSOR_MAP_BYTES];
        bytes.copy_from_slice(&place.0[offset..offset + TENSOR_MAP_BYTES]);
        (code, TensorMap::decode(&bytes))
    };
    let (code, map) = encode(0, address, 2, 64, false);
    assert_eq!(code, 0);
    let map = map.unwrap();
    assert_eq!((map.global_address, map.swizzle), (address, Swizzle::B128));
    assert_eq!(
        encode(32, address, 2, 64, false).0,
        INVALID_VALUE,
        "place not aligned to 64"
    );
    assert_eq!(encode(0, address + 8, 2, 64, false).0, INVALID_VALUE);
    assert_eq!(encode(0, address, 2, 65, false).0, INVALID_VALUE);
    assert_eq!(encode(0, address, 9, 64, false).0, INVALID_VALUE);
    assert_eq!(encode(0, address, 2, 64, true).0, INVALID_VALUE);
    refused!(
        INVALID_VALUE,
        cuTensorMapReplaceAddress(std::ptr::null_mut(), address)
    );
}
