//! Special registers that keep their value during a warp's life, and the rows filled from them.

use super::{Init, Special};
use crate::exec::SHARED_BASE;

impl Special {
    /// The register named in PTX (`%tid.x`), if it is constant during a warp's life.
    pub fn from_name(name: &str) -> Option<Special> {
        use Special::*;
        Some(match name.strip_prefix('%').unwrap_or(name) {
            "tid.x" => TidX,
            "tid.y" => TidY,
            "tid.z" => TidZ,
            "ntid.x" => NtidX,
            "ntid.y" => NtidY,
            "ntid.z" => NtidZ,
            "ctaid.x" => CtaidX,
            "ctaid.y" => CtaidY,
            "ctaid.z" => CtaidZ,
            "nctaid.x" => NctaidX,
            "nctaid.y" => NctaidY,
            "nctaid.z" => NctaidZ,
            "laneid" => LaneId,
            "warpid" => WarpId,
            "nwarpid" => NwarpId,
            "smid" => SmId,
            "nsmid" => NsmId,
            "gridid" => GridId,
            "envreg1" => GridWorkspaceHigh,
            "envreg2" => GridWorkspaceLow,
            "clusterid.x" => ClusterIdX,
            "clusterid.y" => ClusterIdY,
            "clusterid.z" => ClusterIdZ,
            "nclusterid.x" => NclusterIdX,
            "nclusterid.y" => NclusterIdY,
            "nclusterid.z" => NclusterIdZ,
            "cluster_ctaid.x" => ClusterCtaidX,
            "cluster_ctaid.y" => ClusterCtaidY,
            "cluster_ctaid.z" => ClusterCtaidZ,
            "cluster_nctaid.x" => ClusterNctaidX,
            "cluster_nctaid.y" => ClusterNctaidY,
            "cluster_nctaid.z" => ClusterNctaidZ,
            "cluster_ctarank" => ClusterCtaRank,
            "cluster_nctarank" => ClusterNctaRank,
            "is_explicit_cluster" => IsExplicitCluster,
            "lanemask_eq" => LanemaskEq,
            "lanemask_le" => LanemaskLe,
            "lanemask_lt" => LanemaskLt,
            "lanemask_ge" => LanemaskGe,
            "lanemask_gt" => LanemaskGt,
            "dynamic_smem_size" => DynamicSmemSize,
            "total_smem_size" => TotalSmemSize,
            "aggr_smem_size" => AggrSmemSize,
            _ => return None,
        })
    }
}

impl Init {
    /// What a special register holds, if it keeps it during a warp's life.
    pub fn special(name: &str) -> Option<Init> {
        if let Some(s) = Special::from_name(name) {
            return Some(Init::Special(s));
        }
        let name = name.strip_prefix('%').unwrap_or(name);
        Some(match name {
            // The system's shared memory lies below the CTA's; the offsets inside of it name nothing here.
            "reserved_smem_offset_begin" | "reserved_smem_offset_0" | "reserved_smem_offset_1" => {
                Init::Const32(0)
            }
            "reserved_smem_offset_end" | "reserved_smem_offset_cap" => Init::Const32(SHARED_BASE),
            // Coordinates have three components.
            _ if name.ends_with(".w") => Init::Const32(0),
            // No kernel is part of a device graph here.
            "current_graph_exec" => Init::Const64(0),
            // Set by drivers to what they like, and performance counters whose behaviour the ISA leaves open.
            _ if name.starts_with("envreg") => Init::Const32(0),
            _ if name.starts_with("pm") && name.ends_with("_64") => Init::Const64(0),
            _ if name.starts_with("pm") => Init::Const32(0),
            _ => return None,
        })
    }

    /// Width of the value.
    pub fn bits(self) -> u32 {
        match self {
            Init::Const64(_) | Init::ParamAddress(_) | Init::Special(Special::GridId) => 64,
            Init::Const32(_) | Init::Special(_) => 32,
        }
    }
}
