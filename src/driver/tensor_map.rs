//! Tensor maps: the descriptions of tensors that TMA copies are steered by.
//!
//! Dimensions are innermost first, as everywhere with TMA: a row-major `(rows, columns)` matrix has dims `[columns, rows]`.

use anyhow::{Result, ensure};

use super::bindings::{
    self, CUtensorMap, CUtensorMapDataType_enum as DataType, CUtensorMapFloatOOBfill_enum as Fill,
    CUtensorMapInterleave_enum as Interleave, CUtensorMapL2promotion_enum as L2Promotion,
    CUtensorMapSwizzle_enum as RawSwizzle,
};
use super::check;

/// Element types that birdie's tensors have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Element {
    U8,
    Bf16,
    F16,
    F32,
    I32,
}

impl Element {
    /// Size in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            Element::U8 => 1,
            Element::Bf16 | Element::F16 => 2,
            Element::F32 | Element::I32 => 4,
        }
    }

    fn raw(self) -> DataType {
        match self {
            Element::U8 => DataType::CU_TENSOR_MAP_DATA_TYPE_UINT8,
            Element::Bf16 => DataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            Element::F16 => DataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            Element::F32 => DataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT32,
            Element::I32 => DataType::CU_TENSOR_MAP_DATA_TYPE_INT32,
        }
    }
}

/// How 16-byte chunks of a row are permuted in shared memory; the inner box may not be wider than the span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    None,
    B32,
    B64,
    B128,
}

impl Swizzle {
    fn raw(self) -> RawSwizzle {
        match self {
            Swizzle::None => RawSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
            Swizzle::B32 => RawSwizzle::CU_TENSOR_MAP_SWIZZLE_32B,
            Swizzle::B64 => RawSwizzle::CU_TENSOR_MAP_SWIZZLE_64B,
            Swizzle::B128 => RawSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
        }
    }
}

/// An encoded map, to be passed by value as a `const __grid_constant__ CUtensorMap` parameter.
#[derive(Clone, Copy)]
#[repr(transparent)]
pub struct TensorMap(CUtensorMap);

impl std::fmt::Debug for TensorMap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TensorMap")
    }
}

/// What a map describes.
#[derive(Clone, Copy, Debug)]
pub struct Tiled<'a> {
    pub element: Element,
    /// Device address, aligned to 16 bytes.
    pub address: u64,
    /// Elements per dimension, innermost first; 1 to 5 dimensions.
    pub dims: &'a [u64],
    /// Bytes from one index to the next, for each dimension but the innermost (which is dense); multiples of 16.
    pub strides: &'a [u64],
    /// Elements per copy and dimension, at most 256 each.
    pub box_dims: &'a [u32],
    pub swizzle: Swizzle,
}

impl TensorMap {
    /// Encodes a map. `what` names the tensor in errors.
    pub fn tiled(what: &str, tensor: &Tiled) -> Result<TensorMap> {
        let rank = tensor.dims.len();
        ensure!(
            (1..=5).contains(&rank)
                && tensor.strides.len() == rank - 1
                && tensor.box_dims.len() == rank,
            "tensor map of {what}: {rank} dims, {} strides and {} box sizes do not fit together",
            tensor.strides.len(),
            tensor.box_dims.len()
        );
        let mut map = CUtensorMap { opaque: [0; 16] };
        let steps = [1u32; 5];
        // SAFETY: the arrays have the lengths that the rank asks for; the map is aligned by its type.
        let result = unsafe {
            bindings::cuTensorMapEncodeTiled(
                &mut map,
                tensor.element.raw(),
                rank as u32,
                tensor.address as *mut _,
                tensor.dims.as_ptr(),
                tensor.strides.as_ptr(),
                tensor.box_dims.as_ptr(),
                steps.as_ptr(),
                Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                tensor.swizzle.raw(),
                L2Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        };
        check(result, || {
            format!(
                "tensor map of {what} (address {:#x}, dims {:?}, strides {:?} B, box {:?}, swizzle {:?})",
                tensor.address, tensor.dims, tensor.strides, tensor.box_dims, tensor.swizzle
            )
        })?;
        Ok(TensorMap(map))
    }

    /// A map of a dense row-major matrix with `rows` x `columns` elements and rows `pitch` elements apart.
    pub fn matrix(
        what: &str,
        element: Element,
        address: u64,
        [rows, columns]: [u64; 2],
        pitch: u64,
        [box_rows, box_columns]: [u32; 2],
        swizzle: Swizzle,
    ) -> Result<TensorMap> {
        TensorMap::tiled(
            what,
            &Tiled {
                element,
                address,
                dims: &[columns, rows],
                strides: &[pitch * element.bytes()],
                box_dims: &[box_columns, box_rows],
                swizzle,
            },
        )
    }
}
