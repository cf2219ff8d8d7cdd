//! Whether the bytes that a score divides by are the bytes of the text.
//!
//! The byte table adds up what each token is charged for. The audit decodes the same tokens, document by document, and counts the
//! bytes that come out. The published rule differs from the text in two places only, and the audit counts them apart: a space
//! after a document mark (or another boundary) is in the text but not charged, and a piece may be charged for more or less
//! than it says (a space inside a piece counts the three bytes of its mark, an unknown token counts nothing). What is left over must be zero.
//!
//! Where the tokens were made from a text, the decoded bytes are compared with it, too: a tokenizer that normalises changes the text,
//! and the score is then one of the changed text.

use crate::data::{ByteTable, Tokenizer};
use anyhow::{Result, bail};

/// The counts of an audit. The first token of the stream is no target and is not counted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Audit {
    pub tokens: u64,
    pub documents: u64,
    /// What the score divides by.
    pub charged: u64,
    /// Bytes of the decoded text.
    pub decoded: u64,
    /// Spaces after a boundary: decoded, not charged.
    pub free_spaces: u64,
    /// Charged for pieces beyond what they decode to.
    pub overcharged: i64,
    /// Where the text was given: the first byte at which the decoded one differs from it.
    pub differs_at: Option<usize>,
    /// A text was given.
    pub compared: bool,
}

impl Audit {
    /// Bytes that nothing explains.
    pub fn unexplained(&self) -> i64 {
        self.charged as i64 - self.overcharged + self.free_spaces as i64 - self.decoded as i64
    }

    /// The audit in lines.
    pub fn report(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "audit: {} targets in {} documents charged for {} bytes; their text has {} bytes, {} spaces after marks are free, pieces are \
             charged {:+} bytes against their text: {} unexplained",
            self.tokens,
            self.documents,
            self.charged,
            self.decoded,
            self.free_spaces,
            self.overcharged,
            self.unexplained()
        )];
        lines.extend(self.compared.then(|| match self.differs_at {
            None => "audit: the decoded text is the source text, byte for byte".to_owned(),
            Some(at) => format!(
                "audit: the decoded text differs from the source text from byte {at} on: the tokenizer normalises, and the score is one of \
                 the normalised text"
            ),
        }));
        lines
    }
}

/// Audits a stream, and compares it with the text that it was made from, if that is given. Bytes that nothing explains are an error.
pub fn audit(
    tokenizer: &Tokenizer,
    table: &ByteTable,
    stream: &[u16],
    text: Option<&str>,
) -> Result<Audit> {
    let mut found = Audit {
        tokens: stream.len().saturating_sub(1) as u64,
        charged: table.total(stream),
        compared: text.is_some(),
        ..Audit::default()
    };
    // What each id decodes to behind another token, without its leading space.
    let alone: Vec<i64> = (0..table.len())
        .map(|id| {
            let space = i64::from(table.leading_space[id]);
            tokenizer.decoded_bytes(&[id as u16]).len() as i64 - space
        })
        .collect();
    for pair in stream.windows(2) {
        let (previous, target) = (usize::from(pair[0]), usize::from(pair[1]));
        if table.leading_space[target] && table.boundary[previous] {
            found.free_spaces += 1;
        }
        found.overcharged += i64::from(table.bytes[target]) - alone[target];
    }
    let mark = table.document_mark();
    let mut decoded = Vec::new();
    let targets = stream.get(1..).unwrap_or_default();
    for document in targets.split(|id| *id == mark) {
        if !document.is_empty() {
            found.documents += 1;
            decoded.extend(tokenizer.decoded_bytes(document));
        }
    }
    found.decoded = decoded.len() as u64;
    if let Some(text) = text {
        let text = text.as_bytes();
        found.differs_at = (0..decoded.len()).find(|&i| text.get(i) != Some(&decoded[i]));
    }
    if found.unexplained() != 0 {
        bail!("the byte accounting is off: {}", found.report().join("; "));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn sentencepiece() -> Tokenizer {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
        Tokenizer::open("fineweb_1024_bpe.model", &folder).unwrap()
    }

    #[test]
    fn bytes_are_what_they_are() {
        let text = "héllo world\n";
        let mut stream = vec![Tokenizer::Bytes.document_mark()];
        stream.extend(Tokenizer::Bytes.encode(text).unwrap());
        let table = Tokenizer::Bytes.byte_table();
        let found = audit(&Tokenizer::Bytes, &table, &stream, Some(text)).unwrap();
        assert_eq!(
            (found.charged, found.decoded, found.differs_at),
            (13, 13, None)
        );
        let other = audit(&Tokenizer::Bytes, &table, &stream, Some("hello")).unwrap();
        assert_eq!(other.differs_at, Some(1));
    }

    /// A mark before each document. The test's model has no pieces for bytes: foreign characters are unknown tokens.
    fn stream(tokenizer: &Tokenizer, documents: &[&str]) -> Vec<u16> {
        let mut stream = Vec::new();
        for text in documents {
            stream.push(tokenizer.document_mark());
            stream.extend(tokenizer.encode(text).unwrap());
        }
        stream
    }

    #[test]
    fn documents_of_pieces_add_up() {
        let tokenizer = sentencepiece();
        let table = tokenizer.byte_table();
        let documents = ["In the beginning", "a space in between", "tail"];
        let found = audit(&tokenizer, &table, &stream(&tokenizer, &documents), None).unwrap();
        assert_eq!(found.decoded, documents.concat().len() as u64);
        assert_eq!(
            (
                found.documents,
                found.charged,
                found.free_spaces,
                found.overcharged
            ),
            (3, found.decoded, 0, 0)
        );
        // An unknown token decodes to five bytes and costs nothing; the space of " then" behind it is free.
        let unknown = stream(&tokenizer, &["one \u{6771} then"]);
        let found = audit(&tokenizer, &table, &unknown, None).unwrap();
        assert_eq!((found.overcharged, found.free_spaces), (-5, 1));
        assert_eq!(found.unexplained(), 0);
    }

    #[test]
    fn a_wrong_table_shows() {
        let tokenizer = sentencepiece();
        let right = tokenizer.byte_table();
        let spaced = right.leading_space.iter().position(|&space| space).unwrap() as u16;
        let mut stream = stream(&tokenizer, &["the end of the line"]);
        // A document that starts with a space.
        stream.insert(1, spaced);
        let found = audit(&tokenizer, &right, &stream, None).unwrap();
        assert_eq!((found.free_spaces, found.charged + 1), (1, found.decoded));
        let mut table = right.clone();
        table.boundary[usize::from(tokenizer.document_mark())] = false;
        let found = audit(&tokenizer, &table, &stream, None).unwrap();
        assert_eq!((found.free_spaces, found.charged), (0, found.decoded));
        let mut table = right;
        table.bytes[usize::from(spaced)] += 2;
        let found = audit(&tokenizer, &table, &stream, None).unwrap();
        let times = stream.iter().filter(|&&id| id == spaced).count() as i64;
        assert_eq!(found.overcharged, 2 * times, "{found:?}");
    }
}
