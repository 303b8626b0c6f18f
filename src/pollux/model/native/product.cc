// The XLA FFI call `pollux_products`: one matrix of activations times several weights of the same number of bits, on XLA's threads.

#include <algorithm>
#include <vector>

#include "parallel.h"
#include "product.h"

namespace ffi = xla::ffi;
using pollux::Activations;

namespace {

struct Weight {
  const uint8_t* codes;
  int64_t N, blocks;
  float* y;
};

template <int bits>
ffi::Error run(ffi::ThreadPool& pool, const float* x, int64_t M, int64_t K, int64_t G, const std::vector<Weight>& weights) {
  const pollux::Instructions instructions = pollux::best();
  const pollux::Tile tile = pollux::tile<bits>(instructions);
  static thread_local std::vector<char> memory;  // kept, since a step of decoding calls this a hundred times
  memory.resize(M * G * (pollux::kInputs + sizeof(float) + sizeof(int32_t)));
  float* scales = reinterpret_cast<float*>(memory.data());
  const Activations rounded{reinterpret_cast<int8_t*>(scales + 2 * M * G), scales, reinterpret_cast<int32_t*>(scales + M * G)};
  auto round = [=](int64_t row) {
    pollux::round_row(x + row * K, K, rounded.codes + row * G * pollux::kInputs, rounded.scales + row * G, rounded.sums + row * G, instructions);
  };
  if (M < 8) {
    for (int64_t row = 0; row < M; row++) round(row);
  } else {
    pollux::parallel_for(pool, M, round);
  }
  int64_t blocks = 0;
  for (const Weight& weight : weights) blocks += weight.blocks;
  const int64_t pieces = pool.num_threads() <= 1 || blocks * G * M < 256 ? 1 : std::min<int64_t>(blocks, 8 * pool.num_threads());
  // Pieces grow smaller if there are blocks enough, so that the first ones are long streams and the last ones end together.
  auto before = [=](int64_t i) { return blocks < 4 * pieces ? blocks * i / pieces : blocks - blocks * (pieces - i) * (pieces - i) / (pieces * pieces); };
  auto piece = [=, &weights](int64_t i) {
    int64_t first = before(i), last = before(i + 1);
    for (const Weight& weight : weights) {
      if (first < weight.blocks && last > 0)
        pollux::product<bits>(tile, weight.codes, rounded, M, G, weight.N, std::max<int64_t>(first, 0), std::min(last, weight.blocks), weight.y);
      first -= weight.blocks;
      last -= weight.blocks;
    }
  };
  if (pieces == 1) {
    piece(0);
  } else {
    pollux::parallel_for(pool, pieces, piece);
  }
  return ffi::Error::Success();
}

// x [M, K], index [] of the layer in stacked weights, weights uint8 [..., blocks, G, block bytes] -> y [M, N] each.
ffi::Error products(ffi::ThreadPool pool, ffi::Buffer<ffi::F32> x, ffi::Buffer<ffi::S32> index, ffi::RemainingArgs packed, ffi::RemainingRets y) {
  const int64_t M = x.dimensions()[0], K = x.dimensions()[1], G = (K + pollux::kInputs - 1) / pollux::kInputs;
  std::vector<Weight> weights;
  int64_t bytes = 0;
  for (size_t i = 0; i < packed.size(); i++) {
    auto codes = packed.get<ffi::Buffer<ffi::U8>>(i);
    auto out = y.get<ffi::Buffer<ffi::F32>>(i);
    if (codes.has_error()) return codes.error();
    if (out.has_error()) return out.error();
    const auto shape = codes->dimensions();
    const int64_t blocks = shape[shape.size() - 3], N = (*out)->dimensions()[1];
    bytes = shape[shape.size() - 1];
    if (shape[shape.size() - 2] != G || (blocks - 1) * pollux::kOutputs >= N || blocks * pollux::kOutputs < N)
      return ffi::Error::InvalidArgument("pollux_products: shapes of activations, weights and outputs do not fit");
    const int64_t layer = shape.size() > 3 ? index.typed_data()[0] : 0;
    weights.push_back({codes->typed_data() + layer * blocks * G * bytes, N, blocks, (*out)->typed_data()});
  }
  if (bytes == pollux::block_bytes<4>()) return run<4>(pool, x.typed_data(), M, K, G, weights);
  if (bytes == pollux::block_bytes<8>()) return run<8>(pool, x.typed_data(), M, K, G, weights);
  return ffi::Error::InvalidArgument("pollux_products: weights have 4 or 8 bits");
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(pollux_products, products,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<ffi::Buffer<ffi::F32>>().Arg<ffi::Buffer<ffi::S32>>().RemainingArgs().RemainingRets());

extern "C" int pollux_best() { return pollux::best(); }

// For tests: one weight with the given instructions on one thread. 0, or 1 where the processor lacks them.
extern "C" int pollux_product(const float* x, const uint8_t* weight, float* y, int64_t M, int64_t K, int64_t N, int bits, int instructions) {
  const auto chosen = static_cast<pollux::Instructions>(instructions);
  const pollux::Tile tile = bits == 4 ? pollux::tile<4>(chosen) : pollux::tile<8>(chosen);
  if (!tile) return 1;
  const int64_t G = (K + pollux::kInputs - 1) / pollux::kInputs, blocks = (N + pollux::kOutputs - 1) / pollux::kOutputs;
  std::vector<int8_t> codes(M * G * pollux::kInputs);
  std::vector<float> scales(M * G);
  std::vector<int32_t> sums(M * G);
  const Activations rounded{codes.data(), scales.data(), sums.data()};
  for (int64_t row = 0; row < M; row++)
    pollux::round_row(x + row * K, K, rounded.codes + row * G * pollux::kInputs, rounded.scales + row * G, rounded.sums + row * G, chosen);
  (bits == 4 ? pollux::product<4> : pollux::product<8>)(tile, weight, rounded, M, G, N, 0, blocks, y);
  return 0;
}
