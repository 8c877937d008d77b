// The part of a compiled policy that is the same for all networks; a generated part with the constants and weights
// comes before it. No global state, no allocation. Without -ffast-math: NaN must stay visible to the guard.

static inline double clip(double x, double low, double high) { return x < low ? low : x > high ? high : x; }

// tanh to about 1e-12, without branches, so that loops over it vectorise: 1 - 2 / (exp(2x) + 1).
static inline double fast_tanh(double x) {
    const double shift = 0x1.8p52;  // adding it rounds to an integer, held in the low bits
    const double z = 2 * clip(x, -19.0, 19.0);
    const double k = z * 0x1.71547652b82fep0 + shift;
    const double r = z - (k - shift) * 0x1.62e42fefa39efp-1;
    double p = 1.0 / 3628800;
    p = p * r + 1.0 / 362880;
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1;
    p = p * r + 1;
    union { double number; uint64_t bits; } rounded = {k}, power;
    power.bits = (rounded.bits + 1023) << 52;
    return 1 - 2 / (p * power.number + 1);
}

static inline void activate(double *y, int count) {
    for (int i = 0; i < count; i++)
        y[i] = RELU ? (y[i] < 0 ? 0 : y[i]) : fast_tanh(y[i]);
}

// y = w x + b with w stored (in, out): lanes run over outputs, so no sum is reordered. `out` is a multiple of BLOCK.
static inline void dense(const double *x, const float *w, const float *b, double *y, int in, int out) {
    for (int j = 0; j < out; j += BLOCK) {
        double sum[BLOCK];
        for (int k = 0; k < BLOCK; k++) sum[k] = b[j + k];
        for (int i = 0; i < in; i++)
            for (int k = 0; k < BLOCK; k++) sum[k] += x[i] * w[i * out + j + k];
        for (int k = 0; k < BLOCK; k++) y[j + k] = sum[k];
    }
}

// NaN to 0, then into the declared range.
static inline void sanitise(float *row, const float *low, const float *high, int count) {
    for (int c = 0; c < count; c++) {
        const float v = row[c] != row[c] ? 0.0f : row[c];
        row[c] = v < low[c] ? low[c] : v > high[c] ? high[c] : v;
    }
}

// Sanitises telemetry in place and writes the observation: globals, means, maxima (and every group, where asked).
// Rows are taken LANES wide, a column more than they have: the last lane is the next row's first number, which its
// wide-open range leaves as it is. So `groups` has room for one number more.
static void observe(float *groups, float *globals, long n, double *x) {
    double sum[LANES] = {0};
    float top[LANES];
    for (int c = 0; c < LANES; c++) top[c] = group_low[c];
    sanitise(globals, global_low, global_high, GLOBAL_FEATURES);
    for (int c = 0; c < GLOBAL_FEATURES; c++) x[c] = globals[c];
    for (long g = 0; g < n; g++) {
        float *row = groups + g * GROUP_FEATURES;
        sanitise(row, group_low, group_high, LANES);
        for (int c = 0; c < LANES; c++) {
            sum[c] += row[c];
            top[c] = row[c] > top[c] ? row[c] : top[c];
        }
    }
    x += GLOBAL_FEATURES;
    for (int c = 0; c < GROUP_FEATURES; c++) {
        x[c] = (float)(sum[c] / n);
        x[GROUP_FEATURES + c] = top[c];
    }
    x += 2 * GROUP_FEATURES;
    for (long i = 0; EVERY_GROUP && i < n * GROUP_FEATURES; i++) x[i] = groups[i];
}

// The network's outputs (at least OUTPUTS long, padded to a multiple of BLOCK).
static void evaluate(float *groups, float *globals, long n, double *outputs) {
    _Alignas(64) double x[OBSERVATION];
    observe(groups, globals, n, x);
    for (int i = 0; i < OBSERVATION; i++)
        x[i] = clip((x[i] - mean[i]) * inverse_std[i], -OBSERVATION_CLIP, OBSERVATION_CLIP);
    forward(x, outputs);
}

void pikv_outputs(float *groups, float *globals, long n, double *outputs) {
    _Alignas(64) double padded[PADDED_OUTPUTS];
    evaluate(groups, globals, n, padded);
    for (int i = 0; i < OUTPUTS; i++) outputs[i] = padded[i];
}

#if COEF
// The coef view: a group's value is tanh(gain * w . basis), then ranges; the rest is affine in the actions.
void pikv_decide(float *groups, float *globals, long n, float *out_groups, float *out_globals) {
    _Alignas(64) double a[PADDED_OUTPUTS];
    evaluate(groups, globals, n, a);
    for (int i = 0; i < OUTPUTS; i++) a[i] = clip(a[i], -1.0, 1.0);
    double w[BASIS][CONTROLS] = {{0}};
    for (int t = 0; t < TERMS; t++) w[term_row[t]][term_column[t]] = a[t];
    double value[CHUNK * CONTROLS];
    for (long start = 0; start < n; start += CHUNK) {
        const long count = n - start < CHUNK ? n - start : CHUNK;
        for (long g = 0; g < count; g++) {
            const float *row = groups + (start + g) * GROUP_FEATURES;
            for (int c = 0; c < CONTROLS; c++) value[g * CONTROLS + c] = w[0][c];
            for (int b = 1; b < BASIS; b++) {
                const double feature = row[basis_column[b]] * basis_scale[b] + basis_shift[b];
                for (int c = 0; c < CONTROLS; c++) value[g * CONTROLS + c] += feature * w[b][c];
            }
        }
        for (long i = 0; i < count * CONTROLS; i++) value[i] = fast_tanh(GAIN * value[i]);
        for (long g = 0; g < count; g++) {
            const double *v = value + g * CONTROLS;
            float *out = out_groups + (start + g) * CONTROLS;
            const double evict = clip(v[EVICT_FRACTION] / SATURATION, -1.0, 1.0);
            out[ROUTING_BIAS] = (float)v[ROUTING_BIAS];
            out[COMPRESSION_RATIO] =
                (float)(1 + (RATIO_MAX - 1) * (clip(v[COMPRESSION_RATIO] / SATURATION, -1.0, 1.0) + 1) / 2);
            out[EVICT_FRACTION] = (float)(EVICT_MAX * (evict < 0 ? 0 : evict));
        }
    }
    for (int i = 0; i < GLOBAL_CONTROLS; i++)
        out_globals[i] = (float)(control_low[i] + (control_high[i] - control_low[i]) * (a[TERMS + i] + 1) / 2);
    out_globals[WINDOW] = (float)(WINDOW_LOW * exp(log(WINDOW_HIGH / WINDOW_LOW) * (a[TERMS + WINDOW] + 1) / 2));
}
#endif
