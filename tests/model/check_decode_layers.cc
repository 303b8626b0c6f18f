// Runs a step through layers on heap blocks of exactly the size it may touch, for a build with address and undefined-behaviour checks, and
// compares it with the formulas in double precision.
#include <cstdio>
#include <cstdlib>

#include "decode_layers.h"

using namespace pollux;
using Floats = std::vector<float>;
using Doubles = std::vector<double>;

Floats random(int64_t n) {
  Floats x(n);
  for (float& value : x) value = 2 * static_cast<float>(std::rand()) / RAND_MAX - 1;
  return x;
}

Doubles times(const Doubles& x, const float* w, int64_t N) {
  Doubles y(N);
  for (size_t k = 0; k < x.size(); k++)
    for (int64_t n = 0; n < N; n++) y[n] += x[k] * w[k * N + n];
  return y;
}

Doubles normed(const Doubles& x, const float* scale, double eps) {
  double squares = 0;
  for (double value : x) squares += value * value;
  Doubles y(x);
  for (size_t i = 0; i < x.size(); i++) y[i] *= (scale ? scale[i] : 1) / std::sqrt(squares / x.size() + eps);
  return y;
}

double activated(Activation f, double x) {
  if (f == Activation::kGelu) return 0.5 * x * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
  if (f == Activation::kSilu) return x / (1 + std::exp(-x));
  return f == Activation::kRelu ? std::fmax(x, 0) : std::fmax(x, 0) * std::fmax(x, 0);
}

void place(Doubles& heads, const Layer& a, const float* norm, int64_t position, double eps) {
  for (size_t first = 0; first < heads.size(); first += a.H) {
    Doubles head(heads.begin() + first, heads.begin() + first + a.H);
    if (norm) head = normed(head, norm, eps);
    for (int64_t i = 0; i < a.H; i++) {
      const int64_t half = a.H / 2, pair = i % half;
      const double angle = a.frequency ? a.frequency[pair] * position : 0, c = std::cos(angle), s = std::sin(angle);
      heads[first + i] = head[i] * c + (i < half ? -head[half + pair] : head[pair]) * s;
    }
  }
}

// One layer for row b; keys and values are read from the pages where `decode` has written them, the new ones compared.
void layer(const Step& step, const Layer& a, int64_t b, Doubles& x) {
  const int64_t position = step.position[b], slots = a.slots();
  const Doubles h = normed(x, a.attention_norm, step.eps);
  Doubles q = times(h, a.q, a.N * a.H), k = times(h, a.k, a.K * a.H), v = a.v ? times(h, a.v, a.K * a.H) : k, seen(a.N * a.H);
  place(q, a, a.q_norm, position, step.eps);
  place(k, a, a.k_norm, position, step.eps);
  for (int64_t i = 0; a.value_norm && i < a.K; i++) {
    const Doubles one = normed(Doubles(v.begin() + i * a.H, v.begin() + (i + 1) * a.H), nullptr, step.eps);
    std::copy(one.begin(), one.end(), v.begin() + i * a.H);
  }
  auto place_of = [&](int64_t s) { return (a.table[b * a.M + s % slots / a.P] * a.P + s % a.P) * a.K * a.H; };
  for (int64_t i = 0; i < a.K * a.H; i++)
    if (std::fabs(a.keys[place_of(position) + i] - k[i]) > 1e-4 || std::fabs(a.values[place_of(position) + i] - v[i]) > 1e-4) {
      std::fprintf(stderr, "a key or value of row %ld at position %ld is wrong\n", long(b), long(position));
      std::exit(1);
    }
  const double sharper = a.log_n_native ? std::fmax(1, std::log(position + 1.0) / std::log(double(a.log_n_native))) : 1;
  for (int64_t n = 0; n < a.N; n++) {
    const int64_t head = n / (a.N / a.K) * a.H;
    Doubles p;
    double total = 0;
    const int64_t first = a.window ? std::max<int64_t>(0, position + 1 - a.window) : 0;
    for (int64_t s = first; s <= position; s++) {
      double score = 0;
      for (int64_t i = 0; i < a.H; i++) score += q[n * a.H + i] * a.keys[place_of(s) + head + i];
      p.push_back(std::exp(score * a.scale * sharper));
      total += p.back();
    }
    for (int64_t s = first; s <= position; s++)
      for (int64_t i = 0; i < a.H; i++) seen[n * a.H + i] += p[s - first] / total * a.values[place_of(s) + head + i];
  }
  Doubles y = times(seen, a.o, step.D), input = h;
  auto residual = [&](const float* post) {
    if (post) y = normed(y, post, step.eps);
    for (int64_t i = 0; i < step.D; i++) x[i] += y[i];
  };
  if (a.feed_norm) residual(a.attention_post), input = normed(x, a.feed_norm, step.eps);
  Doubles up = times(input, a.up, a.F), gate = a.gate ? times(input, a.gate, a.F) : Doubles();
  for (int64_t i = 0; i < a.F; i++) up[i] = a.gate ? activated(a.activation, gate[i]) * up[i] : activated(a.activation, up[i]);
  const Doubles down = times(up, a.down, step.D);
  for (int64_t i = 0; i < step.D; i++) y[i] = (a.feed_norm ? 0 : y[i]) + down[i];
  residual(a.feed_norm ? a.feed_post : a.attention_post);
  for (double& value : x) value *= a.layer_scale ? *a.layer_scale : 1;
}

void check(int64_t B, int64_t D, int64_t N, int64_t K, int64_t H, int64_t F, int64_t P, int64_t M, int64_t window, Activation activation, bool plain) {
  std::vector<Floats> kept;
  auto some = [&](int64_t n) { return kept.emplace_back(random(n)).data(); };
  auto maybe = [&](int64_t n, bool there) { return there ? some(n) : nullptr; };
  std::vector<int32_t> table, position;
  for (int64_t i = 0; i < B * M; i++) table.push_back(static_cast<int32_t>(1 + (B * M - i) % (B * M)));
  for (int64_t b = 0; b < B; b++) position.push_back(std::rand() % (window ? 3 * P * M : P * M));
  const Floats x = random(B * D), final_norm = random(D);
  Floats out(B * D, NAN), again(B * D, NAN);
  Step step{B, D, 1e-6f, x.data(), position.data(), final_norm.data(), out.data(), {}};
  for (int64_t i = 0; i < 2; i++) {
    Layer a{N, K, H, F, P, M, window, activation, i == 1, 0.3f, 6 * i};
    a.attention_norm = some(D), a.q = some(D * N * H), a.k = some(D * K * H), a.v = maybe(D * K * H, plain || i), a.o = some(N * H * D);
    a.q_norm = maybe(H, plain), a.k_norm = maybe(H, plain), a.attention_post = maybe(D, i), a.feed_norm = maybe(D, plain || i);
    a.up = some(D * F), a.gate = maybe(D * F, !plain), a.down = some(F * D), a.feed_post = maybe(D, i), a.layer_scale = maybe(1, i);
    a.frequency = maybe(H / 2, !i), a.table = table.data();
    a.keys = some((B * M + 1) * P * K * H), a.values = some((B * M + 1) * P * K * H);
    std::fill(a.keys, a.keys + P * K * H, NAN);  // nobody's page
    std::fill(a.values, a.values + P * K * H, NAN);
    step.layers.push_back(a);
  }
  std::vector<int32_t> rows(B);
  for (int32_t b = 0; b < B; b++) rows[b] = b;
  auto run = [&](int64_t size) {
    for (int64_t first = 0; first < B; first += size) {
      const int64_t count = std::min(size, B - first);
      Block at;
      Floats memory(at.lay_out(step, count, nullptr));
      at.lay_out(step, count, memory.data());
      decode(step, rows.data() + first, count, at);
    }
  };
  run(B);
  step.out = again.data();
  run(1);
  for (int64_t b = 0; b < B; b++) {
    Doubles wanted(x.begin() + b * D, x.begin() + (b + 1) * D);
    for (const Layer& a : step.layers) layer(step, a, b, wanted);
    wanted = normed(wanted, step.final_norm, step.eps);
    for (int64_t i = 0; i < D; i++)
      if (!(std::fabs(out[b * D + i] - wanted[i]) <= 1e-3 + 1e-3 * std::fabs(wanted[i])) || out[b * D + i] != again[b * D + i]) {
        std::fprintf(stderr, "row %ld is %g, alone %g, instead of %g at B %ld, D %ld, N %ld, K %ld, H %ld, F %ld\n", long(b), out[b * D + i], again[b * D + i], wanted[i], long(B), long(D), long(N), long(K), long(H), long(F));
        std::exit(1);
      }
  }
}

int main() {
  for (int64_t B : {1, 2, 3, 4, 7, 13, 16})
    for (bool plain : {true, false}) {
      check(B, 16, 4, 4, 8, 32, 4, 3, 0, Activation::kRelu2, plain);
      check(B, 19, 6, 2, 10, 37, 5, 2, 7, Activation::kGelu, plain);
      check(B, 70, 9, 1, 20, 130, 8, 4, 20, Activation::kSilu, plain);
      check(B, 1, 1, 1, 2, 1, 1, 3, 3, Activation::kRelu, plain);
      check(B, 24, 3, 1, 12, 20, 32, 2, 5, Activation::kSilu, plain);
    }
  std::printf("decode_layers checked with %d lanes\n", kLanes);
}
