#include "convert/safetensors.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "convert/checkpoint.h"
#include "convert/error.h"
#include "quant/half.h"
#include "tests/convert/checkpoint_builders.h"

namespace mamba_edge::convert {
namespace {

using testing::bytes_of;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::little_endian;
using testing::safetensors;
using testing::TempFolder;

class Safetensors : public ::testing::Test {
 protected:
  std::unique_ptr<Checkpoint> open(const std::string& bytes) {
    return Checkpoint::open(folder_.write("model.safetensors", bytes));
  }

  // The message with which `bytes` are refused; empty when they are not.
  std::string refusal(const std::string& bytes) {
    try {
      open(bytes);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  }

  TempFolder folder_;
};

std::string entry(const std::string& name, const std::string& dtype, const std::string& shape,
                  uint64_t begin, uint64_t end) {
  return "\"" + name + "\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape +
         ",\"data_offsets\":[" + std::to_string(begin) + "," + std::to_string(end) + "]}";
}

TEST_F(Safetensors, ReadsEveryFloatType) {
  const std::string data = bytes_of<float>({1.5f, -2.0f}) + bytes_of<uint16_t>({0x3e00, 0xc000}) +
                           bytes_of<uint16_t>({0x3fc0, 0xc000}) + bytes_of<double>({1.5, 0.1});
  const auto checkpoint = open(safetensors(
      "{\"__metadata__\":{\"format\":\"pt\"}," + entry("f32", "F32", "[2]", 0, 8) + "," +
          entry("f16", "F16", "[2]", 8, 12) + "," + entry("bf16", "BF16", "[2]", 12, 16) + "," +
          entry("f64", "F64", "[2]", 16, 32) + "}",
      data));
  ASSERT_EQ(checkpoint->tensors().size(), 4u);
  EXPECT_THAT(checkpoint->read(*checkpoint->find("f32")), ElementsAre(1.5f, -2.0f));
  EXPECT_THAT(checkpoint->read(*checkpoint->find("f16")), ElementsAre(1.5f, -2.0f));
  EXPECT_THAT(checkpoint->read(*checkpoint->find("bf16")), ElementsAre(1.5f, -2.0f));
  EXPECT_THAT(checkpoint->read(*checkpoint->find("f64")), ElementsAre(1.5f, 0.1f));
  const SafetensorsDirectory directory =
      read_safetensors(File(folder_.path() / "model.safetensors"));
  EXPECT_EQ(directory.metadata.at("format"), "pt");
}

TEST_F(Safetensors, SixteenBitValuesAreExact) {
  std::vector<uint16_t> all(65536);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
  const auto checkpoint =
      open(safetensors("{" + entry("f16", "F16", "[65536]", 0, 131072) + "," +
                           entry("bf16", "BF16", "[65536]", 131072, 262144) + "}",
                       bytes_of(all) + bytes_of(all)));
  const std::vector<float> f16 = checkpoint->read(*checkpoint->find("f16"));
  const std::vector<float> bf16 = checkpoint->read(*checkpoint->find("bf16"));
  for (size_t i = 0; i < all.size(); ++i) {
    const float half = half_to_float(all[i]);
    const float bfloat = bfloat16_to_float(all[i]);
    // Bits, so that signs of zero and NaN payloads count.
    ASSERT_EQ(std::bit_cast<uint32_t>(f16[i]), std::bit_cast<uint32_t>(half)) << i;
    ASSERT_EQ(std::bit_cast<uint32_t>(bf16[i]), std::bit_cast<uint32_t>(bfloat)) << i;
  }
}

TEST_F(Safetensors, DoublesRoundToNearest) {
  const double above = 1.0 + 0x1p-24 + 0x1p-50;  // just above the middle of 1 and its successor
  const auto checkpoint = open(safetensors("{" + entry("t", "F64", "[3]", 0, 24) + "}",
                                           bytes_of<double>({1.0 + 0x1p-24, above, 1e300})));
  EXPECT_THAT(checkpoint->read(*checkpoint->find("t")),
              ElementsAre(1.0f, 1.0f + 0x1p-23f, std::numeric_limits<float>::infinity()));
}

TEST_F(Safetensors, RowsAreSlicesOfDimensionZero) {
  std::vector<uint16_t> values(7 * 5 * 3);
  for (size_t i = 0; i < values.size(); ++i) values[i] = float_to_half(static_cast<float>(i));
  const auto checkpoint =
      open(safetensors("{" + entry("t", "F16", "[7,5,3]", 0, 210) + "}", bytes_of(values)));
  const TensorInfo& tensor = *checkpoint->find("t");
  std::vector<float> rows(2 * 15, -1.0f);
  checkpoint->read_rows(tensor, 3, 5, rows.data());
  for (size_t i = 0; i < rows.size(); ++i) EXPECT_EQ(rows[i], static_cast<float>(45 + i));
  checkpoint->read_rows(tensor, 7, 7, nullptr);
  EXPECT_THROW(checkpoint->read_rows(tensor, 6, 8, rows.data()), Error);
  EXPECT_THROW(checkpoint->read_rows(tensor, -1, 1, rows.data()), Error);
  EXPECT_THROW(checkpoint->read_rows(tensor, 2, 1, rows.data()), Error);
}

TEST_F(Safetensors, TensorsLargerThanTheBuffer) {
  constexpr size_t kCount = 300'001;  // more than one block of 256 KiB, and a rest
  std::vector<uint16_t> values(kCount);
  for (size_t i = 0; i < kCount; ++i) values[i] = static_cast<uint16_t>(i % 0x7f80);
  const auto checkpoint = open(
      safetensors("{" + entry("t", "BF16", "[300001]", 0, 2 * kCount) + "}", bytes_of(values)));
  const std::vector<float> read = checkpoint->read(*checkpoint->find("t"));
  for (size_t i = 0; i < kCount; ++i) ASSERT_EQ(read[i], bfloat16_to_float(values[i])) << i;
}

TEST_F(Safetensors, ScalarsAndEmptyTensors) {
  const auto checkpoint = open(safetensors(
      "{" + entry("empty", "F32", "[0,4]", 0, 0) + "," + entry("scalar", "F32", "[]", 0, 4) + "}",
      bytes_of<float>({2.5f})));
  EXPECT_THAT(checkpoint->read(*checkpoint->find("scalar")), ElementsAre(2.5f));
  EXPECT_TRUE(checkpoint->read(*checkpoint->find("empty")).empty());
}

TEST_F(Safetensors, OtherTypesAreListedAndRefusedWhenRead) {
  const auto checkpoint = open(safetensors("{" + entry("i", "I64", "[1]", 0, 8) + "," +
                                               entry("f8", "F8_E4M3", "[4]", 8, 12) + "," +
                                               entry("new", "Q3_X", "[3]", 12, 13) + "}",
                                           std::string(13, '\1')));
  ASSERT_EQ(checkpoint->tensors().size(), 3u);
  for (const TensorInfo& tensor : checkpoint->tensors()) {
    EXPECT_FALSE(tensor.readable_as_float);
    try {
      checkpoint->read(tensor);
      ADD_FAILURE() << tensor.name;
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr(tensor.dtype_name));
      EXPECT_THAT(error.what(), HasSubstr("tensor " + tensor.name));
    }
  }
}

TEST_F(Safetensors, RefusesUnsoundDirectories) {
  const auto with = [&](const std::string& entries, size_t bytes) {
    return refusal(safetensors("{" + entries + "}", std::string(bytes, '\0')));
  };
  EXPECT_THAT(with(entry("a", "F32", "[2]", 0, 12), 12), HasSubstr("needs 8 bytes"));
  EXPECT_THAT(with(entry("a", "F32", "[2]", 0, 8), 4), HasSubstr("leave the 4 bytes"));
  EXPECT_THAT(with(entry("a", "F32", "[2]", 8, 0), 8), HasSubstr("leave the 8 bytes"));
  EXPECT_THAT(with(entry("a", "F32", "[2]", 0, 8) + "," + entry("b", "F32", "[2]", 4, 12), 12),
              HasSubstr("overlaps"));
  EXPECT_THAT(with(entry("a", "F32", "[1]", 0, 4) + "," + entry("b", "F32", "[1]", 8, 12), 12),
              HasSubstr("belong to no tensor"));
  EXPECT_THAT(with(entry("a", "F32", "[1]", 0, 4), 8), HasSubstr("the file holds 8"));
  EXPECT_THAT(with(entry("a", "F32", "[1]", 0, 4) + "," + entry("a", "F32", "[1]", 4, 8), 8),
              HasSubstr("\"a\" appears twice"));
  EXPECT_THAT(with(entry("a", "F32", "[-1]", 0, 4), 4), HasSubstr("not a list of sizes"));
  EXPECT_THAT(with(entry("a", "F32", "[1.0]", 0, 4), 4), HasSubstr("not a list of sizes"));
  EXPECT_THAT(with(entry("a", "F32", "[18446744073709551615]", 0, 4), 4),
              HasSubstr("not a list of sizes"));
  // 2^32 * 2^32 = 0 in 64 bits, and 2^62 elements of 4 bytes = 0 bytes.
  EXPECT_THAT(with(entry("a", "F32", "[4294967296,4294967296]", 0, 0), 0), HasSubstr("too large"));
  EXPECT_THAT(with(entry("a", "F32", "[4611686018427387904]", 0, 0), 0), HasSubstr("too large"));
  EXPECT_THAT(with(entry("a", "F32", "[0,4611686018427387904,4]", 0, 0), 0),
              HasSubstr("too large"));
  EXPECT_THAT(with("\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,-4]}", 4),
              HasSubstr("byte offsets"));
  EXPECT_THAT(with("\"a\":{\"dtype\":\"F32\",\"shape\":[1]}", 4), HasSubstr("tensor a"));
  EXPECT_THAT(with("\"a\":7", 0), HasSubstr("tensor a"));
  EXPECT_THAT(with("\"__metadata__\":{\"a\":1}", 0), HasSubstr("__metadata__"));
  EXPECT_THAT(with("\"__metadata__\":1", 0), HasSubstr("__metadata__"));
  EXPECT_THAT(refusal(safetensors("[]", "")), HasSubstr("not a JSON object"));
  EXPECT_THAT(refusal(safetensors("{,}", "")), HasSubstr("not valid JSON"));
  EXPECT_THAT(refusal(safetensors("{\"\xff\":1}", "")), HasSubstr("not valid JSON"));
  std::string deep = "1";
  for (int i = 0; i < 100; ++i) deep = "{\"a\":" + deep + "}";
  EXPECT_THAT(refusal(safetensors(deep, "")), HasSubstr("nested deeper"));
  EXPECT_THAT(refusal(safetensors(std::string(1000000, '['), "")), HasSubstr("model.safetensors"));
}

TEST_F(Safetensors, RefusesImpossibleHeaderLengths) {
  for (const uint64_t length : {uint64_t{11}, uint64_t{100'000'001}, UINT64_MAX}) {
    EXPECT_THAT(refusal(little_endian(length, 8) + "{        }"), HasSubstr("claims a header"))
        << length;
  }
  EXPECT_THAT(refusal(""), HasSubstr("ends too early"));
  EXPECT_THAT(refusal("1234567"), HasSubstr("ends too early"));
}

std::string small_file() {
  return safetensors("{" + entry("layers.0.w", "F16", "[2,3]", 0, 12) + "," +
                         entry("b", "F32", "[2]", 12, 20) + "}",
                     std::string(20, '\x11'));
}

TEST_F(Safetensors, EveryTruncationIsRefused) {
  const std::string whole = small_file();
  EXPECT_EQ(refusal(whole), "");
  for (size_t length = 0; length < whole.size(); ++length) {
    EXPECT_NE(refusal(whole.substr(0, length)), "") << length;
  }
}

TEST_F(Safetensors, FlippedBytesNeverCrash) {
  const std::string whole = small_file();
  size_t accepted = 0;
  for (size_t at = 0; at < whole.size(); ++at) {
    for (const int flip : {0x01, 0x80, 0xff, 0x10}) {
      std::string bytes = whole;
      bytes[at] = static_cast<char>(bytes[at] ^ flip);
      try {
        const auto checkpoint = open(bytes);
        for (const TensorInfo& tensor : checkpoint->tensors()) {
          if (tensor.readable_as_float) checkpoint->read(tensor);
        }
        ++accepted;
      } catch (const Error&) {
      }
    }
  }
  EXPECT_GE(accepted, 20u * 4);  // at least every flip in the data
}

}  // namespace
}  // namespace mamba_edge::convert
