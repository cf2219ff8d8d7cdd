//! The attributes of the emulated device: an H100 SXM5 80GB, with two differences.
//!
//! * Fewer SMs (`BIRDIE_EMU_SMS`), so that persistent kernels do not start 132 blocks on a CPU.
//! * What the emulator does not offer is 0 here, also where the real device has it: interprocess handles of allocations and events,
//!   multicast objects, sparse and mapped arrays, access to pageable memory.

/// The value of a `CUdevice_attribute`; `None` where there is none of that number.
pub fn value(which: u32, ordinal: u32, sms: u32) -> Option<i32> {
    Some(match which {
        1 => 1024,                   // MAX_THREADS_PER_BLOCK
        2 | 3 => 1024,               // MAX_BLOCK_DIM_X, _Y
        4 => 64,                     // MAX_BLOCK_DIM_Z
        5 => 2_147_483_647,          // MAX_GRID_DIM_X
        6 | 7 => 65_535,             // MAX_GRID_DIM_Y, _Z
        8 => 49_152,                 // MAX_SHARED_MEMORY_PER_BLOCK
        9 => 65_536,                 // TOTAL_CONSTANT_MEMORY
        10 => 32,                    // WARP_SIZE
        11 => 2_147_483_647,         // MAX_PITCH
        12 => 65_536,                // MAX_REGISTERS_PER_BLOCK
        13 => 1_980_000,             // CLOCK_RATE, kHz
        14 => 512,                   // TEXTURE_ALIGNMENT
        15 => 1,                     // GPU_OVERLAP
        16 => sms as i32,            // MULTIPROCESSOR_COUNT
        17 | 18 => 0,                // KERNEL_EXEC_TIMEOUT, INTEGRATED
        19 => 1,                     // CAN_MAP_HOST_MEMORY
        20 => 0,                     // COMPUTE_MODE
        21 => 131_072,               // MAXIMUM_TEXTURE1D_WIDTH
        22 => 131_072,               // MAXIMUM_TEXTURE2D_WIDTH
        23 => 65_536,                // MAXIMUM_TEXTURE2D_HEIGHT
        24..=26 => 16_384,           // MAXIMUM_TEXTURE3D_*
        27 | 28 => 32_768,           // MAXIMUM_TEXTURE2D_LAYERED_WIDTH, _HEIGHT
        29 => 2048,                  // MAXIMUM_TEXTURE2D_LAYERED_LAYERS
        30 => 512,                   // SURFACE_ALIGNMENT
        31 => 1,                     // CONCURRENT_KERNELS
        32 => 1,                     // ECC_ENABLED
        33 => 0x1b + ordinal as i32, // PCI_BUS_ID
        34 | 35 => 0,                // PCI_DEVICE_ID, TCC_DRIVER
        36 => 2_619_000,             // MEMORY_CLOCK_RATE, kHz
        37 => 5120,                  // GLOBAL_MEMORY_BUS_WIDTH, bits
        38 => 52_428_800,            // L2_CACHE_SIZE
        39 => 2048,                  // MAX_THREADS_PER_MULTIPROCESSOR
        40 => 3,                     // ASYNC_ENGINE_COUNT
        41 => 1,                     // UNIFIED_ADDRESSING
        42 => 32_768,                // MAXIMUM_TEXTURE1D_LAYERED_WIDTH
        43 => 2048,                  // MAXIMUM_TEXTURE1D_LAYERED_LAYERS
        44 => 1,                     // CAN_TEX2D_GATHER
        45 | 46 => 32_768,           // MAXIMUM_TEXTURE2D_GATHER_*
        47 | 48 => 8192,             // MAXIMUM_TEXTURE3D_*_ALTERNATE
        49 => 32_768,                // MAXIMUM_TEXTURE3D_DEPTH_ALTERNATE
        50 => 0,                     // PCI_DOMAIN_ID
        51 => 32,                    // TEXTURE_PITCH_ALIGNMENT
        52 | 53 => 32_768,           // MAXIMUM_TEXTURECUBEMAP_*
        54 => 2046,                  // MAXIMUM_TEXTURECUBEMAP_LAYERED_LAYERS
        55 => 32_768,                // MAXIMUM_SURFACE1D_WIDTH
        56 => 131_072,               // MAXIMUM_SURFACE2D_WIDTH
        57 => 65_536,                // MAXIMUM_SURFACE2D_HEIGHT
        58..=60 => 16_384,           // MAXIMUM_SURFACE3D_*
        61 => 32_768,                // MAXIMUM_SURFACE1D_LAYERED_WIDTH
        62 => 2048,                  // MAXIMUM_SURFACE1D_LAYERED_LAYERS
        63 | 64 => 32_768,           // MAXIMUM_SURFACE2D_LAYERED_WIDTH, _HEIGHT
        65 => 2048,                  // MAXIMUM_SURFACE2D_LAYERED_LAYERS
        66 | 67 => 32_768,           // MAXIMUM_SURFACECUBEMAP_*
        68 => 2046,                  // MAXIMUM_SURFACECUBEMAP_LAYERED_LAYERS
        69 => 268_435_456,           // MAXIMUM_TEXTURE1D_LINEAR_WIDTH
        70 => 131_072,               // MAXIMUM_TEXTURE2D_LINEAR_WIDTH
        71 => 65_000,                // MAXIMUM_TEXTURE2D_LINEAR_HEIGHT
        72 => 2_097_120,             // MAXIMUM_TEXTURE2D_LINEAR_PITCH
        73 | 74 => 32_768,           // MAXIMUM_TEXTURE2D_MIPMAPPED_*
        75 => 9,                     // COMPUTE_CAPABILITY_MAJOR
        76 => 0,                     // COMPUTE_CAPABILITY_MINOR
        77 => 32_768,                // MAXIMUM_TEXTURE1D_MIPMAPPED_WIDTH
        78..=80 => 1,                // STREAM_PRIORITIES, GLOBAL_L1_CACHE, LOCAL_L1_CACHE
        81 => 233_472,               // MAX_SHARED_MEMORY_PER_MULTIPROCESSOR
        82 => 65_536,                // MAX_REGISTERS_PER_MULTIPROCESSOR
        83 => 1,                     // MANAGED_MEMORY
        84 => 0,                     // MULTI_GPU_BOARD
        85 => ordinal as i32,        // MULTI_GPU_BOARD_GROUP_ID
        86 => 0,                     // HOST_NATIVE_ATOMIC_SUPPORTED
        87 => 2,                     // SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO
        88 => 0,                     // PAGEABLE_MEMORY_ACCESS
        89..=91 => 1, // CONCURRENT_MANAGED_ACCESS, COMPUTE_PREEMPTION, HOST_POINTER_FOR_REGISTERED_MEM
        92..=94 => 1, // stream memory operations, first version
        95 => 1,      // COOPERATIVE_LAUNCH
        96 => 0,      // COOPERATIVE_MULTI_DEVICE_LAUNCH
        97 => 232_448, // MAX_SHARED_MEMORY_PER_BLOCK_OPTIN
        98 => 0,      // CAN_FLUSH_REMOTE_WRITES
        99 => 1,      // HOST_REGISTER_SUPPORTED
        100 | 101 => 0, // host page tables, direct managed access
        102 | 103 => 1, // VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED, HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED
        104 | 105 => 0, // shareable handles of Windows
        106 => 32,      // MAX_BLOCKS_PER_MULTIPROCESSOR
        107 => 0,       // GENERIC_COMPRESSION_SUPPORTED
        108 => 32_768_000, // MAX_PERSISTING_L2_CACHE_SIZE
        109 => 134_213_632, // MAX_ACCESS_POLICY_WINDOW_SIZE
        110 => 0,       // GPU_DIRECT_RDMA_WITH_CUDA_VMM_SUPPORTED
        111 => 1024,    // RESERVED_SHARED_MEMORY_PER_BLOCK
        112 => 0,       // SPARSE_CUDA_ARRAY_SUPPORTED
        113 => 1,       // READ_ONLY_HOST_REGISTER_SUPPORTED
        114 => 0,       // TIMELINE_SEMAPHORE_INTEROP_SUPPORTED
        115 => 1,       // MEMORY_POOLS_SUPPORTED
        116..=119 => 0, // GPU_DIRECT_RDMA*, MEMPOOL_SUPPORTED_HANDLE_TYPES
        120 => 1,       // CLUSTER_LAUNCH
        121 => 0,       // DEFERRED_MAPPING_CUDA_ARRAY_SUPPORTED
        122 | 123 => 1, // CAN_USE_64_BIT_STREAM_MEM_OPS, CAN_USE_STREAM_WAIT_VALUE_NOR
        124 | 125 => 0, // DMA_BUF_SUPPORTED, IPC_EVENT_SUPPORTED
        126 => 4,       // MEM_SYNC_DOMAIN_COUNT
        127 => 1,       // TENSOR_MAP_ACCESS_SUPPORTED
        128 => 0,       // HANDLE_TYPE_FABRIC_SUPPORTED
        129 => 1,       // UNIFIED_FUNCTION_POINTERS
        130..=133 => 0, // NUMA_CONFIG, NUMA_ID, MULTICAST_SUPPORTED, MPS_ENABLED
        134 => 0,       // HOST_NUMA_ID
        135..=138 => 0, // D3D12_CIG, MEM_DECOMPRESS_*, VULKAN_CIG
        139 => 0x2330_10de, // GPU_PCI_DEVICE_ID
        140 => 0x16c1_10de, // GPU_PCI_SUBSYSTEM_ID
        141..=147 => 0, // HOST_NUMA_*, HOST_MEMORY_POOLS, HOST_VIRTUAL_MEMORY, ATOMICS
        _ => return None,
    })
}
