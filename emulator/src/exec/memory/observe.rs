//! Telling checkers and counters about accesses, and the bookkeeping of accesses that poll.

use super::super::{Cx, Flow, LANES, LOCAL_WINDOW, SHARED_BASE, SHARED_WINDOW};
use super::access::{INSIDE, ORDERED, STRONG};
use super::address::{GLOBAL, LOCAL, SHARED};
use crate::check::order::Place;
use crate::check::{At, Checker, Kind, WarpAccess};
use crate::program::{Class, Op};

/// What an operation does to memory.
#[derive(Clone, Copy)]
pub struct Access {
    space: u8,
    kind: Kind,
    bytes: u32,
    /// An atomic that acquires, or releases.
    pub acquires: bool,
    pub releases: bool,
    /// Its scope ends at the CTA or the cluster.
    pub inside: bool,
}

impl Access {
    #[inline(always)]
    pub fn new(space: u8, kind: Kind, bytes: usize) -> Self {
        Access {
            space,
            kind,
            bytes: bytes as u32,
            acquires: false,
            releases: false,
            inside: false,
        }
    }
}

/// Called for every access when something observes the cluster, and for every strong access. A flow ends the operation.
#[inline(never)]
pub fn observe(cx: &mut Cx, op: &Op, addresses: &[u64; LANES], access: Access) -> Option<Flow> {
    let strong = op.flags & STRONG != 0;
    if strong && access.kind == Kind::Read {
        cx.warp().polls = cx.warp().polls.saturating_add(1);
    }
    if !cx.observed {
        return None;
    }
    let mut access = access;
    access.inside |= op.flags & INSIDE != 0;
    if strong && op.flags & ORDERED != 0 {
        access.acquires |= access.kind == Kind::Read;
        access.releases |= access.kind == Kind::Write;
    }
    let kind = match access.kind {
        Kind::Read if strong => Kind::StrongRead,
        Kind::Write if strong => Kind::StrongWrite,
        kind => kind,
    };
    // Lanes by window.
    let (shared, global, local) = match access.space {
        GLOBAL => (0, cx.mask, 0),
        SHARED => (cx.mask, 0, 0),
        LOCAL => (0, 0, cx.mask),
        _ => by_window(addresses, cx.mask),
    };
    let at = cx.at();
    if local != 0
        && let Some(check) = &mut cx.cluster().check
    {
        check.local_access(at, addresses, local, access.bytes, kind.writes());
    }
    if shared != 0 {
        observe_shared(cx, addresses, shared, access, kind, strong);
    }
    if global != 0 {
        // Parameters come from the constant bank, not from global memory.
        let counted = op.class != Class::LoadParam;
        observe_global(cx, counted, addresses, global, access, kind, strong);
    }
    None
}

/// Lanes whose generic addresses are in shared, in global, and in local memory.
fn by_window(addresses: &[u64; LANES], mask: u32) -> (u32, u32, u32) {
    let (mut shared, mut local) = (0u32, 0u32);
    for (l, a) in addresses.iter().enumerate() {
        shared |= u32::from(a >> 32 == SHARED_WINDOW >> 32) << l;
        local |= u32::from(a >> 32 == LOCAL_WINDOW >> 32) << l;
    }
    (shared & mask, mask & !shared & !local, local & mask)
}

fn observe_global(
    cx: &mut Cx,
    counted: bool,
    addresses: &[u64; LANES],
    lanes: u32,
    access: Access,
    kind: Kind,
    strong: bool,
) {
    let at = cx.at();
    let (warp, pc) = (cx.warp().index, cx.pc);
    let c = cx.cluster();
    if let Some(check) = &mut c.check {
        order(check, at, addresses, lanes, access, strong);
        let lanewise = WarpAccess {
            addresses,
            mask: lanes,
            bytes: access.bytes,
            kind,
            inside: access.inside,
            together: false,
        };
        check.global_access(at, &lanewise);
        if access.kind == Kind::Write {
            check.stored_to_global(at, lanes);
        }
        ordered(check, at, access);
    }
    if counted && let Some(counters) = &mut c.counters {
        counters.global(
            warp,
            pc,
            addresses,
            lanes,
            access.bytes,
            access.kind != Kind::Read,
        );
    }
}

/// What a strong access acquires and releases, before it is made itself: it follows the release whose value it reads, and who acquires
/// follows it as it does what came before.
fn order(
    check: &mut Checker,
    at: At,
    addresses: &[u64; LANES],
    lanes: u32,
    access: Access,
    strong: bool,
) {
    let writes = access.kind != Kind::Read;
    let reads = access.kind != Kind::Write;
    if !strong && !access.kind.is_strong() {
        return;
    }
    let mut last = None;
    for l in (0..LANES).filter(|l| lanes >> l & 1 == 1) {
        let address = addresses[l];
        if last.replace(address) == Some(address) {
            continue;
        }
        let device = !access.inside && address >> 32 != SHARED_WINDOW >> 32;
        let place = Place { address, device };
        if access.acquires {
            check.acquire_at(at, place);
        } else if reads {
            check.acquire_relaxed(at, place);
        }
        if access.releases {
            check.release_at(at, place);
        } else if writes {
            check.release_relaxed(at, place);
        }
    }
}

/// The access has been made; what comes after it is not released.
fn ordered(check: &mut Checker, at: At, access: Access) {
    if access.releases {
        check.released(at);
    }
}

fn observe_shared(
    cx: &mut Cx,
    addresses: &[u64; LANES],
    lanes: u32,
    access: Access,
    kind: Kind,
    strong: bool,
) {
    let at = cx.at();
    let own = cx.cta().rank;
    let (warp, pc) = (cx.warp().index, cx.pc);
    let mut ranks = 0;
    for a in addresses {
        ranks |= *a as u32 >> 24;
    }
    let mut left = lanes;
    while left != 0 {
        let rank_of = |a: u64| match a as u32 >> 24 {
            0 => own,
            r => r - 1,
        };
        let rank = rank_of(addresses[left.trailing_zeros() as usize]);
        let same = if ranks == 0 {
            left
        } else {
            (0..LANES)
                .filter(|&l| left >> l & 1 == 1 && rank_of(addresses[l]) == rank)
                .fold(0u32, |m, l| m | 1 << l)
        };
        left &= !same;
        let offsets: [u32; LANES] = std::array::from_fn(|l| addresses[l] as u32 & 0xff_ffff);
        let c = cx.cluster();
        if let Some(check) = &mut c.check {
            let lanewise = WarpAccess {
                addresses: &offsets,
                mask: same,
                bytes: access.bytes,
                kind,
                inside: access.inside,
                together: false,
            };
            if strong || access.kind.is_strong() {
                // The same location for all CTAs of the cluster, whatever window names it.
                let global = std::array::from_fn(|l| {
                    SHARED_WINDOW | u64::from(rank + 1) << 24 | u64::from(offsets[l])
                });
                order(check, at, &global, same, access, strong);
                check.shared_access(at, rank, &lanewise);
                ordered(check, at, access);
            } else {
                check.shared_access(at, rank, &lanewise);
            }
        }
        if let Some(counters) = &mut c.counters {
            let offsets = offsets.map(|o| o.wrapping_sub(SHARED_BASE));
            counters.shared(warp, pc, &offsets, same, access.bytes);
        }
    }
}
