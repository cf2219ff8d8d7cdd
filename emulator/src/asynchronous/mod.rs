//! mbarriers, bulk and tensor copies, cp.async, clusters' remote arrivals: everything that completes later.

/// Queue and barrier tables of one cluster.
#[derive(Default)]
pub struct AsyncState {}
