// What a layer computes besides attention, for a few rows on one thread: products with float32 weights, norms, rotations, activations.
//
// Rows of activations lie `padded(width)` apart. The bits of a row do not depend on how many rows there are: every sum has one order.

#pragma once

#include "attention.h"

namespace pollux {

constexpr int64_t kInner = 64;    // inputs at a time: enough for a tile to be worth its loading and storing, few enough for their
constexpr int64_t kStreamed = 8;  // weights to be read nearly in the order in which they lie, which counts most for few rows

// All rows times W vectors of outputs, of n inputs.
template <int W>
inline void columns(const float* x, int64_t xs, int64_t rows, const float* w, int64_t ws, float* y, int64_t ys, int64_t n, bool add) {
  int64_t r = 0;
  for (; r + kTileRows <= rows; r += kTileRows) tile<kTileRows, W>(x + r * xs, xs, 1, w, ws, y + r * ys, ys, n, add);
  for (; r + 4 <= rows; r += 4) tile<4, W>(x + r * xs, xs, 1, w, ws, y + r * ys, ys, n, add);
  for (; r + 2 <= rows; r += 2) tile<2, W>(x + r * xs, xs, 1, w, ws, y + r * ys, ys, n, add);
  for (; r < rows; r++) tile<1, W>(x + r * xs, xs, 1, w, ws, y + r * ys, ys, n, add);
}

// y [rows, N] = x [rows, K] w [K, N]. Columns of y beyond N, up to padded(N), become 0.
inline void multiply(const float* x, int64_t rows, const float* w, int64_t K, int64_t N, float* y) {
  const bool few = rows < 4;
  const int64_t xs = padded(K), ys = padded(N), whole = N / kLanes * kLanes, inner = few ? kStreamed : kInner;
  for (int64_t k = 0; k < K; k += inner) {
    const int64_t n = std::min(inner, K - k);
    const float* const from = w + k * N;
    int64_t c = 0;
    for (; few && c + 4 * kLanes <= whole; c += 4 * kLanes) columns<4>(x + k, xs, rows, from + c, N, y + c, ys, n, k > 0);
    for (; !few && c + 2 * kLanes <= whole; c += 2 * kLanes) columns<2>(x + k, xs, rows, from + c, N, y + c, ys, n, k > 0);
    for (; c < whole; c += kLanes) columns<1>(x + k, xs, rows, from + c, N, y + c, ys, n, k > 0);
    if (c == N) continue;
    float last[kInner * kLanes];
    for (int64_t i = 0; i < n; i++)
      for (int64_t j = 0; j < kLanes; j++) last[i * kLanes + j] = c + j < N ? from[i * N + c + j] : 0.0f;
    columns<1>(x + k, xs, rows, last, kLanes, y + c, ys, n, k > 0);
  }
}

// y = scale * x / sqrt(mean(x^2) + eps), without a scale if there is none; y may be x.
inline void normalise(const float* x, const float* scale, int64_t n, float eps, float* y) {
  Vec squares = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) squares += load(x + i) * load(x + i);
  float total = sum(squares);
  for (; i < n; i++) total += x[i] * x[i];
  const float factor = 1.0f / std::sqrt(total / n + eps);
  for (i = 0; i + kLanes <= n; i += kLanes) store(y + i, scale ? load(x + i) * factor * load(scale + i) : load(x + i) * factor);
  for (; i < n; i++) y[i] = x[i] * factor * (scale ? scale[i] : 1.0f);
}

// Rotate the pairs (x_i, x_{i + H/2}) of one head.
inline void rotate(float* x, const float* cos, const float* sin, int64_t H) {
  const int64_t half = H / 2;
  int64_t i = 0;
  for (; i + kLanes <= half; i += kLanes) {
    const Vec first = load(x + i), second = load(x + half + i), c = load(cos + i), s = load(sin + i);
    store(x + i, first * c - second * s);
    store(x + half + i, second * c + first * s);
  }
  for (; i < half; i++) {
    const float first = x[i], second = x[half + i];
    x[i] = first * cos[i] - second * sin[i];
    x[half + i] = second * cos[i] + first * sin[i];
  }
}

inline void add(float* x, const float* y, int64_t n) {
  for (int64_t i = 0; i < n; i++) x[i] += y[i];
}

enum class Activation : int64_t { kGelu, kSilu, kRelu, kRelu2 };

// 1 / (1 + e^-x)
inline Vec sigmoid(Vec x) {
  const Vec e = exp_negative(x < 0.0f ? x : -x);
  return (x < 0.0f ? e : all(1.0f)) / (e + 1.0f);
}

// x = f(x) * other, of n floats, a multiple of kLanes; without `other`, f(x).
inline void activate(Activation f, float* x, const float* other, int64_t n) {
  auto map = [=](auto of) {
    for (int64_t i = 0; i < n; i += kLanes) store(x + i, other ? of(load(x + i)) * load(other + i) : of(load(x + i)));
  };
  switch (f) {
    case Activation::kGelu:  // (1 + tanh z) / 2 = sigmoid(2 z)
      return map([](Vec v) { return v * sigmoid(1.5957691216057308f * (v + 0.044715f * v * v * v)); });
    case Activation::kSilu:
      return map([](Vec v) { return v * sigmoid(v); });
    case Activation::kRelu:
      return map([](Vec v) { return v > 0.0f ? v : Vec{}; });
    case Activation::kRelu2:
      return map([](Vec v) { return v > 0.0f ? v * v : Vec{}; });
  }
}

}  // namespace pollux
