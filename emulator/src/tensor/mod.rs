//! The tensor core: wgmma, mma.sync, ldmatrix, stmatrix.

/// wgmma groups of one warpgroup.
#[derive(Default)]
pub struct WarpgroupState {}
