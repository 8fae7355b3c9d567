// Reading GGUF: what is there arrives, and what is damaged or hostile is refused by name.
#include "convert/gguf.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>

#include "convert/checkpoint.h"
#include "convert/error.h"
#include "convert/find_tokenizer.h"
#include "convert/ggml_blocks.h"
#include "convert/gguf_model.h"
#include "convert/names.h"
#include "quant/half.h"
#include "tests/convert/gguf_builder.h"

namespace mamba_edge::convert {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using testing::float_bytes;
using testing::gguf_string;
using testing::GgufBuilder;
using ::testing::HasSubstr;
using testing::little_endian;
using testing::small_gguf;
using testing::TempFolder;

// Everything that a conversion does with a file before it writes.
void use(const fs::path& path) {
  const auto checkpoint = Checkpoint::open(path);
  PublishedConfig config = read_gguf_config(*checkpoint);
  const NamedTensors named = name_tensors(*checkpoint, config.model);
  find_tokenizer(*checkpoint, {}, &config.model);
  for (const NamedTensor& tensor : named.tensors) checkpoint->read(*tensor.source);
}

std::string refusal(const TempFolder& folder, std::string_view bytes) {
  const fs::path path = folder.write("bad.gguf", bytes);
  try {
    use(path);
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("bad.gguf"));
    return error.what();
  }
  return "";
}

TEST(Gguf, ReadsMetadataOfEveryKind) {
  for (const uint32_t version : {2u, 3u}) {
    GgufBuilder b;
    b.version = version;
    b.raw("u8", GgufBuilder::u8, little_endian(200, 1))
        .raw("i8", GgufBuilder::i8, little_endian(0xFB, 1))
        .raw("u16", GgufBuilder::u16, little_endian(60000, 2))
        .raw("i16", GgufBuilder::i16, little_endian(0xFFFE, 2))
        .number("u32", 4000000000u)
        .raw("i32", GgufBuilder::i32, little_endian(7, 4))
        .real("f32", -1.5f)
        .flag("yes", true)
        .flag("no", false)
        .text("text", "gr\xC3\xBC\xC3\x9F")
        .raw("u64", GgufBuilder::u64, little_endian(UINT64_MAX, 8))
        .raw("i64", GgufBuilder::i64, little_endian(5, 8))
        .raw("f64", GgufBuilder::f64, testing::bytes_of(std::vector<double>{0.1}))
        .texts("texts", {"a", "", "bc"})
        .integers("integers", {1, -2, 3})
        .list("bytes", GgufBuilder::u8, 3, "\x01\xFF\x03")
        .floats("floats", {0.25f, 3});
    const TempFolder folder;
    const File file(folder.write("a.gguf", b.bytes()));
    ASSERT_TRUE(looks_like_gguf(file));
    const GgufMetadata m = read_gguf(file).metadata;
    EXPECT_EQ(m.count("u8"), 200u);
    EXPECT_EQ(m.count("u16"), 60000u);
    EXPECT_EQ(m.count("u32"), 4000000000u);
    EXPECT_EQ(m.count("i32"), 7u);
    EXPECT_EQ(m.count("u64"), UINT64_MAX);
    EXPECT_EQ(m.count("i64"), 5u);
    EXPECT_EQ(m.number("i8"), -5.0);
    EXPECT_EQ(m.number("i16"), -2.0);
    EXPECT_EQ(m.number("f32"), -1.5);
    EXPECT_EQ(m.number("f64"), 0.1);
    EXPECT_EQ(m.number("u32"), 4e9);
    EXPECT_EQ(m.flag("yes"), true);
    EXPECT_EQ(m.flag("no"), false);
    EXPECT_EQ(m.text("text"), "gr\xC3\xBC\xC3\x9F");
    EXPECT_THAT(m.texts("texts"), ElementsAre("a", "", "bc"));
    EXPECT_THAT(m.integers("integers"), ElementsAre(1, -2, 3));
    EXPECT_THAT(m.integers("bytes"), ElementsAre(1, 255, 3));
    EXPECT_THAT(m.floats("floats"), ElementsAre(0.25f, 3.0f));
    EXPECT_EQ(m.count("absent"), std::nullopt);
    EXPECT_EQ(m.text("absent"), std::nullopt);
    EXPECT_TRUE(m.texts("absent").empty());
    EXPECT_TRUE(m.has("f64"));
    EXPECT_FALSE(m.has("f6"));

    const auto message = [](const std::function<void()>& ask) -> std::string {
      try {
        ask();
      } catch (const Error& error) {
        return error.what();
      }
      return "";
    };
    const auto wrong = [&](const std::string& text, const char* key, const char* kind) {
      EXPECT_THAT(text, HasSubstr("a.gguf"));
      EXPECT_THAT(text, HasSubstr(key));
      EXPECT_THAT(text, HasSubstr(kind));
    };
    wrong(message([&] { m.count("f32"); }), "f32", "an integer");
    wrong(message([&] { m.count("i8"); }), "i8", "-5");
    wrong(message([&] { m.number("text"); }), "text", "string");
    wrong(message([&] { m.number("yes"); }), "yes", "bool");
    wrong(message([&] { m.flag("u8"); }), "u8", "bool");
    wrong(message([&] { m.text("texts"); }), "texts", "array of string");
    wrong(message([&] { m.texts("integers"); }), "integers", "array of i32");
    wrong(message([&] { m.integers("floats"); }), "floats", "array of f32");
    wrong(message([&] { m.integers("u8"); }), "u8", "an array of integers");
    wrong(message([&] { m.floats("integers"); }), "integers", "array of i32");
  }
}

TEST(Gguf, ReadsTensorsWithTheFastestDimensionLast) {
  GgufBuilder b;
  b.alignment = 64;
  b.number("general.alignment", 64);
  const std::vector<float> values = {1, 2, 3, 4, 5, 6};
  b.tensor("m", {3, 2}, 0, testing::bytes_of(values));
  const std::vector<uint16_t> halves = {0x3C00, 0xC000};  // 1, -2
  b.tensor("v", {2}, 1, testing::bytes_of(halves));
  const std::vector<uint16_t> bfloats = {0x3F80, 0xC040};  // 1, -3
  b.tensor("b", {2, 1, 1, 1}, 30, testing::bytes_of(bfloats));
  b.tensor("i", {4}, 26, std::string(16, '\1'));  // I32
  const TempFolder folder;
  const auto c = Checkpoint::open(folder.write("a.gguf", b.bytes()));
  ASSERT_NE(c->gguf(), nullptr);
  ASSERT_EQ(c->tensors().size(), 4u);
  EXPECT_EQ(c->find("m")->shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(c->read(*c->find("m")), values);
  float row[3];
  c->read_rows(*c->find("m"), 1, 2, row);
  EXPECT_THAT(row, ElementsAre(4, 5, 6));
  EXPECT_THAT(c->read(*c->find("v")), ElementsAre(1, -2));
  EXPECT_EQ(c->find("b")->shape, (std::vector<int64_t>{1, 1, 1, 2}));
  EXPECT_THAT(c->read(*c->find("b")), ElementsAre(1, -3));
  EXPECT_FALSE(c->find("i")->readable_as_float);
  EXPECT_EQ(c->find("i")->dtype_name, "I32");
  EXPECT_EQ(c->files().size(), 1u);
}

TEST(Gguf, FolderWithOneFile) {
  const TempFolder folder;
  folder.write("model-q8.gguf", small_gguf().bytes());
  EXPECT_NE(Checkpoint::open(folder.path())->gguf(), nullptr);
  folder.write("another.gguf", small_gguf().bytes());
  try {
    Checkpoint::open(folder.path());
    FAIL() << "one of two files was chosen";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("another.gguf and model-q8.gguf"));
  }
}

// Whatever is cut off: refused, unless it is padding behind the last tensor (a multiple of 32 bytes,
// so there is none here).
TEST(Gguf, EveryTruncation) {
  const std::string whole = small_gguf().bytes();
  const TempFolder folder;
  ASSERT_EQ(refusal(folder, whole), "");
  const size_t header = small_gguf().header().size();
  for (size_t n = 0; n < whole.size(); n += n < header + 64 ? 1 : 997) {
    EXPECT_NE(refusal(folder, whole.substr(0, n)), "") << n;
  }
  EXPECT_NE(refusal(folder, whole.substr(0, whole.size() - 1)), "");
  EXPECT_EQ(refusal(folder, whole + "tail"), "");
}

// Any byte of the header replaced: an Error or a file that can be read, never more.
TEST(Gguf, EveryDamagedByteOfTheHeader) {
  const std::string whole = small_gguf().bytes();
  const size_t header = small_gguf().header().size();
  const TempFolder folder;
  std::mt19937 random(1);
  size_t refused = 0;
  for (size_t i = 0; i < header; ++i) {
    std::string damaged = whole;
    damaged[i] = static_cast<char>(static_cast<uint8_t>(damaged[i]) ^ (1 + random() % 255));
    refused += !refusal(folder, damaged).empty();
  }
  EXPECT_GT(refused,
            header / 3);  // names, counts and sizes; most of the rest is text of the vocabulary
}

struct Hostile {
  const char* what;
  std::function<void(GgufBuilder&)> change;
  const char* says;
};

TEST(Gguf, HostileFilesAreRefusedByName) {
  constexpr uint64_t kHuge = uint64_t{1} << 60;
  const auto u64 = [](uint64_t value) { return little_endian(value, 8); };
  const std::vector<Hostile> all = {
      {"version 1", [](auto& b) { b.version = 1; }, "GGUF version 1"},
      {"version 4", [](auto& b) { b.version = 4; }, "GGUF version 4"},
      {"big-endian", [](auto& b) { b.version = 0x03000000; }, "big-endian"},
      {"entries", [](auto& b) { b.claimed_entries = kHuge; }, "metadata entries"},
      {"more entries than there are", [](auto& b) { b.claimed_entries = b.entries.size() + 1; },
       ""},
      {"tensors", [](auto& b) { b.claimed_tensors = kHuge; }, "tensors, the limit"},
      {"more tensors than there are", [](auto& b) { b.claimed_tensors = b.tensors.size() + 1; },
       ""},
      {"key length", [&](auto& b) { b.entries[0] = u64(kHuge) + "general.architecture"; },
       "claims 1152921504606846976 bytes"},
      {"key length near 2^64", [&](auto& b) { b.entries[0] = u64(UINT64_MAX - 7); }, "claims"},
      {"empty key", [](auto& b) { b.text("", "x"); }, "has 0 bytes"},
      {"long key", [](auto& b) { b.text(std::string(300, 'k'), "x"); }, "has 300 bytes"},
      {"key twice", [](auto& b) { b.text("general.architecture", "mamba"); },
       "general.architecture appears twice"},
      {"unknown kind", [](auto& b) { b.raw("odd", 13, "12345678"); }, "odd has kind 13"},
      {"string length", [&](auto& b) { b.raw("odd", GgufBuilder::string, u64(kHuge)); },
       "odd claims"},
      {"array of arrays",
       [&](auto& b) { b.list("odd", GgufBuilder::array, 1, little_endian(4, 4) + u64(0)); },
       "odd is an array of arrays"},
      {"array of an unknown kind", [](auto& b) { b.list("odd", 99, 1, "x"); }, "odd has kind 99"},
      {"array length", [](auto& b) { b.list("odd", GgufBuilder::u8, kHuge, ""); }, "odd claims"},
      {"array length that overflows",
       [](auto& b) { b.list("odd", GgufBuilder::u64, uint64_t{1} << 61, ""); }, "odd claims"},
      {"array of strings", [](auto& b) { b.list("odd", GgufBuilder::string, kHuge, ""); },
       "odd claims"},
      {"string in an array", [&](auto& b) { b.list("odd", GgufBuilder::string, 1, u64(kHuge)); },
       "odd claims"},
      {"alignment 0", [](auto& b) { b.number("general.alignment", 0); }, "general.alignment is 0"},
      {"alignment 24", [](auto& b) { b.number("general.alignment", 24); },
       "general.alignment is 24"},
      {"alignment 2^31", [](auto& b) { b.number("general.alignment", 1u << 31); },
       "general.alignment"},
      {"alignment as text", [](auto& b) { b.text("general.alignment", "32"); },
       "general.alignment"},
      {"split", [](auto& b) { b.number("split.count", 3); }, "llama-gguf-split"},
      {"empty name", [](auto& b) { b.tensors[0].name = ""; }, "tensor number 0 has 0 bytes"},
      {"name twice", [](auto& b) { b.tensors[2].name = b.tensors[1].name; },
       "output_norm.weight appears twice"},
      {"five dimensions",
       [](auto& b) {
         b.tensors[0].sizes = {32, 40, 1, 1, 1};
       },
       "5 dimensions"},
      {"huge dimension", [](auto& b) { b.tensors[0].sizes = {UINT64_MAX}; }, "too large"},
      {"product that overflows",
       [](auto& b) {
         b.tensors[0].sizes = {uint64_t{1} << 40, uint64_t{1} << 40};
       },
       "too large"},
      {"product beyond the file", [](auto& b) { b.tensors[0].sizes = {uint64_t{1} << 50}; },
       "token_embd.weight has 4503599627370496 bytes"},
      {"unknown type", [](auto& b) { b.tensors[0].type = 99; }, "token_embd.weight has type 99"},
      {"removed type", [](auto& b) { b.tensors[0].type = 4; }, "has type 4"},
      {"unreadable type", [](auto& b) { b.tensors[0].type = 23; },
       "token_embd.weight holds IQ4_XS"},
      {"rows that are no blocks", [](auto& b) { b.tensors[0].type = 12; },
       "no multiple of the 256"},
      {"offset off alignment", [](auto& b) { b.tensors[1].claimed_offset = 5124; },
       "output_norm.weight: its offset 5124"},
      {"offset outside", [](auto& b) { b.tensors[1].claimed_offset = 1u << 30; },
       "output_norm.weight has 128 bytes at offset 1073741824"},
      {"offset near 2^64", [](auto& b) { b.tensors[1].claimed_offset = UINT64_MAX - 31; },
       "output_norm.weight"},
      {"overlap", [](auto& b) { b.tensors[1].claimed_offset = 64; },
       "token_embd.weight and output_norm.weight overlap"},
  };
  for (const Hostile& hostile : all) {
    GgufBuilder b = small_gguf();
    hostile.change(b);
    const TempFolder folder;
    const std::string message = refusal(folder, b.bytes());
    EXPECT_NE(message, "") << hostile.what;
    EXPECT_THAT(message, HasSubstr(hostile.says)) << hostile.what;
  }
}

TEST(Gguf, NumberOfDimensions) {
  const TempFolder folder;
  const std::string message =
      refusal(folder, "GGUF" + little_endian(3, 4) + little_endian(1, 8) + little_endian(0, 8) +
                          gguf_string("t") + little_endian(UINT32_MAX, 4));
  EXPECT_THAT(message, HasSubstr("tensor t has 4294967295 dimensions"));
}

// Control characters in a name do not reach the terminal.
TEST(Gguf, MessagesArePrintable) {
  GgufBuilder b = small_gguf();
  b.raw("evil\x1b[2J\nkey", 13, "");
  const TempFolder folder;
  const std::string message = refusal(folder, b.bytes());
  EXPECT_THAT(message, HasSubstr("evil?[2J?key"));
}

TEST(Gguf, TensorsAreFoundInADirectoryOfAllSizes) {
  // 10,000 tensors without elements take no data, and no quadratic time.
  GgufBuilder b;
  for (int i = 0; i < 10000; ++i) b.tensor("t" + std::to_string(i), {0}, 0, "");
  const TempFolder folder;
  EXPECT_EQ(Checkpoint::open(folder.write("a.gguf", b.bytes()))->tensors().size(), 10000u);
}

// ---- blocks

// The number types by their GGUF numbers, and how ggml-quants.c decodes each: loops over the parts of
// a block in the order in which they are stored, so written differently from convert/ggml_blocks.cpp,
// which goes by elements.
using Block = std::vector<uint8_t>;

float half_of(const Block& b, size_t at) {
  return half_to_float(static_cast<uint16_t>(b[at] | b[at + 1] << 8));
}
float f(int value) { return static_cast<float>(value); }

std::vector<float> reference_simple(DType type, const Block& b) {
  std::vector<float> y(32);
  const float d = half_of(b, 0);
  const bool has_min = type == DType::q4_1 || type == DType::q5_1;
  const bool five = type == DType::q5_0 || type == DType::q5_1;
  size_t at = has_min ? 4 : 2;
  uint32_t fifth = 0;
  if (five) {
    for (size_t i = 0; i < 4; ++i) fifth |= uint32_t{b[at + i]} << (8 * i);
    at += 4;
  }
  static constexpr int kTable[] = {-127, -104, -83, -65, -49, -35, -22, -10,
                                   1,    13,   25,  38,  53,  69,  89,  113};
  for (size_t i = 0; i < 16; ++i) {
    int low = b[at + i] % 16, high = b[at + i] / 16;
    if (five) {
      low += 16 * static_cast<int>(fifth >> i & 1);
      high += 16 * static_cast<int>(fifth >> (i + 16) & 1);
    }
    const auto value = [&](int q) {
      if (type == DType::iq4_nl) return d * f(kTable[q]);
      if (has_min) return f(q) * d + half_of(b, 2);
      return f(q - (five ? 16 : 8)) * d;
    };
    y[i] = value(low);
    y[i + 16] = value(high);
  }
  return y;
}

std::vector<float> reference_q2_k(const Block& b) {
  std::vector<float> y;
  size_t scale = 0;
  for (size_t half = 0; half < 2; ++half) {
    for (int shift = 0; shift < 8; shift += 2) {
      for (size_t part = 0; part < 2; ++part, ++scale) {
        for (size_t l = 0; l < 16; ++l) {
          const int q = b[16 + 32 * half + 16 * part + l] >> shift & 3;
          y.push_back(half_of(b, 80) * f(b[scale] % 16) * f(q) - half_of(b, 82) * f(b[scale] / 16));
        }
      }
    }
  }
  return y;
}

std::vector<float> reference_q3_k(const Block& b) {
  // 16 scales from 12 bytes, as four 32-bit words.
  int scales[16];
  for (int i = 0; i < 4; ++i) {
    const int high = b[104 + static_cast<size_t>(i)];
    const int first = b[96 + static_cast<size_t>(i)], second = b[100 + static_cast<size_t>(i)];
    scales[i] = (first & 15) | (high & 3) << 4;
    scales[i + 4] = (second & 15) | (high >> 2 & 3) << 4;
    scales[i + 8] = first >> 4 | (high >> 4 & 3) << 4;
    scales[i + 12] = second >> 4 | (high >> 6 & 3) << 4;
  }
  std::vector<float> y;
  size_t scale = 0;
  int mask = 1;
  for (size_t half = 0; half < 2; ++half) {
    for (int shift = 0; shift < 8; shift += 2, mask <<= 1) {
      for (size_t part = 0; part < 2; ++part, ++scale) {
        for (size_t l = 16 * part; l < 16 * part + 16; ++l) {
          int q = b[32 + 32 * half + l] >> shift & 3;
          if ((b[l] & mask) == 0) q -= 4;
          y.push_back(half_of(b, 108) * f(scales[scale] - 32) * f(q));
        }
      }
    }
  }
  return y;
}

std::vector<float> reference_q45_k(const Block& b, bool five) {
  int scales[8], mins[8];
  for (size_t i = 0; i < 4; ++i) {
    scales[i] = b[4 + i] & 63;
    mins[i] = b[8 + i] & 63;
    scales[i + 4] = (b[12 + i] & 15) | (b[4 + i] >> 6) << 4;
    mins[i + 4] = b[12 + i] >> 4 | (b[8 + i] >> 6) << 4;
  }
  std::vector<float> y;
  const size_t nibbles = five ? 48 : 16;
  for (size_t part = 0; part < 8; ++part) {
    for (size_t l = 0; l < 32; ++l) {
      const int byte = b[nibbles + part / 2 * 32 + l];
      int q = part % 2 == 0 ? byte & 15 : byte >> 4;
      if (five && (b[16 + l] >> part & 1) != 0) q += 16;
      y.push_back(half_of(b, 0) * f(scales[part]) * f(q) - half_of(b, 2) * f(mins[part]));
    }
  }
  return y;
}

std::vector<float> reference_q6_k(const Block& b) {
  std::vector<float> y(256);
  for (size_t half = 0; half < 2; ++half) {
    for (size_t l = 0; l < 32; ++l) {
      const int first = b[64 * half + l], second = b[64 * half + 32 + l];
      const int high = b[128 + 32 * half + l];
      const int q[4] = {(first & 15) | (high & 3) << 4, (second & 15) | (high >> 2 & 3) << 4,
                        first >> 4 | (high >> 4 & 3) << 4, second >> 4 | (high >> 6 & 3) << 4};
      for (size_t k = 0; k < 4; ++k) {
        const auto scale = static_cast<int8_t>(b[192 + 8 * half + 2 * k + l / 16]);
        y[128 * half + 32 * k + l] = half_of(b, 208) * f(scale) * f(q[k] - 32);
      }
    }
  }
  return y;
}

std::vector<float> reference(DType type, const Block& b) {
  std::vector<float> y;
  switch (type) {
    case DType::q2_k:
      return reference_q2_k(b);
    case DType::q3_k:
      return reference_q3_k(b);
    case DType::q4_k:
      return reference_q45_k(b, false);
    case DType::q5_k:
      return reference_q45_k(b, true);
    case DType::q6_k:
      return reference_q6_k(b);
    case DType::q8_0:
      for (size_t i = 0; i < 32; ++i) y.push_back(half_of(b, 0) * f(static_cast<int8_t>(b[2 + i])));
      return y;
    case DType::q8_k: {
      float d;
      std::memcpy(&d, b.data(), 4);
      for (size_t i = 0; i < 256; ++i) y.push_back(d * f(static_cast<int8_t>(b[4 + i])));
      return y;
    }
    default:
      return reference_simple(type, b);
  }
}

constexpr uint32_t kBlockTypes[] = {2, 3, 6, 7, 8, 10, 11, 12, 13, 14, 15, 20};

// Random bytes, with the binary16 (or, in q8_k, binary32) factors made finite.
Block random_block(DType type, std::mt19937& random) {
  Block b(block_layout(type).bytes);
  for (uint8_t& byte : b) byte = static_cast<uint8_t>(random());
  const auto tame = [&](size_t at) { b[at + 1] = static_cast<uint8_t>((b[at + 1] & 0x83) | 0x20); };
  switch (type) {
    case DType::q2_k:
      tame(80);
      tame(82);
      break;
    case DType::q3_k:
      tame(108);
      break;
    case DType::q6_k:
      tame(208);
      break;
    case DType::q8_k:
      b[3] = 0x3B;
      break;
    default:
      tame(0);
      if (type != DType::q4_0 && type != DType::q5_0 && type != DType::q8_0 &&
          type != DType::iq4_nl)
        tame(2);
  }
  return b;
}

TEST(GgmlBlocks, DecodeAsTheFormatSays) {
  for (const uint32_t number : kBlockTypes) {
    const GgufTensorType* const type = gguf_tensor_type(number);
    ASSERT_NE(type, nullptr);
    ASSERT_TRUE(type->dtype);
    const BlockLayout layout = block_layout(*type->dtype);
    std::mt19937 random(number);
    for (int i = 0; i < 50; ++i) {
      const Block b = random_block(*type->dtype, random);
      std::vector<float> got(layout.elements);
      decode_blocks(*type->dtype, reinterpret_cast<const char*>(b.data()), 1, got.data());
      EXPECT_EQ(got, reference(*type->dtype, b)) << type->name;
    }
  }
}

// Rows of a tensor of blocks, also those of a vector, which may begin inside a block.
TEST(GgmlBlocks, RowsOfATensorAreSlicesOfIt) {
  GgufBuilder b;
  std::mt19937 random(5);
  for (const uint32_t number : kBlockTypes) {
    const DType type = *gguf_tensor_type(number)->dtype;
    std::string bytes;
    for (uint32_t i = 0; i < 1024 / block_layout(type).elements; ++i) {
      const Block block = random_block(type, random);
      bytes.append(block.begin(), block.end());
    }
    b.tensor("m" + std::to_string(number), {256, 4}, number, bytes);
    b.tensor("v" + std::to_string(number), {1024}, number, bytes);
  }
  const TempFolder folder;
  const auto c = Checkpoint::open(folder.write("a.gguf", b.bytes()));
  for (const uint32_t number : kBlockTypes) {
    const TensorInfo& m = *c->find("m" + std::to_string(number));
    const TensorInfo& v = *c->find("v" + std::to_string(number));
    const std::vector<float> all = c->read(m);
    ASSERT_EQ(all.size(), 1024u);
    EXPECT_EQ(c->read(v), all);
    for (int64_t row = 0; row < 4; ++row) {
      std::vector<float> two(row < 3 ? 512 : 256);
      c->read_rows(m, row, std::min<int64_t>(row + 2, 4), two.data());
      EXPECT_TRUE(std::equal(two.begin(), two.end(), all.begin() + row * 256));
    }
    for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{
             {0, 1}, {31, 33}, {100, 900}, {255, 257}, {1023, 1024}, {7, 7}}) {
      std::vector<float> some(static_cast<size_t>(end - begin));
      c->read_rows(v, begin, end, some.data());
      EXPECT_TRUE(std::equal(some.begin(), some.end(), all.begin() + begin)) << begin;
    }
  }
}

// A value is off by at most half a step, and by what the scale loses in binary16 (2^-11 of itself,
// times the integer of at most 127 or 8). q4_0 has no 8 for the end opposite of its extreme value: it
// can be off by a whole step there.
TEST(GgmlBlocks, EncodeRoundsToNearest) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 0.02f);
  for (const DType type : {DType::q8_0, DType::q4_0}) {
    for (int round = 0; round < 200; ++round) {
      float values[64];
      for (float& v : values) v = normal(random);
      char blocks[2 * 34];
      float decoded[64];
      encode_blocks(type, values, 2, blocks);
      decode_blocks(type, blocks, 2, decoded);
      for (int k = 0; k < 2; ++k) {
        float largest = 0;
        for (int i = 0; i < 32; ++i) largest = std::max(largest, std::fabs(values[32 * k + i]));
        const float step = largest / (type == DType::q8_0 ? 127 : 8);
        const float bound = (type == DType::q8_0 ? 0.5f : 1.0f) * step + largest * 0x1p-11f;
        for (int i = 0; i < 32; ++i) {
          EXPECT_NEAR(decoded[32 * k + i], values[32 * k + i], bound * 1.0001f);
        }
      }
      // What has been decoded is encoded without loss.
      char again[2 * 34];
      float twice[64];
      encode_blocks(type, decoded, 2, again);
      decode_blocks(type, again, 2, twice);
      for (int i = 0; i < 64; ++i) {
        EXPECT_NEAR(twice[i], decoded[i], std::fabs(decoded[i]) * 0x1p-10f);
      }
    }
  }
}

TEST(GgmlBlocks, EncodeZerosAndTinyValues) {
  for (const DType type : {DType::q8_0, DType::q4_0}) {
    for (const float value : {0.0f, -0.0f, 1e-45f, -1e-40f, 1e-38f}) {
      float values[32], decoded[32];
      std::fill_n(values, 32, value);
      char block[34];
      encode_blocks(type, values, 1, block);
      decode_blocks(type, block, 1, decoded);
      for (const float d : decoded) EXPECT_EQ(d, 0.0f);  // below 2^-25, half of binary16's smallest
    }
  }
}

// ---- the model in the file

TEST(GgufModel, ConfigAndTensorsArrive) {
  const TempFolder folder;
  const auto c = Checkpoint::open(folder.write("a.gguf", small_gguf().bytes()));
  const PublishedConfig published = read_gguf_config(*c);
  const ModelConfig& m = published.model;
  EXPECT_EQ(m.architecture, Architecture::mamba);
  EXPECT_EQ(m.d_model, 32u);
  EXPECT_EQ(m.n_layer, 1u);
  EXPECT_EQ(m.n_vocab, 40u);
  EXPECT_EQ(m.norm_eps, 1e-5f);
  EXPECT_EQ(m.tied, 1u);
  EXPECT_EQ(m.bos_token, -1);
  EXPECT_EQ(m.eos_token, 4);
  EXPECT_EQ(m.mamba1.d_inner, 64u);
  EXPECT_EQ(m.mamba1.d_state, 4u);
  EXPECT_EQ(m.mamba1.d_conv, 4u);
  EXPECT_EQ(m.mamba1.dt_rank, 2u);
  EXPECT_EQ(m.mamba1.conv_bias, 1u);
  EXPECT_EQ(m.mamba1.proj_bias, 0u);
  EXPECT_EQ(m.mamba1.dt_bc_norm, 0u);
  const NamedTensors named = name_tensors(*c, m);
  EXPECT_TRUE(named.a_is_folded);
  for (const NamedTensor& t : named.tensors) {
    EXPECT_EQ(t.source->shape, source_shape(m, t.role));
    EXPECT_EQ(t.source->name, gguf_tensor_name(t.role, t.layer));
  }
}

TEST(GgufModel, FalconMambaIsMambaWithNorms) {
  const TempFolder folder;
  GgufBuilder b = small_gguf();
  b.flag("mamba.ssm.dt_b_c_rms", true);
  const ModelConfig m =
      read_gguf_config(*Checkpoint::open(folder.write("a.gguf", b.bytes()))).model;
  EXPECT_EQ(m.architecture, Architecture::falcon_mamba);
  EXPECT_EQ(m.mamba1.dt_bc_norm, 1u);
  EXPECT_EQ(m.mamba1.dt_bc_eps, 1e-5f);
}

TEST(GgufModel, AnEndOutsideTheVocabularyIsIgnoredWithAWarning) {
  const TempFolder folder;
  GgufBuilder b = small_gguf();
  b.remove("tokenizer.ggml.eos_token_id").number("tokenizer.ggml.eos_token_id", 40);
  const PublishedConfig c = read_gguf_config(*Checkpoint::open(folder.write("a.gguf", b.bytes())));
  EXPECT_EQ(c.model.eos_token, -1);
  ASSERT_EQ(c.warnings.size(), 1u);
  EXPECT_THAT(c.warnings[0], HasSubstr("eos_token_id 40"));
}

TEST(GgufModel, WhatDoesNotFitIsRefusedByName) {
  std::vector<Hostile> all = {
      {"llama",
       [](auto& b) { b.remove("general.architecture").text("general.architecture", "llama"); },
       "general.architecture is llama; mamba, mamba2"},
      {"no architecture", [](auto& b) { b.remove("general.architecture"); }, "is missing"},
      {"two layers", [](auto& b) { b.remove("mamba.block_count").number("mamba.block_count", 2); },
       "lacks tensor blk.1.attn_norm.weight of shape [32]"},
      {"no layers", [](auto& b) { b.remove("mamba.block_count").number("mamba.block_count", 0); },
       "n_layer is 0"},
      {"width",
       [](auto& b) { b.remove("mamba.embedding_length").number("mamba.embedding_length", 16); },
       "tensor token_embd.weight has shape [40, 32], the metadata says [40, 16]"},
      {"a width of 2^63",
       [](auto& b) {
         b.remove("mamba.embedding_length")
             .raw("mamba.embedding_length", GgufBuilder::u64, little_endian(uint64_t{1} << 63, 8));
       },
       "embedding_length is 9223372036854775808"},
      {"a negative width",
       [](auto& b) {
         b.remove("mamba.embedding_length")
             .raw("mamba.embedding_length", GgufBuilder::i32, little_endian(0xFFFFFFFF, 4));
       },
       "embedding_length is -1"},
      {"epsilon",
       [](auto& b) {
         b.remove("mamba.attention.layer_norm_rms_epsilon")
             .real("mamba.attention.layer_norm_rms_epsilon", NAN);
       },
       "norm_eps"},
      {"a tensor too many", [](auto& b) { b.tensor("blk.0.ssm_in.bias", {1}, 0, float_bytes(1)); },
       "has tensor blk.0.ssm_in.bias, which the model has no use for"},
      {"a transposed matrix",
       [](auto& b) {
         b.find("blk.0.ssm_x.weight").sizes = {10, 64};
       },
       "blk.0.ssm_x.weight has shape [64, 10]"},
  };
  for (const char* key : {"mamba.block_count", "mamba.embedding_length", "mamba.ssm.conv_kernel",
                          "mamba.ssm.inner_size", "mamba.ssm.state_size",
                          "mamba.ssm.time_step_rank", "mamba.attention.layer_norm_rms_epsilon"}) {
    all.push_back({key, [key](auto& b) { b.remove(key); }, key});
  }
  for (const GgufBuilder::Tensor& t : small_gguf().tensors) {
    all.push_back({"a missing tensor",
                   [name = t.name](GgufBuilder& b) {
                     std::erase_if(b.tensors,
                                   [&](const auto& other) { return other.name == name; });
                   },
                   "lacks tensor"});
  }
  for (const Hostile& hostile : all) {
    GgufBuilder b = small_gguf();
    hostile.change(b);
    const TempFolder folder;
    const std::string message = refusal(folder, b.bytes());
    EXPECT_NE(message, "") << hostile.what;
    EXPECT_THAT(message, HasSubstr(hostile.says)) << hostile.what;
  }
}

}  // namespace
}  // namespace mamba_edge::convert
