//! The drop-in `libcuda.so.1`: exports the `cu*` symbols of the emulator.
