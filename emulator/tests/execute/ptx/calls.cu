// Calls as nvcc emits them: parameters in .param space, structs by value, recursion, function pointers, printf, assert.
#include <cassert>
#include <cstdio>

struct Pair {
  int a;
  double b;
  short c[3];
};

__device__ __noinline__ Pair twist(Pair p, int k) {
  Pair r;
  r.a = p.a * k;
  r.b = p.b + k;
  r.c[0] = p.c[2];
  r.c[1] = p.c[1];
  r.c[2] = p.c[0];
  return r;
}

__device__ __noinline__ int fibonacci(int n) {
  if (n < 2) return n;
  return fibonacci(n - 1) + fibonacci(n - 2);
}

__device__ __noinline__ int is_odd(int n);
__device__ __noinline__ int is_even(int n) { return n == 0 ? 1 : is_odd(n - 1); }
__device__ __noinline__ int is_odd(int n) { return n == 0 ? 0 : is_even(n - 1); }

__device__ __noinline__ void fill(int* to, int depth, int value) {
  int local[4];
  for (int i = 0; i < 4; i++) local[i] = value + i;
  if (depth) fill(local, depth - 1, value + 10);
  int s = 0;
  for (int i = 0; i < 4; i++) s += local[i];
  for (int i = 0; i < 4; i++) to[i] = s * (i + 1);
}

typedef int (*Operation)(int, int);
__device__ __noinline__ int add(int a, int b) { return a + b; }
__device__ __noinline__ int sub(int a, int b) { return a - b; }
__device__ __noinline__ int mul(int a, int b) { return a * b; }
__device__ Operation table[3] = {add, sub, mul};

extern "C" __global__ void structs(int* out) {
  int t = threadIdx.x;
  Pair p = {t, 0.5 * t, {short(t), short(t + 1), short(t + 2)}};
  Pair r = twist(p, 3);
  out[t] = r.a + int(2 * r.b) + r.c[0] * 1000;
}

extern "C" __global__ void recursion(int* out) {
  int t = threadIdx.x;
  int v[4];
  fill(v, t % 5, t);
  out[t] = fibonacci(t % 9) + 100 * is_even(t) + 1000 * v[3];
}

extern "C" __global__ void pointers(int* out) {
  int t = threadIdx.x;
  out[t] = table[t % 3](t, 7);
}

extern "C" __global__ void prints(int n) {
  int t = threadIdx.x;
  if (t < n) printf("%d|%5.2f|%-4s|%x|%lld|%c|%%|%g\n", t, 0.25 * t, "ab", 255 + t, 1ll << 40, 'a' + t, 1e-7);
}

extern "C" __global__ void asserts(int n) { assert(int(threadIdx.x) < n); }

extern "C" __global__ void traps() {
  if (threadIdx.x == 3) __trap();
}

// A switch that becomes a branch table.
extern "C" __global__ void switches(int* out, const int* in) {
  int t = threadIdx.x, v = in[t], r;
  switch (v) {
    case 0: r = t * 3; break;
    case 1: r = t + 100; break;
    case 2: r = t ^ 5; break;
    case 3: r = in[t + 1]; break;
    case 4: r = -t; break;
    case 5: r = t << 4; break;
    case 6: r = t / 3; break;
    default: r = 7777;
  }
  out[t] = r;
}

// Lanes wait for each other inside a warp: works only if both sides of the branch get their turn.
extern "C" __global__ void spin(int* out) {
  __shared__ volatile int flag;
  int t = threadIdx.x;
  if (t == 0) flag = 0;
  __syncthreads();
  if (t % 32 == 31 && t / 32 == 0) {
    flag = 42;
  } else {
    while (flag != 42) {}
  }
  out[t] = flag;
}

// A lock in global memory taken by every CTA, and a barrier over the grid.
extern "C" __global__ void grid_barrier(int* counter, int* data, int* out) {
  if (threadIdx.x == 0) {
    data[blockIdx.x] = 10 + blockIdx.x;
    __threadfence();
    atomicAdd(counter, 1);
    while (atomicAdd(counter, 0) < int(gridDim.x)) {}
    __threadfence();
    int s = 0;
    for (int i = 0; i < int(gridDim.x); i++) s += ((volatile int*)data)[i];
    out[blockIdx.x] = s;
  }
}
