// Runs the kernels on heap blocks of exactly the size they may touch, for a build with address and undefined-behaviour checks, and
// compares what each of them gives with the scalar one.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "product.h"

using namespace pollux;

template <int bits>
int check(Instructions instructions, int64_t M, int64_t K, int64_t N) {
  const Tile chosen = tile<bits>(instructions);
  if (!chosen) return 0;
  const int64_t G = (K + kInputs - 1) / kInputs, blocks = (N + kOutputs - 1) / kOutputs;
  std::vector<float> x(M * K), y(M * N), expected(M * N), scales(M * G);
  std::vector<uint8_t> weight(blocks * G * block_bytes<bits>());
  std::vector<int8_t> codes(M * G * kInputs);
  std::vector<int32_t> sums(M * G);
  for (float& value : x) value = static_cast<float>(std::rand()) / RAND_MAX - 0.5f;
  for (size_t i = 0; i < weight.size(); i++) {
    const bool high = i % block_bytes<bits>() >= 64 * bits && i % 2;  // the high byte of a scale: keep it finite
    weight[i] = static_cast<uint8_t>(high ? 0x20 + std::rand() % 16 : bits == 8 ? 1 + std::rand() % 255 : std::rand() % 256);
  }
  const Activations rounded{codes.data(), scales.data(), sums.data()};
  for (int64_t row = 0; row < M; row++)
    round_row(x.data() + row * K, K, codes.data() + row * G * kInputs, scales.data() + row * G, sums.data() + row * G, instructions);
  product<bits>(chosen, weight.data(), rounded, M, G, N, 0, blocks, y.data());
  product<bits>(tile_scalar<bits>, weight.data(), rounded, M, G, N, 0, blocks, expected.data());
  float most = 0, error = 0;
  for (int64_t i = 0; i < M * N; i++) {
    most = std::fmax(most, std::fabs(expected[i]));
    error = std::fmax(error, std::fabs(expected[i] - y[i]));
  }
  if (!(error <= 2e-6f * most)) {
    std::fprintf(stderr, "instructions %d, %d bits, %ld x %ld x %ld: error %g of %g\n", instructions, bits, long(M), long(K), long(N), error, most);
    std::exit(1);
  }
  return 1;
}

int main() {
  int checked = 0;
  for (Instructions instructions : {kScalar, kAvx2, kAvx512Vnni, kNeonDot})
    for (int64_t M : {1, 5, 8, 17})
      for (int64_t K : {1, 31, 32, 64, 500})
        for (int64_t N : {1, 15, 16, 40}) checked += check<4>(instructions, M, K, N) + check<8>(instructions, M, K, N);
  std::printf("%d products checked\n", checked);
}
