//! Tensor maps: the 128 bytes that describe a tensor to the TMA unit.
//!
//! `CUtensorMap` is opaque on real hardware. A program may only create one with
//! `cuTensorMapEncodeTiled`, edit single fields with `tensormap.replace`, copy the 128 bytes, and
//! hand their address to a tensor copy. So the emulator is free to choose its own format, as long
//! as two things hold that programs rely on:
//!
//! * 128 zero bytes are a valid *starting point*: Triton zero-fills a map in shared memory and sets
//!   every field with `tensormap.replace`. So there is no magic number, and absent fields read as 0.
//! * every field of `tensormap.replace` can be edited alone, in place, in any order.
//!
//! The format, little-endian:
//!
//! | bytes | field |
//! |---|---|
//! | 0..8 | global address |
//! | 8..48 | dims, 5 x u64, elements, innermost first |
//! | 48..80 | strides of dims 1..5, 4 x u64, bytes |
//! | 80..90 | box, 5 x u16, elements |
//! | 90..95 | element strides, 5 x u8 |
//! | 95 | rank - 1 |
//! | 96 | element type (code of `CUtensorMapDataType`) |
//! | 97 | interleave |
//! | 98 | swizzle mode (0 none, 1 = 32 B, 2 = 64 B, 3 = 128 B) |
//! | 99 | swizzle atomicity (0 = 16 B; others exist from sm_100 on) |
//! | 100 | L2 promotion |
//! | 101 | out-of-bounds fill (0 zero, 1 NaN) |
//! | 102..104 | pixels of a column of an im2col map; 0: a tiled map |
//! | 104..110, 110..116 | lower and upper corner of its bounding box, 3 x i16 each, innermost first |
//! | 116..128 | zero |
//!
//! Two validations are kept apart. [`EncodeParams::validate`] has every rule that the driver applies when a
//! map is created on the host. [`TensorMap::decode`] has only what a tensor copy needs to be
//! meaningful, because a map edited on the device never passes the driver's rules; it reports what a
//! real TMA unit would answer with an illegal-instruction fault.
//!
//! What is not here: the packed 4- and 6-bit types, 32/64-byte swizzle atoms and wide im2col maps of
//! sm_100, which sm_90 rejects.

/// Bytes of an encoded map.
pub const TENSOR_MAP_BYTES: usize = 128;

/// Alignment that the driver and the TMA unit ask of an encoded map.
pub const TENSOR_MAP_ALIGN: u64 = 64;

/// Largest rank of a tensor map.
pub const MAX_RANK: usize = 5;

const OFFSET_DIMS: usize = 8;
const OFFSET_STRIDES: usize = 48;
const OFFSET_BOX: usize = 80;
const OFFSET_ELEMENT_STRIDES: usize = 90;
const OFFSET_RANK: usize = 95;
const OFFSET_ELEMENT_TYPE: usize = 96;
const OFFSET_INTERLEAVE: usize = 97;
const OFFSET_SWIZZLE: usize = 98;
const OFFSET_ATOMICITY: usize = 99;
const OFFSET_L2_PROMOTION: usize = 100;
const OFFSET_OOB_FILL: usize = 101;
const OFFSET_PIXELS: usize = 102;
const OFFSET_CORNERS: usize = 104;

/// `CUtensorMapDataType`, in the driver's numbering.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ElementType {
    U8 = 0,
    U16,
    U32,
    S32,
    U64,
    S64,
    F16,
    F32,
    F64,
    Bf16,
    F32Ftz,
    Tf32,
    Tf32Ftz,
}

impl ElementType {
    const ALL: [ElementType; 13] = [
        ElementType::U8,
        ElementType::U16,
        ElementType::U32,
        ElementType::S32,
        ElementType::U64,
        ElementType::S64,
        ElementType::F16,
        ElementType::F32,
        ElementType::F64,
        ElementType::Bf16,
        ElementType::F32Ftz,
        ElementType::Tf32,
        ElementType::Tf32Ftz,
    ];

    /// From the driver's numbering; `None` for the packed types of sm_100 and for unknown codes.
    pub fn from_driver(code: u32) -> Option<Self> {
        Self::ALL.get(code as usize).copied()
    }

    /// From the numbering of `tensormap.replace.elemtype`, which differs from the driver's.
    pub fn from_ptx(code: u32) -> Option<Self> {
        // ISA: tensormap.replace, table of .elemtype values (8 .f32.ftz, 9 .f64, 10 .bf16).
        match code {
            0..=7 => Self::from_driver(code),
            8 => Some(ElementType::F32Ftz),
            9 => Some(ElementType::F64),
            10 => Some(ElementType::Bf16),
            11 => Some(ElementType::Tf32),
            12 => Some(ElementType::Tf32Ftz),
            _ => None,
        }
    }

    /// Size of one element in bytes.
    pub fn bytes(self) -> u64 {
        match self {
            ElementType::U8 => 1,
            ElementType::U16 | ElementType::F16 | ElementType::Bf16 => 2,
            ElementType::U32
            | ElementType::S32
            | ElementType::F32
            | ElementType::F32Ftz
            | ElementType::Tf32
            | ElementType::Tf32Ftz => 4,
            ElementType::U64 | ElementType::S64 | ElementType::F64 => 8,
        }
    }

    /// Whether NaN fill is meaningful for the type.
    pub fn is_float(self) -> bool {
        matches!(
            self,
            ElementType::F16
                | ElementType::F32
                | ElementType::F64
                | ElementType::Bf16
                | ElementType::F32Ftz
                | ElementType::Tf32
                | ElementType::Tf32Ftz
        )
    }
}

/// `CUtensorMapInterleave`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Interleave {
    None = 0,
    B16,
    B32,
}

impl Interleave {
    /// From the numbering shared by the driver and `tensormap.replace.interleave_layout`.
    pub fn from_code(code: u32) -> Option<Self> {
        [Interleave::None, Interleave::B16, Interleave::B32]
            .get(code as usize)
            .copied()
    }
}

/// The swizzles of sm_90: 16-byte chunks permuted within 32, 64 or 128 bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Swizzle {
    None = 0,
    B32,
    B64,
    B128,
}

impl Swizzle {
    /// From the numbering shared by `CUtensorMapSwizzle` and `tensormap.replace.swizzle_mode`.
    /// NOTE: a wgmma matrix descriptor numbers them the other way round (1 = 128 B, 3 = 32 B).
    pub fn from_code(code: u32) -> Option<Self> {
        [Swizzle::None, Swizzle::B32, Swizzle::B64, Swizzle::B128]
            .get(code as usize)
            .copied()
    }

    /// Bytes of the span within which chunks move; the largest inner box a map may have.
    /// `None` without a swizzle.
    pub fn span_bytes(self) -> Option<u64> {
        match self {
            Swizzle::None => None,
            Swizzle::B32 => Some(32),
            Swizzle::B64 => Some(64),
            Swizzle::B128 => Some(128),
        }
    }
}

/// `CUtensorMapL2promotion`. A hint: it changes no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum L2Promotion {
    None = 0,
    B64,
    B128,
    B256,
}

impl L2Promotion {
    /// From `CUtensorMapL2promotion`.
    pub fn from_code(code: u32) -> Option<Self> {
        [
            L2Promotion::None,
            L2Promotion::B64,
            L2Promotion::B128,
            L2Promotion::B256,
        ]
        .get(code as usize)
        .copied()
    }
}

/// Every 16 bits of an element outside of the tensor with NaN fill. NVIDIA documents only that it is a special one; this is what others
/// have measured on devices. Arithmetic gives 0x7fff for its NaNs, so that `fma.oob` can tell the two apart.
pub const OOB_NAN: u16 = 0x7ff7;

/// `CUtensorMapFloatOOBfill`: what a load writes for elements outside the tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum OobFill {
    Zero = 0,
    Nan,
}

impl OobFill {
    /// From the numbering shared by the driver and `tensormap.replace.fill_mode`.
    pub fn from_code(code: u32) -> Option<Self> {
        [OobFill::Zero, OobFill::Nan].get(code as usize).copied()
    }
}

/// One field that `tensormap.replace` can edit, with its new value as the instruction gives it.
///
/// `global_stride` is in bytes here. NOTE: before PTX ISA 8.5 the instruction took the stride
/// shifted right by 4; the caller, who knows the module's `.version`, undoes that.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldEdit {
    GlobalAddress(u64),
    /// The instruction's value: rank - 1.
    RankMinusOne(u32),
    BoxDim {
        ordinal: u32,
        value: u32,
    },
    GlobalDim {
        ordinal: u32,
        value: u32,
    },
    /// Stride of dimension `ordinal + 1`, bytes.
    GlobalStride {
        ordinal: u32,
        bytes: u64,
    },
    ElementStride {
        ordinal: u32,
        value: u32,
    },
    /// In the numbering of PTX (see [`ElementType::from_ptx`]).
    ElementType(u32),
    Interleave(u32),
    SwizzleMode(u32),
    SwizzleAtomicity(u32),
    FillMode(u32),
}

/// What an im2col map has instead of a box's outer dimensions. Its copies move `pixels` rows of
/// `box_dims[0]` channels: they walk through a bounding box in the image dimensions (1 to rank - 2,
/// innermost first) in steps of the element strides, then on to the next image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Im2col {
    pub pixels: u32,
    /// First coordinate of the bounding box, and its last one counted from the last of the dimension.
    pub lower: [i32; 3],
    pub upper: [i32; 3],
    /// Added to every pixel's coordinates: the filter's position, an operand of the copy.
    pub offsets: [u16; 3],
}

/// A decoded tensor map. Dimensions are innermost first; entries from `rank` on are 1 (dims, box,
/// element strides) or 0 (strides).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TensorMap {
    pub element_type: ElementType,
    /// 1..=5.
    pub rank: usize,
    pub global_address: u64,
    /// Elements. 0 can occur after an edit on the device (an empty group): every access is then out
    /// of bounds.
    pub dims: [u64; MAX_RANK],
    /// Bytes. `strides[0]` is the element size.
    pub strides: [u64; MAX_RANK],
    /// Elements traversed per copy. With an element stride s, `ceil(box / s)` are copied.
    pub box_dims: [u32; MAX_RANK],
    pub element_strides: [u32; MAX_RANK],
    pub interleave: Interleave,
    pub swizzle: Swizzle,
    pub l2_promotion: L2Promotion,
    pub oob_fill: OobFill,
    pub im2col: Option<Im2col>,
}

impl TensorMap {
    /// Elements that one copy moves along `dim`: the box divided by the element stride, rounded up.
    /// NOTE: without interleave, TMA ignores the element stride of dimension 0.
    pub fn copied(&self, dim: usize) -> u32 {
        self.box_dims[dim].div_ceil(self.effective_element_stride(dim))
    }

    /// Element stride that applies along `dim`.
    pub fn effective_element_stride(&self, dim: usize) -> u32 {
        if dim == 0 && self.interleave == Interleave::None {
            1
        } else {
            self.element_strides[dim]
        }
    }

    /// Bytes that one copy of the full box writes to shared memory, out-of-bounds elements included:
    /// what `expect_tx` must announce.
    pub fn box_bytes(&self) -> u64 {
        let elements = match &self.im2col {
            Some(i) => u64::from(i.pixels) * u64::from(self.copied(0)),
            None => (0..self.rank).map(|d| u64::from(self.copied(d))).product(),
        };
        elements * self.element_type.bytes()
    }

    /// The 128 bytes of the map.
    pub fn encode(&self) -> [u8; TENSOR_MAP_BYTES] {
        let mut out = [0u8; TENSOR_MAP_BYTES];
        put_u64(&mut out, 0, self.global_address);
        for d in 0..MAX_RANK {
            put_u64(&mut out, OFFSET_DIMS + 8 * d, self.dims[d]);
            if d > 0 {
                put_u64(&mut out, OFFSET_STRIDES + 8 * (d - 1), self.strides[d]);
            }
            put_u16(&mut out, OFFSET_BOX + 2 * d, self.box_dims[d]);
            out[OFFSET_ELEMENT_STRIDES + d] = saturate_u8(self.element_strides[d]);
        }
        out[OFFSET_RANK] = saturate_u8(self.rank as u32 - 1);
        out[OFFSET_ELEMENT_TYPE] = self.element_type as u8;
        out[OFFSET_INTERLEAVE] = self.interleave as u8;
        out[OFFSET_SWIZZLE] = self.swizzle as u8;
        out[OFFSET_L2_PROMOTION] = self.l2_promotion as u8;
        out[OFFSET_OOB_FILL] = self.oob_fill as u8;
        if let Some(i) = &self.im2col {
            put_u16(&mut out, OFFSET_PIXELS, i.pixels);
            for (n, corner) in i.lower.iter().chain(&i.upper).enumerate() {
                let at = OFFSET_CORNERS + 2 * n;
                out[at..at + 2].copy_from_slice(&(*corner as i16).to_le_bytes());
            }
        }
        out
    }

    /// Reads a map as a tensor copy sees it. The error names the field that makes it unusable.
    pub fn decode(bytes: &[u8; TENSOR_MAP_BYTES]) -> Result<TensorMap, String> {
        let code = |offset: usize| u32::from(bytes[offset]);
        let rank = usize::from(bytes[OFFSET_RANK]) + 1;
        if rank > MAX_RANK {
            return Err(format!("tensor map: rank {rank} is not 1..=5"));
        }
        let element_type = ElementType::from_driver(code(OFFSET_ELEMENT_TYPE))
            .ok_or_else(|| unknown("element type", code(OFFSET_ELEMENT_TYPE)))?;
        let interleave = Interleave::from_code(code(OFFSET_INTERLEAVE))
            .ok_or_else(|| unknown("interleave", code(OFFSET_INTERLEAVE)))?;
        let swizzle = Swizzle::from_code(code(OFFSET_SWIZZLE))
            .ok_or_else(|| unknown("swizzle mode", code(OFFSET_SWIZZLE)))?;
        if code(OFFSET_ATOMICITY) != 0 {
            return Err(unknown("swizzle atomicity", code(OFFSET_ATOMICITY)));
        }
        let l2_promotion = L2Promotion::from_code(code(OFFSET_L2_PROMOTION))
            .ok_or_else(|| unknown("L2 promotion", code(OFFSET_L2_PROMOTION)))?;
        let oob_fill = OobFill::from_code(code(OFFSET_OOB_FILL))
            .ok_or_else(|| unknown("fill mode", code(OFFSET_OOB_FILL)))?;
        let mut map = TensorMap {
            element_type,
            rank,
            global_address: get_u64(bytes, 0),
            dims: [1; MAX_RANK],
            strides: [0; MAX_RANK],
            box_dims: [1; MAX_RANK],
            element_strides: [1; MAX_RANK],
            interleave,
            swizzle,
            l2_promotion,
            oob_fill,
            im2col: None,
        };
        let pixels = get_u16(bytes, OFFSET_PIXELS);
        if pixels != 0 {
            let corner = |n: usize| {
                let at = OFFSET_CORNERS + 2 * n;
                i32::from(i16::from_le_bytes([bytes[at], bytes[at + 1]]))
            };
            if pixels > MAX_PIXELS || rank < 3 {
                return Err(format!(
                    "tensor map: im2col of rank {rank} with {pixels} pixels per column"
                ));
            }
            map.im2col = Some(Im2col {
                pixels,
                lower: [0, 1, 2].map(corner),
                upper: [3, 4, 5].map(corner),
                offsets: [0; 3],
            });
        }
        map.strides[0] = element_type.bytes();
        for d in 0..rank {
            map.dims[d] = get_u64(bytes, OFFSET_DIMS + 8 * d);
            if d > 0 {
                map.strides[d] = get_u64(bytes, OFFSET_STRIDES + 8 * (d - 1));
            }
            map.box_dims[d] = get_u16(bytes, OFFSET_BOX + 2 * d);
            map.element_strides[d] = code(OFFSET_ELEMENT_STRIDES + d);
            if !(1..=256).contains(&map.box_dims[d]) {
                return Err(format!(
                    "tensor map: box[{d}] is {}, not 1..=256",
                    map.box_dims[d]
                ));
            }
            if !(1..=8).contains(&map.element_strides[d]) {
                return Err(format!(
                    "tensor map: element stride[{d}] is {}, not 1..=8",
                    map.element_strides[d]
                ));
            }
            if map.strides[d] >= 1 << 40 || (d > 0 && !map.strides[d].is_multiple_of(16)) {
                return Err(format!(
                    "tensor map: stride[{d}] is {} bytes, not a multiple of 16 below 2^40",
                    map.strides[d]
                ));
            }
        }
        if !map.global_address.is_multiple_of(16) {
            return Err(format!(
                "tensor map: global address {:#x} is not aligned to 16 bytes",
                map.global_address
            ));
        }
        let inner = u64::from(map.box_dims[0]) * element_type.bytes();
        if interleave == Interleave::None {
            if !inner.is_multiple_of(16) {
                return Err(format!(
                    "tensor map: inner box is {inner} bytes, not a multiple of 16"
                ));
            }
            if swizzle.span_bytes().is_some_and(|span| inner > span) {
                return Err(format!(
                    "tensor map: inner box is {inner} bytes, more than the swizzle {swizzle:?} spans"
                ));
            }
        }
        Ok(map)
    }

    /// Edits one field of an encoded map in place, as `tensormap.replace` does. Values that the
    /// format cannot hold are errors; whether the whole makes sense is asked at the next use.
    pub fn replace_field(
        bytes: &mut [u8; TENSOR_MAP_BYTES],
        edit: FieldEdit,
    ) -> Result<(), String> {
        match edit {
            FieldEdit::GlobalAddress(address) => put_u64(bytes, 0, address),
            FieldEdit::RankMinusOne(value) => {
                if value as usize >= MAX_RANK {
                    return Err(format!(
                        "tensormap.replace.rank: {value} is not rank - 1 of a rank 1..=5"
                    ));
                }
                bytes[OFFSET_RANK] = value as u8;
            }
            FieldEdit::BoxDim { ordinal, value } => {
                let d = ordinal_in("box_dim", ordinal, MAX_RANK)?;
                put_u16(bytes, OFFSET_BOX + 2 * d, value);
            }
            FieldEdit::GlobalDim { ordinal, value } => {
                let d = ordinal_in("global_dim", ordinal, MAX_RANK)?;
                put_u64(bytes, OFFSET_DIMS + 8 * d, u64::from(value));
            }
            FieldEdit::GlobalStride {
                ordinal,
                bytes: stride,
            } => {
                let d = ordinal_in("global_stride", ordinal, MAX_RANK - 1)?;
                put_u64(bytes, OFFSET_STRIDES + 8 * d, stride);
            }
            FieldEdit::ElementStride { ordinal, value } => {
                let d = ordinal_in("element_stride", ordinal, MAX_RANK)?;
                bytes[OFFSET_ELEMENT_STRIDES + d] = saturate_u8(value);
            }
            FieldEdit::ElementType(code) => {
                let element_type = ElementType::from_ptx(code)
                    .ok_or_else(|| unknown("element type of tensormap.replace", code))?;
                bytes[OFFSET_ELEMENT_TYPE] = element_type as u8;
            }
            FieldEdit::Interleave(code) => bytes[OFFSET_INTERLEAVE] = saturate_u8(code),
            FieldEdit::SwizzleMode(code) => bytes[OFFSET_SWIZZLE] = saturate_u8(code),
            FieldEdit::SwizzleAtomicity(code) => bytes[OFFSET_ATOMICITY] = saturate_u8(code),
            FieldEdit::FillMode(code) => bytes[OFFSET_OOB_FILL] = saturate_u8(code),
        }
        Ok(())
    }
}

/// The arguments of `cuTensorMapEncodeTiled`, as the caller gave them (slices are `rank` long,
/// strides `rank - 1`).
#[derive(Clone, Copy, Debug)]
pub struct EncodeParams<'a> {
    pub element_type: u32,
    pub rank: u32,
    pub global_address: u64,
    pub dims: &'a [u64],
    pub strides: &'a [u64],
    pub box_dims: &'a [u32],
    pub element_strides: &'a [u32],
    pub interleave: u32,
    pub swizzle: u32,
    pub l2_promotion: u32,
    pub oob_fill: u32,
}

impl EncodeParams<'_> {
    /// Applies the rules that cuda.h states for `cuTensorMapEncodeTiled` on an sm_90 device. The
    /// error is the reason, in one line; the driver answers CUDA_ERROR_INVALID_VALUE.
    ///
    /// NOTE: cuda.h also shows `assert(globalStrides[i] >= globalDim[i])` in an example. It is not a
    /// rule: broadcast dimensions (stride 0) and permuted ones are in wide use on real drivers. A null
    /// address is accepted too: grouped GEMMs encode a template and fill the address in on the device.
    pub fn validate(&self) -> Result<TensorMap, String> {
        let rank = self.rank as usize;
        if rank == 0 || rank > MAX_RANK {
            return Err(format!("rank {rank} is not 1..=5"));
        }
        let element_type = ElementType::from_driver(self.element_type).ok_or_else(|| {
            format!(
                "data type {} is unknown or needs sm_100 (sm_90 has 0..=12)",
                self.element_type
            )
        })?;
        let interleave = Interleave::from_code(self.interleave)
            .ok_or_else(|| format!("interleave {} is unknown", self.interleave))?;
        let swizzle = Swizzle::from_code(self.swizzle).ok_or_else(|| {
            format!(
                "swizzle {} is unknown or needs sm_100 (sm_90 has 0..=3)",
                self.swizzle
            )
        })?;
        let l2_promotion = L2Promotion::from_code(self.l2_promotion)
            .ok_or_else(|| format!("L2 promotion {} is unknown", self.l2_promotion))?;
        let oob_fill = OobFill::from_code(self.oob_fill)
            .ok_or_else(|| format!("out-of-bounds fill {} is unknown", self.oob_fill))?;
        if self.dims.len() != rank
            || self.box_dims.len() != rank
            || self.element_strides.len() != rank
            || self.strides.len() != rank - 1
        {
            return Err(format!("the arrays do not have the lengths of rank {rank}"));
        }
        if interleave != Interleave::None && rank < 3 {
            return Err(format!(
                "rank {rank} with interleave: at least 3 is required"
            ));
        }
        if interleave == Interleave::B32 && swizzle != Swizzle::B32 {
            return Err("interleave 32B requires swizzle 32B".to_owned());
        }
        if oob_fill == OobFill::Nan && !element_type.is_float() {
            return Err(format!(
                "NaN fill with the integer element type {element_type:?}"
            ));
        }
        let granule = if interleave == Interleave::B32 {
            32
        } else {
            16
        };
        if !self.global_address.is_multiple_of(granule) {
            return Err(format!(
                "global address {:#x} is not aligned to {granule} bytes",
                self.global_address
            ));
        }
        let mut map = TensorMap {
            element_type,
            rank,
            global_address: self.global_address,
            dims: [1; MAX_RANK],
            strides: [0; MAX_RANK],
            box_dims: [1; MAX_RANK],
            element_strides: [1; MAX_RANK],
            interleave,
            swizzle,
            l2_promotion,
            oob_fill,
            im2col: None,
        };
        map.strides[0] = element_type.bytes();
        for d in 0..rank {
            let (dim, box_dim, step) = (self.dims[d], self.box_dims[d], self.element_strides[d]);
            if !(1..=1 << 32).contains(&dim) {
                return Err(format!("globalDim[{d}] = {dim} is not 1..=2^32"));
            }
            if !(1..=256).contains(&box_dim) {
                return Err(format!("boxDim[{d}] = {box_dim} is not 1..=256"));
            }
            if !(1..=8).contains(&step) {
                return Err(format!("elementStrides[{d}] = {step} is not 1..=8"));
            }
            map.dims[d] = dim;
            map.box_dims[d] = box_dim;
            map.element_strides[d] = step;
            if d > 0 {
                let stride = self.strides[d - 1];
                if !stride.is_multiple_of(granule) || stride >= 1 << 40 {
                    return Err(format!(
                        "globalStrides[{}] = {stride} is not a multiple of {granule} below 2^40",
                        d - 1
                    ));
                }
                map.strides[d] = stride;
            }
        }
        if interleave == Interleave::None {
            let inner = u64::from(self.box_dims[0]) * element_type.bytes();
            if !inner.is_multiple_of(16) {
                return Err(format!(
                    "boxDim[0] of {} elements is {inner} bytes, not a multiple of 16",
                    self.box_dims[0]
                ));
            }
            if let Some(span) = swizzle.span_bytes()
                && inner > span
            {
                return Err(format!(
                    "boxDim[0] of {} elements is {inner} bytes, more than the {span} of the swizzle",
                    self.box_dims[0]
                ));
            }
        }
        Ok(map)
    }
}

/// Most pixels of a column. cuda.h: cuTensorMapEncodeIm2col.
const MAX_PIXELS: u32 = 1024;

/// The arguments of `cuTensorMapEncodeIm2col` beside those of a tiled map, whose box is not used. Corners are in the order of the
/// dimensions: W, H, D.
#[derive(Clone, Copy, Debug)]
pub struct Im2colParams<'a> {
    pub tiled: EncodeParams<'a>,
    /// rank - 2 each.
    pub lower: &'a [i32],
    pub upper: &'a [i32],
    pub channels: u32,
    pub pixels: u32,
}

impl Im2colParams<'_> {
    /// Applies the rules that cuda.h states for `cuTensorMapEncodeIm2col`.
    pub fn validate(&self) -> Result<TensorMap, String> {
        let rank = self.tiled.rank as usize;
        if !(3..=MAX_RANK).contains(&rank) {
            return Err(format!("rank {rank} is not 3..=5"));
        }
        if !(1..=256).contains(&self.channels) {
            return Err(format!(
                "channelsPerPixel = {} is not 1..=256",
                self.channels
            ));
        }
        if !(1..=MAX_PIXELS).contains(&self.pixels) {
            return Err(format!(
                "pixelsPerColumn = {} is not 1..={MAX_PIXELS}",
                self.pixels
            ));
        }
        let images = rank - 2;
        if self.lower.len() != images || self.upper.len() != images {
            return Err(format!("the corners do not have the length of rank {rank}"));
        }
        let mut boxes = [1; MAX_RANK];
        boxes[0] = self.channels;
        let tiled = EncodeParams {
            box_dims: &boxes[..rank],
            ..self.tiled
        };
        let mut map = tiled.validate()?;
        let reach = [1 << 15, 1 << 7, 1 << 4][images - 1];
        let mut im2col = Im2col {
            pixels: self.pixels,
            lower: [0; 3],
            upper: [0; 3],
            offsets: [0; 3],
        };
        for d in 0..images {
            let (lower, upper) = (self.lower[d], self.upper[d]);
            for (name, corner) in [("Lower", lower), ("Upper", upper)] {
                if !(-reach..reach).contains(&corner) {
                    return Err(format!(
                        "pixelBox{name}Corner[{d}] = {corner} is not {}..={} at rank {rank}",
                        -reach,
                        reach - 1
                    ));
                }
            }
            let last = map.dims[d + 1] as i64 - 1 + i64::from(upper);
            if last < i64::from(lower) {
                return Err(format!(
                    "the bounding box {lower}..={last} of dimension {} is empty",
                    d + 1
                ));
            }
            (im2col.lower[d], im2col.upper[d]) = (lower, upper);
        }
        map.im2col = Some(im2col);
        Ok(map)
    }
}

fn unknown(field: &str, code: u32) -> String {
    format!("tensor map: {field} has the unknown code {code}")
}

fn ordinal_in(field: &str, ordinal: u32, limit: usize) -> Result<usize, String> {
    let d = ordinal as usize;
    if d < limit {
        Ok(d)
    } else {
        Err(format!(
            "tensormap.replace.{field}: ordinal {ordinal} is not below {limit}"
        ))
    }
}

/// Field values beyond a byte are kept as 255, which no field accepts at use.
fn saturate_u8(value: u32) -> u8 {
    value.min(255) as u8
}

fn put_u64(out: &mut [u8; TENSOR_MAP_BYTES], offset: usize, value: u64) {
    out[offset..offset + 8].copy_from_slice(&value.to_le_bytes());
}

/// Values beyond 16 bits are kept as 65535, which no field accepts at use.
fn put_u16(out: &mut [u8; TENSOR_MAP_BYTES], offset: usize, value: u32) {
    let value = value.min(u32::from(u16::MAX)) as u16;
    out[offset..offset + 2].copy_from_slice(&value.to_le_bytes());
}

fn get_u64(bytes: &[u8; TENSOR_MAP_BYTES], offset: usize) -> u64 {
    let mut field = [0u8; 8];
    field.copy_from_slice(&bytes[offset..offset + 8]);
    u64::from_le_bytes(field)
}

fn get_u16(bytes: &[u8; TENSOR_MAP_BYTES], offset: usize) -> u32 {
    u32::from(u16::from_le_bytes([bytes[offset], bytes[offset + 1]]))
}
