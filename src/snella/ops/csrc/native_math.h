/* The types of native.c, and the arithmetic of a block that its passes share.
 *
 * A block is BLOCK columns (inputs i) by all m rows (outputs j): the softmax runs down a column, so a block needs
 * nothing from its neighbours, its scratch stays in the cache, and vectors run along i.
 *
 * Factors come padded with zeros: w to a multiple of LANES, m to `rows`, a multiple of ROWS. Squared distances are
 * products, summed in the order of torch.cdist:
 *     left (heads, rows, w + 2) = [-2 B, |B|^2, 1]        right (heads, w + 2, n) = [A, 1, |A|^2], transposed
 */
#ifndef SNELLA_NATIVE_MATH_H
#define SNELLA_NATIVE_MATH_H

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define BLOCK (2 * LANES)
#define ROWS 4
#define CHUNKS 8
#define AHEAD 8
#define MAX_HEADS 16

typedef struct {
    long m, rows, n, w, heads;
    float scale, alpha, inverse_gamma, beta;
    int mixed; /* mixk; else pwl */
} Shape;

enum { NONE, HARD, PUBLISHED, SOFT };

/* Vectors by name where sums have to stay in registers: compilers keep an array of sums in memory, and take vectors
 * wider than the machine's to pieces there, ten times slower. How wide they are changes no sum's order. */
#if defined(__AVX512F__)
#define WIDTH 16
#elif defined(__AVX__)
#define WIDTH 8
#else
#define WIDTH 4
#endif
typedef float vec __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
static inline vec load(const float *p) { return *(const vec *)p; }
static inline void store(float *p, vec v) { *(vec *)p = v; }

/* exp by 2^k p(r), with the coefficients of Cephes, to 2e-7; libm's is not vectorised. */
static inline float exp_(float x) {
    x = x > 88.0f ? 88.0f : x;
    x = x < -87.0f ? -87.0f : x;
    const float shifted = x * 1.44269504f + 12582912.0f; /* 1.5 * 2^23: rounds to a whole number */
    const float k = shifted - 12582912.0f;
    const float r = (x - k * 0.693359375f) + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    unsigned bits; /* of a NaN any are right: p is NaN, or x was and K is */
    memcpy(&bits, &p, 4);
    bits += (unsigned)(int)k << 23;
    memcpy(&p, &bits, 4);
    return p;
}

/* Distances and D of ROWS rows. This and `mix` are never inlined: forward and backward have to agree to the bit, or
 * an entry at the threshold could change sides. */
__attribute__((noinline)) static void distances(const Shape *s, const float *left, const float *columns,
                                                float (*restrict distance)[MAX_HEADS][BLOCK],
                                                float (*restrict D)[BLOCK]) {
    const long terms = s->w + 2;
    for (long h = 0; h < s->heads; h++) {
        const float *l = left + h * s->rows * terms;
        for (int part = 0; part < BLOCK; part += 2 * WIDTH) {
            const float *r = columns + h * terms * BLOCK + part;
            vec low[ROWS] = {{0}}, high[ROWS] = {{0}};
            for (long k = 0; k < terms; k++, r += BLOCK) {
                const vec r_low = load(r), r_high = load(r + WIDTH);
                low[0] += l[k] * r_low, high[0] += l[k] * r_high;
                low[1] += l[terms + k] * r_low, high[1] += l[terms + k] * r_high;
                low[2] += l[2 * terms + k] * r_low, high[2] += l[2 * terms + k] * r_high;
                low[3] += l[3 * terms + k] * r_low, high[3] += l[3 * terms + k] * r_high;
            }
            for (int q = 0; q < ROWS; q++) {
                store(distance[q][h] + part, low[q]);
                store(distance[q][h] + part + WIDTH, high[q]);
            }
        }
        for (int q = 0; q < ROWS; q++) {
            float *d = distance[q][h];
            for (int i = 0; i < BLOCK; i++) d[i] = sqrtf(d[i] < 0 ? 0 : d[i]); /* NaN stays */
            if (h == 0)
                for (int i = 0; i < BLOCK; i++) D[q][i] = s->scale * d[i];
            else if (h % 2)
                for (int i = 0; i < BLOCK; i++) D[q][i] -= s->scale * d[i];
            else
                for (int i = 0; i < BLOCK; i++) D[q][i] += s->scale * d[i];
        }
    }
}

/* P, the softmax down the columns, and K of ROWS rows. */
__attribute__((noinline)) static void mix(const Shape *s, const float (*D)[BLOCK], const float *lse,
                                          float (*restrict P)[BLOCK], float (*restrict K)[BLOCK]) {
    for (int q = 0; q < ROWS; q++)
        for (int i = 0; i < BLOCK; i++) {
            P[q][i] = exp_(D[q][i] * s->inverse_gamma - lse[i]);
            K[q][i] = (D[q][i] + s->alpha * P[q][i]) + s->beta;
        }
}

/* Sets out to what the gate multiplies K by, for `count` entries; a constant for the gradient. */
static inline void factors(const float *K, float t, int gate, float *restrict out, long count) {
    switch (gate) {
    case NONE:
        for (long i = 0; i < count; i++) out[i] = 1;
        break;
    case HARD:
        for (long i = 0; i < count; i++) out[i] = fabsf(K[i]) > t ? 1 : 0;
        break;
    case PUBLISHED:
        for (long i = 0; i < count; i++) out[i] = fabsf(K[i]) > t ? fabsf(K[i]) : 0;
        break;
    default:
        for (long i = 0; i < count; i++) out[i] = fabsf(K[i]) > t ? fabsf(K[i]) - t : 0;
    }
}

/* A row of a block, which at the last columns has fewer than BLOCK entries. */
static inline void copy(float *to, const float *from, long count) {
    if (count == BLOCK)
        memcpy(to, from, sizeof(float) * BLOCK);
    else
        memcpy(to, from, sizeof(float) * count);
}

static void load_columns(const Shape *s, const float *right, long start, long count, float *columns) {
    for (long k = 0; k < s->heads * (s->w + 2); k++) {
        memset(columns + k * BLOCK, 0, sizeof(float) * BLOCK);
        copy(columns + k * BLOCK, right + k * s->n + start, count);
    }
}

/* Rows of a block lie a matrix row apart, which the processor does not foresee. */
static inline void prefetch(const float *matrix, long row, long rows, long n, long start, int write) {
    if (!matrix || row >= rows) return;
    const float *p = matrix + row * n + start;
    if (write)
        __builtin_prefetch(p, 1), __builtin_prefetch(p + LANES, 1);
    else
        __builtin_prefetch(p, 0), __builtin_prefetch(p + LANES, 0);
}

static inline long least(long a, long b) { return a < b ? a : b; }

#endif
