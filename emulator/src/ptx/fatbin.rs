//! PTX out of the images that CUDA programs hand to the driver.
//!
//! `cuModuleLoadData` takes a bare pointer to one of: PTX text that ends with NUL, a *fatbin* (a container with one
//! entry per architecture, PTX or machine code), the *wrapper* that nvcc places in a program and that points to a
//! fatbin, or an ELF cubin. Only PTX can be run here.
//!
//! The container (little end first; learned from what `nvcc -fatbin` of CUDA 11 to 13 writes):
//!
//! | at | in the file header (16 bytes) | | at | in an entry's header |
//! |---|---|---|---|---|
//! | 0 | u32 magic `0xBA55ED50` | | 0 | u16 kind: 1 PTX, 2 ELF |
//! | 4 | u16 version 1 | | 4 | u32 header size; the payload follows |
//! | 6 | u16 header size | | 8 | u64 payload size with padding |
//! | 8 | u64 size of the entries | | 16 | u32 size when compressed, else 0 |
//! | | | | 28 | u32 architecture: 90 |
//! | | | | 40 | u64 flags: 0x2000 LZ4, 0x8000 zstd |
//! | | | | 56 | u64 size when decompressed |

use std::ffi::CStr;
use std::io::Read;

const MAGIC: u32 = 0xba55_ed50;
const WRAPPER_MAGIC: u32 = 0x4662_43b1;
const ELF_MAGIC: u32 = 0x464c_457f;
const FLAG_LZ4: u64 = 0x2000;
const FLAG_ZSTD: u64 = 0x8000;
const KIND_PTX: u16 = 1;
/// PTX larger than this is taken for a corrupt size.
const MAX_TEXT: u64 = 1 << 30;

/// One PTX text of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PtxEntry {
    /// 90 for sm_90 and sm_90a; 0 where the image is bare PTX text.
    pub arch: u32,
    pub text: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FatbinError {
    /// Neither PTX nor a container known to us.
    NotAnImage,
    /// Machine code only: nothing that can be run here.
    CubinOnly,
    /// An LTO or other fatbin without PTX and without machine code.
    NoPtx,
    /// A wrapper can be followed only where it lies in memory ([`image_bytes`]).
    Wrapper,
    Malformed(&'static str),
}

impl std::fmt::Display for FatbinError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            FatbinError::NotAnImage => f.write_str("neither PTX text nor a fatbin"),
            FatbinError::CubinOnly => f.write_str(
                "cubin-only image: it holds machine code and no PTX (compile with -gencode arch=compute_90a,code=compute_90a)",
            ),
            FatbinError::NoPtx => f.write_str("the fatbin holds no PTX"),
            FatbinError::Wrapper => f.write_str("a fatbin wrapper, which only points to an image"),
            FatbinError::Malformed(what) => write!(f, "malformed image: {what}"),
        }
    }
}

impl std::error::Error for FatbinError {}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(
        bytes.get(at..at.checked_add(2)?)?.try_into().ok()?,
    ))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(
        bytes.get(at..at.checked_add(4)?)?.try_into().ok()?,
    ))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(
        bytes.get(at..at.checked_add(8)?)?.try_into().ok()?,
    ))
}

/// All PTX texts of an image: PTX text (a NUL ends it), or a fatbin.
pub fn ptx_from_image(bytes: &[u8]) -> Result<Vec<PtxEntry>, FatbinError> {
    match u32_at(bytes, 0) {
        Some(MAGIC) => entries(bytes),
        Some(WRAPPER_MAGIC) => Err(FatbinError::Wrapper),
        Some(ELF_MAGIC) => Err(FatbinError::CubinOnly),
        _ => Ok(vec![PtxEntry {
            arch: 0,
            text: text(bytes).ok_or(FatbinError::NotAnImage)?,
        }]),
    }
}

/// The text to run on an H100: the highest architecture up to sm_90.
pub fn for_hopper(entries: Vec<PtxEntry>) -> Option<PtxEntry> {
    entries
        .into_iter()
        .filter(|e| e.arch <= 90)
        .max_by_key(|e| e.arch)
}

/// The texts to run on an H100 of all fatbins that lie somewhere in a file: an object of nvcc has them in sections of their own.
pub fn embedded(bytes: &[u8]) -> Vec<String> {
    (0..bytes.len())
        .step_by(8)
        .filter(|&at| u32_at(bytes, at) == Some(MAGIC))
        .filter_map(|at| for_hopper(entries(&bytes[at..]).ok()?))
        .map(|entry| entry.text)
        .collect()
}

/// Text up to the first NUL that can be PTX: UTF-8 without control characters.
fn text(bytes: &[u8]) -> Option<String> {
    let text = bytes.split(|&b| b == 0).next()?;
    let text = std::str::from_utf8(text).ok()?;
    let control = text.chars().any(|c| c.is_control() && !c.is_whitespace());
    (!control && !text.trim().is_empty()).then(|| text.to_string())
}

fn entries(bytes: &[u8]) -> Result<Vec<PtxEntry>, FatbinError> {
    const CUT: FatbinError = FatbinError::Malformed("the fatbin is cut off");
    let header = usize::from(u16_at(bytes, 6).ok_or(CUT)?);
    if header < 16 {
        return Err(FatbinError::Malformed("header size of the fatbin"));
    }
    let size = usize::try_from(u64_at(bytes, 8).ok_or(CUT)?).map_err(|_| CUT)?;
    let end = header.checked_add(size).ok_or(CUT)?;
    let mut rest = bytes.get(header..end).ok_or(CUT)?;
    let (mut found, mut cubins) = (Vec::new(), 0);
    let mut total = 0u64;
    while !rest.is_empty() {
        let header_size = u32_at(rest, 4).ok_or(CUT)? as usize;
        let size = usize::try_from(u64_at(rest, 8).ok_or(CUT)?).map_err(|_| CUT)?;
        if header_size < 64 {
            return Err(FatbinError::Malformed("header size of an entry"));
        }
        let next = header_size.checked_add(size).ok_or(CUT)?;
        let payload = rest.get(header_size..next).ok_or(CUT)?;
        match u16_at(rest, 0).ok_or(CUT)? {
            KIND_PTX => {
                let arch = u32_at(rest, 28).ok_or(CUT)?;
                let bytes = payload_bytes(rest, payload, &mut total)?;
                let start = bytes
                    .iter()
                    .position(|b| !b.is_ascii_whitespace())
                    .unwrap_or(0);
                let text = text(&bytes[start..])
                    .ok_or(FatbinError::Malformed("an entry's PTX is not text"))?;
                found.push(PtxEntry { arch, text });
            }
            _ => cubins += 1,
        }
        rest = &rest[next..];
    }
    match (found.is_empty(), cubins) {
        (false, _) => Ok(found),
        (true, 0) => Err(FatbinError::NoPtx),
        (true, _) => Err(FatbinError::CubinOnly),
    }
}

/// Decompresses the payload of an entry; `total` counts what all entries have taken.
fn payload_bytes(entry: &[u8], payload: &[u8], total: &mut u64) -> Result<Vec<u8>, FatbinError> {
    const CUT: FatbinError = FatbinError::Malformed("an entry is cut off");
    const CORRUPT: FatbinError = FatbinError::Malformed("an entry's compressed PTX");
    let flags = u64_at(entry, 40).ok_or(CUT)?;
    let compressed = u32_at(entry, 16).ok_or(CUT)? as usize;
    let size = u64_at(entry, 56).ok_or(CUT)?;
    if flags & (FLAG_LZ4 | FLAG_ZSTD) == 0 {
        if compressed != 0 {
            return Err(FatbinError::Malformed(
                "an entry is compressed in an unknown way",
            ));
        }
        return Ok(payload.to_vec());
    }
    *total = total.saturating_add(size);
    if *total > MAX_TEXT {
        return Err(FatbinError::Malformed(
            "an entry's PTX is larger than 1 GiB",
        ));
    }
    let payload = payload.get(..compressed).ok_or(CUT)?;
    let mut text = Vec::new();
    if flags & FLAG_ZSTD != 0 {
        let decoder = ruzstd::decoding::StreamingDecoder::new(payload).map_err(|_| CORRUPT)?;
        decoder
            .take(size + 1)
            .read_to_end(&mut text)
            .map_err(|_| CORRUPT)?;
    } else {
        // LZ4 expands at most 255 times, so that a small entry cannot ask for much memory.
        if size > (payload.len() as u64 + 1) * 255 {
            return Err(CORRUPT);
        }
        text = lz4_flex::block::decompress(payload, size as usize).map_err(|_| CORRUPT)?;
    }
    if text.len() as u64 != size {
        return Err(CORRUPT);
    }
    Ok(text)
}

/// No fatbin is larger than this many bytes: garbage after the magic number, taken for a size, would lead out of the program's memory.
const LARGEST: usize = 1 << 30;

/// The extent of an image that a program gave by its address alone.
///
/// # Safety
/// `image` has to point to an image as `cuModuleLoadData` accepts it, valid for `'a`.
pub unsafe fn image_bytes<'a>(image: *const u8) -> Result<&'a [u8], FatbinError> {
    if image.is_null() {
        return Err(FatbinError::NotAnImage);
    }
    // SAFETY: every image has at least one byte, and text ends at the first NUL: bytes are read one by one up to it.
    let magic = unsafe {
        let mut head = [0u8; 4];
        for (i, byte) in head.iter_mut().enumerate() {
            *byte = image.add(i).read();
            if *byte == 0 {
                break;
            }
        }
        u32::from_le_bytes(head)
    };
    match magic {
        MAGIC => {
            // SAFETY: a fatbin starts with a header of 16 bytes that tells its size.
            let header = unsafe { std::slice::from_raw_parts(image, 16) };
            let size = u64_at(header, 8).and_then(|size| usize::try_from(size).ok());
            let size = size.and_then(|size| size.checked_add(usize::from(u16_at(header, 6)?)));
            match size {
                // SAFETY: as the caller promises.
                Some(size) if size <= LARGEST => {
                    Ok(unsafe { std::slice::from_raw_parts(image, size) })
                }
                _ => Err(FatbinError::Malformed("size of the fatbin")),
            }
        }
        WRAPPER_MAGIC => {
            // SAFETY: a wrapper is {u32 magic, u32 version, const void *image, …}.
            let inner = unsafe { image.add(8).cast::<*const u8>().read_unaligned() };
            if inner.is_null() {
                return Err(FatbinError::Malformed("the wrapper points nowhere"));
            }
            // SAFETY: what a wrapper points to is a fatbin; a wrapper again would be followed for ever.
            if unsafe { inner.cast::<u32>().read_unaligned() } == WRAPPER_MAGIC {
                return Err(FatbinError::Malformed("a wrapper in a wrapper"));
            }
            // SAFETY: as above.
            unsafe { image_bytes(inner) }
        }
        ELF_MAGIC => Err(FatbinError::CubinOnly),
        // SAFETY: any other image is text that ends with NUL.
        _ => Ok(unsafe { CStr::from_ptr(image.cast()) }.to_bytes()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TEXT: &str =
        ".version 8.0\n.target sm_90a\n.address_size 64\n.version 8.0 .version 8.0 .version 8.0\n";

    fn entry(kind: u16, arch: u32, flags: u64, payload: &[u8], size: usize) -> Vec<u8> {
        let padded = payload.len().next_multiple_of(8);
        let mut entry = Vec::new();
        entry.extend(kind.to_le_bytes());
        entry.extend(0x101u16.to_le_bytes());
        entry.extend(64u32.to_le_bytes());
        entry.extend((padded as u64).to_le_bytes());
        entry.extend((if flags == 0 { 0 } else { payload.len() as u32 }).to_le_bytes());
        entry.extend([0; 8]);
        entry.extend(arch.to_le_bytes());
        entry.extend([0; 8]);
        entry.extend(flags.to_le_bytes());
        entry.extend([0; 8]);
        entry.extend((size as u64).to_le_bytes());
        entry.extend(payload);
        entry.resize(64 + padded, 0);
        entry
    }

    fn fatbin(entries: &[Vec<u8>]) -> Vec<u8> {
        let mut all = Vec::new();
        all.extend(MAGIC.to_le_bytes());
        all.extend([1, 0, 16, 0]);
        all.extend((entries.iter().map(Vec::len).sum::<usize>() as u64).to_le_bytes());
        all.extend(entries.concat());
        all
    }

    fn sample() -> Vec<u8> {
        let lz4 = lz4_flex::block::compress(TEXT.as_bytes());
        let zstd = ruzstd::encoding::compress_to_vec(
            TEXT.as_bytes(),
            ruzstd::encoding::CompressionLevel::Uncompressed,
        );
        fatbin(&[
            entry(2, 90, 0, b"\x7fELF....", 0),
            entry(1, 80, 0, TEXT.as_bytes(), 0),
            entry(1, 90, FLAG_LZ4, &lz4, TEXT.len()),
            entry(1, 100, FLAG_ZSTD, &zstd, TEXT.len()),
        ])
    }

    #[test]
    fn every_compression() {
        let entries = ptx_from_image(&sample()).unwrap();
        assert_eq!(
            entries.iter().map(|e| e.arch).collect::<Vec<_>>(),
            [80, 90, 100]
        );
        assert!(entries.iter().all(|e| e.text == TEXT), "{entries:?}");
        assert_eq!(for_hopper(entries).unwrap().arch, 90);
    }

    #[test]
    fn what_is_not_ptx() {
        assert_eq!(
            ptx_from_image(b"\x7fELF\x02\x01"),
            Err(FatbinError::CubinOnly)
        );
        assert_eq!(
            ptx_from_image(&fatbin(&[entry(2, 90, 0, b"\x7fELF", 0)])),
            Err(FatbinError::CubinOnly)
        );
        assert_eq!(ptx_from_image(&fatbin(&[])), Err(FatbinError::NoPtx));
        assert_eq!(ptx_from_image(b""), Err(FatbinError::NotAnImage));
        assert_eq!(
            ptx_from_image(&[1, 2, 3, 4, 5]),
            Err(FatbinError::NotAnImage)
        );
        assert_eq!(
            ptx_from_image(&WRAPPER_MAGIC.to_le_bytes()),
            Err(FatbinError::Wrapper)
        );
        assert_eq!(
            ptx_from_image(b".version 8.0\0junk").unwrap()[0].text,
            ".version 8.0"
        );
    }

    #[test]
    fn extents_in_memory() {
        let image = sample();
        let wrapper = [u64::from(WRAPPER_MAGIC) | 1 << 32, image.as_ptr() as u64, 0];
        // SAFETY: all three are whole images.
        unsafe {
            assert_eq!(image_bytes(image.as_ptr()).unwrap(), image);
            assert_eq!(image_bytes(wrapper.as_ptr().cast()).unwrap(), image);
            assert_eq!(image_bytes(c"ab".as_ptr().cast()).unwrap(), b"ab");
            assert_eq!(image_bytes(std::ptr::null()), Err(FatbinError::NotAnImage));
            let mut endless = image.clone();
            endless[8..16].copy_from_slice(&(1u64 << 40).to_le_bytes());
            let refused = image_bytes(endless.as_ptr());
            assert!(
                matches!(refused, Err(FatbinError::Malformed(_))),
                "{refused:?}"
            );
        }
    }

    proptest! {
        #[test]
        fn damaged_images_never_panic(at in 0usize..900, byte: u8, length in 0usize..900) {
            let mut image = sample();
            let at = at % image.len();
            image[at] = byte;
            let _ = ptx_from_image(&image);
            let _ = ptx_from_image(&image[..length.min(image.len())]);
        }

        #[test]
        fn noise_never_panics(mut noise in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = ptx_from_image(&noise);
            noise.splice(0..0, [0x50, 0xed, 0x55, 0xba, 1, 0, 16, 0]);
            let _ = ptx_from_image(&noise);
        }
    }
}
