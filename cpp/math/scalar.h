// SPDX-License-Identifier: BSD-3-Clause
#pragma once

#include <cstdint>
#include <cstring>

#include "host_device.h"

// The element types of snapshots. The two 16-bit types are storage only: every value is widened
// to double on the way in, and on the way out rounded as torch does: to float, then to nearest with
// ties to even.
namespace koopfast {

enum class ScalarType : int { float32 = 0, float64 = 1, bfloat16 = 2, float16 = 3 };

inline int64_t size_of(ScalarType type) {
  return type == ScalarType::float64 ? 8 : type == ScalarType::float32 ? 4 : 2;
}

struct Bfloat16 {
  uint16_t bits;
};

struct Float16 {
  uint16_t bits;
};

KF_HD inline float bits_to_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

KF_HD inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

KF_HD inline double widen(float value) { return value; }
KF_HD inline double widen(double value) { return value; }
KF_HD inline double widen(Bfloat16 value) {
  return bits_to_float(static_cast<uint32_t>(value.bits) << 16);
}
KF_HD inline double widen(Float16 value) {
  const uint32_t magnitude = value.bits & 0x7fffu;
  const uint32_t sign = static_cast<uint32_t>(value.bits & 0x8000u) << 16;
  // In a float's fields the exponent is 112 too small. Subnormal numbers are scaled as integers:
  // their bits as a float would be subnormal too, and some processors are told to flush those.
  // Infinity and NaN have the exponent 31 and take all ones.
  const float scaled = magnitude < 0x400u ? static_cast<float>(magnitude) * 0x1p-24f
                                          : bits_to_float((magnitude << 13) + 0x38000000u);
  const uint32_t finite = float_to_bits(scaled);
  const uint32_t special = 0x7f800000u | (magnitude << 13);
  return bits_to_float(sign | (magnitude >= 0x7c00u ? special : finite));
}

KF_HD inline void narrow(double value, double& out) { out = value; }
KF_HD inline void narrow(double value, float& out) { out = static_cast<float>(value); }
KF_HD inline void narrow(double value, Bfloat16& out) {
  const uint32_t bits = float_to_bits(static_cast<float>(value));
  const uint32_t rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  // Rounding would carry a NaN's payload into infinity: keep it a quiet NaN instead.
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  out.bits = static_cast<uint16_t>((nan ? (bits | 0x400000u) : rounded) >> 16);
}
KF_HD inline void narrow(double value, Float16& out) {
  const uint32_t bits = float_to_bits(static_cast<float>(value));
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;  // NaN
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;  // 65520 and above round to infinity
  } else if (magnitude < 0x38800000u) {
    // Subnormal in half precision: adding 0.5 lets the float adder do the rounding.
    half = float_to_bits(bits_to_float(magnitude) + 0.5f) - 0x3f000000u;
  } else {
    const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
    half = (rounded - 0x38000000u) >> 13;
  }
  out.bits = static_cast<uint16_t>(sign | half);
}

}  // namespace koopfast
