//! Initialisers of module-scope variables, as bytes and relocations.
//!
//! Nested braces follow C: an inner pair fills one row of the next dimension, what is left out is zero.

use super::ast::{Initializer, Operand, Relocation, Ty};
use super::lexer::Tok;
use super::parser::{Parser, Result};

/// Bytes of all initialisers of a module: a guard against `x[2][1<<40] = {{1},{2}}`.
const MAX_BYTES: u64 = 1 << 30;

impl Parser<'_, '_> {
    /// What follows `=`. `dims` (the first may be 0 for `[]`) end with the components of a vector type. Returns the
    /// number of elements as well, whole rows of them.
    pub fn initializer(&mut self, ty: Ty, dims: &[u64]) -> Result<(Initializer, u64)> {
        let mut init = Initializer::default();
        let mut elements = 1;
        if self.is_punct(b'{') {
            elements = self.row(&mut init, ty, dims, 0)?;
            let row: u64 = dims.get(1..).map_or(1, |rest| rest.iter().product());
            elements = elements.next_multiple_of(row.max(1));
        } else {
            if !dims.is_empty() {
                return self.expected("`{`");
            }
            self.element(&mut init, ty, 0)?;
        }
        self.initialized_bytes += init.bytes.len() as u64;
        Ok((init, elements))
    }

    /// One pair of braces, from element `start` on; returns how many elements it covers.
    fn row(&mut self, init: &mut Initializer, ty: Ty, dims: &[u64], start: u64) -> Result<u64> {
        self.expect(b'{')?;
        let stride: u64 = dims.get(1..).map_or(1, |rest| rest.iter().product());
        let capacity = match dims.first() {
            Some(0) => u64::MAX,
            Some(n) => n * stride,
            None => 1,
        };
        let mut done = 0u64;
        if self.accept(b'}') {
            return Ok(0);
        }
        loop {
            if done >= capacity {
                return self.error("more values than elements");
            }
            if self.is_punct(b'{') {
                if dims.len() < 2 || !done.is_multiple_of(stride.max(1)) {
                    return self.error("unexpected `{`");
                }
                self.row(init, ty, &dims[1..], start + done)?;
                done += stride;
            } else {
                self.element(init, ty, start + done)?;
                done += 1;
            }
            if !self.accept(b',') {
                self.expect(b'}')?;
                return Ok(done);
            }
        }
    }

    fn element(&mut self, init: &mut Initializer, ty: Ty, index: u64) -> Result<()> {
        let size = u64::from(ty.size());
        let offset = index.saturating_mul(size);
        if self.initialized_bytes.saturating_add(offset) >= MAX_BYTES {
            return self.error("the initialisers of the module are larger than 1 GiB");
        }
        let end = (offset + size) as usize;
        if init.bytes.len() < end {
            init.bytes.resize(end, 0);
        }
        if let Some(relocation) = self.relocation(ty, offset)? {
            init.relocations.push(relocation);
            return Ok(());
        }
        let token = self.token();
        let bits: u128 = match (self.constant()?, ty) {
            (Operand::Int(v), Ty::F32) => u128::from((v as f32).to_bits()),
            (Operand::Int(v), Ty::F64) => u128::from((v as f64).to_bits()),
            (Operand::Int(v), _) => v as i128 as u128,
            (Operand::Float(v), Ty::F32) => u128::from((v as f32).to_bits()),
            (Operand::Float(v), Ty::F64) => u128::from(v.to_bits()),
            (Operand::F32(bits), Ty::F32 | Ty::B32) => u128::from(bits),
            (Operand::F32(bits), Ty::F64) => u128::from(f64::from(f32::from_bits(bits)).to_bits()),
            (Operand::F64(bits), Ty::F64 | Ty::B64) => u128::from(bits),
            (Operand::F64(bits), Ty::F32) => u128::from((f64::from_bits(bits) as f32).to_bits()),
            _ => return self.error_at(token, "this value does not fit the variable's type"),
        };
        init.bytes[offset as usize..end].copy_from_slice(&bits.to_le_bytes()[..size as usize]);
        Ok(())
    }

    /// `symbol`, `symbol+4`, `generic(symbol)+4`, `0xFF00(symbol)`; `None` where a constant comes.
    fn relocation(&mut self, ty: Ty, offset: u64) -> Result<Option<Relocation>> {
        let mut size = ty.size();
        let mut shift = 0;
        let token = self.token();
        let masked = matches!(self.peek(), Tok::Number(_)) && self.peek_at(1) == Tok::Punct(b'(');
        if masked {
            let Tok::Number(text) = self.bump().tok else {
                return self.expected("a mask");
            };
            let digits = text
                .strip_prefix("0x")
                .or_else(|| text.strip_prefix("0X"))
                .unwrap_or("");
            let Ok(mask) = u64::from_str_radix(digits.trim_end_matches(['u', 'U']), 16) else {
                return self.error_at(token, "a mask has to be a hexadecimal integer");
            };
            shift = mask.trailing_zeros();
            if mask == 0 || !shift.is_multiple_of(8) || mask >> shift != 0xff || size != 1 {
                return self.error_at(
                    token,
                    "a mask selects one byte (0xFF, 0xFF00, …) for an 8-bit element",
                );
            }
            size = 1;
            self.expect(b'(')?;
        } else if !matches!(self.peek(), Tok::Name(name) if name != "WARP_SZ") {
            return Ok(None);
        }
        let mut addend = 0i64;
        let generic = self.peek() == Tok::Name("generic") && self.peek_at(1) == Tok::Punct(b'(');
        if generic {
            self.at += 2;
        }
        let token = self.token();
        let symbol = self.name("a symbol")?;
        self.addend(&mut addend)?;
        if generic {
            self.expect(b')')?;
            self.addend(&mut addend)?;
        }
        if masked {
            self.expect(b')')?;
        } else if !matches!(size, 4 | 8) {
            return self.error_at(token, "an address needs an element of 32 or 64 bits");
        }
        self.wanted.push((symbol.into(), token));
        Ok(Some(Relocation {
            offset,
            symbol: symbol.to_string(),
            addend,
            generic,
            size: size as u8,
            shift: shift as u8,
        }))
    }

    fn addend(&mut self, addend: &mut i64) -> Result<()> {
        if matches!(self.peek(), Tok::Punct(b'+' | b'-')) {
            *addend = addend.wrapping_add(self.integer("an offset")?);
        }
        Ok(())
    }
}
