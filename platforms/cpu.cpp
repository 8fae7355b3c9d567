#include "platforms/cpu.h"

#include <cstdint>

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

#if defined(__x86_64__) || defined(__i386__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace mamba_edge {

#if defined(__x86_64__) || defined(__i386__)

namespace {

struct Leaf {
  uint32_t eax = 0, ebx = 0, ecx = 0, edx = 0;
};

Leaf read_leaf(uint32_t leaf, uint32_t subleaf) {
  Leaf r;
  if (__get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx) == 0) return Leaf{};
  return r;
}

bool bit(uint32_t word, int n) { return ((word >> n) & 1u) != 0; }

// Which register sets the OS saves. Only with OSXSAVE.
uint64_t read_xcr0() {
  uint32_t low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return (uint64_t{high} << 32) | low;
}

constexpr uint64_t kYmmState = 0x06;      // SSE, AVX
constexpr uint64_t kZmmState = 0xe6;      // and opmask, upper halves, upper sixteen
constexpr uint64_t kTileState = 0x60000;  // tile configuration and data

}  // namespace

CpuFeatures detect_cpu() {
  CpuFeatures f;
  const Leaf basic = read_leaf(1, 0);
  f.sse2 = bit(basic.edx, 26);
  if (!bit(basic.ecx, 27)) return f;  // OSXSAVE
  const uint64_t state = read_xcr0();
  const Leaf extended = read_leaf(7, 0);
  const Leaf more = extended.eax >= 1 ? read_leaf(7, 1) : Leaf{};
  const bool ymm = (state & kYmmState) == kYmmState && bit(basic.ecx, 28);
  const bool zmm = (state & kZmmState) == kZmmState;
  f.avx2 = ymm && bit(extended.ebx, 5) && bit(basic.ecx, 12) && bit(basic.ecx, 29);
  f.avx_vnni = f.avx2 && bit(more.eax, 4);
  f.avx512 = f.avx2 && zmm && bit(extended.ebx, 16) && bit(extended.ebx, 17) &&
             bit(extended.ebx, 30) && bit(extended.ebx, 31);
  f.avx512_vnni = f.avx512 && bit(extended.ecx, 11);
  f.amx = f.avx512_vnni && (state & kTileState) == kTileState && bit(extended.edx, 24) &&
          bit(extended.edx, 25) && bit(extended.edx, 22);
  return f;
}

#elif defined(__aarch64__)

CpuFeatures detect_cpu() {
  CpuFeatures f;
#if defined(__linux__)
  // Bits of the kernel's ABI (Documentation/arm64/elf_hwcaps.rst); older headers lack some of the
  // names.
  constexpr unsigned long kAsimd = 1ul << 1, kAsimdDot = 1ul << 20, kSve = 1ul << 22;
  constexpr unsigned long kI8mm = 1ul << 13;
  const unsigned long caps = getauxval(AT_HWCAP);
  const unsigned long caps2 = getauxval(AT_HWCAP2);
  f.neon = (caps & kAsimd) != 0;
  f.dotprod = f.neon && (caps & kAsimdDot) != 0;
  f.i8mm = f.neon && (caps2 & kI8mm) != 0;
  f.sve = f.neon && (caps & kSve) != 0;
#else
  f.neon = true;  // part of the architecture
#endif
  return f;
}

#else

CpuFeatures detect_cpu() { return {}; }

#endif

bool allow_amx() {
#if defined(__x86_64__) && defined(__linux__)
  // Documentation/arch/x86/xstate.rst of the kernel; older headers lack the names. A kernel older
  // than 5.16 knows no such request, and does not enable tiles either.
  constexpr long kGetPermission = 0x1022, kRequestPermission = 0x1023, kTileData = 18;
  uint64_t allowed = 0;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0 &&
         syscall(SYS_arch_prctl, kGetPermission, &allowed) == 0 &&
         ((allowed >> kTileData) & 1) != 0;
#else
  return false;
#endif
}

}  // namespace mamba_edge
