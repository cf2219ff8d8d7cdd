//! Source positions: `.file`, `.loc` with its inline stack, and the `.debug_str` section that names functions.

use std::sync::Arc;

use super::ast::Loc;
use super::lexer::Tok;
use super::parser::{Parser, Result};
use crate::hash::FastMap;

/// Longest chain of `inlined_at` (it is dropped and printed recursively).
const MAX_INLINE_DEPTH: u32 = 256;

/// The `.loc`s of one function by position: `inlined_at` means the latest earlier `.loc` of that position.
#[derive(Default)]
pub(super) struct Positions {
    by_place: FastMap<(u32, u32, u32), (Arc<Loc>, u32)>,
}

impl<'a> Parser<'_, 'a> {
    /// `.file 1 "path" [, time, size]`
    pub fn file(&mut self) -> Result<()> {
        self.bump();
        let index = self.u32("a file's index")?;
        let Tok::Text(path) = self.peek() else {
            return self.expected("a path");
        };
        self.bump();
        while self.accept(b',') {
            self.integer("a file's time or size")?;
        }
        self.module.files.push((index, path.to_string()));
        Ok(())
    }

    pub fn skip_loc(&mut self) -> Result<()> {
        self.loc(&mut Positions::default()).map(drop)
    }

    /// `.loc file line column [, function_name label[+n]] [, inlined_at file line column]`
    pub fn loc(&mut self, positions: &mut Positions) -> Result<Arc<Loc>> {
        self.bump();
        let place = self.place()?;
        let mut loc = Loc {
            file: place.0,
            line: place.1,
            column: place.2,
            function: None,
            inlined_at: None,
        };
        let mut depth = 0;
        while self.accept(b',') {
            match self.name("`function_name` or `inlined_at`")? {
                "function_name" => {
                    let label = self.name("a label of .debug_str")?;
                    let offset = if self.accept(b'+') {
                        self.u32("an offset in .debug_str")?
                    } else {
                        0
                    };
                    loc.function = self.debug_string(label, offset);
                }
                "inlined_at" => {
                    let (file, line, column) = self.place()?;
                    let (outer, outer_depth) = positions
                        .by_place
                        .get(&(file, line, column))
                        .cloned()
                        .unwrap_or_else(|| {
                            (
                                Arc::new(Loc {
                                    file,
                                    line,
                                    column,
                                    function: None,
                                    inlined_at: None,
                                }),
                                0,
                            )
                        });
                    depth = outer_depth + 1;
                    if depth > MAX_INLINE_DEPTH {
                        return self.error("`inlined_at` is nested too deeply");
                    }
                    loc.inlined_at = Some(outer);
                }
                _ => return self.error("expected `function_name` or `inlined_at`"),
            }
        }
        let loc = Arc::new(loc);
        positions.by_place.insert(place, (loc.clone(), depth));
        Ok(loc)
    }

    fn place(&mut self) -> Result<(u32, u32, u32)> {
        let mut numbers = [0; 3];
        for (i, number) in numbers.iter_mut().enumerate() {
            // Old producers leave the column out.
            match self.peek() {
                Tok::Number(text) => {
                    let Ok(value) = text.parse() else {
                        return self.error("a position has to be an integer");
                    };
                    *number = value;
                    self.bump();
                }
                _ if i == 2 => {}
                _ => return self.expected("a position"),
            }
        }
        let [file, line, column] = numbers;
        Ok((file, line, column))
    }

    fn debug_string(&self, label: &str, offset: u32) -> Option<String> {
        let (_, text) = self
            .module
            .debug_strings
            .get(*self.debug_labels.get(label)?)?;
        text.get(offset as usize..).map(str::to_string)
    }

    /// Skips `.section name { … }`: DWARF for other tools.
    pub fn skip_section(&mut self) -> Result<()> {
        self.bump();
        let Tok::Dot(_) = self.peek() else {
            return self.expected("the section's name");
        };
        self.bump();
        self.expect(b'{')?;
        let mut depth = 1;
        while depth > 0 {
            match self.peek() {
                Tok::Punct(b'{') => depth += 1,
                Tok::Punct(b'}') => depth -= 1,
                Tok::End => return self.expected("`}`"),
                _ => {}
            }
            self.bump();
        }
        Ok(())
    }

    /// Reads the strings of every `.section .debug_str`, wherever they stand (they follow the code that names them).
    pub fn scan_debug_strings(&self) -> Vec<(String, String)> {
        let mut strings = Vec::new();
        let mut rest = self.tokens.iter().map(|t| t.tok);
        while let Some(tok) = rest.next() {
            if tok != Tok::Dot("section") || rest.next() != Some(Tok::Dot("debug_str")) {
                continue;
            }
            let mut label: Option<&str> = None;
            let mut bytes = Vec::new();
            let mut ended = false;
            for tok in rest.by_ref() {
                match tok {
                    Tok::Punct(b'}') | Tok::End => break,
                    Tok::Name(name) => {
                        label = Some(name);
                        (bytes, ended) = (Vec::new(), false);
                    }
                    Tok::Number(text) if !ended => match text.parse::<u8>() {
                        Ok(0) => {
                            ended = true;
                            if let Some(label) = label {
                                strings.push((
                                    label.to_string(),
                                    String::from_utf8_lossy(&bytes).into_owned(),
                                ));
                            }
                        }
                        Ok(byte) => bytes.push(byte),
                        Err(_) => {}
                    },
                    _ => {}
                }
            }
        }
        strings
    }
}
