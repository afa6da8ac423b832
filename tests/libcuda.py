"""A ``libcuda.so.1`` that is none, for tests: cuda-python's real bindings run engines/runtime/cuda.py into it.

It says so in the name of its device. What it is instead: a library of C++ with the driver's own entry points, so that
every argument goes the whole way through the bindings, its order, width and kind included.

- its memory is memory of this process; what is copied must lie inside of what was given out, on the right side;
- it runs at once what is enqueued, in the order in which it came (what a lazy device would do to an order that nothing
  enforces is the matter of tests/device_onnx.py); an event is never over at the first question;
- its kernels are the real ones, compiled as C++; a module must be machine code for the GPU that it claims to be, as
  NVRTC made it, and name the kernel that is asked for;
- whatever needs a current context is refused without one, and what a capture does not allow breaks the capture;
- it counts calls, any of them can be told to answer with a code, and after an error of the device all later ones do.

A process sees it only if it was started for that: :func:`environment`.
"""

from __future__ import annotations

import ctypes
import functools
import os
import subprocess
from pathlib import Path

from engines.runtime import kernels
from tests.kernels_cpp import COMPILER, RUNNER, SHIM

NAME = "a libcuda that is none, for tests"
CAPABILITY = (8, 6)

STUB = r"""
#include <cstdint>
#include <cstdlib>
#include <map>
#include <mutex>
#include <set>
#include <string>
#include <vector>

typedef unsigned long long u64;
enum { FINE = 0, WRONG = 1, MEMORY = 2, NO_CONTEXT = 201, NOT_FOUND = 500, NOT_READY = 600, NO_CAPTURE = 900 };

struct Op { std::string kernel; unsigned grid[3], block[3]; std::vector<u64> values; };
struct State {
    int calls = 0, fail_at = 0, code = 0, lost = 0, after = 0, retained = 0;
    u64 used = 0, total = 0, next = 4096;
    std::string trace;
    std::map<u64, u64> device, pinned;
    std::set<u64> streams, modules, graphs, execs;
    std::map<u64, int> events;
    std::map<u64, std::string> functions;
    std::map<u64, std::vector<Op>> captured;
    u64 capturing = 0;
    bool broken = false;
};
static State s;
static thread_local u64 current = 0;
static const u64 CONTEXT = 0xc0;

static bool told(const char* name, int* answer) {
    s.calls++;
    s.trace += name;
    s.trace += '\n';
    if (s.lost) { s.after++; *answer = s.lost; return true; }
    if (s.calls == s.fail_at) {
        if (s.code >= 700 && s.code < 800) s.lost = s.code;
        *answer = s.code;
        return true;
    }
    return false;
}
static bool inside(const std::map<u64, u64>& all, u64 at, u64 n) {
    auto one = all.upper_bound(at);
    if (one == all.begin()) return false;
    --one;
    return at + n <= one->first + one->second;
}
#define CALL(name) int failed_; if (told(name, &failed_)) return failed_
#define CONTEXT_CALL(name) CALL(name); if (!current || !s.retained) return NO_CONTEXT
#define BREAKS_A_CAPTURE if (s.capturing) { s.broken = true; return NO_CAPTURE; }

extern "C" {
int run(const char* name, const unsigned* grid, const unsigned* block, void** a);

void stub_reset(int fail_at, int code, u64 total) {
    for (auto& one : s.device) std::free((void*)one.first);
    for (auto& one : s.pinned) std::free((void*)one.first);
    s = State();
    s.fail_at = fail_at; s.code = code; s.total = total;
    current = 0;
}
int stub_calls() { return s.calls; }
int stub_after() { return s.after; }
const char* stub_trace() { return s.trace.c_str(); }
/* What was not given back. */
int stub_held() {
    return (int)(s.device.size() + s.pinned.size() + s.streams.size() + s.events.size() + s.modules.size() +
                 s.graphs.size() + s.execs.size()) + s.retained;
}
u64 stub_current() { return current; }

int s_cuInit(unsigned) { CALL("cuInit"); return FINE; }
int s_cuDriverGetVersion(int* v) { CALL("cuDriverGetVersion"); *v = 13000; return FINE; }
int s_cuDeviceGetCount(int* n) { CALL("cuDeviceGetCount"); *n = 1; return FINE; }
int s_cuDeviceGet(int* d, int i) { CALL("cuDeviceGet"); if (i) return 101; *d = 7; return FINE; }
int s_cuDeviceGetUuid(char* u, int d) {
    CALL("cuDeviceGetUuid"); if (d != 7) return 101;
    for (int i = 0; i < 16; i++) u[i] = (char)(0xa0 + i);
    return FINE;
}
int s_cuDeviceGetAttribute(int* v, int what, int d) {
    CALL("cuDeviceGetAttribute"); if (d != 7) return 101;
    if (what != 75 && what != 76) return WRONG;
    *v = what == 75 ? MAJOR : MINOR;
    return FINE;
}
int s_cuDeviceGetName(char* out, int n, int d) {
    CALL("cuDeviceGetName"); if (d != 7) return 101;
    std::strncpy(out, NAME, (size_t)n);
    return FINE;
}
int s_cuDevicePrimaryCtxRetain(u64* c, int d) {
    CALL("cuDevicePrimaryCtxRetain"); if (d != 7) return 101;
    s.retained++; *c = CONTEXT; return FINE;
}
int s_cuDevicePrimaryCtxRelease(int d) {
    CALL("cuDevicePrimaryCtxRelease"); if (d != 7 || !s.retained) return WRONG;
    s.retained--; return FINE;
}
int s_cuCtxSetCurrent(u64 c) {
    CALL("cuCtxSetCurrent"); if (c && (c != CONTEXT || !s.retained)) return NO_CONTEXT;
    current = c; return FINE;
}
int s_cuMemGetInfo(size_t* free, size_t* total) {
    CONTEXT_CALL("cuMemGetInfo"); *free = s.total - s.used; *total = s.total; return FINE;
}
int s_cuModuleLoadData(u64* m, const void* image) {
    CONTEXT_CALL("cuModuleLoadData");
    if (std::memcmp(image, "\x7f" "ELF", 4)) return 200;
    /* Of a cubin of CUDA 13 the flags hold the architecture (ELF for CUDA, ABI 8). */
    unsigned flags; std::memcpy(&flags, (const char*)image + 48, 4);
    if (((flags >> 8) & 0xff) != MAJOR * 10 + MINOR && (flags & 0xff) != MAJOR * 10 + MINOR) return 209;
    *m = s.next++; s.modules.insert(*m); return FINE;
}
int s_cuModuleUnload(u64 m) { CONTEXT_CALL("cuModuleUnload"); return s.modules.erase(m) ? FINE : WRONG; }
int s_cuModuleGetFunction(u64* f, u64 m, const char* name) {
    CONTEXT_CALL("cuModuleGetFunction"); if (!s.modules.count(m)) return WRONG;
    for (const char* one : KERNELS) if (!std::strcmp(one, name)) { *f = s.next++; s.functions[*f] = name; return FINE; }
    return NOT_FOUND;
}
int s_cuMemAlloc(u64* at, size_t n) {
    CONTEXT_CALL("cuMemAlloc"); BREAKS_A_CAPTURE
    if (!n) return WRONG;
    if (s.used + n > s.total) return MEMORY;
    *at = (u64)std::aligned_alloc(256, (n + 255) / 256 * 256);
    std::memset((void*)*at, 0xff, n);
    s.device[*at] = n; s.used += n; return FINE;
}
int s_cuMemFree(u64 at) {
    CONTEXT_CALL("cuMemFree"); BREAKS_A_CAPTURE
    auto one = s.device.find(at); if (one == s.device.end()) return WRONG;
    s.used -= one->second; s.device.erase(one); std::free((void*)at); return FINE;
}
int s_cuMemHostAlloc(void** at, size_t n, unsigned flags) {
    CONTEXT_CALL("cuMemHostAlloc"); BREAKS_A_CAPTURE
    if (!n || flags) return WRONG;
    *at = std::aligned_alloc(4096, (n + 4095) / 4096 * 4096);
    s.pinned[(u64)*at] = n; return FINE;
}
int s_cuMemFreeHost(void* at) {
    CONTEXT_CALL("cuMemFreeHost"); BREAKS_A_CAPTURE
    if (!s.pinned.erase((u64)at)) return WRONG;
    std::free(at); return FINE;
}
int s_cuStreamCreate(u64* t, unsigned flags) {
    CONTEXT_CALL("cuStreamCreate"); if (flags != 1) return WRONG;  /* one that waits for no other */
    *t = s.next++; s.streams.insert(*t); return FINE;
}
int s_cuStreamDestroy(u64 t) { CONTEXT_CALL("cuStreamDestroy"); return s.streams.erase(t) ? FINE : WRONG; }
int s_cuEventCreate(u64* e, unsigned flags) {
    CONTEXT_CALL("cuEventCreate"); if (flags != 2) return WRONG;  /* without a clock */
    *e = s.next++; s.events[*e] = 0; return FINE;
}
int s_cuEventDestroy(u64 e) { CONTEXT_CALL("cuEventDestroy"); return s.events.erase(e) ? FINE : WRONG; }
int s_cuEventRecord(u64 e, u64 t) {
    CONTEXT_CALL("cuEventRecord"); if (!s.events.count(e) || !s.streams.count(t)) return WRONG;
    s.events[e] = 1; return FINE;
}
int s_cuEventQuery(u64 e) {
    CONTEXT_CALL("cuEventQuery"); BREAKS_A_CAPTURE
    if (!s.events.count(e)) return WRONG;
    if (s.events[e] == 1) { s.events[e] = 2; return NOT_READY; }
    return FINE;
}
int s_cuStreamWaitEvent(u64 t, u64 e, unsigned flags) {
    CONTEXT_CALL("cuStreamWaitEvent");
    return s.streams.count(t) && s.events.count(e) && !flags ? FINE : WRONG;
}
int s_cuMemcpyHtoDAsync(u64 to, const void* from, size_t n, u64 t) {
    CONTEXT_CALL("cuMemcpyHtoDAsync"); if (s.capturing == t) BREAKS_A_CAPTURE
    if (!s.streams.count(t) || !inside(s.device, to, n) || !inside(s.pinned, (u64)from, n)) return WRONG;
    std::memcpy((void*)to, from, n); return FINE;
}
int s_cuMemcpyDtoHAsync(void* to, u64 from, size_t n, u64 t) {
    CONTEXT_CALL("cuMemcpyDtoHAsync"); if (s.capturing == t) BREAKS_A_CAPTURE
    if (!s.streams.count(t) || !inside(s.pinned, (u64)to, n) || !inside(s.device, from, n)) return WRONG;
    std::memcpy(to, (void*)from, n); return FINE;
}
static void launched(const Op& op) {
    std::vector<void*> places;
    for (auto& v : op.values) places.push_back((void*)&v);
    run(op.kernel.c_str(), op.grid, op.block, places.data());
}
int s_cuLaunchKernel(u64 f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                     unsigned shared, u64 t, void** params, void** extra) {
    CONTEXT_CALL("cuLaunchKernel");
    if (!s.functions.count(f) || !s.streams.count(t) || shared || extra || !params) return WRONG;
    if (!gx || !gy || !gz || gy > 65535 || gz > 65535 || (u64)bx * by * bz > 1024) return WRONG;
    Op op{s.functions[f], {gx, gy, gz}, {bx, by, bz}, {}};
    for (char kind : ARGUMENTS.at(op.kernel)) {
        u64 v = 0; std::memcpy(&v, params[op.values.size()], kind == 'P' ? 8 : 4); op.values.push_back(v);
        if (kind == 'P' && !inside(s.device, v, 1)) { s.lost = 700; return FINE; }
    }
    if (s.capturing == t) s.captured[0].push_back(op); else launched(op);
    return FINE;
}
int s_cuStreamBeginCapture(u64 t, int mode) {
    CONTEXT_CALL("cuStreamBeginCapture");
    if (!s.streams.count(t) || mode != 1 || s.capturing) return WRONG;  /* of this thread alone */
    s.capturing = t; s.broken = false; s.captured[0].clear(); return FINE;
}
int s_cuStreamEndCapture(u64 t, u64* g) {
    int failed_; bool fails = told("cuStreamEndCapture", &failed_);
    bool broken = s.broken || s.capturing != t;
    s.capturing = 0; *g = 0;
    if (fails) return failed_;
    if (broken) return 901;
    *g = s.next++; s.graphs.insert(*g); s.captured[*g] = s.captured[0]; return FINE;
}
int s_cuGraphInstantiateWithFlags(u64* x, u64 g, u64 flags) {
    CONTEXT_CALL("cuGraphInstantiate"); if (!s.graphs.count(g) || flags) return WRONG;
    *x = s.next++; s.execs.insert(*x); s.captured[*x] = s.captured[g]; return FINE;
}
int s_cuGraphDestroy(u64 g) { CONTEXT_CALL("cuGraphDestroy"); return s.graphs.erase(g) ? FINE : WRONG; }
int s_cuGraphLaunch(u64 x, u64 t) {
    CONTEXT_CALL("cuGraphLaunch"); if (!s.execs.count(x) || !s.streams.count(t)) return WRONG;
    for (auto& op : s.captured[x]) launched(op);
    return FINE;
}
int s_cuGraphExecDestroy(u64 x) { CONTEXT_CALL("cuGraphExecDestroy"); return s.execs.erase(x) ? FINE : WRONG; }

int cuGetProcAddress_v2(const char* name, void** out, int, u64, int* status) {
#define ONE(n) if (!std::strcmp(name, #n)) { *out = (void*)s_##n; if (status) *status = 0; return FINE; }
    EVERY
    *out = nullptr; if (status) *status = 1;
    return NOT_FOUND;
}
}
"""

ENTRIES = (
    "cuInit", "cuDriverGetVersion", "cuDeviceGetCount", "cuDeviceGet", "cuDeviceGetUuid", "cuDeviceGetAttribute",
    "cuDeviceGetName", "cuDevicePrimaryCtxRetain", "cuDevicePrimaryCtxRelease", "cuCtxSetCurrent", "cuMemGetInfo",
    "cuModuleLoadData", "cuModuleUnload", "cuModuleGetFunction", "cuMemAlloc", "cuMemFree", "cuMemHostAlloc",
    "cuMemFreeHost", "cuStreamCreate", "cuStreamDestroy", "cuEventCreate", "cuEventDestroy", "cuEventRecord",
    "cuEventQuery", "cuStreamWaitEvent", "cuMemcpyHtoDAsync", "cuMemcpyDtoHAsync", "cuLaunchKernel",
    "cuStreamBeginCapture", "cuStreamEndCapture", "cuGraphInstantiateWithFlags", "cuGraphDestroy", "cuGraphLaunch",
    "cuGraphExecDestroy",
)  # fmt: skip

ARGUMENTS = {
    "gather": "PPPPPNNNN", "first": "PPPPPNNNNN", "sums": "PPPPPPNNNNN", "lock": "PPPPPNNN",
    "regions": "PPPPPNNNNN", "spread": "PPPPPNNNNN", "settle": "PPPPPPNNNN",
}  # fmt: skip
"""Of the kernels: addresses (P) and numbers (N), as tests/kernels_cpp.py takes them too."""


def _source() -> str:
    kinds = ", ".join(f'{{"{k}", "{v}"}}' for k, v in ARGUMENTS.items())
    names = ", ".join(f'"{n}"' for n in kernels.NAMES)
    head = (
        "#include <map>\n#include <string>\n"
        f'static const char* const NAME = "{NAME}";\n'
        f"static const int MAJOR = {CAPABILITY[0]}, MINOR = {CAPABILITY[1]};\n"
        f"static const char* const KERNELS[] = {{{names}}};\n"
        f"static const std::map<std::string, std::string> ARGUMENTS = {{{kinds}}};\n"
        f"#define EVERY {' '.join(f'ONE({n})' for n in ENTRIES)}\n"
    )
    return SHIM + head + kernels.SOURCE + RUNNER + STUB


def build(folder: Path) -> Path:
    """Compile it into a folder."""
    assert COMPILER is not None
    source, made = folder / "libcuda.cpp", folder / "libcuda.so.1"
    source.write_text(_source())
    flags = ["-std=c++17", "-O2", "-ffp-contract=off", "-fno-strict-aliasing", "-fPIC", "-shared", "-Wall"]
    command = [COMPILER, *flags, "-Wl,-soname,libcuda.so.1", "-o", str(made), str(source)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    return made


def environment(folder: Path) -> dict[str, str]:
    """Of a process that is to take the library in a folder for the driver's."""
    return {**os.environ, "LD_LIBRARY_PATH": str(folder), "CUDA_VISIBLE_DEVICES": "0"}


@functools.cache
def library() -> ctypes.CDLL:
    """It, in a process that was started with :func:`environment`: to tell it what to do."""
    made = ctypes.CDLL("libcuda.so.1")
    made.stub_trace.restype = ctypes.c_char_p
    made.stub_reset.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_ulonglong)
    return made
