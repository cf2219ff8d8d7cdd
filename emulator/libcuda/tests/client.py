"""A client of the driver API, in plain ctypes: what a foreign program needs of libcuda.so.1."""

import ctypes as c
import os

cuda = c.CDLL("libcuda.so.1")


def call(name, *arguments, expect=0):
    code = getattr(cuda, name)(*arguments)
    assert code == expect, f"{name}: {code}, not {expect}"


PTX = b"""
.version 8.0
.target sm_90a
.address_size 64
.visible .entry axpy(.param .u64 x, .param .u64 y, .param .f32 a, .param .u32 n)
{
    .reg .pred p; .reg .b32 r<5>; .reg .f32 f<4>; .reg .b64 d<5>;
    ld.param.u64 d0, [x]; ld.param.u64 d1, [y]; ld.param.f32 f0, [a]; ld.param.u32 r4, [n];
    mov.u32 r0, %tid.x; mov.u32 r1, %ctaid.x; mov.u32 r2, %ntid.x; mad.lo.s32 r3, r1, r2, r0;
    setp.ge.u32 p, r3, r4; @p ret;
    mul.wide.u32 d2, r3, 4; add.u64 d3, d0, d2; add.u64 d4, d1, d2;
    ld.global.f32 f1, [d3]; ld.global.f32 f2, [d4]; fma.rn.f32 f3, f0, f1, f2; st.global.f32 [d4], f3;
    ret;
}
"""

call("cuInit", 0)
version, count, major = c.c_int(), c.c_int(), c.c_int()
call("cuDriverGetVersion", c.byref(version))
assert version.value >= 12000
call("cuDeviceGetCount", c.byref(count))
assert count.value == 1
call("cuDeviceGetAttribute", c.byref(major), 75, 0)
assert major.value == 9

context, module, function = c.c_void_p(), c.c_void_p(), c.c_void_p()
call("cuDevicePrimaryCtxRetain", c.byref(context), 0)
call("cuCtxSetCurrent", context)
call("cuModuleLoadData", c.byref(module), PTX)
call("cuModuleGetFunction", c.byref(function), module, b"axpy")

N = 1000
FloatArray = c.c_float * N
x, y = FloatArray(*range(N)), FloatArray(*([1.0] * N))
dx, dy = c.c_uint64(), c.c_uint64()
for device, host in ((dx, x), (dy, y)):
    call("cuMemAlloc_v2", c.byref(device), c.c_size_t(4 * N))
    call("cuMemcpyHtoD_v2", device, host, c.c_size_t(4 * N))

values = (dx, dy, c.c_float(2.0), c.c_uint(N))
parameters = (c.c_void_p * 4)(*[c.cast(c.pointer(value), c.c_void_p) for value in values])
call("cuLaunchKernel", function, 8, 1, 1, 128, 1, 1, 0, None, parameters, None)
call("cuMemcpyDtoH_v2", y, dy, c.c_size_t(4 * N))
assert list(y) == [2.0 * i + 1.0 for i in range(N)]

# A function by name, as every recent client asks for it.
address, status = c.c_void_p(), c.c_int(9)
call("cuGetProcAddress_v2", b"cuMemFree", c.byref(address), 12000, c.c_uint64(0), c.byref(status))
assert status.value == 0
free = c.CFUNCTYPE(c.c_int, c.c_uint64)(address.value)
assert free(dx.value) == 0
assert free(dx.value) == 1, "freed twice"

# What is wrong is refused, and a fault stays.
call("cuLaunchKernel", function, 1, 1, 1, 2048, 1, 1, 0, None, parameters, None, expect=1)
call("cuLaunchKernel", function, 8, 1, 1, 128, 1, 1, 0, None, parameters, None)
call("cuCtxSynchronize", expect=700)
call("cuMemAlloc_v2", c.byref(dx), c.c_size_t(4), expect=700)
call("cuMulticastCreate", expect=801)

# A child of fork has no driver, and says so.
child = os.fork()
if child == 0:
    refused = cuda.cuMemAlloc_v2(c.byref(dx), c.c_size_t(4)) == 3 and cuda.cuInit(0) == 3
    os._exit(0 if refused else 1)
assert os.waitpid(child, 0)[1] == 0

print("all is well")
