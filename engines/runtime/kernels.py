"""The small kernels around the network: CUDA C for NVRTC, and plain enough to be C++ for a test without GPU.

What runs where, and why (one slice of 512 x 512; CPU times of one core as measured, PCIe 4 at 25 GB/s):

========================  ===========  ======================================================================
slices up, float32        device       1 MB, 40 us of a bus that is idle then. As int16 it would be 20 us less, but
                                       to cast and to prove that nothing was lost costs 53 us of CPU instead of
                                       18 us for the copy: it loses where CPU is what is scarce.
stack of three, scaling,  device       gathered from slices that are there already: 1 MB up instead of 4
mirrored rim
finite, bound, padding,   device       3.0 ms of CPU with all valid and nothing to hold, 12.7 ms with a circle and
lock, excess of regions                regions over their bound (4 of 12 slices of CT phantoms of 6 to 25 HU); on the
                                       device passes over data that lie in its cache. What is left for the host (blend,
                                       check) is 0.24 to 0.54 ms.
weakening of regions      host         where the rounds do not settle them: from the mean that the device tells one
                                       product, 0.1 ms; iterative only along sharp edges
autoencoder's trust,      host         baselines; need the bare residual
its strangeness
detail of scale 2         host         its projection is an FFT
blend, check              host         the check is a defence against our own defects, these kernels included
residual down, float32    device       1 MB, 40 us. The engine's result is float32 (strength, G9), and rounding to
                                       stored values is the node's: int16 down would be rounded twice.
========================  ===========  ======================================================================

engines/guards.py is the law. These kernels say the same in float32 with another order of addition: sums over
windows differ in their last bits. No kernel needs another thread of its block, so each can be run thread by thread.
"""

from __future__ import annotations

import numpy as np

SETTLING = 8
"""Rounds in which the excess of regions is taken out: engines.guards.SETTLING."""

ITEM = np.dtype(
    [
        ("below", np.int32),
        ("self", np.int32),
        ("above", np.int32),
        ("mask", np.int32),
        ("c", np.float32),
        ("largest", np.float32),
        ("tolerance", np.float32),
        ("unit_x", np.float32),
        ("unit_r", np.float32),
    ]
)
"""``struct Item``: slots of slices; the slot of its mask, -1 if all is valid; bounds; units."""

SAID = np.dtype([("broken", np.int32), ("worst", np.float32, (SETTLING + 1,))])
"""``struct Said``: what the kernels found in a slice; the largest mean of a region before each round, and after the
last. A round that was not needed leaves 0."""

BLOCK = (32, 8, 1)

STRIP = 8
"""Rows that one thread of ``sums`` makes, by a running sum."""

NAMES = ("gather", "first", "sums", "lock", "regions", "spread", "settle")

SOURCE = r"""
struct Item { int below, self, above, mask; float c, largest, tolerance, unit_x, unit_r; };
struct Said { int broken; float worst[9]; };

#define STRIP 8
#define SETTLING 8
#define PIXEL_X (int)(blockIdx.x * blockDim.x + threadIdx.x)
#define PIXEL_Y (int)(blockIdx.y * blockDim.y + threadIdx.y)

static __device__ int least(int a, int b) { return a < b ? a : b; }
static __device__ int most(int a, int b) { return a > b ? a : b; }

/* numpy.pad(mode="symmetric"): the rim itself is repeated, as often as it takes. */
static __device__ int mirrored(int i, int n) {
    int m = i % (2 * n);
    return m < n ? m : 2 * n - 1 - m;
}

static __device__ float clipped(float v, float largest) {
    return v > largest ? largest : (v < -largest ? -largest : v);
}

static __device__ bool valid_at(const unsigned char* masks, int slot, long long pixels, long long at) {
    return slot < 0 || masks[slot * pixels + at] != 0;
}

/* Whether no region moves too far before a round: then it, and all after it, do nothing. */
static __device__ bool settled(const Said& said, const Item& item, int round) {
    return said.worst[round] <= item.tolerance;
}

/* x [n, 3, padded] and c [n, 1, padded] of slices that are on the device; clears what was said. */
extern "C" __global__ void gather(const float* slices, const Item* items, Said* said, float* x, float* c,
                                  int rows, int columns, int padded_rows, int padded_columns) {
    int px = PIXEL_X, py = PIXEL_Y, n = blockIdx.z;
    if (px >= padded_columns || py >= padded_rows) return;
    Item item = items[n];
    if (px == 0 && py == 0) {
        said[n].broken = 0;
        for (int i = 0; i <= SETTLING; i++) said[n].worst[i] = 0.0f;
    }
    long long pixels = (long long)rows * columns, plane = (long long)padded_rows * padded_columns;
    long long from = (long long)mirrored(py, rows) * columns + mirrored(px, columns);
    long long to = (long long)py * padded_columns + px;
    x[(3LL * n) * plane + to] = slices[item.below * pixels + from] * item.unit_x;
    x[(3LL * n + 1) * plane + to] = slices[item.self * pixels + from] * item.unit_x;
    x[(3LL * n + 2) * plane + to] = slices[item.above * pixels + from] * item.unit_x;
    c[n * plane + to] = item.c;
}

/* The residual in the unit of the volume, cropped; G8 told, and if guarded, G2 and G4 kept. */
extern "C" __global__ void first(const float* r, const Item* items, const unsigned char* masks, Said* said,
                                 float* out, int rows, int columns, int padded_rows, int padded_columns,
                                 int guarded) {
    int px = PIXEL_X, py = PIXEL_Y, n = blockIdx.z;
    if (px >= columns || py >= rows) return;
    Item item = items[n];
    long long at = (long long)py * columns + px, pixels = (long long)rows * columns;
    float v = r[((long long)n * padded_rows + py) * padded_columns + px] * item.unit_r;
    if (!(v <= 3.402823466e38f && v >= -3.402823466e38f)) said[n].broken = 1;
    if (guarded) {
        v = clipped(v, item.largest);
        if (!valid_at(masks, item.mask, pixels, at)) v = 0.0f;
    }
    out[n * pixels + at] = v;
}

/* Down each column, sums over rows y - before .. y + after inside of the slice, and how many are valid.
   For a round of settling (from 1), only if the one before it found something. */
extern "C" __global__ void sums(const float* values, const Item* items, const unsigned char* masks, float* total,
                                float* count, const Said* said, int rows, int columns, int before, int after,
                                int round) {
    int px = PIXEL_X, top = PIXEL_Y * STRIP, n = blockIdx.z;
    if (px >= columns || top >= rows) return;
    if (round > 0 && settled(said[n], items[n], round - 1)) return;
    long long pixels = (long long)rows * columns;
    const float* v = values + n * pixels + px;
    int slot = items[n].mask;
    const unsigned char* m = slot < 0 ? 0 : masks + slot * pixels + px;
    float s = 0.0f, k = 0.0f;
    for (int y = most(0, top - before); y <= least(rows - 1, top + after); y++) {
        s += v[(long long)y * columns];
        if (m && m[(long long)y * columns]) k += 1.0f;
    }
    for (int y = top; y < least(rows, top + STRIP); y++) {
        long long at = n * pixels + (long long)y * columns + px;
        total[at] = s;
        if (m) count[at] = k;
        int in = y + after + 1, out = y - before;
        if (in < rows) {
            s += v[(long long)in * columns];
            if (m && m[(long long)in * columns]) k += 1.0f;
        }
        if (out >= 0) {
            s -= v[(long long)out * columns];
            if (m && m[(long long)out * columns]) k -= 1.0f;
        }
    }
}

/* Along each row: the mean of the window taken out, then G2 and G4 once more. In place. */
extern "C" __global__ void lock(float* values, const Item* items, const unsigned char* masks, const float* total,
                                const float* count, int rows, int columns, int radius) {
    int px = PIXEL_X, py = PIXEL_Y, n = blockIdx.z;
    if (px >= columns || py >= rows) return;
    Item item = items[n];
    long long pixels = (long long)rows * columns, line = n * pixels + (long long)py * columns;
    int left = most(0, px - radius), right = least(columns - 1, px + radius);
    float s = 0.0f, k = 0.0f;
    for (int i = left; i <= right; i++) s += total[line + i];
    if (item.mask < 0) {
        k = (float)((right - left + 1) * (least(rows - 1, py + radius) - most(0, py - radius) + 1));
    } else {
        for (int i = left; i <= right; i++) k += count[line + i];
    }
    float v = clipped(values[line + px] - (k > 0.0f ? s / k : 0.0f), item.largest);
    values[line + px] = valid_at(masks, item.mask, pixels, (long long)py * columns + px) ? v : 0.0f;
}

/* The largest mean of a region that lies inside of the slice, and by its first corner what of each is too much. */
extern "C" __global__ void regions(const float* total, const float* count, const Item* items, Said* said,
                                   float* excess, int rows, int columns, int side_y, int side_x, int round) {
    int px = PIXEL_X, py = PIXEL_Y, n = blockIdx.z;
    if (px > columns - side_x || py > rows - side_y) return;
    Item item = items[n];
    if (round > 0 && settled(said[n], item, round - 1)) return;
    long long line = ((long long)n * rows + py) * columns;
    float s = 0.0f, k = 0.0f, all = (float)side_y * (float)side_x;
    for (int i = px; i < px + side_x; i++) s += total[line + i];
    if (item.mask < 0) {
        k = all;
    } else {
        for (int i = px; i < px + side_x; i++) k += count[line + i];
    }
    float mean = k < 0.5f * all ? 0.0f : s / k;
    excess[line + px] = mean - clipped(mean, 0.9f * item.tolerance);
    mean = mean < 0.0f ? -mean : mean;
    /* Not negative, so their bits are ordered as they are. Most threads need no atomic. */
    if (mean > said[n].worst[round]) atomicMax((int*)&said[n].worst[round], __float_as_int(mean));
}

/* Down each column of corners: the most and the least excess of the regions that hold a row. */
extern "C" __global__ void spread(const float* excess, const Item* items, const Said* said, float* high, float* low,
                                  int rows, int columns, int side_y, int side_x, int round) {
    int px = PIXEL_X, py = PIXEL_Y, n = blockIdx.z;
    if (px > columns - side_x || py >= rows) return;
    if (settled(said[n], items[n], round)) return;
    const float* e = excess + (long long)n * rows * columns + px;
    float h = 0.0f, l = 0.0f;
    for (int y = most(0, py - side_y + 1); y <= least(py, rows - side_y); y++) {
        float v = e[(long long)y * columns];
        h = v > h ? v : h;
        l = v < l ? v : l;
    }
    long long at = ((long long)n * rows + py) * columns + px;
    high[at] = h;
    low[at] = l;
}

/* Along each row the same, and out of the residual with it; G2 and G4 once more. In place. */
extern "C" __global__ void settle(float* values, const Item* items, const unsigned char* masks, const float* high,
                                  const float* low, const Said* said, int rows, int columns, int side_x, int round) {
    int px = PIXEL_X, py = PIXEL_Y, n = blockIdx.z;
    if (px >= columns || py >= rows) return;
    Item item = items[n];
    if (settled(said[n], item, round)) return;
    long long pixels = (long long)rows * columns, line = n * pixels + (long long)py * columns;
    float h = 0.0f, l = 0.0f;
    for (int x = most(0, px - side_x + 1); x <= least(px, columns - side_x); x++) {
        h = high[line + x] > h ? high[line + x] : h;
        l = low[line + x] < l ? low[line + x] : l;
    }
    float v = clipped(values[line + px] - h - l, item.largest);
    values[line + px] = valid_at(masks, item.mask, pixels, (long long)py * columns + px) ? v : 0.0f;
}
"""


def options(capability: str) -> list[bytes]:
    """Options of NVRTC for a compute capability such as ``"86"``.

    Machine code is made, not PTX: PTX would ask for a driver as new as the compiler. Nothing is contracted,
    so that the bits are those of the same expressions elsewhere.
    """
    return [f"--gpu-architecture=sm_{capability}".encode(), b"--fmad=false", b"--std=c++17"]
