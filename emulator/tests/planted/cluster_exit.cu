// A CTA writes into its peer's shared memory; nothing keeps the peer from having exited.
// launch: planted grid=2 block=32 cluster=2
// arg: buffer 256
// expect: cluster-lifetime
#include "planted.cuh"
extern "C" __global__ void planted(float *out) {
  __shared__ float inbox[32];
  inbox[threadIdx.x] = 0.0f;
  cluster_sync();
  const uint32_t rank = cluster_rank();
  if (rank == 0) {
    const uint32_t to = peer_address(inbox + threadIdx.x, 1);
    for (int i = 0; i < 64; i++) asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(to), "f"((float)i) : "memory");
  }
#ifndef BUG
  cluster_sync();
#endif
  out[rank * 32 + threadIdx.x] = 1.0f;
}
