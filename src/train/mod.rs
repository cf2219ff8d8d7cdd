//! Training: the loop over an [`engine::Engine`].

pub mod engine;
