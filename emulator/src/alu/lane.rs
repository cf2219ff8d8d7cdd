//! The one loop that most scalar instructions are.
//!
//! An instruction is a type that implements [`Lane`]: a function from up to three values to one. [`lane_handler`] makes a
//! handler of it: load the source rows, apply the function to 32 lanes, store. Sources are copied before anything is
//! stored (the compiler keeps them in vector registers), so a destination may overlap them in any way: liveness gives
//! a 64-bit result the row of a 32-bit source that dies here.

use std::marker::PhantomData;

use crate::exec::{Cx, FULL, Flow, LANES};
use crate::program::lower::{LowerCx, Result};
use crate::program::{Class, Op, RowId};
use crate::ptx::ast::{Instr, Operand, Ty};

/// A value as it lies in the lanes of a row.
pub(super) trait Elem: Copy {
    /// What a lane of the row holds: `u32`, `u64` or `u128`.
    type Mem: Copy + Default;
    /// The type operands are resolved with.
    const TY: Ty;
    fn get(mem: Self::Mem) -> Self;
    fn put(self) -> Self::Mem;
}

macro_rules! elem {
    ($($t:ty, $mem:ty, $ty:ident, |$m:ident| $get:expr, |$v:ident| $put:expr;)*) => { $(
        impl Elem for $t {
            type Mem = $mem;
            const TY: Ty = Ty::$ty;
            #[inline(always)]
            fn get($m: $mem) -> Self {
                $get
            }
            #[inline(always)]
            fn put(self) -> $mem {
                let $v = self;
                $put
            }
        }
    )* };
}

elem! {
    u8, u32, U8, |m| m as u8, |v| u32::from(v);
    i8, u32, S8, |m| m as i8, |v| u32::from(v as u8);
    u16, u32, U16, |m| m as u16, |v| u32::from(v);
    i16, u32, S16, |m| m as i16, |v| u32::from(v as u16);
    u32, u32, U32, |m| m, |v| v;
    i32, u32, S32, |m| m as i32, |v| v as u32;
    f32, u32, F32, |m| f32::from_bits(m), |v| v.to_bits();
    u64, u64, U64, |m| m, |v| v;
    i64, u64, S64, |m| m as i64, |v| v as u64;
    f64, u64, F64, |m| f64::from_bits(m), |v| v.to_bits();
    u128, u128, B128, |m| m, |v| v;
}

/// An instruction as a function of one lane. `imm` is [`Op::imm`], the same for all lanes.
pub(super) trait Lane {
    type A: Elem;
    type B: Elem;
    type C: Elem;
    type D: Elem;
    const SOURCES: usize;
    fn lane(a: Self::A, b: Self::B, c: Self::C, imm: u32) -> Self::D;
}

/// Defines a [`Lane`] type: `lane!(pub(super) Name<T: Bound>(a: T, b: u32; imm) -> T { … })`.
macro_rules! lane {
    ($(#[$m:meta])* $name:ident $(<$($g:ident : $bound:path),+>)? ($a:ident: $A:ty $(; $i:ident)?) -> $D:ty $body:block) => {
        lane!(@ $(#[$m])* $name $(<$($g: $bound),+>)? 1, $a: $A, _b: u32, _c: u32, ($($i)?) -> $D $body);
    };
    ($(#[$m:meta])* $name:ident $(<$($g:ident : $bound:path),+>)? ($a:ident: $A:ty, $b:ident: $B:ty $(; $i:ident)?) -> $D:ty $body:block) => {
        lane!(@ $(#[$m])* $name $(<$($g: $bound),+>)? 2, $a: $A, $b: $B, _c: u32, ($($i)?) -> $D $body);
    };
    ($(#[$m:meta])* $name:ident $(<$($g:ident : $bound:path),+>)? ($a:ident: $A:ty, $b:ident: $B:ty, $c:ident: $C:ty $(; $i:ident)?) -> $D:ty $body:block) => {
        lane!(@ $(#[$m])* $name $(<$($g: $bound),+>)? 3, $a: $A, $b: $B, $c: $C, ($($i)?) -> $D $body);
    };
    (@ $(#[$m:meta])* $name:ident $(<$($g:ident : $bound:path),+>)? $n:literal, $a:ident: $A:ty, $b:ident: $B:ty, $c:ident: $C:ty, () -> $D:ty $body:block) => {
        lane!(@ $(#[$m])* $name $(<$($g: $bound),+>)? $n, $a: $A, $b: $B, $c: $C, (_imm) -> $D $body);
    };
    (@ $(#[$m:meta])* $name:ident $(<$($g:ident : $bound:path),+>)? $n:literal, $a:ident: $A:ty, $b:ident: $B:ty, $c:ident: $C:ty, ($i:ident) -> $D:ty $body:block) => {
        $(#[$m])*
        pub(super) struct $name $(<$($g),+>)? ($(std::marker::PhantomData<($($g,)+)>)?);
        impl $(<$($g: $bound),+>)? $crate::alu::lane::Lane for $name $(<$($g),+>)? {
            type A = $A;
            type B = $B;
            type C = $C;
            type D = $D;
            const SOURCES: usize = $n;
            #[inline(always)]
            fn lane($a: $A, $b: $B, $c: $C, $i: u32) -> $D $body
        }
    };
}
pub(super) use lane;

/// Copies the lanes of a row (or of the rows of a wide register).
///
/// # Safety
/// `row` has to be a row of the program, wide enough for `M`.
#[inline(always)]
pub(super) unsafe fn load<M: Copy>(cx: &Cx, row: RowId) -> [M; LANES] {
    // SAFETY: rows are 128-byte aligned, and a wide register has as many consecutive rows as `M` needs.
    unsafe { cx.regs.add(row as usize).cast::<[M; LANES]>().read() }
}

/// Stores the executing lanes.
///
/// # Safety
/// As for [`load`].
#[inline(always)]
pub(super) unsafe fn store<M: Copy>(cx: &mut Cx, row: RowId, value: impl Fn(usize) -> M) {
    // SAFETY: as in `load`; nothing else refers to the register file while a handler stores.
    let d = unsafe { &mut *cx.regs.add(row as usize).cast::<[M; LANES]>() };
    if cx.mask == FULL {
        for (i, d) in d.iter_mut().enumerate() {
            *d = value(i);
        }
    } else {
        for (i, d) in d.iter_mut().enumerate() {
            let v = value(i);
            if cx.mask >> i & 1 != 0 {
                *d = v;
            }
        }
    }
}

#[inline(always)]
unsafe fn run<L: Lane>(cx: &mut Cx, op: &Op) -> Flow {
    // SAFETY: the rows were resolved with the element types of `L`.
    unsafe {
        let a = load::<<L::A as Elem>::Mem>(cx, op.src[0]);
        let b = if L::SOURCES > 1 {
            load(cx, op.src[1])
        } else {
            [Default::default(); LANES]
        };
        let c = if L::SOURCES > 2 {
            load(cx, op.src[2])
        } else {
            [Default::default(); LANES]
        };
        let imm = op.imm as u32;
        store(cx, op.dst, |i| {
            L::lane(L::A::get(a[i]), L::B::get(b[i]), L::C::get(c[i]), imm).put()
        });
    }
    Flow::Next
}

crate::simd_handler!(
    /// The handler of a [`Lane`].
    pub(super) lane_handler => run<L: Lane>
);

/// Resolves operand `o` as a source with the element type `E`.
pub(super) fn source<E: Elem>(cx: &mut LowerCx, o: &Operand) -> Result<RowId> {
    cx.src(o, E::TY)
}

/// Emits `L`: operands are the destination and as many sources as `L` has.
pub(super) fn emit<L: Lane>(cx: &mut LowerCx, i: &Instr, class: Class, imm: u32) -> Result<bool> {
    emit_with::<L>(cx, i, class, imm, &i.operands)
}

/// [`emit`] with operands of the caller's choice.
pub(super) fn emit_with<L: Lane>(
    cx: &mut LowerCx,
    i: &Instr,
    class: Class,
    imm: u32,
    operands: &[Operand],
) -> Result<bool> {
    if operands.len() != L::SOURCES + 1 {
        return cx.unsupported(i, &format!("{} operands are expected", L::SOURCES + 1));
    }
    let mut op = LowerCx::new_op(lane_handler::<L>(), class);
    op.imm = i64::from(imm);
    op.src[0] = source::<L::A>(cx, &operands[1])?;
    if L::SOURCES > 1 {
        op.src[1] = source::<L::B>(cx, &operands[2])?;
    }
    if L::SOURCES > 2 {
        op.src[2] = source::<L::C>(cx, &operands[3])?;
    }
    op.dst = cx.dst(&operands[0], L::D::TY)?;
    cx.emit(i, op)?;
    Ok(true)
}

/// Lets a function that is generic over element types name one without a value.
pub(super) type Of<T> = PhantomData<T>;
