// What this CPU and its operating system let a program use. Asks the machine at each call; keeps
// nothing.
//
// A feature counts only if the OS saves its registers (XCR0 on x86). Does not ask the kernel for
// AMX permission, and does not measure speed.
#pragma once

namespace mamba_edge {

struct CpuFeatures {
  // x86
  bool sse2 = false;
  bool avx2 = false;         // AVX2, FMA and F16C
  bool avx_vnni = false;     // with avx2
  bool avx512 = false;       // F, BW, DQ and VL
  bool avx512_vnni = false;  // with avx512
  bool amx_int8 = false;     // tiles and int8 products; a process must still ask for permission
  // 64-bit Arm
  bool neon = false;
  bool dotprod = false;
  bool i8mm = false;
  bool sve = false;
};

CpuFeatures detect_cpu();

}  // namespace mamba_edge
