//! The parsed form of a PTX module, before any meaning is attached to it.
//!
//! Names are kept as written; scopes are resolved here (every register operand already carries the index of its
//! declaration), types, spaces and modifiers stay text until an instruction is lowered.

/// One PTX module (one `.ptx` file or fatbin entry).
#[derive(Debug, Clone, Default)]
pub struct Module {
    pub version: (u32, u32),
    pub target: String,
    pub address_size: u32,
    /// `.file` table: index to path.
    pub files: Vec<(u32, String)>,
    /// Module-scope variables (`.global`, `.const`, module-scope `.shared`), in order of declaration.
    pub variables: Vec<Variable>,
    pub functions: Vec<Function>,
    /// `.debug_str` contents by label, for the `function_name` of `.loc`.
    pub debug_strings: Vec<(String, String)>,
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

#[derive(Debug, Clone)]
pub struct Variable {
    pub name: String,
    pub space: Space,
    pub ty: Ty,
    pub align: u32,
    /// Elements; `None` for a scalar is 1; `0` for `extern .shared x[]`.
    pub count: u64,
    pub is_extern: bool,
    /// Bytes of the initialiser plus relocations (offset, symbol, addend, generic).
    pub init: Option<Initializer>,
}

#[derive(Debug, Clone, Default)]
pub struct Initializer {
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
}

#[derive(Debug, Clone, Default)]
pub struct LaunchBounds {
    pub maxntid: Option<[u32; 3]>,
    pub reqntid: Option<[u32; 3]>,
    pub minnctapersm: Option<u32>,
    pub maxnreg: Option<u32>,
    pub reqnctapercluster: Option<[u32; 3]>,
    pub explicit_cluster: bool,
    pub max_cluster_rank: Option<u32>,
}

#[derive(Debug, Clone)]
pub struct Function {
    pub name: String,
    pub is_entry: bool,
    /// Only a prototype (`.extern .func vprintf …;`).
    pub is_declaration: bool,
    pub params: Vec<Param>,
    pub returns: Vec<Param>,
    pub bounds: LaunchBounds,
    /// All registers of all nested scopes, each with a unique index (`p` declared in two scopes is two entries;
    /// `%r<10>` is ten).
    pub registers: Vec<Register>,
    /// Function-scope variables: `.shared`, `.local`, and the `.param` variables of call sequences.
    pub variables: Vec<Variable>,
    /// `.callprototype` declarations by label.
    pub prototypes: Vec<Prototype>,
    /// `.branchtargets` lists by label.
    pub branch_tables: Vec<(String, Vec<Label>)>,
    pub body: Vec<Instr>,
    /// Label index to index in `body` of the instruction that follows it (may equal `body.len()`).
    pub labels: Vec<LabelDef>,
    pub line: u32,
}

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
    pub name: String,
    pub ty: Ty,
}

/// Index in [`Function::registers`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegId(pub u32);

/// Index in [`Function::labels`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Label(pub u32);

#[derive(Debug, Clone)]
pub struct Instr {
    /// `@p` / `@!p`.
    pub guard: Option<(RegId, bool)>,
    /// The opcode split at dots, the first without one: `["wgmma", "mma_async", "sync", …]`. `::` stays inside a
    /// part: `shared::cta`.
    pub op: Vec<Box<str>>,
    pub operands: Vec<Operand>,
    /// Line in the PTX text.
    pub line: u32,
    /// Index in [`Function`]-independent [`Loc`] table of the module of the `.loc` in force, if any.
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
    /// `!p` as a source.
    NotReg(RegId),
    /// `-%r1` does not exist in PTX; negative literals are folded.
    Int(i64),
    /// Unsigned literals above i64::MAX keep their bits in `Int`. Floats: bits as f64 (`0d…`), or `0f…` as f32 bits.
    F32(u32),
    F64(u64),
    /// Decimal float literal (`1.5`).
    Float(f64),
    /// `%tid.x`, `%laneid`, `%clock64`, `WARP_SZ`…
    Special(Box<str>),
    /// A variable, parameter or function name used as a value (mov, call, ld.param [name]).
    Symbol(Box<str>),
    /// `sym+4` as an immediate address expression.
    SymbolOffset(Box<str>, i64),
    /// `[base+offset]`.
    Address {
        base: Box<Operand>,
        offset: i64,
    },
    /// `[map, {c0, c1}, …]`: the bracket lists of tensor copies: every comma-separated item.
    AddressList(Vec<Operand>),
    /// `{a, b, c}`.
    Vector(Vec<Operand>),
    /// `_` (sink).
    Sink,
    /// Vector element access `v.x`.
    Element(RegId, u8),
    /// `(a, b)` argument lists of `call`.
    List(Vec<Operand>),
    Label(Label),
}
