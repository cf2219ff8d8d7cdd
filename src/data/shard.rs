//! FineWeb shards: 256 little-endian i32 of header (magic 20240520, version 1, number of tokens, zeros), then
//! that many u16 tokens.
//!
//! Files are memory-mapped. Header and size are checked when a shard is opened; tokens against the
//! vocabulary when they are used, because a full training set is 16 GB.

use crate::failure::Failure;
use anyhow::Result;
use memmap2::Mmap;
use std::ops::Range;
use std::path::{Path, PathBuf};

pub const MAGIC: i32 = 20_240_520;
pub const VERSION: i32 = 1;
/// Bytes before the first token.
pub const HEADER: usize = 1024;

/// An open shard.
pub struct Shard {
    path: PathBuf,
    map: Mmap,
    tokens: usize,
}

impl Shard {
    /// Maps a file and checks header and size.
    pub fn open(path: &Path) -> Result<Self> {
        let what = || format!("shard {}", path.display());
        let refuse = |why: String, hint: &str| -> Result<Self> {
            Err(Failure::user(what(), why, hint).into())
        };
        let file = std::fs::File::open(path)
            .map_err(|error| Failure::user(what(), error, "is the file readable?"))?;
        let size = file.metadata()?.len();
        if size < HEADER as u64 {
            return refuse(
                format!("{size} bytes are less than the header of {HEADER}"),
                "download the file again",
            );
        }
        // SAFETY: the map is read-only and private to this process; a file that another process truncates
        // while it is mapped is outside what any reader of mapped files can guard against.
        let map = unsafe { Mmap::map(&file) }
            .map_err(|error| Failure::user(what(), error, "is the file readable?"))?;
        let field =
            |i: usize| i32::from_le_bytes(map[4 * i..4 * i + 4].try_into().expect("4 bytes"));
        if field(0) != MAGIC {
            return refuse(
                format!("magic number {} instead of {MAGIC}", field(0)),
                "this is not a FineWeb shard of the challenge",
            );
        }
        if field(1) != VERSION {
            return refuse(
                format!("version {} instead of {VERSION}", field(1)),
                "export the shards with the challenge's script",
            );
        }
        let Ok(tokens) = usize::try_from(field(2)) else {
            return refuse(
                format!("{} tokens", field(2)),
                "the header is damaged; download the file again",
            );
        };
        let expected = HEADER as u64 + 2 * tokens as u64;
        if size != expected {
            let word = if size < expected {
                "truncated"
            } else {
                "too long"
            };
            return refuse(
                format!(
                    "{word}: {size} bytes, but its header promises {tokens} tokens = {expected} bytes"
                ),
                "download the file again",
            );
        }
        if cfg!(target_endian = "big") {
            return refuse(
                "shards are little-endian".into(),
                "use a little-endian machine",
            );
        }
        Ok(Self {
            path: path.to_owned(),
            map,
            tokens,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn len(&self) -> usize {
        self.tokens
    }

    pub fn is_empty(&self) -> bool {
        self.tokens == 0
    }

    /// All tokens, unchecked against a vocabulary.
    pub fn tokens(&self) -> &[u16] {
        bytemuck::cast_slice(&self.map[HEADER..])
    }

    /// Refuses ids that are not below `vocab_size`, naming file and position.
    pub fn check_range(&self, range: Range<usize>, vocab_size: usize) -> Result<()> {
        check_range(
            &self.tokens()[range.clone()],
            range.start,
            vocab_size,
            &format!("shard {}", self.path.display()),
        )
    }
}

/// Refuses ids that are not below `vocab_size`. `start` is the position of the first token in `what`.
pub fn check_range(tokens: &[u16], start: usize, vocab_size: usize, what: &str) -> Result<()> {
    // The maximum vectorizes; the position is only looked for when there is something to report.
    let largest = tokens.iter().copied().max().unwrap_or(0);
    if usize::from(largest) < vocab_size {
        return Ok(());
    }
    let at = tokens
        .iter()
        .position(|token| usize::from(*token) >= vocab_size)
        .expect("the maximum is out of range");
    Err(Failure::user(
        what,
        format!(
            "token {} at position {} is outside the vocabulary of {vocab_size}",
            tokens[at],
            start + at
        ),
        "the shards were made with another tokenizer, or the file is damaged",
    )
    .into())
}

/// Opens all shards `fineweb_<split>_*.bin` of a folder in lexicographic order.
pub fn open_split(folder: &Path, split: &str) -> Result<Vec<Shard>> {
    let what = format!("data {}", folder.display());
    let prefix = format!("fineweb_{split}_");
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder)
        .map_err(|error| Failure::user(&what, error, "set data_path to a folder of shards"))?
    {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        if name.starts_with(&prefix) && name.ends_with(".bin") {
            paths.push(path);
        }
    }
    if paths.is_empty() {
        return Err(Failure::user(
            &what,
            format!("no file named {prefix}*.bin"),
            "download the shards, or set data_path to their folder",
        )
        .into());
    }
    paths.sort();
    paths.iter().map(|path| Shard::open(path)).collect()
}

/// The file of a shard.
pub fn bytes(tokens: &[u16]) -> Vec<u8> {
    let mut bytes = vec![0u8; HEADER];
    for (i, value) in [MAGIC, VERSION, tokens.len() as i32]
        .into_iter()
        .enumerate()
    {
        bytes[4 * i..4 * i + 4].copy_from_slice(&value.to_le_bytes());
    }
    bytes.extend(tokens.iter().flat_map(|token| token.to_le_bytes()));
    bytes
}

/// Writes a shard.
pub fn write(path: &Path, tokens: &[u16]) -> std::io::Result<()> {
    std::fs::write(path, bytes(tokens))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(path: &Path) -> Failure {
        Shard::open(path)
            .err()
            .expect("must be refused")
            .downcast()
            .unwrap()
    }

    #[test]
    fn reads_what_it_wrote() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("fineweb_train_000000.bin");
        write(&path, &[1, 2, 1023]).unwrap();
        let shards = open_split(folder.path(), "train").unwrap();
        assert_eq!(shards[0].tokens(), [1, 2, 1023]);
        assert!(shards[0].check_range(0..3, 1024).is_ok());
        let error: Failure = shards[0]
            .check_range(1..3, 1000)
            .unwrap_err()
            .downcast()
            .unwrap();
        assert!(
            error.why.contains("token 1023 at position 2"),
            "{}",
            error.why
        );
        assert!(open_split(folder.path(), "val").is_err());
    }

    #[test]
    fn damaged_files_are_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.bin");
        write(&path, &[1, 2, 3]).unwrap();
        let good = std::fs::read(&path).unwrap();
        std::fs::write(&path, &good[..good.len() - 1]).unwrap();
        assert!(failure(&path).why.contains("truncated"));
        std::fs::write(&path, &good[..100]).unwrap();
        assert!(failure(&path).why.contains("header"));
        let mut bad = good.clone();
        bad[0] ^= 1;
        std::fs::write(&path, &bad).unwrap();
        assert!(failure(&path).why.contains("magic"));
        let mut bad = good.clone();
        bad[4] = 9;
        std::fs::write(&path, &bad).unwrap();
        assert!(failure(&path).why.contains("version"));
        let mut bad = good;
        bad[11] = 0xff;
        std::fs::write(&path, &bad).unwrap();
        assert!(failure(&path).why.contains("tokens"));
        assert!(failure(&path).what.contains("x.bin"));
    }
}
