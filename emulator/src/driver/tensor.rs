//! Tensor maps, as `cuTensorMapEncodeTiled` and `cuTensorMapEncodeIm2col` make them.

use super::copy::read;
use super::error::{Code, Outcome};
use super::state;
use crate::tensor_map::{EncodeParams, Im2colParams, MAX_RANK, TENSOR_MAP_ALIGN, TENSOR_MAP_BYTES};

/// Checks the place for a map.
fn check_place(map: *const [u8; TENSOR_MAP_BYTES]) -> Outcome {
    if map.is_null() || !(map as u64).is_multiple_of(TENSOR_MAP_ALIGN) {
        return Code::INVALID_VALUE.fail(format!(
            "the tensor map at {map:p} is not aligned to 64 bytes"
        ));
    }
    Ok(())
}

#[allow(clippy::too_many_arguments)]
pub unsafe fn encode_tiled(
    map: *mut [u8; TENSOR_MAP_BYTES],
    element_type: u32,
    rank: u32,
    address: u64,
    dims: *const u64,
    strides: *const u64,
    box_dims: *const u32,
    element_strides: *const u32,
    interleave: u32,
    swizzle: u32,
    l2_promotion: u32,
    oob_fill: u32,
) -> Outcome {
    // A map can be encoded without a current context, but not before cuInit.
    drop(state::lock()?);
    check_place(map)?;
    let n = rank as usize;
    if n == 0 || n > MAX_RANK {
        return Code::INVALID_VALUE
            .fail(format!("cuTensorMapEncodeTiled: rank {rank} is not 1..=5"));
    }
    let list = [
        dims.is_null(),
        strides.is_null() && n > 1,
        box_dims.is_null(),
        element_strides.is_null(),
    ];
    if list.contains(&true) {
        return Code::INVALID_VALUE.fail("cuTensorMapEncodeTiled: an array is a null pointer");
    }
    // SAFETY: checked not to be null; the arrays have the lengths that the rank asks for by the caller's promise.
    let params = unsafe {
        EncodeParams {
            element_type,
            rank,
            global_address: address,
            dims: std::slice::from_raw_parts(dims, n),
            strides: if n > 1 {
                std::slice::from_raw_parts(strides, n - 1)
            } else {
                &[]
            },
            box_dims: std::slice::from_raw_parts(box_dims, n),
            element_strides: std::slice::from_raw_parts(element_strides, n),
            interleave,
            swizzle,
            l2_promotion,
            oob_fill,
        }
    };
    let encoded = params
        .validate()
        .map_err(|why| Code::INVALID_VALUE.because(format!("cuTensorMapEncodeTiled: {why}")))?
        .encode();
    // SAFETY: checked not to be null, and aligned.
    unsafe { *map = encoded };
    Ok(())
}

#[allow(clippy::too_many_arguments)]
pub unsafe fn encode_im2col(
    map: *mut [u8; TENSOR_MAP_BYTES],
    element_type: u32,
    rank: u32,
    address: u64,
    dims: *const u64,
    strides: *const u64,
    lower: *const i32,
    upper: *const i32,
    channels: u32,
    pixels: u32,
    element_strides: *const u32,
    interleave: u32,
    swizzle: u32,
    l2_promotion: u32,
    oob_fill: u32,
) -> Outcome {
    drop(state::lock()?);
    check_place(map)?;
    let name = "cuTensorMapEncodeIm2col";
    let n = rank as usize;
    if !(3..=MAX_RANK).contains(&n) {
        return Code::INVALID_VALUE.fail(format!("{name}: rank {rank} is not 3..=5"));
    }
    let arrays = [
        dims.is_null(),
        strides.is_null(),
        lower.is_null(),
        upper.is_null(),
        element_strides.is_null(),
    ];
    if arrays.contains(&true) {
        return Code::INVALID_VALUE.fail(format!("{name}: an array is a null pointer"));
    }
    // SAFETY: checked not to be null; the arrays have the lengths that the rank asks for by the caller's promise.
    let params = unsafe {
        Im2colParams {
            tiled: EncodeParams {
                element_type,
                rank,
                global_address: address,
                dims: std::slice::from_raw_parts(dims, n),
                strides: std::slice::from_raw_parts(strides, n - 1),
                box_dims: &[],
                element_strides: std::slice::from_raw_parts(element_strides, n),
                interleave,
                swizzle,
                l2_promotion,
                oob_fill,
            },
            lower: std::slice::from_raw_parts(lower, n - 2),
            upper: std::slice::from_raw_parts(upper, n - 2),
            channels,
            pixels,
        }
    };
    let encoded = params
        .validate()
        .map_err(|why| Code::INVALID_VALUE.because(format!("{name}: {why}")))?
        .encode();
    // SAFETY: checked not to be null, and aligned.
    unsafe { *map = encoded };
    Ok(())
}

pub unsafe fn replace_address(map: *mut [u8; TENSOR_MAP_BYTES], address: u64) -> Outcome {
    drop(state::lock()?);
    check_place(map)?;
    if !address.is_multiple_of(16) {
        return Code::INVALID_VALUE.fail(format!("{address:#x} is not aligned to 16 bytes"));
    }
    // SAFETY: checked not to be null.
    let mut bytes = unsafe { read(map) }?;
    let edit = crate::tensor_map::FieldEdit::GlobalAddress(address);
    crate::tensor_map::TensorMap::replace_field(&mut bytes, edit)
        .map_err(|why| Code::INVALID_VALUE.because(why))?;
    // SAFETY: as above.
    unsafe { *map = bytes };
    Ok(())
}
