//! An H100 on the CPU: executes the PTX that nvcc emits for sm_90a and checks it.
pub mod ptx;
pub mod tensor_map;
