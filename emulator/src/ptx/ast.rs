//! The parsed form of a PTX module, before any meaning is attached to it.
//!
//! Names are kept as written; scopes are resolved here (every register operand already carries the index of its
//! declaration), types, spaces and modifiers stay text until an instruction is lowered.

/// One PTX module (one `.ptx` file or fatbin entry).
#[derive(Debug, Clone, Default)]
pub struct Module {
    pub version: (u32, u32),
    /// The architecture, `sm_90a`.
    pub target: String,
    /// What follows the architecture in `.target`: `debug`, `texmode_independent`, …
    pub target_options: Vec<String>,
    pub address_size: u32,
    /// `.file` table: index to path.
    pub files: Vec<(u32, String)>,
    /// Module-scope variables (`.global`, `.const`, module-scope `.shared`), in order of declaration.
    pub variables: Vec<Variable>,
    pub functions: Vec<Function>,
    /// `.debug_str` contents by label ([`Loc::function`] is already resolved with it).
    pub debug_strings: Vec<(String, String)>,
    /// `.alias a, b;`: `a` is another name of the function `b`.
    pub aliases: Vec<(String, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Space {
    Reg,
    Sreg,
    Const,
    Global,
    Local,
    Param,
    Shared,
    SharedCta,
    SharedCluster,
    /// No space named: a generic address.
    Generic,
}

/// Fundamental PTX types. `B*` are untyped bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ty {
    B8,
    B16,
    B32,
    B64,
    B128,
    U8,
    U16,
    U32,
    U64,
    S8,
    S16,
    S32,
    S64,
    F16,
    F16x2,
    BF16,
    BF16x2,
    TF32,
    F32,
    F32x2,
    F64,
    E4M3,
    E5M2,
    E4M3x2,
    E5M2x2,
    U16x2,
    S16x2,
    Pred,
}

impl Ty {
    /// The type named by a PTX type suffix without its dot.
    pub fn from_name(name: &str) -> Option<Ty> {
        Some(match name {
            "b8" => Ty::B8,
            "b16" => Ty::B16,
            "b32" => Ty::B32,
            "b64" => Ty::B64,
            "b128" => Ty::B128,
            "u8" => Ty::U8,
            "u16" => Ty::U16,
            "u32" => Ty::U32,
            "u64" => Ty::U64,
            "s8" => Ty::S8,
            "s16" => Ty::S16,
            "s32" => Ty::S32,
            "s64" => Ty::S64,
            "f16" => Ty::F16,
            "f16x2" => Ty::F16x2,
            "bf16" => Ty::BF16,
            "bf16x2" => Ty::BF16x2,
            "tf32" => Ty::TF32,
            "f32" => Ty::F32,
            "f32x2" => Ty::F32x2,
            "f64" => Ty::F64,
            "e4m3" => Ty::E4M3,
            "e5m2" => Ty::E5M2,
            "e4m3x2" => Ty::E4M3x2,
            "e5m2x2" => Ty::E5M2x2,
            "u16x2" => Ty::U16x2,
            "s16x2" => Ty::S16x2,
            "pred" => Ty::Pred,
            _ => return None,
        })
    }

    /// Size in bytes; a predicate counts as one.
    pub fn size(self) -> u32 {
        match self {
            Ty::B8 | Ty::U8 | Ty::S8 | Ty::E4M3 | Ty::E5M2 | Ty::Pred => 1,
            Ty::B16 | Ty::U16 | Ty::S16 | Ty::F16 | Ty::BF16 | Ty::E4M3x2 | Ty::E5M2x2 => 2,
            Ty::B32 | Ty::U32 | Ty::S32 | Ty::F32 | Ty::TF32 => 4,
            Ty::F16x2 | Ty::BF16x2 | Ty::U16x2 | Ty::S16x2 => 4,
            Ty::B64 | Ty::U64 | Ty::S64 | Ty::F64 | Ty::F32x2 => 8,
            Ty::B128 => 16,
        }
    }

    pub fn is_float(self) -> bool {
        matches!(self, Ty::F16 | Ty::BF16 | Ty::F32 | Ty::F64 | Ty::TF32)
    }
}

/// A variable. Names are unique within a function: one that is declared again in another scope (`param0` of each
/// call sequence) is renamed `param0#1`, and so are the operands that mean it. A function's own names hide the
/// module's.
#[derive(Debug, Clone)]
pub struct Variable {
    pub name: String,
    pub space: Space,
    pub ty: Ty,
    pub align: u32,
    /// Elements (of all dimensions and vector components); 1 for a scalar, 0 for `.extern .shared x[]`.
    pub count: u64,
    pub is_extern: bool,
    /// `.attribute(.managed)`.
    pub is_managed: bool,
    /// Bytes of the initialiser plus relocations.
    pub init: Option<Initializer>,
}

#[derive(Debug, Clone, Default)]
pub struct Initializer {
    /// The bytes that are given, zero where a relocation lies; what is missing to the variable's size is zero.
    pub bytes: Vec<u8>,
    pub relocations: Vec<Relocation>,
}

#[derive(Debug, Clone)]
pub struct Relocation {
    pub offset: u64,
    pub symbol: String,
    pub addend: i64,
    /// `generic(symbol)`: the generic address is stored.
    pub generic: bool,
    /// Bytes stored, little end first, …
    pub size: u8,
    /// … of the address shifted right by this many bits (`0xFF00(symbol)` stores one byte, shifted by 8).
    pub shift: u8,
}

#[derive(Debug, Clone, Default)]
pub struct LaunchBounds {
    pub maxntid: Option<[u32; 3]>,
    pub reqntid: Option<[u32; 3]>,
    pub minnctapersm: Option<u32>,
    pub maxnreg: Option<u32>,
    /// At most so many registers, as an option of the linker says ([`REGISTER_LIMIT`](super::REGISTER_LIMIT)).
    pub register_limit: Option<u32>,
    pub reqnctapercluster: Option<[u32; 3]>,
    pub explicit_cluster: bool,
    pub max_cluster_rank: Option<u32>,
    /// `.blocksareclusters`: the grid is given in clusters.
    pub blocks_are_clusters: bool,
}

#[derive(Debug, Clone)]
pub struct Function {
    pub name: String,
    pub is_entry: bool,
    /// Only a prototype (`.extern .func vprintf …;`).
    pub is_declaration: bool,
    pub is_noreturn: bool,
    pub params: Vec<Param>,
    pub returns: Vec<Param>,
    pub bounds: LaunchBounds,
    /// All registers of all nested scopes, each with a unique index (`p` declared in two scopes is two entries;
    /// `%r<10>` is ten, `.v4 .b32 v` is `v.x`, `v.y`, `v.z`, `v.w`).
    pub registers: Vec<Register>,
    /// Function-scope variables: `.shared`, `.local`, and the `.param` variables of call sequences.
    pub variables: Vec<Variable>,
    /// `.callprototype` declarations by label.
    pub prototypes: Vec<Prototype>,
    /// `.branchtargets` lists by label; `brx.idx` names one as a symbol.
    pub branch_tables: Vec<(String, Vec<Label>)>,
    /// `.calltargets` lists by label: the functions that an indirect call can reach.
    pub call_targets: Vec<(String, Vec<String>)>,
    pub body: Vec<Instr>,
    /// Label index to index in `body` of the instruction that follows it (may equal `body.len()`).
    pub labels: Vec<LabelDef>,
    pub line: u32,
}

/// Names of labels are unique only within their scope.
#[derive(Debug, Clone)]
pub struct LabelDef {
    pub name: String,
    pub target: usize,
}

#[derive(Debug, Clone)]
pub struct Prototype {
    pub label: String,
    pub params: Vec<Param>,
    pub returns: Vec<Param>,
}

#[derive(Debug, Clone)]
pub struct Param {
    pub name: String,
    pub ty: Ty,
    /// Array elements (1 for scalars), so that bytes = count * size of ty.
    pub count: u64,
    pub align: u32,
    /// True where the parameter is a register (`.func (.reg .b32 x)`); then `reg` is its register.
    pub reg: Option<RegId>,
}

#[derive(Debug, Clone)]
pub struct Register {
    pub name: RegisterName,
    pub ty: Ty,
}

/// `%p`, or number 3 of the registers `%r<8>`.
#[derive(Debug, Clone)]
pub struct RegisterName {
    pub base: std::sync::Arc<str>,
    pub number: Option<u32>,
}

impl std::fmt::Display for RegisterName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.base)?;
        self.number.map_or(Ok(()), |n| n.fmt(f))
    }
}

/// Index in [`Function::registers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegId(pub u32);

/// Index in [`Function::labels`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Label(pub u32);

/// An opcode split at dots, the first part without one: `["wgmma", "mma_async", "sync", …]`. `::` stays inside a part: `shared::cta`.
/// Instructions with the same opcode share one.
#[derive(Debug)]
pub struct Opcode {
    parts: Box<[Box<str>]>,
    /// As written.
    pub text: std::sync::Arc<str>,
}

impl Opcode {
    pub fn new(text: &str) -> Self {
        Opcode {
            parts: text.split('.').map(Into::into).collect(),
            text: text.into(),
        }
    }
}

impl std::ops::Deref for Opcode {
    type Target = [Box<str>];
    fn deref(&self) -> &[Box<str>] {
        &self.parts
    }
}

#[derive(Debug, Clone)]
pub struct Instr {
    /// `@p` is `(p, false)`, `@!p` is `(p, true)`.
    pub guard: Option<(RegId, bool)>,
    pub op: std::sync::Arc<Opcode>,
    pub operands: Vec<Operand>,
    /// Line in the PTX text.
    pub line: u32,
    /// The `.loc` in force, if any.
    pub loc: Option<std::sync::Arc<Loc>>,
}

/// A source position with its inline stack.
#[derive(Debug, Clone, PartialEq)]
pub struct Loc {
    pub file: u32,
    pub line: u32,
    pub column: u32,
    pub function: Option<String>,
    pub inlined_at: Option<std::sync::Arc<Loc>>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Operand {
    Reg(RegId),
    /// `p|q`: two destinations (setp, shfl, elect, match).
    RegPair(Box<Operand>, Box<Operand>),
    /// `a.b1`, `a.h10`: bytes or half-words of a register (video instructions).
    Part(RegId, Box<str>),
    /// `-a`, `-a.b1` (vmad).
    Negated(RegId),
    NegatedPart(RegId, Box<str>),
    /// `!p` as a source.
    NotReg(RegId),
    /// Constant expressions are folded, `WARP_SZ` is 32. Unsigned values above i64::MAX keep their bits.
    Int(i64),
    /// Bits of `0f…`.
    F32(u32),
    /// Bits of `0d…`.
    F64(u64),
    /// Decimal float literal (`1.5`).
    Float(f64),
    /// `%tid.x`, `%laneid`, `%clock64`, …
    Special(Box<str>),
    /// A variable, parameter, function, prototype or branch table by name; it is declared somewhere.
    Symbol(Box<str>),
    /// `sym+4` as an immediate address expression.
    SymbolOffset(Box<str>, i64),
    /// `[base+offset]`; `base` is `Reg`, `Symbol` or `Int` (then `offset` is 0).
    Address {
        base: Box<Operand>,
        offset: i64,
    },
    /// `[map, {c0, c1}, …]`: the bracket lists of tensor copies: every comma-separated item; `map+8` is an `Address`.
    AddressList(Vec<Operand>),
    /// `{a, b, c}`, or the name of a vector register.
    Vector(Vec<Operand>),
    /// `_` (sink).
    Sink,
    /// `(a, b)` argument lists of `call`.
    List(Vec<Operand>),
    Label(Label),
}
