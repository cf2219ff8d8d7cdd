//! PTX text to a parsed module.
//!
//! [`parse`] turns text into an [`ast::Module`]. Names are resolved, registers and labels are indices, constant
//! expressions are folded, initialisers are bytes; what an instruction *means* is left to the lowering. Text that is
//! not PTX is a [`ParseError`] with its place, never a panic, and work and memory stay proportional to the text.
//!
//! | file | reads |
//! |---|---|
//! | `lexer.rs` | characters into tokens |
//! | `parser.rs` | the token cursor and the module's directives |
//! | `declaration.rs` | variables, parameters, register lists |
//! | `function.rs` | headers, bodies, scopes, labels |
//! | `operand.rs` | instruction operands |
//! | `constant.rs` | constant expressions |
//! | `initializer.rs` | `= { … }` into bytes and relocations |
//! | `debug.rs` | `.loc`, `.file`, `.section` |
//! | `fatbin.rs` | PTX out of the images that CUDA programs hand to the driver |

pub mod ast;
mod constant;
mod debug;
mod declaration;
pub mod fatbin;
mod function;
mod initializer;
mod lexer;
mod operand;
mod parser;
#[cfg(test)]
mod tests;

pub use parser::parse;

/// A `.pragma` of a kernel that begins so and ends in a number limits its registers without asking for them, as `--maxrregcount` does;
/// `.maxnreg` also says that they are used.
pub const REGISTER_LIMIT: &str = "birdie: registers at most ";

/// Why a text is not a PTX module, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParseError {
    pub line: u32,
    pub column: u32,
    pub what: String,
}

impl std::fmt::Display for ParseError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}: {}", self.line, self.column, self.what)
    }
}

impl std::error::Error for ParseError {}
