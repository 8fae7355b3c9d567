#include "platforms/cpu.h"

#include <gtest/gtest.h>

#include <cstdio>
#include <fstream>
#include <set>
#include <sstream>
#include <string>

namespace mamba_edge {
namespace {

// What the kernel says that programs may use, which takes the registers that it saves into account.
std::set<std::string> kernel_flags() {
  std::ifstream in("/proc/cpuinfo");
  std::string line;
  while (std::getline(in, line)) {
    if (line.rfind("flags", 0) == 0 || line.rfind("Features", 0) == 0) {
      std::istringstream words(line.substr(line.find(':') + 1));
      return {std::istream_iterator<std::string>(words), {}};
    }
  }
  return {};
}

TEST(Cpu, AgreesWithTheKernel) {
  const CpuFeatures cpu = detect_cpu();
  const std::set<std::string> flags = kernel_flags();
  auto all = [&](std::initializer_list<const char*> names) {
    for (const char* name : names) {
      if (flags.count(name) == 0) return false;
    }
    return true;
  };
#if defined(__x86_64__)
  if (!all({"sse2"})) GTEST_SKIP() << "no /proc/cpuinfo of this architecture";
  EXPECT_EQ(cpu.sse2, all({"sse2"}));
  EXPECT_EQ(cpu.avx2, all({"avx2", "fma", "f16c"}));
  EXPECT_EQ(cpu.avx_vnni, cpu.avx2 && all({"avx_vnni"}));
  EXPECT_EQ(cpu.avx512, cpu.avx2 && all({"avx512f", "avx512bw", "avx512dq", "avx512vl"}));
  EXPECT_EQ(cpu.avx512_vnni, cpu.avx512 && all({"avx512_vnni"}));
  EXPECT_EQ(cpu.amx, cpu.avx512_vnni && all({"amx_tile", "amx_int8", "amx_bf16"}));
  EXPECT_FALSE(cpu.neon);
#elif defined(__aarch64__)
  EXPECT_TRUE(cpu.neon);
  EXPECT_FALSE(cpu.avx2);
  if (!all({"asimd"}))
    GTEST_SKIP() << "no /proc/cpuinfo of this architecture";  // an emulator shows its host's
  EXPECT_EQ(cpu.dotprod, all({"asimddp"}));
  EXPECT_EQ(cpu.i8mm, all({"i8mm"}));
  EXPECT_EQ(cpu.sve, all({"sve"}));
#else
  (void)cpu;
#endif
}

// A feature that builds on another one never comes without it.
TEST(Cpu, IsConsistent) {
  const CpuFeatures cpu = detect_cpu();
  EXPECT_TRUE(!cpu.avx_vnni || cpu.avx2);
  EXPECT_TRUE(!cpu.avx512 || cpu.avx2);
  EXPECT_TRUE(!cpu.avx512_vnni || cpu.avx512);
  EXPECT_TRUE(!cpu.amx || cpu.avx512_vnni);
  EXPECT_TRUE(!cpu.dotprod || cpu.neon);
  EXPECT_TRUE(!cpu.i8mm || cpu.neon);
  std::printf(
      "cpu: sse2 %d avx2 %d avx_vnni %d avx512 %d avx512_vnni %d amx %d | neon %d dotprod %d "
      "i8mm %d sve %d\n",
      cpu.sse2, cpu.avx2, cpu.avx_vnni, cpu.avx512, cpu.avx512_vnni, cpu.amx, cpu.neon, cpu.dotprod,
      cpu.i8mm, cpu.sve);
}

}  // namespace
}  // namespace mamba_edge
