// Runs the kernels on heap blocks of exactly the size they may touch; built with address and undefined-behaviour checks.
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
  std::vector<float> x(M * K), y(M * N), scales(M * G);
  std::vector<uint8_t> weight(blocks * G * block_bytes<bits>());
  std::vector<int8_t> codes(M * G * kInputs);
  std::vector<int32_t> sums(M * G);
  for (float& value : x) value = static_cast<float>(std::rand()) / RAND_MAX - 0.5f;
  for (uint8_t& value : weight) value = static_cast<uint8_t>(std::rand() & 63);
  const Activations rounded{codes.data(), scales.data(), sums.data()};
  for (int64_t row = 0; row < M; row++)
    round_row(x.data() + row * K, K, codes.data() + row * G * kInputs, scales.data() + row * G, sums.data() + row * G, instructions);
  product<bits>(chosen, weight.data(), rounded, M, G, N, 0, blocks, y.data());
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
