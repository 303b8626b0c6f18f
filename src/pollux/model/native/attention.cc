// The XLA FFI calls `pollux_attention`, `pollux_attention_rounded`, `pollux_attention_gradient` and `pollux_write`, on XLA's threads.

#include "few_queries.h"
#include "parallel.h"

namespace ffi = xla::ffi;
using pollux::Attention;
using Floats = ffi::Buffer<ffi::F32>;
using Bytes = ffi::Buffer<ffi::S8>;
using Table = ffi::Buffer<ffi::S32>;

namespace {

constexpr int64_t kSmall = 65536;  // multiplications that are not worth waking other threads for

float* memory(int64_t floats) {
  static thread_local std::vector<float> kept;
  if (static_cast<int64_t>(kept.size()) < floats) kept.resize(floats);
  return kept.data();
}

// Of pages k and v [(L,) N, P, K, H], and of their scales, layer `index`; rows and keys follow from the queries, the mask and the table.
template <typename Q, typename K>
bool describe(const Floats& q, const Q& k, const Q& v, int64_t index, const Table* table, const Floats& mask, float scale, Attention& a, pollux::Keys<K>& in) {
  const auto queries = q.dimensions(), keys = k.dimensions(), values = v.dimensions(), sees = mask.dimensions();
  if (queries.size() != 4 || keys.size() < 4 || keys.size() > 5 || sees.size() != 3) return false;
  if (!std::equal(keys.begin(), keys.end(), values.begin(), values.end())) return false;
  const auto key = keys.end() - 4;
  a = {queries[0], queries[1], sees[2], queries[2], key[2], queries[3], scale, q.typed_data(), mask.typed_data()};
  if (table) {
    const auto rows = table->dimensions();
    a.table = table->typed_data();
    a.P = key[1];
    if (rows.size() != 2 || rows[0] != a.B || rows[1] * a.P != a.S) return false;
    for (int64_t i = 0; i < rows[0] * rows[1]; i++)
      if (a.table[i] < 0 || a.table[i] >= key[0]) return false;
  } else if (key[0] != a.B || key[1] != a.S) {
    return false;
  }
  const int64_t layer = keys.size() == 5 ? index : 0, vectors = layer * key[0] * key[1] * a.K;
  in.k = k.typed_data() + vectors * a.H;
  in.v = v.typed_data() + vectors * a.H;
  if (in.k_scale) in.k_scale += vectors, in.v_scale += vectors;
  return layer >= 0 && (keys.size() == 4 || layer < keys[0]) && key[3] == a.H && a.K > 0 && a.N % a.K == 0 && sees[0] == a.B && sees[1] == a.T;
}

const char* const kShapes = "pollux_attention: q [B, T, N, H], k and v [N, P, K, H], table [B, S / P] and mask [B, T, S] do not fit";

template <typename T>
ffi::Error attend(ffi::ThreadPool& pool, const Attention& a, const pollux::Keys<T>& in, float* y, float* sums) {
  if (a.T * a.G() <= pollux::kFew) {
    const int64_t heads = a.B < 2 * pool.num_threads() ? 1 : a.K, tasks = a.B * a.K / heads;  // many rows are work enough to share out
    auto task = [=](int64_t i) {
      const int64_t first = i * heads;
      pollux::forward_directly(a, in, first / a.K, first % a.K, heads, memory(pollux::direct_memory(a, heads)), y, sums);
    };
    if (a.T * a.N * a.S * a.H < kSmall) {  // other threads would come too late
      for (int64_t i = 0; i < tasks; i++) task(i);
    } else {
      pollux::parallel_for(pool, tasks, task);
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
    const int64_t head = i - blocks;
    float* to = packed_heads + head * head_size;
    pollux::transpose_head(in.k, in.k_scale, a, head / a.K, head % a.K, to);
    pollux::copy_head(in.v, in.v_scale, a, head / a.K, head % a.K, to + a.padded_keys() * a.H);
  });
  pollux::parallel_for(pool, a.B * a.N * a.query_blocks(), [=](int64_t i) {
    const int64_t block = i % a.query_blocks(), head = i / a.query_blocks() % a.N, b = i / a.query_blocks() / a.N;
    const float* k_t = packed_heads + (b * a.K + head / a.G()) * head_size;
    const uint8_t* visible = seen + (b * a.query_blocks() + block) * a.key_blocks();
    pollux::forward(a, b, head, block, visible, k_t, k_t + a.padded_keys() * a.H, memory(pollux::forward_memory(a)), y, sums);
  });
  return ffi::Error::Success();
}

ffi::Error attention(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Table index, Table table, Floats mask, ffi::ResultBuffer<ffi::F32> out, ffi::ResultBuffer<ffi::F32> log_sum, float scale) {
  Attention a;
  pollux::Keys<float> in;
  if (!describe(q, k, v, index.typed_data()[0], &table, mask, scale, a, in)) return ffi::Error::InvalidArgument(kShapes);
  return attend(pool, a, in, out->typed_data(), log_sum->typed_data());
}

ffi::Error attention_rounded(ffi::ThreadPool pool, Floats q, Bytes k, Floats k_scale, Bytes v, Floats v_scale, Table index, Table table, Floats mask, ffi::ResultBuffer<ffi::F32> out, ffi::ResultBuffer<ffi::F32> log_sum, float scale) {
  Attention a;
  pollux::Keys<int8_t> in;
  in.k_scale = k_scale.typed_data();
  in.v_scale = v_scale.typed_data();
  const auto codes = k.dimensions(), scales = k_scale.dimensions(), others = v_scale.dimensions();
  const bool fit = std::equal(codes.begin(), codes.end() - 1, scales.begin(), scales.end()) && std::equal(scales.begin(), scales.end(), others.begin(), others.end());
  if (!fit || !describe(q, k, v, index.typed_data()[0], &table, mask, scale, a, in)) return ffi::Error::InvalidArgument(kShapes);
  return attend(pool, a, in, out->typed_data(), log_sum->typed_data());
}

ffi::Error gradient(ffi::ThreadPool pool, Floats q, Floats k, Floats v, Floats mask, Floats out, Floats log_sum, Floats d_out, ffi::ResultBuffer<ffi::F32> d_q, ffi::ResultBuffer<ffi::F32> d_k, ffi::ResultBuffer<ffi::F32> d_v, float scale) {
  Attention a;
  pollux::Keys<float> in;
  if (k.dimensions().size() != 4 || !describe(q, k, v, 0, nullptr, mask, scale, a, in)) return ffi::Error::InvalidArgument(kShapes);
  const int64_t blocks = a.B * a.query_blocks();
  static thread_local std::vector<uint8_t> sees;
  sees.resize(blocks * a.key_blocks());
  uint8_t* const seen = sees.data();
  pollux::parallel_for(pool, blocks, [=](int64_t i) { pollux::look(a, i / a.query_blocks(), i % a.query_blocks(), seen + i * a.key_blocks()); });
  const float *y = out.typed_data(), *sums = log_sum.typed_data(), *dy = d_out.typed_data();
  float *dq = d_q->typed_data(), *dk = d_k->typed_data(), *dv = d_v->typed_data();
  pollux::parallel_for(pool, a.B * a.K, [=](int64_t i) {
    const int64_t b = i / a.K;
    pollux::backward(a, in, b, i % a.K, seen + b * a.query_blocks() * a.key_blocks(), y, sums, dy, memory(pollux::backward_memory(a)), dq, dk, dv);
  });
  return ffi::Error::Success();
}

// Write rows [T, ...] into slots [T] of stacks of pages [L, N, P, ...] in place, for any number of stacks, which come first; a slot
// beyond N P is left out.
ffi::Error write(Table slots, Table index, ffi::RemainingArgs args, ffi::RemainingRets out) {
  const int64_t layer = index.typed_data()[0], T = slots.element_count();
  if (args.size() != 2 * out.size()) return ffi::Error::InvalidArgument("pollux_write: as many stacks as rows");
  for (size_t i = 0; i < out.size(); i++) {
    auto rows = args.get<ffi::AnyBuffer>(out.size() + i);
    auto stack = out.get<ffi::AnyBuffer>(i);
    if (rows.has_error()) return rows.error();
    if (stack.has_error()) return stack.error();
    const auto from = rows->dimensions(), to = (*stack)->dimensions();
    if (to.size() < 3 || from.size() + 2 != to.size() || from[0] != T || !std::equal(from.begin() + 1, from.end(), to.begin() + 3, to.end()) ||
        rows->element_type() != (*stack)->element_type())
      return ffi::Error::InvalidArgument("pollux_write: stacks [L, N, P, ...] and rows [T, ...] do not fit");
    if (layer < 0 || layer >= to[0]) return ffi::Error::InvalidArgument("pollux_write: there is no such layer");
    const int64_t S = to[1] * to[2], size = rows->size_bytes() / T;
    for (int64_t t = 0; t < T; t++) {
      const int64_t slot = slots.typed_data()[t];
      if (slot < 0 || slot >= S) continue;
      std::memcpy(static_cast<char*>((*stack)->untyped_data()) + (layer * S + slot) * size, static_cast<char*>(rows->untyped_data()) + t * size, size);
    }
  }
  return ffi::Error::Success();
}

}  // namespace

XLA_FFI_DEFINE_HANDLER_SYMBOL(pollux_write, write,
                              ffi::Ffi::Bind().Arg<Table>().Arg<Table>().RemainingArgs().RemainingRets());
XLA_FFI_DEFINE_HANDLER_SYMBOL(pollux_attention_rounded, attention_rounded,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Bytes>().Arg<Floats>().Arg<Bytes>().Arg<Floats>().Arg<Table>().Arg<Table>().Arg<Floats>().Ret<Floats>().Ret<Floats>().Attr<float>("scale"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(pollux_attention, attention,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Table>().Arg<Table>().Arg<Floats>().Ret<Floats>().Ret<Floats>().Attr<float>("scale"));
XLA_FFI_DEFINE_HANDLER_SYMBOL(pollux_attention_gradient, gradient,
                              ffi::Ffi::Bind().Ctx<ffi::ThreadPool>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Arg<Floats>().Ret<Floats>().Ret<Floats>().Ret<Floats>().Attr<float>("scale"));
