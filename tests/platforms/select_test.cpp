#include "platforms/select.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <set>
#include <string>

#include "platforms/cpu.h"

namespace mamba_edge {
namespace {

TEST(Select, GenericIsAlwaysThereAndLast) {
  size_t n = 0;
  const KernelTable* const* tables = available_tables(&n);
  ASSERT_GE(n, 1u);
  EXPECT_STREQ(tables[n - 1]->isa, "generic");
  std::set<std::string> names;
  for (size_t i = 0; i < n; ++i) EXPECT_TRUE(names.insert(tables[i]->isa).second) << tables[i]->isa;
}

TEST(Select, TakesTheBestUnlessTold) {
  size_t n = 0;
  const KernelTable* const* tables = available_tables(&n);
  EXPECT_EQ(select_table(nullptr), tables[0]);
  EXPECT_EQ(select_table("auto"), tables[0]);
  for (size_t i = 0; i < n; ++i) EXPECT_EQ(select_table(tables[i]->isa), tables[i]);
  EXPECT_EQ(select_table("avx3"), nullptr);
  EXPECT_EQ(select_table(""), nullptr);
  EXPECT_EQ(select_table("AVX2"), nullptr);
}

TEST(Select, KnowsAllNamesOfTheArchitecture) {
  const std::string known = known_isas();
#if defined(__x86_64__)
  EXPECT_EQ(known, "amx, avx512vnni, avx512, avxvnni, avx2, sse2, generic");
#elif defined(__aarch64__)
  EXPECT_EQ(known, "i8mm, dotprod, neon, generic");
#endif
  size_t n = 0;
  const KernelTable* const* tables = available_tables(&n);
  for (size_t i = 0; i < n; ++i) EXPECT_NE(known.find(tables[i]->isa), std::string::npos);
}

// The build is for compilers that know all of these.
TEST(Select, OffersWhatTheCpuRuns) {
  const CpuFeatures cpu = detect_cpu();
#if defined(__x86_64__)
  EXPECT_EQ(select_table("amx") != nullptr, cpu.amx && allow_amx());
  EXPECT_EQ(select_table("avx512vnni") != nullptr, cpu.avx512_vnni);
  EXPECT_EQ(select_table("avx512") != nullptr, cpu.avx512);
  EXPECT_EQ(select_table("avxvnni") != nullptr, cpu.avx_vnni);
  EXPECT_EQ(select_table("avx2") != nullptr, cpu.avx2);
  EXPECT_NE(select_table("sse2"), nullptr);
  EXPECT_EQ(select_table("neon"), nullptr);
#elif defined(__aarch64__)
  EXPECT_EQ(select_table("i8mm") != nullptr, cpu.i8mm);
  EXPECT_EQ(select_table("dotprod") != nullptr, cpu.dotprod);
  EXPECT_EQ(select_table("neon") != nullptr, cpu.neon);
  EXPECT_EQ(select_table("avx2"), nullptr);
#else
  (void)cpu;
#endif
}

// What the kernel tests cover on this machine, against what the CPU is said to be: by the emulator's
// setting if there is one, and by the kernel's auxiliary vector, read from its file and not asked of
// the C library as detect_cpu() does.
TEST(Tables, PrintsWhatItRuns) {
  size_t n = 0;
  const KernelTable* const* tables = available_tables(&n);
  std::string names;
  for (size_t i = 0; i < n; ++i) names += (i == 0 ? "" : ", ") + std::string(tables[i]->isa);
  const char* emulated = std::getenv("QEMU_CPU");
  std::printf("tables that run here: %s (QEMU_CPU %s)\n", names.c_str(),
              emulated != nullptr ? emulated : "not set");
#if defined(__aarch64__) && defined(__linux__)
  constexpr const char* kTablesOf[][2] = {{"cortex-a53", "neon, generic"},
                                          {"cortex-a76", "dotprod, neon, generic"},
                                          {"max", "i8mm, dotprod, neon, generic"}};
  for (const auto& [cpu, want] : kTablesOf) {
    if (emulated != nullptr && std::string(emulated) == cpu) {
      EXPECT_EQ(names, want);
    }
  }

  std::ifstream file("/proc/self/auxv", std::ios::binary);
  uint64_t entry[2] = {}, caps = 0, caps2 = 0;
  while (file.read(reinterpret_cast<char*>(entry), sizeof(entry)) && entry[0] != 0) {
    if (entry[0] == 16) caps = entry[1];   // AT_HWCAP
    if (entry[0] == 26) caps2 = entry[1];  // AT_HWCAP2
  }
  ASSERT_NE(caps, 0u) << "no /proc/self/auxv";
  std::string expected = "generic";
  if ((caps & (1u << 1)) != 0) expected = "neon, " + expected;      // HWCAP_ASIMD
  if ((caps & (1u << 20)) != 0) expected = "dotprod, " + expected;  // HWCAP_ASIMDDP
  if ((caps2 & (1u << 13)) != 0) expected = "i8mm, " + expected;    // HWCAP2_I8MM
  EXPECT_EQ(names, expected);
#else
  // Each is a known one, and they keep the order of the known ones: best first.
  const std::string known = std::string(", ") + known_isas() + ",";
  size_t at = 0;
  for (size_t i = 0; i < n; ++i) {
    at = known.find(", " + std::string(tables[i]->isa) + ",", at);
    ASSERT_NE(at, std::string::npos) << tables[i]->isa;
    ++at;
  }
#endif
}

}  // namespace
}  // namespace mamba_edge
