//! Training: the loop ([`run`]) over an [`engine::Engine`], with its schedule, averages, log and phases.

pub mod adapt;
pub mod averaging;
pub mod calibrate;
pub mod curve;
pub mod engine;
pub mod log;
pub mod run;
pub mod schedule;
pub mod score;
#[cfg(test)]
pub mod toy;
