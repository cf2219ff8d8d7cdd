//! Operands of instructions.

use super::ast::{Operand, RegId};
use super::function::{Body, Found};
use super::lexer::{Tok, Token};
use super::parser::{Parser, Result};

/// Nesting of braces and brackets.
const MAX_DEPTH: u32 = 4;

/// Special registers with the components x, y, z, w.
const VECTOR_SPECIALS: &[&str] = &[
    "%tid",
    "%ntid",
    "%ctaid",
    "%nctaid",
    "%clusterid",
    "%nclusterid",
    "%cluster_ctaid",
    "%cluster_nctaid",
];

const SPECIALS: &[&str] = &[
    "%laneid",
    "%warpid",
    "%nwarpid",
    "%smid",
    "%nsmid",
    "%gridid",
    "%is_explicit_cluster",
    "%cluster_ctarank",
    "%cluster_nctarank",
    "%lanemask_eq",
    "%lanemask_le",
    "%lanemask_lt",
    "%lanemask_ge",
    "%lanemask_gt",
    "%clock",
    "%clock_hi",
    "%clock64",
    "%globaltimer",
    "%globaltimer_lo",
    "%globaltimer_hi",
    "%reserved_smem_offset_begin",
    "%reserved_smem_offset_end",
    "%reserved_smem_offset_cap",
    "%reserved_smem_offset_0",
    "%reserved_smem_offset_1",
    "%total_smem_size",
    "%aggr_smem_size",
    "%dynamic_smem_size",
    "%current_graph_exec",
];

fn is_numbered(name: &str, prefix: &str, count: u32) -> bool {
    let Some(digits) = name.strip_prefix(prefix) else {
        return false;
    };
    digits
        .parse::<u32>()
        .is_ok_and(|n| n < count && n.to_string() == digits)
}

fn is_special(name: &str) -> bool {
    SPECIALS.contains(&name)
        || is_numbered(name, "%envreg", 32)
        || is_numbered(name, "%pm", 8)
        || name
            .strip_suffix("_64")
            .is_some_and(|pm| is_numbered(pm, "%pm", 8))
}

fn component(name: &str) -> Option<u8> {
    Some(match name {
        "x" | "r" => 0,
        "y" | "g" => 1,
        "z" | "b" => 2,
        "w" | "a" => 3,
        _ => return None,
    })
}

impl<'a> Parser<'_, 'a> {
    /// One operand; parentheses are argument lists in a `call`.
    pub fn operand(&mut self, body: &mut Body<'a>, in_call: bool) -> Result<Operand> {
        if in_call && self.is_punct(b'(') {
            self.bump();
            return Ok(Operand::List(self.items(body, b')', 1)?));
        }
        let first = self.simple_operand(body, 0)?;
        if !self.is_punct(b'|') || !matches!(first, Operand::Reg(_) | Operand::Sink) {
            return Ok(first);
        }
        self.bump();
        let token = self.token();
        match self.simple_operand(body, 0)? {
            second @ (Operand::Reg(_) | Operand::Sink) => {
                Ok(Operand::RegPair(Box::new(first), Box::new(second)))
            }
            _ => self.error_at(token, "expected a register after `|`"),
        }
    }

    /// Operands up to `close`.
    fn items(&mut self, body: &mut Body<'a>, close: u8, depth: u32) -> Result<Vec<Operand>> {
        let mut items = Vec::new();
        if self.accept(close) {
            return Ok(items);
        }
        loop {
            items.push(self.simple_operand(body, depth)?);
            if !self.accept(b',') {
                self.expect(close)?;
                return Ok(items);
            }
        }
    }

    fn simple_operand(&mut self, body: &mut Body<'a>, depth: u32) -> Result<Operand> {
        if depth > MAX_DEPTH {
            return self.error("operand is nested too deeply");
        }
        match self.peek() {
            Tok::Punct(b'[') => {
                self.bump();
                self.address(body, depth)
            }
            Tok::Punct(b'{') => {
                self.bump();
                Ok(Operand::Vector(self.items(body, b'}', depth + 1)?))
            }
            Tok::Punct(b'!') if matches!(self.peek_at(1), Tok::Name(name) if name != "WARP_SZ") => {
                self.bump();
                let token = self.token();
                match self.named(body)? {
                    Operand::Reg(id) => Ok(Operand::NotReg(id)),
                    _ => self.error_at(token, "expected a predicate after `!`"),
                }
            }
            Tok::Punct(b'-') if matches!(self.peek_at(1), Tok::Name(name) if body.is_register(name)) =>
            {
                self.bump();
                let token = self.token();
                match self.named(body)? {
                    Operand::Reg(id) => Ok(Operand::Negated(id)),
                    Operand::Part(id, part) => Ok(Operand::NegatedPart(id, part)),
                    _ => self.error_at(token, "expected a register after `-`"),
                }
            }
            Tok::Name(name) if name != "WARP_SZ" || body.look_up(name).is_some() => {
                let base = self.named(body)?;
                match base {
                    Operand::Symbol(symbol) if matches!(self.peek(), Tok::Punct(b'+' | b'-')) => {
                        Ok(Operand::SymbolOffset(symbol, self.integer("an offset")?))
                    }
                    base => Ok(base),
                }
            }
            _ if self.at_constant() => self.constant(),
            _ => self.expected("an operand"),
        }
    }

    /// A register, special register, symbol or `_`.
    fn named(&mut self, body: &mut Body<'a>) -> Result<Operand> {
        let token = self.token();
        let name = self.name("an operand")?;
        Ok(match body.look_up(name) {
            Some(Found::Register(id)) => match self.peek() {
                Tok::Dot(part) if part.starts_with(['b', 'h']) => {
                    self.bump();
                    Operand::Part(id, part.into())
                }
                _ => Operand::Reg(id),
            },
            Some(Found::Vector(first, width)) => return self.vector_register(name, first, width),
            Some(Found::Variable(unique)) => Operand::Symbol(unique.into()),
            None if name == "_" => Operand::Sink,
            None if name.starts_with('%') => return self.special(name, token),
            None => {
                body.wait_for(name, token);
                Operand::Symbol(name.into())
            }
        })
    }

    fn vector_register(&mut self, name: &str, first: RegId, width: u8) -> Result<Operand> {
        let Tok::Dot(part) = self.peek() else {
            return Ok(Operand::Vector(
                (0..u32::from(width))
                    .map(|i| Operand::Reg(RegId(first.0 + i)))
                    .collect(),
            ));
        };
        match component(part) {
            Some(i) if i < width => {
                self.bump();
                Ok(Operand::Reg(RegId(first.0 + u32::from(i))))
            }
            _ => self.error(format!("`{name}` has no component `.{part}`")),
        }
    }

    fn special(&mut self, name: &str, token: Token<'a>) -> Result<Operand> {
        if VECTOR_SPECIALS.contains(&name) {
            let Tok::Dot(part @ ("x" | "y" | "z" | "w")) = self.peek() else {
                return Ok(Operand::Special(name.into()));
            };
            self.bump();
            return Ok(Operand::Special(format!("{name}.{part}").into()));
        }
        if is_special(name) {
            return Ok(Operand::Special(name.into()));
        }
        self.error_at(token, format!("register `{name}` is not declared"))
    }

    /// What follows `[`.
    fn address(&mut self, body: &mut Body<'a>, depth: u32) -> Result<Operand> {
        let token = self.token();
        let mut base = match self.peek() {
            Tok::Name(name) if name != "WARP_SZ" => self.named(body)?,
            _ => Operand::Int(self.integer("an address")?),
        };
        if !matches!(base, Operand::Reg(_) | Operand::Symbol(_) | Operand::Int(_)) {
            return self.error_at(token, "this cannot be an address");
        }
        let mut offset = 0;
        if matches!(self.peek(), Tok::Punct(b'+' | b'-')) {
            offset = self.integer("an offset")?;
        }
        if self.accept(b']') {
            // Says that the address is not one of unified memory's peculiar kinds; it names the same byte.
            if matches!(self.peek(), Tok::Dot("unified")) {
                self.bump();
            }
            return Ok(Operand::Address {
                base: Box::new(base),
                offset,
            });
        }
        if !self.is_punct(b',') {
            return self.expected("`]`");
        }
        self.bump();
        if offset != 0 {
            base = Operand::Address {
                base: Box::new(base),
                offset,
            };
        }
        let mut items = vec![base];
        items.extend(self.items(body, b']', depth + 1)?);
        Ok(Operand::AddressList(items))
    }
}
