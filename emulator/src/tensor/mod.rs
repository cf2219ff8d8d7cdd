//! The tensor core: wgmma, mma.sync, ldmatrix, stmatrix.
pub mod descriptor;
pub mod format;
pub mod kernel;
pub mod lifetime;
pub mod panel;

/// wgmma groups of one warpgroup.
#[derive(Default)]
pub struct WarpgroupState {}
