#include "platforms/select.h"

#include <gtest/gtest.h>

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
  EXPECT_EQ(known, "avx512vnni, avx512, avxvnni, avx2, sse2, generic");
#elif defined(__aarch64__)
  EXPECT_EQ(known, "neon, generic");
#endif
  size_t n = 0;
  const KernelTable* const* tables = available_tables(&n);
  for (size_t i = 0; i < n; ++i) EXPECT_NE(known.find(tables[i]->isa), std::string::npos);
}

// The build is for compilers that know all of these.
TEST(Select, OffersWhatTheCpuRuns) {
  const CpuFeatures cpu = detect_cpu();
#if defined(__x86_64__)
  EXPECT_EQ(select_table("avx512vnni") != nullptr, cpu.avx512_vnni);
  EXPECT_EQ(select_table("avx512") != nullptr, cpu.avx512);
  EXPECT_EQ(select_table("avxvnni") != nullptr, cpu.avx_vnni);
  EXPECT_EQ(select_table("avx2") != nullptr, cpu.avx2);
  EXPECT_NE(select_table("sse2"), nullptr);
  EXPECT_EQ(select_table("neon"), nullptr);
#elif defined(__aarch64__)
  EXPECT_EQ(select_table("neon") != nullptr, cpu.neon);
  EXPECT_EQ(select_table("avx2"), nullptr);
#else
  (void)cpu;
#endif
}

}  // namespace
}  // namespace mamba_edge
