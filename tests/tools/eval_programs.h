// Runs mamba-eval and reads what it writes.
#pragma once

#include <cmath>

#include "tests/tools/programs.h"
#include "tools/common.h"

namespace mamba_edge::test {

struct Floats {
  std::vector<uint64_t> shape;
  std::vector<float> values;
};

inline Floats read_floats(const std::string& path) {
  const tools::NpyArray array = tools::read_npy(path);
  EXPECT_EQ(array.dtype, "<f4") << path;
  Floats floats{array.shape, std::vector<float>(array.data.size() / sizeof(float))};
  std::memcpy(floats.values.data(), array.data.data(), array.data.size());
  return floats;
}

inline Result eval(std::vector<std::string> arguments, const std::string& input = {}) {
  arguments.insert(arguments.begin(), "mamba-eval");
  return execute(arguments, input);
}

inline std::string out_of(const std::vector<std::string>& arguments,
                          const std::string& input = {}) {
  const Result result = eval(arguments, input);
  EXPECT_EQ(result.status, 0) << result.err;
  return result.out;
}

inline void expect_failure(const Result& result, int status, const std::string& message) {
  EXPECT_EQ(result.status, status) << result.err;
  EXPECT_EQ(result.out, "");
  EXPECT_TRUE(result.err.starts_with("mamba-eval: error: ")) << result.err;
  EXPECT_NE(result.err.find(message), std::string::npos) << result.err;
}

// An int32 .npy file.
inline std::string npy_ids(const std::vector<int32_t>& ids) {
  std::string bytes = tools::npy_header("<i4", {ids.size()});
  bytes.append(reinterpret_cast<const char*>(ids.data()), ids.size() * sizeof(int32_t));
  return bytes;
}

inline double number_after(const std::string& text, const std::string& label) {
  const size_t at = text.find(label);
  EXPECT_NE(at, std::string::npos) << label << " in " << text;
  return at == std::string::npos ? NAN : std::strtod(text.c_str() + at + label.size(), nullptr);
}

}  // namespace mamba_edge::test
