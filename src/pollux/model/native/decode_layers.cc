// The XLA FFI call `pollux_decode_layers`: a token of each row through all layers, blocks of rows on XLA's threads.

#include "decode_layers.h"
#include "parallel.h"

namespace ffi = xla::ffi;
using pollux::Layer;
using Floats = ffi::Buffer<ffi::F32>;
using Ints = ffi::Buffer<ffi::S32>;
using Numbers = ffi::Span<const int64_t>;

namespace {

constexpr int64_t kMostRows = 16;  // of a block: more share a reading of the weights, fewer leave more to share out
constexpr size_t kArguments = 18;  // of a kind of layers, in the order of pollux/model/decode_layers.py

// The arguments of one kind of layers after the other. What does not fit is noted, and found out at the end.
struct Reader {
  ffi::RemainingArgs& args;
  size_t next = 0;
  bool fits = true;

  // Floats of `layers` layers: those of number `layer`, or null if there are none and may be none.
  const float* floats(int64_t layers, int64_t layer, int64_t each, bool optional = false) {
    const auto array = args.get<Floats>(next++);
    const int64_t count = array.has_error() ? -1 : array->element_count();
    if (count == 0 && optional) return nullptr;
    fits = fits && count == layers * each && each > 0;
    return fits ? array->typed_data() + layer * each : nullptr;
  }
};

// The size of the last axis of an argument; 0 if it has none.
int64_t width(ffi::RemainingArgs& args, size_t i) {
  const auto array = args.get<Floats>(i);
  return array.has_error() || array->dimensions().size() == 0 ? 0 : array->dimensions().back();
}

// Layer `number` of a kind of `layers`, whose arguments begin at `first`.
bool describe(ffi::RemainingArgs& args, size_t first, int64_t layers, int64_t number, int64_t B, int64_t D, Floats& keys, Floats& values, Layer& a) {
  const auto pages = keys.dimensions(), others = values.dimensions();
  const auto table = args.get<Ints>(first + kArguments - 3);
  if (table.has_error() || table->dimensions().size() != 2 || table->dimensions()[0] != B) return false;
  if (pages.size() < 4 || pages.size() > 5 || !std::equal(pages.begin(), pages.end(), others.begin(), others.end())) return false;
  if ((pages.size() == 5 ? pages[0] : 1) != layers) return false;
  const auto page = pages.end() - 4;
  a.P = page[1], a.K = page[2], a.H = page[3], a.M = table->dimensions()[1], a.table = table->typed_data();
  if (a.P < 1 || a.K < 1 || a.H < 1 || a.M < 1) return false;
  a.N = width(args, first + 1) / a.H, a.F = width(args, first + 9);
  if (a.N < 1 || a.N % a.K) return false;
  for (int64_t i = 0; i < B * a.M; i++)
    if (a.table[i] < 0 || a.table[i] >= page[0]) return false;
  const int64_t size = page[0] * a.P * a.K * a.H;
  a.keys = keys.typed_data() + number * size, a.values = values.typed_data() + number * size;
  Reader read{args, first};
  a.attention_norm = read.floats(layers, number, D);
  a.q = read.floats(layers, number, D * a.N * a.H);
  a.k = read.floats(layers, number, D * a.K * a.H);
  a.v = read.floats(layers, number, D * a.K * a.H, true);
  a.q_norm = read.floats(layers, number, a.H, true);
  a.k_norm = read.floats(layers, number, a.H, true);
  a.o = read.floats(layers, number, a.N * a.H * D);
  a.attention_post = read.floats(layers, number, D, true);
  a.feed_norm = read.floats(layers, number, D, true);
  a.up = read.floats(layers, number, D * a.F);
  a.gate = read.floats(layers, number, D * a.F, true);
  a.down = read.floats(layers, number, a.F * D);
  a.feed_post = read.floats(layers, number, D, true);
  a.layer_scale = read.floats(layers, number, 1, true);
  a.frequency = read.floats(1, 0, a.H / 2, true);
  return read.fits && !(a.frequency && a.H % 2);
}

ffi::Error decode_layers(ffi::ThreadPool pool, Floats x, Ints position, Ints segment, Floats final_norm, ffi::RemainingArgs args, ffi::Result<Floats> out, ffi::RemainingRets stacks, int64_t groups, int64_t pattern, Numbers windows, Numbers activations, Numbers value_norms, Numbers log_n_natives, ffi::Span<const float> scales, float eps) {
  const size_t kinds = windows.size();
  const auto shape = x.dimensions();
  if (shape.size() != 2 || args.size() != kinds * kArguments || stacks.size() != 2 * kinds || activations.size() != kinds || value_norms.size() != kinds || log_n_natives.size() != kinds || scales.size() != kinds)
    return ffi::Error::InvalidArgument("pollux_decode_layers: 18 arguments and two results of each kind of layers");
  const int64_t B = shape[0], D = shape[1];
  if (position.element_count() != size_t(B) || segment.element_count() != size_t(B) || final_norm.element_count() != size_t(D) || out->element_count() != x.element_count())
    return ffi::Error::InvalidArgument("pollux_decode_layers: x [B, D], position and segment [B] and the final norm [D] do not fit");
  pollux::Step step{B, D, eps, x.typed_data(), position.typed_data(), final_norm.typed_data(), out->typed_data(), {}};
  auto append = [&](size_t kind, int64_t layers, int64_t number) {
    auto keys = stacks.get<Floats>(2 * kind), values = stacks.get<Floats>(2 * kind + 1);
    Layer layer{};
    if (keys.has_error() || values.has_error() || !describe(args, kind * kArguments, layers, number, B, D, **keys, **values, layer)) return false;
    layer.window = windows[kind];
    layer.activation = static_cast<pollux::Activation>(activations[kind]);
    layer.value_norm = value_norms[kind] != 0;
    layer.log_n_native = log_n_natives[kind];
    layer.scale = scales[kind];
    step.layers.push_back(layer);
    return true;
  };
  bool fits = true;
  for (int64_t group = 0; group < groups; group++)
    for (int64_t kind = 0; kind < pattern; kind++) fits = fits && append(kind, groups, group);
  for (size_t kind = pattern; kind < kinds; kind++) fits = fits && append(kind, 1, 0);
  if (!fits) return ffi::Error::InvalidArgument("pollux_decode_layers: weights, tables and pages of a layer do not fit");

  std::vector<int32_t> rows;
  for (int32_t b = 0; b < B; b++) {
    if (segment.typed_data()[b] > 0 && position.typed_data()[b] >= 0)
      rows.push_back(b);
    else
      std::memcpy(step.out + b * D, step.x + b * D, D * sizeof(float));
  }
  const int64_t active = rows.size(), threads = std::max<int64_t>(1, pool.num_threads());
  const int64_t size = std::max<int64_t>(1, std::min(kMostRows, (active + threads - 1) / threads)), blocks = (active + size - 1) / size;
  auto block = [=, &step, &rows](int64_t i) {
    static thread_local std::vector<float> memory;
    const int64_t first = i * size, count = std::min(size, active - first);
    pollux::Block at;
    const int64_t floats = at.lay_out(step, count, nullptr);
    if (static_cast<int64_t>(memory.size()) < floats) memory.resize(floats);
    at.lay_out(step, count, memory.data());
    pollux::decode(step, rows.data() + first, count, at);
  };
  pollux::parallel_for(pool, blocks, block);
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(pollux_decode_layers, decode_layers,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Ints>().Arg<Ints>().Arg<Floats>().RemainingArgs().Ret<Floats>().RemainingRets().Attr<int64_t>("groups").Attr<int64_t>("pattern").Attr<Numbers>("windows").Attr<Numbers>("activations").Attr<Numbers>("value_norms").Attr<Numbers>("log_n_natives").Attr<ffi::Span<const float>>("scales").Attr<float>("eps"));
