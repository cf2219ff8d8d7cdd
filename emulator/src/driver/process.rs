//! `cuGetProcAddress`: functions by the name of the documentation and a CUDA version.

use std::ffi::{c_char, c_void};

use super::error::{Code, Outcome};
use super::module::text;
use super::{put, symbol};

/// Functions whose signature changed after they appeared: base name, and from which CUDA version on which exported name.
/// All others have one signature, or changed it before CUDA 7 (`_v2` of the 3.x and 4.x days), where the newest is meant.
const VERSIONS: &[(&str, &[(i32, &str)])] = &[
    (
        "cuCtxCreate",
        &[
            (3020, "cuCtxCreate_v2"),
            (11040, "cuCtxCreate_v3"),
            (12050, "cuCtxCreate_v4"),
        ],
    ),
    (
        "cuCtxGetDevice",
        &[(2000, "cuCtxGetDevice"), (13000, "cuCtxGetDevice_v2")],
    ),
    (
        "cuCtxSynchronize",
        &[(2000, "cuCtxSynchronize"), (13000, "cuCtxSynchronize_v2")],
    ),
    (
        "cuDeviceGetUuid",
        &[(9020, "cuDeviceGetUuid"), (11040, "cuDeviceGetUuid_v2")],
    ),
    (
        "cuGetProcAddress",
        &[(11030, "cuGetProcAddress"), (12000, "cuGetProcAddress_v2")],
    ),
    (
        "cuGraphAddDependencies",
        &[
            (10000, "cuGraphAddDependencies"),
            (12030, "cuGraphAddDependencies_v2"),
        ],
    ),
    (
        "cuGraphRemoveDependencies",
        &[
            (10000, "cuGraphRemoveDependencies"),
            (12030, "cuGraphRemoveDependencies_v2"),
        ],
    ),
    (
        "cuGraphAddNode",
        &[(12020, "cuGraphAddNode"), (12030, "cuGraphAddNode_v2")],
    ),
    (
        "cuGraphAddKernelNode",
        &[
            (10000, "cuGraphAddKernelNode"),
            (12000, "cuGraphAddKernelNode_v2"),
        ],
    ),
    (
        "cuGraphKernelNodeGetParams",
        &[
            (10000, "cuGraphKernelNodeGetParams"),
            (12000, "cuGraphKernelNodeGetParams_v2"),
        ],
    ),
    (
        "cuGraphKernelNodeSetParams",
        &[
            (10000, "cuGraphKernelNodeSetParams"),
            (12000, "cuGraphKernelNodeSetParams_v2"),
        ],
    ),
    (
        "cuGraphExecKernelNodeSetParams",
        &[
            (10010, "cuGraphExecKernelNodeSetParams"),
            (12000, "cuGraphExecKernelNodeSetParams_v2"),
        ],
    ),
    (
        "cuGraphExecUpdate",
        &[
            (10020, "cuGraphExecUpdate"),
            (12000, "cuGraphExecUpdate_v2"),
        ],
    ),
    (
        "cuGraphInstantiate",
        &[
            (10000, "cuGraphInstantiate"),
            (11000, "cuGraphInstantiate_v2"),
            (12000, "cuGraphInstantiateWithFlags"),
        ],
    ),
    (
        "cuGraphGetEdges",
        &[(10000, "cuGraphGetEdges"), (12030, "cuGraphGetEdges_v2")],
    ),
    (
        "cuGraphNodeGetDependencies",
        &[
            (10000, "cuGraphNodeGetDependencies"),
            (12030, "cuGraphNodeGetDependencies_v2"),
        ],
    ),
    (
        "cuGraphNodeGetDependentNodes",
        &[
            (10000, "cuGraphNodeGetDependentNodes"),
            (12030, "cuGraphNodeGetDependentNodes_v2"),
        ],
    ),
    (
        "cuMemAdvise",
        &[(8000, "cuMemAdvise"), (12020, "cuMemAdvise_v2")],
    ),
    (
        "cuMemPrefetchAsync",
        &[
            (8000, "cuMemPrefetchAsync"),
            (12020, "cuMemPrefetchAsync_v2"),
        ],
    ),
    (
        "cuStreamBeginCapture",
        &[
            (10000, "cuStreamBeginCapture"),
            (10010, "cuStreamBeginCapture_v2"),
        ],
    ),
    (
        "cuStreamGetCaptureInfo",
        &[
            (10010, "cuStreamGetCaptureInfo"),
            (11030, "cuStreamGetCaptureInfo_v2"),
            (12030, "cuStreamGetCaptureInfo_v3"),
        ],
    ),
    (
        "cuStreamUpdateCaptureDependencies",
        &[
            (11030, "cuStreamUpdateCaptureDependencies"),
            (12030, "cuStreamUpdateCaptureDependencies_v2"),
        ],
    ),
    (
        "cuStreamGetCtx",
        &[(9020, "cuStreamGetCtx"), (12050, "cuStreamGetCtx_v2")],
    ),
];

/// `CU_GET_PROC_ADDRESS_PER_THREAD_DEFAULT_STREAM`
const PER_THREAD: u64 = 2;

/// The exported function that a base name means for a CUDA version.
fn find(base: &str, version: i32, per_thread: bool) -> Option<*const c_void> {
    let variant = |name: &str| {
        let suffixed = ["_ptsz", "_ptds"]
            .iter()
            .filter(|_| per_thread)
            .find_map(|suffix| symbol(&format!("{name}{suffix}")));
        suffixed.or_else(|| symbol(name))
    };
    if let Some((_, versions)) = VERSIONS.iter().find(|(name, _)| *name == base) {
        let (_, name) = versions.iter().rev().find(|(since, _)| *since <= version)?;
        return variant(name);
    }
    ["_v4", "_v3", "_v2", ""]
        .iter()
        .find_map(|suffix| variant(&format!("{base}{suffix}")))
}

pub unsafe fn get_address(
    name: *const c_char,
    out: *mut *const c_void,
    version: i32,
    flags: u64,
) -> Outcome {
    // SAFETY: the caller's promise.
    unsafe { get_address_v2(name, out, version, flags, std::ptr::null_mut()) }
}

/// `CUdriverProcAddressQueryResult`: 0 found, 1 not found, 2 the version is too old.
pub unsafe fn get_address_v2(
    name: *const c_char,
    out: *mut *const c_void,
    version: i32,
    flags: u64,
    status: *mut u32,
) -> Outcome {
    if out.is_null() {
        return Code::INVALID_VALUE.fail("no place for the address");
    }
    // SAFETY: the caller's promise.
    let name = unsafe { text(name, "name") }?;
    // The runtime asks for the function without a name to learn whether the look-up works at all.
    let name = if name.is_empty() {
        "cuGetProcAddress"
    } else {
        name
    };
    let version = if version == 0 {
        super::device::VERSION
    } else {
        version
    };
    let found = find(name, version, flags & PER_THREAD != 0);
    if !status.is_null() {
        put(status, u32::from(found.is_none()))?;
    }
    match found {
        Some(address) => put(out, address),
        None => {
            put(out, std::ptr::null())?;
            if status.is_null() {
                Code::NOT_FOUND.fail(format!("no function {name} in CUDA {version}"))
            } else {
                Ok(())
            }
        }
    }
}
