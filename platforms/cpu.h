// What this CPU and its operating system let a program use. Asks the machine at each call; keeps
// nothing.
//
// A feature counts only if the OS saves its registers (XCR0 on x86). detect_cpu() does not ask the
// kernel for AMX permission, and does not measure speed.
#pragma once

namespace mamba_edge {

struct CpuFeatures {
  // x86
  bool sse2 = false;
  bool avx2 = false;         // AVX2, FMA and F16C
  bool avx_vnni = false;     // with avx2
  bool avx512 = false;       // F, BW, DQ and VL
  bool avx512_vnni = false;  // with avx512
  bool amx = false;          // int8 and bfloat16, with avx512_vnni; needs permission
  // 64-bit Arm
  bool neon = false;
  bool dotprod = false;
  bool i8mm = false;
  bool sve = false;
};

CpuFeatures detect_cpu();

// Asks the OS to let this process use AMX tiles, and says whether it may. To be called only where
// the CPU has them. The permission is for all threads, those that run already and those to come, and
// lasts until the process ends or executes another program. It costs a thread nothing until it uses
// a tile: then the kernel reserves 8 KiB to save its tiles in, and signal frames grow by as much, so
// the kernel refuses where a thread's alternative signal stack is too small for that.
bool allow_amx();

}  // namespace mamba_edge
