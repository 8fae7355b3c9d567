#include "convert/checkpoint.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <thread>

#include "convert/error.h"
#include "tests/convert/checkpoint_builders.h"

namespace mamba_edge::convert {
namespace {

namespace fs = std::filesystem;
using testing::bytes_of;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::one_tensor_pickle;
using testing::safetensors;
using testing::TempFolder;
using testing::torch_archive;

// Where a reference case lies: some are in the tree, the others may be beside it.
fs::path golden(const std::string& folder) {
  const fs::path own = fs::path(MAMBA_EDGE_SOURCE_DIR) / "tests/data/golden" / folder;
  return fs::exists(own) ? own : fs::path(MAMBA_EDGE_SHARED_DIR) / "golden" / folder;
}

uint64_t fnv1a(uint64_t hash, const void* data, size_t count) {
  const auto* bytes = static_cast<const unsigned char*>(data);
  for (size_t i = 0; i < count; ++i) hash = (hash ^ bytes[i]) * 0x100000001b3;
  return hash;
}

// What a reader written in another language (Python's zipfile, pickle and struct modules) found in
// the same files: FNV-1a over, by name, the name, the sizes as int64 and the values as float32.
struct Golden {
  const char* folder;
  size_t tensors;
  int64_t elements;
  uint64_t hash;
};

constexpr Golden kGoldenFolders[] = {
    {"falcon-mamba-hf", 23, 101312, 0x0bce7e0a6ca3546d},
    {"falcon-mamba-hf-eps", 26, 51120, 0xa09fa82b60593201},
    {"mamba1-hf-bias-untied", 27, 66864, 0xd878d1d5efa6f046},
    {"mamba1-hf-bin", 23, 37856, 0x713bc8a81510c39a},
    {"mamba1-hf-dims", 20, 67440, 0xfeda101d7efe8cd3},
    {"mamba1-hf-sharded-bf16", 32, 116096, 0x42c9e07a08f02213},
    {"mamba1-hf-short", 22, 28896, 0x90f7cd22d97e0291},
    {"mamba1-hf-tied", 22, 83392, 0x84589e7cae77974b},
    {"mamba1-ss-bf16", 33, 134016, 0x113879bf617c3899},
    {"mamba1-ss-dims", 25, 83280, 0xa52b50fe36bd6429},
    {"mamba1-ss-extreme", 23, 37856, 0xa34630d2cd4e04c5},
    {"mamba1-ss-fp16", 33, 134016, 0x952f7ac14390a48f},
    {"mamba1-ss-fp32", 33, 134016, 0x6c2d55110a0c0ecf},
    {"mamba1-ss-layernorm", 26, 66528, 0xa216dbd53aff0a9c},
    {"mamba1-ss-legacy", 23, 37856, 0xded8fce3c1f6644c},
    {"mamba1-ss-long", 23, 37856, 0xb10cff1715101890},
    {"mamba1-ss-sharded-bin", 33, 47808, 0x4f0ebe0f6fbbca6e},
    {"mamba1-ss-views", 23, 37856, 0x8823969b1fdedae1},
    {"mamba2-hf", 21, 96624, 0x19b7eabf896419ff},
    {"mamba2-hf-dt-limit", 25, 63840, 0x56f55a56cc3a22fc},
    {"mamba2-hf-groups", 30, 171848, 0x6672ff0cefb84098},
    {"mamba2-mistral", 21, 162764, 0xe479ce4484a22256},
    {"mamba2-seed-all1-long", 23, 93232, 0xb25672f06f078987},
    {"mamba2-seed-default", 21, 60290, 0xa036e330f92ce077},
    {"mamba2-seed-dtlimit", 21, 89356, 0x0f20d7e1f71e6502},
    {"mamba2-seed-groups2", 21, 67176, 0xaa45af4d2acf4b88},
    {"mamba2-seed-init", 23, 93452, 0x2ed6134dbb730b9d},
    {"mamba2-ss-d-has-hdim", 21, 64168, 0x4d186cd46550f31a},
    {"mamba2-ss-dssm", 21, 63400, 0x759ca00b2a4fbafd},
    {"mamba2-ss-dt-limit", 21, 63988, 0x50ba119ce61bc17b},
    {"mamba2-ss-fp16", 30, 128008, 0x6f89bed2aa8d723f},
    {"mamba2-ss-fp32", 21, 123340, 0x2522c97056f0f042},
    {"mamba2-ss-groups", 30, 141256, 0x7d5fc9e2073a5ee2},
    {"mamba2-ss-long", 21, 36600, 0xe76e53cc601bae4b},
    {"mamba2-ss-no-gated-norm", 21, 78392, 0x9ed65e08f2623684},
    {"mamba2-ss-norm-before-gate", 21, 63988, 0xd3ce3540666fc24a},
    {"mamba2-ss-untied", 21, 63988, 0x754f6d291b8bc00b},
};

class GoldenFolder : public ::testing::TestWithParam<Golden> {};

TEST_P(GoldenFolder, HoldsTheValuesThatAnotherReaderFinds) {
  const Golden& expected = GetParam();
  const fs::path folder = golden(expected.folder);
  if (!fs::exists(folder)) GTEST_SKIP() << "no reference data";
  const auto checkpoint = Checkpoint::open(folder);
  int64_t elements = 0;
  uint64_t hash = 0xcbf29ce484222325;
  for (const TensorInfo& tensor : checkpoint->tensors()) {
    ASSERT_TRUE(tensor.readable_as_float) << tensor.name;
    const std::vector<float> values = checkpoint->read(tensor);
    for (const float value : values) ASSERT_TRUE(std::isfinite(value)) << tensor.name;
    elements += tensor.elements();
    hash = fnv1a(hash, tensor.name.data(), tensor.name.size());
    hash = fnv1a(hash, tensor.shape.data(), tensor.shape.size() * sizeof(int64_t));
    hash = fnv1a(hash, values.data(), values.size() * sizeof(float));

    // Row by row is the same as all at once.
    const auto row = values.size() / static_cast<size_t>(tensor.rows());
    std::vector<float> rows(values.size());
    for (int64_t r = 0; r < tensor.rows(); ++r) {
      checkpoint->read_rows(tensor, r, r + 1, rows.data() + static_cast<size_t>(r) * row);
    }
    EXPECT_EQ(rows, values) << tensor.name;
  }
  EXPECT_EQ(checkpoint->tensors().size(), expected.tensors);
  EXPECT_EQ(elements, expected.elements);
  EXPECT_EQ(hash, expected.hash);
}

INSTANTIATE_TEST_SUITE_P(Golden, GoldenFolder, ::testing::ValuesIn(kGoldenFolders),
                         [](const auto& test) {
                           std::string name = test.param.folder;
                           for (char& c : name) c = c == '-' ? '_' : c;
                           return name;
                         });

TEST(GoldenFolders, PrecisionsOfOneModelAgree) {
  if (!fs::exists(golden("mamba1-ss-fp32"))) GTEST_SKIP() << "no reference data";
  const auto exact = Checkpoint::open(golden("mamba1-ss-fp32"));
  for (const auto& [folder, relative] :
       {std::pair("mamba1-ss-fp16", 0x1p-11f), std::pair("mamba1-ss-bf16", 0x1p-8f)}) {
    const auto rounded = Checkpoint::open(golden(folder));
    ASSERT_EQ(rounded->tensors().size(), exact->tensors().size());
    for (const TensorInfo& tensor : exact->tensors()) {
      const std::vector<float> a = exact->read(tensor);
      const std::vector<float> b = rounded->read(*rounded->find(tensor.name));
      ASSERT_EQ(a.size(), b.size());
      for (size_t i = 0; i < a.size(); ++i) {
        // Half of the last place; 2^-25 is half of float16's smallest subnormal.
        ASSERT_LE(std::abs(a[i] - b[i]), std::abs(a[i]) * relative + 0x1p-25f) << tensor.name;
      }
    }
  }
}

TEST(GoldenFolders, TiedWeightsShareTheirStorage) {
  if (!fs::exists(golden("mamba1-ss-fp32"))) GTEST_SKIP() << "no reference data";
  for (const char* folder : {"mamba1-ss-fp32", "mamba1-ss-legacy", "mamba1-ss-views"}) {
    const auto checkpoint = Checkpoint::open(golden(folder));
    const TensorInfo& embedding = *checkpoint->find("backbone.embedding.weight");
    EXPECT_TRUE(Checkpoint::same_storage(embedding, *checkpoint->find("lm_head.weight"))) << folder;
    EXPECT_FALSE(Checkpoint::same_storage(embedding, *checkpoint->find("backbone.norm_f.weight")));
  }
}

// A checkpoint of one tensor "t" = [value], and one with other names.
std::string file_with(const std::string& name, float value) {
  return safetensors("{\"" + name + "\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
                     bytes_of<float>({value}));
}

std::string archive_with(float value) {
  return torch_archive(one_tensor_pickle(1, 0, {1}, {1}), {bytes_of<float>({value})});
}

float value_of(const fs::path& input, const std::string& name = "t") {
  const auto checkpoint = Checkpoint::open(input);
  return checkpoint->read(*checkpoint->find(name)).at(0);
}

std::string refusal(const fs::path& input) {
  try {
    Checkpoint::open(input);
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

TEST(CheckpointOpen, PrefersFilesInADocumentedOrder) {
  const TempFolder folder;
  const auto index = [](const std::string& shard) {
    return "{\"metadata\":{},\"weight_map\":{\"t\":\"" + shard + "\"}}";
  };
  folder.write("shard1", archive_with(1));
  folder.write("pytorch_model.bin.index.json", index("shard1"));
  EXPECT_EQ(value_of(folder.path()), 1);
  folder.write("pytorch_model.bin", archive_with(2));
  EXPECT_EQ(value_of(folder.path()), 2);
  folder.write("shard3", file_with("t", 3));
  folder.write("consolidated.safetensors.index.json", index("shard3"));
  EXPECT_EQ(value_of(folder.path()), 3);
  folder.write("consolidated.safetensors", file_with("t", 4));
  EXPECT_EQ(value_of(folder.path()), 4);
  folder.write("shard5", file_with("t", 5));
  folder.write("model.safetensors.index.json", index("shard5"));
  EXPECT_EQ(value_of(folder.path()), 5);
  folder.write("model.safetensors", file_with("t", 6));
  EXPECT_EQ(value_of(folder.path()), 6);
}

TEST(CheckpointOpen, TakesSingleFilesByTheirContent) {
  const TempFolder folder;
  for (const char* name : {"a.pt", "b.pth", "c.bin", "d"}) {
    EXPECT_EQ(value_of(folder.write(name, archive_with(7))), 7) << name;
  }
  EXPECT_EQ(value_of(folder.write("e.bin", file_with("t", 8))), 8);
  const auto checkpoint = Checkpoint::open(folder.path() / "a.pt");
  EXPECT_EQ(checkpoint->folder(), folder.path());
  ASSERT_EQ(checkpoint->files().size(), 1u);
  EXPECT_EQ(checkpoint->files()[0].path, folder.path() / "a.pt");
  EXPECT_EQ(checkpoint->files()[0].size, archive_with(7).size());
}

TEST(CheckpointOpen, SaysWhatItLookedFor) {
  const TempFolder folder;
  EXPECT_THAT(refusal(folder.path()), HasSubstr("model.safetensors.index.json"));
  EXPECT_THAT(refusal(folder.path()), HasSubstr("pytorch_model.bin"));
  EXPECT_THAT(refusal(folder.path() / "absent.safetensors"), HasSubstr("No such file"));
  EXPECT_THAT(refusal("/dev/null"), HasSubstr("not a regular file"));
}

TEST(CheckpointOpen, NamesOtherKindsOfFiles) {
  const TempFolder folder;
  EXPECT_THAT(refusal(folder.write("a", "GGUF    ")), HasSubstr("GGUF"));
  EXPECT_THAT(
      refusal(folder.write("b.safetensors", "version https://git-lfs.github.com/spec/v1\n")),
      HasSubstr("Git LFS pointer"));
  EXPECT_THAT(refusal(folder.write("c.bin", std::string(257, '\0') + "ustar  ")), HasSubstr("tar"));
  EXPECT_THAT(refusal(folder.write("d.bin", "hello world")), HasSubstr("neither"));
  EXPECT_THAT(refusal(folder.write("e.bin", "")), HasSubstr("neither"));
}

class Index : public ::testing::Test {
 protected:
  std::string refused(const std::string& index) {
    return refusal(folder_.write("model.safetensors.index.json", index));
  }

  TempFolder folder_;
};

TEST_F(Index, ShardsAreNoGgufFiles) {
  folder_.write("shard", "GGUF\3   ");
  EXPECT_THAT(refused(R"({"weight_map":{"t":"shard"}})"), HasSubstr("shard: is a GGUF file"));
}

TEST_F(Index, ShardsMustBePlainNames) {
  folder_.write("shard", file_with("t", 1));
  for (const char* name : {"../shard", "/etc/passwd", "a/b", "..", ".", "", "a\\\\b", "a\\u0000"}) {
    EXPECT_THAT(refused(std::string("{\"weight_map\":{\"t\":\"") + name + "\"}}"),
                HasSubstr("not a plain file name"))
        << name;
  }
  EXPECT_THAT(refused("{\"weight_map\":{\"t\":1}}"), HasSubstr("not text"));
  EXPECT_THAT(refused("{\"weight_map\":{}}"), HasSubstr("empty"));
  EXPECT_THAT(refused("{\"weight_map\":[]}"), HasSubstr("weight_map"));
  EXPECT_THAT(refused("[]"), HasSubstr("weight_map"));
  EXPECT_THAT(refused("{"), HasSubstr("not valid JSON"));
  EXPECT_THAT(refused("{\"weight_map\":{\"t\":\"a\",\"t\":\"b\"}}"), HasSubstr("appears twice"));
}

TEST_F(Index, MissingShardsAndTensorsAreNamed) {
  EXPECT_THAT(refused("{\"weight_map\":{\"t\":\"absent\"}}"), HasSubstr("absent"));
  folder_.write("shard", file_with("t", 1));
  const std::string message = refused("{\"weight_map\":{\"t\":\"shard\",\"u\":\"shard\"}}");
  EXPECT_THAT(message, HasSubstr("u"));
  EXPECT_THAT(message, HasSubstr("shard holds u"));
}

TEST_F(Index, DecidesBetweenShardsThatHoldTheSameName) {
  folder_.write("a", file_with("t", 1));
  folder_.write("b",
                safetensors("{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
                            "\"u\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]},"
                            "\"extra\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[8,12]}}",
                            bytes_of<float>({2, 3, 4})));
  const fs::path index =
      folder_.write("model.safetensors.index.json", "{\"weight_map\":{\"t\":\"a\",\"u\":\"b\"}}");
  EXPECT_EQ(value_of(folder_.path(), "t"), 1);
  EXPECT_EQ(value_of(index, "u"), 3);
  EXPECT_EQ(value_of(index, "extra"), 4);  // not in the index, but kept

  const auto checkpoint = Checkpoint::open(index);
  ASSERT_EQ(checkpoint->files().size(), 3u);
  EXPECT_EQ(checkpoint->files()[0].path, index);
  EXPECT_EQ(checkpoint->find("T"), nullptr);
  EXPECT_EQ(checkpoint->find(""), nullptr);
}

TEST_F(Index, DuplicatesThatTheIndexDoesNotDecideAreRefused) {
  folder_.write("a", safetensors("{\"t\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
                                 "\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
                                 bytes_of<float>({1, 2})));
  folder_.write("b", safetensors("{\"u\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]},"
                                 "\"x\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[4,8]}}",
                                 bytes_of<float>({3, 4})));
  EXPECT_THAT(refused("{\"weight_map\":{\"t\":\"a\",\"u\":\"b\"}}"),
              HasSubstr("tensor x is both in"));
}

TEST(CheckpointRead, IsThreadSafe) {
  constexpr int64_t kRows = 1000;
  constexpr int64_t kColumns = 64;
  std::vector<double> values(kRows * kColumns);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<double>(i);
  const TempFolder folder;
  folder.write(
      "model.safetensors",
      safetensors("{\"t\":{\"dtype\":\"F64\",\"shape\":[1000,64],\"data_offsets\":[0,512000]}}",
                  bytes_of(values)));
  const auto checkpoint = Checkpoint::open(folder.path());
  const TensorInfo& tensor = *checkpoint->find("t");
  std::vector<float> out(values.size());
  std::vector<std::thread> threads;
  for (int64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      for (int64_t row = t; row < kRows; row += 4) {
        checkpoint->read_rows(tensor, row, row + 1, out.data() + row * kColumns);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (size_t i = 0; i < out.size(); ++i) ASSERT_EQ(out[i], static_cast<float>(i));
}

}  // namespace
}  // namespace mamba_edge::convert
