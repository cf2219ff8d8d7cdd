//! The modifiers of an instruction, each of which has to be used.
//!
//! A lowering function takes what it knows; [`Modifiers::done`] makes an error of what is left, so that a modifier we do
//! not know is never passed over.

use crate::program::lower::{LowerCx, Result, parse_type};
use crate::ptx::ast::{Instr, Ty};

pub(super) struct Modifiers<'i> {
    i: &'i Instr,
    used: u64,
}

/// A flag of `Op::imm`.
pub(super) fn flag(set: bool, bit: u32) -> u32 {
    if set { bit } else { 0 }
}

impl<'i> Modifiers<'i> {
    pub fn new(i: &'i Instr) -> Self {
        Modifiers { i, used: 1 }
    }

    fn unused(&self) -> impl Iterator<Item = (usize, &'i str)> {
        let used = self.used;
        self.i
            .op
            .iter()
            .enumerate()
            .take(64)
            .filter(move |(n, _)| used >> n & 1 == 0)
            .map(|(n, s)| (n, &**s))
    }

    /// Takes a modifier if it is there.
    pub fn take(&mut self, name: &str) -> bool {
        let found = self.unused().find(|(_, s)| *s == name);
        if let Some((n, _)) = found {
            self.used |= 1 << n;
        }
        found.is_some()
    }

    /// Takes the first modifier that `f` knows.
    pub fn first<T>(&mut self, f: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (n, value) = self.unused().find_map(|(n, s)| f(s).map(|v| (n, v)))?;
        self.used |= 1 << n;
        Some(value)
    }

    /// Takes the first type.
    pub fn ty(&mut self, cx: &LowerCx) -> Result<Ty> {
        match self.first(parse_type) {
            Some(ty) => Ok(ty),
            None => cx.unsupported(self.i, "it needs a type"),
        }
    }

    /// The last step: nothing may be left.
    pub fn done(&self, cx: &LowerCx) -> Result<()> {
        match self.unused().next() {
            Some((_, name)) => cx.unsupported(self.i, &format!("`.{name}` is not supported here")),
            None if self.i.op.len() > 64 => cx.unsupported(self.i, "too many modifiers"),
            None => Ok(()),
        }
    }
}
