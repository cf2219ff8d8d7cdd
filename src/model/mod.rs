//! The model on its device.

pub mod buffers;
pub mod config;
pub mod init;
pub mod layout;
pub mod parameters;
