// SPDX-License-Identifier: BSD-3-Clause
#pragma once

// KF_HD marks maths that host and device share. KF_MULTIARCH compiles a hot loop once per
// instruction set and lets the loader choose, so that one wheel is fast on AVX2 and AVX-512.
// KF_INLINE is KF_HD for what such a loop calls: inlined always, it is compiled for the same
// instruction set.
#ifdef __CUDACC__
#define KF_HD __host__ __device__
#define KF_INLINE __host__ __device__ __forceinline__
#else
#define KF_HD
#define KF_INLINE __attribute__((always_inline)) inline
#endif

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__CUDACC__) && \
    !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
#define KF_MULTIARCH __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
// For a loop written for one instruction set, behind a check of has_avx512().
#define KF_AVX512 __attribute__((target("arch=x86-64-v4")))
#else
#define KF_MULTIARCH
#endif
