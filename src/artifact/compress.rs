//! Entropy coding of the body: xz by liblzma, or Zstandard.

use crate::recipe::{Compressor, Recipe};
use anyhow::Result;
use std::io::{Read, Write};

/// Memory that decoding may take beside its output: xz preset 9 needs 65 MiB.
const MEMORY_LIMIT: u64 = 128 << 20;
/// log2 of the largest window that decoding zstd accepts; level 22 uses 27.
const WINDOW_LOG: u32 = 27;

/// A compressor and its level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Coder {
    pub compressor: Compressor,
    /// 0 when read from a file, which does not store it.
    pub level: usize,
}

impl Coder {
    pub fn of(recipe: &Recipe) -> Self {
        Self {
            compressor: recipe.compressor,
            level: recipe.compressor_level,
        }
    }

    pub(super) fn code(self) -> u8 {
        match self.compressor {
            Compressor::Lzma => 1,
            Compressor::Zstd => 2,
        }
    }

    pub(super) fn from_code(code: u8) -> Option<Self> {
        let compressor = match code {
            1 => Compressor::Lzma,
            2 => Compressor::Zstd,
            _ => return None,
        };
        Some(Self {
            compressor,
            level: 0,
        })
    }
}

/// Compresses bytes; the same input always gives the same output.
pub fn compress(bytes: &[u8], coder: Coder) -> Result<Vec<u8>> {
    match coder.compressor {
        Compressor::Lzma => {
            // The container has its own checksum, so xz's is left out.
            let options = xz2::stream::LzmaOptions::new_preset(coder.level as u32)?;
            let mut filters = xz2::stream::Filters::new();
            filters.lzma2(&options);
            let stream =
                xz2::stream::Stream::new_stream_encoder(&filters, xz2::stream::Check::None)?;
            let mut encoder = xz2::write::XzEncoder::new_stream(Vec::new(), stream);
            encoder.write_all(bytes)?;
            Ok(encoder.finish()?)
        }
        Compressor::Zstd => Ok(zstd::bulk::compress(bytes, coder.level as i32)?),
    }
}

/// Decompresses to exactly `length` bytes, taking memory only as output arrives.
pub fn decompress(bytes: &[u8], coder: Coder, length: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    let read = match coder.compressor {
        Compressor::Lzma => {
            let stream = xz2::stream::Stream::new_stream_decoder(MEMORY_LIMIT, 0)
                .map_err(|error| error.to_string())?;
            let decoder = xz2::bufread::XzDecoder::new_stream(bytes, stream);
            decoder.take(length as u64 + 1).read_to_end(&mut body)
        }
        Compressor::Zstd => zstd::stream::read::Decoder::with_buffer(bytes)
            .and_then(|mut decoder| {
                decoder.window_log_max(WINDOW_LOG)?;
                Ok(decoder)
            })
            .and_then(|decoder| decoder.take(length as u64 + 1).read_to_end(&mut body)),
    };
    read.map_err(|error| format!("its contents do not decompress ({error})"))?;
    if body.len() != length {
        let more = if body.len() > length {
            "more than"
        } else {
            "only"
        };
        return Err(format!(
            "its contents are {more} {} of {length} bytes",
            body.len().min(length)
        ));
    }
    Ok(body)
}
