//! mbarrier instructions: lowering and handlers.
//!
//! Every executing lane operates on its own address, one lane after the other, as if in some order on the device.
//! A wait looks at all lanes: when none of them can pass it blocks its fragment until one can ([`Wait::Mbarrier`]), so
//! that a spinning warp costs nothing. try_wait may come back false before that: at its first look by chance, and when
//! nothing else in the cluster can run (`AsyncState::expiries`), because a program may rely on the time-out to do
//! something else. test_wait never blocks.

use super::address::{Place, Rows, Shared, Slots, Value, Window, here, lanes, located, resolve};
use super::mbarrier::{self, Mbarrier};
use super::modifiers::Modifiers;
use crate::check::FindingKind;
use crate::device::{Fault, Policy};
use crate::exec::{Cx, Flow, Wait};
use crate::program::lower::{LowerCx, Result};
use crate::program::{Class, NO_ROW, Op};
use crate::ptx::ast::{Instr, Operand, Ty};

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Init,
    Inval,
    Arrive,
    ExpectTx,
    CompleteTx,
}

/// Extension record of everything but waits.
struct Update {
    list: u32,
    kind: Kind,
    address: Place,
    window: Window,
    /// Arrival count, or the bytes of expect_tx / complete_tx.
    count: Option<Value>,
    expect: bool,
    drop: bool,
    no_complete: bool,
    release: bool,
}

struct WaitFor {
    list: u32,
    address: Place,
    window: Window,
    /// Token (64 bits) or parity (32 bits).
    state: Value,
    parity: bool,
    acquire: bool,
    /// try_wait.
    suspend: bool,
}

pub(super) fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let mut m = Modifiers::new(i);
    let Some(what) = m.one_of(&[
        "init",
        "inval",
        "arrive",
        "arrive_drop",
        "expect_tx",
        "complete_tx",
        "test_wait",
        "try_wait",
        "pending_count",
    ]) else {
        return cx.unsupported(i, "unknown mbarrier operation");
    };
    m.need(cx, "b64")?;
    match what {
        0 | 1 => lower_init(cx, i, m, what == 0)?,
        2 | 3 => lower_arrive(cx, i, m, what == 3)?,
        4 => lower_transaction(cx, i, m, Kind::ExpectTx)?,
        5 => lower_transaction(cx, i, m, Kind::CompleteTx)?,
        6 | 7 => lower_wait(cx, i, m, what == 7)?,
        _ => {
            m.finish(cx)?;
            let [dst, state] = operands(cx, i)?;
            let mut op = LowerCx::new_op(pending_count, Class::Mbarrier);
            op.src[0] = cx.src(state, Ty::B64)?;
            op.dst = cx.dst(dst, Ty::B32)?;
            cx.emit(i, op)?;
        }
    }
    Ok(true)
}

fn operands<'i, const N: usize>(cx: &LowerCx, i: &'i Instr) -> Result<&'i [Operand; N]> {
    match i.operands.as_slice().try_into() {
        Ok(a) => Ok(a),
        Err(_) => cx.unsupported(i, &format!("{N} operands are expected")),
    }
}

fn lower_init(cx: &mut LowerCx, i: &Instr, mut m: Modifiers, init: bool) -> Result<()> {
    let window = Window::of(m.one_of(&Window::SPELLINGS[..2]));
    m.finish(cx)?;
    let mut s = Slots::default();
    let (address, count) = if init {
        let [a, c] = operands(cx, i)?;
        (s.place(cx, a)?, Some(s.value(cx, c, Ty::U32)?))
    } else {
        let [a] = operands(cx, i)?;
        (s.place(cx, a)?, None)
    };
    let kind = if init { Kind::Init } else { Kind::Inval };
    emit_update(cx, i, s, kind, address, window, count, |_| {})
}

#[allow(clippy::too_many_arguments)] // the fields of one record
fn emit_update(
    cx: &mut LowerCx,
    i: &Instr,
    slots: Slots,
    kind: Kind,
    address: Place,
    window: Window,
    count: Option<Value>,
    set: impl FnOnce(&mut Update),
) -> Result<()> {
    let mut record = Update {
        list: slots.finish(cx),
        kind,
        address,
        window,
        count,
        expect: false,
        drop: false,
        no_complete: false,
        release: false,
    };
    set(&mut record);
    let mut op = LowerCx::new_op(update, Class::Mbarrier);
    op.ext = cx.ext(record);
    cx.emit(i, op)
}

fn lower_arrive(cx: &mut LowerCx, i: &Instr, mut m: Modifiers, drop: bool) -> Result<()> {
    let expect = m.take("expect_tx");
    let no_complete = m.take("noComplete");
    let release = m.one_of(&["release", "relaxed"]) != Some(1);
    // Scope: with one host thread per cluster every scope is at least the cluster's.
    m.one_of(&["cta", "cluster"]);
    let window = Window::of(m.one_of(&Window::SPELLINGS));
    m.finish(cx)?;
    let (state, rest) = match i.operands.split_first() {
        Some((state @ (Operand::Reg(_) | Operand::Sink), rest)) => (Some(state), rest),
        _ => (None, i.operands.as_slice()),
    };
    let (address, count) = match rest {
        [a] if !expect && !no_complete => (a, None),
        [a, c] => (a, Some(c)),
        _ => return cx.unsupported(i, "state, [address] and a count are expected"),
    };
    if window == Window::Cluster && !matches!(state, Some(Operand::Sink) | None) {
        return cx.unsupported(
            i,
            "an arrival at .shared::cluster returns no state: write _ there",
        );
    }
    if no_complete && expect {
        return cx.unsupported(i, ".noComplete and .expect_tx exclude each other");
    }
    let mut s = Slots::default();
    let address = s.place(cx, address)?;
    let count = count.map(|c| s.value(cx, c, Ty::U32)).transpose()?;
    let dst = match state {
        Some(o @ Operand::Reg(_)) => cx.dst(o, Ty::B64)?,
        _ => NO_ROW,
    };
    let record = Update {
        list: s.finish(cx),
        kind: Kind::Arrive,
        address,
        window,
        count,
        expect,
        drop,
        no_complete,
        release,
    };
    let mut op = LowerCx::new_op(update, Class::Mbarrier);
    op.dst = dst;
    op.ext = cx.ext(record);
    cx.emit(i, op)
}

fn lower_transaction(cx: &mut LowerCx, i: &Instr, mut m: Modifiers, kind: Kind) -> Result<()> {
    m.take("relaxed");
    m.one_of(&["cta", "cluster"]);
    let window = Window::of(m.one_of(&Window::SPELLINGS));
    m.finish(cx)?;
    let [a, c] = operands(cx, i)?;
    let mut s = Slots::default();
    let address = s.place(cx, a)?;
    let count = Some(s.value(cx, c, Ty::U32)?);
    emit_update(cx, i, s, kind, address, window, count, |_| {})
}

fn lower_wait(cx: &mut LowerCx, i: &Instr, mut m: Modifiers, suspend: bool) -> Result<()> {
    let parity = m.take("parity");
    let acquire = m.one_of(&["acquire", "relaxed"]) != Some(1);
    m.one_of(&["cta", "cluster"]);
    let window = Window::of(m.one_of(&Window::SPELLINGS[..2]));
    m.finish(cx)?;
    let (dst, address, state) = match i.operands.as_slice() {
        [d, a, s] => (d, a, s),
        [d, a, s, hint] if suspend => {
            // The time limit is a hint in nanoseconds; time does not exist here.
            cx.src(hint, Ty::U32)?;
            (d, a, s)
        }
        _ => return cx.unsupported(i, "predicate, [address] and state or parity are expected"),
    };
    let mut s = Slots::default();
    let address = s.place(cx, address)?;
    let state = s.value(cx, state, if parity { Ty::U32 } else { Ty::B64 })?;
    let record = WaitFor {
        list: s.finish(cx),
        address,
        window,
        state,
        parity,
        acquire,
        suspend,
    };
    let mut op = LowerCx::new_op(wait, Class::Mbarrier);
    op.pdst = cx.pred_dst(dst)?;
    op.ext = cx.ext(record);
    cx.emit(i, op)
}

unsafe fn pending_count(cx: &mut Cx, op: &Op) -> Flow {
    // SAFETY: rows of this operation.
    unsafe {
        let (state, dst) = (cx.row64(op.src[0]), cx.row_mut(op.dst));
        for lane in lanes(cx.mask) {
            dst[lane] = Mbarrier::token_pending(state[lane]);
        }
    }
    Flow::Next
}

unsafe fn update(cx: &mut Cx, op: &Op) -> Flow {
    let u: &Update = cx.ext(op);
    let rows = Rows::new(cx, u.list);
    // Lanes that make the same object in one instruction make it once: whole warps execute an init in real kernels, and
    // to lanes in step it is a write of equal values.
    let mut made = None;
    // Lanes that arrive at the same object in one instruction are one agent's: the checker is told once.
    let mut told = None;
    for lane in lanes(cx.mask) {
        // SAFETY: rows of this operation.
        let (address, count) = unsafe {
            (
                rows.place(cx, u.address, lane),
                u.count.map_or(1, |c| rows.value(cx, c, lane) as u32),
            )
        };
        let own = cx.cta().rank;
        let s = match resolve(cx.cluster(), own, address, 8, 8, u.window) {
            Ok(s) => s,
            Err(fault) => {
                let fault = located(cx.launch, cx.pc, fault);
                return cx.fail(fault);
            }
        };
        if u.kind == Kind::Init && made.replace((s, count)) == Some((s, count)) {
            continue;
        }
        let tell = told.replace(s) != Some(s);
        let token = update_one(cx, u, s, count, tell);
        if op.dst != NO_ROW {
            // SAFETY: row of this operation.
            unsafe { cx.row64_mut(op.dst)[lane] = token };
        }
    }
    Flow::Next
}

fn update_one(cx: &mut Cx, u: &Update, s: Shared, count: u32, tell: bool) -> u64 {
    let (at, mask) = (here(cx), cx.mask);
    let cluster = cx.cluster();
    let log = cluster.check.is_some();
    if tell {
        touch(cluster, at, s, u.kind);
    }
    match u.kind {
        Kind::Init => {
            mbarrier::init(cluster, s, count, at);
            0
        }
        Kind::Inval => {
            mbarrier::invalidate(cluster, s, at);
            0
        }
        Kind::ExpectTx => {
            mbarrier::apply(cluster, s, at, |b| b.expect(count, at, log));
            0
        }
        Kind::CompleteTx => {
            mbarrier::apply(cluster, s, at, |b| b.deliver(count, at, log));
            0
        }
        Kind::Arrive => {
            if tell && let Some(check) = &mut cluster.check {
                if u.release {
                    check.release_of(at, mbarrier::sync_of(s), mask);
                } else {
                    check.release_fenced(at, mbarrier::sync_of(s));
                }
            }
            let (token, completed) = mbarrier::apply(cluster, s, at, |b| {
                let token = b.token();
                if u.expect {
                    b.expect(count, at, log);
                    b.arrive(1, u.drop);
                } else {
                    b.arrive(count, u.drop);
                }
                token
            });
            if completed
                && u.no_complete
                && let Some(check) = &mut cluster.check
            {
                check.report(
                    FindingKind::MbarrierMisuse,
                    at,
                    format!(
                        "mbarrier at shared address {:#x}: .noComplete arrival completes the phase",
                        s.address
                    ),
                    Vec::new(),
                );
            }
            token
        }
    }
}

/// Tells the checker of the access to the 8 bytes: who uses an object must be ordered after its init.
fn touch(cluster: &mut crate::exec::Cluster, at: crate::check::At, s: Shared, kind: Kind) {
    if let Some(check) = &mut cluster.check {
        let kind = match kind {
            Kind::Init | Kind::Inval => crate::check::Kind::Write,
            _ => crate::check::Kind::Atomic,
        };
        check.shared_range(at, s.cta, s.address, 8, kind, crate::check::Proxy::Generic);
    }
}

/// One try_wait in this many comes back false at its first look.
fn time_out_odds(policy: Policy) -> u64 {
    match policy {
        Policy::Eager => 64,
        Policy::Latest | Policy::Random => 8,
    }
}

unsafe fn wait(cx: &mut Cx, op: &Op) -> Flow {
    let w: &WaitFor = cx.ext(op);
    let rows = Rows::new(cx, w.list);
    let at = here(cx);
    let own = cx.cta().rank;
    let mut done = 0u32;
    let mut seen: Option<Seen> = None;
    for lane in lanes(cx.mask) {
        // SAFETY: rows of this operation.
        let (address, state) = unsafe {
            (
                rows.place(cx, w.address, lane),
                rows.value(cx, w.state, lane),
            )
        };
        if let Some(s) = &seen
            && s.address == address
            && s.state == state
        {
            done |= u32::from(s.complete) << lane;
            continue;
        }
        let s = match resolve(cx.cluster(), own, address, 8, 8, w.window) {
            Ok(s) if s.cta == own => s,
            Ok(s) => return remote_wait(cx, s),
            Err(fault) => {
                let fault = located(cx.launch, cx.pc, fault);
                return cx.fail(fault);
            }
        };
        let look = look(cx, w, s, address, state, at);
        done |= u32::from(look.complete) << lane;
        seen = Some(look);
    }
    let Some(seen) = seen else {
        return Flow::Next;
    };
    if done == 0 && w.suspend && keep_waiting(cx, &seen) {
        return Flow::Block;
    }
    cx.fragment().wait = Wait::None;
    // SAFETY: predicate of this operation.
    unsafe { cx.set_pred(op.pdst, done) };
    if done == 0 { Flow::Yield } else { Flow::Next }
}

/// What one lane saw.
struct Seen {
    address: u64,
    state: u64,
    offset: u32,
    phase: u64,
    complete: bool,
}

fn look(
    cx: &mut Cx,
    w: &WaitFor,
    s: Shared,
    address: u64,
    state: u64,
    at: crate::check::At,
) -> Seen {
    // A suspended try_wait resumes when its phase completes: it is true also if the next phase has completed since, and
    // the parity says no again.
    let suspended_in = match cx.fragment().wait {
        Wait::Mbarrier { address, phase, .. } if address == s.address => Some(phase),
        _ => None,
    };
    let first = matches!(cx.fragment().wait, Wait::None);
    let cluster = cx.cluster();
    if first {
        touch(cluster, at, s, Kind::Arrive);
    }
    let checks = cluster.check.is_some();
    let (phase, complete, age) = mbarrier::observe(cluster, s, at, |b| {
        let (complete, age) = if suspended_in.is_some_and(|p| b.phase > p) {
            (true, 0)
        } else if w.parity {
            (b.parity_complete(state as u32), 0)
        } else {
            (b.token_complete(state), b.token_age(state))
        };
        if complete && checks {
            b.saw(at.agent.0);
        }
        (b.phase, complete, age)
    });
    if let Some(check) = &mut cluster.check {
        if age >= 2 {
            check.report(
                FindingKind::MbarrierMisuse,
                at,
                format!(
                    "mbarrier at shared address {:#x}: the state waited for is {age} phases old; a device cannot tell \
                     it from the current phase",
                    s.address
                ),
                Vec::new(),
            );
        }
        if complete && w.acquire {
            check.acquire(at, mbarrier::sync_of(s));
        } else if complete {
            check.acquire_order(at, mbarrier::sync_of(s));
        }
    }
    Seen {
        address,
        state,
        offset: s.address,
        phase,
        complete,
    }
}

/// Decides whether an unsuccessful try_wait stays blocked; false is a time-out.
fn keep_waiting(cx: &mut Cx, seen: &Seen) -> bool {
    let expiries = cx.cluster().asynchronous.expiries;
    if let Wait::Mbarrier { polls, .. } = cx.fragment().wait {
        return polls == expiries;
    }
    let odds = time_out_odds(cx.launch.policy);
    if cx.cluster().rng.below(odds) == 0 {
        return false;
    }
    cx.fragment().wait = Wait::Mbarrier {
        address: seen.offset,
        phase: seen.phase,
        polls: expiries,
    };
    true
}

#[cold]
fn remote_wait(cx: &mut Cx, s: Shared) -> Flow {
    let at = here(cx);
    let text = format!(
        "waits on the mbarrier at shared address {:#x} of CTA {}: only the own CTA's can be waited on",
        s.address, s.cta
    );
    if let Some(check) = &mut cx.cluster().check {
        check.report(FindingKind::MbarrierMisuse, at, text.clone(), Vec::new());
        if let Some(finding) = check.findings.last().cloned() {
            return cx.fail(Fault::Finding(Box::new(finding)));
        }
    }
    let fault = located(cx.launch, cx.pc, Fault::IllegalAddress(text));
    cx.fail(fault)
}
