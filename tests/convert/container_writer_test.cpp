// What the writer leaves on disk: a legal sequence of zstd frames, always the same bytes, or
// nothing.
#include "convert/container_writer.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <zstd.h>

#include <cstdlib>
#include <random>

#include "convert/error.h"
#include "tests/convert/no_tmpfile.h"
#include "tests/engine/model_builder.h"
#include "tests/golden/temporary_folder.h"

namespace mamba_edge::test {
namespace {

namespace fs = std::filesystem;

size_t files_in(const fs::path& folder) {
  return static_cast<size_t>(
      std::distance(fs::directory_iterator(folder), fs::directory_iterator()));
}

std::string refusal(const fs::path& path) {
  try {
    write_model(path, small_mamba1(), WeightType::int8);
  } catch (const convert::Error& error) {
    return error.what();
  }
  return "nothing was refused";
}

TEST(ContainerWriter, ZstdTakesTheFile) {
  if (std::system("zstd --version > /dev/null 2>&1") != 0)
    GTEST_SKIP() << "the program zstd is not installed";
  const TemporaryFolder folder;
  const fs::path path = folder.path / "model.mamba";
  for (const bool store : {false, true}) {
    for (const ModelConfig& config : {small_mamba1(), small_mamba2()}) {
      WriteOptions options;
      if (store) options.encoding = Encoding::raw;
      options.frame_bytes = 700;
      options.more_sections = {{"PROV", false, {}}};
      write_model(path, config, WeightType::int4, options);
      EXPECT_EQ(std::system(("zstd -q -t < " + path.string()).c_str()), 0);
      // What it inflates to is the blobs of zstd frames, one after the other.
      const fs::path plain = folder.path / "plain";
      ASSERT_EQ(std::system(("zstd -q -d -c < " + path.string() + " > " + plain.string()).c_str()),
                0);
      Bytes expected;
      if (!store) {
        for (const TensorBytes& t : random_tensors(config, WeightType::int4)) {
          expected.insert(expected.end(), t.bytes.begin(), t.bytes.end());
        }
      }
      const Bytes conf = encoded(config);
      expected.insert(expected.end(), conf.begin(), conf.end());
      EXPECT_EQ(read_file(plain), expected);
      Bytes damaged = read_file(path);
      damaged[damaged.size() / 3] ^= 0x20;
      write_file(path, damaged);
      if (!store) {
        EXPECT_NE(std::system(("zstd -q -t < " + path.string() + " 2> /dev/null").c_str()), 0);
      }
    }
  }
}

// Frame after frame from the first byte to the last, by the sizes in the file: no gap, nothing
// overlapping.
TEST(ContainerWriter, FramesCoverTheFile) {
  const TemporaryFolder folder;
  const fs::path path = folder.path / "model.mamba";
  for (const bool store : {false, true}) {
    WriteOptions options;
    if (store) options.encoding = Encoding::raw;
    write_model(path, small_mamba2(), WeightType::int8, options);
    const Image image(read_file(path));
    std::map<uint64_t, uint32_t> listed;  // offset -> stored bytes
    for (uint32_t i = 0; i < image.n_frames(); ++i) {
      listed[image.get<uint64_t>(image.frame(i))] = image.get<uint32_t>(image.frame(i) + 8);
    }
    EXPECT_EQ(listed.size(), image.n_frames());
    size_t at = 0, seen = 0;
    while (at < image.bytes.size()) {
      if (image.get<uint32_t>(at) == 0x184D2A5E) {
        const size_t end = at + 8 + image.get<uint32_t>(at + 4);
        const auto inside = listed.lower_bound(at + 8);
        if (inside != listed.end() && inside->first < end) {
          EXPECT_EQ(inside->first % 64, 0u);
          EXPECT_EQ(inside->first + inside->second, end);
          ++seen;
        }
        at = end;
      } else {
        ASSERT_EQ(image.get<uint32_t>(at), 0xFD2FB528u) << "at " << at;
        ASSERT_EQ(listed.count(at), 1u) << "at " << at;
        ++seen;
        at += listed[at];
      }
    }
    EXPECT_EQ(at, image.bytes.size());
    EXPECT_EQ(seen, listed.size());
  }
}

// The content of frames, one after the other.
Bytes inflated(const std::vector<convert::Compressed>& frames) {
  Bytes all;
  for (const convert::Compressed& c : frames) {
    EXPECT_LE(c.raw_bytes, format::kMaxFrameRaw);
    EXPECT_EQ(ZSTD_getFrameContentSize(c.frame.data(), c.frame.size()), c.raw_bytes);
    Bytes content(c.raw_bytes);
    EXPECT_EQ(ZSTD_decompress(content.data(), content.size(), c.frame.data(), c.frame.size()),
              c.raw_bytes);
    all.insert(all.end(), content.begin(), content.end());
  }
  return all;
}

TEST(ContainerWriter, FramesOfRowBlocks) {
  const MatrixShape shape{WeightType::int5, 2500, 1024, 64};
  Bytes raw(shape.bytes());
  std::mt19937 random(3);
  for (uint8_t& b : raw) b = static_cast<uint8_t>(random() % 50);
  const std::vector<convert::Compressed> plain =
      convert::compress_row_blocks(raw, shape, Encoding::zstd, 3);
  EXPECT_EQ(inflated(plain), raw);
  const std::vector<convert::Compressed> sorted =
      convert::compress_row_blocks(raw, shape, Encoding::sorted, 3);
  Bytes content = inflated(sorted), back(raw.size());
  size_t at = 0;
  for (const convert::Compressed& c : sorted) {
    ASSERT_EQ(c.raw_bytes % shape.row_block_bytes(), 0u);
    unsort_row_blocks(shape, c.raw_bytes / shape.row_block_bytes(), &content[at], &back[at]);
    at += c.raw_bytes;
  }
  EXPECT_EQ(back, raw);
  EXPECT_GT(sorted.size(), 1u);
}

// 2^16 + 1 columns of fp32 are more than a frame holds.
TEST(ContainerWriter, RowBlockLargerThanAFrame) {
  const MatrixShape shape{WeightType::f32, 16, (1u << 16) + 1, 1};
  const Bytes raw(shape.bytes(), 5);
  const convert::EncodingChoice choice = convert::choose_encoding(raw, shape, 1);
  EXPECT_EQ(choice.encoding, Encoding::zstd);
  const std::vector<convert::Compressed> frames =
      convert::compress_row_blocks(raw, shape, choice.encoding, 1);
  EXPECT_EQ(frames.size(), 2u);
  EXPECT_EQ(inflated(frames), raw);
}

// Floats whose low bytes are zero want to be sorted; a pattern that repeats is best left alone.
TEST(ContainerWriter, TheSmallerEncodingIsChosen) {
  const MatrixShape shape{WeightType::f32, 160, 100, 1};
  std::mt19937 random(3);
  std::vector<uint32_t> rounded(shape.bytes() / 4), repeated(rounded.size());
  for (uint32_t& v : rounded) v = 0x3F000000 | static_cast<uint32_t>(random()) % 128 << 16;
  for (size_t i = 0; i < repeated.size(); ++i) {
    repeated[i] = i < 1000 ? static_cast<uint32_t>(random()) : repeated[i - 1000];
  }
  const auto bytes_of = [](const std::vector<uint32_t>& v) {
    return std::span(reinterpret_cast<const uint8_t*>(v.data()), v.size() * 4);
  };
  for (const auto& [values, expected] :
       {std::pair{&rounded, Encoding::sorted}, {&repeated, Encoding::zstd}}) {
    const convert::EncodingChoice choice = convert::choose_encoding(bytes_of(*values), shape, 3);
    EXPECT_EQ(choice.encoding, expected);
    uint64_t bytes = 0;
    for (const auto& c : convert::compress_row_blocks(bytes_of(*values), shape, expected, 3))
      bytes += c.frame.size();
    EXPECT_EQ(choice.stored_bytes, bytes);
  }
}

TEST(ContainerWriter, SameInputSameBytes) {
  const TemporaryFolder folder;
  for (const bool store : {false, true}) {
    WriteOptions options;
    if (store) options.encoding = Encoding::raw;
    write_model(folder.path / "a", small_mamba1(), WeightType::int8, options);
    write_model(folder.path / "b", small_mamba1(), WeightType::int8, options);
    EXPECT_EQ(read_file(folder.path / "a"), read_file(folder.path / "b"));
  }
}

TEST(ContainerWriter, NothingUntilItIsComplete) {
  const TemporaryFolder folder;
  const fs::path path = folder.path / "model.mamba";
  {
    convert::ContainerWriter writer(path, 1);
    const Bytes bytes(100'000, 7);
    writer.add_section("CONF", true, bytes);
    EXPECT_FALSE(fs::exists(path));
  }
  EXPECT_EQ(files_in(folder.path), 0u);
  // An old file stays as it was until then, and is replaced at once.
  write_file(path, Bytes{1, 2, 3});
  { convert::ContainerWriter writer(path, 1); }
  EXPECT_EQ(read_file(path), (Bytes{1, 2, 3}));
  write_model(path, small_mamba1(), WeightType::int8);
  EXPECT_EQ(files_in(folder.path), 1u);
  EXPECT_GT(fs::file_size(path), 1000u);
}

TEST(ContainerWriter, PermissionsAreThoseOfAnyNewFile) {
  const TemporaryFolder folder;
  const fs::path path = folder.path / "model.mamba";
  const mode_t old = umask(027);
  write_model(path, small_mamba1(), WeightType::int8);
  umask(old);
  struct stat status = {};
  ASSERT_EQ(stat(path.c_str(), &status), 0);
  EXPECT_EQ(status.st_mode & 0777, 0640u);
}

TEST(ContainerWriter, PlacesThatCannotBe) {
  const TemporaryFolder folder;
  EXPECT_NE(refusal(folder.path).find("directory"), std::string::npos) << refusal(folder.path);
  const fs::path nowhere = folder.path / "absent" / "model.mamba";
  EXPECT_NE(refusal(nowhere).find("there is no folder " + (folder.path / "absent").string()),
            std::string::npos);
  EXPECT_NE(refusal("/dev/full").find("not a regular file"), std::string::npos)
      << refusal("/dev/full");
  write_file(folder.path / "file", Bytes{1});
  EXPECT_NE(refusal(folder.path / "file" / "model.mamba").find("there is no folder"),
            std::string::npos);
  fs::create_symlink("loop", folder.path / "loop");
  EXPECT_NE(refusal(folder.path / "loop" / "model.mamba").find("cannot write"), std::string::npos);
  const fs::path long_name = folder.path / std::string(300, 'x');
  EXPECT_NE(refusal(long_name).find("File name too long"), std::string::npos) << refusal(long_name);
  EXPECT_EQ(files_in(folder.path), 2u);
}

// The longest name that a file may have is a name like any other, also over an old file.
TEST(ContainerWriter, LongestName) {
  const TemporaryFolder folder;
  const fs::path path = folder.path / std::string(255, 'n');
  for (int i = 0; i < 2; ++i) {
    write_model(path, small_mamba1(), WeightType::int8);
    EXPECT_EQ(files_in(folder.path), 1u);
  }
}

TEST(ContainerWriter, NamesWithoutAFolder) {
  const TemporaryFolder folder;
  const fs::path before = fs::current_path();
  fs::current_path(folder.path);
  write_model("model.mamba", small_mamba1(), WeightType::int8);
  write_model("model.mamba", small_mamba1(), WeightType::int8);
  fs::current_path(before);
  EXPECT_TRUE(fs::exists(folder.path / "model.mamba"));
  EXPECT_EQ(files_in(folder.path), 1u);
}

// Where the file system has no files without names, the writer makes a temporary one beside the
// output; what a killed converter with the same process number left there is not touched.
TEST(ContainerWriter, WithoutNamelessFiles) {
  const TemporaryFolder folder;
  const fs::path path = folder.path / "model.mamba", ours = folder.path / "reference";
  write_model(ours, small_mamba1(), WeightType::int8);
  const pid_t child = fork();
  ASSERT_GE(child, 0);
  if (child == 0) {
    if (!refuse_nameless_files()) _exit(77);
    const fs::path left = folder.path / (".mamba-edge-partial-" + std::to_string(getpid()) + "-0");
    write_file(left, Bytes{9});
    for (int round = 0; round < 2; ++round) {
      convert::ContainerWriter writer(path, 1);
      writer.add_section("CONF", true, Bytes(1000, 1));
      if (files_in(folder.path) != 3) _exit(2);  // the temporary one has a name
    }
    if (files_in(folder.path) != 2) _exit(3);  // given up: gone
    for (int round = 0; round < 2; ++round) {
      write_model(path, small_mamba1(), WeightType::int8);
      if (files_in(folder.path) != 3) _exit(4);
    }
    if (read_file(left) != Bytes{9}) _exit(5);
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  if (WEXITSTATUS(status) == 77)
    GTEST_SKIP() << "system call filters are refused here (an emulator?)";
  EXPECT_EQ(WEXITSTATUS(status), 0);
  EXPECT_EQ(read_file(path), read_file(ours));
}

}  // namespace
}  // namespace mamba_edge::test
