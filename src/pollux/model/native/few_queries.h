// Attention of a few queries, as a step of generation has them, to float keys and values or to codes of 8 bits, read where they lie.

#pragma once

#include "attention.h"

namespace pollux {

// T x G <= kFew queries of some kv-heads, four of each at a time.
constexpr int64_t kFew = 8;
inline int64_t direct_memory(const Attention& a, int64_t heads) { return 4 * heads * (padded(a.S) + kLanes + 2 * padded(a.H)); }

constexpr int64_t kLine = 64;  // bytes that memory gives at once

// Have one vector of a head brought into the cache of the processor.
template <typename T>
inline void fetch(const T* x, int64_t H) {
  for (int64_t h = 0; h < H; h += kLine / static_cast<int64_t>(sizeof(T))) __builtin_prefetch(x + h);
}

// p[r][first..first + kLanes - 1] = q[r] . k[s], of which `count` keys exist. `next` is fetched meanwhile.
template <int R, typename T>
inline void scores_directly(const float* q, int64_t width, const T* k, const T* next, int64_t stride, int64_t H, int64_t count, float* p, int64_t p_stride) {
  const int64_t whole = H / kLanes * kLanes;
  Vec products[R][kLanes] = {};
  for (int64_t s = 0; s < count; s++) {
    const T* key = k + s * stride;
    fetch(next + s * stride, H);
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
inline void weigh_directly(const float* p, int64_t p_stride, const T* v, const T* next, int64_t stride, int64_t H, int64_t n, float* y, int64_t width) {
  for (int64_t s = 0; s < n; s++) fetch(next + s * stride, H);
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

// The first of n numbers that is above the mask, and one after the last; n and 0 if there is none.
inline void visible(const float* mask, int64_t n, int64_t& first, int64_t& end) {
  first = 0, end = n;
  while (first + kLanes <= n && maximum(load(mask + first)) <= kMasked / 2) first += kLanes;
  while (first < n && mask[first] <= kMasked / 2) first++;
  while (end - kLanes >= first && maximum(load(mask + end - kLanes)) <= kMasked / 2) end -= kLanes;
  while (end > first && mask[end - 1] <= kMasked / 2) end--;
  if (first == n) end = 0;
}

// Turn n scores into probabilities, under a mask if there is one; returns the log of the sum of their exponentials. There is room for
// kLanes more.
inline float softmax(float* row, const float* mask, int64_t n) {
  Vec most = all(kMasked / 2);
  int64_t s = 0;
  for (; s + kLanes <= n; s += kLanes) {
    const Vec x = mask ? load(row + s) + load(mask + s) : load(row + s);
    store(row + s, x);
    most = x > most ? x : most;
  }
  float top = maximum(most);
  for (; s < n; s++) top = std::max(top, row[s] += mask ? mask[s] : 0.0f);
  std::fill(row + n, row + padded(n), kMasked);
  Vec sums = {};
  for (s = 0; s < n; s += kLanes) {
    const Vec chance = exp_negative(load(row + s) - top);
    store(row + s, chance);
    sums += chance;
  }
  const float total = std::max(sum(sums), 1e-30f);
  for (s = 0; s < n; s += kLanes) store(row + s, load(row + s) * (1.0f / total));
  return top + std::log(total);
}

// R queries of each of some kv-heads of row b. Keys go in short runs, so that the heads together read memory in nearly one stream, and
// each run has the next fetched.
template <int R, typename T>
void forward_rows(const Attention& a, const Keys<T>& in, int64_t b, int64_t first_head, int64_t heads, int64_t first_row, float* memory, float* out, float* log_sum) {
  const int64_t stride = a.K * a.H, width = padded(a.H), keys = padded(a.S) + kLanes;
  float *p = memory, *q = p + heads * R * keys, *y = q + heads * R * width;
  const float* masks[R];
  int64_t low = std::max(a.S, a.end), high = 0;  // the keys from the first to the last that any row sees
  for (int r = 0; r < R; r++) {
    int64_t first = a.first, end = a.end;
    masks[r] = a.mask ? a.mask + (b * a.T + (first_row + r) / a.G()) * a.S : nullptr;
    if (a.mask) visible(masks[r], a.S, first, end);
    low = std::min(low, first), high = std::max(high, end);
  }
  // Where the query, and the output, of row r of a head are.
  auto at = [&](int64_t head, int64_t r) {
    const int64_t t = (first_row + r) / a.G();
    return ((b * a.T + t) * a.N + (first_head + head) * a.G() + (first_row + r) % a.G()) * a.H;
  };
  for (int64_t head = 0; head < heads; head++)
    for (int r = 0; r < R; r++)
      for (int64_t h = 0; h < a.H; h++) q[(head * R + r) * width + h] = a.q[at(head, r) + h] * a.scale;
  // f(first, number, the vectors of the first head of this run and of the next) of each run.
  auto runs = [&](auto f) {
    for (int64_t s = low, n; s < high; s += n) {
      n = std::min<int64_t>({high - s, a.P - s % a.P, kLanes});
      f(s - low, n, a.at(b, s % a.S) * a.K + first_head, a.at(b, (s + n < high ? s + n : low) % a.S) * a.K + first_head);
    }
  };
  runs([&](int64_t first, int64_t n, int64_t vector, int64_t next) {
    const T* ahead = (first + n < high - low ? in.k : in.v) + next * a.H;
    for (int64_t head = 0; head < heads; head++) {
      float* row = p + head * R * keys + first;
      for (int64_t s = 0; s < n; s += kLanes)
        scores_directly<R>(q + head * R * width, width, in.k + (vector + head) * a.H + s * stride, ahead + head * a.H + s * stride, stride, a.H, std::min<int64_t>(kLanes, n - s), row + s, keys);
      for (int r = 0; in.k_scale && r < R; r++)
        for (int64_t s = 0; s < n; s++) row[r * keys + s] *= in.k_scale[vector + head + s * a.K];
    }
  });
  const int64_t count = std::max<int64_t>(high - low, 0);
  for (int64_t head = 0; head < heads; head++)
    for (int r = 0; r < R; r++) {
      const int64_t n = at(head, r) / a.H;  // [B, T, N] -> [B, N, T]
      log_sum[(b * a.N + n % a.N) * a.T + n / a.N % a.T] = softmax(p + (head * R + r) * keys, masks[r] ? masks[r] + low : nullptr, count);
    }
  std::memset(y, 0, heads * R * width * sizeof(float));
  runs([&](int64_t first, int64_t n, int64_t vector, int64_t next) {
    for (int64_t head = 0; head < heads; head++) {
      float* row = p + head * R * keys + first;
      for (int r = 0; in.v_scale && r < R; r++)
        for (int64_t s = 0; s < n; s++) row[r * keys + s] *= in.v_scale[vector + head + s * a.K];
      weigh_directly<R>(row, keys, in.v + (vector + head) * a.H, in.v + (next + head) * a.H, stride, a.H, n, y + head * R * width, width);
    }
  });
  for (int64_t head = 0; head < heads; head++)
    for (int r = 0; r < R; r++) std::memcpy(out + at(head, r), y + (head * R + r) * width, a.H * sizeof(float));
}

template <typename T>
inline void forward_directly(const Attention& a, const Keys<T>& in, int64_t b, int64_t head, int64_t heads, float* memory, float* out, float* log_sum) {
  const int64_t rows = a.T * a.G();
  int64_t row = 0;
  for (; row + 4 <= rows; row += 4) forward_rows<4>(a, in, b, head, heads, row, memory, out, log_sum);
  for (; row + 3 <= rows; row += 3) forward_rows<3>(a, in, b, head, heads, row, memory, out, log_sum);
  for (; row + 2 <= rows; row += 2) forward_rows<2>(a, in, b, head, heads, row, memory, out, log_sum);
  for (; row < rows; row++) forward_rows<1>(a, in, b, head, heads, row, memory, out, log_sum);
}

}  // namespace pollux
