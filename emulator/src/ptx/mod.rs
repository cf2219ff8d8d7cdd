//! PTX text to a parsed module.
pub mod ast;
