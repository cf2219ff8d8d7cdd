//! PTX text to tokens.
//!
//! A name that starts with a dot (directive, type, modifier) is one token, `::` included: `.shared::cta`. A dot right
//! after a name (`%tid.x`, `ld.global`) starts such a token too, even before a digit (`.2d`); elsewhere a dot before a
//! digit starts a number. Numbers keep their text: whether `9.0` is a version or a float is the parser's business.

use super::ParseError;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Tok<'a> {
    /// `foo`, `%r1`, `$L__BB0_1`, `_`.
    Name(&'a str),
    /// `.foo::bar` without its first dot.
    Dot(&'a str),
    Number(&'a str),
    /// The text between the quotes, escapes untouched.
    Text(&'a str),
    /// One ASCII punctuation character.
    Punct(u8),
    /// `<<`, `>>`, `==`, `!=`, `<=`, `>=`, `&&`, `||`.
    Pair(&'a str),
    End,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Token<'a> {
    pub tok: Tok<'a>,
    pub line: u32,
    pub column: u32,
}

fn is_name_start(c: u8) -> bool {
    c.is_ascii_alphabetic() || c == b'_' || c == b'$'
}

fn is_name_part(c: u8) -> bool {
    is_name_start(c) || c.is_ascii_digit()
}

struct Lexer<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    line: u32,
    line_start: usize,
}

impl<'a> Lexer<'a> {
    fn byte(&self, ahead: usize) -> u8 {
        self.bytes.get(self.at + ahead).copied().unwrap_or(0)
    }

    fn error(&self, what: impl Into<String>) -> ParseError {
        ParseError {
            line: self.line,
            column: self.column(self.at),
            what: what.into(),
        }
    }

    fn column(&self, at: usize) -> u32 {
        u32::try_from(at - self.line_start + 1).unwrap_or(u32::MAX)
    }

    fn newline(&mut self) {
        self.line = self.line.saturating_add(1);
        self.line_start = self.at + 1;
    }

    /// Skips white space, comments and the line marks of a C preprocessor.
    fn skip_blanks(&mut self) -> Result<(), ParseError> {
        while self.at < self.bytes.len() {
            match self.byte(0) {
                b'\n' => {
                    self.newline();
                    self.at += 1;
                }
                b' ' | b'\t' | b'\r' | 0x0b | 0x0c => self.at += 1,
                b'/' if self.byte(1) == b'/' => self.skip_line(),
                b'/' if self.byte(1) == b'*' => self.skip_block_comment()?,
                b'#' => self.skip_line_mark()?,
                _ => break,
            }
        }
        Ok(())
    }

    fn skip_line(&mut self) {
        while self.at < self.bytes.len() && self.byte(0) != b'\n' {
            self.at += 1;
        }
    }

    fn skip_block_comment(&mut self) -> Result<(), ParseError> {
        let (line, column) = (self.line, self.column(self.at));
        self.at += 2;
        while self.at < self.bytes.len() {
            if self.byte(0) == b'*' && self.byte(1) == b'/' {
                self.at += 2;
                return Ok(());
            }
            if self.byte(0) == b'\n' {
                self.newline();
            }
            self.at += 1;
        }
        Err(ParseError {
            line,
            column,
            what: "comment is not closed".into(),
        })
    }

    fn skip_line_mark(&mut self) -> Result<(), ParseError> {
        let rest = &self.bytes[self.at + 1..];
        let rest = rest.trim_ascii_start();
        let rest = rest
            .strip_prefix(b"line")
            .map_or(rest, <[u8]>::trim_ascii_start);
        if !rest.first().is_some_and(u8::is_ascii_digit) {
            return Err(self.error(
                "unexpected `#` (preprocessor directives other than line marks are not PTX)",
            ));
        }
        self.skip_line();
        Ok(())
    }

    fn name_end(&self, mut end: usize) -> usize {
        while self.bytes.get(end).copied().is_some_and(is_name_part) {
            end += 1;
        }
        end
    }

    fn dot_name_end(&self, mut end: usize) -> usize {
        loop {
            end = self.name_end(end);
            let colons = self.bytes.get(end..end + 2) == Some(b"::");
            if !(colons && self.bytes.get(end + 2).copied().is_some_and(is_name_part)) {
                return end;
            }
            end += 2;
        }
    }

    fn number_end(&self) -> usize {
        let mut end = self.name_end(self.at);
        let plain = |s: &[u8]| s.iter().all(u8::is_ascii_digit);
        let mut decimal = plain(&self.bytes[self.at..end]);
        if decimal
            && self.bytes.get(end) == Some(&b'.')
            && !self
                .bytes
                .get(end + 1)
                .copied()
                .is_some_and(|c| is_name_start(c) && !matches!(c, b'e' | b'E'))
        {
            end = self.name_end(end + 1);
        } else if let Some((&(b'e' | b'E'), mantissa)) = self.bytes[self.at..end].split_last() {
            decimal = !mantissa.is_empty() && plain(mantissa);
        } else {
            decimal = false;
        }
        let sign = matches!(self.bytes.get(end), Some(b'+' | b'-'));
        if decimal
            && sign
            && matches!(self.bytes[end - 1], b'e' | b'E')
            && self.bytes.get(end + 1).is_some_and(u8::is_ascii_digit)
        {
            end = self.name_end(end + 1);
        }
        end
    }

    fn string_end(&self) -> Result<usize, ParseError> {
        let mut end = self.at + 1;
        loop {
            match self.bytes.get(end) {
                Some(b'"') => return Ok(end),
                Some(b'\\') if self.bytes.get(end + 1).is_some_and(|&c| c != b'\n') => end += 2,
                None | Some(b'\n') => return Err(self.error("string is not closed")),
                Some(_) => end += 1,
            }
        }
    }

    fn next(&mut self) -> Result<Token<'a>, ParseError> {
        self.skip_blanks()?;
        let start = self.at;
        let (line, column) = (self.line, self.column(start));
        let text = self.text;
        let c = self.byte(0);
        let next = self.byte(1);
        let after_name = start > 0 && is_name_part(self.bytes[start - 1]);
        let tok = if start >= self.bytes.len() {
            Tok::End
        } else if is_name_start(c) || (c == b'%' && is_name_start(next)) {
            self.at = self.name_end(start + 1);
            Tok::Name(&text[start..self.at])
        } else if c == b'.' && (is_name_start(next) || (after_name && is_name_part(next))) {
            self.at = self.dot_name_end(start + 1);
            Tok::Dot(&text[start + 1..self.at])
        } else if c.is_ascii_digit() || (c == b'.' && next.is_ascii_digit()) {
            self.at = self.number_end();
            Tok::Number(&text[start..self.at])
        } else if c == b'"' {
            let end = self.string_end()?;
            self.at = end + 1;
            Tok::Text(
                text.get(start + 1..end)
                    .ok_or_else(|| self.error("string is not closed"))?,
            )
        } else if c.is_ascii_punctuation() {
            if matches!(
                &[c, next],
                b"<<" | b">>" | b"==" | b"!=" | b"<=" | b">=" | b"&&" | b"||"
            ) {
                self.at += 2;
                Tok::Pair(&text[start..start + 2])
            } else {
                self.at += 1;
                Tok::Punct(c)
            }
        } else {
            let shown = text[start..].chars().next().unwrap_or('\u{fffd}');
            return Err(self.error(format!("unexpected character {shown:?}")));
        };
        Ok(Token { tok, line, column })
    }
}

/// All tokens of `text`; the last one is [`Tok::End`].
pub(super) fn tokens(text: &str) -> Result<Vec<Token<'_>>, ParseError> {
    let mut lexer = Lexer {
        text,
        bytes: text.as_bytes(),
        at: 0,
        line: 1,
        line_start: 0,
    };
    let mut tokens = Vec::with_capacity(text.len() / 4 + 1);
    loop {
        let token = lexer.next()?;
        tokens.push(token);
        if token.tok == Tok::End {
            return Ok(tokens);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<Tok<'_>> {
        let mut all: Vec<_> = tokens(text).unwrap().into_iter().map(|t| t.tok).collect();
        assert_eq!(all.pop(), Some(Tok::End));
        all
    }

    #[test]
    fn dots_numbers_and_names() {
        use Tok::*;
        assert_eq!(
            kinds("cp.async.2d.L2::128B x.x, .5 1.5e-3;"),
            [
                Name("cp"),
                Dot("async"),
                Dot("2d"),
                Dot("L2::128B"),
                Name("x"),
                Dot("x"),
                Punct(b','),
                Number(".5"),
                Number("1.5e-3"),
                Punct(b';')
            ]
        );
        assert_eq!(kinds("0x1e-5"), [Number("0x1e"), Punct(b'-'), Number("5")]);
        assert_eq!(
            kinds("0f3F800000 9.0"),
            [Number("0f3F800000"), Number("9.0")]
        );
        assert_eq!(
            kinds("1<<4|%r1"),
            [
                Number("1"),
                Pair("<<"),
                Number("4"),
                Punct(b'|'),
                Name("%r1")
            ]
        );
        assert_eq!(
            kinds("a: .b8 1 // c\n/* \n */ \"q\\\"r\""),
            [
                Name("a"),
                Punct(b':'),
                Dot("b8"),
                Number("1"),
                Text("q\\\"r")
            ]
        );
    }

    #[test]
    fn positions_and_errors() {
        let all = tokens("a\n  /* x\n */ b").unwrap();
        assert_eq!((all[1].line, all[1].column), (3, 5));
        assert_eq!(
            tokens("x\n \"abc").unwrap_err().to_string(),
            "2:2: string is not closed"
        );
        assert_eq!(
            tokens("é").unwrap_err().to_string(),
            "1:1: unexpected character 'é'"
        );
        assert!(tokens("/* ").is_err());
        assert!(tokens("#define X").is_err());
        assert_eq!(kinds("# 12 \"f.cu\"\nx"), [Tok::Name("x")]);
    }
}
