//! The modifiers of one instruction, consumed one by one.
//!
//! Compilers and inline assembly write the same modifiers in different orders (`.bulk_group.L2::cache_hint.add` and
//! `.add.bulk_group`), so order is not checked. What nobody has consumed at the end is an error: a spelling that is
//! not understood never becomes a silently different instruction.

use crate::program::lower::{LowerCx, Result};
use crate::ptx::ast::Instr;

pub(super) struct Modifiers<'a> {
    instr: &'a Instr,
    left: Vec<&'a str>,
}

impl<'a> Modifiers<'a> {
    pub(super) fn new(instr: &'a Instr) -> Self {
        Self {
            instr,
            left: instr.op[1..].iter().map(|m| &**m).collect(),
        }
    }

    /// Consumes `name` if it is there.
    pub(super) fn take(&mut self, name: &str) -> bool {
        match self.left.iter().position(|m| *m == name) {
            Some(at) => {
                self.left.remove(at);
                true
            }
            None => false,
        }
    }

    /// Consumes the first of `names` that is there; the index says which.
    pub(super) fn one_of(&mut self, names: &[&str]) -> Option<usize> {
        names.iter().position(|name| self.take(name))
    }

    /// Consumes `name` or fails.
    pub(super) fn need(&mut self, cx: &LowerCx, name: &str) -> Result<()> {
        if self.take(name) {
            Ok(())
        } else {
            cx.unsupported(self.instr, &format!(".{name} is expected"))
        }
    }

    /// Takes whatever modifier comes first for which `f` has an answer.
    pub(super) fn find<T>(&mut self, f: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (at, value) = self
            .left
            .iter()
            .enumerate()
            .find_map(|(at, m)| f(m).map(|v| (at, v)))?;
        self.left.remove(at);
        Some(value)
    }

    /// Every modifier must have been consumed.
    pub(super) fn finish(self, cx: &LowerCx) -> Result<()> {
        match self.left.first() {
            None => Ok(()),
            Some(m) => cx.unsupported(
                self.instr,
                &format!(".{m} is not supported here by an sm_90a device"),
            ),
        }
    }
}
