//! Checkpoints: everything a run needs to continue as if it had not stopped.
//!
//! # Format, version 1 (little-endian)
//!
//! | bytes | what |
//! |---|---|
//! | 8 | magic `birdckpt` |
//! | 4 | version, 1 |
//! | 4 | CRC-32 of the header |
//! | 8 | length of the header |
//! | … | header, JSON: [`Progress`], the recipe, and per tensor its name, element type, shape and CRC-32 |
//! | … | the tensors' bytes, in that order, without gaps; the file ends with them |
//!
//! A file is written beside its final name, synced, and renamed: a run that is killed at any moment leaves the old
//! checkpoint or the new one. Reading checks every length before it takes memory, and every checksum.

use crate::failure::Failure;
use crate::train::engine::{Element, StateTensor};
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::io::{BufWriter, Read, Write};
use std::path::Path;

const MAGIC: &[u8; 8] = b"birdckpt";
const VERSION: u32 = 1;
const PREFIX: usize = 24;
/// Headers are names and shapes: never larger than this.
const LARGEST_HEADER: u64 = 64 << 20;

/// Where a run stands.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimizer steps done.
    pub step: usize,
    /// Position of the data stream after them.
    pub cursor: u64,
    /// Training clock in milliseconds.
    pub train_ms: f64,
    /// Snapshots in the engine's sum of weights.
    pub snapshots: usize,
    /// Batches in the online Hessians.
    pub hessian_batches: usize,
    /// Step after which the run has decided to stop, once it has.
    pub stop_after: Option<usize>,
}

/// A checkpoint in memory.
#[derive(Clone, Debug, PartialEq)]
pub struct Checkpoint {
    pub progress: Progress,
    /// The recipe as TOML.
    pub recipe: String,
    /// The engine's state and, under `hessian/`, the sums of online Hessians.
    pub tensors: Vec<StateTensor>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    progress: Progress,
    recipe: String,
    tensors: Vec<Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    name: String,
    element: String,
    shape: Vec<usize>,
    crc: u32,
}

const ELEMENTS: &[(Element, &str)] = &[
    (Element::F32, "f32"),
    (Element::Bf16, "bf16"),
    (Element::F16, "f16"),
    (Element::I8, "i8"),
    (Element::U8, "u8"),
    (Element::I32, "i32"),
    (Element::U64, "u64"),
];

impl Checkpoint {
    /// Writes the checkpoint whole or not at all.
    pub fn save(&self, path: &Path) -> Result<()> {
        let refuse = |error: std::io::Error| {
            Failure::user(
                format!("checkpoint {}", path.display()),
                error,
                "free some disk space or choose another --out; the last checkpoint is untouched",
            )
        };
        let mut temporary = crate::files::temporary_beside(path).map_err(refuse)?;
        {
            let mut writer = BufWriter::with_capacity(1 << 20, temporary.as_file_mut());
            self.write(&mut writer).map_err(refuse)?;
            writer.flush().map_err(refuse)?;
        }
        temporary.as_file().sync_all().map_err(refuse)?;
        temporary
            .persist(path)
            .map_err(|error| refuse(error.error))?;
        std::fs::File::open(crate::files::folder_of(path))
            .and_then(|folder| folder.sync_all())
            .map_err(refuse)?;
        Ok(())
    }

    /// Writes the format to any sink.
    pub fn write(&self, sink: &mut dyn Write) -> std::io::Result<()> {
        let entries = self.tensors.iter().map(|tensor| Entry {
            name: tensor.name.clone(),
            element: ELEMENTS
                .iter()
                .find(|(element, _)| *element == tensor.element)
                .expect("all are listed")
                .1
                .to_owned(),
            shape: tensor.shape.clone(),
            crc: crc32fast::hash(&tensor.bytes),
        });
        let header = Header {
            progress: self.progress.clone(),
            recipe: self.recipe.clone(),
            tensors: entries.collect(),
        };
        let header = serde_json::to_vec(&header)?;
        sink.write_all(MAGIC)?;
        sink.write_all(&VERSION.to_le_bytes())?;
        sink.write_all(&crc32fast::hash(&header).to_le_bytes())?;
        sink.write_all(&(header.len() as u64).to_le_bytes())?;
        sink.write_all(&header)?;
        for tensor in &self.tensors {
            sink.write_all(&tensor.bytes)?;
        }
        Ok(())
    }

    /// Reads and checks a file.
    pub fn load(path: &Path) -> Result<Self> {
        let what = format!("checkpoint {}", path.display());
        let file = std::fs::File::open(path).map_err(|error| {
            Failure::user(
                &what,
                error,
                "name the folder of a run that has a checkpoint",
            )
        })?;
        let length = file.metadata()?.len();
        Self::read(&mut std::io::BufReader::new(file), length).map_err(|why| {
            Failure::user(&what, why, "resume from another checkpoint, or train again").into()
        })
    }

    /// Reads the format from a source of `length` bytes. The error says what is wrong.
    pub fn read(source: &mut dyn Read, length: u64) -> Result<Self, String> {
        let mut prefix = [0; PREFIX];
        source
            .read_exact(&mut prefix)
            .map_err(|_| "shorter than a header")?;
        if &prefix[..8] != MAGIC {
            return Err("not a birdie checkpoint".into());
        }
        let number =
            |at: usize| u32::from_le_bytes(prefix[at..at + 4].try_into().expect("4 bytes"));
        if number(8) != VERSION {
            return Err(format!(
                "format version {}; this program reads version {VERSION}",
                number(8)
            ));
        }
        let header_length = u64::from_le_bytes(prefix[16..].try_into().expect("8 bytes"));
        let rest = length.saturating_sub(PREFIX as u64);
        if header_length > rest.min(LARGEST_HEADER) {
            return Err("truncated or damaged header".into());
        }
        let header = read_exactly(source, header_length)?;
        if crc32fast::hash(&header) != number(12) {
            return Err("damaged header (checksum)".into());
        }
        let header: Header =
            serde_json::from_slice(&header).map_err(|error| format!("damaged header ({error})"))?;
        let mut left = rest - header_length;
        let mut tensors = Vec::new();
        for entry in header.tensors {
            let element = ELEMENTS
                .iter()
                .find(|(_, name)| *name == entry.element)
                .ok_or_else(|| {
                    format!(
                        "tensor {} has the unknown type {}",
                        entry.name, entry.element
                    )
                })?
                .0;
            let bytes = entry
                .shape
                .iter()
                .try_fold(element.size() as u64, |bytes, d| {
                    bytes.checked_mul(*d as u64)
                })
                .filter(|bytes| *bytes <= left)
                .ok_or_else(|| format!("truncated at tensor {}", entry.name))?;
            left -= bytes;
            let bytes = read_exactly(source, bytes)?;
            if crc32fast::hash(&bytes) != entry.crc {
                return Err(format!("tensor {} is damaged (checksum)", entry.name));
            }
            tensors.push(StateTensor {
                name: entry.name,
                element,
                shape: entry.shape,
                bytes,
            });
        }
        if left > 0 {
            return Err(format!("{left} bytes too many at its end"));
        }
        Ok(Self {
            progress: header.progress,
            recipe: header.recipe,
            tensors,
        })
    }
}

fn read_exactly(source: &mut dyn Read, count: u64) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    source
        .take(count)
        .read_to_end(&mut bytes)
        .map_err(|error| error.to_string())?;
    if bytes.len() as u64 != count {
        return Err("truncated".into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sample() -> Checkpoint {
        let tensor = |name: &str, element: Element, shape: &[usize]| {
            let size = shape.iter().product::<usize>() * element.size();
            StateTensor {
                name: name.into(),
                element,
                shape: shape.to_vec(),
                bytes: (0..size).map(|i| i as u8).collect(),
            }
        };
        Checkpoint {
            progress: Progress {
                step: 7,
                cursor: 9000,
                train_ms: 0.1 + 0.2,
                snapshots: 2,
                hessian_batches: 0,
                stop_after: None,
            },
            recipe: "[run]\nseed = 1\n".into(),
            tensors: vec![
                tensor("param/a", Element::F32, &[3, 5]),
                tensor("ema/b", Element::Bf16, &[]),
                tensor("n", Element::U64, &[2]),
            ],
        }
    }

    fn bytes() -> Vec<u8> {
        let mut bytes = Vec::new();
        sample().write(&mut bytes).unwrap();
        bytes
    }

    fn read(bytes: &[u8]) -> Result<Checkpoint, String> {
        Checkpoint::read(&mut &bytes[..], bytes.len() as u64)
    }

    #[test]
    fn round_trip_is_exact() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c");
        sample().save(&path).unwrap();
        sample().save(&path).unwrap();
        assert_eq!(Checkpoint::load(&path).unwrap(), sample());
        assert_eq!(
            std::fs::read_dir(folder.path()).unwrap().count(),
            1,
            "no temporary file is left"
        );
    }

    #[test]
    fn every_truncation_and_every_flipped_bit_is_an_error() {
        let good = bytes();
        for length in 0..good.len() {
            assert!(read(&good[..length]).is_err(), "truncated to {length}");
        }
        for bit in 0..good.len() * 8 {
            let mut damaged = good.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            assert!(read(&damaged).is_err(), "bit {bit}");
        }
        let mut longer = good;
        longer.push(0);
        assert!(read(&longer).unwrap_err().contains("too many"));
    }

    #[test]
    fn a_full_disk_is_an_error_with_a_hint() {
        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0 = self
                    .0
                    .checked_sub(bytes.len())
                    .ok_or(std::io::ErrorKind::StorageFull)?;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let whole = bytes().len();
        for room in [0, 20, whole - 1] {
            assert_eq!(
                sample().write(&mut Full(room)).unwrap_err().kind(),
                std::io::ErrorKind::StorageFull
            );
        }
        sample().write(&mut Full(whole)).unwrap();
    }

    /// A header that promises tensors of any size takes no memory for them.
    #[test]
    fn huge_promises_are_refused() {
        let header = r#"{"progress":{"step":1,"cursor":1,"train_ms":0,"snapshots":0,"hessian_batches":0,"stop_after":null},"recipe":"","tensors":[{"name":"x","element":"f32","shape":[4294967296,4294967296],"crc":0}]}"#;
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend(crc32fast::hash(header.as_bytes()).to_le_bytes());
        bytes.extend((header.len() as u64).to_le_bytes());
        bytes.extend(header.as_bytes());
        assert!(read(&bytes).unwrap_err().contains("truncated at tensor x"));
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if bytes.len() >= 12 {
                bytes[..8].copy_from_slice(MAGIC);
                bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
            }
            prop_assert!(read(&bytes).is_err());
        }
    }
}
