// One step of generation through all layers: a token of each row, on one thread at a time. pollux/model/decode_layers.py says for which
// models, decoder.py has the formulas.
//
// Shapes: B rows, D model, N heads = K kv-heads x G, H head size, F feed-forward; keys and values in pages [.., P, K, H], of which each row
// has M in a table. Rows know nothing of each other, so a block of them goes through all layers without waiting for the others.

#pragma once

#include "dense.h"
#include "few_queries.h"

namespace pollux {

struct Layer {
  int64_t N, K, H, F, P, M;
  int64_t window;  // 0 = global; else keys lie in a ring of M P slots
  Activation activation;
  bool value_norm;
  float scale;           // of queries
  int64_t log_n_native;  // > 0: queries are multiplied by max(1, log n / log native), n = position + 1
  // Weights; those that a layer does without are null. Without v values are the keys; without feed_norm both halves read the same input.
  const float *attention_norm, *q, *k, *v, *q_norm, *k_norm, *o, *attention_post, *feed_norm, *up, *gate, *down, *feed_post, *layer_scale;
  const float* frequency;  // [H / 2] of the rotation, or null
  const int32_t* table;    // [B, M]
  float *keys, *values;    // of this layer

  int64_t slots() const { return P * M; }
};

struct Step {
  int64_t B, D;
  float eps;
  const float* x;           // [B, D]
  const int32_t* position;  // [B]
  const float* final_norm;  // [D]
  float* out;               // [B, D]
  std::vector<Layer> layers;
};

// Where a block of rows is worked on, on one thread.
struct Block {
  float *x, *h, *y, *q, *k, *v, *seen, *up, *gate, *cos, *sin, *attention;

  // Lays it out from `memory` on, of which it needs the floats that it returns.
  int64_t lay_out(const Step& step, int64_t rows, float* memory) {
    int64_t queries = 0, keys = 0, feed = 0, pairs = 0, most = 0;
    for (const Layer& a : step.layers) {
      queries = std::max(queries, padded(a.N * a.H));
      keys = std::max(keys, padded(a.K * a.H));
      feed = std::max(feed, padded(a.F));
      pairs = std::max(pairs, a.H / 2);
      most = std::max(most, direct_memory({1, 1, a.slots(), a.N, a.K, a.H, 1.0f, nullptr, nullptr}, a.K) + a.N);
    }
    int64_t used = 0;
    auto take = [&](float*& part, int64_t floats) { part = memory + used, used += floats; };
    for (float** part : {&x, &h, &y}) take(*part, rows * padded(step.D));
    for (float** part : {&q, &seen}) take(*part, rows * queries);
    for (float** part : {&k, &v}) take(*part, rows * keys);
    for (float** part : {&up, &gate}) take(*part, rows * feed);
    for (float** part : {&cos, &sin}) take(*part, rows * pairs);
    take(attention, most);
    return used;
  }
};

// Heads as attention wants them: normalised, and rotated by the angles of the row if the layer rotates.
inline void place(float* heads, int64_t count, const Layer& a, const float* norm, float eps, const float* cos, const float* sin) {
  for (float* head = heads; head < heads + count * a.H; head += a.H) {
    if (norm) normalise(head, norm, a.H, eps, head);
    if (a.frequency) rotate(head, cos, sin, a.H);
  }
}

// Write the key and the value of row b into its cache, and attend to what the row sees: seen [N, H].
inline void attend_one(const Layer& a, int64_t b, int64_t position, const float* q, const float* k, const float* v, float* memory, float* seen) {
  const int64_t slots = a.slots(), end = a.window ? position + 1 : std::min(position + 1, slots);
  const float sharper = a.log_n_native ? std::max(1.0f, std::log(position + 1.0f) / std::log(float(a.log_n_native))) : 1.0f;
  Attention one{1, 1, slots, a.N, a.K, a.H, a.scale * sharper, q, nullptr, a.table + b * a.M, a.P};
  one.end = end;
  one.first = std::max<int64_t>(0, end - (a.window ? std::min(a.window, slots) : slots));
  if (end > position) {  // a global layer leaves out what its table has no room for
    const int64_t vector = one.at(0, position % slots) * a.K;
    std::memcpy(a.keys + vector * a.H, k, a.K * a.H * sizeof(float));
    std::memcpy(a.values + vector * a.H, v, a.K * a.H * sizeof(float));
  }
  float* const log_sum = memory;
  forward_directly(one, Keys<float>{a.keys, a.values}, 0, 0, a.K, memory + a.N, seen, log_sum);
}

// Take the rows `row` [rows] of the step through all layers and the final norm.
inline void decode(const Step& step, const int32_t* row, int64_t rows, const Block& at) {
  const int64_t D = step.D, width = padded(D);
  auto normed = [&](const float* from, const float* scale, float* to) {
    for (int64_t r = 0; r < rows; r++) normalise(from + r * width, scale, D, step.eps, to + r * width);
  };
  auto residual = [&](const float* post) {
    if (post) normed(at.y, post, at.y);
    for (int64_t r = 0; r < rows; r++) add(at.x + r * width, at.y + r * width, D);
  };
  for (int64_t r = 0; r < rows; r++) std::memcpy(at.x + r * width, step.x + row[r] * D, D * sizeof(float));
  const float* frequency = nullptr;  // of the angles at hand
  for (const Layer& a : step.layers) {
    const int64_t queries = padded(a.N * a.H), pairs = a.H / 2, keys = padded(a.K * a.H);
    normed(at.x, a.attention_norm, at.h);
    multiply(at.h, rows, a.q, D, a.N * a.H, at.q);
    multiply(at.h, rows, a.k, D, a.K * a.H, at.k);
    if (a.v)
      multiply(at.h, rows, a.v, D, a.K * a.H, at.v);
    else
      std::memcpy(at.v, at.k, rows * keys * sizeof(float));
    if (a.frequency && a.frequency != frequency) {
      frequency = a.frequency;
      for (int64_t i = 0; i < rows * pairs; i++) {
        const float angle = step.position[row[i / pairs]] * frequency[i % pairs];
        at.cos[i] = std::cos(angle), at.sin[i] = std::sin(angle);
      }
    }
    for (int64_t r = 0; r < rows; r++) {
      float *q = at.q + r * queries, *k = at.k + r * keys, *v = at.v + r * keys;
      place(q, a.N, a, a.q_norm, step.eps, at.cos + r * pairs, at.sin + r * pairs);
      place(k, a.K, a, a.k_norm, step.eps, at.cos + r * pairs, at.sin + r * pairs);
      for (int64_t head = 0; a.value_norm && head < a.K; head++) normalise(v + head * a.H, nullptr, a.H, step.eps, v + head * a.H);
      attend_one(a, row[r], step.position[row[r]], q, k, v, at.attention, at.seen + r * queries);
    }
    multiply(at.seen, rows, a.o, a.N * a.H, D, at.y);
    if (a.feed_norm) {
      residual(a.attention_post);
      normed(at.x, a.feed_norm, at.h);
    }
    multiply(at.h, rows, a.up, D, a.F, at.up);
    if (a.gate) multiply(at.h, rows, a.gate, D, a.F, at.gate);
    float* const hidden = a.gate ? at.gate : at.up;
    activate(a.activation, hidden, a.gate ? at.up : nullptr, rows * padded(a.F));
    if (!a.feed_norm) std::memcpy(at.h, at.y, rows * width * sizeof(float));
    multiply(hidden, rows, a.down, a.F, D, at.y);
    for (int64_t r = 0; !a.feed_norm && r < rows; r++) add(at.y + r * width, at.h + r * width, D);
    residual(a.feed_norm ? a.feed_post : a.attention_post);
    for (int64_t r = 0; a.layer_scale && r < rows; r++)
      for (int64_t i = 0; i < D; i++) at.x[r * width + i] *= *a.layer_scale;
  }
  for (int64_t r = 0; r < rows; r++) normalise(at.x + r * width, step.final_norm, D, step.eps, step.out + row[r] * D);
}

}  // namespace pollux
