//! Loads and stores.

use super::super::simd::{Body, handler};
use super::super::{Cx, Flow, Handler, LANES};
use super::address::{GENERIC, GLOBAL, LOCAL, Plan, SHARED, resolve};
use super::observe::{Access, observe};
use crate::check::Kind;
use crate::program::{Op, RowId};
use std::marker::PhantomData;

/// Bit 2 of `Op::flags`: volatile, relaxed, acquire or release.
pub const STRONG: u8 = 4;
/// Bit 3: acquire (loads) or release (stores).
pub const ORDERED: u8 = 8;
/// Bits 4-5: elements per lane, as a power of two.
pub const VECTOR_SHIFT: u8 = 4;
const VECTOR: u8 = 3;
/// Bit 6: the scope ends at the CTA or the cluster.
pub const INSIDE: u8 = 64;

/// Elements per lane of a load or store.
pub fn elements(op: &Op) -> usize {
    1 << (op.flags >> VECTOR_SHIFT & VECTOR)
}

/// A word as lanes of a register.
pub trait Word: Copy {
    /// # Safety
    /// The row and what follows it belong to the program of `cx`.
    unsafe fn row(cx: &Cx, row: RowId) -> *mut [Self; LANES];
}

macro_rules! word {
    ($($t:ty),*) => {$(
        impl Word for $t {
            #[inline(always)]
            unsafe fn row(cx: &Cx, row: RowId) -> *mut [Self; LANES] {
                // SAFETY: passed on.
                unsafe { cx.regs.add(row as usize).cast() }
            }
        }
    )*};
}
word!(u32, u64, u128);

/// An element in memory (`M`) and in the register (`R`), and how one becomes the other.
pub trait Element {
    type M: Copy;
    type R: Word;
    fn widen(m: Self::M) -> Self::R;
    fn narrow(r: Self::R) -> Self::M;
}

macro_rules! element {
    ($($name:ident: $m:ty, $r:ty, |$v:ident| $widen:expr;)*) => {$(
        pub struct $name;
        impl Element for $name {
            type M = $m;
            type R = $r;
            #[inline(always)]
            fn widen($v: $m) -> $r { $widen }
            #[inline(always)]
            fn narrow(r: $r) -> $m { r as $m }
        }
    )*};
}
element! {
    Byte: u8, u32, |v| u32::from(v);
    Half: u16, u32, |v| u32::from(v);
    Single: u32, u32, |v| v;
    Double: u64, u64, |v| v;
    Quad: u128, u128, |v| v;
    SignedByte16: i8, u32, |v| u32::from(v as i16 as u16);
    SignedByte32: i8, u32, |v| v as i32 as u32;
    SignedHalf32: i16, u32, |v| v as i32 as u32;
    ByteWide: u8, u64, |v| u64::from(v);
    HalfWide: u16, u64, |v| u64::from(v);
    SingleWide: u32, u64, |v| u64::from(v);
    SignedByteWide: i8, u64, |v| v as i64 as u64;
    SignedHalfWide: i16, u64, |v| v as i64 as u64;
    SignedSingleWide: i32, u64, |v| v as i64 as u64;
}

struct Load<E, const S: u8>(PhantomData<E>);

impl<E: Element, const S: u8> Body for Load<E, S> {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op) -> Flow {
        let size = size_of::<E::M>();
        let n = elements(op);
        let bytes = size * n;
        // SAFETY: pointers were tested for `bytes` bytes each; rows of the program.
        unsafe {
            let (plan, addresses) = match resolve::<S>(cx, op, bytes as u64, bytes as u64) {
                Ok(p) => p,
                Err(flow) => return flow,
            };
            if cx.observed || op.flags & STRONG != 0 {
                let access = Access::new(S, Kind::Read, bytes);
                if let Some(flow) = observe(cx, op, &addresses, access) {
                    return flow;
                }
            }
            if n == 1 {
                let d = E::R::row(cx, op.dst).cast::<E::R>();
                match plan {
                    Plan::Contiguous(p) => {
                        let m = p.cast::<E::M>();
                        for l in 0..LANES {
                            *d.add(l) = E::widen(m.add(l).read_unaligned());
                        }
                    }
                    Plan::Uniform(p) => {
                        let v = E::widen(p.cast::<E::M>().read_unaligned());
                        if cx.mask == u32::MAX {
                            for l in 0..LANES {
                                *d.add(l) = v;
                            }
                        } else {
                            for l in 0..LANES {
                                let old = *d.add(l);
                                *d.add(l) = if cx.mask >> l & 1 == 1 { v } else { old };
                            }
                        }
                    }
                    Plan::Each(p) => {
                        each(cx.mask, |l| {
                            *d.add(l) = E::widen(p[l].cast::<E::M>().read_unaligned())
                        });
                    }
                }
                return Flow::Next;
            }
            let list = cx.launch.program.lists.get_unchecked(op.ext as usize);
            let pointers = plan.pointers(bytes);
            for (i, &row) in list.iter().enumerate() {
                let d = E::R::row(cx, row).cast::<E::R>();
                each(cx.mask, |l| {
                    *d.add(l) = E::widen(pointers[l].add(i * size).cast::<E::M>().read_unaligned());
                });
            }
        }
        Flow::Next
    }
}

/// Calls `f` for each lane of the mask.
#[inline(always)]
pub fn each(mask: u32, mut f: impl FnMut(usize)) {
    if mask == u32::MAX {
        for l in 0..LANES {
            f(l);
        }
    } else {
        let mut left = mask;
        while left != 0 {
            f(left.trailing_zeros() as usize & 31);
            left &= left - 1;
        }
    }
}

struct Store<E, const S: u8>(PhantomData<E>);

impl<E: Element, const S: u8> Body for Store<E, S> {
    #[inline(always)]
    unsafe fn run(cx: &mut Cx, op: &Op) -> Flow {
        let size = size_of::<E::M>();
        let n = elements(op);
        let bytes = size * n;
        // SAFETY: pointers were tested for `bytes` bytes each; rows of the program.
        unsafe {
            let (plan, addresses) = match resolve::<S>(cx, op, bytes as u64, bytes as u64) {
                Ok(p) => p,
                Err(flow) => return flow,
            };
            if cx.observed || op.flags & STRONG != 0 {
                let access = Access::new(S, Kind::Write, bytes);
                if let Some(flow) = observe(cx, op, &addresses, access) {
                    return flow;
                }
            }
            if S != LOCAL {
                cx.cluster().stores += 1;
            }
            if n == 1 {
                let s = E::R::row(cx, op.src[1]).cast::<E::R>();
                match plan {
                    Plan::Contiguous(p) => {
                        let m = p.cast::<E::M>();
                        for l in 0..LANES {
                            m.add(l).write_unaligned(E::narrow(*s.add(l)));
                        }
                    }
                    // Several lanes at one address: one of them wins, here the last.
                    Plan::Uniform(p) => {
                        let l = 31 - cx.mask.leading_zeros() as usize;
                        p.cast::<E::M>().write_unaligned(E::narrow(*s.add(l)));
                    }
                    Plan::Each(p) => {
                        each(cx.mask, |l| {
                            p[l].cast::<E::M>().write_unaligned(E::narrow(*s.add(l)))
                        });
                    }
                }
                return Flow::Next;
            }
            let list = cx.launch.program.lists.get_unchecked(op.ext as usize);
            let pointers = plan.pointers(bytes);
            for (i, &row) in list.iter().enumerate() {
                let s = E::R::row(cx, row).cast::<E::R>();
                each(cx.mask, |l| {
                    pointers[l]
                        .add(i * size)
                        .cast::<E::M>()
                        .write_unaligned(E::narrow(*s.add(l)));
                });
            }
        }
        Flow::Next
    }
}

/// `B` compiled for the baseline alone: enough for what is rare, and modules of the emulator build faster.
fn plain<B: Body>() -> Handler {
    unsafe fn run<B: Body>(cx: &mut Cx, op: &Op) -> Flow {
        // SAFETY: passed on to the caller.
        unsafe { B::run(cx, op) }
    }
    run::<B>
}

fn load_in<E: Element + 'static>(space: u8) -> Handler {
    match space {
        GLOBAL => handler::<Load<E, GLOBAL>>(),
        SHARED => handler::<Load<E, SHARED>>(),
        LOCAL => plain::<Load<E, LOCAL>>(),
        _ => handler::<Load<E, GENERIC>>(),
    }
}

fn rare_load<E: Element + 'static>(space: u8) -> Handler {
    match space {
        GLOBAL => plain::<Load<E, GLOBAL>>(),
        SHARED => plain::<Load<E, SHARED>>(),
        LOCAL => plain::<Load<E, LOCAL>>(),
        _ => plain::<Load<E, GENERIC>>(),
    }
}

fn store_in<E: Element + 'static>(space: u8) -> Handler {
    match space {
        GLOBAL => handler::<Store<E, GLOBAL>>(),
        SHARED => handler::<Store<E, SHARED>>(),
        LOCAL => plain::<Store<E, LOCAL>>(),
        _ => handler::<Store<E, GENERIC>>(),
    }
}

fn rare_store<E: Element + 'static>(space: u8) -> Handler {
    match space {
        GLOBAL => plain::<Store<E, GLOBAL>>(),
        SHARED => plain::<Store<E, SHARED>>(),
        LOCAL => plain::<Store<E, LOCAL>>(),
        _ => plain::<Store<E, GENERIC>>(),
    }
}

/// Loads elements of `bits`, sign-extended or not, into registers of `register` bits.
pub fn load(space: u8, bits: u32, signed: bool, register: u32) -> Option<Handler> {
    Some(match (bits, signed, register) {
        (8, false, ..=32) => load_in::<Byte>(space),
        (8, true, ..=16) => rare_load::<SignedByte16>(space),
        (8, true, 32) => rare_load::<SignedByte32>(space),
        (8, false, 64) => rare_load::<ByteWide>(space),
        (8, true, 64) => rare_load::<SignedByteWide>(space),
        (16, false, ..=32) | (16, true, 16) => load_in::<Half>(space),
        (16, true, 32) => rare_load::<SignedHalf32>(space),
        (16, false, 64) => rare_load::<HalfWide>(space),
        (16, true, 64) => rare_load::<SignedHalfWide>(space),
        (32, _, 32) => load_in::<Single>(space),
        (32, false, 64) => rare_load::<SingleWide>(space),
        (32, true, 64) => rare_load::<SignedSingleWide>(space),
        (64, _, 64) => load_in::<Double>(space),
        (128, _, 128) => rare_load::<Quad>(space),
        _ => return None,
    })
}

/// Stores the low `bits` of registers of `register` bits.
pub fn store(space: u8, bits: u32, register: u32) -> Option<Handler> {
    Some(match (bits, register) {
        (8, ..=32) => store_in::<Byte>(space),
        (8, 64) => rare_store::<ByteWide>(space),
        (16, ..=32) => store_in::<Half>(space),
        (16, 64) => rare_store::<HalfWide>(space),
        (32, 32) => store_in::<Single>(space),
        (32, 64) => rare_store::<SingleWide>(space),
        (64, 64) => store_in::<Double>(space),
        (128, 128) => rare_store::<Quad>(space),
        _ => return None,
    })
}
