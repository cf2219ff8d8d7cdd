//! One handler, compiled for every SIMD level, chosen when a module is loaded.
//!
//! A handler's body is a type that implements [`Body`]; [`handler`] wraps it in a function per level and returns the
//! one for this machine. Everything a body calls must be `#[inline(always)]`, or it is compiled for the baseline only
//! (`f32::mul_add` without FMA is a slow call into libm). `BIRDIE_EMU_SIMD=baseline|avx2|avx512` lowers the level.

use super::{Cx, Flow, Handler};
use crate::program::Op;
use std::sync::OnceLock;

/// SIMD level of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    Baseline,
    Avx2,
    Avx512,
}

/// The level in use: what the machine has, or less where the environment asks for less.
pub fn level() -> Level {
    static LEVEL: OnceLock<Level> = OnceLock::new();
    *LEVEL.get_or_init(|| {
        let wanted = match std::env::var("BIRDIE_EMU_SIMD").as_deref() {
            Ok("baseline") => Level::Baseline,
            Ok("avx2") => Level::Avx2,
            _ => Level::Avx512,
        };
        wanted.min(detect())
    })
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("popcnt")
        && is_x86_feature_detected!("f16c");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512cd");
    match (avx2, avx512) {
        (true, true) => Level::Avx512,
        (true, false) => Level::Avx2,
        _ => Level::Baseline,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Baseline
}

/// The work of a handler.
pub trait Body {
    /// # Safety
    /// As for every [`Handler`]: `cx` belongs to a running warp and `op` to its program. Must be `#[inline(always)]`.
    unsafe fn run(cx: &mut Cx, op: &Op) -> Flow;
}

/// The function that runs `B` at this machine's level.
pub fn handler<B: Body>() -> Handler {
    #[cfg(target_arch = "x86_64")]
    match level() {
        Level::Avx512 => return avx512::<B>,
        Level::Avx2 => return avx2::<B>,
        Level::Baseline => {}
    }
    baseline::<B>
}

unsafe fn baseline<B: Body>(cx: &mut Cx, op: &Op) -> Flow {
    // SAFETY: passed on to the caller.
    unsafe { B::run(cx, op) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt,f16c")]
unsafe fn avx2<B: Body>(cx: &mut Cx, op: &Op) -> Flow {
    // SAFETY: passed on to the caller.
    unsafe { B::run(cx, op) }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(
    enable = "avx2,fma,bmi1,bmi2,lzcnt,popcnt,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512cd"
)]
unsafe fn avx512<B: Body>(cx: &mut Cx, op: &Op) -> Flow {
    // SAFETY: passed on to the caller.
    unsafe { B::run(cx, op) }
}

/// Bit `i` of `mask` as all ones or zeros in lane `i`: the form in which a masked write vectorises.
#[inline(always)]
pub fn lanes(mask: u32) -> [u32; 32] {
    let mut m = [0u32; 32];
    for (i, m) in m.iter_mut().enumerate() {
        *m = 0u32.wrapping_sub((mask >> i) & 1);
    }
    m
}
