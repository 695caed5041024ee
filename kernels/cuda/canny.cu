// Canny's edges, to the pixel as the CPU has them, by kornia's rules in float or by OpenCV's in whole numbers.
//
// A comparison of neighbours turns on the last bit, so each product is fused with a sum, or is not, as on the CPU.
// Weak pixels that touch a strong one through others are found by joining touching pixels into sets, in one launch
// whatever the way is: the sets do not depend on the order in which they are joined.
//
// Pictures are `width * height` pixels, row by row; a thread has one. Bytes a pixel in all: 12 of the picture, some 60
// of what lies between the launches, 1 of the edges.
//
// compile:

enum { NONE = 0, WEAK = 1, STRONG = 2 };

struct Pixel {
    int x, y;
    u32 at;
    bool inside;
    __device__ __forceinline__ Pixel(int width, int height) {
        at = blockIdx.x * blockDim.x + threadIdx.x;
        x = (int)(at % (u32)width);
        y = (int)(at / (u32)width);
        inside = y < height;
    }
};

// The index that lies at i when the border mirrors, the outermost pixel itself not repeated.
__device__ __forceinline__ int mirrored(int i, int length) {
    int period = max(2 * length - 2, 1);
    i = (i % period + period) % period;
    return min(i, period - i) % length;
}

// Kornia's grey of red, green and blue. Reads rgb, writes grey.
KERNEL(256) grey_of_floats(const float *rgb, float *grey, int width, int height) {
    Pixel p(width, height);
    if (!p.inside) return;
    const float *from = rgb + 3 * (u64)p.at;
    grey[p.at] = fmaf(from[2], 0.114f, fmaf(from[1], 0.587f, __fmul_rn(from[0], 0.299f)));
}

// A Gaussian of five taps along x, or along y if `down` is set. Reads from, writes to.
KERNEL(256) blur(const float *from, float *to, int width, int height, int down) {
    Pixel p(width, height);
    if (!p.inside) return;
    const float gaussian[5] = {0.05448869f, 0.24420136f, 0.40261996f, 0.24420136f, 0.05448869f};
    float sum = 0;
#pragma unroll
    for (int tap = 0; tap < 5; tap++) {
        int x = down ? p.x : mirrored(p.x + tap - 2, width), y = down ? mirrored(p.y + tap - 2, height) : p.y;
        sum = fmaf(from[(u64)y * width + x], gaussian[tap], sum);
    }
    to[p.at] = sum;
}

// The gradient's magnitude, and its direction in eighths of a turn from the right by way of down. Reads grey.
KERNEL(256) gradients_of_floats(const float *grey, float *magnitude, u8 *direction, int width, int height) {
    Pixel p(width, height);
    if (!p.inside) return;
    int left = max(p.x - 1, 0), right = min(p.x + 1, width - 1);
    const float *above = grey + (u64)max(p.y - 1, 0) * width, *row = grey + (u64)p.y * width;
    const float *below = grey + (u64)min(p.y + 1, height - 1) * width;
    // Twice a number is exact, so that fusing it with the sum changes nothing.
    float gx = -above[left] + above[right] - 2.0f * row[left] + 2.0f * row[right] - below[left] + below[right];
    float gy = -above[left] - 2.0f * above[p.x] - above[right] + below[left] + 2.0f * below[p.x] + below[right];
    magnitude[p.at] = sqrtf(__fadd_rn(__fadd_rn(__fmul_rn(gx, gx), __fmul_rn(gy, gy)), 1e-6f));
    float angle = (float)atan2((double)gy, (double)gx); // the nearest float, as the CPU's is but for the rarest
    float eighths = rintf(__fmul_rn(angle, 1.2732395447351628f));
    direction[p.at] = eighths == eighths ? (u8)(((int)eighths + 8) % 8) : (u8)0;
}

// Which pixels are ridges, and how strong. Reads magnitude and direction; writes strength, and in `set` each pixel's
// own index.
KERNEL(256) ridges_of_floats(const float *magnitude, const u8 *direction, u8 *strength, u32 *set, int width, int height,
                             float low, float high) {
    Pixel p(width, height);
    if (!p.inside) return;
    const int across[8] = {1, 1, 0, -1, -1, -1, 0, 1}, down[8] = {0, 1, 1, 1, 0, -1, -1, -1};
    float flat = sqrtf(1e-6f), here = magnitude[p.at]; // beyond the border there is no gradient
    bool ridge = here > flat;
#pragma unroll
    for (int side = 0; side < 2; side++) {
        int towards = (direction[p.at] + 4 * side) % 8, x = p.x, y = p.y;
#pragma unroll
        for (int i = 0; i < 8; i++) {
            if (i == towards) { x += across[i]; y += down[i]; }
        }
        bool outside = x < 0 || y < 0 || x >= width || y >= height;
        float there = outside ? flat : magnitude[(u64)y * width + x];
        // Of two equal pixels across an edge the left or the upper one is kept.
        ridge = ridge && (here > there || (here == there && (towards == 0 || towards == 2)));
    }
    strength[p.at] = !ridge ? NONE : here > high ? STRONG : here > low ? WEAK : NONE;
    set[p.at] = p.at;
}

// OpenCV's grey of the nearest bytes. Reads rgb, writes grey.
KERNEL(256) grey_of_bytes(const float *rgb, u8 *grey, int width, int height) {
    Pixel p(width, height);
    if (!p.inside) return;
    const float *from = rgb + 3 * (u64)p.at;
    const u32 weights[3] = {9798, 19235, 3735};
    u32 sum = 1 << 14;
#pragma unroll
    for (int c = 0; c < 3; c++) sum += weights[c] * (u32)fminf(fmaxf(roundf(__fmul_rn(from[c], 255.0f)), 0.0f), 255.0f);
    grey[p.at] = (u8)(sum >> 15);
}

// Sobel's derivatives, 16 bits each, and their size. Reads grey, writes both.
KERNEL(256) gradients_of_bytes(const u8 *grey, u32 *gradient, int *size, int width, int height, int euclidean) {
    Pixel p(width, height);
    if (!p.inside) return;
    int left = max(p.x - 1, 0), right = min(p.x + 1, width - 1);
    const u8 *above = grey + (u64)max(p.y - 1, 0) * width, *row = grey + (u64)p.y * width;
    const u8 *below = grey + (u64)min(p.y + 1, height - 1) * width;
    int gx = (above[right] + 2 * row[right] + below[right]) - (above[left] + 2 * row[left] + below[left]);
    int gy = (below[left] + 2 * below[p.x] + below[right]) - (above[left] + 2 * above[p.x] + above[right]);
    gradient[p.at] = ((u32)gx & 0xffff) | ((u32)gy << 16);
    size[p.at] = euclidean ? gx * gx + gy * gy : (gx < 0 ? -gx : gx) + (gy < 0 ? -gy : gy);
}

// As `ridges_of_floats`.
KERNEL(256) ridges_of_bytes(const u32 *gradient, const int *size, u8 *strength, u32 *set, int width, int height, int low,
                            int high) {
    Pixel p(width, height);
    if (!p.inside) return;
    int gx = (short)(gradient[p.at] & 0xffff), gy = (short)(gradient[p.at] >> 16), here = size[p.at];
    // Compared with the tangents of 22.5 and 67.5 degrees in 1/32768.
    i64 wide = gx < 0 ? -gx : gx, tall = (i64)(gy < 0 ? -gy : gy) << 15;
    i64 shallow = wide * 13573, steep = shallow + (wide << 16);
    // Where the first of the two neighbours lies; the other is opposite.
    int dx = -1, dy = 0;
    bool diagonal = false;
    if (tall >= shallow) {
        if (tall > steep) { dx = 0; dy = -1; }
        else { diagonal = true; dx = (gx ^ gy) < 0 ? 1 : -1; dy = -1; }
    }
    int sizes[2];
#pragma unroll
    for (int side = 0; side < 2; side++) {
        int x = side ? p.x - dx : p.x + dx, y = side ? p.y - dy : p.y + dy;
        bool outside = x < 0 || y < 0 || x >= width || y >= height;
        sizes[side] = outside ? 0 : size[(u64)y * width + x];
    }
    // Ties go to the left or upper pixel; on diagonals both neighbours must be weaker.
    bool ridge = here > low && here > sizes[0] && (diagonal ? here > sizes[1] : here >= sizes[1]);
    strength[p.at] = !ridge ? NONE : here > high ? STRONG : WEAK;
    set[p.at] = p.at;
}

// The pixel that stands for the set of another. Others may be joining sets meanwhile, hence volatile.
__device__ __forceinline__ u32 first_of(const u32 *set, u32 at) {
    const volatile u32 *sets = set;
    for (u32 next = sets[at]; next != at; next = sets[at]) at = next;
    return at;
}

// Joins each pixel of some strength with those before it that it touches. Reads strength, reads and writes set.
KERNEL(256) join(const u8 *strength, u32 *set, int width, int height) {
    Pixel p(width, height);
    if (!p.inside || strength[p.at] == NONE) return;
    for (int side = 0; side < 4; side++) {
        int x = side == 3 ? p.x - 1 : p.x + side - 1, y = side == 3 ? p.y : p.y - 1;
        if (x < 0 || y < 0 || x >= width) continue;
        u32 other = (u32)y * (u32)width + (u32)x;
        if (strength[other] == NONE) continue;
        u32 a = first_of(set, p.at), b = first_of(set, other);
        while (a != b) {
            u32 low = min(a, b), high = max(a, b);
            // What stood for the higher set may stand for it no longer: then both it and the lower are to be joined.
            u32 before = atomicMin(set + high, low);
            if (before == high) break;
            a = first_of(set, before);
            b = first_of(set, low);
        }
    }
}

// Makes what stands for a set strong if one of it is. Reads set, reads and writes strength.
KERNEL(256) mark(u8 *strength, const u32 *set, int width, int height) {
    Pixel p(width, height);
    if (!p.inside || strength[p.at] != STRONG) return;
    strength[first_of(set, p.at)] = STRONG;
}

// 1 where a pixel of some strength is of a strong set, else 0. Reads strength and set, writes edge.
KERNEL(256) edges(const u8 *strength, const u32 *set, u8 *edge, int width, int height) {
    Pixel p(width, height);
    if (!p.inside) return;
    edge[p.at] = strength[p.at] != NONE && strength[first_of(set, p.at)] == STRONG;
}
