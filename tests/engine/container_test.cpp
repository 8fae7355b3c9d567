// Containers, honest and hostile: whatever the bytes are, opening gives a model or an error that
// names the file.
#include "engine/container.h"

#include <gtest/gtest.h>
#include <zstd.h>

#include <cmath>
#include <cstdlib>
#include <limits>
#include <map>
#include <memory>

#include "engine/model.h"
#include "engine/session.h"
#include "tests/engine/model_builder.h"
#include "tests/golden/temporary_folder.h"

namespace mamba_edge::test {
namespace {

namespace fs = std::filesystem;

class ContainerTest : public testing::Test {
 protected:
  TemporaryFolder folder_;
  const fs::path path_ = folder_.path / "model.mamba";
};

struct Loaded {
  Status status;
  std::vector<float> logits;  // after a few tokens
};

Loaded load_and_step(const fs::path& path, bool verify = false, int threads = 1) {
  Loaded result;
  Model model;
  ModelOptions options;
  options.verify = verify;
  options.n_threads = threads;
  result.status = load_model(path.c_str(), options, &model);
  if (!result.status.ok()) return result;
  SessionOptions small;
  small.chunk = 2;
  std::unique_ptr<void, decltype(&std::free)> arena(
      std::aligned_alloc(64, Session::required_bytes(model, small)), std::free);
  Session* session = nullptr;
  result.status = Session::create(model, small, arena.get(), &session);
  if (!result.status.ok()) return result;
  const int32_t tokens[] = {0, static_cast<int32_t>(model.config.n_vocab) - 1, 0};
  session->take_tokens(tokens, 3, nullptr);
  result.logits.assign(session->logits(), session->logits() + model.config.n_vocab);
  session->destroy();
  return result;
}

bool same_bits(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

// A failure is never anonymous.
void expect_named(const Status& status, const fs::path& path) {
  EXPECT_FALSE(status.ok());
  EXPECT_EQ(std::string(status.message()).rfind(path.string() + ": ", 0), 0u) << status.message();
  EXPECT_TRUE(status.code() == MAMBA_EDGE_BAD_FORMAT || status.code() == MAMBA_EDGE_UNSUPPORTED ||
              status.code() == MAMBA_EDGE_IO || status.code() == MAMBA_EDGE_OUT_OF_MEMORY)
      << status.message();
}

void expect_refused(const fs::path& path, mamba_edge_status code, const std::string& says) {
  const Loaded got = load_and_step(path);
  expect_named(got.status, path);
  EXPECT_EQ(got.status.code(), code) << got.status.message();
  EXPECT_NE(std::string(got.status.message()).find(says), std::string::npos)
      << got.status.message() << "\n  does not say: " << says;
}

constexpr Encoding kEncodings[] = {Encoding::raw, Encoding::zstd, Encoding::sorted};

constexpr WeightType kTypes[] = {WeightType::f32,  WeightType::f16,  WeightType::int16,
                                 WeightType::int8, WeightType::int6, WeightType::int5,
                                 WeightType::int4, WeightType::int3, WeightType::int2};

TEST_F(ContainerTest, WhatIsWrittenIsRead) {
  for (const ModelConfig& config : {small_mamba1(), small_falcon(), small_mamba2()}) {
    for (const WeightType type : kTypes) {
      for (const Encoding encoding : kEncodings) {
        const std::vector<TensorBytes> tensors = random_tensors(config, type);
        WriteOptions options;
        options.encoding = encoding;
        options.frame_bytes = 500;  // several frames per tensor
        const Bytes note = {4, 0, 0, 0, 2, 0, 0, 0, 'n', 'o', 't', 'e', 'o', 'k'};
        options.more_sections = {{"PROV", false, note}};
        write_model(path_, config, tensors, options);

        Container c;
        const Status status = Container::open(path_.c_str(), &c);
        ASSERT_TRUE(status.ok()) << status.message();
        EXPECT_EQ(encoded(c.config()), encoded(config));
        EXPECT_EQ(c.file_bytes(), fs::file_size(path_));
        ASSERT_EQ(c.n_tensors(), tensors.size());
        for (uint32_t i = 0; i < c.n_tensors(); ++i) {
          const TensorBytes& expected = tensors[i];
          TensorEntry t;
          ASSERT_TRUE(c.find_tensor(expected.name, &t));
          EXPECT_EQ(t.name, c.tensor(i).name);
          EXPECT_EQ(t.is_matrix, expected.is_matrix);
          EXPECT_EQ(t.shape.type, expected.shape.type);
          EXPECT_EQ(t.shape.rows, expected.shape.rows);
          EXPECT_EQ(t.shape.cols, expected.shape.cols);
          EXPECT_EQ(t.shape.group, expected.shape.group);
          EXPECT_EQ(t.logical_cols, expected.logical_cols);
          EXPECT_EQ(t.scale, expected.scale);
          EXPECT_EQ(t.blob.raw_bytes, expected.bytes.size());
          EXPECT_EQ(t.blob.encoding, encoding);
          if (encoding == Encoding::raw) {
            EXPECT_EQ(c.frame(t.blob.first_frame).offset % kBlockAlign, 0u);
            EXPECT_EQ(c.stored_bytes(t.blob), expected.bytes.size());
          } else if (encoding == Encoding::zstd) {
            EXPECT_EQ(t.blob.n_frames, (expected.bytes.size() + 499) / 500);
          } else {
            const size_t block = t.shape.row_block_bytes();
            const size_t blocks = std::max<size_t>(1, 500 / block);
            EXPECT_EQ(t.blob.n_frames, (t.shape.row_blocks() + blocks - 1) / blocks);
          }
          Bytes got(t.blob.raw_bytes);
          ASSERT_TRUE(c.read_blob(t.blob, got.data(), t.name).ok());
          EXPECT_EQ(got, expected.bytes) << expected.name;
        }
        TensorEntry none;
        EXPECT_FALSE(c.find_tensor("layers.0.nothing", &none));
        Blob blob;
        EXPECT_FALSE(c.find_section("TOKN", &blob));
        ASSERT_TRUE(c.find_section("PROV", &blob));
        Bytes got(blob.raw_bytes);
        ASSERT_TRUE(c.read_blob(blob, got.data(), "PROV").ok());
        std::map<std::string, std::string> entries;
        ASSERT_TRUE(for_each_provenance(
                        got.data(), got.size(), c.path(),
                        [](void* to, std::string_view key, std::string_view value) {
                          (*static_cast<decltype(&entries)>(to))[std::string(key)] = value;
                        },
                        &entries)
                        .ok());
        EXPECT_EQ(entries, (std::map<std::string, std::string>{{"note", "ok"}}));
        EXPECT_TRUE(load_and_step(path_, true).status.ok());
      }
    }
  }
}

TEST_F(ContainerTest, ModelIsTheSameHoweverItIsStored) {
  for (const ModelConfig& config : {small_mamba1(), small_falcon(), small_mamba2()}) {
    const std::vector<TensorBytes> tensors = random_tensors(config, WeightType::int8);
    write_model(path_, config, tensors);
    const Loaded one = load_and_step(path_);
    ASSERT_TRUE(one.status.ok()) << one.status.message();
    for (const float v : one.logits) ASSERT_TRUE(std::isfinite(v));
    Container first;
    ASSERT_TRUE(Container::open(path_.c_str(), &first).ok());
    for (const Encoding encoding : kEncodings) {
      WriteOptions options;
      options.encoding = encoding;
      options.frame_bytes = 128;
      write_model(path_, config, tensors, options);
      Container second;
      ASSERT_TRUE(Container::open(path_.c_str(), &second).ok());
      EXPECT_EQ(first.fingerprint(), second.fingerprint());
      for (const int threads : {1, 2, 5, 2000}) {
        const Loaded other = load_and_step(path_, true, threads);
        ASSERT_TRUE(other.status.ok()) << other.status.message();
        EXPECT_TRUE(same_bits(one.logits, other.logits))
            << static_cast<int>(encoding) << " " << threads;
      }
    }
  }
}

TEST_F(ContainerTest, TensorsInAnyOrder) {
  const ModelConfig config = small_mamba2();
  std::vector<TensorBytes> tensors = random_tensors(config, WeightType::int4);
  write_model(path_, config, tensors);
  const Loaded one = load_and_step(path_);
  std::reverse(tensors.begin(), tensors.end());
  write_model(path_, config, tensors);
  const Loaded other = load_and_step(path_);
  ASSERT_TRUE(other.status.ok()) << other.status.message();
  EXPECT_TRUE(same_bits(one.logits, other.logits));
}

TEST_F(ContainerTest, FingerprintTellsModelsApart) {
  const auto fingerprint = [&](const ModelConfig& config, uint32_t seed, WeightType type) {
    write_model(path_, config, random_tensors(config, type, 32, seed));
    Container c;
    EXPECT_TRUE(Container::open(path_.c_str(), &c).ok());
    return c.fingerprint();
  };
  ModelConfig config = small_mamba1();
  const uint64_t base = fingerprint(config, 1, WeightType::int8);
  EXPECT_EQ(fingerprint(config, 1, WeightType::int8), base);
  EXPECT_NE(fingerprint(config, 2, WeightType::int8), base);
  EXPECT_NE(fingerprint(config, 1, WeightType::int4), base);
  config.norm_eps = 1e-6f;
  EXPECT_NE(fingerprint(config, 1, WeightType::int8), base);
}

ModelConfig one_layer(ModelConfig config) {
  config.n_layer = 1;
  return config;
}

// Every byte that means something is covered by a checksum; the others may be anything.
void flip_every_byte(const fs::path& path, const TemporaryFolder& folder, bool verify) {
  const Image image(read_file(path));
  // What must not change at all, and compressed bytes, some bits of which mean nothing: there the
  // content must not change.
  std::vector<bool> strict(image.bytes.size(), false), compressed = strict;
  const auto cover = [](std::vector<bool>& where, size_t begin, size_t n) {
    for (size_t i = begin; i < begin + n; ++i) where[i] = true;
  };
  cover(strict, 0, 128);
  cover(strict, image.directory(), image.get<uint64_t>(32));
  for (uint32_t i = 0; i < image.n_frames(); ++i) {
    const size_t begin = image.get<uint64_t>(image.frame(i));
    cover(image.get<uint32_t>(begin) == 0xFD2FB528u ? compressed : strict, begin,
          image.get<uint32_t>(image.frame(i) + 8));
  }
  const Loaded original = load_and_step(path, verify);
  ASSERT_TRUE(original.status.ok()) << original.status.message();
  const fs::path damaged = folder.path / "damaged.mamba";
  write_file(damaged, image.bytes);
  std::fstream file(damaged, std::ios::in | std::ios::out | std::ios::binary);
  const auto put = [&](size_t at, uint8_t value) {
    file.seekp(static_cast<std::streamoff>(at));
    file.put(static_cast<char>(value)).flush();
  };
  size_t refused = 0, harmless = 0;
  for (size_t at = 0; at < image.bytes.size(); ++at) {
    for (const uint8_t mask : {static_cast<uint8_t>(1u << at % 8), uint8_t{0xFF}}) {
      put(at, image.bytes[at] ^ mask);
      const Loaded got = load_and_step(damaged, verify);
      if (got.status.ok()) {
        ++harmless;
        // Raw tensors are not read before they are used unless that is asked for.
        if (verify) {
          EXPECT_TRUE(same_bits(got.logits, original.logits)) << "byte " << at;
          EXPECT_FALSE(strict[at]) << "byte " << at;
        }
      } else {
        ++refused;
        expect_named(got.status, damaged);
        EXPECT_TRUE(strict[at] || compressed[at]) << "byte " << at << ": " << got.status.message();
      }
    }
    put(at, image.bytes[at]);
  }
  EXPECT_GT(refused, 2 * image.get<uint64_t>(32));  // at least what concerns the directory
  EXPECT_GT(harmless, 0u);                          // the heads of skippable frames, say
}

TEST_F(ContainerTest, AnyByteFlippedInCompressedModel) {
  write_model(path_, one_layer(small_mamba2()), WeightType::int8);
  flip_every_byte(path_, folder_, true);
}

TEST_F(ContainerTest, AnyByteFlippedInSortedModel) {
  WriteOptions options;
  options.encoding = Encoding::sorted;
  write_model(path_, one_layer(small_mamba1()), WeightType::int5, options);
  flip_every_byte(path_, folder_, true);
}

TEST_F(ContainerTest, AnyByteFlippedInRawModelVerified) {
  WriteOptions options;
  options.encoding = Encoding::raw;
  write_model(path_, one_layer(small_mamba1()), WeightType::int4, options);
  flip_every_byte(path_, folder_, true);
}

TEST_F(ContainerTest, AnyByteFlippedInRawModelMapped) {
  WriteOptions options;
  options.encoding = Encoding::raw;
  write_model(path_, one_layer(small_mamba1()), WeightType::int8, options);
  flip_every_byte(path_, folder_, false);
}

TEST_F(ContainerTest, CutAtAnyLength) {
  write_model(path_, small_mamba1(), WeightType::int4);
  const Bytes bytes = read_file(path_);
  const fs::path cut = folder_.path / "cut.mamba";
  write_file(cut, bytes);
  for (size_t n = bytes.size(); n-- > 0;) {
    fs::resize_file(cut, n);
    const Status status = load_and_step(cut).status;
    expect_named(status, cut);
    EXPECT_EQ(status.code(), MAMBA_EDGE_BAD_FORMAT) << n << ": " << status.message();
  }
  Bytes longer = bytes;
  longer.push_back(0);
  write_file(cut, longer);
  expect_refused(cut, MAMBA_EDGE_BAD_FORMAT, "the file has");
}

TEST_F(ContainerTest, NotAFile) {
  expect_refused(folder_.path / "absent", MAMBA_EDGE_IO, "No such file");
  expect_refused(folder_.path, MAMBA_EDGE_IO, "cannot open");
  expect_refused("/dev/null", MAMBA_EDGE_IO, "cannot open");
  write_file(path_, {});
  expect_refused(path_, MAMBA_EDGE_BAD_FORMAT, "0 bytes long");
  write_file(path_, Bytes(4096, 'x'));
  expect_refused(path_, MAMBA_EDGE_BAD_FORMAT, "wrong magic");
}

struct Lie {
  const char* name;
  void (*tell)(Image& image);
  mamba_edge_status code;
  const char* says;
};

// The parts of a directory entry of a tensor, from its start.
constexpr size_t kNameBytes = 4, kIsMatrix = 8, kType = 12, kRows = 16, kLogicalCols = 20,
                 kCols = 24, kGroup = 28, kScale = 32, kRotation = 36, kBlob = 40;
constexpr size_t kChecksum = 8, kFirstFrame = 16, kFrames = 20, kEncoding = 24;  // of a blob
constexpr uint32_t kAll = 0xFFFFFFFFu;

// Tensor 0 is the embedding (int8, 37 x 24 padded to 32 with groups of 32), tensor 1 the final
// norm.
const Lie kLies[] = {
    {"version", [](Image& i) { i.set(16, 2u); }, MAMBA_EDGE_UNSUPPORTED, "container version 2"},
    {"version_0", [](Image& i) { i.set(16, 0u); }, MAMBA_EDGE_UNSUPPORTED, "container version 0"},
    {"header_size", [](Image& i) { i.set(4, 121u); }, MAMBA_EDGE_BAD_FORMAT, "wrong magic"},
    {"file_bytes",
     [](Image& i) {
       i.set(48, i.get<uint64_t>(48) + 1);
       i.sign_header();
     },
     MAMBA_EDGE_BAD_FORMAT, "incomplete copy"},
    {"directory_far",
     [](Image& i) {
       i.set(24, uint64_t{1} << 62);
       i.sign_header();
     },
     MAMBA_EDGE_BAD_FORMAT, "the directory does not lie"},
    {"directory_wraps",
     [](Image& i) {
       i.set(24, ~uint64_t{0} - 15);
       i.set(32, i.bytes.size() + 16);
       i.sign_header();
     },
     MAMBA_EDGE_BAD_FORMAT, "the directory does not lie"},
    {"directory_is_the_header",
     [](Image& i) {
       i.set(24, uint64_t{0});
       i.set(32, uint64_t{i.bytes.size()});
       i.sign_header();
     },
     MAMBA_EDGE_BAD_FORMAT, "the directory does not lie"},
    {"directory_tiny",
     [](Image& i) {
       i.set(24, uint64_t{i.bytes.size() - 15});
       i.set(32, uint64_t{15});
       i.sign_header();
     },
     MAMBA_EDGE_BAD_FORMAT, "the directory does not lie"},
    {"directory_checksum",
     [](Image& i) {
       i.set(40, uint64_t{1});
       i.sign_header();
     },
     MAMBA_EDGE_BAD_FORMAT, "directory's checksum"},
    {"sections_many", [](Image& i) { i.set(i.directory(), kAll); }, MAMBA_EDGE_BAD_FORMAT,
     "cannot hold"},
    {"tensors_many", [](Image& i) { i.set(i.directory() + 4, kAll); }, MAMBA_EDGE_BAD_FORMAT,
     "cannot hold"},
    {"frames_many", [](Image& i) { i.set(i.directory() + 8, kAll); }, MAMBA_EDGE_BAD_FORMAT,
     "cannot hold"},
    {"names_long", [](Image& i) { i.set(i.directory() + 12, kAll); }, MAMBA_EDGE_BAD_FORMAT,
     "cannot hold"},
    {"all_counts",
     [](Image& i) {
       for (size_t k = 0; k < 16; k += 4) i.set(i.directory() + k, kAll);
     },
     MAMBA_EDGE_BAD_FORMAT, "cannot hold"},
    {"nothing_listed",  // all of the directory is names
     [](Image& i) {
       for (size_t k = 0; k < 12; k += 4) i.set(i.directory() + k, 0u);
       i.set(i.directory() + 12, static_cast<uint32_t>(i.get<uint64_t>(32) - 16));
     },
     MAMBA_EDGE_BAD_FORMAT, "no config section"},
    {"frame_far", [](Image& i) { i.set(i.frame(0), uint64_t{1} << 63); }, MAMBA_EDGE_BAD_FORMAT,
     "outside the file's data"},
    {"frame_wraps", [](Image& i) { i.set(i.frame(0), ~uint64_t{0}); }, MAMBA_EDGE_BAD_FORMAT,
     "outside the file's data"},
    {"frame_in_header", [](Image& i) { i.set(i.frame(0), uint64_t{0}); }, MAMBA_EDGE_BAD_FORMAT,
     "outside the file's data"},
    {"frame_in_directory", [](Image& i) { i.set(i.frame(0), uint64_t{i.directory()}); },
     MAMBA_EDGE_BAD_FORMAT, "outside the file's data"},
    {"frame_long", [](Image& i) { i.set(i.frame(0) + 8, kAll); }, MAMBA_EDGE_BAD_FORMAT,
     "outside the file's data"},
    {"frame_short", [](Image& i) { i.set(i.frame(0) + 8, 5u); }, MAMBA_EDGE_BAD_FORMAT,
     "is not a zstd frame"},
    {"frame_empty", [](Image& i) { i.set(i.frame(0) + 8, 0u); }, MAMBA_EDGE_BAD_FORMAT,
     "is not a zstd frame"},
    {"frame_longer_by_one",
     [](Image& i) { i.set(i.frame(0) + 8, i.get<uint32_t>(i.frame(0) + 8) + 1); },
     MAMBA_EDGE_BAD_FORMAT, "is not a zstd frame"},
    {"frames_overlap", [](Image& i) { i.set(i.frame(1), i.get<uint64_t>(i.frame(1)) - 1); },
     MAMBA_EDGE_BAD_FORMAT, "is not a zstd frame"},
    {"frame_of_another",  // another size
     [](Image& i) {
       i.set(i.frame(1), i.get<uint64_t>(i.frame(0)));
       i.set(i.frame(1) + 8, i.get<uint32_t>(i.frame(0) + 8));
     },
     MAMBA_EDGE_BAD_FORMAT, "is not a zstd frame"},
    {"frame_raw_more",
     [](Image& i) { i.set(i.frame(0) + 12, i.get<uint32_t>(i.frame(0) + 12) + 64); },
     MAMBA_EDGE_BAD_FORMAT, "the frames of \"embedding\" hold"},
    {"frame_raw_huge", [](Image& i) { i.set(i.frame(0) + 12, (4u << 20) + 1); },
     MAMBA_EDGE_BAD_FORMAT, "frame 0 of \"embedding\""},
    {"raw_and_shape",  // frame and blob agree, the shape does not
     [](Image& i) {
       i.set(i.frame(0) + 12, i.get<uint32_t>(i.frame(0) + 12) + 64);
       i.set(i.tensor(0) + kBlob, i.get<uint64_t>(i.tensor(0) + kBlob) + 64);
     },
     MAMBA_EDGE_BAD_FORMAT, "its shape needs"},
    {"all_but_the_frame",  // everything in the directory agrees on one row block more
     [](Image& i) {
       const uint64_t more = i.get<uint64_t>(i.tensor(0) + kBlob) / 3 * 4;
       i.set(i.tensor(0) + kBlob, more);
       i.set(i.frame(0) + 12, static_cast<uint32_t>(more));
       i.set(i.tensor(0) + kRows, 49u);
     },
     MAMBA_EDGE_BAD_FORMAT, "is 49 x 24; the config implies 37 x 24"},
    {"blob_raw_max", [](Image& i) { i.set(i.tensor(0) + kBlob, ~uint64_t{0}); },
     MAMBA_EDGE_BAD_FORMAT, "the frames of \"embedding\" hold"},
    {"blob_first_frame", [](Image& i) { i.set(i.tensor(0) + kBlob + kFirstFrame, kAll); },
     MAMBA_EDGE_BAD_FORMAT, "has frames"},
    {"blob_frames_wrap",
     [](Image& i) {
       i.set(i.tensor(0) + kBlob + kFirstFrame, 1u);
       i.set(i.tensor(0) + kBlob + kFrames, kAll);
     },
     MAMBA_EDGE_BAD_FORMAT, "has frames"},
    {"blob_no_frames", [](Image& i) { i.set(i.tensor(0) + kBlob + kFrames, 0u); },
     MAMBA_EDGE_BAD_FORMAT, "hold 0 bytes"},
    {"blob_encoding", [](Image& i) { i.set(i.tensor(0) + kBlob + kEncoding, 3u); },
     MAMBA_EDGE_UNSUPPORTED, "\"embedding\" has encoding 3"},
    {"blob_encoding_max", [](Image& i) { i.set(i.tensor(0) + kBlob + kEncoding, kAll); },
     MAMBA_EDGE_UNSUPPORTED, "\"embedding\" has encoding 4294967295"},
    {"section_sorted", [](Image& i) { i.set(i.section(0) + 8 + kEncoding, 2u); },
     MAMBA_EDGE_BAD_FORMAT, "section \"CONF\" is sorted"},
    {"sorted_part_of_a_row_block",  // two tensors that fit their shapes: 37 rows, and 24 floats
     [](Image& i) {
       i.set(i.tensor(0) + kBlob + kEncoding, 2u);
       i.set(i.tensor(0) + kBlob + kFrames, 2u);
       const auto raw = i.get<uint32_t>(i.frame(0) + 12);
       i.set(i.frame(0) + 12, raw - 64);
       i.set(i.frame(1) + 12, 64u);
     },
     MAMBA_EDGE_BAD_FORMAT, "sorted frame 0 of \"embedding\" has"},
    {"blob_said_raw", [](Image& i) { i.set(i.tensor(0) + kBlob + kEncoding, 0u); },
     MAMBA_EDGE_BAD_FORMAT, "frame 0 of \"embedding\""},
    {"config_checksum", [](Image& i) { i.set(i.section(0) + 8 + kChecksum, uint64_t{1}); },
     MAMBA_EDGE_BAD_FORMAT, "checksum of \"CONF\""},
    {"config_renamed", [](Image& i) { i.set(i.section(0), 'X'); }, MAMBA_EDGE_UNSUPPORTED,
     "needs section \"XONF\""},
    {"config_too_large",  // its frame is a tensor's
     [](Image& i) {
       uint32_t largest = 0;
       for (uint32_t f = 0; f < i.n_frames(); ++f) {
         if (i.get<uint32_t>(i.frame(f) + 12) > i.get<uint32_t>(i.frame(largest) + 12)) largest = f;
       }
       i.set(i.section(0) + 8, uint64_t{i.get<uint32_t>(i.frame(largest) + 12)} * 3);
       for (uint32_t f = 0; f < 3; ++f) {
         for (size_t k = 0; k < 16; ++k) {
           i.bytes[i.frame(f) + k] = i.bytes[i.frame(largest) + k];
         }
       }
       i.set(i.section(0) + 8 + kFirstFrame, 0u);
       i.set(i.section(0) + 8 + kFrames, 3u);
     },
     MAMBA_EDGE_BAD_FORMAT, "hold"},
    {"name_far", [](Image& i) { i.set(i.tensor(0), kAll); }, MAMBA_EDGE_BAD_FORMAT,
     "no valid name"},
    {"name_long", [](Image& i) { i.set(i.tensor(0) + kNameBytes, kAll); }, MAMBA_EDGE_BAD_FORMAT,
     "no valid name"},
    {"name_empty", [](Image& i) { i.set(i.tensor(0) + kNameBytes, 0u); }, MAMBA_EDGE_BAD_FORMAT,
     "no valid name"},
    {"name_twice",
     [](Image& i) {
       i.set(i.tensor(1), i.get<uint32_t>(i.tensor(0)));
       i.set(i.tensor(1) + kNameBytes, i.get<uint32_t>(i.tensor(0) + kNameBytes));
     },
     MAMBA_EDGE_BAD_FORMAT, "two tensors are called \"embedding\""},
    {"name_garbage",
     [](Image& i) {
       for (size_t k = 0; k < 9; ++k) i.bytes[i.names() + k] = 0xFF;
     },
     MAMBA_EDGE_BAD_FORMAT, "\"embedding\" is missing"},
    {"type_0", [](Image& i) { i.set(i.tensor(0) + kType, 0u); }, MAMBA_EDGE_UNSUPPORTED,
     "weight type 0"},
    {"type_new", [](Image& i) { i.set(i.tensor(0) + kType, 10u); }, MAMBA_EDGE_UNSUPPORTED,
     "weight type 10"},
    {"type_max", [](Image& i) { i.set(i.tensor(0) + kType, kAll); }, MAMBA_EDGE_UNSUPPORTED,
     "weight type 4294967295"},
    {"type_int4", [](Image& i) { i.set(i.tensor(0) + kType, 4u); }, MAMBA_EDGE_BAD_FORMAT,
     "its shape needs"},
    {"type_int2", [](Image& i) { i.set(i.tensor(0) + kType, 9u); }, MAMBA_EDGE_BAD_FORMAT,
     "its shape needs"},
    {"type_int5_group_16",
     [](Image& i) {
       i.set(i.tensor(0) + kType, 7u);
       i.set(i.tensor(0) + kGroup, 16u);
     },
     MAMBA_EDGE_BAD_FORMAT, "impossible shape"},
    {"type_int3_group_16",
     [](Image& i) {
       i.set(i.tensor(0) + kType, 8u);
       i.set(i.tensor(0) + kGroup, 16u);
     },
     MAMBA_EDGE_BAD_FORMAT, "impossible shape"},
    {"rows_0", [](Image& i) { i.set(i.tensor(0) + kRows, 0u); }, MAMBA_EDGE_BAD_FORMAT,
     "impossible shape"},
    {"rows_max", [](Image& i) { i.set(i.tensor(0) + kRows, kAll); }, MAMBA_EDGE_BAD_FORMAT,
     "impossible shape"},
    {"rows_38", [](Image& i) { i.set(i.tensor(0) + kRows, 38u); }, MAMBA_EDGE_BAD_FORMAT,
     "is 38 x 24; the config implies 37 x 24"},
    {"cols_0", [](Image& i) { i.set(i.tensor(0) + kLogicalCols, 0u); }, MAMBA_EDGE_BAD_FORMAT,
     "impossible shape"},
    {"cols_more_than_padded", [](Image& i) { i.set(i.tensor(0) + kLogicalCols, 33u); },
     MAMBA_EDGE_BAD_FORMAT, "impossible shape"},
    {"cols_max",
     [](Image& i) {
       i.set(i.tensor(0) + kCols, kAll);
       i.set(i.tensor(0) + kLogicalCols, kAll);
     },
     MAMBA_EDGE_BAD_FORMAT, "impossible shape"},
    {"cols_padded_twice", [](Image& i) { i.set(i.tensor(0) + kCols, 64u); }, MAMBA_EDGE_BAD_FORMAT,
     "impossible shape"},
    {"group_0", [](Image& i) { i.set(i.tensor(0) + kGroup, 0u); }, MAMBA_EDGE_BAD_FORMAT,
     "impossible shape"},
    {"group_8", [](Image& i) { i.set(i.tensor(0) + kGroup, 8u); }, MAMBA_EDGE_BAD_FORMAT,
     "impossible shape"},
    {"group_48", [](Image& i) { i.set(i.tensor(0) + kGroup, 48u); }, MAMBA_EDGE_BAD_FORMAT,
     "impossible shape"},
    {"group_max", [](Image& i) { i.set(i.tensor(0) + kGroup, 0xFFFFFFF0u); }, MAMBA_EDGE_BAD_FORMAT,
     "impossible shape"},
    {"rotation_8", [](Image& i) { i.set(i.tensor(0) + kRotation, 8u); }, MAMBA_EDGE_BAD_FORMAT,
     "impossible shape"},
    {"rotation_24", [](Image& i) { i.set(i.tensor(0) + kRotation, 24u); }, MAMBA_EDGE_BAD_FORMAT,
     "impossible shape"},
    {"rotation_64", [](Image& i) { i.set(i.tensor(0) + kRotation, 64u); }, MAMBA_EDGE_BAD_FORMAT,
     "impossible shape"},
    {"rotation_max", [](Image& i) { i.set(i.tensor(0) + kRotation, kAll); }, MAMBA_EDGE_BAD_FORMAT,
     "impossible shape"},
    {"rotation_of_vector", [](Image& i) { i.set(i.tensor(1) + kRotation, 16u); },
     MAMBA_EDGE_BAD_FORMAT, "impossible shape"},
    {"rotation_of_embedding", [](Image& i) { i.set(i.tensor(0) + kRotation, 16u); },
     MAMBA_EDGE_UNSUPPORTED, "tensor \"embedding\" is rotated"},
    {"scale_nan", [](Image& i) { i.set(i.tensor(0) + kScale, NAN); }, MAMBA_EDGE_BAD_FORMAT,
     "impossible"},
    {"scale_infinite", [](Image& i) { i.set(i.tensor(0) + kScale, INFINITY); },
     MAMBA_EDGE_BAD_FORMAT, "impossible"},
    {"scale_0", [](Image& i) { i.set(i.tensor(0) + kScale, 0.0f); }, MAMBA_EDGE_BAD_FORMAT,
     "impossible"},
    {"scale_negative", [](Image& i) { i.set(i.tensor(0) + kScale, -1.0f); }, MAMBA_EDGE_BAD_FORMAT,
     "impossible"},
    {"matrix_2", [](Image& i) { i.set(i.tensor(0) + kIsMatrix, 2u); }, MAMBA_EDGE_BAD_FORMAT,
     "impossible shape"},
    {"matrix_as_vector", [](Image& i) { i.set(i.tensor(0) + kIsMatrix, 0u); },
     MAMBA_EDGE_BAD_FORMAT, "impossible shape"},
    {"vector_as_matrix", [](Image& i) { i.set(i.tensor(1) + kIsMatrix, 1u); },
     MAMBA_EDGE_BAD_FORMAT, "tensor \"final_norm\""},
};

class ContainerLie : public testing::TestWithParam<Lie> {};

TEST_P(ContainerLie, IsRefused) {
  const TemporaryFolder folder;
  const fs::path path = folder.path / "lie.mamba";
  write_model(path, small_mamba1(), WeightType::int8);
  Image image(read_file(path));
  const size_t directory = image.directory();
  GetParam().tell(image);
  // A lie in the directory is signed; those in the header sign themselves, or are found before its
  // checksum.
  const bool in_header = image.directory() != directory ||
                         std::string(GetParam().name).rfind("file", 0) == 0 ||
                         std::string(GetParam().name) == "directory_checksum";
  if (!in_header) image.sign();
  write_file(path, image.bytes);
  expect_refused(path, GetParam().code, GetParam().says);
}

INSTANTIATE_TEST_SUITE_P(All, ContainerLie, testing::ValuesIn(kLies),
                         [](const auto& lie) { return std::string(lie.param.name); });

// Every 4 bytes of the directory set to values that break arithmetic, checksums right: refused with
// a name, or harmless.
TEST_F(ContainerTest, AnyNumberOfTheDirectoryReplaced) {
  for (const Encoding encoding : kEncodings) {
    WriteOptions options;
    options.encoding = encoding;
    write_model(path_, one_layer(small_mamba2()), WeightType::int8, options);
    const Image original(read_file(path_));
    const fs::path lie = folder_.path / "lie.mamba";
    size_t refused = 0;
    for (size_t at = original.directory(); at + 4 <= original.names(); at += 4) {
      for (const uint32_t value : {0u, 1u, 0x80000000u, kAll}) {
        Image image = original;
        image.set(at, value);
        image.sign();
        write_file(lie, image.bytes);
        const Loaded got = load_and_step(lie);
        if (!got.status.ok()) expect_named(got.status, lie);
        refused += !got.status.ok();
      }
    }
    EXPECT_GT(refused, (original.names() - original.directory()) / 4);
  }
}

// ---- the frames themselves

Bytes compressed(std::span<const uint8_t> raw, bool checksum, bool content_size) {
  std::unique_ptr<ZSTD_CCtx, decltype(&ZSTD_freeCCtx)> context(ZSTD_createCCtx(), ZSTD_freeCCtx);
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_checksumFlag, checksum);
  ZSTD_CCtx_setParameter(context.get(), ZSTD_c_contentSizeFlag, content_size);
  Bytes out(ZSTD_compressBound(raw.size()));
  out.resize(ZSTD_compress2(context.get(), out.data(), out.size(), raw.data(), raw.size()));
  return out;
}

TEST_F(ContainerTest, FramesThatAreNotWhatTheDirectorySays) {
  using Frame = convert::Compressed;
  using Raw = std::span<const uint8_t>;
  const std::vector<std::pair<const char*, void (*)(Frame&, Raw)>> lies = {
      {"no checksum", [](Frame& f, Raw raw) { f.frame = compressed(raw, false, true); }},
      {"no content size", [](Frame& f, Raw raw) { f.frame = compressed(raw, true, false); }},
      {"one byte less",
       [](Frame& f, Raw raw) { f.frame = compressed(raw.first(raw.size() - 1), true, true); }},
      {"one byte more",
       [](Frame& f, Raw raw) {
         Bytes more(raw.begin(), raw.end());
         more.push_back(0);
         f.frame = compressed(more, true, true);
       }},
      {"a gigabyte of zeros",
       [](Frame& f, Raw) {
         // A frame that is a bomb: 1 GiB in one run-length block per 128 KiB would be long, so only
         // its header claims that.
         const Bytes head = {0x28, 0xB5, 0x2F, 0xFD, 0xA4, 0, 0, 0, 0x40, 3, 0, 0, 0, 0, 0, 0};
         f.frame = head;
       }},
      {"cut", [](Frame& f, Raw) { f.frame.resize(f.frame.size() / 2); }},
      {"followed by another",
       [](Frame& f, Raw) {
         const Bytes empty = {0x50, 0x2A, 0x4D, 0x18, 0, 0, 0, 0};
         f.frame.insert(f.frame.end(), empty.begin(), empty.end());
       }},
      {"skippable",
       [](Frame& f, Raw) { f.frame = {0x50, 0x2A, 0x4D, 0x18, 4, 0, 0, 0, 1, 2, 3, 4}; }},
      {"text", [](Frame& f, Raw) { std::fill(f.frame.begin(), f.frame.end(), uint8_t{'A'}); }},
  };
  for (const auto& [name, lie] : lies) {
    SCOPED_TRACE(name);
    for (const auto& [victim, encoding] :
         {std::pair{0, Encoding::zstd}, {3, Encoding::zstd}, {3, Encoding::sorted}}) {
      int seen = 0;
      WriteOptions options;
      options.encoding = encoding;
      options.frame = [&, lie = lie, victim = victim](Frame& frame, Raw raw) {
        if (seen++ == victim) lie(frame, raw);
      };
      write_model(path_, small_mamba1(), WeightType::int8, options);
      ASSERT_GT(seen, victim);
      expect_refused(path_, MAMBA_EDGE_BAD_FORMAT, "damaged: ");
      const Status threaded = load_and_step(path_, false, 3).status;
      EXPECT_EQ(threaded.code(), MAMBA_EDGE_BAD_FORMAT);
    }
  }
}

// ---- sections and config

TEST_F(ContainerTest, SectionsOfTheFuture) {
  WriteOptions options;
  options.more_sections = {{"NEWS", false, {1, 2, 3}}};
  write_model(path_, small_mamba1(), WeightType::f32, options);
  EXPECT_TRUE(load_and_step(path_).status.ok());
  options.more_sections[0].required = true;
  write_model(path_, small_mamba1(), WeightType::f32, options);
  expect_refused(path_, MAMBA_EDGE_UNSUPPORTED, "needs section \"NEWS\"");
  options.more_sections = {{"EMPT", false, {}}};
  write_model(path_, small_mamba1(), WeightType::f32, options);
  EXPECT_TRUE(load_and_step(path_).status.ok());
  options = {};
  options.without_config = true;
  write_model(path_, small_mamba1(), WeightType::f32, options);
  expect_refused(path_, MAMBA_EDGE_BAD_FORMAT, "no config section");
}

TEST_F(ContainerTest, TokenizerThatIsNone) {
  WriteOptions options;
  options.more_sections = {{"TOKN", false, {1, 2, 3}}};
  write_model(path_, small_mamba1(), WeightType::f32, options);
  const Status status = load_and_step(path_).status;
  expect_named(status, path_);
  EXPECT_NE(std::string(status.message()).find("tokenizer"), std::string::npos);
}

void append_pair(Bytes& config, uint32_t key, uint32_t value) {
  for (const uint32_t v : {key, value}) {
    for (int i = 0; i < 4; ++i) config.push_back(static_cast<uint8_t>(v >> 8 * i));
  }
}

TEST_F(ContainerTest, ConfigKeysOfTheFuture) {
  const ModelConfig config = small_mamba1();
  const std::vector<TensorBytes> tensors = random_tensors(config, WeightType::f32);
  Bytes bytes = encoded(config);
  append_pair(bytes, 0x80000001u, 7);  // optional
  write_model(path_, bytes, tensors);
  EXPECT_TRUE(load_and_step(path_).status.ok());
  bytes = encoded(config);
  append_pair(bytes, 1000, 7);
  write_model(path_, bytes, tensors);
  expect_refused(path_, MAMBA_EDGE_UNSUPPORTED, "config key 1000");
}

TEST_F(ContainerTest, ConfigsThatAreBroken) {
  const ModelConfig config = small_mamba2();
  const Bytes good = encoded(config);
  const auto decode = [](const Bytes& bytes) {
    ModelConfig out;
    return decode_config(bytes.data(), bytes.size(), "file", &out);
  };
  ASSERT_TRUE(decode(good).ok());
  EXPECT_EQ(decode({}).code(), MAMBA_EDGE_BAD_FORMAT);
  for (size_t n = 1; n < good.size(); ++n) {  // cut anywhere: not pairs, or a key is missing
    EXPECT_EQ(decode(Bytes(good.begin(), good.begin() + static_cast<ptrdiff_t>(n))).code(),
              MAMBA_EDGE_BAD_FORMAT)
        << n;
  }
  for (size_t at = 0; at < good.size(); at += 8) {  // each key left out
    Bytes less = good;
    less.erase(less.begin() + static_cast<ptrdiff_t>(at),
               less.begin() + static_cast<ptrdiff_t>(at) + 8);
    EXPECT_FALSE(decode(less).ok()) << at;
    Bytes twice = good;
    twice.insert(twice.begin() + static_cast<ptrdiff_t>(at),
                 good.begin() + static_cast<ptrdiff_t>(at),
                 good.begin() + static_cast<ptrdiff_t>(at) + 8);
    EXPECT_NE(std::string(decode(twice).message()).find("out of order"), std::string::npos) << at;
  }
}

TEST_F(ContainerTest, ConfigThatContradictsTheTensors) {
  const ModelConfig config = small_mamba2();
  const std::vector<TensorBytes> tensors = random_tensors(config, WeightType::int8);
  const auto refused = [&](auto change, const char* says) {
    ModelConfig other = config;
    change(other);
    write_model(path_, other, tensors);
    expect_refused(path_, MAMBA_EDGE_BAD_FORMAT, says);
  };
  refused([](ModelConfig& c) { c.d_model = 25; },
          "\"embedding\" is 37 x 24; the config implies 37 x 25");
  refused([](ModelConfig& c) { c.n_vocab = 38; }, "the config implies 38 x 24");
  refused([](ModelConfig& c) { c.n_layer = 3; }, "\"layers.2.norm\" is missing");
  refused([](ModelConfig& c) { c.n_layer = 4096; }, "\"layers.2.norm\" is missing");
  refused([](ModelConfig& c) { c.tied = 0; }, "\"head\" is missing");
  refused([](ModelConfig& c) { c.norm = NormKind::layer; }, "norm_bias\" is missing");
  refused([](ModelConfig& c) { c.mamba2.proj_bias = 1; }, "in_proj_bias\" is missing");
  refused([](ModelConfig& c) { c.mamba2.d_state = 90; }, "the config implies");
  refused([](ModelConfig& c) { c.mamba2.d_conv = 5; }, "conv\" is");
  refused([](ModelConfig& c) { c.mamba2.n_groups = 4; }, "the config implies");
  refused(
      [](ModelConfig& c) {
        c.mamba2.d_inner = 400;
        c.mamba2.headdim = 100;
      },
      "the config implies");
  refused(
      [](ModelConfig& c) {
        c.architecture = Architecture::mamba;
        c.mamba1 = {40, 9, 4, 3, 0, 1, 0, 0};
      },
      "in_proj\" is 208 x 24; the config implies 96 x 24");
}

TEST_F(ContainerTest, MissingExtraAndMisshapenTensors) {
  const ModelConfig config = small_mamba1();
  const std::vector<TensorBytes> good = random_tensors(config, WeightType::int8);
  write_model(path_, config, good);
  const Loaded expected = load_and_step(path_);
  ASSERT_TRUE(expected.status.ok());
  for (size_t i = 0; i < good.size(); ++i) {
    std::vector<TensorBytes> tensors = good;
    tensors.erase(tensors.begin() + static_cast<ptrdiff_t>(i));
    write_model(path_, config, tensors);
    expect_refused(path_, MAMBA_EDGE_BAD_FORMAT, "\"" + good[i].name + "\" is missing");

    tensors = good;  // one row more, as large as it says
    TensorBytes& t = tensors[i];
    t.shape.rows += 1;
    t.bytes.resize(t.is_matrix ? t.shape.bytes() : vector_bytes(t.shape.rows));
    write_model(path_, config, tensors);
    expect_refused(path_, MAMBA_EDGE_BAD_FORMAT, "\"" + good[i].name + "\" is ");

    tensors = good;  // an extra one is not used
    tensors.insert(tensors.begin() + static_cast<ptrdiff_t>(i), good[0]);
    tensors[i].name = "extra";
    write_model(path_, config, tensors);
    const Loaded got = load_and_step(path_);
    ASSERT_TRUE(got.status.ok()) << got.status.message();
    EXPECT_TRUE(same_bits(got.logits, expected.logits));
  }
}

TEST_F(ContainerTest, WhatIsNeverQuantisedIsRefusedQuantised) {
  const ModelConfig config = small_mamba1();
  std::vector<TensorBytes> tensors = random_tensors(config, WeightType::f32);
  for (TensorBytes& t : tensors) {
    if (t.name != "layers.1.a") continue;
    t.shape = matrix_shape(WeightType::int8, t.shape.rows, t.logical_cols, 16);
    t.bytes.assign(t.shape.bytes(), 128);
  }
  write_model(path_, config, tensors);
  expect_refused(path_, MAMBA_EDGE_UNSUPPORTED,
                 "\"layers.1.a\" is stored as int8; it must be fp32");
}

// Types, groups and widths may differ from layer to layer: buffers are planned for the largest.
TEST_F(ContainerTest, EveryMatrixOfItsOwnType) {
  for (const ModelConfig& config : {small_mamba1(), small_falcon(), small_mamba2()}) {
    std::vector<std::vector<TensorBytes>> sources;
    for (const WeightType type : kTypes) {
      for (const uint32_t group : {16u, 48u, 256u})
        sources.push_back(random_tensors(config, type, group));
    }
    std::mt19937 random(7);
    for (int round = 0; round < 20; ++round) {
      std::vector<TensorBytes> mixed = sources[0];
      for (size_t i = 0; i < mixed.size(); ++i) mixed[i] = sources[random() % sources.size()][i];
      write_model(path_, config, mixed);
      const Loaded got = load_and_step(path_);
      ASSERT_TRUE(got.status.ok()) << got.status.message();
      for (const float v : got.logits) EXPECT_TRUE(std::isfinite(v));
    }
  }
}

TEST_F(ContainerTest, ProvenanceThatIsCut) {
  const Bytes good = {1, 0, 0, 0, 2, 0, 0, 0, 'k', 'v', 'w'};
  const auto visit = [](void* n, std::string_view, std::string_view) { ++*static_cast<int*>(n); };
  int seen = 0;
  ASSERT_TRUE(for_each_provenance(good.data(), good.size(), "f", visit, &seen).ok());
  EXPECT_EQ(seen, 1);
  for (size_t n = 1; n < good.size(); ++n) {
    seen = 0;
    EXPECT_EQ(for_each_provenance(good.data(), n, "f", visit, &seen).code(), MAMBA_EDGE_BAD_FORMAT);
    EXPECT_EQ(seen, 0);
  }
  Bytes huge = good;
  for (size_t i = 0; i < 8; ++i) huge[i] = 0xFF;
  EXPECT_EQ(for_each_provenance(huge.data(), huge.size(), "f", visit, &seen).code(),
            MAMBA_EDGE_BAD_FORMAT);
}

// ---- the config's own encoding

TEST(ConfigEncoding, EveryFieldComesBack) {
  ModelConfig m1;
  m1.architecture = Architecture::falcon_mamba;
  m1.d_model = 101;
  m1.n_layer = 102;
  m1.n_vocab = 1003;
  m1.n_vocab_used = 1001;
  m1.norm = NormKind::layer;
  m1.norm_eps = 0.125f;
  m1.residual_in_fp32 = 0;
  m1.tied = 1;
  m1.bos_token = 17;
  m1.eos_token = -1;
  ModelConfig m2 = m1;
  m1.mamba1 = {201, 202, 63, 204, 1, 0, 1, 0.25f};
  m2.architecture = Architecture::mamba2;
  m2.mamba2 = {7 * 36, 302, 33, 7, 36, 12, 1, 0, 2, 1, 1, 1, 0.5f, 0.001f, INFINITY};
  for (const ModelConfig& config : {m1, m2}) {
    const Bytes bytes = encoded(config);
    ModelConfig got;
    const Status status = decode_config(bytes.data(), bytes.size(), "f", &got);
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_EQ(got.architecture, config.architecture);
    EXPECT_EQ(got.d_model, config.d_model);
    EXPECT_EQ(got.n_layer, config.n_layer);
    EXPECT_EQ(got.n_vocab, config.n_vocab);
    EXPECT_EQ(got.n_vocab_used, config.n_vocab_used);
    EXPECT_EQ(got.norm, config.norm);
    EXPECT_EQ(got.norm_eps, config.norm_eps);
    EXPECT_EQ(got.residual_in_fp32, config.residual_in_fp32);
    EXPECT_EQ(got.tied, config.tied);
    EXPECT_EQ(got.bos_token, config.bos_token);
    EXPECT_EQ(got.eos_token, config.eos_token);
    const Mamba1Config &a = config.mamba1, &b = got.mamba1;
    EXPECT_EQ(a.d_inner, b.d_inner);
    EXPECT_EQ(a.d_state, b.d_state);
    EXPECT_EQ(a.d_conv, b.d_conv);
    EXPECT_EQ(a.dt_rank, b.dt_rank);
    EXPECT_EQ(a.proj_bias, b.proj_bias);
    EXPECT_EQ(a.conv_bias, b.conv_bias);
    EXPECT_EQ(a.dt_bc_norm, b.dt_bc_norm);
    EXPECT_EQ(a.dt_bc_eps, b.dt_bc_eps);
    const Mamba2Config &c = config.mamba2, &d = got.mamba2;
    EXPECT_EQ(c.d_inner, d.d_inner);
    EXPECT_EQ(c.d_state, d.d_state);
    EXPECT_EQ(c.d_conv, d.d_conv);
    EXPECT_EQ(c.headdim, d.headdim);
    EXPECT_EQ(c.n_heads, d.n_heads);
    EXPECT_EQ(c.n_groups, d.n_groups);
    EXPECT_EQ(c.proj_bias, d.proj_bias);
    EXPECT_EQ(c.conv_bias, d.conv_bias);
    EXPECT_EQ(c.gated_norm, d.gated_norm);
    EXPECT_EQ(c.norm_before_gate, d.norm_before_gate);
    EXPECT_EQ(c.d_per_channel, d.d_per_channel);
    EXPECT_EQ(c.init_states, d.init_states);
    EXPECT_EQ(c.norm_eps, d.norm_eps);
    EXPECT_EQ(c.dt_low, d.dt_low);
    EXPECT_EQ(c.dt_high, d.dt_high);
    // The keys are the format's: pairs in ascending order, 8 bytes each.
    for (size_t at = 8; at < bytes.size(); at += 8) {
      EXPECT_GT(bytes[at], bytes[at - 8]);
      EXPECT_EQ(bytes[at + 1] | bytes[at + 2] | bytes[at + 3], 0);
    }
    EXPECT_EQ(bytes.size(), 8u * (11 + (config.is_mamba2() ? 15 : 8)));
  }
}

TEST(ConfigValidation, Bounds) {
  const auto refused = [](ModelConfig config, auto change, const char* says) {
    ASSERT_TRUE(validate(config).ok());
    change(config);
    const Status status = validate(config);
    EXPECT_EQ(status.code(), MAMBA_EDGE_UNSUPPORTED) << says;
    EXPECT_NE(std::string(status.message()).find(says), std::string::npos)
        << status.message() << "\n  does not say: " << says;
  };
  const auto both = [&](auto change, const char* says) {
    refused(small_mamba1(), change, says);
    refused(small_mamba2(), change, says);
  };
  using C = ModelConfig;
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  both([](C& c) { c.architecture = static_cast<Architecture>(0); }, "architecture is 0");
  both([](C& c) { c.architecture = static_cast<Architecture>(4); }, "architecture is 4");
  both([](C& c) { c.norm = static_cast<NormKind>(3); }, "norm is 3");
  both([](C& c) { c.d_model = 0; }, "d_model is 0");
  both([](C& c) { c.d_model = (1u << 20) + 1; }, "d_model is 1048577");
  both([](C& c) { c.n_layer = 0; }, "n_layer is 0");
  both([](C& c) { c.n_layer = 4097; }, "n_layer is 4097");
  both([](C& c) { c.n_vocab = 0; }, "n_vocab is 0");
  both([](C& c) { c.n_vocab = kAll; }, "n_vocab is 4294967295");
  both([](C& c) { c.n_vocab_used = 0; }, "n_vocab_used is 0");
  both([](C& c) { c.n_vocab_used = c.n_vocab + 1; }, "n_vocab_used is 38");
  both([](C& c) { c.norm_eps = kNan; }, "norm_eps");
  both([](C& c) { c.norm_eps = INFINITY; }, "norm_eps");
  both([](C& c) { c.norm_eps = -1e-9f; }, "norm_eps");
  both([](C& c) { c.bos_token = 37; }, "bos_token 37");
  both([](C& c) { c.bos_token = -2; }, "bos_token -2");
  both([](C& c) { c.eos_token = std::numeric_limits<int32_t>::min(); }, "eos_token -2147483648");
  refused(
      small_mamba1(), [](C& c) { c.mamba1.d_inner = 0; }, "d_inner is 0");
  refused(
      small_mamba1(), [](C& c) { c.mamba1.d_state = 4097; }, "d_state is 4097");
  refused(
      small_mamba1(), [](C& c) { c.mamba1.d_conv = 0; }, "d_conv is 0");
  refused(
      small_mamba1(), [](C& c) { c.mamba1.d_conv = 65; }, "d_conv is 65");
  refused(
      small_mamba1(), [](C& c) { c.mamba1.dt_rank = 0; }, "dt_rank is 0");
  refused(
      small_falcon(), [](C& c) { c.mamba1.dt_bc_eps = kNan; }, "mixer_rms_eps");
  refused(
      small_mamba2(), [](C& c) { c.mamba2.d_inner = 41; }, "is not d_inner 41");
  refused(
      small_mamba2(), [](C& c) { c.mamba2.n_heads = kAll; }, "n_heads is 4294967295");
  refused(
      small_mamba2(), [](C& c) { c.mamba2.n_groups = 0; }, "n_groups is 0");
  refused(
      small_mamba2(), [](C& c) { c.mamba2.n_groups = 3; }, "not a multiple of n_groups 3");
  refused(
      small_mamba2(), [](C& c) { c.mamba2.n_groups = 5; }, "n_groups is 5");
  refused(
      small_mamba2(), [](C& c) { c.mamba2.gated_norm = 3; }, "gated_norm is 3");
  refused(
      small_mamba2(), [](C& c) { c.mamba2.dt_low = 1, c.mamba2.dt_high = 0; },
      "dt_limit is [1, 0]");
  refused(
      small_mamba2(), [](C& c) { c.mamba2.dt_high = kNan; }, "dt_limit");
  refused(
      small_mamba2(), [](C& c) { c.mamba2.norm_eps = -1; }, "eps of the gated norm");
  // 2^16 heads of 2 channels in 2^16 groups, each padded to 16 channels, times 64 states of each
  refused(
      small_mamba2(),
      [](C& c) {
        c.mamba2.headdim = 1;
        c.mamba2.d_inner = c.mamba2.n_heads = c.mamba2.n_groups = 1u << 20;
        c.mamba2.d_state = 1;
      },
      "d_inner padded by groups is 16777216");
  refused(
      small_mamba2(),
      [](C& c) {
        c.mamba2.headdim = 1;
        c.mamba2.d_inner = c.mamba2.n_heads = c.mamba2.n_groups = 1u << 18;
        c.mamba2.d_state = 4096;
      },
      "n_groups * d_state is 1073741824");
}

// A config may be as large as its bounds: then nothing overflows, and the file is refused for what
// it lacks.
TEST_F(ContainerTest, LargestConfigIsCounted) {
  ModelConfig config = small_mamba1();
  config.d_model = 1u << 20;
  config.n_layer = 4096;
  config.n_vocab = 1u << 24;
  config.mamba1.d_inner = 1u << 20;
  config.mamba1.d_state = 1u << 12;
  config.mamba1.dt_rank = 1u << 20;
  ASSERT_TRUE(validate(config).ok());
  const Layout layout(config);
  EXPECT_EQ(layout.in_proj_rows, 2u << 20);
  EXPECT_EQ(layout.x_proj_rows, (1u << 20) + (2u << 12));
  EXPECT_EQ(tensor_count(config), 2 + 10u * 4096);
  write_model(path_, encoded(config), {});
  expect_refused(path_, MAMBA_EDGE_BAD_FORMAT, "\"embedding\" is missing");
}

}  // namespace
}  // namespace mamba_edge::test
