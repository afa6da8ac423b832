"""The CUDA C of engines/runtime/kernels.py as C++: the same source, compiled for the CPU, thread after thread.

A header gives it the few words that are CUDA's. What this cannot show is what threads do to each other: the
kernels share nothing but a maximum and a flag.
"""

from __future__ import annotations

import ctypes
import functools
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from engines.runtime import kernels
from engines.runtime.device import Argument, Extent

COMPILER = shutil.which("g++") or shutil.which("c++") or shutil.which("clang++")
NO_COMPILER = "no C++ compiler to run the kernels' source with"

SHIM = r"""
#include <cstring>
#define __global__
#define __device__
struct Dim { unsigned x, y, z; };
static Dim threadIdx, blockIdx, blockDim;
static inline int __float_as_int(float v) { int i; std::memcpy(&i, &v, 4); return i; }
static inline void atomicMax(int* at, int v) { if (v > *at) *at = v; }
"""

RUNNER = r"""
#define EVERY_THREAD(call)                                                                     \
    blockDim = {block[0], block[1], block[2]};                                                 \
    for (blockIdx.z = 0; blockIdx.z < grid[2]; blockIdx.z++)                                   \
    for (blockIdx.y = 0; blockIdx.y < grid[1]; blockIdx.y++)                                   \
    for (blockIdx.x = 0; blockIdx.x < grid[0]; blockIdx.x++)                                   \
    for (threadIdx.y = 0; threadIdx.y < block[1]; threadIdx.y++)                               \
    for (threadIdx.x = 0; threadIdx.x < block[0]; threadIdx.x++) call;

#define P(i, type) ((type)*(unsigned long long*)a[i])
#define N(i) (*(int*)a[i])
typedef const float* F;
typedef float* G;
typedef const Item* I;
typedef Said* S;
typedef const Said* T;
typedef const unsigned char* M;

extern "C" int run(const char* name, const unsigned* grid, const unsigned* block, void** a) {
    if (!std::strcmp(name, "gather")) {
        EVERY_THREAD(gather(P(0, F), P(1, I), P(2, S), P(3, G), P(4, G), N(5), N(6), N(7), N(8)))
    } else if (!std::strcmp(name, "first")) {
        EVERY_THREAD(first(P(0, F), P(1, I), P(2, M), P(3, S), P(4, G), N(5), N(6), N(7), N(8), N(9)))
    } else if (!std::strcmp(name, "sums")) {
        EVERY_THREAD(sums(P(0, F), P(1, I), P(2, M), P(3, G), P(4, G), P(5, T), N(6), N(7), N(8), N(9), N(10)))
    } else if (!std::strcmp(name, "lock")) {
        EVERY_THREAD(lock(P(0, G), P(1, I), P(2, M), P(3, F), P(4, F), N(5), N(6), N(7)))
    } else if (!std::strcmp(name, "regions")) {
        EVERY_THREAD(regions(P(0, F), P(1, F), P(2, I), P(3, S), P(4, G), N(5), N(6), N(7), N(8), N(9)))
    } else if (!std::strcmp(name, "spread")) {
        EVERY_THREAD(spread(P(0, F), P(1, I), P(2, T), P(3, G), P(4, G), N(5), N(6), N(7), N(8), N(9)))
    } else if (!std::strcmp(name, "settle")) {
        EVERY_THREAD(settle(P(0, G), P(1, I), P(2, M), P(3, F), P(4, F), P(5, T), N(6), N(7), N(8), N(9)))
    } else {
        return 1;
    }
    return 0;
}
"""


@functools.cache
def _library() -> ctypes.CDLL:
    assert COMPILER is not None, NO_COMPILER
    folder = Path(tempfile.mkdtemp(prefix="luminode-kernels-"))
    source = folder / "kernels.cpp"
    source.write_text(SHIM + kernels.SOURCE + RUNNER)
    made = folder / "kernels.so"
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC", "-shared", "-Wall"]
    subprocess.run([COMPILER, *flags, "-o", made, source], check=True, capture_output=True, timeout=120)
    library = ctypes.CDLL(str(made))
    shutil.rmtree(folder)
    return library


def launch(kernel: str, grid: Extent, block: Extent, arguments: Sequence[Argument]) -> None:
    """Run a kernel, every thread of every block, on memory of this process."""
    places = (ctypes.c_void_p * len(arguments))(*(ctypes.addressof(a) for a in arguments))
    failed = _library().run(kernel.encode(), (ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block), places)
    assert not failed, f"there is no kernel {kernel}"
