// softmax(q k^T scale + mask) v and its gradient in float32, on one thread at a time. pollux/model/dot_attention.py has the formulas.
//
// Shapes: B rows, T queries, S keys, N heads = K kv-heads x G, H head size. q [B, T, N, H], k and v [B, S, K, H], mask [B, T, S] with 0
// where visible and a large negative number elsewhere, out [B, T, N, H], log_sum [B, N, T] (log of the sum of exponentials). Keys and values
// may also lie in pages [.., P, K, H], of which each row has a table [B, S / P].
// Queries and keys go in blocks of 32; pairs of blocks without a visible pair are skipped. Written with the vector types of GCC and Clang,
// for the processor that it is compiled on.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

namespace pollux {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kTileRows = 8;
#elif defined(__AVX__)
constexpr int kLanes = 8, kTileRows = 4;
#elif defined(__aarch64__)
constexpr int kLanes = 4, kTileRows = 8;
#else
constexpr int kLanes = 4, kTileRows = 4;
#endif
constexpr int64_t kBlock = 32;     // queries, or keys
constexpr int64_t kChunk = 512;    // keys whose scores are held at once
constexpr float kMasked = -1e30f;  // MASKED of dot_attention.py

typedef float Vec __attribute__((vector_size(4 * kLanes), aligned(4), may_alias));
typedef int32_t IntVec __attribute__((vector_size(4 * kLanes)));

typedef int16_t ShortVec __attribute__((vector_size(2 * kLanes)));
typedef int8_t Codes __attribute__((vector_size(kLanes), aligned(1), may_alias));

inline Vec load(const float* x) { return *reinterpret_cast<const Vec*>(x); }
inline Vec load(const int8_t* x) {  // doubling the width step by step, which is what GCC has instructions for
  const ShortVec shorts = __builtin_convertvector(*reinterpret_cast<const Codes*>(x), ShortVec);
  return __builtin_convertvector(__builtin_convertvector(shorts, IntVec), Vec);
}
inline void store(float* x, Vec v) { *reinterpret_cast<Vec*>(x) = v; }
inline Vec all(float x) { return x - Vec{}; }  // unlike x + 0, which turns -0 into 0, this is a mere broadcast
// Have v read once, into a register; GCC would read it from memory for every use, and then reading is what takes the time.
inline void hold(Vec& v) {
#if defined(__AVX__)
  asm("" : "+v"(v));
#endif
}
// x y + sum, rounded once where the processor can. GCC would decide by what it takes for faster, so that a row's bits depended on how many
// rows there are.
inline Vec fused(Vec x, Vec y, Vec sum) {
#if defined(__AVX512F__)
  return (Vec)_mm512_fmadd_ps((__m512)x, (__m512)y, (__m512)sum);
#elif defined(__FMA__)
  return (Vec)_mm256_fmadd_ps((__m256)x, (__m256)y, (__m256)sum);
#elif defined(__aarch64__)
  return (Vec)vfmaq_f32((float32x4_t)sum, (float32x4_t)x, (float32x4_t)y);
#else
  return x * y + sum;
#endif
}
inline int64_t padded(int64_t n) { return (n + kLanes - 1) / kLanes * kLanes; }

inline float sum(Vec v) {
  float x[kLanes];
  std::memcpy(x, &v, sizeof(v));
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) x[i] += x[i + half];
  return x[0];
}

inline float maximum(Vec v) {
  float x[kLanes];
  std::memcpy(x, &v, sizeof(v));
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; i++) x[i] = x[i] > x[i + half] ? x[i] : x[i + half];
  return x[0];
}

#if defined(__clang__) || __GNUC__ >= 12
#if defined(__AVX512F__)
#define POLLUX_EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define POLLUX_ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
#elif defined(__AVX__)
#define POLLUX_EVEN 0, 2, 4, 6, 8, 10, 12, 14
#define POLLUX_ODD 1, 3, 5, 7, 9, 11, 13, 15
#else
#define POLLUX_EVEN 0, 2, 4, 6
#define POLLUX_ODD 1, 3, 5, 7
#endif
// Lane j of the result is the sum of v[j], of kLanes vectors.
inline Vec sums_of(Vec* v) {
#pragma GCC unroll 4
  for (int count = kLanes; count > 1; count /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < count; i += 2)
      v[i / 2] = __builtin_shufflevector(v[i], v[i + 1], POLLUX_EVEN) + __builtin_shufflevector(v[i], v[i + 1], POLLUX_ODD);
  return v[0];
}
#else
inline Vec sums_of(Vec* v) {
  Vec sums = {};
  for (int j = 0; j < kLanes; j++) sums[j] = sum(v[j]);
  return sums;
}
#endif

// e^x for x <= 0 to 2 units in the last place, 0 below -87 (Cephes' expf).
inline Vec exp_negative(Vec x) {
  const IntVec tiny = x < -87.0f;
  x = tiny ? all(-87.0f) : x;
  const Vec n = (x * 1.44269504088896341f + 12582912.0f) - 12582912.0f;  // the nearest integer
  x = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vec y = all(1.9875691500e-4f);
  y = y * x + 1.3981999507e-3f;
  y = y * x + 8.3334519073e-3f;
  y = y * x + 4.1665795894e-2f;
  y = y * x + 1.6666665459e-1f;
  y = y * x + 5.0000001201e-1f;
  y = y * x * x + x + 1.0f;
  const IntVec power = (__builtin_convertvector(n, IntVec) + 127) << 23;
  const Vec result = y * (Vec)power;
  return tiny ? Vec{} : result;
}

// c[r][w] (+)= sum_k a(r, k) b[k][w] for R rows and W vectors, a(r, k) = a[r * ar + k * ak].
template <int R, int W, typename T = float>
inline void tile(const float* a, int64_t ar, int64_t ak, const T* b, int64_t bk, float* c, int64_t cr, int64_t n, bool add) {
  Vec sums[R][W];
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int w = 0; w < W; w++) sums[r][w] = add ? load(c + r * cr + w * kLanes) : Vec{};
  for (int64_t k = 0; k < n; k++) {
    Vec row[W];
#pragma GCC unroll 4
    for (int w = 0; w < W; w++) {
      row[w] = load(b + k * bk + w * kLanes);
      if (R > 1) hold(row[w]);
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
      const Vec x = all(a[r * ar + k * ak]);
#pragma GCC unroll 4
      for (int w = 0; w < W; w++) sums[r][w] = fused(x, row[w], sums[r][w]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; r++)
#pragma GCC unroll 4
    for (int w = 0; w < W; w++) store(c + r * cr + w * kLanes, sums[r][w]);
}

// A product of any number of columns that is a multiple of kLanes; `rows` is a multiple of kTileRows.
inline void product(const float* a, int64_t ar, int64_t ak, const float* b, int64_t bk, float* c, int64_t cr, int64_t rows, int64_t columns, int64_t n, bool add) {
  int64_t w = 0;
  for (; w + 2 * kLanes <= columns; w += 2 * kLanes)
    for (int64_t r = 0; r < rows; r += kTileRows) tile<kTileRows, 2>(a + r * ar, ar, ak, b + w, bk, c + r * cr + w, cr, n, add);
  for (; w < columns; w += kLanes)
    for (int64_t r = 0; r < rows; r += kTileRows) tile<kTileRows, 1>(a + r * ar, ar, ak, b + w, bk, c + r * cr + w, cr, n, add);
}

struct Attention {
  int64_t B, T, S, N, K, H;
  float scale;
  const float *q, *mask;
  const int32_t* table = nullptr;  // none: a row's keys are one page
  int64_t P = S;                   // keys of a page
  int64_t first = 0, end = 0;      // without a mask, which few_queries.h can do without: the keys that are seen; key s is in slot s mod S

  // Where key s of row b lies.
  int64_t at(int64_t b, int64_t s) const { return table ? table[b * (S / P) + s / P] * P + s % P : b * S + s; }
  int64_t G() const { return N / K; }
  int64_t query_blocks() const { return (T + kBlock - 1) / kBlock; }
  int64_t key_blocks() const { return (S + kBlock - 1) / kBlock; }
  int64_t padded_keys() const { return key_blocks() * kBlock; }
  int64_t padded_head() const { return padded(H); }
};

// Keys and values [B, S, K, H], or pages of them; codes have a scale each, floats none.
template <typename T>
struct Keys {
  const T *k, *v;
  const float *k_scale = nullptr, *v_scale = nullptr;
};

enum Seen : uint8_t { kNothing = 0, kSome = 1, kAll = 2 };

// What the queries of one block of row b see of each block of keys: seen [key_blocks].
inline void look(const Attention& a, int64_t b, int64_t block, uint8_t* seen) {
  const int64_t first = block * kBlock, last = std::min(a.T, first + kBlock);
  for (int64_t j = 0; j < a.key_blocks(); j++) {
    const int64_t start = j * kBlock, end = std::min(a.S, start + kBlock);
    int32_t visible = 0;
    for (int64_t t = first; t < last; t++) {
      const float* row = a.mask + (b * a.T + t) * a.S;
      for (int64_t s = start; s < end; s++) visible += row[s] > kMasked / 2;
    }
    seen[j] = visible == 0 ? kNothing : visible == (last - first) * kBlock ? kAll : kSome;
  }
}

// Rows first..first+31 of one head of x [.., rows, heads, H], times `factor`, as [32, width]; zeros beyond.
inline void gather(const float* x, int64_t first, int64_t rows, int64_t heads, int64_t head, int64_t H, int64_t width, float factor, float* block) {
  for (int64_t r = 0; r < kBlock; r++) {
    float* to = block + r * width;
    if (first + r >= rows) {
      std::memset(to, 0, width * sizeof(float));
      continue;
    }
    const float* from = x + ((first + r) * heads + head) * H;
    for (int64_t h = 0; h < H; h++) to[h] = from[h] * factor;
    for (int64_t h = H; h < width; h++) to[h] = 0;
  }
}

// One head of row b of x, times its scales if there are any, as [H, padded], keys along the last axis, or as [padded, width]; zeros
// beyond S and H.
template <typename T>
inline void transpose_head(const T* x, const float* scales, const Attention& a, int64_t b, int64_t head, float* y) {
  const int64_t keys = a.padded_keys();
  for (int64_t start = 0; start < keys; start += kBlock) {
    float factors[kBlock];
    const T* from[kBlock];
    for (int64_t i = 0; i < kBlock; i++) {
      const int64_t vector = a.at(b, std::min(start + i, a.S - 1)) * a.K + head;
      from[i] = x + vector * a.H;
      factors[i] = start + i >= a.S ? 0.0f : scales ? scales[vector] : 1.0f;
    }
    for (int64_t h = 0; h < a.H; h++)
      for (int64_t i = 0; i < kBlock; i++) y[h * keys + start + i] = factors[i] ? from[i][h] * factors[i] : 0.0f;
  }
}

template <typename T>
inline void copy_head(const T* x, const float* scales, const Attention& a, int64_t b, int64_t head, float* y) {
  const int64_t width = a.padded_head();
  for (int64_t s = 0; s < a.padded_keys(); s++) {
    const int64_t count = s < a.S ? a.H : 0, vector = a.at(b, std::min(s, a.S - 1)) * a.K + head;
    const T* from = x + vector * a.H;
    const float factor = scales ? scales[vector] : 1.0f;
    for (int64_t h = 0; h < count; h++) y[s * width + h] = from[h] * factor;
    for (int64_t h = count; h < width; h++) y[s * width + h] = 0;
  }
}

// The scores of a block of queries and of the keys first..first+count-1: [32, kChunk], masked where `seen` says so.
inline void scores(const Attention& a, int64_t b, int64_t block, const uint8_t* seen, const float* q, const float* k_t, int64_t first, int64_t count, float* s) {
  const int64_t width = a.padded_head(), rows = std::min(kBlock, a.T - block * kBlock);
  product(q, width, 1, k_t + first, a.padded_keys(), s, kChunk, kBlock, count, a.H, false);
  for (int64_t j = first / kBlock; j < (first + count) / kBlock; j++) {
    if (seen[j] == kAll) continue;
    const int64_t start = j * kBlock, end = std::min(a.S, start + kBlock);
    for (int64_t r = 0; r < rows; r++) {
      const float* mask = a.mask + (b * a.T + block * kBlock + r) * a.S;
      float* row = s + r * kChunk - first;
      for (int64_t i = start; i < end; i++) row[i] += mask[i];
      for (int64_t i = end; i < start + kBlock; i++) row[i] = kMasked;
    }
  }
}

// Runs of visible blocks, as pieces of at most kChunk keys: f(first key, number of keys).
template <typename F>
void chunks(const Attention& a, const uint8_t* seen, F f) {
  for (int64_t j = 0; j < a.key_blocks();) {
    if (seen[j] == kNothing) {
      j++;
      continue;
    }
    int64_t end = j;
    while (end < a.key_blocks() && seen[end] != kNothing && (end - j) * kBlock < kChunk) end++;
    f(j * kBlock, (end - j) * kBlock);
    j = end;
  }
}

// One block of queries of one head. k_t, v: of its kv-head, from transpose_head and copy_head. memory: floats of forward_memory().
inline int64_t forward_memory(const Attention& a) { return kBlock * (2 * a.padded_head() + kChunk); }

inline void forward(const Attention& a, int64_t b, int64_t head, int64_t block, const uint8_t* seen, const float* k_t, const float* v, float* memory, float* out, float* log_sum) {
  const int64_t width = a.padded_head(), first_query = block * kBlock, rows = std::min(kBlock, a.T - first_query);
  float *q = memory, *y = q + kBlock * width, *s = y + kBlock * width;
  float top[kBlock], total[kBlock];
  std::fill(top, top + kBlock, kMasked / 2);
  std::fill(total, total + kBlock, 0.0f);
  std::memset(y, 0, kBlock * width * sizeof(float));
  gather(a.q + b * a.T * a.N * a.H, first_query, a.T, a.N, head, a.H, width, a.scale, q);
  chunks(a, seen, [&](int64_t first, int64_t count) {
    scores(a, b, block, seen, q, k_t, first, count, s);
    for (int64_t r = 0; r < rows; r++) {
      float* row = s + r * kChunk;
      Vec most = all(top[r]);
      for (int64_t i = 0; i < count; i += kLanes) {
        const Vec x = load(row + i);
        most = x > most ? x : most;
      }
      const float highest = maximum(most);
      Vec sums = {};
      for (int64_t i = 0; i < count; i += kLanes) {
        const Vec p = exp_negative(load(row + i) - highest);
        store(row + i, p);
        sums += p;
      }
      const float shrink = exp_negative(all(top[r] - highest))[0];
      if (highest != top[r])
        for (int64_t h = 0; h < width; h += kLanes) store(y + r * width + h, load(y + r * width + h) * shrink);
      total[r] = total[r] * shrink + sum(sums);
      top[r] = highest;
    }
    product(s, kChunk, 1, v + first * width, width, y, width, kBlock, width, count, true);
  });
  for (int64_t r = 0; r < rows; r++) {
    const float sum_of = std::max(total[r], 1e-30f), inverse = 1.0f / sum_of;
    float* to = out + ((b * a.T + first_query + r) * a.N + head) * a.H;
    for (int64_t h = 0; h < a.H; h++) to[h] = y[r * width + h] * inverse;
    log_sum[(b * a.N + head) * a.T + first_query + r] = top[r] + std::log(sum_of);
  }
}

// The gradient of all queries of one kv-head. seen [query_blocks, key_blocks]; out, log_sum: what `forward` gave; d_out [B, T, N, H].
inline int64_t backward_memory(const Attention& a) {
  return a.padded_keys() * (2 * a.H + 3 * a.padded_head()) + kBlock * (3 * a.padded_head() + 2 * kChunk);
}

inline void backward(const Attention& a, const Keys<float>& in, int64_t b, int64_t kv_head, const uint8_t* seen, const float* out, const float* log_sum, const float* d_out, float* memory, float* d_q, float* d_k, float* d_v) {
  const int64_t width = a.padded_head(), P = a.padded_keys(), queries = b * a.T * a.N * a.H;
  float *k_t = memory, *v_t = k_t + a.H * P, *k = v_t + a.H * P, *sum_k = k + P * width, *sum_v = sum_k + P * width;
  float *q = sum_v + P * width, *dy = q + kBlock * width, *dq = dy + kBlock * width, *p = dq + kBlock * width, *ds = p + kBlock * kChunk;
  transpose_head(in.k, nullptr, a, b, kv_head, k_t);
  transpose_head(in.v, nullptr, a, b, kv_head, v_t);
  copy_head(in.k, nullptr, a, b, kv_head, k);
  std::memset(sum_k, 0, 2 * P * width * sizeof(float));
  for (int64_t head = kv_head * a.G(); head < (kv_head + 1) * a.G(); head++)
    for (int64_t block = 0; block < a.query_blocks(); block++) {
      const int64_t first_query = block * kBlock, rows = std::min(kBlock, a.T - first_query);
      const uint8_t* visible = seen + block * a.key_blocks();
      float delta[kBlock] = {}, log_sums[kBlock];
      std::fill(log_sums, log_sums + kBlock, -kMasked);  // rows beyond the last query get no probability
      gather(a.q + queries, first_query, a.T, a.N, head, a.H, width, a.scale, q);
      gather(d_out + queries, first_query, a.T, a.N, head, a.H, width, 1.0f, dy);
      for (int64_t r = 0; r < rows; r++) {
        const float* y = out + queries + ((first_query + r) * a.N + head) * a.H;
        for (int64_t h = 0; h < a.H; h++) delta[r] += y[h] * dy[r * width + h];
        log_sums[r] = log_sum[(b * a.N + head) * a.T + first_query + r];
      }
      std::memset(dq, 0, kBlock * width * sizeof(float));
      chunks(a, visible, [&](int64_t first, int64_t count) {
        scores(a, b, block, visible, q, k_t, first, count, p);
        product(dy, width, 1, v_t + first, P, ds, kChunk, kBlock, count, a.H, false);
        for (int64_t r = 0; r < kBlock; r++)
          for (int64_t i = r * kChunk; i < r * kChunk + count; i += kLanes) {
            const Vec chance = exp_negative(load(p + i) - log_sums[r]);
            store(p + i, chance);
            store(ds + i, chance * (load(ds + i) - delta[r]));
          }
        product(ds, kChunk, 1, k + first * width, width, dq, width, kBlock, width, count, true);
        product(ds, 1, kChunk, q, width, sum_k + first * width, width, count, width, kBlock, true);
        product(p, 1, kChunk, dy, width, sum_v + first * width, width, count, width, kBlock, true);
      });
      for (int64_t r = 0; r < rows; r++)
        for (int64_t h = 0; h < a.H; h++) d_q[queries + ((first_query + r) * a.N + head) * a.H + h] = dq[r * width + h] * a.scale;
    }
  for (int64_t s = 0; s < a.S; s++)
    for (int64_t h = 0; h < a.H; h++) {
      d_k[(a.at(b, s) * a.K + kv_head) * a.H + h] = sum_k[s * width + h];
      d_v[(a.at(b, s) * a.K + kv_head) * a.H + h] = sum_v[s * width + h];
    }
}

}  // namespace pollux
