//! SentencePiece's text normalizer: a precompiled character map, then white space rules.
//!
//! The map of a model (`nmt_nfkc` in the challenge) is a blob: u32 length of a double-array trie, the trie (u32
//! units), then the replacements as NUL-terminated strings. The longest key of the trie that starts at the
//! current position is replaced; anything else is copied one character at a time.
//!
//! A unit of the trie packs: bit 31 = this is a value, bits 0-30 the value; or bits 0-7 the label, bit 8 = has a
//! value, bit 9 and bits 10-30 the offset (shifted by 8 if bit 9 is set).

/// White space as SentencePiece writes it.
pub const SPACE: char = '\u{2581}';

/// The rules of one model.
#[derive(Clone, Debug, Default)]
pub struct Normalizer {
    trie: Vec<u32>,
    replacements: Vec<u8>,
    pub add_dummy_prefix: bool,
    pub remove_extra_whitespaces: bool,
    pub escape_whitespaces: bool,
}

impl Normalizer {
    /// White space rules without a character map.
    pub fn with_rules(
        add_dummy_prefix: bool,
        remove_extra_whitespaces: bool,
        escape_whitespaces: bool,
    ) -> Self {
        Self {
            add_dummy_prefix,
            remove_extra_whitespaces,
            escape_whitespaces,
            ..Self::default()
        }
    }

    /// Reads a precompiled character map; an empty blob is the identity.
    pub fn load_map(&mut self, blob: &[u8]) -> Result<(), String> {
        if blob.is_empty() {
            return Ok(());
        }
        let bad = || "its character map is damaged".to_owned();
        let size = u32::from_le_bytes(blob.get(..4).ok_or_else(bad)?.try_into().expect("4 bytes"))
            as usize;
        let trie = blob
            .get(4..4usize.checked_add(size).ok_or_else(bad)?)
            .ok_or_else(bad)?;
        if !size.is_multiple_of(4) {
            return Err(bad());
        }
        self.trie = trie
            .chunks_exact(4)
            .map(|unit| u32::from_le_bytes(unit.try_into().expect("4 bytes")))
            .collect();
        self.replacements = blob[4 + size..].to_vec();
        Ok(())
    }

    /// The longest key at the start of `text`: its length and its value.
    fn longest(&self, text: &[u8]) -> Option<(usize, usize)> {
        let offset = |unit: u32| ((unit >> 10) << ((unit & (1 << 9)) >> 6)) as usize;
        let mut node = offset(*self.trie.first()?);
        let mut found = None;
        for (i, byte) in text.iter().enumerate() {
            node ^= usize::from(*byte);
            let unit = *self.trie.get(node)?;
            if unit & (1 << 31 | 0xff) != u32::from(*byte) {
                break;
            }
            node ^= offset(unit);
            if unit & (1 << 8) != 0 {
                let Some(value) = self.trie.get(node) else {
                    break;
                };
                found = Some((i + 1, (value & 0x7fff_ffff) as usize));
            }
        }
        found
    }

    fn replacement(&self, at: usize) -> &str {
        let tail = self.replacements.get(at..).unwrap_or_default();
        let end = tail
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(tail.len());
        std::str::from_utf8(&tail[..end]).unwrap_or("\u{fffd}")
    }

    /// The normalized text, spaces escaped as [`SPACE`] where the model wants it.
    pub fn normalize(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len() + 16);
        let space = if self.escape_whitespaces { SPACE } else { ' ' };
        let mut rest = text;
        let mut after_space = self.remove_extra_whitespaces;
        let mut started = false;
        while let Some(first) = rest.chars().next() {
            let (length, mut chunk) = match self.longest(rest.as_bytes()) {
                Some((length, at)) if rest.is_char_boundary(length) => {
                    (length, self.replacement(at))
                }
                _ => (first.len_utf8(), &rest[..first.len_utf8()]),
            };
            if after_space {
                chunk = chunk.trim_start_matches(' ');
            }
            if !chunk.is_empty() {
                if !started && self.add_dummy_prefix {
                    out.push(space);
                }
                started = true;
                out.extend(chunk.chars().map(|c| if c == ' ' { space } else { c }));
                after_space = chunk.ends_with(' ');
            }
            if !self.remove_extra_whitespaces {
                after_space = false;
            }
            rest = &rest[length..];
        }
        if self.remove_extra_whitespaces {
            out.truncate(out.trim_end_matches(space).len());
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn white_space_rules() {
        let normalizer = Normalizer::with_rules(true, true, true);
        assert_eq!(normalizer.normalize("  a  b "), "▁a▁b");
        let plain = Normalizer::with_rules(false, false, true);
        assert_eq!(plain.normalize(" a  b "), "▁a▁▁b▁");
        assert_eq!(plain.normalize(""), "");
    }

    #[test]
    fn damaged_maps_are_refused() {
        let mut normalizer = Normalizer::default();
        assert!(normalizer.load_map(&[1, 2]).is_err());
        assert!(normalizer.load_map(&[255, 255, 255, 255, 0]).is_err());
        assert!(normalizer.load_map(&[3, 0, 0, 0, 1, 2, 3]).is_err());
    }
}
