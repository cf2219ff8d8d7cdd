//! SentencePiece BPE models: reading the `.model` file, encoding and decoding.
//!
//! The file is a protocol buffer; only the fields that BPE needs are read, by a small reader of our own, so
//! that no code generator is needed. Encoding repeats SentencePiece's own order: among all adjacent pairs whose
//! concatenation is a piece, the one with the highest score is merged, the leftmost at a tie. A symbol
//! that is no piece falls back to its bytes where the model has byte pieces, else runs of such symbols become
//! one unknown id.

use super::normalizer::{Normalizer, SPACE};
use std::collections::{BinaryHeap, HashMap};

/// What a piece is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Unused,
    Byte(u8),
}

#[derive(Clone, Debug)]
pub struct Piece {
    pub text: String,
    pub score: f32,
    pub kind: Kind,
}

/// A BPE model.
#[derive(Clone, Debug)]
pub struct Model {
    pieces: Vec<Piece>,
    ids: HashMap<String, u16>,
    bytes: Option<Box<[u16; 256]>>,
    unknown: u16,
    bos: u16,
    normalizer: Normalizer,
}

/// Protocol buffer wire format, as far as needed.
enum Field<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    Float(f32),
}

struct Wire<'a>(&'a [u8]);

impl<'a> Wire<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        if n > self.0.len() {
            return Err("it ends in the middle of a field".into());
        }
        let (head, tail) = self.0.split_at(n);
        self.0 = tail;
        Ok(head)
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 127) << shift;
            if byte < 128 {
                return Ok(value);
            }
        }
        Err("it is not a protocol buffer".into())
    }

    /// The next field number and value; `None` at the end.
    fn next(&mut self) -> Result<Option<(u64, Field<'a>)>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let field = match tag & 7 {
            0 => Field::Number(self.varint()?),
            1 => {
                let bytes = self.take(8)?;
                Field::Number(u64::from_le_bytes(bytes.try_into().expect("8 bytes")))
            }
            2 => {
                let length = self.varint()?;
                Field::Bytes(
                    self.take(usize::try_from(length).map_err(|_| "a field is too long")?)?,
                )
            }
            5 => Field::Float(f32::from_le_bytes(
                self.take(4)?.try_into().expect("4 bytes"),
            )),
            _ => return Err("it is not a protocol buffer".into()),
        };
        Ok(Some((tag >> 3, field)))
    }
}

impl Model {
    /// Reads a `.model` file. The error says what is wrong with it.
    pub fn parse(data: &[u8]) -> Result<Self, String> {
        let mut pieces = Vec::new();
        let mut normalizer = Normalizer::with_rules(true, true, true);
        let (mut model_type, mut suffix) = (1, 0);
        let (mut unknown, mut bos) = (0, 1);
        let mut wire = Wire(data);
        while let Some((number, field)) = wire.next()? {
            match (number, field) {
                (1, Field::Bytes(piece)) => pieces.push(read_piece(piece)?),
                (2, Field::Bytes(trainer)) => {
                    let mut trainer = Wire(trainer);
                    while let Some((number, field)) = trainer.next()? {
                        match (number, field) {
                            (3, Field::Number(value)) => model_type = value,
                            (24, Field::Number(value)) => suffix = value,
                            (40, Field::Number(value)) => unknown = value,
                            (41, Field::Number(value)) => bos = value,
                            _ => {}
                        }
                    }
                }
                (3, Field::Bytes(spec)) => {
                    let mut spec = Wire(spec);
                    while let Some((number, field)) = spec.next()? {
                        match (number, field) {
                            (2, Field::Bytes(map)) => normalizer.load_map(map)?,
                            (3, Field::Number(value)) => normalizer.add_dummy_prefix = value != 0,
                            (4, Field::Number(value)) => {
                                normalizer.remove_extra_whitespaces = value != 0
                            }
                            (5, Field::Number(value)) => normalizer.escape_whitespaces = value != 0,
                            _ => {}
                        }
                    }
                }
                _ => {}
            }
        }
        if pieces.is_empty() {
            return Err("it holds no pieces".into());
        }
        if model_type != 2 {
            return Err("it is not a BPE model".into());
        }
        if suffix != 0 {
            return Err("it treats white space as suffix, which is not supported".into());
        }
        if pieces.len() > 1 << 16 {
            return Err(format!("its {} pieces do not fit 16-bit ids", pieces.len()));
        }
        Self::build(pieces, unknown, bos, normalizer)
    }

    fn build(
        pieces: Vec<Piece>,
        unknown: u64,
        bos: u64,
        normalizer: Normalizer,
    ) -> Result<Self, String> {
        let unknown = pieces
            .iter()
            .position(|piece| piece.kind == Kind::Unknown)
            .or(usize::try_from(unknown)
                .ok()
                .filter(|id| *id < pieces.len()))
            .ok_or("it has no unknown piece")? as u16;
        let bos = usize::try_from(bos)
            .ok()
            .filter(|id| {
                pieces
                    .get(*id)
                    .is_some_and(|piece| piece.kind == Kind::Control)
            })
            .ok_or("it has no begin-of-sentence piece, which starts every document")?
            as u16;
        let mut ids = HashMap::with_capacity(pieces.len());
        let mut bytes: Box<[Option<u16>; 256]> = Box::new([None; 256]);
        for (id, piece) in pieces.iter().enumerate() {
            match piece.kind {
                Kind::Byte(byte) => bytes[byte as usize] = Some(id as u16),
                Kind::Normal | Kind::UserDefined | Kind::Unused => {
                    ids.insert(piece.text.clone(), id as u16);
                }
                Kind::Unknown | Kind::Control => {}
            }
        }
        let all: Option<Vec<u16>> = bytes.iter().copied().collect();
        let bytes = all.map(|all| Box::new(<[u16; 256]>::try_from(all).expect("256 bytes")));
        Ok(Self {
            pieces,
            ids,
            bytes,
            unknown,
            bos,
            normalizer,
        })
    }

    pub fn pieces(&self) -> &[Piece] {
        &self.pieces
    }

    pub fn len(&self) -> usize {
        self.pieces.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Begin-of-sentence id, which starts every document.
    pub fn bos(&self) -> u16 {
        self.bos
    }

    /// Ids of a text, without begin or end marks.
    pub fn encode(&self, text: &str) -> Vec<u16> {
        let text = self.normalizer.normalize(text);
        let mut merger = Merger::new(self, &text);
        merger.run();
        let mut ids = Vec::new();
        let mut in_unknown = false;
        for range in merger.symbols() {
            in_unknown = self.emit(&text[range], in_unknown, &mut ids);
        }
        ids
    }

    /// Appends the ids of one symbol; returns whether it was unknown.
    fn emit(&self, symbol: &str, in_unknown: bool, ids: &mut Vec<u16>) -> bool {
        match self.ids.get(symbol) {
            Some(id) if self.pieces[*id as usize].kind != Kind::Unused => {
                ids.push(*id);
                return false;
            }
            // A merged piece that the model declares unused is emitted as its characters.
            Some(_) if symbol.chars().nth(1).is_some() => {
                let mut unknown = in_unknown;
                for c in symbol.chars() {
                    unknown = self.emit(c.encode_utf8(&mut [0; 4]), unknown, ids);
                }
                return unknown;
            }
            _ => {}
        }
        if let Some(bytes) = &self.bytes {
            ids.extend(symbol.bytes().map(|byte| bytes[byte as usize]));
            return false;
        }
        if !in_unknown {
            ids.push(self.unknown);
        }
        true
    }

    /// The text of some ids: unknown is " ⁇ ", control ids are nothing, bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u16]) -> String {
        String::from_utf8_lossy(&self.decoded_bytes(ids)).into_owned()
    }

    /// The same as bytes, whether or not they are UTF-8.
    pub fn decoded_bytes(&self, ids: &[u16]) -> Vec<u8> {
        let mut out: Vec<u8> = Vec::new();
        for id in ids {
            let piece = &self.pieces[*id as usize];
            match piece.kind {
                Kind::Control => {}
                Kind::Unknown => out.extend(" \u{2047} ".bytes()),
                Kind::Byte(byte) => out.push(byte),
                Kind::Normal | Kind::UserDefined | Kind::Unused => {
                    for (i, part) in piece.text.split(SPACE).enumerate() {
                        if i > 0 && !(out.is_empty() && self.normalizer.add_dummy_prefix) {
                            out.push(b' ');
                        }
                        out.extend(part.bytes());
                    }
                }
            }
        }
        out
    }
}

fn read_piece(data: &[u8]) -> Result<Piece, String> {
    let (mut text, mut score, mut kind) = ("", 0.0, 1);
    let mut wire = Wire(data);
    while let Some((number, field)) = wire.next()? {
        match (number, field) {
            (1, Field::Bytes(bytes)) => {
                text = std::str::from_utf8(bytes).map_err(|_| "a piece is not UTF-8")?
            }
            (2, Field::Float(value)) => score = value,
            (3, Field::Number(value)) => kind = value,
            _ => {}
        }
    }
    let kind = match kind {
        1 => Kind::Normal,
        2 => Kind::Unknown,
        3 => Kind::Control,
        4 => Kind::UserDefined,
        5 => Kind::Unused,
        6 => {
            let hex = text
                .strip_prefix("<0x")
                .and_then(|t| t.strip_suffix('>'))
                .ok_or("a byte piece has no value")?;
            Kind::Byte(u8::from_str_radix(hex, 16).map_err(|_| "a byte piece has no value")?)
        }
        other => return Err(format!("a piece has the unknown type {other}")),
    };
    Ok(Piece {
        text: text.to_owned(),
        score,
        kind,
    })
}

/// A candidate pair. Ordered by score, then leftmost.
struct Candidate {
    score: f32,
    left: usize,
    right: usize,
    length: usize,
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Candidate {}
impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.score
            .total_cmp(&other.score)
            .then(other.left.cmp(&self.left))
    }
}

/// A symbol of the text: a byte range in a doubly linked list. An empty range was merged away.
#[derive(Clone)]
struct Symbol {
    start: usize,
    end: usize,
    previous: Option<usize>,
    next: Option<usize>,
    /// User-defined pieces are never merged.
    frozen: bool,
}

struct Merger<'a> {
    model: &'a Model,
    text: &'a str,
    symbols: Vec<Symbol>,
    queue: BinaryHeap<Candidate>,
}

impl<'a> Merger<'a> {
    fn new(model: &'a Model, text: &'a str) -> Self {
        let user: Vec<&str> = model
            .pieces
            .iter()
            .filter(|p| p.kind == Kind::UserDefined && !p.text.is_empty())
            .map(|p| p.text.as_str())
            .collect();
        let mut symbols: Vec<Symbol> = Vec::with_capacity(text.len());
        let mut start = 0;
        while let Some(c) = text[start..].chars().next() {
            let fixed = user
                .iter()
                .filter(|piece| text[start..].starts_with(**piece))
                .map(|piece| piece.len())
                .max();
            let end = start + fixed.unwrap_or(c.len_utf8());
            let i = symbols.len();
            symbols.push(Symbol {
                start,
                end,
                previous: i.checked_sub(1),
                next: Some(i + 1),
                frozen: fixed.is_some(),
            });
            start = end;
        }
        if let Some(last) = symbols.last_mut() {
            last.next = None;
        }
        Self {
            model,
            text,
            symbols,
            queue: BinaryHeap::new(),
        }
    }

    fn offer(&mut self, left: Option<usize>, right: Option<usize>) {
        let (Some(left), Some(right)) = (left, right) else {
            return;
        };
        let (l, r) = (&self.symbols[left], &self.symbols[right]);
        if l.frozen || r.frozen {
            return;
        }
        let piece = &self.text[l.start..r.end];
        if let Some(id) = self.model.ids.get(piece) {
            self.queue.push(Candidate {
                score: self.model.pieces[*id as usize].score,
                left,
                right,
                length: piece.len(),
            });
        }
    }

    fn run(&mut self) {
        for i in 1..self.symbols.len() {
            self.offer(Some(i - 1), Some(i));
        }
        while let Some(top) = self.queue.pop() {
            let (l, r) = (&self.symbols[top.left], &self.symbols[top.right]);
            let stale = l.start == l.end || r.start == r.end || r.end - l.start != top.length;
            if stale {
                continue;
            }
            let (end, next) = (r.end, r.next);
            self.symbols[top.right].end = self.symbols[top.right].start;
            self.symbols[top.left].end = end;
            self.symbols[top.left].next = next;
            if let Some(next) = next {
                self.symbols[next].previous = Some(top.left);
            }
            let previous = self.symbols[top.left].previous;
            self.offer(previous, Some(top.left));
            self.offer(Some(top.left), next);
        }
    }

    fn symbols(&self) -> impl Iterator<Item = std::ops::Range<usize>> + '_ {
        let mut at = (!self.symbols.is_empty()).then_some(0);
        std::iter::from_fn(move || {
            let symbol = &self.symbols[at?];
            at = symbol.next;
            Some(symbol.start..symbol.end)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(text: &str, score: f32, kind: Kind) -> Piece {
        Piece {
            text: text.into(),
            score,
            kind,
        }
    }

    fn model(pieces: Vec<Piece>) -> Model {
        let normalizer = Normalizer::with_rules(false, false, true);
        Model::build(pieces, 1, 0, normalizer).unwrap()
    }

    #[test]
    fn merges_by_score_then_from_the_left() {
        let m = model(vec![
            piece("<s>", 0.0, Kind::Control),
            piece("<unk>", 0.0, Kind::Unknown),
            piece("aa", -1.0, Kind::Normal),
            piece("ab", 0.0, Kind::Normal),
            piece("a", -2.0, Kind::Normal),
            piece("b", -3.0, Kind::Normal),
        ]);
        assert_eq!(m.encode("aaab"), [2, 3]);
        assert_eq!(m.encode("aaa"), [2, 4]);
        assert_eq!(
            m.encode("axyb"),
            [4, 1, 5],
            "a run of unknown characters is one id"
        );
        assert_eq!(m.decode(&[0, 4, 1, 5]), "a \u{2047} b");
    }

    #[test]
    fn unknown_characters_fall_back_to_bytes() {
        let mut pieces = vec![
            piece("<s>", 0.0, Kind::Control),
            piece("<unk>", 0.0, Kind::Unknown),
        ];
        pieces.extend((0..=255).map(|b| piece(&format!("<0x{b:02X}>"), 0.0, Kind::Byte(b))));
        let m = model(pieces);
        assert_eq!(m.encode("é"), [2 + 0xc3, 2 + 0xa9]);
        assert_eq!(m.decode(&m.encode("né!")), "né!");
    }

    #[test]
    fn damaged_models_are_refused() {
        assert!(Model::parse(b"").is_err());
        assert!(Model::parse(b"just some text, not a model").is_err());
        assert!(Model::parse(&[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]).is_err());
    }
}
