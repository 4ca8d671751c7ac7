/* The update of one weight matrix and its backward, in single passes over blocks of columns; called by native.py.
 *
 * Blocks (see native_math.h) belong to CHUNKS fixed ranges of columns, whatever the number of threads, so that sums
 * over columns always add up in the same order.
 */
#include "native_math.h"

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
    float *sums_a;   /* (heads, w + 1, n): sums over j of ratio [B, 1] */
    float *sums_b;   /* (CHUNKS, heads, rows, w + 1), zero at first: sums over i of ratio [A, 1] */
    double *scalars; /* (CHUNKS, 3), zero at first: sums of P dK, of -alpha P (dK - c) D, of dK */
} Backward;

/* The sum of a row of BLOCK, halves added to halves until one entry is left. */
static inline __attribute__((always_inline)) float row_sum(const float *ratio) {
    float sums[LANES];
    for (int i = 0; i < LANES; i++) sums[i] = ratio[i] + ratio[i + LANES];
    for (int i = 0; i < 8; i++) sums[i] += sums[i + 8];
    for (int i = 0; i < 4; i++) sums[i] += sums[i + 4];
    return (sums[0] + sums[2]) + (sums[1] + sums[3]);
}

/* For ROWS rows: sums_b (ROWS, w + 1) += ratio (ROWS, BLOCK) [a (BLOCK, w), 1]. Each entry is the sum of four, of the
 * columns i, i + 4, ...: so many products are under way at once that none waits for another. */
static inline __attribute__((always_inline)) void add_rows(const long w, const float (*ratio)[MAX_HEADS][BLOCK],
                                                           const float *a, float *sums_b) {
    enum { PAIR = 2 * WIDTH <= LANES ? WIDTH : 0 }; /* a second vector beside the first, where w has room for it */
    const float *r0 = *ratio[0], *r1 = *ratio[1], *r2 = *ratio[2], *r3 = *ratio[3];
    for (long k = 0; k < w; k += WIDTH + PAIR) {
        vec sums[4][ROWS][2];
        for (int first = 0; first < 4; first++) {
            vec low[ROWS] = {{0}}, high[ROWS] = {{0}};
            for (int q = 0; q < ROWS && !first; q++) {
                low[q] = load(sums_b + q * (w + 1) + k);
                high[q] = load(sums_b + q * (w + 1) + k + PAIR);
            }
            for (int i = first; i < BLOCK; i += 4) {
                const vec a_low = load(a + i * w + k), a_high = load(a + i * w + k + PAIR);
                low[0] += r0[i] * a_low, low[1] += r1[i] * a_low, low[2] += r2[i] * a_low, low[3] += r3[i] * a_low;
                if (!PAIR) continue;
                high[0] += r0[i] * a_high, high[1] += r1[i] * a_high;
                high[2] += r2[i] * a_high, high[3] += r3[i] * a_high;
            }
            for (int q = 0; q < ROWS; q++) sums[first][q][0] = low[q], sums[first][q][1] = high[q];
        }
        for (int q = 0; q < ROWS; q++)
            for (int half = 0; half <= (PAIR > 0); half++)
                store(sums_b + q * (w + 1) + k + half * PAIR,
                      (sums[0][q][half] + sums[1][q][half]) + (sums[2][q][half] + sums[3][q][half]));
    }
    for (int q = 0; q < ROWS; q++) sums_b[q * (w + 1) + w] += row_sum(*ratio[q]);
}

/* For ROWS rows: sums_a (w + 1, BLOCK) += [b (ROWS, w), 1] transposed, times ratio. */
static inline __attribute__((always_inline)) void add_columns(const long w, const float (*ratio)[MAX_HEADS][BLOCK],
                                                              const float *b, float *sums_a) {
    for (int i = 0; i < BLOCK; i += WIDTH) {
        const vec r0 = load(*ratio[0] + i), r1 = load(*ratio[1] + i);
        const vec r2 = load(*ratio[2] + i), r3 = load(*ratio[3] + i);
        float *out = sums_a + i;
        for (long k = 0; k < w; k++, out += BLOCK)
            store(out, load(out) + ((r0 * b[k] + r1 * b[w + k]) + (r2 * b[2 * w + k] + r3 * b[3 * w + k])));
        store(out, load(out) + ((r0 + r1) + (r2 + r3)));
    }
}

/* First pass: the adapted weight, and into `scratch` what the second needs, a row at a time: dK, P, D and the
 * distances (3 + heads, BLOCK). Sums P dK down the columns into c. */
static void gate_backward(const Shape *s, const Backward *p, long start, long count, const float *columns,
                          const float *lse, float *scratch, float *c, double *scalars) {
    float distance[ROWS][MAX_HEADS][BLOCK], D[ROWS][BLOCK], P[ROWS][BLOCK], K[ROWS][BLOCK], grad_beta[BLOCK] = {0};
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
                for (int i = 0; i < BLOCK; i++) c[i] += P[q][i] * out[i], grad_beta[i] += out[i];
        }
    }
    for (int i = 0; i < count; i++) scalars[0] += c[i], scalars[2] += grad_beta[i];
}

/* Second pass: dK -> dD -> the factors. */
static void distance_backward(const Shape *s, const Backward *p, long count,
                              const float *scratch, const float *c, const float *a, float *sums_a,
                              float *sums_b, double *scalars) {
    const long w = s->w;
    float ratio[ROWS][MAX_HEADS][BLOCK], grad_gamma[BLOCK] = {0};
    for (long j = 0; j < s->rows; j += ROWS) {
        for (long q = 0; q < ROWS; q++) {
            const float *stored = scratch + (j + q) * (3 + s->heads) * BLOCK;
            const float *P = stored + BLOCK, *D = stored + 2 * BLOCK;
            float dD[BLOCK];
            memcpy(dD, stored, sizeof dD);
            const float inside = j + q < s->m; /* padded rows have D too */
            if (s->mixed)
                for (int i = 0; i < BLOCK; i++) {
                    const float grad_logits = inside * s->alpha * P[i] * (dD[i] - c[i]);
                    grad_gamma[i] += grad_logits * D[i];
                    dD[i] += grad_logits * s->inverse_gamma;
                }
            for (long h = 0; h < s->heads; h++) {
                const float scale = h % 2 ? -s->scale : s->scale;
                const float *d = stored + (3 + h) * BLOCK;
                for (int i = 0; i < BLOCK; i++) ratio[q][h][i] = d[i] == 0 ? 0 : scale * dD[i] / d[i];
            }
        }
        for (long h = 0; h < s->heads; h++) {
            const float(*r)[MAX_HEADS][BLOCK] = (const float(*)[MAX_HEADS][BLOCK]) & ratio[0][h];
            const float *b = p->B + (h * s->rows + j) * w;
            float *rows_b = sums_b + (h * s->rows + j) * (w + 1);
            if (w == LANES) {
                add_rows(LANES, r, a + h * BLOCK * w, rows_b);
                add_columns(LANES, r, b, sums_a + h * (w + 1) * BLOCK);
            } else {
                add_rows(w, r, a + h * BLOCK * w, rows_b);
                add_columns(w, r, b, sums_a + h * (w + 1) * BLOCK);
            }
        }
    }
    for (int i = 0; i < count; i++) scalars[1] -= grad_gamma[i];
}

/* Gradients of the update given G, that of the adapted weight. Returns 1 where memory ran out, else 0. */
int snella_backward(const Shape *s, const Backward *p, int threads) {
    const long blocks = (s->n + BLOCK - 1) / BLOCK, w = s->w;
    int failed = 0;
#pragma omp parallel num_threads(threads)
    {
        float *columns = malloc(sizeof(float) * s->heads * (w + 2) * BLOCK);
        float *a = malloc(sizeof(float) * s->heads * BLOCK * w);
        float *sums_a = malloc(sizeof(float) * s->heads * (w + 1) * BLOCK);
        float *scratch = malloc(sizeof(float) * s->rows * (3 + s->heads) * BLOCK);
        if (!columns || !a || !sums_a || !scratch) failed = 1;
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
                memset(sums_a, 0, sizeof(float) * s->heads * (w + 1) * BLOCK);
                gate_backward(s, p, start, count, columns, lse, scratch, c, scalars);
                distance_backward(s, p, count, scratch, c, a, sums_a,
                                  p->sums_b + chunk * s->heads * s->rows * (w + 1), scalars);
                for (long k = 0; k < s->heads * (w + 1); k++)
                    copy(p->sums_a + k * s->n + start, sums_a + k * BLOCK, count);
            }
        free(columns);
        free(a);
        free(sums_a);
        free(scratch);
    }
    return failed;
}
