// The XLA FFI calls `pollux_attention` and `pollux_attention_gradient`, on XLA's threads.

#include "attention.h"
#include "parallel.h"

namespace ffi = xla::ffi;
using pollux::Attention;
using Floats = ffi::Buffer<ffi::F32>;

namespace {

constexpr int64_t kSmall = 65536;  // multiplications that are not worth waking other threads for

float* memory(int64_t floats) {
  static thread_local std::vector<float> kept;
  if (static_cast<int64_t>(kept.size()) < floats) kept.resize(floats);
  return kept.data();
}

// index: of the layer, where k and v are stacks of layers.
bool describe(const Floats& q, const Floats& k, const Floats& v, int64_t index, const Floats& mask, float scale, Attention& a) {
  const auto queries = q.dimensions(), keys = k.dimensions(), values = v.dimensions(), sees = mask.dimensions();
  if (queries.size() != 4 || keys.size() < 4 || keys.size() > 5 || sees.size() != 3) return false;
  if (!std::equal(keys.begin(), keys.end(), values.begin(), values.end())) return false;
  const auto key = keys.end() - 4;
  a = {queries[0], queries[1], key[1], queries[2], key[2], queries[3], scale, q.typed_data(), k.typed_data(), v.typed_data(), mask.typed_data()};
  if (keys.size() == 5) {
    a.k += index * a.B * a.S * a.K * a.H;
    a.v += index * a.B * a.S * a.K * a.H;
    if (index < 0 || index >= keys[0]) return false;
  }
  return key[0] == a.B && key[3] == a.H && a.K > 0 && a.N % a.K == 0 && sees[0] == a.B && sees[1] == a.T && sees[2] == a.S;
}

const char* const kShapes = "pollux_attention: q [B, T, N, H], k and v [B, S, K, H] and mask [B, T, S] do not fit";

ffi::Error attention(ffi::ThreadPool pool, Floats q, Floats k, Floats v, ffi::Buffer<ffi::S32> index, Floats mask, ffi::ResultBuffer<ffi::F32> out, ffi::ResultBuffer<ffi::F32> log_sum, float scale) {
  Attention a;
  if (!describe(q, k, v, index.typed_data()[0], mask, scale, a)) return ffi::Error::InvalidArgument(kShapes);
  float *y = out->typed_data(), *sums = log_sum->typed_data();
  if (a.T * a.G() <= pollux::kFew) {
    auto head = [=](int64_t i) { pollux::forward_directly(a, i / a.K, i % a.K, memory(pollux::direct_memory(a)), y, sums); };
    if (a.T * a.N * a.S * a.H < kSmall) {  // other threads would come too late
      for (int64_t i = 0; i < a.B * a.K; i++) head(i);
    } else {
      pollux::parallel_for(pool, a.B * a.K, head);
    }
    return ffi::Error::Success();
  }
  const int64_t heads = a.B * a.K, blocks = a.B * a.query_blocks(), head_size = a.padded_keys() * (a.H + a.padded_head());
  static thread_local std::vector<float> packed;  // of every kv-head, what transpose_head and copy_head make
  static thread_local std::vector<uint8_t> sees;
  packed.resize(heads * head_size);
  sees.resize(blocks * a.key_blocks());
  float* const packed_heads = packed.data();
  uint8_t* const seen = sees.data();
  pollux::parallel_for(pool, heads + blocks, [=](int64_t i) {
    if (i < blocks) return pollux::look(a, i / a.query_blocks(), i % a.query_blocks(), seen + i * a.key_blocks());
    const int64_t head = i - blocks, keys = head / a.K * a.S * a.K * a.H;
    float* to = packed_heads + head * head_size;
    pollux::transpose_head(a.k + keys, a, head % a.K, to);
    pollux::copy_head(a.v + keys, a, head % a.K, to + a.padded_keys() * a.H);
  });
  pollux::parallel_for(pool, a.B * a.N * a.query_blocks(), [=](int64_t i) {
    const int64_t block = i % a.query_blocks(), head = i / a.query_blocks() % a.N, b = i / a.query_blocks() / a.N;
    const float* k_t = packed_heads + (b * a.K + head / a.G()) * head_size;
    const uint8_t* visible = seen + (b * a.query_blocks() + block) * a.key_blocks();
    pollux::forward(a, b, head, block, visible, k_t, k_t + a.padded_keys() * a.H, memory(pollux::forward_memory(a)), y, sums);
  });
  return ffi::Error::Success();
}

ffi::Error gradient(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Floats mask, Floats out, Floats log_sum, Floats d_out, ffi::ResultBuffer<ffi::F32> d_q, ffi::ResultBuffer<ffi::F32> d_k, ffi::ResultBuffer<ffi::F32> d_v, float scale) {
  Attention a;
  if (k.dimensions().size() != 4 || !describe(q, k, v, 0, mask, scale, a)) return ffi::Error::InvalidArgument(kShapes);
  const int64_t blocks = a.B * a.query_blocks();
  static thread_local std::vector<uint8_t> sees;
  sees.resize(blocks * a.key_blocks());
  uint8_t* const seen = sees.data();
  pollux::parallel_for(pool, blocks, [=](int64_t i) { pollux::look(a, i / a.query_blocks(), i % a.query_blocks(), seen + i * a.key_blocks()); });
  const float *y = out.typed_data(), *sums = log_sum.typed_data(), *dy = d_out.typed_data();
  float *dq = d_q->typed_data(), *dk = d_k->typed_data(), *dv = d_v->typed_data();
  pollux::parallel_for(pool, a.B * a.K, [=](int64_t i) {
    const int64_t b = i / a.K;
    pollux::backward(a, b, i % a.K, seen + b * a.query_blocks() * a.key_blocks(), y, sums, dy, memory(pollux::backward_memory(a)), dq, dk, dv);
  });
  return ffi::Error::Success();
}

// Write rows [B, T, K, H] into slots [B, T] of stacks [L, B, S, K, H] in place; a slot beyond S is left out.
ffi::Error write(Floats keys, Floats values, Floats k, Floats v, ffi::Buffer<ffi::S32> slots, ffi::Buffer<ffi::S32> index, ffi::ResultBuffer<ffi::F32> new_keys, ffi::ResultBuffer<ffi::F32> new_values) {
  const auto stack = keys.dimensions(), other = values.dimensions(), rows = k.dimensions(), more = v.dimensions(), at = slots.dimensions();
  if (stack.size() != 5 || rows.size() != 4 || rows[0] != stack[1] || rows[2] != stack[3] || rows[3] != stack[4] ||
      !std::equal(stack.begin(), stack.end(), other.begin(), other.end()) || !std::equal(rows.begin(), rows.end(), more.begin(), more.end()) ||
      at.size() != 2 || at[0] != rows[0] || at[1] != rows[1])
    return ffi::Error::InvalidArgument("pollux_write: stacks [L, B, S, K, H] and rows [B, T, K, H] do not fit");
  const int64_t B = stack[1], S = stack[2], T = rows[1], size = rows[2] * rows[3], layer = index.typed_data()[0];
  if (layer < 0 || layer >= stack[0]) return ffi::Error::InvalidArgument("pollux_write: there is no such layer");
  for (int64_t b = 0; b < B; b++)
    for (int64_t t = 0; t < T; t++) {
      const int64_t slot = slots.typed_data()[b * T + t], from = (b * T + t) * size, to = ((layer * B + b) * S + slot) * size;
      if (slot < 0 || slot >= S) continue;
      std::memcpy(new_keys->typed_data() + to, k.typed_data() + from, size * sizeof(float));
      std::memcpy(new_values->typed_data() + to, v.typed_data() + from, size * sizeof(float));
    }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(pollux_write, write,
                              ffi::Ffi::Bind().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<ffi::Buffer<ffi::S32>>().Arg<ffi::Buffer<ffi::S32>>().Ret<Floats>().Ret<Floats>());
XLA_FFI_DEFINE_HANDLER_SYMBOL(pollux_attention, attention,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<ffi::Buffer<ffi::S32>>().Arg<Floats>().Ret<Floats>().Ret<Floats>().Attr<float>("scale"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(pollux_attention_gradient, gradient,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Ret<Floats>().Ret<Floats>().Ret<Floats>().Attr<float>("scale"));
