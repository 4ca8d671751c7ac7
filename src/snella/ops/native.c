/* The update of one weight matrix and its backward, in single passes over blocks of columns; called by native.py.
 *
 * A block is BLOCK columns (inputs i) by all m rows (outputs j): the softmax runs down a column, so a block needs
 * nothing from its neighbours, its scratch stays in the cache, and vectors run along i. Blocks belong to CHUNKS fixed
 * ranges of columns, whatever the number of threads, so that sums over columns always add up in the same order.
 *
 * Factors come padded with zeros: w to a multiple of LANES, m to `rows`, a multiple of ROWS. Squared distances are
 * products, summed in the order of torch.cdist:
 *     left (heads, rows, w + 2) = [-2 B, |B|^2, 1]        right (heads, w + 2, n) = [A, 1, |A|^2], transposed
 */
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

/* Vectors by name where sums have to stay in registers: compilers keep an array of sums in memory. */
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
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
        const float *l = left + h * s->rows * terms, *r = columns + h * terms * BLOCK;
        vec low[ROWS] = {{0}}, high[ROWS] = {{0}};
        for (long k = 0; k < terms; k++, r += BLOCK) {
            const vec r_low = load(r), r_high = load(r + LANES);
            low[0] += l[k] * r_low, high[0] += l[k] * r_high;
            low[1] += l[terms + k] * r_low, high[1] += l[terms + k] * r_high;
            low[2] += l[2 * terms + k] * r_low, high[2] += l[2 * terms + k] * r_high;
            low[3] += l[3 * terms + k] * r_low, high[3] += l[3 * terms + k] * r_high;
        }
        for (int q = 0; q < ROWS; q++) {
            float *d = distance[q][h];
            store(d, low[q]);
            store(d + LANES, high[q]);
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

/* What K is multiplied by, for `count` entries; a constant for the gradient. */
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

static void kernel_block(const Shape *s, const float *left, const float *right, long start, float *columns,
                         float (*scratch)[BLOCK], float *out, float *out_lse) {
    const long count = least(s->n - start, BLOCK);
    float distance[ROWS][MAX_HEADS][BLOCK], P[ROWS][BLOCK], K[ROWS][BLOCK], lse[BLOCK], sum[BLOCK] = {0};
    load_columns(s, right, start, count, columns);
    for (int i = 0; i < BLOCK; i++) lse[i] = -INFINITY;
    for (long j = 0; j < s->rows; j += ROWS) {
        distances(s, left + j * (s->w + 2), columns, distance, scratch + j);
        for (long q = j; q < least(j + ROWS, s->m); q++)
            for (int i = 0; i < BLOCK; i++) {
                const float logit = scratch[q][i] * s->inverse_gamma;
                lse[i] = logit > lse[i] ? logit : lse[i];
            }
    }
    if (s->mixed) {
        for (long j = 0; j < s->m; j++)
            for (int i = 0; i < BLOCK; i++) sum[i] += exp_(scratch[j][i] * s->inverse_gamma - lse[i]);
        for (int i = 0; i < BLOCK; i++) lse[i] += logf(sum[i]);
        copy(out_lse + start, lse, count);
    }
    for (long j = 0; j < s->rows; j += ROWS) {
        if (s->mixed) mix(s, scratch + j, lse, P, K);
        for (long q = j; q < least(j + ROWS, s->m); q++)
            copy(out + q * s->n + start, s->mixed ? K[q - j] : scratch[q], count);
    }
}

/* K (m, n) and, for mixk, the log-sum-exp (n) of D / gamma down each column. Returns 1 where memory ran out, else 0. */
int snella_kernel(const Shape *s, const float *left, const float *right, float *K, float *lse, int threads) {
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        float *columns = malloc(sizeof(float) * s->heads * (s->w + 2) * BLOCK);
        float *scratch = malloc(sizeof(float) * s->rows * BLOCK); /* D */
        if (!columns || !scratch) failed = 1;
#pragma omp barrier
#pragma omp for schedule(static)
        for (long start = 0; start < s->n; start += BLOCK)
            if (!failed) kernel_block(s, left, right, start, columns, (float(*)[BLOCK])scratch, K, lse);
        free(columns);
        free(scratch);
    }
    return failed;
}

/* out (size) = weight + update, or the update alone where weight is NULL. out may be K. */
void snella_add_gated(const float *weight, const float *K, float t, int gate, float *out, long size, int threads) {
    enum { STRETCH = 4096 };
#pragma omp parallel for schedule(static) num_threads(threads)
    for (long start = 0; start < size; start += STRETCH) {
        const long count = least(size - start, STRETCH);
        float f[STRETCH];
        factors(K + start, t, gate, f, count);
        if (weight)
            for (long i = 0; i < count; i++) out[start + i] = weight[start + i] + K[start + i] * f[i];
        else
            for (long i = 0; i < count; i++) out[start + i] = K[start + i] * f[i];
    }
}

/* Counts the magnitudes of K (size) that are at most `low`, and writes those strictly between `low` and `high` to
 * `inside`, in any order. Returns how many those are; beyond `capacity` they are only counted. */
long snella_between(const float *K, long size, float low, float high, float *inside, long capacity, long *below,
                    int threads) {
    enum { STRETCH = 4096 };
    long found = 0, at_most = 0;
#pragma omp parallel for schedule(static) num_threads(threads) reduction(+ : at_most)
    for (long start = 0; start < size; start += STRETCH) {
        const long count = least(size - start, STRETCH);
        float taken[STRETCH + 1];
        long kept = 0, place;
        int lower = 0;
        for (long i = start; i < start + count; i++) lower += fabsf(K[i]) <= low;
        for (long i = start; i < start + count; i++) {
            const float magnitude = fabsf(K[i]);
            taken[kept] = magnitude;
            kept += (magnitude > low) & (magnitude < high);
        }
        at_most += lower;
#pragma omp atomic capture
        {
            place = found;
            found += kept;
        }
        if (place + kept <= capacity) memcpy(inside + place, taken, sizeof(float) * kept);
    }
    *below = at_most;
    return found;
}

typedef struct {
    const float *left, *right; /* as above */
    const float *A, *B;        /* (heads, n, w), (heads, rows, w) */
    const float *G, *weight;   /* (m, n); weight may be NULL */
    const float *lse;          /* (n) */
    float t;
    int gate;
    float *adapted;  /* (m, n) weight + update, or NULL */
    float *to_a;     /* (heads, w + 1, n): sums over j of ratio [B, 1] */
    float *to_b;     /* (CHUNKS, heads, rows, w + 1), zero at first: sums over i of ratio [A, 1] */
    double *scalars; /* (CHUNKS, 3), zero at first: sums of P dK, of -alpha P (dK - c) D, of dK */
} Backward;

/* For one row j: to_b (w + 1) += ratio (BLOCK) [a (BLOCK, w), 1]. */
static inline __attribute__((always_inline)) void add_row(const long w, const float *ratio, const float *a,
                                                          float *to_b) {
    for (long k = 0; k < w; k += LANES) {
        vec s0 = load(to_b + k), s1 = {0}, s2 = {0}, s3 = {0};
        for (long i = 0; i < BLOCK; i += 4) {
            s0 += ratio[i] * load(a + i * w + k);
            s1 += ratio[i + 1] * load(a + (i + 1) * w + k);
            s2 += ratio[i + 2] * load(a + (i + 2) * w + k);
            s3 += ratio[i + 3] * load(a + (i + 3) * w + k);
        }
        store(to_b + k, (s0 + s1) + (s2 + s3));
    }
    float sums[LANES];
    store(sums, load(ratio) + load(ratio + LANES));
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) sums[i] += sums[i + half];
    to_b[w] += sums[0];
}

/* For ROWS rows: to_a (w + 1, BLOCK) += [b (ROWS, w), 1] transposed, times ratio. */
static inline __attribute__((always_inline)) void add_columns(const long w, const float (*ratio)[MAX_HEADS][BLOCK],
                                                              const float *b, float *to_a) {
    for (int i = 0; i < BLOCK; i += LANES) {
        const vec r0 = load(*ratio[0] + i), r1 = load(*ratio[1] + i), r2 = load(*ratio[2] + i), r3 = load(*ratio[3] + i);
        float *out = to_a + i;
        for (long k = 0; k < w; k++, out += BLOCK)
            store(out, load(out) + ((r0 * b[k] + r1 * b[w + k]) + (r2 * b[2 * w + k] + r3 * b[3 * w + k])));
        store(out, load(out) + ((r0 + r1) + (r2 + r3)));
    }
}

/* First pass: the adapted weight, and into `scratch` what the second needs, a row at a time: dK, P, D and the
 * distances (3 + heads, BLOCK). Sums P dK down the columns into c. */
static void gate_backward(const Shape *s, const Backward *p, long start, long count, const float *columns,
                          const float *lse, float *scratch, float *c, double *scalars) {
    float distance[ROWS][MAX_HEADS][BLOCK], D[ROWS][BLOCK], P[ROWS][BLOCK], K[ROWS][BLOCK], of_beta[BLOCK] = {0};
    for (long j = 0; j < s->rows; j += ROWS) {
        distances(s, p->left + j * (s->w + 2), columns, distance, D);
        if (s->mixed) mix(s, D, lse, P, K);
        for (long q = 0; q < ROWS; q++) {
            prefetch(p->G, j + q + AHEAD, s->m, s->n, start, 0);
            prefetch(p->adapted ? p->weight : NULL, j + q + AHEAD, s->m, s->n, start, 0);
            prefetch(p->adapted, j + q + AHEAD, s->m, s->n, start, 1);
            const float *value = s->mixed ? K[q] : D[q];
            float *out = scratch + (j + q) * (3 + s->heads) * BLOCK, f[BLOCK], W[BLOCK] = {0};
            memset(out, 0, sizeof(float) * BLOCK);
            memcpy(out + BLOCK, P[q], sizeof(float) * BLOCK);
            memcpy(out + 2 * BLOCK, D[q], sizeof(float) * BLOCK);
            memcpy(out + 3 * BLOCK, distance[q], sizeof(float) * BLOCK * s->heads);
            if (j + q >= s->m) continue;
            factors(value, p->t, p->gate, f, BLOCK);
            if (p->adapted) {
                if (p->weight) copy(W, p->weight + (j + q) * s->n + start, count);
                for (int i = 0; i < BLOCK; i++) W[i] += value[i] * f[i];
                copy(p->adapted + (j + q) * s->n + start, W, count);
            }
            copy(out, p->G + (j + q) * s->n + start, count);
            for (int i = 0; i < BLOCK; i++) out[i] *= f[i];
            if (s->mixed)
                for (int i = 0; i < BLOCK; i++) c[i] += P[q][i] * out[i], of_beta[i] += out[i];
        }
    }
    for (int i = 0; i < count; i++) scalars[0] += c[i], scalars[2] += of_beta[i];
}

/* Second pass: dK -> dD -> the factors. */
static void distance_backward(const Shape *s, const Backward *p, long count,
                              const float *scratch, const float *c, const float *a, float *to_a,
                              float *to_b, double *scalars) {
    const long w = s->w;
    float ratio[ROWS][MAX_HEADS][BLOCK], of_gamma[BLOCK] = {0};
    for (long j = 0; j < s->rows; j += ROWS) {
        for (long q = 0; q < ROWS; q++) {
            const float *stored = scratch + (j + q) * (3 + s->heads) * BLOCK;
            const float *P = stored + BLOCK, *D = stored + 2 * BLOCK;
            float dD[BLOCK];
            memcpy(dD, stored, sizeof dD);
            const float inside = j + q < s->m; /* padded rows have D too */
            if (s->mixed)
                for (int i = 0; i < BLOCK; i++) {
                    const float of_softmax = inside * s->alpha * P[i] * (dD[i] - c[i]);
                    of_gamma[i] += of_softmax * D[i];
                    dD[i] += of_softmax * s->inverse_gamma;
                }
            for (long h = 0; h < s->heads; h++) {
                const float scale = h % 2 ? -s->scale : s->scale;
                const float *d = stored + (3 + h) * BLOCK;
                for (int i = 0; i < BLOCK; i++) ratio[q][h][i] = d[i] == 0 ? 0 : scale * dD[i] / d[i];
                float *row_b = to_b + (h * s->rows + j + q) * (w + 1);
                if (w == LANES)
                    add_row(LANES, ratio[q][h], a + h * BLOCK * w, row_b);
                else
                    add_row(w, ratio[q][h], a + h * BLOCK * w, row_b);
            }
        }
        for (long h = 0; h < s->heads; h++) {
            const float(*r)[MAX_HEADS][BLOCK] = (const float(*)[MAX_HEADS][BLOCK]) & ratio[0][h];
            const float *b = p->B + (h * s->rows + j) * w;
            if (w == LANES)
                add_columns(LANES, r, b, to_a + h * (w + 1) * BLOCK);
            else
                add_columns(w, r, b, to_a + h * (w + 1) * BLOCK);
        }
    }
    for (int i = 0; i < count; i++) scalars[1] -= of_gamma[i];
}

/* Gradients of the update given G, that of the adapted weight. Returns 1 where memory ran out, else 0. */
int snella_backward(const Shape *s, const Backward *p, int threads) {
    const long blocks = (s->n + BLOCK - 1) / BLOCK, w = s->w;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        float *columns = malloc(sizeof(float) * s->heads * (w + 2) * BLOCK);
        float *a = malloc(sizeof(float) * s->heads * BLOCK * w);
        float *to_a = malloc(sizeof(float) * s->heads * (w + 1) * BLOCK);
        float *scratch = malloc(sizeof(float) * s->rows * (3 + s->heads) * BLOCK);
        if (!columns || !a || !to_a || !scratch) failed = 1;
#pragma omp barrier
#pragma omp for schedule(static)
        for (long chunk = 0; chunk < CHUNKS; chunk++)
            for (long b = blocks * chunk / CHUNKS; b < blocks * (chunk + 1) / CHUNKS && !failed; b++) {
                const long start = b * BLOCK, count = least(s->n - start, BLOCK);
                float lse[BLOCK] = {0}, c[BLOCK] = {0};
                double *scalars = p->scalars + 3 * chunk;
                load_columns(s, p->right, start, count, columns);
                if (s->mixed) copy(lse, p->lse + start, count);
                memset(a, 0, sizeof(float) * s->heads * BLOCK * w);
                for (long h = 0; h < s->heads; h++)
                    memcpy(a + h * BLOCK * w, p->A + (h * s->n + start) * w, sizeof(float) * count * w);
                memset(to_a, 0, sizeof(float) * s->heads * (w + 1) * BLOCK);
                gate_backward(s, p, start, count, columns, lse, scratch, c, scalars);
                distance_backward(s, p, count, scratch, c, a, to_a,
                                  p->to_b + chunk * s->heads * s->rows * (w + 1), scalars);
                for (long k = 0; k < s->heads * (w + 1); k++) copy(p->to_a + k * s->n + start, to_a + k * BLOCK, count);
            }
        free(columns);
        free(a);
        free(to_a);
        free(scratch);
    }
    return failed;
}
