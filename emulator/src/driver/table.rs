//! Every driver function: exported names, arguments, implementation.
//!
//! An entry is `implementation, (arguments), [exported names], [names with the per-thread default stream];`. Handles and device pointers are `u64`:
//! on a 64-bit machine they are passed as the pointers of cuda.h are. From this table come the C functions ([`ffi`]), the look-up by
//! name ([`symbol`]) and the exports of the drop-in library.
//!
//! # Adding a function
//! 1. Take its name out of [`driver_unsupported`](crate::driver_unsupported).
//! 2. Write the implementation in the file of its object: an `unsafe fn` with the C arguments that returns `Outcome`. Check handles and ranges before
//!    anything is changed; every `fail` says in one line what is wrong.
//! 3. Add an entry here, with all versions that share the signature. If the signature changed between versions, each has an entry and a
//!    row in `process.rs`.
//! 4. Add a test in `tests/driver/`, of what it does and of what it refuses.

use std::ffi::c_void;

/// Calls `$callback!` with the table.
#[macro_export]
macro_rules! driver_functions {
    ($callback:ident) => {
        $callback! {
            device::init, (flags: u32), [cuInit], [];
            device::version, (out: *mut i32), [cuDriverGetVersion], [];
            device::error_name, (code: u32, out: *mut *const c_char), [cuGetErrorName], [];
            device::error_string, (code: u32, out: *mut *const c_char), [cuGetErrorString], [];
            device::count, (out: *mut i32), [cuDeviceGetCount], [];
            device::get, (out: *mut i32, ordinal: i32), [cuDeviceGet], [];
            device::name, (out: *mut c_char, room: i32, device: i32), [cuDeviceGetName], [];
            device::attribute, (out: *mut i32, which: u32, device: i32), [cuDeviceGetAttribute], [];
            device::total_memory, (out: *mut usize, device: i32), [cuDeviceTotalMem_v2 cuDeviceTotalMem], [];
            device::capability, (major: *mut i32, minor: *mut i32, device: i32), [cuDeviceComputeCapability], [];
            device::properties, (out: *mut [i32; 14], device: i32), [cuDeviceGetProperties], [];
            device::uuid, (out: *mut [u8; 16], device: i32), [cuDeviceGetUuid cuDeviceGetUuid_v2], [];
            device::luid, (out: *mut c_char, mask: *mut u32, device: i32), [cuDeviceGetLuid], [];
            device::pci_bus_id, (out: *mut c_char, room: i32, device: i32), [cuDeviceGetPCIBusId], [];
            device::by_pci_bus_id, (out: *mut i32, name: *const c_char), [cuDeviceGetByPCIBusId], [];
            device::texture_width, (out: *mut usize, format: u32, channels: u32, device: i32), [cuDeviceGetTexture1DLinearMaxWidth], [];
            device::affinity, (out: *mut i32, kind: u32, device: i32), [cuDeviceGetExecAffinitySupport], [];
            graph_memory::attribute, (device: i32, which: u32, out: *mut u64), [cuDeviceGetGraphMemAttribute], [];
            graph_memory::set_attribute, (device: i32, which: u32, value: *const u64), [cuDeviceSetGraphMemAttribute], [];
            graph_memory::add_allocation, (out: *mut u64, graph: u64, after: *const u64, count: usize, node: *mut graph_memory::AllocationNode), [cuGraphAddMemAllocNode], [];
            graph_memory::add_free, (out: *mut u64, graph: u64, after: *const u64, count: usize, address: u64), [cuGraphAddMemFreeNode], [];
            graph_memory::get_allocation, (node: u64, out: *mut graph_memory::AllocationNode), [cuGraphMemAllocNodeGetParams], [];
            graph_memory::get_free, (node: u64, out: *mut u64), [cuGraphMemFreeNodeGetParams], [];
            device::graph_memory_trim, (device: i32), [cuDeviceGraphMemTrim], [];
            device::profiler, (), [cuProfilerStart cuProfilerStop], [];
            device::export_table, (out: *mut *const c_void, uuid: *const [u8; 16]), [cuGetExportTable], [];
            process::get_address, (name: *const c_char, out: *mut *const c_void, version: i32, flags: u64), [cuGetProcAddress], [];
            process::get_address_v2, (name: *const c_char, out: *mut *const c_void, version: i32, flags: u64, status: *mut u32), [cuGetProcAddress_v2], [];
            context::primary_retain, (out: *mut u64, device: i32), [cuDevicePrimaryCtxRetain], [];
            context::primary_release, (device: i32), [cuDevicePrimaryCtxRelease cuDevicePrimaryCtxRelease_v2], [];
            context::primary_reset, (device: i32), [cuDevicePrimaryCtxReset cuDevicePrimaryCtxReset_v2], [];
            context::primary_state, (device: i32, flags: *mut u32, active: *mut i32), [cuDevicePrimaryCtxGetState], [];
            context::primary_set_flags, (device: i32, flags: u32), [cuDevicePrimaryCtxSetFlags cuDevicePrimaryCtxSetFlags_v2], [];
            context::create, (out: *mut u64, flags: u32, device: i32), [cuCtxCreate cuCtxCreate_v2], [];
            context::create_v3, (out: *mut u64, affinity: *const c_void, count: i32, flags: u32, device: i32), [cuCtxCreate_v3], [];
            context::create_v4, (out: *mut u64, parameters: *const c_void, flags: u32, device: i32), [cuCtxCreate_v4], [];
            context::destroy, (context: u64), [cuCtxDestroy cuCtxDestroy_v2], [];
            context::attach, (out: *mut u64, flags: u32), [cuCtxAttach], [];
            context::detach, (context: u64), [cuCtxDetach], [];
            context::push, (context: u64), [cuCtxPushCurrent cuCtxPushCurrent_v2], [];
            context::pop, (out: *mut u64), [cuCtxPopCurrent cuCtxPopCurrent_v2], [];
            context::set_current, (context: u64), [cuCtxSetCurrent], [];
            context::get_current, (out: *mut u64), [cuCtxGetCurrent], [];
            context::get_device, (out: *mut i32), [cuCtxGetDevice], [];
            context::get_device_v2, (out: *mut i32, context: u64), [cuCtxGetDevice_v2], [];
            context::synchronize, (), [cuCtxSynchronize], [];
            context::synchronize_v2, (context: u64), [cuCtxSynchronize_v2], [];
            context::flags, (out: *mut u32), [cuCtxGetFlags], [];
            context::set_flags, (flags: u32), [cuCtxSetFlags], [];
            context::id, (context: u64, out: *mut u64), [cuCtxGetId], [];
            context::api_version, (context: u64, out: *mut u32), [cuCtxGetApiVersion], [];
            context::get_limit, (out: *mut usize, limit: u32), [cuCtxGetLimit], [];
            context::set_limit, (limit: u32, value: usize), [cuCtxSetLimit], [];
            context::get_cache_config, (out: *mut u32), [cuCtxGetCacheConfig], [];
            context::set_cache_config, (config: u32), [cuCtxSetCacheConfig], [];
            context::get_shared_config, (out: *mut u32), [cuCtxGetSharedMemConfig], [];
            context::set_shared_config, (config: u32), [cuCtxSetSharedMemConfig], [];
            context::priority_range, (lowest: *mut i32, highest: *mut i32), [cuCtxGetStreamPriorityRange], [];
            context::reset_persisting, (), [cuCtxResetPersistingL2Cache], [];
            context::can_access_peer, (out: *mut i32, device: i32, peer: i32), [cuDeviceCanAccessPeer], [];
            context::peer_attribute, (out: *mut i32, which: u32, device: i32, peer: i32), [cuDeviceGetP2PAttribute], [];
            context::enable_peer, (peer: u64, flags: u32), [cuCtxEnablePeerAccess], [];
            context::disable_peer, (peer: u64), [cuCtxDisablePeerAccess], [];
            module::load_data, (out: *mut u64, image: *const c_void), [cuModuleLoadData cuModuleLoadFatBinary], [];
            module::load_data_ex, (out: *mut u64, image: *const c_void, count: u32, options: *const u32, values: *mut u64), [cuModuleLoadDataEx], [];
            module::load_file, (out: *mut u64, path: *const c_char), [cuModuleLoad], [];
            module::unload, (module: u64), [cuModuleUnload], [];
            module::get_function, (out: *mut u64, module: u64, name: *const c_char), [cuModuleGetFunction], [];
            module::get_global, (address: *mut u64, bytes: *mut usize, module: u64, name: *const c_char), [cuModuleGetGlobal_v2 cuModuleGetGlobal], [];
            module::function_count, (out: *mut u32, module: u64), [cuModuleGetFunctionCount], [];
            module::enumerate_functions, (out: *mut u64, count: u32, module: u64), [cuModuleEnumerateFunctions], [];
            module::loading_mode, (out: *mut u32), [cuModuleGetLoadingMode], [];
            module::library_load_data, (out: *mut u64, image: *const c_void, jit_options: *const u32, jit_values: *mut u64, jit_count: u32, options: *const u32, values: *mut u64, count: u32), [cuLibraryLoadData], [];
            module::library_load_file, (out: *mut u64, path: *const c_char, jit_options: *const u32, jit_values: *mut u64, jit_count: u32, options: *const u32, values: *mut u64, count: u32), [cuLibraryLoadFromFile], [];
            module::library_unload, (library: u64), [cuLibraryUnload], [];
            module::library_get_kernel, (out: *mut u64, library: u64, name: *const c_char), [cuLibraryGetKernel], [];
            module::library_kernel_count, (out: *mut u32, library: u64), [cuLibraryGetKernelCount], [];
            module::library_enumerate, (out: *mut u64, count: u32, library: u64), [cuLibraryEnumerateKernels], [];
            module::library_get_module, (out: *mut u64, library: u64), [cuLibraryGetModule], [];
            module::library_get_global, (address: *mut u64, bytes: *mut usize, library: u64, name: *const c_char), [cuLibraryGetGlobal cuLibraryGetManaged], [];
            module::kernel_get_function, (out: *mut u64, kernel: u64), [cuKernelGetFunction], [];
            module::kernel_get_library, (out: *mut u64, kernel: u64), [cuKernelGetLibrary], [];
            link::create, (count: u32, options: *const u32, values: *mut u64, out: *mut u64), [cuLinkCreate cuLinkCreate_v2], [];
            link::add_data, (link: u64, kind: u32, data: *const c_void, bytes: usize, name: *const c_char, count: u32, options: *const u32, values: *mut u64), [cuLinkAddData cuLinkAddData_v2], [];
            link::add_file, (link: u64, kind: u32, path: *const c_char, count: u32, options: *const u32, values: *mut u64), [cuLinkAddFile cuLinkAddFile_v2], [];
            link::complete, (link: u64, image: *mut *const c_void, bytes: *mut usize), [cuLinkComplete], [];
            link::destroy, (link: u64), [cuLinkDestroy], [];
            function::get_attribute, (out: *mut i32, which: u32, function: u64), [cuFuncGetAttribute], [];
            function::set_attribute, (function: u64, which: u32, value: i32), [cuFuncSetAttribute], [];
            function::kernel_get_attribute, (out: *mut i32, which: u32, kernel: u64, device: i32), [cuKernelGetAttribute], [];
            function::kernel_set_attribute, (which: u32, value: i32, kernel: u64, device: i32), [cuKernelSetAttribute], [];
            function::set_cache_config, (function: u64, config: u32), [cuFuncSetCacheConfig cuFuncSetSharedMemConfig], [];
            function::kernel_set_cache_config, (kernel: u64, config: u32, device: i32), [cuKernelSetCacheConfig], [];
            function::get_module, (out: *mut u64, function: u64), [cuFuncGetModule], [];
            function::get_name, (out: *mut *const c_char, function: u64), [cuFuncGetName cuKernelGetName], [];
            function::get_parameter, (function: u64, index: usize, offset: *mut usize, size: *mut usize), [cuFuncGetParamInfo cuKernelGetParamInfo], [];
            function::is_loaded, (out: *mut u32, function: u64), [cuFuncIsLoaded], [];
            function::load, (function: u64), [cuFuncLoad], [];
            function::max_active_blocks, (out: *mut i32, function: u64, threads: i32, shared: usize), [cuOccupancyMaxActiveBlocksPerMultiprocessor], [];
            function::max_active_blocks_flags, (out: *mut i32, function: u64, threads: i32, shared: usize, flags: u32), [cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags], [];
            function::max_potential_block, (grid: *mut i32, block: *mut i32, function: u64, shared_of: Option<unsafe extern "C" fn(i32) -> usize>, shared: usize, limit: i32), [cuOccupancyMaxPotentialBlockSize], [];
            function::max_potential_block_flags, (grid: *mut i32, block: *mut i32, function: u64, shared_of: Option<unsafe extern "C" fn(i32) -> usize>, shared: usize, limit: i32, flags: u32), [cuOccupancyMaxPotentialBlockSizeWithFlags], [];
            function::available_shared, (out: *mut usize, function: u64, blocks: i32, threads: i32), [cuOccupancyAvailableDynamicSMemPerBlock], [];
            function::max_cluster_size, (out: *mut i32, function: u64, config: *const types::LaunchConfigEx), [cuOccupancyMaxPotentialClusterSize], [];
            function::max_active_clusters, (out: *mut i32, function: u64, config: *const types::LaunchConfigEx), [cuOccupancyMaxActiveClusters], [];
            launch::kernel, (function: u64, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32, shared: u32, stream: u64, parameters: *const *const u8, extra: *const *const u8), [cuLaunchKernel], [cuLaunchKernel_ptsz];
            launch::kernel_ex, (config: *const types::LaunchConfigEx, function: u64, parameters: *const *const u8, extra: *const *const u8), [cuLaunchKernelEx], [cuLaunchKernelEx_ptsz];
            launch::cooperative, (function: u64, grid_x: u32, grid_y: u32, grid_z: u32, block_x: u32, block_y: u32, block_z: u32, shared: u32, stream: u64, parameters: *const *const u8), [cuLaunchCooperativeKernel], [cuLaunchCooperativeKernel_ptsz];
            launch::host_function, (stream: u64, function: Option<unsafe extern "C" fn(*mut c_void)>, data: u64), [cuLaunchHostFunc], [cuLaunchHostFunc_ptsz];
            memory::alloc, (out: *mut u64, bytes: usize), [cuMemAlloc_v2 cuMemAlloc], [];
            memory::alloc_pitch, (out: *mut u64, pitch: *mut usize, width: usize, height: usize, element: u32), [cuMemAllocPitch_v2 cuMemAllocPitch], [];
            memory::free, (address: u64), [cuMemFree_v2 cuMemFree], [];
            memory::info, (free: *mut usize, total: *mut usize), [cuMemGetInfo_v2 cuMemGetInfo], [];
            memory::address_range, (base: *mut u64, bytes: *mut usize, address: u64), [cuMemGetAddressRange_v2 cuMemGetAddressRange], [];
            memory::alloc_host, (out: *mut u64, bytes: usize), [cuMemAllocHost_v2 cuMemAllocHost], [];
            memory::host_alloc_flags, (out: *mut u64, bytes: usize, flags: u32), [cuMemHostAlloc], [];
            memory::alloc_managed, (out: *mut u64, bytes: usize, flags: u32), [cuMemAllocManaged], [];
            memory::free_host, (address: u64), [cuMemFreeHost], [];
            memory::register, (address: u64, bytes: usize, flags: u32), [cuMemHostRegister cuMemHostRegister_v2], [];
            memory::unregister, (address: u64), [cuMemHostUnregister], [];
            memory::host_device_pointer, (out: *mut u64, address: u64, flags: u32), [cuMemHostGetDevicePointer_v2 cuMemHostGetDevicePointer], [];
            memory::host_flags, (out: *mut u32, address: u64), [cuMemHostGetFlags], [];
            memory::advise, (address: u64, bytes: usize, advice: u32, device: i32), [cuMemAdvise], [];
            memory::advise_v2, (address: u64, bytes: usize, advice: u32, location: u64), [cuMemAdvise_v2], [];
            memory::prefetch, (address: u64, bytes: usize, device: i32, stream: u64), [cuMemPrefetchAsync], [cuMemPrefetchAsync_ptsz];
            memory::prefetch_v2, (address: u64, bytes: usize, location: u64, flags: u32, stream: u64), [cuMemPrefetchAsync_v2], [cuMemPrefetchAsync_v2_ptsz];
            memory::get_attribute, (out: *mut u8, which: u32, address: u64), [cuPointerGetAttribute], [];
            memory::get_attributes, (count: u32, which: *const u32, out: *const *mut u8, address: u64), [cuPointerGetAttributes], [];
            memory::set_attribute, (value: *const u8, which: u32, address: u64), [cuPointerSetAttribute], [];
            memory::alloc_async, (out: *mut u64, bytes: usize, stream: u64), [cuMemAllocAsync], [cuMemAllocAsync_ptsz];
            memory::alloc_from_pool_async, (out: *mut u64, bytes: usize, pool: u64, stream: u64), [cuMemAllocFromPoolAsync], [cuMemAllocFromPoolAsync_ptsz];
            memory::free_async, (address: u64, stream: u64), [cuMemFreeAsync], [cuMemFreeAsync_ptsz];
            memory::default_pool, (out: *mut u64, device: i32), [cuDeviceGetDefaultMemPool], [];
            memory::current_pool, (out: *mut u64, device: i32), [cuDeviceGetMemPool], [];
            memory::set_current_pool, (device: i32, pool: u64), [cuDeviceSetMemPool], [];
            memory::pool_create, (out: *mut u64, properties: *const [i32; 4]), [cuMemPoolCreate], [];
            memory::pool_destroy, (pool: u64), [cuMemPoolDestroy], [];
            memory::pool_get, (pool: u64, which: u32, out: *mut u8), [cuMemPoolGetAttribute], [];
            memory::pool_set, (pool: u64, which: u32, value: *const u8), [cuMemPoolSetAttribute], [];
            memory::pool_trim, (pool: u64, keep: usize), [cuMemPoolTrimTo], [];
            memory::pool_set_access, (pool: u64, descriptions: *const [i32; 3], count: usize), [cuMemPoolSetAccess], [];
            memory::pool_get_access, (out: *mut u32, pool: u64, location: *const [i32; 2]), [cuMemPoolGetAccess], [];
            virtual_memory::reserve, (out: *mut u64, bytes: usize, align: usize, hint: u64, flags: u64), [cuMemAddressReserve], [];
            virtual_memory::release_range, (address: u64, bytes: usize), [cuMemAddressFree], [];
            virtual_memory::granularity, (out: *mut usize, properties: *const virtual_memory::Properties, option: u32), [cuMemGetAllocationGranularity], [];
            virtual_memory::create, (out: *mut u64, bytes: usize, properties: *const virtual_memory::Properties, flags: u64), [cuMemCreate], [];
            virtual_memory::release, (handle: u64), [cuMemRelease], [];
            virtual_memory::properties, (out: *mut virtual_memory::Properties, handle: u64), [cuMemGetAllocationPropertiesFromHandle], [];
            virtual_memory::retain, (out: *mut u64, address: u64), [cuMemRetainAllocationHandle], [];
            virtual_memory::map, (address: u64, bytes: usize, offset: usize, handle: u64, flags: u64), [cuMemMap], [];
            virtual_memory::unmap_range, (address: u64, bytes: usize), [cuMemUnmap], [];
            virtual_memory::set_access, (address: u64, bytes: usize, wanted: *const virtual_memory::Access, count: usize), [cuMemSetAccess], [];
            virtual_memory::get_access, (out: *mut u64, location: *const [i32; 2], address: u64), [cuMemGetAccess], [];
            virtual_memory::export, (out: *mut i32, handle: u64, kind: u32, flags: u64), [cuMemExportToShareableHandle], [];
            virtual_memory::import, (out: *mut u64, descriptor: u64, kind: u32), [cuMemImportFromShareableHandle], [];
            copy::htod, (destination: u64, source: u64, bytes: usize), [cuMemcpyHtoD_v2 cuMemcpyHtoD], [cuMemcpyHtoD_v2_ptds];
            copy::dtoh, (destination: u64, source: u64, bytes: usize), [cuMemcpyDtoH_v2 cuMemcpyDtoH], [cuMemcpyDtoH_v2_ptds];
            copy::dtod, (destination: u64, source: u64, bytes: usize), [cuMemcpyDtoD_v2 cuMemcpyDtoD], [cuMemcpyDtoD_v2_ptds];
            copy::unified, (destination: u64, source: u64, bytes: usize), [cuMemcpy], [cuMemcpy_ptds];
            copy::htod_async, (destination: u64, source: u64, bytes: usize, stream: u64), [cuMemcpyHtoDAsync_v2 cuMemcpyHtoDAsync], [cuMemcpyHtoDAsync_v2_ptsz];
            copy::dtoh_async, (destination: u64, source: u64, bytes: usize, stream: u64), [cuMemcpyDtoHAsync_v2 cuMemcpyDtoHAsync], [cuMemcpyDtoHAsync_v2_ptsz];
            copy::dtod_async, (destination: u64, source: u64, bytes: usize, stream: u64), [cuMemcpyDtoDAsync_v2 cuMemcpyDtoDAsync], [cuMemcpyDtoDAsync_v2_ptsz];
            copy::unified_async, (destination: u64, source: u64, bytes: usize, stream: u64), [cuMemcpyAsync], [cuMemcpyAsync_ptsz];
            copy::peer, (destination: u64, to: u64, source: u64, from: u64, bytes: usize), [cuMemcpyPeer], [cuMemcpyPeer_ptds];
            copy::peer_async, (destination: u64, to: u64, source: u64, from: u64, bytes: usize, stream: u64), [cuMemcpyPeerAsync], [cuMemcpyPeerAsync_ptsz];
            copy::copy_2d, (raw: *const types::Memcpy2D), [cuMemcpy2D_v2 cuMemcpy2D cuMemcpy2DUnaligned_v2 cuMemcpy2DUnaligned], [cuMemcpy2D_v2_ptds cuMemcpy2DUnaligned_v2_ptds];
            copy::copy_2d_async, (raw: *const types::Memcpy2D, stream: u64), [cuMemcpy2DAsync_v2 cuMemcpy2DAsync], [cuMemcpy2DAsync_v2_ptsz];
            copy::copy_3d, (raw: *const types::Memcpy3D), [cuMemcpy3D_v2 cuMemcpy3D], [cuMemcpy3D_v2_ptds];
            copy::copy_3d_peer, (raw: *const types::Memcpy3D), [cuMemcpy3DPeer], [cuMemcpy3DPeer_ptds];
            copy::copy_3d_async, (raw: *const types::Memcpy3D, stream: u64), [cuMemcpy3DAsync_v2 cuMemcpy3DAsync cuMemcpy3DPeerAsync], [cuMemcpy3DAsync_v2_ptsz cuMemcpy3DPeerAsync_ptsz];
            copy::batch, (destinations: *const u64, sources: *const u64, sizes: *const usize, count: usize, attributes: *const [u32; 6], starts: *const usize, attribute_count: usize, failed: *mut usize, stream: u64), [cuMemcpyBatchAsync], [cuMemcpyBatchAsync_ptsz];
            copy::batch_v2, (destinations: *const u64, sources: *const u64, sizes: *const usize, count: usize, attributes: *const [u32; 6], starts: *const usize, attribute_count: usize, stream: u64), [cuMemcpyBatchAsync_v2], [cuMemcpyBatchAsync_v2_ptsz];
            copy::set_d8, (address: u64, value: u8, count: usize), [cuMemsetD8_v2 cuMemsetD8], [cuMemsetD8_v2_ptds];
            copy::set_d8_async, (address: u64, value: u8, count: usize, stream: u64), [cuMemsetD8Async], [cuMemsetD8Async_ptsz];
            copy::set_2d_d8, (address: u64, pitch: usize, value: u8, width: usize, height: usize), [cuMemsetD2D8_v2 cuMemsetD2D8], [cuMemsetD2D8_v2_ptds];
            copy::set_2d_d8_async, (address: u64, pitch: usize, value: u8, width: usize, height: usize, stream: u64), [cuMemsetD2D8Async], [cuMemsetD2D8Async_ptsz];
            copy::set_d16, (address: u64, value: u16, count: usize), [cuMemsetD16_v2 cuMemsetD16], [cuMemsetD16_v2_ptds];
            copy::set_d16_async, (address: u64, value: u16, count: usize, stream: u64), [cuMemsetD16Async], [cuMemsetD16Async_ptsz];
            copy::set_2d_d16, (address: u64, pitch: usize, value: u16, width: usize, height: usize), [cuMemsetD2D16_v2 cuMemsetD2D16], [cuMemsetD2D16_v2_ptds];
            copy::set_2d_d16_async, (address: u64, pitch: usize, value: u16, width: usize, height: usize, stream: u64), [cuMemsetD2D16Async], [cuMemsetD2D16Async_ptsz];
            copy::set_d32, (address: u64, value: u32, count: usize), [cuMemsetD32_v2 cuMemsetD32], [cuMemsetD32_v2_ptds];
            copy::set_d32_async, (address: u64, value: u32, count: usize, stream: u64), [cuMemsetD32Async], [cuMemsetD32Async_ptsz];
            copy::set_2d_d32, (address: u64, pitch: usize, value: u32, width: usize, height: usize), [cuMemsetD2D32_v2 cuMemsetD2D32], [cuMemsetD2D32_v2_ptds];
            copy::set_2d_d32_async, (address: u64, pitch: usize, value: u32, width: usize, height: usize, stream: u64), [cuMemsetD2D32Async], [cuMemsetD2D32Async_ptsz];
            stream::create, (out: *mut u64, flags: u32), [cuStreamCreate], [];
            stream::create_with_priority, (out: *mut u64, flags: u32, priority: i32), [cuStreamCreateWithPriority], [];
            stream::destroy, (stream: u64), [cuStreamDestroy cuStreamDestroy_v2], [];
            stream::synchronize, (stream: u64), [cuStreamSynchronize], [cuStreamSynchronize_ptsz];
            stream::query, (stream: u64), [cuStreamQuery], [cuStreamQuery_ptsz];
            stream::wait_event, (stream: u64, event: u64, flags: u32), [cuStreamWaitEvent], [cuStreamWaitEvent_ptsz];
            stream::add_callback, (stream: u64, function: Option<unsafe extern "C" fn(u64, u32, *mut c_void)>, data: u64, flags: u32), [cuStreamAddCallback], [cuStreamAddCallback_ptsz];
            stream::priority, (stream: u64, out: *mut i32), [cuStreamGetPriority], [cuStreamGetPriority_ptsz];
            stream::flags, (stream: u64, out: *mut u32), [cuStreamGetFlags], [cuStreamGetFlags_ptsz];
            stream::id, (stream: u64, out: *mut u64), [cuStreamGetId], [cuStreamGetId_ptsz];
            stream::context, (stream: u64, out: *mut u64), [cuStreamGetCtx], [cuStreamGetCtx_ptsz];
            stream::context_v2, (stream: u64, out: *mut u64, green: *mut u64), [cuStreamGetCtx_v2], [cuStreamGetCtx_v2_ptsz];
            stream::device, (stream: u64, out: *mut i32), [cuStreamGetDevice], [cuStreamGetDevice_ptsz];
            stream::set_attribute, (stream: u64, which: u32, value: *const u8), [cuStreamSetAttribute], [cuStreamSetAttribute_ptsz];
            stream::get_attribute, (stream: u64, which: u32, out: *mut u8), [cuStreamGetAttribute], [cuStreamGetAttribute_ptsz];
            stream::copy_attributes, (destination: u64, source: u64), [cuStreamCopyAttributes], [cuStreamCopyAttributes_ptsz];
            stream::attach_memory, (stream: u64, address: u64, bytes: usize, flags: u32), [cuStreamAttachMemAsync], [cuStreamAttachMemAsync_ptsz];
            stream::write_value32, (stream: u64, address: u64, value: u32, flags: u32), [cuStreamWriteValue32 cuStreamWriteValue32_v2], [cuStreamWriteValue32_ptsz cuStreamWriteValue32_v2_ptsz];
            stream::wait_value32, (stream: u64, address: u64, value: u32, flags: u32), [cuStreamWaitValue32 cuStreamWaitValue32_v2], [cuStreamWaitValue32_ptsz cuStreamWaitValue32_v2_ptsz];
            stream::write_value64, (stream: u64, address: u64, value: u64, flags: u32), [cuStreamWriteValue64 cuStreamWriteValue64_v2], [cuStreamWriteValue64_ptsz cuStreamWriteValue64_v2_ptsz];
            stream::wait_value64, (stream: u64, address: u64, value: u64, flags: u32), [cuStreamWaitValue64 cuStreamWaitValue64_v2], [cuStreamWaitValue64_ptsz cuStreamWaitValue64_v2_ptsz];
            stream::batch, (stream: u64, count: u32, operations: *const stream::MemoryOperation, flags: u32), [cuStreamBatchMemOp cuStreamBatchMemOp_v2], [cuStreamBatchMemOp_ptsz cuStreamBatchMemOp_v2_ptsz];
            stream::event_create, (out: *mut u64, flags: u32), [cuEventCreate], [];
            stream::event_destroy, (event: u64), [cuEventDestroy cuEventDestroy_v2], [];
            stream::event_record, (event: u64, stream: u64), [cuEventRecord], [cuEventRecord_ptsz];
            stream::event_record_flags, (event: u64, stream: u64, flags: u32), [cuEventRecordWithFlags], [cuEventRecordWithFlags_ptsz];
            stream::event_query, (event: u64), [cuEventQuery], [];
            stream::event_synchronize, (event: u64), [cuEventSynchronize], [];
            stream::event_elapsed, (out: *mut f32, start: u64, end: u64), [cuEventElapsedTime cuEventElapsedTime_v2], [];
            capture::begin_v1, (stream: u64), [cuStreamBeginCapture], [cuStreamBeginCapture_ptsz];
            capture::begin, (stream: u64, mode: u32), [cuStreamBeginCapture_v2], [cuStreamBeginCapture_v2_ptsz];
            capture::begin_to_graph, (stream: u64, graph: u64, after: *const u64, edges: *const c_void, count: usize, mode: u32), [cuStreamBeginCaptureToGraph], [cuStreamBeginCaptureToGraph_ptsz];
            capture::end, (stream: u64, out: *mut u64), [cuStreamEndCapture], [cuStreamEndCapture_ptsz];
            capture::is_capturing, (stream: u64, out: *mut u32), [cuStreamIsCapturing], [cuStreamIsCapturing_ptsz];
            capture::info_v1, (stream: u64, out: *mut u32, id: *mut u64), [cuStreamGetCaptureInfo], [cuStreamGetCaptureInfo_ptsz];
            capture::info, (stream: u64, out: *mut u32, id: *mut u64, graph: *mut u64, after: *mut *const u64, count: *mut usize), [cuStreamGetCaptureInfo_v2], [cuStreamGetCaptureInfo_v2_ptsz];
            capture::info_v3, (stream: u64, out: *mut u32, id: *mut u64, graph: *mut u64, after: *mut *const u64, edges: *mut u64, count: *mut usize), [cuStreamGetCaptureInfo_v3], [cuStreamGetCaptureInfo_v3_ptsz];
            capture::update, (stream: u64, nodes: *const u64, count: usize, flags: u32), [cuStreamUpdateCaptureDependencies], [cuStreamUpdateCaptureDependencies_ptsz];
            capture::update_v2, (stream: u64, nodes: *const u64, edges: *const c_void, count: usize, flags: u32), [cuStreamUpdateCaptureDependencies_v2], [cuStreamUpdateCaptureDependencies_v2_ptsz];
            capture::exchange_mode, (mode: *mut u32), [cuThreadExchangeStreamCaptureMode], [];
            graph_api::create, (out: *mut u64, flags: u32), [cuGraphCreate], [];
            user_objects::create, (out: *mut u64, data: u64, destructor: Option<unsafe extern "C" fn(*mut c_void)>, references: u32, flags: u32), [cuUserObjectCreate], [];
            user_objects::retain, (object: u64, count: u32), [cuUserObjectRetain], [];
            user_objects::release, (object: u64, count: u32), [cuUserObjectRelease], [];
            user_objects::graph_retain, (graph: u64, object: u64, count: u32, flags: u32), [cuGraphRetainUserObject], [];
            user_objects::graph_release, (graph: u64, object: u64, count: u32), [cuGraphReleaseUserObject], [];
            graph_api::destroy, (graph: u64), [cuGraphDestroy], [];
            graph_api::clone, (out: *mut u64, graph: u64), [cuGraphClone], [];
            graph_api::destroy_node, (node: u64), [cuGraphDestroyNode], [];
            graph_api::nodes, (graph: u64, out: *mut u64, count: *mut usize), [cuGraphGetNodes], [];
            graph_api::roots, (graph: u64, out: *mut u64, count: *mut usize), [cuGraphGetRootNodes], [];
            graph_api::edges, (graph: u64, from: *mut u64, to: *mut u64, count: *mut usize), [cuGraphGetEdges], [];
            graph_api::edges_v2, (graph: u64, from: *mut u64, to: *mut u64, data: *mut c_void, count: *mut usize), [cuGraphGetEdges_v2], [];
            graph_api::dependencies, (node: u64, out: *mut u64, count: *mut usize), [cuGraphNodeGetDependencies], [];
            graph_api::dependencies_v2, (node: u64, out: *mut u64, data: *mut c_void, count: *mut usize), [cuGraphNodeGetDependencies_v2], [];
            graph_api::dependents, (node: u64, out: *mut u64, count: *mut usize), [cuGraphNodeGetDependentNodes], [];
            graph_api::dependents_v2, (node: u64, out: *mut u64, data: *mut c_void, count: *mut usize), [cuGraphNodeGetDependentNodes_v2], [];
            graph_api::add_dependencies, (graph: u64, from: *const u64, to: *const u64, count: usize), [cuGraphAddDependencies], [];
            graph_api::add_dependencies_v2, (graph: u64, from: *const u64, to: *const u64, data: *const c_void, count: usize), [cuGraphAddDependencies_v2], [];
            graph_api::remove_dependencies, (graph: u64, from: *const u64, to: *const u64, count: usize), [cuGraphRemoveDependencies], [];
            graph_api::remove_dependencies_v2, (graph: u64, from: *const u64, to: *const u64, data: *const c_void, count: usize), [cuGraphRemoveDependencies_v2], [];
            graph_api::node_type, (node: u64, out: *mut u32), [cuGraphNodeGetType], [];
            graph_api::child_graph, (node: u64, out: *mut u64), [cuGraphChildGraphNodeGetGraph], [];
            graph_api::instantiate, (out: *mut u64, graph: u64, flags: u64), [cuGraphInstantiateWithFlags], [];
            graph_api::instantiate_v1, (out: *mut u64, graph: u64, error_node: *mut u64, log: *mut u8, log_size: usize), [cuGraphInstantiate cuGraphInstantiate_v2], [];
            graph_api::instantiate_params, (out: *mut u64, graph: u64, parameters: *mut [u64; 4]), [cuGraphInstantiateWithParams], [cuGraphInstantiateWithParams_ptsz];
            graph_api::executable_flags, (executable: u64, out: *mut u64), [cuGraphExecGetFlags], [];
            graph_api::executable_destroy, (executable: u64), [cuGraphExecDestroy], [];
            graph_api::upload, (executable: u64, stream: u64), [cuGraphUpload], [cuGraphUpload_ptsz];
            graph_api::launch, (executable: u64, stream: u64), [cuGraphLaunch], [cuGraphLaunch_ptsz];
            graph_api::update, (executable: u64, graph: u64, out: *mut types::UpdateResult), [cuGraphExecUpdate_v2], [];
            graph_api::update_v1, (executable: u64, graph: u64, error_node: *mut u64, out: *mut u32), [cuGraphExecUpdate], [];
            graph_api::node_enabled, (executable: u64, node: u64, out: *mut u32), [cuGraphNodeGetEnabled], [];
            graph_api::set_node_enabled, (executable: u64, node: u64, enabled: u32), [cuGraphNodeSetEnabled], [];
            graph_nodes::add_kernel_v1, (out: *mut u64, graph: u64, after: *const u64, count: usize, parameters: *const types::KernelNode), [cuGraphAddKernelNode], [];
            graph_nodes::add_kernel, (out: *mut u64, graph: u64, after: *const u64, count: usize, parameters: *const types::KernelNode), [cuGraphAddKernelNode_v2], [];
            graph_nodes::set_kernel_v1, (node: u64, parameters: *const types::KernelNode), [cuGraphKernelNodeSetParams], [];
            graph_nodes::set_kernel, (node: u64, parameters: *const types::KernelNode), [cuGraphKernelNodeSetParams_v2], [];
            graph_nodes::set_executable_kernel_v1, (executable: u64, node: u64, parameters: *const types::KernelNode), [cuGraphExecKernelNodeSetParams], [];
            graph_nodes::set_executable_kernel, (executable: u64, node: u64, parameters: *const types::KernelNode), [cuGraphExecKernelNodeSetParams_v2], [];
            graph_nodes::get_kernel, (node: u64, out: *mut types::KernelNode), [cuGraphKernelNodeGetParams], [];
            graph_nodes::get_kernel_v2, (node: u64, out: *mut types::KernelNode), [cuGraphKernelNodeGetParams_v2], [];
            graph_nodes::add_memcpy, (out: *mut u64, graph: u64, after: *const u64, count: usize, parameters: *const types::Memcpy3D, context: u64), [cuGraphAddMemcpyNode], [];
            graph_nodes::set_memcpy, (node: u64, parameters: *const types::Memcpy3D), [cuGraphMemcpyNodeSetParams], [];
            graph_nodes::get_memcpy, (node: u64, out: *mut types::Memcpy3D), [cuGraphMemcpyNodeGetParams], [];
            graph_nodes::set_executable_memcpy, (executable: u64, node: u64, parameters: *const types::Memcpy3D, context: u64), [cuGraphExecMemcpyNodeSetParams], [];
            graph_nodes::add_memset, (out: *mut u64, graph: u64, after: *const u64, count: usize, parameters: *const types::MemsetNode, context: u64), [cuGraphAddMemsetNode], [];
            graph_nodes::set_memset, (node: u64, parameters: *const types::MemsetNode), [cuGraphMemsetNodeSetParams], [];
            graph_nodes::get_memset, (node: u64, out: *mut types::MemsetNode), [cuGraphMemsetNodeGetParams], [];
            graph_nodes::set_executable_memset, (executable: u64, node: u64, parameters: *const types::MemsetNode, context: u64), [cuGraphExecMemsetNodeSetParams], [];
            graph_nodes::add_host, (out: *mut u64, graph: u64, after: *const u64, count: usize, parameters: *const types::HostNode), [cuGraphAddHostNode], [];
            graph_nodes::set_host, (node: u64, parameters: *const types::HostNode), [cuGraphHostNodeSetParams], [];
            graph_nodes::get_host, (node: u64, out: *mut types::HostNode), [cuGraphHostNodeGetParams], [];
            graph_nodes::set_executable_host, (executable: u64, node: u64, parameters: *const types::HostNode), [cuGraphExecHostNodeSetParams], [];
            graph_nodes::add_empty, (out: *mut u64, graph: u64, after: *const u64, count: usize), [cuGraphAddEmptyNode], [];
            graph_nodes::add_child, (out: *mut u64, graph: u64, after: *const u64, count: usize, child: u64), [cuGraphAddChildGraphNode], [];
            graph_nodes::add_record, (out: *mut u64, graph: u64, after: *const u64, count: usize, event: u64), [cuGraphAddEventRecordNode], [];
            graph_nodes::add_wait, (out: *mut u64, graph: u64, after: *const u64, count: usize, event: u64), [cuGraphAddEventWaitNode], [];
            graph_nodes::get_event, (node: u64, out: *mut u64), [cuGraphEventRecordNodeGetEvent cuGraphEventWaitNodeGetEvent], [];
            graph_nodes::set_record, (node: u64, event: u64), [cuGraphEventRecordNodeSetEvent], [];
            graph_nodes::set_wait, (node: u64, event: u64), [cuGraphEventWaitNodeSetEvent], [];
            graph_nodes::set_executable_record, (executable: u64, node: u64, event: u64), [cuGraphExecEventRecordNodeSetEvent], [];
            graph_nodes::set_executable_wait, (executable: u64, node: u64, event: u64), [cuGraphExecEventWaitNodeSetEvent], [];
            tensor::encode_tiled, (map: *mut [u8; 128], element_type: u32, rank: u32, address: u64, dims: *const u64, strides: *const u64, box_dims: *const u32, element_strides: *const u32, interleave: u32, swizzle: u32, l2_promotion: u32, oob_fill: u32), [cuTensorMapEncodeTiled], [];
            tensor::encode_im2col, (map: *mut [u8; 128], element_type: u32, rank: u32, address: u64, dims: *const u64, strides: *const u64, lower: *const i32, upper: *const i32, channels: u32, pixels: u32, element_strides: *const u32, interleave: u32, swizzle: u32, l2_promotion: u32, oob_fill: u32), [cuTensorMapEncodeIm2col], [];
            tensor::replace_address, (map: *mut [u8; 128], address: u64), [cuTensorMapReplaceAddress], [];
        }
    };
}

/// Calls `$callback!` with the names of functions that exist but are not supported.
#[macro_export]
macro_rules! driver_unsupported {
    ($callback:ident) => {
        $callback! {
            cuArray3DCreate cuArray3DCreate_v2 cuArray3DGetDescriptor cuArray3DGetDescriptor_v2 cuArrayCreate
            cuArrayCreate_v2 cuArrayDestroy cuArrayGetDescriptor cuArrayGetDescriptor_v2 cuArrayGetMemoryRequirements
            cuArrayGetPlane cuArrayGetSparseProperties cuCheckpointProcessCheckpoint
            cuCheckpointProcessGetRestoreThreadId cuCheckpointProcessGetState cuCheckpointProcessLock
            cuCheckpointProcessRestore cuCheckpointProcessUnlock cuCoredumpGetAttribute cuCoredumpGetAttributeGlobal
            cuCoredumpSetAttribute cuCoredumpSetAttributeGlobal cuCtxFromGreenCtx cuCtxGetDevResource
            cuCtxGetExecAffinity cuCtxRecordEvent cuCtxWaitEvent cuDestroyExternalMemory cuDestroyExternalSemaphore
            cuDevResourceGenerateDesc cuDevSmResourceSplitByCount cuDeviceGetDevResource
            cuDeviceGetHostAtomicCapabilities cuDeviceGetNvSciSyncAttributes cuDeviceGetP2PAtomicCapabilities
            cuDeviceRegisterAsyncNotification cuDeviceUnregisterAsyncNotification
            cuExternalMemoryGetMappedBuffer cuExternalMemoryGetMappedMipmappedArray cuFlushGPUDirectRDMAWrites
            cuFuncSetBlockShape cuFuncSetSharedSize cuGetProcAddress_v2_ptsz cuGraphAddBatchMemOpNode
            cuGraphAddExternalSemaphoresSignalNode cuGraphAddExternalSemaphoresWaitNode
            cuGraphAddNode cuGraphAddNode_v2 cuGraphBatchMemOpNodeGetParams
            cuGraphBatchMemOpNodeSetParams cuGraphConditionalHandleCreate cuGraphDebugDotPrint
            cuGraphExecBatchMemOpNodeSetParams cuGraphExecChildGraphNodeSetParams
            cuGraphExecExternalSemaphoresSignalNodeSetParams cuGraphExecExternalSemaphoresWaitNodeSetParams
            cuGraphExecNodeSetParams cuGraphExternalSemaphoresSignalNodeGetParams
            cuGraphExternalSemaphoresSignalNodeSetParams cuGraphExternalSemaphoresWaitNodeGetParams
            cuGraphExternalSemaphoresWaitNodeSetParams cuGraphKernelNodeCopyAttributes cuGraphKernelNodeGetAttribute
            cuGraphKernelNodeSetAttribute
            cuGraphNodeFindInClone cuGraphNodeSetParams
            cuGraphicsMapResources cuGraphicsMapResources_ptsz cuGraphicsResourceGetMappedMipmappedArray
            cuGraphicsResourceGetMappedPointer cuGraphicsResourceGetMappedPointer_v2 cuGraphicsResourceSetMapFlags
            cuGraphicsResourceSetMapFlags_v2 cuGraphicsSubResourceGetMappedArray cuGraphicsUnmapResources
            cuGraphicsUnmapResources_ptsz cuGraphicsUnregisterResource cuGreenCtxCreate cuGreenCtxDestroy
            cuGreenCtxGetDevResource cuGreenCtxGetId cuGreenCtxRecordEvent cuGreenCtxStreamCreate cuGreenCtxWaitEvent
            cuImportExternalMemory cuImportExternalSemaphore cuIpcCloseMemHandle cuIpcGetEventHandle cuIpcGetMemHandle
            cuIpcOpenEventHandle cuIpcOpenMemHandle cuIpcOpenMemHandle_v2 cuLaunch cuLaunchCooperativeKernelMultiDevice
            cuLaunchGrid cuLaunchGridAsync cuLibraryGetUnifiedFunction cuLogsCurrent cuLogsDumpToFile cuLogsDumpToMemory
            cuLogsRegisterCallback cuLogsUnregisterCallback
            cuMemBatchDecompressAsync cuMemBatchDecompressAsync_ptsz cuMemDiscardAndPrefetchBatchAsync
            cuMemDiscardAndPrefetchBatchAsync_ptsz cuMemDiscardBatchAsync cuMemDiscardBatchAsync_ptsz

            cuMemGetDefaultMemPool cuMemGetHandleForAddressRange cuMemGetMemPool
            cuMemMapArrayAsync cuMemMapArrayAsync_ptsz cuMemPoolExportPointer
            cuMemPoolExportToShareableHandle cuMemPoolImportFromShareableHandle cuMemPoolImportPointer
            cuMemPrefetchBatchAsync cuMemPrefetchBatchAsync_ptsz cuMemRangeGetAttribute cuMemRangeGetAttributes
            cuMemSetMemPool cuMemcpy3DBatchAsync
            cuMemcpy3DBatchAsync_ptsz cuMemcpy3DBatchAsync_v2 cuMemcpy3DBatchAsync_v2_ptsz cuMemcpyAtoA cuMemcpyAtoA_v2
            cuMemcpyAtoA_v2_ptds cuMemcpyAtoD cuMemcpyAtoD_v2 cuMemcpyAtoD_v2_ptds cuMemcpyAtoH cuMemcpyAtoHAsync
            cuMemcpyAtoHAsync_v2 cuMemcpyAtoHAsync_v2_ptsz cuMemcpyAtoH_v2 cuMemcpyAtoH_v2_ptds
            cuMemcpyDtoA cuMemcpyDtoA_v2
            cuMemcpyDtoA_v2_ptds cuMemcpyHtoA cuMemcpyHtoAAsync cuMemcpyHtoAAsync_v2 cuMemcpyHtoAAsync_v2_ptsz
            cuMemcpyHtoA_v2 cuMemcpyHtoA_v2_ptds cuMipmappedArrayCreate cuMipmappedArrayDestroy cuMipmappedArrayGetLevel
            cuMipmappedArrayGetMemoryRequirements cuMipmappedArrayGetSparseProperties cuModuleGetSurfRef
            cuModuleGetTexRef cuMulticastAddDevice cuMulticastBindAddr cuMulticastBindMem cuMulticastCreate
            cuMulticastGetGranularity cuMulticastUnbind cuParamSetSize cuParamSetTexRef cuParamSetf cuParamSeti
            cuParamSetv cuProfilerInitialize cuSignalExternalSemaphoresAsync cuSignalExternalSemaphoresAsync_ptsz

            cuStreamGetGreenCtx cuSurfObjectCreate cuSurfObjectDestroy cuSurfObjectGetResourceDesc cuSurfRefGetArray
            cuSurfRefSetArray cuTensorMapEncodeIm2colWide cuTexObjectCreate cuTexObjectDestroy
            cuTexObjectGetResourceDesc cuTexObjectGetResourceViewDesc cuTexObjectGetTextureDesc cuTexRefCreate
            cuTexRefDestroy cuTexRefGetAddress cuTexRefGetAddressMode cuTexRefGetAddress_v2 cuTexRefGetArray
            cuTexRefGetBorderColor cuTexRefGetFilterMode cuTexRefGetFlags cuTexRefGetFormat cuTexRefGetMaxAnisotropy
            cuTexRefGetMipmapFilterMode cuTexRefGetMipmapLevelBias cuTexRefGetMipmapLevelClamp cuTexRefGetMipmappedArray
            cuTexRefSetAddress cuTexRefSetAddress2D cuTexRefSetAddress2D_v2 cuTexRefSetAddress2D_v3
            cuTexRefSetAddressMode cuTexRefSetAddress_v2 cuTexRefSetArray cuTexRefSetBorderColor cuTexRefSetFilterMode
            cuTexRefSetFlags cuTexRefSetFormat cuTexRefSetMaxAnisotropy cuTexRefSetMipmapFilterMode
            cuTexRefSetMipmapLevelBias cuTexRefSetMipmapLevelClamp cuTexRefSetMipmappedArray cuWaitExternalSemaphoresAsync cuWaitExternalSemaphoresAsync_ptsz
        }
    };
}

macro_rules! define {
    ($name:ident, $path:path, ($($arg:ident: $ty:ty),*), $per_thread:literal) => {
        pub unsafe extern "C" fn $name($($arg: $ty),*) -> u32 {
            // SAFETY: the arguments are the caller's, as the documentation of the function asks for them.
            boundary(stringify!($name), $per_thread, || unsafe { $path($($arg),*) })
        }
    };
}

macro_rules! define_functions {
    ($( $path:path, $args:tt, [$($name:ident)*], [$($per_thread:ident)*]; )*) => {
        $(
            $( define!($name, $path, $args, false); )*
            $( define!($per_thread, $path, $args, true); )*
        )*
    };
}

macro_rules! define_unsupported {
    ($($name:ident)*) => {
        $(
            pub unsafe extern "C" fn $name() -> u32 {
                not_supported(stringify!($name))
            }
        )*
    };
}

/// The functions with their C interface.
#[allow(non_snake_case, missing_docs)]
pub mod ffi {
    use std::ffi::{c_char, c_void};

    use super::not_supported;
    use crate::driver::{
        boundary, capture, context, copy, device, function, graph_api, graph_memory, graph_nodes,
        launch, link, memory, module, process, stream, tensor, types, user_objects, virtual_memory,
    };

    driver_functions!(define_functions);
    driver_unsupported!(define_unsupported);
}

macro_rules! look_up_function {
    ($( $path:path, $args:tt, [$($name:ident)*], [$($per_thread:ident)*]; )*) => {
        /// The address of a function that is there.
        fn supported(name: &str) -> Option<*const c_void> {
            Some(match name {
                $(
                    $( stringify!($name) => ffi::$name as *const c_void, )*
                    $( stringify!($per_thread) => ffi::$per_thread as *const c_void, )*
                )*
                _ => return None,
            })
        }
    };
}

macro_rules! look_up_unsupported {
    ($($name:ident)*) => {
        /// The address of a function that only says that it is not supported.
        pub fn unsupported(name: &str) -> Option<*const c_void> {
            Some(match name {
                $( stringify!($name) => ffi::$name as *const c_void, )*
                _ => return None,
            })
        }
    };
}

driver_functions!(look_up_function);
driver_unsupported!(look_up_unsupported);

/// The address of a driver function, by its exported name (`cuMemAlloc_v2`). It has the C signature of the function of that
/// name. Functions that are not supported have an address too; they return CUDA_ERROR_NOT_SUPPORTED. `None` for names
/// that are no driver functions.
pub fn symbol(name: &str) -> Option<*const c_void> {
    supported(name).or_else(|| unsupported(name))
}

/// Says once for each function that it is not there.
fn not_supported(name: &'static str) -> u32 {
    use std::collections::BTreeSet;
    use std::sync::{Mutex, PoisonError};
    static SAID: Mutex<BTreeSet<&'static str>> = Mutex::new(BTreeSet::new());
    if SAID
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .insert(name)
    {
        eprintln!("birdie-emulator: {name} is not supported");
    }
    super::error::Code::NOT_SUPPORTED.0
}
