// Products of float32 activations with 4- or 8-bit weights, on one thread. pollux/model/quantized.py says what the bits mean.
//
// A weight [K, N] is stored as blocks of 16 outputs x 32 inputs, first along K, then along N. A block is
//   4 bit: 4 x 64 bytes; byte 4 r + c of row j holds output r, input 4 j + c in the low half, input 16 + 4 j + c in the high half;
//   8 bit: 8 x 64 bytes; byte 4 r + c of row j holds output r, input 4 j + c;
// and then 16 float16 scales, one an output. weight = (code - zero) * scale with zero 8 or 128.
// Activations are rounded to 8 bits in groups of 32 along K: x = code * max|group| / 127.

#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#define POLLUX_X86 1
#elif defined(__aarch64__)
#include <arm_neon.h>
#define POLLUX_ARM 1
#endif

namespace pollux {

constexpr int64_t kInputs = 32;    // of a block
constexpr int64_t kOutputs = 16;   // of a block
constexpr int kMaxRows = 8;        // of activations that share one reading of a block
enum Instructions : int { kScalar = 0, kAvx2 = 1, kAvx512Vnni = 2, kNeonDot = 3 };

template <int bits>
constexpr int64_t block_bytes() { return kInputs * kOutputs * bits / 8 + 2 * kOutputs; }
template <int bits>
constexpr int32_t zero() { return 1 << (bits - 1); }

// Rows of activations as 8-bit codes: codes [M, G, 32], scales [M, G], sums of the codes [M, G].
struct Activations {
  int8_t* codes;
  float* scales;
  int32_t* sums;
};

// One group of up to 32 values; the rest of the group is zero. A NaN or an infinity makes the scale NaN, and so every output.
inline void round_group(const float* x, int64_t count, int8_t* codes, float* scale, int32_t* sum) {
  float most = 0;
  bool finite = true;
  for (int64_t i = 0; i < count; i++) {
    most = std::fmax(most, std::fabs(x[i]));
    finite = finite && std::isfinite(x[i]);
  }
  const float inverse = most > 0 && finite ? 127.0f / most : 0.0f;
  int32_t total = 0;
  for (int64_t i = 0; i < count; i++) {
    const int32_t code = static_cast<int32_t>(std::nearbyintf(finite ? std::fmin(127.0f, std::fmax(-127.0f, x[i] * inverse)) : 0.0f));
    codes[i] = static_cast<int8_t>(code);
    total += code;
  }
  std::memset(codes + count, 0, kInputs - count);
  *scale = finite ? most / 127.0f : NAN;
  *sum = total;
}

#if POLLUX_X86
__attribute__((target("avx512f,avx512bw"))) inline void round_group_avx512(const float* x, int8_t* codes, float* scale, int32_t* sum) {
  const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
  const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
  const __m512 zero = _mm512_setzero_ps();  // inf * 0 and NaN * 0 are unordered
  const int odd = _mm512_cmp_ps_mask(_mm512_mul_ps(a, zero), zero, _CMP_UNORD_Q) | _mm512_cmp_ps_mask(_mm512_mul_ps(b, zero), zero, _CMP_UNORD_Q);
  if (odd || !(most < 1e38f) || most < 1e-36f) return round_group(x, kInputs, codes, scale, sum);
  const __m512 inverse = _mm512_set1_ps(127.0f / most);
  const __m512i ia = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)), ib = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(codes), _mm512_cvtsepi32_epi8(ia));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(codes + 16), _mm512_cvtsepi32_epi8(ib));
  *scale = most / 127.0f;
  *sum = _mm512_reduce_add_epi32(_mm512_add_epi32(ia, ib));
}
#endif

inline void round_row(const float* x, int64_t K, int8_t* codes, float* scales, int32_t* sums, Instructions instructions) {
  const int64_t G = (K + kInputs - 1) / kInputs;
  for (int64_t g = 0; g < G; g++) {
    const int64_t count = K - g * kInputs < kInputs ? K - g * kInputs : kInputs;
#if POLLUX_X86
    if (instructions == kAvx512Vnni && count == kInputs) {
      round_group_avx512(x + g * kInputs, codes + g * kInputs, scales + g, sums + g);
      continue;
    }
#endif
    round_group(x + g * kInputs, count, codes + g * kInputs, scales + g, sums + g);
  }
}

inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000) << 16, exponent = (half >> 10) & 31, mantissa = half & 1023;
  float value;
  if (exponent == 0) {
    value = std::ldexp(static_cast<float>(mantissa), -24);
  } else if (exponent == 31) {
    value = mantissa ? NAN : INFINITY;
  } else {
    const uint32_t bits = ((exponent + 112) << 23) | (mantissa << 13);
    std::memcpy(&value, &bits, 4);
  }
  return sign ? -value : value;
}

// A tile: `rows` <= kMaxRows rows of activations times the G blocks of 16 outputs at `block` -> y[row * stride + 0..15].
using Tile = void (*)(const uint8_t* block, const Activations& x, int64_t G, int rows, float* y, int64_t stride);

template <int bits>
void tile_scalar(const uint8_t* block, const Activations& x, int64_t G, int rows, float* y, int64_t stride) {
  for (int row = 0; row < rows; row++) std::memset(y + row * stride, 0, kOutputs * sizeof(float));
  for (int64_t g = 0; g < G; g++, block += block_bytes<bits>()) {
    int8_t codes[kOutputs][kInputs];
    float scales[kOutputs];
    for (int j = 0; j < bits; j++)
      for (int r = 0; r < kOutputs; r++)
        for (int c = 0; c < 4; c++) {
          const uint8_t byte = block[64 * j + 4 * r + c];
          if (bits == 4) {
            codes[r][4 * j + c] = static_cast<int8_t>((byte & 15) - zero<bits>());
            codes[r][16 + 4 * j + c] = static_cast<int8_t>((byte >> 4) - zero<bits>());
          } else {
            codes[r][4 * j + c] = static_cast<int8_t>(byte - zero<bits>());
          }
        }
    for (int r = 0; r < kOutputs; r++) {
      uint16_t half;
      std::memcpy(&half, block + 64 * bits + 2 * r, 2);
      scales[r] = half_to_float(half);
    }
    for (int row = 0; row < rows; row++) {
      const int8_t* group = x.codes + (row * G + g) * kInputs;
      for (int r = 0; r < kOutputs; r++) {
        int32_t sum = 0;
        for (int k = 0; k < kInputs; k++) sum += codes[r][k] * group[k];
        y[row * stride + r] += static_cast<float>(sum) * (scales[r] * x.scales[row * G + g]);
      }
    }
  }
}

#if POLLUX_X86
inline int32_t four(const int8_t* codes) {
  int32_t value;
  std::memcpy(&value, codes, 4);
  return value;
}

template <int bits, int rows>
__attribute__((target("avx512f,avx512bw,avx512vnni"))) void tile_avx512_rows(const uint8_t* block, const Activations& x, int64_t G, float* y,
                                                                             int64_t stride) {
  const __m512i low = _mm512_set1_epi8(15);
  __m512 total[rows];
  for (int row = 0; row < rows; row++) total[row] = _mm512_setzero_ps();
  for (int64_t g = 0; g < G; g++, block += block_bytes<bits>()) {
    if (rows == 1)
      for (int64_t ahead = 0; ahead < block_bytes<bits>(); ahead += 64)
        _mm_prefetch(reinterpret_cast<const char*>(block) + 16 * block_bytes<bits>() + ahead, _MM_HINT_T0);
    __m512i w[8];
#pragma GCC unroll 8
    for (int j = 0; j < bits; j++) {
      const __m512i bytes = _mm512_loadu_si512(block + 64 * j);
      if (bits == 4) {
        w[j] = _mm512_and_si512(bytes, low);
        w[4 + j] = _mm512_and_si512(_mm512_srli_epi16(bytes, 4), low);
      } else {
        w[j] = bytes;
      }
    }
    const __m512 scale = _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + 64 * bits)));
#pragma GCC unroll 8
    for (int row = 0; row < rows; row++) {
      const int64_t at = row * G + g;
      const int8_t* codes = x.codes + at * kInputs;
      __m512i a = _mm512_set1_epi32(-zero<bits>() * x.sums[at]), b = _mm512_setzero_si512();
#pragma GCC unroll 4
      for (int j = 0; j < 4; j++) {
        a = _mm512_dpbusd_epi32(a, w[j], _mm512_set1_epi32(four(codes + 4 * j)));
        b = _mm512_dpbusd_epi32(b, w[4 + j], _mm512_set1_epi32(four(codes + 16 + 4 * j)));
      }
      total[row] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_add_epi32(a, b)), _mm512_mul_ps(scale, _mm512_set1_ps(x.scales[at])), total[row]);
    }
  }
  for (int row = 0; row < rows; row++) _mm512_storeu_ps(y + row * stride, total[row]);
}

template <int bits>
void tile_avx512(const uint8_t* block, const Activations& x, int64_t G, int rows, float* y, int64_t stride) {
  switch (rows) {
    case 1: return tile_avx512_rows<bits, 1>(block, x, G, y, stride);
    case 2: return tile_avx512_rows<bits, 2>(block, x, G, y, stride);
    case 3: return tile_avx512_rows<bits, 3>(block, x, G, y, stride);
    case 4: return tile_avx512_rows<bits, 4>(block, x, G, y, stride);
    case 5: return tile_avx512_rows<bits, 5>(block, x, G, y, stride);
    case 6: return tile_avx512_rows<bits, 6>(block, x, G, y, stride);
    case 7: return tile_avx512_rows<bits, 7>(block, x, G, y, stride);
    default: return tile_avx512_rows<bits, 8>(block, x, G, y, stride);
  }
}

// AVX2 has u8 x s8 -> s16 pairs that saturate: 4-bit codes cannot reach the limit, 8-bit ones enter as |x| times w with x's sign.
template <int bits>
__attribute__((target("avx2,fma,f16c"))) void tile_avx2(const uint8_t* block, const Activations& x, int64_t G, int rows, float* y,
                                                        int64_t stride) {
  const __m256i low = _mm256_set1_epi8(15), ones = _mm256_set1_epi16(1), flip = _mm256_set1_epi8(-128);
  for (int row = 0; row < rows; row++) std::memset(y + row * stride, 0, kOutputs * sizeof(float));
  for (int64_t g = 0; g < G; g++, block += block_bytes<bits>()) {
    for (int half = 0; half < 2; half++) {
      __m256i w[8];
      for (int j = 0; j < bits; j++) {
        const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(block + 64 * j + 32 * half));
        if (bits == 4) {
          w[j] = _mm256_and_si256(bytes, low);
          w[4 + j] = _mm256_and_si256(_mm256_srli_epi16(bytes, 4), low);
        } else {
          w[j] = _mm256_xor_si256(bytes, flip);
        }
      }
      const __m256 scale = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(block + 64 * bits + 16 * half)));
      for (int row = 0; row < rows; row++) {
        const int64_t at = row * G + g;
        __m256i sum = _mm256_set1_epi32(bits == 4 ? -zero<bits>() * x.sums[at] : 0);
        for (int j = 0; j < 8; j++) {
          const __m256i codes = _mm256_set1_epi32(four(x.codes + at * kInputs + 4 * j));
          const __m256i pairs = bits == 4 ? _mm256_maddubs_epi16(w[j], codes) : _mm256_maddubs_epi16(_mm256_abs_epi8(codes), _mm256_sign_epi8(w[j], codes));
          sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, ones));
        }
        float* out = y + row * stride + 8 * half;
        const __m256 factor = _mm256_mul_ps(scale, _mm256_set1_ps(x.scales[at]));
        _mm256_storeu_ps(out, _mm256_fmadd_ps(_mm256_cvtepi32_ps(sum), factor, _mm256_loadu_ps(out)));
      }
    }
  }
}
#endif

#if POLLUX_ARM
template <int bits>
__attribute__((target("arch=armv8.2-a+dotprod"))) void tile_neon(const uint8_t* block, const Activations& x, int64_t G, int rows, float* y,
                                                                 int64_t stride) {
  for (int row = 0; row < rows; row++) std::memset(y + row * stride, 0, kOutputs * sizeof(float));
  const uint8x16_t low = vdupq_n_u8(15), offset = vdupq_n_u8(zero<bits>());
  for (int64_t g = 0; g < G; g++, block += block_bytes<bits>()) {
    for (int quarter = 0; quarter < 4; quarter++) {
      int8x16_t w[8];
      for (int j = 0; j < bits; j++) {
        const uint8x16_t bytes = vld1q_u8(block + 64 * j + 16 * quarter);
        if (bits == 4) {
          w[j] = vreinterpretq_s8_u8(vsubq_u8(vandq_u8(bytes, low), offset));
          w[4 + j] = vreinterpretq_s8_u8(vsubq_u8(vshrq_n_u8(bytes, 4), offset));
        } else {
          w[j] = vreinterpretq_s8_u8(vsubq_u8(bytes, offset));
        }
      }
      uint16_t halves[4];
      std::memcpy(halves, block + 64 * bits + 8 * quarter, 8);
      const float32x4_t scale = vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(halves)));
      for (int row = 0; row < rows; row++) {
        const int64_t at = row * G + g;
        int32x4_t sum = vdupq_n_s32(0);
        for (int j = 0; j < 8; j++) {
          int32_t value;
          std::memcpy(&value, x.codes + at * kInputs + 4 * j, 4);
          sum = vdotq_s32(sum, w[j], vreinterpretq_s8_s32(vdupq_n_s32(value)));
        }
        float* out = y + row * stride + 4 * quarter;
        vst1q_f32(out, vfmaq_f32(vld1q_f32(out), vcvtq_f32_s32(sum), vmulq_n_f32(scale, x.scales[at])));
      }
    }
  }
}
#endif

// The tile for these instructions, or null where the processor or the compiler does not have them.
template <int bits>
Tile tile(Instructions instructions) {
#if POLLUX_X86
  if (instructions == kAvx512Vnni && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vnni"))
    return tile_avx512<bits>;
  if (instructions == kAvx2 && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"))
    return tile_avx2<bits>;
#elif POLLUX_ARM
  if (instructions == kNeonDot) return tile_neon<bits>;
#endif
  return instructions == kScalar ? tile_scalar<bits> : nullptr;
}

inline Instructions best() {
  for (Instructions instructions : {kAvx512Vnni, kAvx2, kNeonDot})
    if (tile<4>(instructions)) return instructions;
  return kScalar;
}

// Outputs [first, last) x 16 of rows [0, M): y [M, N]. Rows go in panels that stay in the second-level cache while the weights pass.
template <int bits>
void product(Tile tile, const uint8_t* weight, const Activations& x, int64_t M, int64_t G, int64_t N, int64_t first, int64_t last, float* y) {
  constexpr int64_t kPanelBytes = 256 << 10;
  int64_t panel = kPanelBytes / (G * kInputs) / kMaxRows * kMaxRows;
  if (panel < kMaxRows) panel = kMaxRows;
  for (int64_t top = 0; top < M; top += panel) {
    const int64_t bottom = top + panel < M ? top + panel : M;
    for (int64_t b = first; b < last; b++) {
      const uint8_t* block = weight + b * G * block_bytes<bits>();
      for (int64_t row = top; row < bottom; row += kMaxRows) {
        const int rows = static_cast<int>(bottom - row < kMaxRows ? bottom - row : kMaxRows);
        const Activations part{x.codes + row * G * kInputs, x.scales + row * G, x.sums + row * G};
        if ((b + 1) * kOutputs <= N) {
          tile(block, part, G, rows, y + row * N + b * kOutputs, N);
        } else {
          float whole[kMaxRows * kOutputs];
          tile(block, part, G, rows, whole, kOutputs);
          for (int i = 0; i < rows; i++) std::memcpy(y + (row + i) * N + b * kOutputs, whole + i * kOutputs, (N - b * kOutputs) * sizeof(float));
        }
      }
    }
  }
}

}  // namespace pollux
