//! Lowering of one function body: what every instruction family uses to resolve its operands.

use super::*;
use crate::hash::FastMap;
use crate::ptx::ast::{Function, Instr, Label, Module, Operand, Space, Ty};
use std::collections::HashMap;

/// Bits of a type.
pub fn bits(ty: Ty) -> u32 {
    if ty == Ty::Pred { 1 } else { 8 * ty.size() }
}

/// Type of a modifier without its dot (`"s32"`), if it is one.
pub fn parse_type(s: &str) -> Option<Ty> {
    Ty::from_name(s)
}

/// An address operand: `row` (if any) + `offset`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Address {
    /// Base register row; `None` for an absolute address.
    pub row: Option<RowId>,
    /// The base is a 64-bit register.
    pub wide: bool,
    /// Added to the base; includes the value of a symbol (shared offset + `SHARED_BASE`, local offset, param offset, or
    /// the device address of a global).
    pub offset: i64,
    /// Space of the symbol named in the address, if any.
    pub symbol_space: Option<Space>,
}

/// The value of a symbol as the loader placed it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SymbolValue {
    /// `Param` is a parameter of the kernel; formal parameters of device functions and the variables of call sequences
    /// are `Local`; a function is `Generic`.
    pub space: Space,
    /// Address in its own space (shared: includes `SHARED_BASE`; global and const: device address; param: offset;
    /// local: offset in the function's frame).
    pub value: u64,
    pub bytes: u64,
    pub ty: Ty,
}

/// A place in `ops` that has to learn a pc.
#[derive(Debug, Clone)]
pub enum Fixup {
    /// `op.imm` becomes the pc of the label.
    Label(u32, Label),
    /// The branch table in `ext` becomes the pcs of the labels.
    Table(u32, Vec<Label>),
}

/// Where control can go after an operation that is not just followed by the next.
#[derive(Debug, Clone, Default)]
pub struct Successors {
    /// Labels, as pcs once the function is lowered.
    pub labels: Vec<u32>,
    /// It ends the path even without a guard that fails (exit, return, trap, `bra`).
    pub ends: bool,
}

/// State of lowering a kernel; one for the entry and all functions it calls.
pub struct LowerCx<'m> {
    pub module: &'m Module,
    pub function: &'m Function,
    /// Symbols of the module.
    pub globals: &'m HashMap<String, SymbolValue>,
    /// Symbols of the function being lowered; they hide the module's.
    pub locals: HashMap<String, SymbolValue>,
    /// Index of the function being lowered in `functions`.
    pub function_index: u32,
    /// The entry and what it calls, in the order in which they are lowered.
    pub functions: Vec<FunctionInfo>,
    /// Name of a function to its index in `functions`.
    pub function_numbers: HashMap<String, u32>,
    /// Virtual row of every AST register of this function (predicates: slot in the predicate file).
    pub register_rows: Vec<RowId>,
    pub next_row: RowId,
    pub next_pred: u16,
    /// All virtual rows: first row and number of rows of each register, scratch value or initial value.
    pub units: Vec<(RowId, u8)>,
    pub ops: Vec<Op>,
    pub effects: Vec<Effects>,
    pub sites: Vec<Site>,
    pub ext: Vec<Box<dyn Any + Send + Sync>>,
    pub lists: Vec<Vec<RowId>>,
    pub init: FastMap<Init, RowId>,
    pub fixups: Vec<Fixup>,
    /// By index of the operation.
    pub successors: FastMap<u32, Successors>,
    /// Set by families when a kernel communicates through global memory.
    pub communicates: bool,
    /// Set by `setmaxnreg`: see [`Program::most_registers`](super::Program::most_registers).
    pub most_registers: Option<u32>,
    /// Set by alloca and its kin.
    pub has_stack: bool,
    /// Effects of the instruction being lowered, filled by the accessors.
    pub current: Effects,
    pub line: u32,
    /// Errors are gathered here, and lowering goes on with the next instruction.
    pub errors: Option<Vec<LowerError>>,
}

pub type Result<T> = std::result::Result<T, LowerError>;

impl<'m> LowerCx<'m> {
    pub fn new(
        module: &'m Module,
        function: &'m Function,
        globals: &'m HashMap<String, SymbolValue>,
    ) -> Self {
        LowerCx {
            module,
            function,
            globals,
            locals: HashMap::new(),
            function_index: 0,
            functions: Vec::new(),
            function_numbers: HashMap::new(),
            register_rows: Vec::new(),
            next_row: 0,
            // The first slots have a fixed meaning.
            next_pred: PRED_CARRY + 1,
            units: Vec::new(),
            ops: Vec::new(),
            effects: Vec::new(),
            sites: Vec::new(),
            ext: Vec::new(),
            lists: Vec::new(),
            init: FastMap::default(),
            fixups: Vec::new(),
            successors: FastMap::default(),
            communicates: false,
            most_registers: None,
            has_stack: false,
            current: Effects::default(),
            line: 0,
            errors: None,
        }
    }

    pub fn error<T>(&self, what: impl Into<String>) -> Result<T> {
        Err(LowerError {
            line: self.line,
            what: what.into(),
        })
    }

    /// Error "modifier or operand combination not supported", naming the instruction.
    pub fn unsupported<T>(&self, i: &Instr, why: &str) -> Result<T> {
        self.error(format!("{}: {why}", i.op.join(".")))
    }

    /// An operation with `run` as handler and nothing else set.
    pub fn new_op(run: Handler, class: Class) -> Op {
        Op {
            run,
            imm: 0,
            dst: NO_ROW,
            dst2: NO_ROW,
            src: [NO_ROW; 4],
            ext: 0,
            pdst: PRED_SINK,
            pdst2: PRED_SINK,
            psrc: Pred::TRUE,
            guard: Pred::TRUE,
            class,
            flags: 0,
        }
    }

    /// Appends an operation with the guard, site and effects of the instruction being lowered.
    pub fn emit(&mut self, i: &Instr, mut op: Op) -> Result<()> {
        if let Some((reg, negate)) = i.guard {
            let index = self.register_rows[reg.0 as usize] as u16;
            op.guard = Pred { index, negate };
            self.current.pred_reads.push(index);
            self.current.partial = true;
        }
        self.push(op, i.loc.clone(), i.op.text.clone());
        Ok(())
    }

    /// Appends an operation that no instruction of the text stands for.
    pub fn push_plain(&mut self, op: Op, opcode: &str) {
        self.push(op, None, opcode.into());
    }

    fn push(&mut self, op: Op, loc: Option<Arc<crate::ptx::ast::Loc>>, opcode: Arc<str>) {
        self.ops.push(op);
        self.effects.push(std::mem::take(&mut self.current));
        self.sites.push(Site {
            line: self.line,
            loc,
            opcode,
        });
    }

    /// Index that the next emitted operation will have.
    pub fn pc(&self) -> u32 {
        self.ops.len() as u32
    }

    pub fn ext<T: Any + Send + Sync>(&mut self, value: T) -> u32 {
        self.ext.push(Box::new(value));
        (self.ext.len() - 1) as u32
    }

    /// Stores a list of rows (already recorded as read or written by the accessor that made them).
    pub fn list(&mut self, rows: Vec<RowId>) -> u32 {
        self.lists.push(rows);
        (self.lists.len() - 1) as u32
    }

    pub fn declared_type(&self, o: &Operand) -> Option<Ty> {
        match o {
            Operand::Reg(r) => Some(self.function.registers[r.0 as usize].ty),
            _ => None,
        }
    }

    pub fn rows_of(width: u32) -> u8 {
        match width {
            0..=32 => 1,
            64 => 2,
            _ => 4,
        }
    }

    /// Fresh virtual rows (scratch of one instruction).
    pub fn scratch(&mut self, width: u32) -> RowId {
        let r = self.next_row;
        let rows = Self::rows_of(width);
        self.next_row += u32::from(rows);
        self.units.push((r, rows));
        r
    }

    /// A fresh predicate slot.
    pub fn scratch_pred(&mut self) -> Result<u16> {
        let p = self.next_pred;
        match p.checked_add(1) {
            Some(next) => self.next_pred = next,
            None => return self.error("too many predicates"),
        }
        Ok(p)
    }

    /// A row that is filled at warp start.
    pub fn init_row(&mut self, init: Init) -> RowId {
        if let Some(r) = self.init.get(&init) {
            return *r;
        }
        let r = self.scratch(init.bits());
        self.init.insert(init, r);
        r
    }

    /// A source of `width` bits (8, 16 and 32 take one row, 64 two, 128 four): a register at least that wide, an
    /// immediate converted to `ty`, a special register, or the address of a symbol.
    /// A 32-bit read of a 64-bit register is refused, as ptxas does.
    pub fn src(&mut self, o: &Operand, ty: Ty) -> Result<RowId> {
        let width = bits(ty);
        let row = match o {
            Operand::Reg(r) => {
                let declared = self.function.registers[r.0 as usize].ty;
                if declared == Ty::Pred {
                    return self.error("predicate register where a value is expected");
                }
                if Self::rows_of(bits(declared)) != Self::rows_of(width) {
                    return self.error(format!(
                        "register {} of {} bits used as a {width}-bit operand",
                        self.function.registers[r.0 as usize].name,
                        bits(declared)
                    ));
                }
                let row = self.register_rows[r.0 as usize];
                self.current.reads.push((row, Self::rows_of(width)));
                return Ok(row);
            }
            Operand::Int(_) | Operand::F32(_) | Operand::F64(_) | Operand::Float(_) => {
                let v = self.immediate(o, ty)?;
                if width <= 32 {
                    self.init_row(Init::Const32(v as u32))
                } else {
                    self.init_row(Init::Const64(v))
                }
            }
            Operand::Symbol(_) | Operand::SymbolOffset(..) => {
                let (v, symbol) = self.symbol_address(o)?;
                match symbol.space {
                    Space::Param if width == 64 => self.init_row(Init::ParamAddress(v as u32)),
                    // In its own space a parameter has a short address: see `cvta`.
                    Space::Param => self.init_row(Init::Const32(v as u32)),
                    Space::Local => {
                        let row = self.local_address(v as i64, width)?;
                        self.current.reads.push((row, Self::rows_of(width)));
                        row
                    }
                    _ if width <= 32 => self.init_row(Init::Const32(v as u32)),
                    _ => self.init_row(Init::Const64(v)),
                }
            }
            Operand::Special(name) => match Init::special(name) {
                Some(init) => {
                    if Self::rows_of(init.bits()) != Self::rows_of(width) {
                        return self.error(format!("{name} does not have {width} bits"));
                    }
                    self.init_row(init)
                }
                None => return self.error(format!("special register {name} cannot be read here")),
            },
            _ => return self.error(format!("operand {o:?} cannot be read as a value here")),
        };
        Ok(row)
    }

    /// Bits of an immediate as `ty` (integers wrap, decimal floats are converted).
    pub fn immediate(&self, o: &Operand, ty: Ty) -> Result<u64> {
        let width = bits(ty);
        let v = match (o, ty) {
            (Operand::Int(v), Ty::F32) => u64::from((*v as f32).to_bits()),
            (Operand::Int(v), Ty::F64) => (*v as f64).to_bits(),
            (Operand::Int(v), _) => *v as u64,
            (Operand::F32(b), Ty::F64) => f64::from(f32::from_bits(*b)).to_bits(),
            (Operand::F32(b), _) => u64::from(*b),
            (Operand::F64(b), Ty::F32) => u64::from((f64::from_bits(*b) as f32).to_bits()),
            (Operand::F64(b), _) => *b,
            (Operand::Float(x), Ty::F64 | Ty::B64) => x.to_bits(),
            (Operand::Float(x), _) => u64::from((*x as f32).to_bits()),
            _ => return self.error(format!("operand {o:?} is not an immediate")),
        };
        Ok(if width >= 64 {
            v
        } else {
            v & ((1 << width) - 1)
        })
    }

    /// Row with the address (32 or 64 bits) of a local variable at `offset` of the frame of this function.
    fn local_address(&mut self, offset: i64, width: u32) -> Result<RowId> {
        let info = &self.functions[self.function_index as usize];
        if !info.recursive {
            let v = (i64::from(info.local_offset) + offset) as u64;
            return Ok(if width <= 32 {
                self.init_row(Init::Const32(v as u32))
            } else {
                self.init_row(Init::Const64(v))
            });
        }
        let frame = info.frame_row;
        let outer = std::mem::take(&mut self.current);
        let row = self.scratch(width);
        let mut op = Self::new_op(crate::exec::control::frame_address(width), Class::Integer);
        op.dst = row;
        op.src[0] = frame;
        op.imm = offset;
        self.current.reads.push((frame, 2));
        self.current.writes.push((row, Self::rows_of(width)));
        self.push(op, None, "frame address".into());
        self.current = outer;
        Ok(row)
    }

    /// Value of a constant integer operand (modifiers of wgmma, barrier ids, …), if it is one.
    pub fn constant(&self, o: &Operand) -> Option<i64> {
        match o {
            Operand::Int(v) => Some(*v),
            _ => None,
        }
    }

    /// Address of a symbol operand in its own space, and the symbol.
    pub fn symbol_address(&self, o: &Operand) -> Result<(u64, SymbolValue)> {
        let (name, off) = match o {
            Operand::Symbol(n) => (n, 0),
            Operand::SymbolOffset(n, off) => (n, *off),
            _ => return self.error(format!("operand {o:?} is not a symbol")),
        };
        match self
            .locals
            .get(&**name)
            .or_else(|| self.globals.get(&**name))
        {
            Some(s) => Ok((s.value.wrapping_add(off as u64), *s)),
            None => self.error(format!("unknown symbol {name}")),
        }
    }

    /// A destination of `ty` (`_` gives scratch rows).
    pub fn dst(&mut self, o: &Operand, ty: Ty) -> Result<RowId> {
        let rows = Self::rows_of(bits(ty));
        match o {
            Operand::Reg(r) => {
                let declared = self.function.registers[r.0 as usize].ty;
                if declared == Ty::Pred || Self::rows_of(bits(declared)) != rows {
                    return self.error(format!(
                        "destination {} does not fit a {}-bit result",
                        self.function.registers[r.0 as usize].name,
                        bits(ty)
                    ));
                }
                let row = self.register_rows[r.0 as usize];
                self.current.writes.push((row, rows));
                Ok(row)
            }
            Operand::Sink => {
                let row = self.scratch(bits(ty));
                self.current.writes.push((row, rows));
                Ok(row)
            }
            _ => self.error(format!("operand {o:?} is not a destination")),
        }
    }

    /// A destination that is also read (wgmma and mma accumulators, `bfi`-like in-place updates).
    pub fn dst_in_out(&mut self, o: &Operand, ty: Ty) -> Result<RowId> {
        let row = self.dst(o, ty)?;
        self.current.reads.push((row, Self::rows_of(bits(ty))));
        Ok(row)
    }

    /// Rows of every element of `{a, b, …}` (or of one register) as sources.
    pub fn src_vector(&mut self, o: &Operand, ty: Ty) -> Result<Vec<RowId>> {
        match o {
            Operand::Vector(v) => v.iter().map(|e| self.src(e, ty)).collect(),
            other => Ok(vec![self.src(other, ty)?]),
        }
    }

    pub fn dst_vector(&mut self, o: &Operand, ty: Ty) -> Result<Vec<RowId>> {
        match o {
            Operand::Vector(v) => v.iter().map(|e| self.dst(e, ty)).collect(),
            other => Ok(vec![self.dst(other, ty)?]),
        }
    }

    /// A predicate source: register, `!register`, or a constant.
    pub fn pred_src(&mut self, o: &Operand) -> Result<Pred> {
        let (r, negate) = match o {
            Operand::Reg(r) => (r, false),
            Operand::NotReg(r) => (r, true),
            Operand::Int(0) => return Ok(Pred::FALSE),
            Operand::Int(_) => return Ok(Pred::TRUE),
            _ => return self.error(format!("operand {o:?} is not a predicate")),
        };
        if self.function.registers[r.0 as usize].ty != Ty::Pred {
            return self.error("a predicate is expected here");
        }
        let index = self.register_rows[r.0 as usize] as u16;
        self.current.pred_reads.push(index);
        Ok(Pred { index, negate })
    }

    pub fn pred_dst(&mut self, o: &Operand) -> Result<u16> {
        match o {
            Operand::Reg(r) if self.function.registers[r.0 as usize].ty == Ty::Pred => {
                let index = self.register_rows[r.0 as usize] as u16;
                self.current.pred_writes.push(index);
                Ok(index)
            }
            Operand::Sink => Ok(PRED_SINK),
            _ => self.error(format!("operand {o:?} is not a predicate destination")),
        }
    }

    /// Resolves `[reg+off]`, `[symbol+off]`, `[imm]`.
    pub fn address(&mut self, o: &Operand) -> Result<Address> {
        let Operand::Address { base, offset } = o else {
            return self.error(format!("operand {o:?} is not an address"));
        };
        match &**base {
            Operand::Reg(r) => {
                let wide = bits(self.function.registers[r.0 as usize].ty) == 64;
                let row = self.src(base, if wide { Ty::B64 } else { Ty::B32 })?;
                Ok(Address {
                    row: Some(row),
                    wide,
                    offset: *offset,
                    symbol_space: None,
                })
            }
            Operand::Int(v) => Ok(Address {
                row: None,
                wide: true,
                offset: v.wrapping_add(*offset),
                symbol_space: None,
            }),
            Operand::Symbol(_) | Operand::SymbolOffset(..) => {
                let (v, s) = self.symbol_address(base)?;
                let mut offset = (v as i64).wrapping_add(*offset);
                if s.space == Space::Local {
                    let info = &self.functions[self.function_index as usize];
                    if info.recursive {
                        let row = info.frame_row;
                        self.current.reads.push((row, 2));
                        return Ok(Address {
                            row: Some(row),
                            wide: true,
                            offset,
                            symbol_space: Some(s.space),
                        });
                    }
                    offset = offset.wrapping_add(i64::from(info.local_offset));
                }
                Ok(Address {
                    row: None,
                    wide: true,
                    offset,
                    symbol_space: Some(s.space),
                })
            }
            _ => self.error(format!("operand {o:?} is not an address")),
        }
    }
}
