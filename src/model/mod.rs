//! The model on its device.

mod adapt;
mod backward;
pub mod buffers;
pub mod cache;
pub mod calibration;
mod clip_search;
pub mod config;
pub mod device;
pub mod engine;
mod feed;
pub mod forward;
pub mod init;
pub mod inspect;
pub mod layout;
pub mod network;
pub mod parameters;
