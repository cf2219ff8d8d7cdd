//! Extended precision: `.cc`, addc, subc, madc.
//!
//! The condition code register of PTX has one bit, the carry. It is a slot of the predicate file here,
//! [`PRED_CARRY`], so that it is a mask of lanes like every other predicate. A subtraction leaves its borrow there.

use super::integer::Int;
use super::lane::{Elem, load, store};
use super::modifiers::Modifiers;
use crate::exec::{Cx, Flow, LANES};
use crate::program::lower::{LowerCx, Result};
use crate::program::{Class, Op, PRED_CARRY, Pred};
use crate::ptx::ast::{Instr, Ty};

/// A word with its carry.
pub(super) trait Word: Int {
    fn add_carry(self, b: Self, carry: bool) -> (Self, bool);
    fn sub_borrow(self, b: Self, borrow: bool) -> (Self, bool);
}

macro_rules! word {
    ($($t:ty)*) => { $(
        impl Word for $t {
            #[inline(always)]
            fn add_carry(self, b: Self, carry: bool) -> (Self, bool) {
                let (s, c) = self.overflowing_add(b);
                let (s, d) = s.overflowing_add(carry as $t);
                (s, c | d)
            }
            #[inline(always)]
            fn sub_borrow(self, b: Self, borrow: bool) -> (Self, bool) {
                let (s, c) = self.overflowing_sub(b);
                let (s, d) = s.overflowing_sub(borrow as $t);
                (s, c | d)
            }
        }
    )* };
}
word!(u32 u64);

/// What is done, as a type. A signed `.hi` product differs from an unsigned one, everything else does not.
pub(super) trait CarryOp {
    type T: Word;
    const SOURCES: usize;
    fn apply(a: Self::T, b: Self::T, c: Self::T, carry: bool) -> (Self::T, bool);
}

macro_rules! carry_ops {
    ($($name:ident $n:literal |$a:ident, $b:ident, $c:ident, $carry:ident| $e:expr;)*) => { $(
        pub(super) struct $name<T>(std::marker::PhantomData<T>);
        impl<T: Word> CarryOp for $name<T> {
            type T = T;
            const SOURCES: usize = $n;
            #[inline(always)]
            fn apply($a: T, $b: T, $c: T, $carry: bool) -> (T, bool) {
                $e
            }
        }
    )* };
}

carry_ops! {
    Add 2 |a, b, _c, carry| a.add_carry(b, carry);
    Sub 2 |a, b, _c, carry| a.sub_borrow(b, carry);
    MadLow 3 |a, b, c, carry| a.mul(b).add_carry(c, carry);
    MadHigh 3 |a, b, c, carry| a.mul_high(b).add_carry(c, carry);
}

pub(super) struct MadHighSigned32;
impl CarryOp for MadHighSigned32 {
    type T = u32;
    const SOURCES: usize = 3;
    #[inline(always)]
    fn apply(a: u32, b: u32, c: u32, carry: bool) -> (u32, bool) {
        ((a as i32).mul_high(b as i32) as u32).add_carry(c, carry)
    }
}

pub(super) struct MadHighSigned64;
impl CarryOp for MadHighSigned64 {
    type T = u64;
    const SOURCES: usize = 3;
    #[inline(always)]
    fn apply(a: u64, b: u64, c: u64, carry: bool) -> (u64, bool) {
        ((a as i64).mul_high(b as i64) as u64).add_carry(c, carry)
    }
}

/// The carry comes from `psrc` (constant false where the instruction reads none) and goes to `pdst`.
#[inline(always)]
unsafe fn run<O: CarryOp>(cx: &mut Cx, op: &Op) -> Flow {
    // SAFETY: the rows were resolved with the type of `O`.
    unsafe {
        let a = load::<<O::T as Elem>::Mem>(cx, op.src[0]);
        let b = load::<<O::T as Elem>::Mem>(cx, op.src[1]);
        let c = if O::SOURCES > 2 {
            load(cx, op.src[2])
        } else {
            [Default::default(); LANES]
        };
        let carry = cx.pred(op.psrc);
        let mut out = 0;
        let mut d = a;
        for i in 0..LANES {
            let (v, o) = O::apply(
                Elem::get(a[i]),
                Elem::get(b[i]),
                Elem::get(c[i]),
                carry >> i & 1 != 0,
            );
            d[i] = v.put();
            out |= u32::from(o) << i;
        }
        store(cx, op.dst, |i| d[i]);
        cx.set_pred(op.pdst, out);
    }
    Flow::Next
}

crate::simd_handler!(carry_handler => run<O: CarryOp>);

/// True for the instructions of this file.
pub(super) fn is_mine(i: &Instr) -> bool {
    matches!(&*i.op[0], "addc" | "subc" | "madc")
        || matches!(&*i.op[0], "add" | "sub" | "mad") && i.op.iter().any(|s| &**s == "cc")
}

pub(super) fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let mut m = Modifiers::new(i);
    let writes = m.take("cc");
    let (low, high) = (m.take("lo"), m.take("hi"));
    let ty = m.ty(cx)?;
    m.done(cx)?;
    let opcode = &*i.op[0];
    let reads = matches!(opcode, "addc" | "subc" | "madc");
    let mad = matches!(opcode, "mad" | "madc");
    if mad != (low != high) {
        return cx.unsupported(i, "products need .lo or .hi");
    }
    let handler = match (opcode, ty, high) {
        ("add" | "addc", Ty::U32 | Ty::S32 | Ty::B32, _) => carry_handler::<Add<u32>>(),
        ("add" | "addc", Ty::U64 | Ty::S64 | Ty::B64, _) => carry_handler::<Add<u64>>(),
        ("sub" | "subc", Ty::U32 | Ty::S32 | Ty::B32, _) => carry_handler::<Sub<u32>>(),
        ("sub" | "subc", Ty::U64 | Ty::S64 | Ty::B64, _) => carry_handler::<Sub<u64>>(),
        ("mad" | "madc", Ty::U32 | Ty::S32, false) => carry_handler::<MadLow<u32>>(),
        ("mad" | "madc", Ty::U64 | Ty::S64, false) => carry_handler::<MadLow<u64>>(),
        ("mad" | "madc", Ty::U32, true) => carry_handler::<MadHigh<u32>>(),
        ("mad" | "madc", Ty::U64, true) => carry_handler::<MadHigh<u64>>(),
        ("mad" | "madc", Ty::S32, true) => carry_handler::<MadHighSigned32>(),
        ("mad" | "madc", Ty::S64, true) => carry_handler::<MadHighSigned64>(),
        _ => return cx.unsupported(i, "not a type of this instruction"),
    };
    if i.operands.len() != if mad { 4 } else { 3 } {
        return cx.unsupported(i, "wrong number of operands");
    }
    let mut op = LowerCx::new_op(handler, Class::Integer);
    for (n, operand) in i.operands[1..].iter().enumerate() {
        op.src[n] = cx.src(operand, ty)?;
    }
    op.psrc = Pred::FALSE;
    if reads {
        op.psrc = Pred {
            index: PRED_CARRY,
            negate: false,
        };
        cx.current.pred_reads.push(PRED_CARRY);
    }
    if writes {
        op.pdst = PRED_CARRY;
        cx.current.pred_writes.push(PRED_CARRY);
    }
    op.dst = cx.dst(&i.operands[0], ty)?;
    cx.emit(i, op)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn words_carry(a: u64, b: u64, c: u64, carry: bool) {
            let sum = u128::from(a) + u128::from(b) + u128::from(carry);
            prop_assert_eq!(Add::<u64>::apply(a, b, 0, carry), (sum as u64, sum >> 64 != 0));
            let difference = i128::from(a) - i128::from(b) - i128::from(carry);
            prop_assert_eq!(Sub::<u64>::apply(a, b, 0, carry), (difference as u64, difference < 0));
            let product = u128::from(a) * u128::from(b);
            let high = (product >> 64) + u128::from(c) + u128::from(carry);
            prop_assert_eq!(MadHigh::<u64>::apply(a, b, c, carry), (high as u64, high >> 64 != 0));
            let low = (product & u128::from(u64::MAX)) + u128::from(c) + u128::from(carry);
            prop_assert_eq!(MadLow::<u64>::apply(a, b, c, carry), (low as u64, low >> 64 != 0));
            let signed = (i128::from(a as i64) * i128::from(b as i64)) >> 64;
            let (s, overflow) = (signed as u64).overflowing_add(c);
            let (s, more) = s.overflowing_add(u64::from(carry));
            prop_assert_eq!(MadHighSigned64::apply(a, b, c, carry), (s, overflow || more));
        }
    }
}
