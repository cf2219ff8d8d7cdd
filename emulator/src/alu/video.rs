//! The video instructions: scalar (vadd, vmad, vset, …) on bytes and half-words of registers, and SIMD on two half-words
//! (vadd2, …) or four bytes (vadd4, …) of a register.
//!
//! Operands name parts of registers: `a.b2`, `a.h1`; for SIMD `a.h32` or `a.b7531` picks each lane from the halves or bytes
//! of a and b together; on the destination the part says which lanes are merged into c or summed. They are rare, so one
//! handler interprets a record per instruction, in 128-bit integers, as the ISA's pseudo-code reads.

use crate::exec::{Cx, Flow, LANES};
use crate::program::lower::{LowerCx, Result};
use crate::program::{Class, Op};
use crate::ptx::ast::{Instr, Operand, Ty};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Add,
    Sub,
    Difference,
    Min,
    Max,
    Average,
    ShiftLeft,
    ShiftRight,
    /// Comparison: by `compare`.
    Set,
    Mad,
}

/// What is done with c after the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Second {
    None,
    Add,
    Min,
    Max,
}

/// Bits of a register from `shift` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Part {
    shift: u32,
    bits: u32,
}

const WHOLE: Part = Part { shift: 0, bits: 32 };

#[derive(Debug, Clone)]
struct Video {
    operation: Operation,
    compare: Compare,
    second: Second,
    /// Signedness of d, a, b.
    signed: [bool; 3],
    saturate: bool,
    /// Shifts: the count wraps at 32 (else it is clamped).
    wrap: bool,
    /// vmad: negated product, negated c, plus one, scale.
    negate: [bool; 2],
    plus_one: bool,
    scale: u32,
    /// Lanes of the register: 1, 2, 4.
    lanes: u32,
    /// Scalar: the parts of d, a, b.
    parts: [Part; 3],
    /// SIMD: where each lane of a and b comes from (0.. of a and b together), and the lanes of d that are written.
    select: [[u8; 4]; 2],
    mask: u8,
    merges: bool,
}

type Compare = fn(i128, i128) -> bool;

fn comparison(s: &str) -> Option<Compare> {
    Some(match s {
        "eq" => |a, b| a == b,
        "ne" => |a, b| a != b,
        "lt" => |a, b| a < b,
        "le" => |a, b| a <= b,
        "gt" => |a, b| a > b,
        "ge" => |a, b| a >= b,
        _ => return None,
    })
}

/// Operation and lanes of an opcode.
fn opcode(s: &str) -> Option<(Operation, u32)> {
    let (name, lanes) = match s.strip_suffix(['2', '4']) {
        Some(name) => (name, u32::from(s.as_bytes()[s.len() - 1] - b'0')),
        None => (s, 1),
    };
    let operation = match (name, lanes) {
        ("vadd", _) => Operation::Add,
        ("vsub", _) => Operation::Sub,
        ("vabsdiff", _) => Operation::Difference,
        ("vmin", _) => Operation::Min,
        ("vmax", _) => Operation::Max,
        ("vset", _) => Operation::Set,
        ("vavrg", 2 | 4) => Operation::Average,
        ("vshl", 1) => Operation::ShiftLeft,
        ("vshr", 1) => Operation::ShiftRight,
        ("vmad", 1) => Operation::Mad,
        _ => return None,
    };
    Some((operation, lanes))
}

/// `b0`..`b3`, `h0`, `h1`.
fn part(s: &str) -> Option<Part> {
    let (kind, number) = s.split_at_checked(1)?;
    let number: u32 = number.parse().ok()?;
    match kind {
        "b" if number < 4 && s.len() == 2 => Some(Part {
            shift: 8 * number,
            bits: 8,
        }),
        "h" if number < 2 && s.len() == 2 => Some(Part {
            shift: 16 * number,
            bits: 16,
        }),
        _ => None,
    }
}

/// The digits of a SIMD selector, lane 0 first.
fn digits(s: &str, lanes: u32, below: u8) -> Option<Vec<u8>> {
    let rest = s.strip_prefix(if lanes == 2 { 'h' } else { 'b' })?;
    let digits: Option<Vec<u8>> = rest
        .bytes()
        .rev()
        .map(|b| b.checked_sub(b'0').filter(|d| *d < below))
        .collect();
    digits.filter(|d| !d.is_empty() && d.len() <= lanes as usize)
}

/// An operand without its part and sign.
fn bare(o: &Operand) -> (Operand, Option<&str>, bool) {
    match o {
        Operand::Part(reg, part) => (Operand::Reg(*reg), Some(part), false),
        Operand::Negated(reg) => (Operand::Reg(*reg), None, true),
        Operand::NegatedPart(reg, part) => (Operand::Reg(*reg), Some(part), true),
        other => (other.clone(), None, false),
    }
}

pub fn lower(cx: &mut LowerCx, i: &Instr) -> Result<bool> {
    let Some((operation, lanes)) = opcode(&i.op[0]) else {
        return Ok(false);
    };
    let mut v = Video {
        operation,
        compare: |_, _| false,
        second: Second::None,
        signed: [false; 3],
        saturate: false,
        wrap: false,
        negate: [false; 2],
        plus_one: false,
        scale: 0,
        lanes,
        parts: [WHOLE; 3],
        select: [[0, 1, 2, 3], [lanes as u8, 5, 6, 7]],
        mask: (1 << lanes) - 1,
        merges: lanes > 1,
    };
    if lanes == 2 {
        v.select[1] = [2, 3, 0, 0];
    } else {
        v.select[1] = [4, 5, 6, 7];
    }
    let mut types = Vec::new();
    let (mut compared, mut mode) = (false, false);
    for m in &i.op[1..] {
        match &**m {
            "u32" => types.push(false),
            "s32" => types.push(true),
            "sat" => v.saturate = true,
            "clamp" => mode = true,
            "wrap" => {
                mode = true;
                v.wrap = true;
            }
            "add" => v.second = Second::Add,
            "min" => v.second = Second::Min,
            "max" => v.second = Second::Max,
            "po" => v.plus_one = true,
            "shr7" => v.scale = 7,
            "shr15" => v.scale = 15,
            m => match comparison(m) {
                Some(f) if !compared => {
                    compared = true;
                    v.compare = f;
                }
                _ => return cx.unsupported(i, &format!("unknown modifier .{m}")),
            },
        }
    }
    v.signed = match (operation, &types[..]) {
        (Operation::Set, &[a, b]) => [false, a, b],
        (Operation::Set, _) => return cx.unsupported(i, "the types of a and b are expected"),
        (_, &[d, a, b]) => [d, a, b],
        _ => return cx.unsupported(i, "the types of d, a and b are expected"),
    };
    let shift = matches!(operation, Operation::ShiftLeft | Operation::ShiftRight);
    let mad = operation == Operation::Mad;
    if compared != (operation == Operation::Set)
        || mode != shift
        || shift && v.signed[2]
        || (v.plus_one || v.scale != 0) && !mad
        || mad && v.second != Second::None
        || lanes > 1 && matches!(v.second, Second::Min | Second::Max)
        || lanes > 1 && v.second == Second::Add && v.saturate
        || operation == Operation::Set && v.saturate
    {
        return cx.unsupported(i, "these modifiers do not go together");
    }
    let (od, oa, ob, oc) = match &i.operands[..] {
        [d, a, b] => (d, a, b, None),
        [d, a, b, c] => (d, a, b, Some(c)),
        _ => return cx.unsupported(i, "operands d, a, b, c are expected"),
    };
    let ((d, dpart, _), (a, apart, na), (b, bpart, nb)) = (bare(od), bare(oa), bare(ob));
    let c = oc.map(bare);
    let nc = c.as_ref().is_some_and(|c| c.2);
    v.negate = [na != nb, nc];
    if (!mad || v.plus_one) && (na || nb || nc) || v.negate == [true, true] {
        return cx.unsupported(i, "these operands cannot be negated");
    }
    if c.as_ref().is_some_and(|c| c.1.is_some()) {
        return cx.unsupported(i, "c is used as a whole");
    }
    let wrong = "unknown part of a register";
    if lanes == 1 {
        for (to, text) in v.parts.iter_mut().zip([dpart, apart, bpart]) {
            if let Some(text) = text {
                match part(text) {
                    Some(p) => *to = p,
                    None => return cx.unsupported(i, wrong),
                }
            }
        }
        v.merges = dpart.is_some();
        let needs = v.merges || v.second != Second::None || mad;
        if c.is_some() != needs || v.merges && (v.second != Second::None || mad) {
            return cx.unsupported(i, "c goes with a second operation or a part of d");
        }
    } else {
        for (to, text) in v.select.iter_mut().zip([apart, bpart]) {
            if let Some(text) = text {
                match digits(text, lanes, 2 * lanes as u8) {
                    Some(d) if d.len() == lanes as usize => to[..d.len()].copy_from_slice(&d),
                    _ => return cx.unsupported(i, wrong),
                }
            }
        }
        if let Some(text) = dpart {
            match digits(text, lanes, lanes as u8) {
                // Lanes from low to high, each once.
                Some(d) if d.is_sorted_by(|a, b| a < b) => {
                    v.mask = d.iter().fold(0, |m, lane| m | 1 << lane);
                }
                _ => return cx.unsupported(i, wrong),
            }
        }
        if c.is_none() {
            return cx.unsupported(i, "operands d, a, b, c are expected");
        }
    }
    let mut op = LowerCx::new_op(run, Class::Integer);
    op.src[0] = cx.src(&a, Ty::B32)?;
    op.src[1] = cx.src(&b, Ty::B32)?;
    op.src[2] = match &c {
        Some((c, ..)) => cx.src(c, Ty::B32)?,
        None => op.src[0],
    };
    op.dst = cx.dst(&d, Ty::B32)?;
    op.ext = cx.ext(v);
    cx.emit(i, op)?;
    Ok(true)
}

/// The low `bits` of a value, sign- or zero-extended.
fn extend(v: i128, bits: u32, signed: bool) -> i128 {
    let low = v & ((1 << bits) - 1);
    if signed && low >> (bits - 1) != 0 {
        low - (1 << bits)
    } else {
        low
    }
}

fn clamp(v: i128, bits: u32, signed: bool) -> i128 {
    if signed {
        v.clamp(-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    } else {
        v.clamp(0, (1 << bits) - 1)
    }
}

impl Video {
    fn apply(&self, a: i128, b: i128) -> i128 {
        match self.operation {
            Operation::Add => a + b,
            Operation::Sub => a - b,
            Operation::Difference => (a - b).abs(),
            Operation::Min => a.min(b),
            Operation::Max => a.max(b),
            Operation::Average => (a + b + i128::from(a + b >= 0)) >> 1,
            Operation::Set => i128::from((self.compare)(a, b)),
            Operation::ShiftLeft => a << self.count(b),
            Operation::ShiftRight => a >> self.count(b),
            Operation::Mad => a * b,
        }
    }

    fn count(&self, b: i128) -> u32 {
        (if self.wrap { b & 31 } else { b.min(32) }) as u32
    }

    fn scalar(&self, [a, b, c]: [u32; 3]) -> u32 {
        let take = |v: u32, p: Part, signed| extend(i128::from(v >> p.shift), p.bits, signed);
        let [d, pa, pb] = self.parts;
        let t = self.apply(take(a, pa, self.signed[1]), take(b, pb, self.signed[2]));
        if self.operation == Operation::Mad {
            return self.mad(t, c);
        }
        let t = if self.saturate {
            clamp(t, d.bits, self.signed[0])
        } else {
            t
        };
        let second = extend(i128::from(c), 32, self.signed[0]);
        let t = match self.second {
            Second::None => t,
            Second::Add => t + second,
            Second::Min => t.min(second),
            Second::Max => t.max(second),
        };
        if self.merges {
            let mask = ((1u64 << d.bits) - 1) as u32;
            (t as u32 & mask) << d.shift | c & !(mask << d.shift)
        } else {
            t as u32
        }
    }

    fn mad(&self, product: i128, c: u32) -> u32 {
        let [negate, negate_c] = self.negate;
        let signed = self.signed[1] || self.signed[2] || negate || negate_c;
        // Negation is complement and one more; the one is added before the shift.
        let product = if negate { !product } else { product };
        let c = extend(i128::from(if negate_c { !c } else { c }), 32, signed);
        let one = i128::from(self.plus_one || negate || negate_c);
        let t = (product + c + one) >> self.scale;
        if self.saturate {
            clamp(t, 32, signed) as u32
        } else {
            t as u32
        }
    }

    fn simd(&self, [a, b, c]: [u32; 3]) -> u32 {
        let bits = 32 / self.lanes;
        let both = u64::from(a) | u64::from(b) << 32;
        let lane_mask = ((1u64 << bits) - 1) as u32;
        let sums = self.second == Second::Add;
        let mut d = if sums { c } else { 0 };
        for lane in 0..self.lanes {
            let take = |from: u8, signed| {
                extend(i128::from(both >> (u32::from(from) * bits)), bits, signed)
            };
            let mut t = self.apply(
                take(self.select[0][lane as usize], self.signed[1]),
                take(self.select[1][lane as usize], self.signed[2]),
            );
            if self.saturate {
                t = clamp(t, bits, self.signed[0]);
            }
            let written = self.mask >> lane & 1 == 1;
            if sums {
                d = d.wrapping_add(if written { t as u32 } else { 0 });
            } else {
                let old = c >> (lane * bits);
                let v = if written { t as u32 } else { old };
                d |= (v & lane_mask) << (lane * bits);
            }
        }
        d
    }
}

/// SAFETY: called by the run loop with an operation of its own program.
unsafe fn run(cx: &mut Cx, op: &Op) -> Flow {
    let v: &Video = cx.ext(op);
    // SAFETY: rows of the operation.
    unsafe {
        let [a, b, c] = [0, 1, 2].map(|s| *cx.row(op.src[s]));
        let mask = cx.mask;
        let d = cx.row_mut(op.dst);
        for l in (0..LANES).filter(|l| mask >> l & 1 == 1) {
            let operands = [a[l], b[l], c[l]];
            d[l] = if v.lanes == 1 {
                v.scalar(operands)
            } else {
                v.simd(operands)
            };
        }
    }
    Flow::Next
}
