//! birdie trains, compresses and scores the language models of the parameter-golf challenge.
//!
//! The library holds everything; the binary is a dispatch over it.

pub mod parity;
