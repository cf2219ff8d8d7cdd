// A tensor store of a row that nobody has written. The rows of the box that lie outside of the tensor need not be written.
// launch: planted grid=1 block=32
// arg: map bf16 dims=64,6 box=64,8 swizzle=128
// expect: uninitialized
#include "planted.cuh"
extern "C" __global__ void planted(const __grid_constant__ TensorMap map) {
  __shared__ alignas(1024) uint32_t tile[8 * 32];
#ifdef BUG
  const int rows = 5;
#else
  const int rows = 6;
#endif
  for (int row = 0; row < rows; row++) tile[row * 32 + threadIdx.x] = row;
  fence_proxy_async();
  __syncwarp();
  if (threadIdx.x == 0) {
    tensor_store(&map, 0, 0, tile);
    bulk_wait();
  }
}
