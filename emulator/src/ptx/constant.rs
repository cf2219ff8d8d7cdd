//! Constant expressions: C's operators on 64-bit integers and doubles, folded as they are read.
//!
//! Overflow wraps; a division by zero is an error. `0f…` keeps its 32 bits as long as it stands alone.

use super::ast::Operand;
use super::lexer::Tok;
use super::parser::{Parser, Result};

/// Nesting of parentheses and unary operators.
const MAX_DEPTH: u32 = 64;

#[derive(Debug, Clone, Copy, PartialEq)]
enum Value {
    S(i64),
    U(u64),
    F32(u32),
    F64(u64),
    Decimal(f64),
}

impl Value {
    fn is_float(self) -> bool {
        matches!(self, Value::F32(_) | Value::F64(_) | Value::Decimal(_))
    }

    fn as_f64(self) -> f64 {
        match self {
            Value::S(v) => v as f64,
            Value::U(v) => v as f64,
            Value::F32(v) => f64::from(f32::from_bits(v)),
            Value::F64(v) => f64::from_bits(v),
            Value::Decimal(v) => v,
        }
    }

    fn bits(self) -> u64 {
        match self {
            Value::S(v) => v as u64,
            Value::U(v) => v,
            _ => self.as_f64() as i64 as u64,
        }
    }

    fn truth(self) -> bool {
        if self.is_float() {
            self.as_f64() != 0.0
        } else {
            self.bits() != 0
        }
    }

    fn integer(unsigned: bool, bits: u64) -> Value {
        if unsigned {
            Value::U(bits)
        } else {
            Value::S(bits as i64)
        }
    }
}

/// Reads the text of a number token.
fn literal(text: &str) -> Option<Value> {
    let bytes = text.as_bytes();
    if let [b'0', kind @ (b'f' | b'F' | b'd' | b'D'), digits @ ..] = bytes {
        let wanted = if matches!(kind, b'f' | b'F') { 8 } else { 16 };
        if digits.len() != wanted || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let bits = u64::from_str_radix(&text[2..], 16).ok()?;
        return Some(if wanted == 8 {
            Value::F32(bits as u32)
        } else {
            Value::F64(bits)
        });
    }
    if let Some(value) = integer_literal(text) {
        return Some(value);
    }
    let decimal = bytes
        .iter()
        .all(|c| c.is_ascii_digit() || matches!(c, b'.' | b'e' | b'E' | b'+' | b'-'));
    let float = decimal && bytes.iter().any(|c| matches!(c, b'.' | b'e' | b'E'));
    if float {
        text.parse().ok().map(Value::Decimal)
    } else {
        None
    }
}

fn integer_literal(text: &str) -> Option<Value> {
    let (digits, unsigned) = match text.strip_suffix(['u', 'U']) {
        Some(digits) => (digits, true),
        None => (text, false),
    };
    let (digits, radix) = match digits.as_bytes() {
        [b'0', b'x' | b'X', ..] => (&digits[2..], 16),
        [b'0', b'b' | b'B', ..] => (&digits[2..], 2),
        [b'0', _, ..] => (&digits[1..], 8),
        _ => (digits, 10),
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    let bits = u64::from_str_radix(digits, radix).ok()?;
    Some(Value::integer(
        unsigned || i64::try_from(bits).is_err(),
        bits,
    ))
}

/// Binding strength of a binary operator; `None` for other tokens.
fn strength(tok: Tok<'_>) -> Option<u8> {
    Some(match tok {
        Tok::Pair("||") => 1,
        Tok::Pair("&&") => 2,
        Tok::Punct(b'|') => 3,
        Tok::Punct(b'^') => 4,
        Tok::Punct(b'&') => 5,
        Tok::Pair("==" | "!=") => 6,
        Tok::Pair("<=" | ">=") | Tok::Punct(b'<' | b'>') => 7,
        Tok::Pair("<<" | ">>") => 8,
        Tok::Punct(b'+' | b'-') => 9,
        Tok::Punct(b'*' | b'/' | b'%') => 10,
        _ => return None,
    })
}

impl Parser<'_, '_> {
    /// A constant expression as an immediate operand.
    pub fn constant(&mut self) -> Result<Operand> {
        Ok(match self.ternary(0)? {
            Value::S(v) => Operand::Int(v),
            Value::U(v) => Operand::Int(v as i64),
            Value::F32(bits) => Operand::F32(bits),
            Value::F64(bits) => Operand::F64(bits),
            Value::Decimal(v) => Operand::Float(v),
        })
    }

    /// A constant expression that has to be an integer.
    pub fn integer(&mut self, what: &str) -> Result<i64> {
        let token = self.token();
        match self.constant()? {
            Operand::Int(v) => Ok(v),
            _ => self.error_at(token, format!("{what} has to be an integer")),
        }
    }

    /// True where a constant expression can start.
    pub fn at_constant(&self) -> bool {
        matches!(
            self.peek(),
            Tok::Number(_) | Tok::Punct(b'-' | b'+' | b'~' | b'(' | b'!') | Tok::Name("WARP_SZ")
        )
    }

    fn ternary(&mut self, depth: u32) -> Result<Value> {
        let condition = self.binary(0, depth)?;
        if !self.accept(b'?') {
            return Ok(condition);
        }
        let yes = self.ternary(self.deeper(depth)?)?;
        self.expect(b':')?;
        let no = self.ternary(self.deeper(depth)?)?;
        Ok(if condition.truth() { yes } else { no })
    }

    fn deeper(&self, depth: u32) -> Result<u32> {
        if depth < MAX_DEPTH {
            Ok(depth + 1)
        } else {
            self.error("expression is nested too deeply")
        }
    }

    fn binary(&mut self, weakest: u8, depth: u32) -> Result<Value> {
        let mut left = self.unary(depth)?;
        while let Some(s) = strength(self.peek())
            && s > weakest
        {
            let operator = self.bump();
            let right = self.binary(s, depth)?;
            left = match apply(operator.tok, left, right) {
                Ok(value) => value,
                Err(what) => return self.error_at(operator, what),
            };
        }
        Ok(left)
    }

    fn unary(&mut self, depth: u32) -> Result<Value> {
        let depth = self.deeper(depth)?;
        let token = self.token();
        match token.tok {
            Tok::Number(text) => {
                self.bump();
                match literal(text) {
                    Some(value) => Ok(value),
                    None => self.error_at(token, format!("`{text}` is not a number")),
                }
            }
            Tok::Name("WARP_SZ") => {
                self.bump();
                Ok(Value::S(32))
            }
            Tok::Punct(b'(') => {
                self.bump();
                if let Tok::Dot(cast @ ("s64" | "u64")) = self.peek() {
                    self.bump();
                    self.expect(b')')?;
                    let value = self.unary(depth)?;
                    return Ok(Value::integer(cast == "u64", value.bits()));
                }
                let value = self.ternary(depth)?;
                self.expect(b')')?;
                Ok(value)
            }
            Tok::Punct(operator @ (b'-' | b'+' | b'~' | b'!')) => {
                self.bump();
                let value = self.unary(depth)?;
                Ok(match (operator, value) {
                    (b'+', _) => value,
                    (b'!', _) => Value::S(i64::from(!value.truth())),
                    (b'-', Value::S(v)) => Value::S(v.wrapping_neg()),
                    (b'-', Value::U(v)) => Value::U(v.wrapping_neg()),
                    (b'-', Value::F32(bits)) => Value::F32(bits ^ 1 << 31),
                    (b'-', Value::F64(bits)) => Value::F64(bits ^ 1 << 63),
                    (b'-', Value::Decimal(v)) => Value::Decimal(-v),
                    (_, Value::S(v)) => Value::S(!v),
                    (_, Value::U(v)) => Value::U(!v),
                    _ => return self.error_at(token, "`~` needs an integer"),
                })
            }
            _ => self.expected("a constant"),
        }
    }
}

fn apply(operator: Tok<'_>, a: Value, b: Value) -> std::result::Result<Value, &'static str> {
    let truth = |v: bool| Ok(Value::S(i64::from(v)));
    match operator {
        Tok::Pair("||") => return truth(a.truth() || b.truth()),
        Tok::Pair("&&") => return truth(a.truth() && b.truth()),
        _ => {}
    }
    if a.is_float() || b.is_float() {
        let (x, y) = (a.as_f64(), b.as_f64());
        return match operator {
            Tok::Punct(b'+') => Ok(Value::Decimal(x + y)),
            Tok::Punct(b'-') => Ok(Value::Decimal(x - y)),
            Tok::Punct(b'*') => Ok(Value::Decimal(x * y)),
            Tok::Punct(b'/') => Ok(Value::Decimal(x / y)),
            Tok::Punct(b'<') => truth(x < y),
            Tok::Punct(b'>') => truth(x > y),
            Tok::Pair("<=") => truth(x <= y),
            Tok::Pair(">=") => truth(x >= y),
            Tok::Pair("==") => truth(x == y),
            Tok::Pair("!=") => truth(x != y),
            _ => Err("this operator needs integers"),
        };
    }
    let unsigned = matches!(a, Value::U(_)) || matches!(b, Value::U(_));
    let (x, y) = (a.bits(), b.bits());
    let (sx, sy) = (x as i64, y as i64);
    let value = match operator {
        Tok::Punct(b'+') => x.wrapping_add(y),
        Tok::Punct(b'-') => x.wrapping_sub(y),
        Tok::Punct(b'*') => x.wrapping_mul(y),
        Tok::Punct(b'/' | b'%') if y == 0 => return Err("division by zero"),
        Tok::Punct(b'/') if unsigned => x / y,
        Tok::Punct(b'/') => sx.wrapping_div(sy) as u64,
        Tok::Punct(b'%') if unsigned => x % y,
        Tok::Punct(b'%') => sx.wrapping_rem(sy) as u64,
        Tok::Punct(b'&') => x & y,
        Tok::Punct(b'^') => x ^ y,
        Tok::Punct(b'|') => x | y,
        // A shift's result has the type of its left operand, and its count is clamped.
        Tok::Pair("<<") => {
            return Ok(Value::integer(
                matches!(a, Value::U(_)),
                if y > 63 { 0 } else { x << y },
            ));
        }
        Tok::Pair(">>") if matches!(a, Value::U(_)) => {
            return Ok(Value::U(if y > 63 { 0 } else { x >> y }));
        }
        Tok::Pair(">>") => return Ok(Value::S(sx >> y.min(63))),
        Tok::Pair("==") => return truth(x == y),
        Tok::Pair("!=") => return truth(x != y),
        Tok::Punct(b'<') => return truth(if unsigned { x < y } else { sx < sy }),
        Tok::Punct(b'>') => return truth(if unsigned { x > y } else { sx > sy }),
        Tok::Pair("<=") => return truth(if unsigned { x <= y } else { sx <= sy }),
        Tok::Pair(">=") => return truth(if unsigned { x >= y } else { sx >= sy }),
        _ => return Err("unknown operator"),
    };
    Ok(Value::integer(unsigned, value))
}

#[cfg(test)]
mod tests {
    use super::super::ast::Operand::{self, *};
    use super::super::lexer::tokens;
    use super::super::parser::Parser;

    fn fold(text: &str) -> Result<Operand, String> {
        let tokens = tokens(text).unwrap();
        Parser::new(&tokens).constant().map_err(|e| e.to_string())
    }

    #[test]
    fn folds_like_c() {
        for (text, value) in [
            ("1<<4|3", 19),
            ("2+3*4", 14),
            ("(2+3)*4", 20),
            ("-7/2", -3),
            ("-7%3", -1),
            ("~0", -1),
            ("!5", 0),
            ("017", 15),
            ("0b101U", 5),
            ("0xFFFFFFFFFFFFFFFF", -1),
            ("1?2:3", 2),
            ("0?2:1?4:5", 4),
            ("(.s64)0xFFFFFFFFFFFFFFFF < 1", 1),
            ("0xFFFFFFFFFFFFFFFF < 1", 0),
            ("(-9223372036854775807-1)/-1", i64::MIN),
            ("9223372036854775807+1", i64::MIN),
            ("1<<99", 0),
            ("-1>>70", -1),
            ("WARP_SZ-1", 31),
            ("10-2-3", 5),
            ("1==1&&2!=2||1", 1),
        ] {
            assert_eq!(fold(text), Ok(Int(value)), "{text}");
        }
        assert_eq!(fold("0f3F800000"), Ok(F32(0x3f80_0000)));
        assert_eq!(fold("-0f3F800000"), Ok(F32(0xbf80_0000)));
        assert_eq!(fold("0dBFF0000000000000"), Ok(F64(0xbff0_0000_0000_0000)));
        assert_eq!(fold("1.5"), Ok(Float(1.5)));
        assert_eq!(fold("1e-3"), Ok(Float(1e-3)));
    }

    #[test]
    fn refuses() {
        for text in [
            "1/0",
            "1%0",
            "0x",
            "0f123",
            "12abc",
            "~1.5",
            "1.5|2",
            "",
            "09",
            "0b2",
            "99999999999999999999",
        ] {
            assert!(fold(text).is_err(), "{text}");
        }
        assert!(fold(&"(".repeat(100_000)).is_err());
        assert!(fold(&"-".repeat(100_000)).is_err());
        assert!(fold(&"1?".repeat(100_000)).is_err());
    }
}
