// Runs the attention kernels on heap blocks of exactly the size they may touch, for a build with address and undefined-behaviour checks,
// and compares them with the formula in double precision; the gradient with differences of that formula.
#include <cstdio>
#include <cstdlib>

#include "few_queries.h"

using namespace pollux;
using Floats = std::vector<float>;

Floats random(int64_t n) {
  Floats x(n);
  for (float& value : x) value = 2 * static_cast<float>(std::rand()) / RAND_MAX - 1;
  return x;
}

// sum(out * d_out), and out itself if y is given
double formula(const Attention& a, const Floats& q, const Floats& k, const Floats& v, const Floats& mask, const Floats& d_out, Floats* y) {
  double objective = 0;
  for (int64_t b = 0; b < a.B; b++)
    for (int64_t t = 0; t < a.T; t++)
      for (int64_t n = 0; n < a.N; n++) {
        std::vector<double> p(a.S), out(a.H);
        double total = 0;
        for (int64_t s = 0; s < a.S; s++) {
          if (mask[(b * a.T + t) * a.S + s] < 0) continue;
          for (int64_t h = 0; h < a.H; h++) p[s] += double(q[((b * a.T + t) * a.N + n) * a.H + h]) * k[((b * a.S + s) * a.K + n / a.G()) * a.H + h];
          total += p[s] = std::exp(p[s] * a.scale);
        }
        for (int64_t s = 0; s < a.S && total > 0; s++)
          for (int64_t h = 0; h < a.H; h++) out[h] += p[s] / total * v[((b * a.S + s) * a.K + n / a.G()) * a.H + h];
        for (int64_t h = 0; h < a.H; h++) {
          const int64_t at = ((b * a.T + t) * a.N + n) * a.H + h;
          objective += out[h] * d_out[at];
          if (y) (*y)[at] = static_cast<float>(out[h]);
        }
      }
  return objective;
}

void expect(const char* what, const Attention& a, double got, double wanted, double tolerance) {
  if (std::fabs(got - wanted) <= tolerance) return;
  std::fprintf(stderr, "%s is %g instead of %g at T %ld, S %ld, N %ld, K %ld, H %ld\n", what, got, wanted, long(a.T), long(a.S), long(a.N), long(a.K), long(a.H));
  std::exit(1);
}

// The same attention to codes of 8 bits.
void check_codes(const Attention& a, const Floats& q, const Floats& mask) {
  const int64_t vectors = a.B * a.S * a.K;
  std::vector<int8_t> codes[2];
  Floats scales[2], values[2], none(q.size()), wanted(q.size()), out(q.size(), NAN), log_sum(a.B * a.N * a.T);
  for (int i = 0; i < 2; i++) {
    scales[i] = random(vectors);
    for (int64_t j = 0; j < vectors * a.H; j++) {
      codes[i].push_back(static_cast<int8_t>(std::rand() % 255 - 127));
      values[i].push_back(codes[i][j] * (scales[i][j / a.H] /= j % a.H ? 1.0f : 127.0f));
    }
  }
  const Keys<int8_t> in{codes[0].data(), codes[1].data(), scales[0].data(), scales[1].data()};
  formula(a, q, values[0], values[1], mask, none, &wanted);
  for (int64_t i = 0; i < a.B * a.K; i++) {
    const int64_t head = i % a.K, b = i / a.K;
    Floats k_t(a.H * a.padded_keys()), plain(k_t), v(a.padded_keys() * a.padded_head()), w(v);
    transpose_head(in.k, in.k_scale, a, b, head, k_t.data());
    transpose_head(values[0].data(), nullptr, a, b, head, plain.data());
    copy_head(in.v, in.v_scale, a, b, head, v.data());
    copy_head(values[1].data(), nullptr, a, b, head, w.data());
    for (size_t j = 0; j < k_t.size(); j++) expect("a key of codes", a, k_t[j], plain[j], 1e-6);
    for (size_t j = 0; j < v.size(); j++) expect("a value of codes", a, v[j], w[j], 1e-6);
  }
  if (a.T * a.G() > kFew) return;
  for (int64_t heads : {int64_t{1}, a.K})
    for (int64_t i = 0; i < a.B * a.K; i += heads) {
      Floats memory(direct_memory(a, heads));
      forward_directly(a, in, i / a.K, i % a.K, heads, memory.data(), out.data(), log_sum.data());
    }
  for (size_t i = 0; i < out.size(); i++) expect("an output of codes", a, out[i], wanted[i], 1e-5);
}

void check_outputs(const Attention& a, const Keys<float>& in, const std::vector<uint8_t>& seen, const Floats& wanted, Floats& out, Floats& log_sum) {
  for (int64_t b = 0; b < a.B; b++)
    for (int64_t n = 0; n < a.N; n++) {
      Floats k_t(a.H * a.padded_keys()), values(a.padded_keys() * a.padded_head());
      transpose_head(in.k, nullptr, a, b, n / a.G(), k_t.data());
      copy_head(in.v, nullptr, a, b, n / a.G(), values.data());
      for (int64_t block = 0; block < a.query_blocks(); block++) {
        Floats memory(forward_memory(a));
        const uint8_t* visible = &seen[(b * a.query_blocks() + block) * a.key_blocks()];
        forward(a, b, n, block, visible, k_t.data(), values.data(), memory.data(), out.data(), log_sum.data());
      }
    }
  for (size_t i = 0; i < out.size(); i++) expect("an output", a, out[i], wanted[i], 1e-5);
  if (a.T * a.G() > kFew) return;
  std::fill(out.begin(), out.end(), NAN);
  for (int64_t heads : {int64_t{1}, a.K})
    for (int64_t i = 0; i < a.B * a.K; i += heads) {
      Floats memory(direct_memory(a, heads));
      forward_directly(a, in, i / a.K, i % a.K, heads, memory.data(), out.data(), log_sum.data());
    }
  for (size_t i = 0; i < out.size(); i++) expect("an output of few", a, out[i], wanted[i], 1e-5);
}

void check(int64_t B, int64_t T, int64_t S, int64_t N, int64_t K, int64_t H) {
  Floats q = random(B * T * N * H), k = random(B * S * K * H), v = random(B * S * K * H), mask(B * T * S), d_out = random(B * T * N * H);
  for (int64_t i = 0; i < B * T * S; i++) mask[i] = i % S > i / S % T + S - T ? kMasked : 0.0f;
  const Attention a{B, T, S, N, K, H, 0.7f, q.data(), mask.data()};
  const Keys<float> in{k.data(), v.data()};
  std::vector<uint8_t> seen(B * a.query_blocks() * a.key_blocks());
  for (int64_t i = 0; i < B * a.query_blocks(); i++) look(a, i / a.query_blocks(), i % a.query_blocks(), &seen[i * a.key_blocks()]);
  Floats out(q.size()), log_sum(B * N * T), d_q(q.size()), d_k(k.size()), d_v(v.size()), wanted(q.size());
  formula(a, q, k, v, mask, d_out, &wanted);
  check_outputs(a, in, seen, wanted, out, log_sum);
  for (int64_t page : {1, 2, 5, 16}) {  // the same keys and values in pages, some of which are nobody's
    if (S % page) continue;
    const int64_t each = page * K * H, pages = B * S / page;
    Floats in_pages[2] = {Floats((pages + 3) * each, NAN), Floats((pages + 3) * each, NAN)}, sums(log_sum);
    std::vector<int32_t> table;
    for (int64_t i = 0; i < pages; i++) {
      table.push_back(static_cast<int32_t>(2 + (pages - i) % pages));
      for (int j = 0; j < 2; j++) std::copy_n((j ? v : k).begin() + i * each, each, in_pages[j].begin() + table[i] * each);
    }
    Attention paged = a;
    paged.table = table.data();
    paged.P = page;
    Floats again(q.size());
    check_outputs(paged, Keys<float>{in_pages[0].data(), in_pages[1].data()}, seen, wanted, again, sums);
  }
  check_codes(a, q, mask);
  for (int64_t b = 0; b < B; b++)
    for (int64_t n = 0; n < K; n++) {
      Floats memory(backward_memory(a));
      backward(a, in, b, n, &seen[b * a.query_blocks() * a.key_blocks()], out.data(), log_sum.data(), d_out.data(), memory.data(), d_q.data(), d_k.data(), d_v.data());
    }
  Floats* const inputs[] = {&q, &k, &v};
  const Floats* const gradients[] = {&d_q, &d_k, &d_v};
  for (int which = 0; which < 3; which++)
    for (int repeat = 0; repeat < 5; repeat++) {
      float& x = (*inputs[which])[std::rand() % inputs[which]->size()];
      const float before = x, gradient = (*gradients[which])[&x - inputs[which]->data()];
      x = before + 0.01f;
      const double up = x, above = formula(a, q, k, v, mask, d_out, nullptr);
      x = before - 0.01f;
      const double slope = (above - formula(a, q, k, v, mask, d_out, nullptr)) / (up - x);
      x = before;
      expect("a gradient", a, gradient, slope, 2e-3);
    }
}

int main() {
  for (int64_t T : {1, 3, 31, 32, 70})
    for (int64_t S : {70, 96, 1030})
      for (int64_t H : {1, 20, 64}) {
        check(1, T, S, 2, 1, H);
        check(2, T, S, 3, 3, H);
      }
  std::printf("attention checked with %d lanes\n", kLanes);
}
