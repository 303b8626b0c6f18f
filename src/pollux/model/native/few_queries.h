// Attention of a few queries, as a step of generation has them, to float keys and values or to codes of 8 bits, read where they lie.

#pragma once

#include "attention.h"

namespace pollux {

// T x G <= kFew queries of one kv-head, four at a time.
constexpr int64_t kFew = 8;
inline int64_t direct_memory(const Attention& a) { return 4 * (padded(a.S) + kLanes + 2 * padded(a.H)); }

// p[r][first..first + kLanes - 1] = q[r] . k[s], of which `count` keys exist.
template <int R, typename T>
inline void scores_directly(const float* q, int64_t width, const T* k, int64_t stride, int64_t H, int64_t count, float* p, int64_t p_stride) {
  const int64_t whole = H / kLanes * kLanes;
  Vec products[R][kLanes] = {};
  for (int64_t s = 0; s < count; s++) {
    const T* key = k + s * stride;
    Vec sums[R] = {};
    for (int64_t h = 0; h < whole; h += kLanes) {
      const Vec x = load(key + h);
#pragma GCC unroll 8
      for (int r = 0; r < R; r++) sums[r] += load(q + r * width + h) * x;
    }
    for (int r = 0; r < R; r++) {
      for (int64_t h = whole; h < H; h++) sums[r][0] += q[r * width + h] * key[h];
      products[r][s] = sums[r];
    }
  }
  for (int r = 0; r < R; r++) store(p + r * p_stride, sums_of(products[r]));
}

// R rows of y [R, width] += p [R, n] v [n, H], where the rows of v are `stride` apart.
template <int R, typename T>
inline void weigh_directly(const float* p, int64_t p_stride, const T* v, int64_t stride, int64_t H, int64_t n, float* y, int64_t width) {
  int64_t h = 0;
  for (; h + 4 * kLanes <= H; h += 4 * kLanes) tile<R, 4>(p, p_stride, 1, v + h, stride, y + h, width, n, true);
  for (; h + kLanes <= H; h += kLanes) tile<R, 1>(p, p_stride, 1, v + h, stride, y + h, width, n, true);
  for (; h < H; h++)
    for (int r = 0; r < R; r++) {
      float sum = y[r * width + h];
      for (int64_t s = 0; s < n; s++) sum += p[r * p_stride + s] * v[s * stride + h];
      y[r * width + h] = sum;
    }
}

template <int R, typename T>
void forward_rows(const Attention& a, const Keys<T>& in, int64_t b, int64_t kv_head, int64_t first_row, float* memory, float* out, float* log_sum) {
  const int64_t stride = a.K * a.H, width = padded(a.H), keys = padded(a.S) + kLanes;
  float *p = memory, *q = p + R * keys, *y = q + R * width;
  const float* masks[R];
  int64_t at[R], low = a.S, high = 0;  // the keys from the first to the last that any row sees
  for (int r = 0; r < R; r++) {
    const int64_t t = (first_row + r) / a.G(), head = kv_head * a.G() + (first_row + r) % a.G();
    at[r] = ((b * a.T + t) * a.N + head) * a.H;
    masks[r] = a.mask + (b * a.T + t) * a.S;
    for (int64_t h = 0; h < a.H; h++) q[r * width + h] = a.q[at[r] + h] * a.scale;
    int64_t first = 0, last = a.S;
    while (first < last && masks[r][first] <= kMasked / 2) first++;
    while (last > first && masks[r][last - 1] <= kMasked / 2) last--;
    if (first < last) low = std::min(low, first), high = std::max(high, last);
  }
  const int64_t count = std::max<int64_t>(high - low, 0);
  // f(first, number, where the first lies) of the keys of each page.
  auto pages = [&](auto f) {
    for (int64_t s = low, n; s < high; s += n) f(s - low, n = std::min(high - s, a.P - s % a.P), a.at(b, s) * a.K + kv_head);
  };
  pages([&](int64_t first, int64_t n, int64_t vector) {
    for (int64_t s = 0; s < n; s += kLanes)
      scores_directly<R>(q, width, in.k + vector * a.H + s * stride, stride, a.H, std::min<int64_t>(kLanes, n - s), p + first + s, keys);
    for (int r = 0; in.k_scale && r < R; r++)
      for (int64_t s = 0; s < n; s++) p[r * keys + first + s] *= in.k_scale[vector + s * a.K];
  });
  for (int r = 0; r < R; r++) {
    float *row = p + r * keys, top = kMasked / 2;
    for (int64_t s = 0; s < count; s++) {
      row[s] += masks[r][low + s];
      top = std::max(top, row[s]);
    }
    std::fill(row + count, row + padded(count), kMasked);
    Vec sums = {};
    for (int64_t s = 0; s < count; s += kLanes) {
      const Vec chance = exp_negative(load(row + s) - top);
      store(row + s, chance);
      sums += chance;
    }
    const float total = std::max(sum(sums), 1e-30f);
    for (int64_t s = 0; s < count; s++) row[s] /= total;
    const int64_t head = at[r] / a.H % a.N, t = at[r] / a.H / a.N % a.T;
    log_sum[(b * a.N + head) * a.T + t] = top + std::log(total);
  }
  std::memset(y, 0, R * width * sizeof(float));
  pages([&](int64_t first, int64_t n, int64_t vector) {
    for (int r = 0; in.v_scale && r < R; r++)
      for (int64_t s = 0; s < n; s++) p[r * keys + first + s] *= in.v_scale[vector + s * a.K];
    weigh_directly<R>(p + first, keys, in.v + vector * a.H, stride, a.H, n, y, width);
  });
  for (int r = 0; r < R; r++) std::memcpy(out + at[r], y + r * width, a.H * sizeof(float));
}

template <typename T>
inline void forward_directly(const Attention& a, const Keys<T>& in, int64_t b, int64_t kv_head, float* memory, float* out, float* log_sum) {
  const int64_t rows = a.T * a.G();
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) forward_rows<4>(a, in, b, kv_head, row, memory, out, log_sum);
  for (; row + 3 <= rows; row += 3) forward_rows<3>(a, in, b, kv_head, row, memory, out, log_sum);
  for (; row + 2 <= rows; row += 2) forward_rows<2>(a, in, b, kv_head, row, memory, out, log_sum);
  for (; row < rows; row++) forward_rows<1>(a, in, b, kv_head, row, memory, out, log_sum);
}

}  // namespace pollux
