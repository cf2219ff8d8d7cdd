// A flag that a volatile read has found set may be read and written plainly after; one that was not looked at may not.
// launch: planted grid=2 block=32
// arg: buffer 8
// expect: global-race
#include "planted.cuh"
extern "C" __global__ void planted(uint32_t *flag) {
  if (threadIdx.x != 0) return;
  if (blockIdx.x == 0) {
    *(volatile uint32_t *)flag = 1;
  } else {
#ifndef BUG
    while (*(volatile uint32_t *)flag == 0) {
    }
#endif
    uint32_t value;
    asm volatile("ld.weak.global.u32 %0, [%1];" : "=r"(value) : "l"(flag) : "memory");
    flag[1] = value;
    *flag = 2;
  }
}
