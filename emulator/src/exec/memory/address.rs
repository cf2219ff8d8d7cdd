//! From the address operand of an operation to host pointers, one per executing lane.
//!
//! Shapes that occur all the time are found first: all lanes at one address, or neighbouring lanes at neighbouring
//! addresses. Everything else is a list of pointers. Every address is tested against the allocation, window or frame it
//! must lie in, and for alignment; the failing lane is named in the fault.

use super::super::{Cx, Flow, LANES, LOCAL_WINDOW, SHARED_BASE, SHARED_WINDOW};
use crate::check::FindingKind;
use crate::device::Fault;
use crate::program::Op;

pub const GLOBAL: u8 = 0;
pub const SHARED: u8 = 1;
pub const LOCAL: u8 = 2;
pub const GENERIC: u8 = 3;

/// How the address is formed: bits 0-1 of `Op::flags`.
pub const MODE: u8 = 3;
/// `imm` alone.
pub const ABSOLUTE: u8 = 0;
/// 32-bit row + `imm`.
pub const NARROW: u8 = 1;
/// 64-bit row + `imm`.
pub const WIDE: u8 = 2;
/// The kernel's parameters + `imm`.
pub const PARAM: u8 = 3;

/// Where the executing lanes' bytes are.
#[allow(clippy::large_enum_variant)] // lives on the stack of one handler
pub enum Plan {
    /// One address for all lanes.
    Uniform(*mut u8),
    /// All 32 lanes execute, each next to the one before.
    Contiguous(*mut u8),
    /// Pointers of the executing lanes; those of others are not to be used.
    Each([*mut u8; LANES]),
}

impl Plan {
    #[inline(always)]
    pub fn pointers(&self, stride: usize) -> [*mut u8; LANES] {
        match *self {
            Plan::Uniform(p) => [p; LANES],
            Plan::Contiguous(p) => std::array::from_fn(|l| p.wrapping_add(l * stride)),
            Plan::Each(p) => p,
        }
    }
}

/// The lanes' addresses as the operation forms them. Lanes that do not execute get the address of one that does.
///
/// # Safety
/// `op` belongs to the program of `cx`.
#[inline(always)]
pub unsafe fn addresses(cx: &Cx, op: &Op) -> [u64; LANES] {
    // SAFETY: rows of the program.
    unsafe {
        let mut a = match op.flags & MODE {
            ABSOLUTE => return [op.imm as u64; LANES],
            PARAM => return [cx.launch.params.wrapping_add(op.imm as u64); LANES],
            NARROW => {
                let row = cx.row(op.src[0]);
                // A 32-bit address wraps at 32 bits.
                std::array::from_fn(|l| u64::from(row[l].wrapping_add(op.imm as u32)))
            }
            _ => {
                let row = cx.row64(op.src[0]);
                std::array::from_fn(|l| row[l].wrapping_add(op.imm as u64))
            }
        };
        if cx.mask != u32::MAX {
            let first = a[cx.mask.trailing_zeros() as usize & 31];
            for (l, a) in a.iter_mut().enumerate() {
                *a = if cx.mask >> l & 1 == 1 { *a } else { first };
            }
        }
        a
    }
}

#[inline(always)]
fn uniform(a: &[u64; LANES]) -> bool {
    let mut differ = 0;
    for x in a {
        differ |= x ^ a[0];
    }
    differ == 0
}

#[inline(always)]
fn contiguous(a: &[u64; LANES], stride: u64) -> bool {
    let mut differ = 0;
    for (l, x) in a.iter().enumerate() {
        differ |= x ^ a[0].wrapping_add(l as u64 * stride);
    }
    differ == 0
}

/// Is the range inside an allocation that this cluster has used before?
#[inline(always)]
fn known(bounds: &[(u64, u64); 4], address: u64, bytes: u64) -> bool {
    bounds
        .iter()
        .any(|b| address >= b.0 && address.wrapping_add(bytes) <= b.1 && address < b.1)
}

/// Is the range inside one allocation?
#[inline(always)]
pub fn in_global(cx: &mut Cx, address: u64, bytes: u64) -> bool {
    known(&cx.cluster().bounds, address, bytes) || find_global(cx, address, bytes)
}

#[cold]
#[inline(never)]
fn find_global(cx: &mut Cx, address: u64, bytes: u64) -> bool {
    let Some(a) = cx.launch.device.memory.find(address) else {
        return false;
    };
    if bytes > a.bytes - (address - a.address) {
        return false;
    }
    let c = cx.cluster();
    let i = c.bounds_next;
    c.bounds[i] = (a.address, a.address + a.bytes);
    c.bounds_next = (i + 1) % c.bounds.len();
    true
}

/// Resolves the operation's addresses; `bytes` per lane, aligned to `align`.
///
/// # Safety
/// As for every handler.
#[inline(always)]
pub unsafe fn resolve<const S: u8>(
    cx: &mut Cx,
    op: &Op,
    bytes: u64,
    align: u64,
) -> Result<(Plan, [u64; LANES]), Flow> {
    // SAFETY: passed on.
    unsafe {
        let a = addresses(cx, op);
        let plan = match S {
            GLOBAL => global(cx, &a, bytes, align)?,
            SHARED => shared(cx, &a, bytes, align)?,
            LOCAL => local(cx, &a, bytes, align)?,
            _ => generic(cx, &a, bytes, align)?,
        };
        Ok((plan, a))
    }
}

/// The same for addresses that are given, naturally aligned.
///
/// # Safety
/// As for every handler.
pub unsafe fn resolve_at(
    cx: &mut Cx,
    space: u8,
    a: &[u64; LANES],
    bytes: u64,
) -> Result<Plan, Flow> {
    // SAFETY: passed on.
    unsafe {
        match space {
            GLOBAL => global(cx, a, bytes, bytes),
            SHARED => shared(cx, a, bytes, bytes),
            LOCAL => local(cx, a, bytes, bytes),
            _ => generic(cx, a, bytes, bytes),
        }
    }
}

#[inline(always)]
unsafe fn global(cx: &mut Cx, a: &[u64; LANES], bytes: u64, align: u64) -> Result<Plan, Flow> {
    let aligned = a[0] & (align - 1) == 0;
    if cx.mask == u32::MAX && aligned && contiguous(a, bytes) && in_global(cx, a[0], bytes * 32) {
        return Ok(Plan::Contiguous(a[0] as *mut u8));
    }
    if aligned && uniform(a) && in_global(cx, a[0], bytes) {
        return Ok(Plan::Uniform(a[0] as *mut u8));
    }
    let mut bad = 0;
    for x in a {
        bad |= x & (align - 1);
    }
    if bad != 0 {
        return Err(misaligned(cx, a, align, "global"));
    }
    let mut lanes = cx.mask;
    while lanes != 0 {
        let l = lanes.trailing_zeros() as usize;
        lanes &= lanes - 1;
        if !in_global(cx, a[l], bytes) {
            return Err(outside_global(cx, l, a[l], bytes));
        }
    }
    Ok(Plan::Each(a.map(|x| x as *mut u8)))
}

#[inline(always)]
unsafe fn shared(cx: &mut Cx, a: &[u64; LANES], bytes: u64, align: u64) -> Result<Plan, Flow> {
    let cta = cx.cta();
    let len = cta.shared.len() as u32;
    let base = cta.shared.as_mut_ptr();
    let offset: [u32; LANES] = std::array::from_fn(|l| (a[l] as u32).wrapping_sub(SHARED_BASE));
    let (mut top, mut low) = (0, 0);
    for o in offset {
        top = top.max(o);
        low |= o;
    }
    if u64::from(top) + bytes > u64::from(len) || u64::from(low) & (align - 1) != 0 {
        // SAFETY: passed on.
        return unsafe { distributed(cx, a, bytes, align) };
    }
    let (mut apart, mut run) = (0, 0);
    for (l, o) in offset.iter().enumerate() {
        apart |= o ^ offset[0];
        run |= o ^ offset[0].wrapping_add(l as u32 * bytes as u32);
    }
    if run == 0 && cx.mask == u32::MAX {
        return Ok(Plan::Contiguous(base.wrapping_add(offset[0] as usize)));
    }
    if apart == 0 {
        return Ok(Plan::Uniform(base.wrapping_add(offset[0] as usize)));
    }
    Ok(Plan::Each(offset.map(|o| base.wrapping_add(o as usize))))
}

/// Pointer to shared memory at a 32-bit address: of the executing CTA, or of the one that it names.
#[inline(never)]
fn shared_at(cx: &mut Cx, address: u32, bytes: u64) -> Result<*mut u8, String> {
    let own = cx.cta().rank;
    let rank = match address >> 24 {
        0 => own,
        r => r - 1,
    };
    let offset = address & 0xff_ffff;
    let Some(cta) = cx.cluster().ctas.get_mut(rank as usize) else {
        return Err(format!(
            "shared address {address:#x} names CTA {rank}, which the cluster does not have"
        ));
    };
    let start = i64::from(offset) - i64::from(SHARED_BASE);
    let len = cta.shared.len() as i64;
    if start < 0 || start + bytes as i64 > len {
        return Err(format!(
            "shared address {offset:#x} of CTA {rank}, whose shared memory is {SHARED_BASE:#x}..{:#x}",
            i64::from(SHARED_BASE) + len
        ));
    }
    if cta.exited && rank != own {
        return Err(format!("shared memory of CTA {rank}, which has exited"));
    }
    Ok(cta.shared.as_mut_ptr().wrapping_add(start as usize))
}

#[cold]
#[inline(never)]
unsafe fn distributed(cx: &mut Cx, a: &[u64; LANES], bytes: u64, align: u64) -> Result<Plan, Flow> {
    let mut out = [std::ptr::null_mut(); LANES];
    for l in 0..LANES {
        if cx.mask >> l & 1 == 0 {
            continue;
        }
        let address = a[l] as u32;
        if u64::from(address) & (align - 1) != 0 {
            return Err(misaligned(cx, a, align, "shared"));
        }
        match shared_at(cx, address, bytes) {
            Ok(p) => out[l] = p,
            Err(why) => return Err(illegal(cx, l, bytes, why)),
        }
    }
    Ok(Plan::Each(out))
}

#[inline(always)]
unsafe fn local(cx: &mut Cx, a: &[u64; LANES], bytes: u64, align: u64) -> Result<Plan, Flow> {
    let frame = u64::from(cx.launch.program.local_bytes);
    let base = cx.warp().local.as_mut_ptr();
    let (mut top, mut low) = (0, 0);
    for x in a {
        top = top.max(*x);
        low |= x;
    }
    if low & (align - 1) != 0 {
        return Err(misaligned(cx, a, align, "local"));
    }
    if top >= frame || top + bytes > frame {
        let l = (0..LANES).find(|&l| cx.mask >> l & 1 == 1 && a[l].saturating_add(bytes) > frame);
        let l = l.unwrap_or(0);
        let why = format!("local address {:#x}; a thread has {frame:#x} bytes", a[l]);
        return Err(illegal(cx, l, bytes, why));
    }
    Ok(Plan::Each(std::array::from_fn(|l| {
        base.wrapping_add(l * frame as usize + a[l] as usize)
    })))
}

/// High half of a generic address: which window.
const SHARED_HIGH: u64 = SHARED_WINDOW >> 32;
const LOCAL_HIGH: u64 = LOCAL_WINDOW >> 32;

#[inline(always)]
unsafe fn generic(cx: &mut Cx, a: &[u64; LANES], bytes: u64, align: u64) -> Result<Plan, Flow> {
    let window = a[0] >> 32;
    let mut differ = 0;
    for x in a {
        differ |= (x >> 32) ^ window;
    }
    // SAFETY: passed on.
    unsafe {
        if window & !1 != SHARED_HIGH && differ & !1 == 0 {
            return global(cx, a, bytes, align);
        }
        if differ == 0 {
            let inside = a.map(|x| x & 0xffff_ffff);
            return match window {
                SHARED_HIGH => shared(cx, &inside, bytes, align),
                _ => local(cx, &inside, bytes, align),
            };
        }
        mixed(cx, a, bytes, align)
    }
}

#[cold]
#[inline(never)]
unsafe fn mixed(cx: &mut Cx, a: &[u64; LANES], bytes: u64, align: u64) -> Result<Plan, Flow> {
    let mut out = [std::ptr::null_mut(); LANES];
    for l in 0..LANES {
        if cx.mask >> l & 1 == 0 {
            continue;
        }
        if a[l] & (align - 1) != 0 {
            return Err(misaligned(cx, a, align, "generic"));
        }
        out[l] = match place(cx, l, a[l], bytes) {
            Ok(p) => p,
            Err(why) => return Err(illegal(cx, l, bytes, why)),
        };
    }
    Ok(Plan::Each(out))
}

/// Pointer to `bytes` at a generic address of one lane, or why there is none.
pub fn place(cx: &mut Cx, lane: usize, address: u64, bytes: u64) -> Result<*mut u8, String> {
    match address >> 32 {
        SHARED_HIGH => shared_at(cx, address as u32, bytes),
        LOCAL_HIGH => {
            let frame = u64::from(cx.launch.program.local_bytes);
            let at = address & 0xffff_ffff;
            if at + bytes > frame {
                return Err(format!(
                    "local address {at:#x}; a thread has {frame:#x} bytes"
                ));
            }
            let start = lane * frame as usize + at as usize;
            Ok(cx.warp().local.as_mut_ptr().wrapping_add(start))
        }
        _ if in_global(cx, address, bytes) => Ok(address as *mut u8),
        _ => Err(describe_global(cx, address, bytes)),
    }
}

/// What lies near a global address that is in no allocation.
pub fn describe_global(cx: &Cx, address: u64, bytes: u64) -> String {
    match cx.launch.device.memory.nearest(address) {
        _ if address < 1 << 16 => format!("address {address:#x} (a null pointer?)"),
        Some((a, d)) if d >= 0 => format!(
            "address {address:#x}, {d} bytes past the end of {} ({:#x}, {} bytes)",
            a.name, a.address, a.bytes
        ),
        Some((a, d)) if address < a.address => format!(
            "address {address:#x}, {} bytes before the start of {} ({:#x}, {} bytes)",
            -d, a.name, a.address, a.bytes
        ),
        Some((a, _)) => format!(
            "address {address:#x}: {bytes} bytes reach past the end of {} ({:#x}, {} bytes)",
            a.name, a.address, a.bytes
        ),
        None => format!("address {address:#x}; nothing is allocated"),
    }
}

#[cold]
#[inline(never)]
fn outside_global(cx: &mut Cx, lane: usize, address: u64, bytes: u64) -> Flow {
    let why = describe_global(cx, address, bytes);
    illegal(cx, lane, bytes, why)
}

#[cold]
#[inline(never)]
fn illegal(cx: &mut Cx, lane: usize, bytes: u64, why: String) -> Flow {
    let opcode = cx.launch.program.sites[cx.pc as usize].opcode.clone();
    let at = cx.place();
    let text = format!("{opcode}: lane {lane} accesses {bytes} bytes at {why}; {at}");
    if why.ends_with("has exited") {
        let site = cx.at();
        return cx.finding(FindingKind::ClusterLifetime, site, text);
    }
    cx.fail(Fault::IllegalAddress(text))
}

#[cold]
#[inline(never)]
fn misaligned(cx: &mut Cx, a: &[u64; LANES], align: u64, space: &str) -> Flow {
    let lane = (0..LANES)
        .find(|&l| cx.mask >> l & 1 == 1 && a[l] & (align - 1) != 0)
        .unwrap_or(0);
    let opcode = cx.launch.program.sites[cx.pc as usize].opcode.clone();
    let at = cx.place();
    cx.fail(Fault::MisalignedAddress(format!(
        "{opcode}: {space} address {:#x} of lane {lane} is not a multiple of {align}; {at}",
        a[lane]
    )))
}
