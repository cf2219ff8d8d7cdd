//! Comparisons and what depends on them: setp, set, selp, slct, testp, and logic on predicates.
//!
//! A predicate register is a mask with a bit per lane, so `and.pred` is one operation for the whole warp.

use super::float::Signed;
use super::half::{BF16, F16};
use super::lane::{Elem, Of, emit, lane, load, store};
use super::logic::Bits;
use super::modifiers::Modifiers;
use crate::exec::{Cx, Flow, LANES};
use crate::program::lower::{LowerCx, Result};
use crate::program::{Class, Op};
use crate::ptx::ast::{Instr, Operand, Ty};

/// How a comparison's result is combined with a predicate.
pub(super) trait BoolOp {
    fn combine(result: u32, with: u32) -> u32;
}
pub(super) struct And;
pub(super) struct Or;
pub(super) struct Xor;
impl BoolOp for And {
    #[inline(always)]
    fn combine(result: u32, with: u32) -> u32 {
        result & with
    }
}
impl BoolOp for Or {
    #[inline(always)]
    fn combine(result: u32, with: u32) -> u32 {
        result | with
    }
}
impl BoolOp for Xor {
    #[inline(always)]
    fn combine(result: u32, with: u32) -> u32 {
        result ^ with
    }
}

/// [`BoolOp`] chosen by `Op::flags`: none, and, or, xor.
#[inline(always)]
fn combine(operator: u8, result: u32, with: u32) -> u32 {
    match operator {
        0 => result,
        1 => result & with,
        2 => result | with,
        _ => result ^ with,
    }
}

/// The relations of `setp`; the second six hold for unordered operands too.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Relation {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    Equ,
    Neu,
    Ltu,
    Leu,
    Gtu,
    Geu,
    Num,
    Nan,
}

/// The relation by name. `lo`, `ls`, `hi`, `hs` are the unsigned names of lt, le, gt, ge; the flag tells them.
fn relation(name: &str) -> Option<(Relation, bool)> {
    use Relation::*;
    Some(match name {
        "eq" => (Eq, false),
        "ne" => (Ne, false),
        "lt" => (Lt, false),
        "le" => (Le, false),
        "gt" => (Gt, false),
        "ge" => (Ge, false),
        "lo" => (Lt, true),
        "ls" => (Le, true),
        "hi" => (Gt, true),
        "hs" => (Ge, true),
        "equ" => (Equ, false),
        "neu" => (Neu, false),
        "ltu" => (Ltu, false),
        "leu" => (Leu, false),
        "gtu" => (Gtu, false),
        "geu" => (Geu, false),
        "num" => (Num, false),
        "nan" => (Nan, false),
        _ => return None,
    })
}

/// What can be compared: through `PartialOrd` of `Key`.
pub(super) trait Comparable: Elem {
    type Key: PartialOrd + Copy;
    fn key(self) -> Self::Key;
}

macro_rules! comparable {
    ($($t:ty, $key:ty, |$v:ident| $e:expr;)*) => { $(
        impl Comparable for $t {
            type Key = $key;
            #[inline(always)]
            fn key(self) -> $key {
                let $v = self;
                $e
            }
        }
    )* };
}

comparable! {
    u16, u16, |v| v;
    i16, i16, |v| v;
    u32, u32, |v| v;
    i32, i32, |v| v;
    u64, u64, |v| v;
    i64, i64, |v| v;
    f32, f32, |v| v;
    f64, f64, |v| v;
    Flushed, f32, |v| v.0;
    F16, f32, |v| v.to_f32();
    FlushedF16, f32, |v| v.0.to_f32();
    BF16, f32, |v| v.to_f32();
}

/// An f32 whose subnormals are read as zeros.
#[derive(Clone, Copy)]
pub(super) struct Flushed(f32);

impl Elem for Flushed {
    type Mem = u32;
    const TY: Ty = Ty::F32;
    #[inline(always)]
    fn get(mem: u32) -> Self {
        Flushed(super::float::flush(f32::from_bits(mem)))
    }
    #[inline(always)]
    fn put(self) -> u32 {
        self.0.to_bits()
    }
}

/// The same for f16.
#[derive(Clone, Copy)]
pub(super) struct FlushedF16(F16);

impl Elem for FlushedF16 {
    type Mem = u32;
    const TY: Ty = Ty::F16;
    #[inline(always)]
    fn get(mem: u32) -> Self {
        FlushedF16(F16::get(mem).flush())
    }
    #[inline(always)]
    fn put(self) -> u32 {
        self.0.put()
    }
}

/// A relation as a type.
pub(super) trait Test {
    type T: Comparable;
    fn test(a: <Self::T as Comparable>::Key, b: <Self::T as Comparable>::Key) -> bool;
}

macro_rules! tests {
    ($($name:ident, |$a:ident, $b:ident| $e:expr;)*) => { $(
        pub(super) struct $name<T>(Of<T>);
        impl<T: Comparable> Test for $name<T> {
            type T = T;
            #[inline(always)]
            fn test($a: T::Key, $b: T::Key) -> bool {
                $e
            }
        }
    )* };
}

// Negated comparisons are the unordered relations: NaN compares false with everything.
#[allow(
    clippy::neg_cmp_op_on_partial_ord,
    clippy::nonminimal_bool,
    clippy::double_comparisons
)]
mod relations {
    use super::*;
    tests! {
        Eq, |a, b| a == b;
        Ne, |a, b| a < b || a > b;
        Lt, |a, b| a < b;
        Le, |a, b| a <= b;
        Gt, |a, b| a > b;
        Ge, |a, b| a >= b;
        Equ, |a, b| !(a < b || a > b);
        Neu, |a, b| a != b;
        Ltu, |a, b| !(a >= b);
        Leu, |a, b| !(a > b);
        Gtu, |a, b| !(a <= b);
        Geu, |a, b| !(a < b);
        Num, |a, b| a.partial_cmp(&a).is_some() && b.partial_cmp(&b).is_some();
        Nan, |a, b| a.partial_cmp(&a).is_none() || b.partial_cmp(&b).is_none();
    }
}

/// The mask of lanes whose sources are related.
///
/// # Safety
/// Sources have to be rows of `R::T`.
#[inline(always)]
unsafe fn related<R: Test>(cx: &Cx, op: &Op) -> u32 {
    // SAFETY: as the caller promises.
    let (a, b) = unsafe {
        (
            load::<<R::T as Elem>::Mem>(cx, op.src[0]),
            load::<<R::T as Elem>::Mem>(cx, op.src[1]),
        )
    };
    let mut mask = 0;
    for i in 0..LANES {
        mask |= u32::from(R::test(R::T::get(a[i]).key(), R::T::get(b[i]).key())) << i;
    }
    mask
}

#[inline(always)]
unsafe fn run_setp<R: Test>(cx: &mut Cx, op: &Op) -> Flow {
    // SAFETY: sources were resolved as `R::T`, predicates by the accessors.
    unsafe {
        let related = related::<R>(cx, op);
        let with = cx.pred(op.psrc);
        cx.set_pred(op.pdst, combine(op.flags, related, with));
        cx.set_pred(op.pdst2, combine(op.flags, !related, with));
    }
    Flow::Next
}

crate::simd_handler!(setp_handler => run_setp<R: Test>);

/// `set`: `imm` is what is written where the relation holds.
#[inline(always)]
unsafe fn run_set<R: Test>(cx: &mut Cx, op: &Op) -> Flow {
    // SAFETY: sources were resolved as `R::T`, the destination has 32 bits.
    unsafe {
        let mask = combine(op.flags, related::<R>(cx, op), cx.pred(op.psrc));
        let yes = op.imm as u32;
        store(cx, op.dst, |i| (mask >> i & 1).wrapping_neg() & yes);
    }
    Flow::Next
}

crate::simd_handler!(set_handler => run_set<R: Test>);

/// Packed halves: the low ones decide the first predicate, the high ones the second.
#[inline(always)]
unsafe fn run_setp_pair<R: Test<T: Comparable<Key = f32> + Elem<Mem = u32>>>(
    cx: &mut Cx,
    op: &Op,
) -> Flow {
    // SAFETY: sources are 32-bit rows.
    unsafe {
        let (a, b): ([u32; LANES], [u32; LANES]) = (load(cx, op.src[0]), load(cx, op.src[1]));
        let (mut low, mut high) = (0, 0);
        for i in 0..LANES {
            let of = |v: u32| R::T::get(v).key();
            low |= u32::from(R::test(of(a[i]), of(b[i]))) << i;
            high |= u32::from(R::test(of(a[i] >> 16), of(b[i] >> 16))) << i;
        }
        let with = cx.pred(op.psrc);
        cx.set_pred(op.pdst, combine(op.flags, low, with));
        cx.set_pred(op.pdst2, combine(op.flags, high, with));
    }
    Flow::Next
}

/// `set` of packed halves: each half of the destination gets `imm` or zero.
#[inline(always)]
unsafe fn run_set_pair<R: HalfTest>(cx: &mut Cx, op: &Op) -> Flow {
    // SAFETY: sources and destination are 32-bit rows.
    unsafe {
        let (a, b): ([u32; LANES], [u32; LANES]) = (load(cx, op.src[0]), load(cx, op.src[1]));
        let with = cx.pred(op.psrc);
        let (yes, operator) = (op.imm as u32, op.flags);
        let half = |a: u32, b: u32, lane: usize| {
            let related = u32::from(R::test(R::T::get(a).key(), R::T::get(b).key()));
            (combine(operator, related, with >> lane) & 1).wrapping_neg() & yes
        };
        store(cx, op.dst, |i| {
            half(a[i], b[i], i) | half(a[i] >> 16, b[i] >> 16, i) << 16
        });
    }
    Flow::Next
}

crate::simd_handler!(set_pair_handler => run_set_pair<R: HalfTest>);

/// A [`Test`] of 16-bit floats.
pub(super) trait HalfTest: Test<T: Comparable<Key = f32> + Elem<Mem = u32>> {}
impl<R: Test<T: Comparable<Key = f32> + Elem<Mem = u32>>> HalfTest for R {}
crate::simd_handler!(setp_pair_handler => run_setp_pair<R: HalfTest>);

#[inline(always)]
unsafe fn run_selp<T: Bits>(cx: &mut Cx, op: &Op) -> Flow {
    // SAFETY: sources and destination were resolved as `T`.
    unsafe {
        let (a, b) = (load::<T>(cx, op.src[0]), load::<T>(cx, op.src[1]));
        let p = cx.pred(op.psrc);
        // Written with masks: a condition becomes a choice of addresses, which no vector instruction can follow.
        store(cx, op.dst, |i| {
            let yes = T::all_if(p >> i & 1 != 0);
            (a[i] & yes) | (b[i] & !yes)
        });
    }
    Flow::Next
}

crate::simd_handler!(selp_handler => run_selp<T: Bits>);

lane!(Slct<T: Elem>(a: T, b: T, c: i32) -> T { if c >= 0 { a } else { b } });
lane!(SlctF32<T: Elem>(a: T, b: T, c: f32) -> T { if c >= 0.0 { a } else { b } });
lane!(SlctFlushed<T: Elem>(a: T, b: T, c: Flushed) -> T { if c.0 >= 0.0 { a } else { b } });

/// `testp`: `imm` is the property, in the order of [`PROPERTIES`].
const PROPERTIES: [&str; 6] = [
    "finite",
    "infinite",
    "number",
    "notanumber",
    "normal",
    "subnormal",
];

pub(super) trait Properties: Elem {
    fn has(self, property: u32) -> bool;
}
macro_rules! properties {
    ($($t:ty)*) => { $(
        impl Properties for $t {
            #[inline(always)]
            fn has(self, property: u32) -> bool {
                match property {
                    0 => self.is_finite(),
                    1 => self.is_infinite(),
                    2 => !self.is_nan(),
                    3 => self.is_nan(),
                    // Zeros count as normal.
                    4 => self.is_normal() || self == 0.0,
                    _ => self.is_subnormal(),
                }
            }
        }
    )* };
}
properties!(f32 f64);

#[inline(always)]
unsafe fn run_testp<T: Properties>(cx: &mut Cx, op: &Op) -> Flow {
    // SAFETY: the source was resolved as `T`.
    unsafe {
        let a = load::<T::Mem>(cx, op.src[0]);
        let mut mask = 0;
        for (i, &a) in a.iter().enumerate() {
            mask |= u32::from(T::get(a).has(op.imm as u32)) << i;
        }
        cx.set_pred(op.pdst, mask);
    }
    Flow::Next
}

crate::simd_handler!(testp_handler => run_testp<T: Properties>);

/// `and.pred` and its kin: predicates are numbers of slots, so sources come in `psrc` and, packed, in `imm`.
#[inline(always)]
unsafe fn run_pred<B: BoolOp>(cx: &mut Cx, op: &Op) -> Flow {
    // SAFETY: all slots were resolved by the accessors.
    unsafe {
        let a = cx.pred(op.psrc);
        let second = *cx.preds.add(op.pdst2 as usize);
        let b = if op.flags != 0 { !second } else { second };
        cx.set_pred(op.pdst, B::combine(a, b));
    }
    Flow::Next
}

crate::simd_handler!(pred_handler => run_pred<B: BoolOp>);

/// `mov.pred`, `not.pred`.
unsafe fn run_mov_pred(cx: &mut Cx, op: &Op) -> Flow {
    // SAFETY: as above.
    unsafe {
        let a = cx.pred(op.psrc);
        cx.set_pred(op.pdst, a);
    }
    Flow::Next
}

/// The last operand of a form with a BoolOp.
fn bool_op(m: &mut Modifiers) -> u8 {
    m.first(|s| match s {
        "and" => Some(1),
        "or" => Some(2),
        "xor" => Some(3),
        _ => None,
    })
    .unwrap_or(0)
}

/// Which handler a relation needs.
#[derive(Clone, Copy, PartialEq)]
enum Into {
    Setp,
    Set,
    SetpPair,
    SetPair,
}

macro_rules! by_relation {
    ($relation:expr, $t:ty, $handler:ident) => {
        match $relation {
            Relation::Eq => $handler::<relations::Eq<$t>>(),
            Relation::Ne => $handler::<relations::Ne<$t>>(),
            Relation::Lt => $handler::<relations::Lt<$t>>(),
            Relation::Le => $handler::<relations::Le<$t>>(),
            Relation::Gt => $handler::<relations::Gt<$t>>(),
            Relation::Ge => $handler::<relations::Ge<$t>>(),
            Relation::Equ => $handler::<relations::Equ<$t>>(),
            Relation::Neu => $handler::<relations::Neu<$t>>(),
            Relation::Ltu => $handler::<relations::Ltu<$t>>(),
            Relation::Leu => $handler::<relations::Leu<$t>>(),
            Relation::Gtu => $handler::<relations::Gtu<$t>>(),
            Relation::Geu => $handler::<relations::Geu<$t>>(),
            Relation::Num => $handler::<relations::Num<$t>>(),
            Relation::Nan => $handler::<relations::Nan<$t>>(),
        }
    };
    // Integers have six relations.
    (int $relation:expr, $t:ty, $handler:ident) => {
        match $relation {
            Relation::Eq => $handler::<relations::Eq<$t>>(),
            Relation::Ne => $handler::<relations::Neu<$t>>(),
            Relation::Lt => $handler::<relations::Lt<$t>>(),
            Relation::Le => $handler::<relations::Le<$t>>(),
            Relation::Gt => $handler::<relations::Gt<$t>>(),
            _ => $handler::<relations::Ge<$t>>(),
        }
    };
}

macro_rules! handler_for {
    ($kind:ident, $into:expr, $relation:expr, $t:ty) => {
        match $into {
            Into::Set => by_relation!($kind $relation, $t, set_handler),
            _ => by_relation!($kind $relation, $t, setp_handler),
        }
    };
    ($into:expr, $relation:expr, $t:ty) => {
        match $into {
            Into::Set => by_relation!($relation, $t, set_handler),
            _ => by_relation!($relation, $t, setp_handler),
        }
    };
}

fn handler(
    cx: &LowerCx,
    i: &Instr,
    into: Into,
    r: Relation,
    ty: Ty,
    ftz: bool,
) -> Result<crate::exec::Handler> {
    let float = matches!(
        ty,
        Ty::F16 | Ty::BF16 | Ty::F16x2 | Ty::BF16x2 | Ty::F32 | Ty::F64
    );
    let ordered_only = matches!(
        r,
        Relation::Eq | Relation::Ne | Relation::Lt | Relation::Le | Relation::Gt | Relation::Ge
    );
    if !float && !ordered_only {
        return cx.unsupported(i, "this relation exists for floats only");
    }
    if matches!(ty, Ty::B16 | Ty::B32 | Ty::B64) && !matches!(r, Relation::Eq | Relation::Ne) {
        return cx.unsupported(i, "untyped bits can only be equal or not");
    }
    if matches!(into, Into::SetpPair | Into::SetPair) {
        let set = into == Into::SetPair;
        return Ok(match (ty, ftz) {
            (Ty::F16x2, false) if set => by_relation!(r, F16, set_pair_handler),
            (Ty::F16x2, true) if set => by_relation!(r, FlushedF16, set_pair_handler),
            (Ty::BF16x2, false) if set => by_relation!(r, BF16, set_pair_handler),
            (Ty::F16x2, false) => by_relation!(r, F16, setp_pair_handler),
            (Ty::F16x2, true) => by_relation!(r, FlushedF16, setp_pair_handler),
            (Ty::BF16x2, false) => by_relation!(r, BF16, setp_pair_handler),
            _ => return cx.unsupported(i, "`.ftz` does not exist for bf16"),
        });
    }
    Ok(match (ty, ftz) {
        (Ty::B16 | Ty::U16, false) => handler_for!(int, into, r, u16),
        (Ty::B32 | Ty::U32, false) => handler_for!(int, into, r, u32),
        (Ty::B64 | Ty::U64, false) => handler_for!(int, into, r, u64),
        (Ty::S16, false) => handler_for!(int, into, r, i16),
        (Ty::S32, false) => handler_for!(int, into, r, i32),
        (Ty::S64, false) => handler_for!(int, into, r, i64),
        (Ty::F32, false) => handler_for!(into, r, f32),
        (Ty::F32, true) => handler_for!(into, r, Flushed),
        (Ty::F64, false) => handler_for!(into, r, f64),
        (Ty::F16, false) => handler_for!(into, r, F16),
        (Ty::F16, true) => handler_for!(into, r, FlushedF16),
        (Ty::BF16, false) => handler_for!(into, r, BF16),
        _ => return cx.unsupported(i, "not a type of this instruction"),
    })
}

fn setp(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let mut m = Modifiers::new(i);
    let Some((r, unsigned)) = m.first(relation) else {
        return cx.unsupported(i, "it needs a relation");
    };
    let operator = bool_op(&mut m);
    let ftz = m.take("ftz");
    let ty = m.ty(cx)?;
    m.done(cx)?;
    if unsigned && !matches!(ty, Ty::U16 | Ty::U32 | Ty::U64) {
        return cx.unsupported(i, "lo, ls, hi and hs need an unsigned type");
    }
    let pair = matches!(ty, Ty::F16x2 | Ty::BF16x2);
    if i.operands.len() != 3 + usize::from(operator != 0) {
        return cx.unsupported(i, "wrong number of operands");
    }
    let mut op = LowerCx::new_op(
        handler(
            cx,
            i,
            if pair { Into::SetpPair } else { Into::Setp },
            r,
            ty,
            ftz,
        )?,
        Class::Predicate,
    );
    op.flags = operator;
    op.src[0] = cx.src(&i.operands[1], ty)?;
    op.src[1] = cx.src(&i.operands[2], ty)?;
    if operator != 0 {
        op.psrc = cx.pred_src(&i.operands[3])?;
    }
    match &i.operands[0] {
        Operand::RegPair(p, q) => {
            op.pdst = cx.pred_dst(p)?;
            op.pdst2 = cx.pred_dst(q)?;
        }
        p => op.pdst = cx.pred_dst(p)?,
    }
    cx.emit(i, op)?;
    Ok(true)
}

fn set(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let mut m = Modifiers::new(i);
    let Some((r, unsigned)) = m.first(relation) else {
        return cx.unsupported(i, "it needs a relation");
    };
    let operator = bool_op(&mut m);
    let ftz = m.take("ftz");
    let (dst, ty) = (m.ty(cx)?, m.ty(cx)?);
    m.done(cx)?;
    if unsigned && !matches!(ty, Ty::U16 | Ty::U32 | Ty::U64) {
        return cx.unsupported(i, "lo, ls, hi and hs need an unsigned type");
    }
    let pair = matches!(ty, Ty::F16x2 | Ty::BF16x2);
    if i.operands.len() != 3 + usize::from(operator != 0) {
        return cx.unsupported(i, "wrong number of operands");
    }
    let yes: u32 = match (dst, pair) {
        (Ty::U32 | Ty::S32, false) => !0,
        (Ty::U16 | Ty::S16, false) | (Ty::U32 | Ty::S32, true) => 0xffff,
        (Ty::F32, false) => 1f32.to_bits(),
        (Ty::F16, false) | (Ty::F16x2, true) => 0x3c00,
        (Ty::BF16, false) | (Ty::BF16x2, true) => 0x3f80,
        _ => return cx.unsupported(i, "not a destination type of this instruction"),
    };
    let mut op = LowerCx::new_op(
        handler(
            cx,
            i,
            if pair { Into::SetPair } else { Into::Set },
            r,
            ty,
            ftz,
        )?,
        Class::Predicate,
    );
    op.flags = operator;
    op.imm = i64::from(yes);
    op.src[0] = cx.src(&i.operands[1], ty)?;
    op.src[1] = cx.src(&i.operands[2], ty)?;
    if operator != 0 {
        op.psrc = cx.pred_src(&i.operands[3])?;
    }
    op.dst = cx.dst(&i.operands[0], dst)?;
    cx.emit(i, op)?;
    Ok(true)
}

fn selp(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let mut m = Modifiers::new(i);
    let ty = m.ty(cx)?;
    m.done(cx)?;
    let [d, a, b, p] = &i.operands[..] else {
        return cx.unsupported(i, "4 operands are expected");
    };
    let handler = match ty {
        Ty::B16 | Ty::U16 | Ty::S16 | Ty::F16 | Ty::BF16 => selp_handler::<u32>(),
        Ty::B32 | Ty::U32 | Ty::S32 | Ty::F32 => selp_handler::<u32>(),
        Ty::B64 | Ty::U64 | Ty::S64 | Ty::F64 => selp_handler::<u64>(),
        _ => return cx.unsupported(i, "not a type of this instruction"),
    };
    let mut op = LowerCx::new_op(handler, Class::Predicate);
    op.src[0] = cx.src(a, ty)?;
    op.src[1] = cx.src(b, ty)?;
    op.psrc = cx.pred_src(p)?;
    op.dst = cx.dst(d, ty)?;
    cx.emit(i, op)?;
    Ok(true)
}

fn slct(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let mut m = Modifiers::new(i);
    let ftz = m.take("ftz");
    let (ty, by) = (m.ty(cx)?, m.ty(cx)?);
    m.done(cx)?;
    fn of<T: Elem>(cx: &mut LowerCx, i: &Instr, by: Ty, ftz: bool) -> Result<bool> {
        match (by, ftz) {
            (Ty::S32, false) => emit::<Slct<T>>(cx, i, Class::Predicate, 0),
            (Ty::F32, false) => emit::<SlctF32<T>>(cx, i, Class::Predicate, 0),
            (Ty::F32, true) => emit::<SlctFlushed<T>>(cx, i, Class::Predicate, 0),
            _ => cx.unsupported(i, "the selecting type is .s32 or .f32"),
        }
    }
    match ty {
        Ty::B16 | Ty::U16 | Ty::S16 => of::<u16>(cx, i, by, ftz),
        Ty::B32 | Ty::U32 | Ty::S32 => of::<u32>(cx, i, by, ftz),
        Ty::F32 => of::<f32>(cx, i, by, ftz),
        Ty::B64 | Ty::U64 | Ty::S64 => of::<u64>(cx, i, by, ftz),
        Ty::F64 => of::<f64>(cx, i, by, ftz),
        _ => cx.unsupported(i, "not a type of this instruction"),
    }
}

fn testp(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let mut m = Modifiers::new(i);
    let property = m.first(|s| PROPERTIES.iter().position(|p| *p == s));
    let ty = m.ty(cx)?;
    m.done(cx)?;
    let ([p, a], Some(property)) = (&i.operands[..], property) else {
        return cx.unsupported(i, "it needs a property and 2 operands");
    };
    let handler = match ty {
        Ty::F32 => testp_handler::<f32>(),
        Ty::F64 => testp_handler::<f64>(),
        _ => return cx.unsupported(i, "its type is .f32 or .f64"),
    };
    let mut op = LowerCx::new_op(handler, Class::Predicate);
    op.imm = property as i64;
    op.src[0] = cx.src(a, ty)?;
    op.pdst = cx.pred_dst(p)?;
    cx.emit(i, op)?;
    Ok(true)
}

/// and, or, xor, not, mov of predicates.
fn predicate_logic(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let mut m = Modifiers::new(i);
    m.ty(cx)?;
    m.done(cx)?;
    match (&*i.op[0], &i.operands[..]) {
        (opcode @ ("mov" | "not"), [d, a]) => {
            let mut op = LowerCx::new_op(run_mov_pred, Class::Predicate);
            op.psrc = cx.pred_src(a)?;
            op.psrc.negate ^= opcode == "not";
            op.pdst = cx.pred_dst(d)?;
            cx.emit(i, op)?;
            Ok(true)
        }
        (opcode @ ("and" | "or" | "xor"), [d, a, b]) => {
            let run = match opcode {
                "and" => pred_handler::<And>(),
                "or" => pred_handler::<Or>(),
                _ => pred_handler::<Xor>(),
            };
            let mut op = LowerCx::new_op(run, Class::Predicate);
            op.psrc = cx.pred_src(a)?;
            let b = cx.pred_src(b)?;
            op.pdst2 = b.index;
            op.flags = u8::from(b.negate);
            op.pdst = cx.pred_dst(d)?;
            cx.emit(i, op)?;
            Ok(true)
        }
        _ => cx.unsupported(i, "not a form of this instruction on predicates"),
    }
}

pub(super) fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    match &*i.op[0] {
        "setp" => setp(cx, i),
        "set" => set(cx, i),
        "selp" => selp(cx, i),
        "slct" => slct(cx, i),
        "testp" => testp(cx, i),
        "and" | "or" | "xor" | "not" | "mov" if i.op.iter().any(|s| &**s == "pred") => {
            predicate_logic(cx, i)
        }
        _ => Ok(false),
    }
}
