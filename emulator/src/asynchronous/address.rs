//! Operands and addresses of asynchronous operations.
//!
//! These instructions have more operands than an operation has row fields, so all rows go into one list
//! ([`LowerCx::list`]) and the extension record refers to them by slot: a [`Value`] is a register, a [`Place`] is an
//! address expression.
//!
//! Addresses of shared memory come in three forms (see `exec`): an offset of the executing CTA, an offset with the rank
//! of a CTA of the cluster, and a generic address of either. [`resolve`] turns all of them into a [`Shared`].

use crate::check::{Agent, At};
use crate::device::{Fault, Launch};
use crate::exec::{Cluster, Cx, SHARED_BASE, SHARED_WINDOW};
use crate::program::RowId;
use crate::program::lower::{LowerCx, Result, bits};
use crate::ptx::ast::{Operand, Space, Ty};

/// A register operand.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Value {
    slot: u8,
    wide: bool,
}

/// An address operand.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Place {
    base: Option<Value>,
    /// The offset counts from the start of the kernel's parameter block.
    param: bool,
    offset: i64,
}

/// Collects the rows of one instruction.
#[derive(Default)]
pub(super) struct Slots {
    rows: Vec<RowId>,
}

impl Slots {
    fn push(&mut self, row: RowId, wide: bool) -> Value {
        self.rows.push(row);
        Value {
            slot: (self.rows.len() - 1) as u8,
            wide,
        }
    }

    pub(super) fn value(&mut self, cx: &mut LowerCx, o: &Operand, ty: Ty) -> Result<Value> {
        let row = cx.src(o, ty)?;
        Ok(self.push(row, bits(ty) == 64))
    }

    /// `[base+offset]`, or a bare register or symbol where a bracket list has one (`[map, {…}]`).
    pub(super) fn place(&mut self, cx: &mut LowerCx, o: &Operand) -> Result<Place> {
        let wrapped;
        let o = match o {
            Operand::Address { .. } => o,
            other => {
                wrapped = Operand::Address {
                    base: Box::new(other.clone()),
                    offset: 0,
                };
                &wrapped
            }
        };
        let a = cx.address(o)?;
        Ok(Place {
            base: a.row.map(|row| self.push(row, a.wide)),
            param: a.symbol_space == Some(Space::Param),
            offset: a.offset,
        })
    }

    pub(super) fn finish(self, cx: &mut LowerCx) -> u32 {
        cx.list(self.rows)
    }
}

/// The rows of an instruction at run time.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a>(&'a [RowId]);

impl<'a> Rows<'a> {
    pub(super) fn new(cx: &Cx<'a>, list: u32) -> Self {
        Rows(&cx.launch.program.lists[list as usize])
    }

    /// # Safety
    /// `cx` and the rows belong to the same program.
    #[inline(always)]
    pub(super) unsafe fn value(self, cx: &Cx, v: Value, lane: usize) -> u64 {
        let row = self.0[v.slot as usize];
        // SAFETY: the program's own row, see `Cx`.
        unsafe {
            if v.wide {
                cx.row64(row)[lane]
            } else {
                u64::from(cx.row(row)[lane])
            }
        }
    }

    /// # Safety
    /// As for [`Rows::value`].
    #[inline(always)]
    pub(super) unsafe fn place(self, cx: &Cx, p: Place, lane: usize) -> u64 {
        // SAFETY: as promised by the caller.
        let base = match p.base {
            Some(v) => unsafe { self.value(cx, v, lane) },
            None if p.param => cx.launch.params,
            None => 0,
        };
        base.wrapping_add(p.offset as u64)
    }
}

/// How an address operand is to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Window {
    Cta,
    Cluster,
    Generic,
}

impl Window {
    /// From the modifiers `.shared`, `.shared::cta`, `.shared::cluster`, or none of them.
    pub(super) fn of(found: Option<usize>) -> Self {
        match found {
            Some(0 | 1) => Window::Cta,
            Some(_) => Window::Cluster,
            None => Window::Generic,
        }
    }
    pub(super) const SPELLINGS: [&'static str; 3] = ["shared", "shared::cta", "shared::cluster"];
}

/// A byte of shared memory of a CTA of the cluster; `address` includes [`SHARED_BASE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shared {
    pub cta: u32,
    pub address: u32,
}

/// Resolves `bytes` bytes of shared memory at `address`, aligned to `align`, as CTA `own` sees them.
pub(super) fn resolve(
    cluster: &Cluster,
    own: u32,
    address: u64,
    bytes: u32,
    align: u32,
    window: Window,
) -> std::result::Result<Shared, Fault> {
    let a = if window == Window::Generic {
        if address >> 32 != SHARED_WINDOW >> 32 {
            return Err(Fault::IllegalAddress(format!(
                "generic address {address:#x} is not in shared memory"
            )));
        }
        address as u32
    } else {
        address as u32
    };
    let cta = match a >> 24 {
        0 => own,
        tag => tag - 1,
    };
    let s = Shared {
        cta,
        address: a & 0xff_ffff,
    };
    let Some(target) = cluster.ctas.get(cta as usize) else {
        return Err(Fault::IllegalAddress(format!(
            "shared address {a:#x} names CTA {cta}, the cluster has {}",
            cluster.ctas.len()
        )));
    };
    let end = u64::from(SHARED_BASE) + target.shared.len() as u64;
    if s.address < SHARED_BASE || u64::from(s.address) + u64::from(bytes) > end {
        return Err(Fault::IllegalAddress(format!(
            "{bytes} bytes at shared address {:#x} of CTA {cta}, which has {SHARED_BASE:#x}..{end:#x}",
            s.address
        )));
    }
    if !s.address.is_multiple_of(align) {
        return Err(Fault::MisalignedAddress(format!(
            "shared address {:#x} is not a multiple of {align}",
            s.address
        )));
    }
    Ok(s)
}

/// Host pointer to a byte that [`resolve`] has tested.
#[inline(always)]
pub(super) fn pointer(cluster: &mut Cluster, s: Shared) -> *mut u8 {
    let shared = cluster.ctas[s.cta as usize].shared.as_mut_slice();
    let at = (s.address - SHARED_BASE) as usize;
    shared[at..].as_mut_ptr()
}

/// Tests the alignment of a global address.
pub(super) fn aligned(address: u64, align: u64) -> std::result::Result<(), Fault> {
    if address.is_multiple_of(align) {
        return Ok(());
    }
    Err(Fault::MisalignedAddress(format!(
        "global address {address:#x} is not a multiple of {align}"
    )))
}

/// Tests `bytes` bytes of global memory.
pub(super) fn global(
    launch: &Launch,
    address: u64,
    bytes: u64,
    align: u64,
) -> std::result::Result<(), Fault> {
    aligned(address, align)?;
    if bytes == 0 || launch.device.memory.covers(address, bytes) {
        return Ok(());
    }
    let near = match launch.device.memory.nearest(address) {
        Some((a, distance)) if distance < 0 => {
            format!("{} bytes before {} ({} bytes)", -distance, a.name, a.bytes)
        }
        Some((a, distance)) => format!(
            "{} bytes behind the start of {} ({} bytes)",
            distance + a.bytes as i64,
            a.name,
            a.bytes
        ),
        None => "nothing is allocated".to_owned(),
    };
    Err(Fault::IllegalAddress(format!(
        "{bytes} bytes at global address {address:#x}: {near}"
    )))
}

/// The fault with the operation that caused it in front.
pub(super) fn located(launch: &Launch, pc: u32, fault: Fault) -> Fault {
    let Some(site) = launch.program.sites.get(pc as usize) else {
        return fault;
    };
    let name = |what: String| {
        if what.starts_with(&*site.opcode) {
            return what;
        }
        format!("{}, line {}: {what}", site.opcode, site.line)
    };
    match fault {
        Fault::IllegalAddress(what) => Fault::IllegalAddress(name(what)),
        Fault::MisalignedAddress(what) => Fault::MisalignedAddress(name(what)),
        Fault::IllegalInstruction(what) => Fault::IllegalInstruction(name(what)),
        other => other,
    }
}

/// The executing warp at its present operation.
pub(super) fn here(cx: &mut Cx) -> At {
    At {
        agent: Agent(cx.warp().agent),
        pc: cx.pc,
    }
}

/// The set bits of a lane mask, from lane 0 on.
pub(super) fn lanes(mask: u32) -> impl Iterator<Item = usize> {
    let mut left = mask;
    std::iter::from_fn(move || {
        if left == 0 {
            return None;
        }
        let lane = left.trailing_zeros() as usize;
        left &= left - 1;
        Some(lane)
    })
}
