#include <errno.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstring>
#include <fstream>
#include <string>
#include <vector>

#include "platforms/os/file_map.h"
#include "platforms/os/memory.h"

namespace mamba_edge {
namespace {

class FileTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "mamba_edge_os_XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    folder = pattern;
    path = folder + "/file";
    content.resize(3 * memory_page_size() + 123);
    for (size_t i = 0; i < content.size(); ++i) content[i] = static_cast<char>(i * 7 + i / 256);
    std::ofstream(path, std::ios::binary)
        .write(content.data(), static_cast<std::streamsize>(content.size()));
  }
  void TearDown() override {
    unlink(path.c_str());
    rmdir(folder.c_str());
  }
  std::string folder, path;
  std::vector<char> content;
};

TEST_F(FileTest, ReadsExactly) {
  File file;
  ASSERT_EQ(file_open(path.c_str(), &file), 0);
  EXPECT_EQ(file.size, content.size());
  std::vector<char> all(content.size());
  ASSERT_EQ(file_read(file, 0, all.data(), all.size()), 0);
  EXPECT_EQ(all, content);
  char some[10];
  ASSERT_EQ(file_read(file, 4090, some, sizeof(some)), 0);
  EXPECT_EQ(std::memcmp(some, content.data() + 4090, sizeof(some)), 0);
  EXPECT_EQ(file_read(file, content.size() - 9, some, sizeof(some)), ENODATA);
  EXPECT_EQ(file_read(file, content.size(), some, 0), 0);
  EXPECT_EQ(file_read(file, UINT64_MAX - 3, some, sizeof(some)), ENODATA);
  EXPECT_EQ(file_read(file, uint64_t{1} << 62, some, sizeof(some)), ENODATA);
  file_close(&file);
  EXPECT_EQ(file.fd, -1);
  file_close(&file);
}

TEST_F(FileTest, MapsAnyRange) {
  File file;
  ASSERT_EQ(file_open(path.c_str(), &file), 0);
  const size_t page = memory_page_size(), size = content.size();
  const size_t ranges[][2] = {{0, size},
                              {0, 1},
                              {page, page},
                              {page - 1, 2},
                              {64, 64},
                              {size - 1, 1},
                              {2 * page + 5, size - 2 * page - 5}};
  for (const auto& [offset, bytes] : ranges) {
    Mapping mapping;
    ASSERT_EQ(file_map(file, offset, bytes, &mapping), 0);
    ASSERT_EQ(mapping.bytes, bytes);
    file_prefetch(mapping);
    EXPECT_EQ(std::memcmp(mapping.data, content.data() + offset, bytes), 0)
        << offset << " + " << bytes;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(mapping.data) % page, offset % page);
    file_unmap(&mapping);
    EXPECT_EQ(mapping.data, nullptr);
    file_unmap(&mapping);
  }
  Mapping mapping;
  EXPECT_EQ(file_map(file, 0, 0, &mapping), EINVAL);
  EXPECT_EQ(file_map(file, 0, size + 1, &mapping), ENODATA);
  EXPECT_EQ(file_map(file, size, 1, &mapping), ENODATA);
  EXPECT_EQ(file_map(file, UINT64_MAX, 2, &mapping), ENODATA);
  EXPECT_EQ(file_map(file, 1, SIZE_MAX, &mapping), ENODATA);
  EXPECT_EQ(mapping.data, nullptr);
  // A mapping outlives its file's descriptor.
  ASSERT_EQ(file_map(file, 10, 10, &mapping), 0);
  file_close(&file);
  EXPECT_EQ(mapping.data[0], static_cast<uint8_t>(content[10]));
  file_unmap(&mapping);
}

TEST_F(FileTest, OpensRegularFilesOnly) {
  File file;
  EXPECT_EQ(file_open((path + ".none").c_str(), &file), ENOENT);
  EXPECT_EQ(file.fd, -1);
  EXPECT_EQ(file_open(folder.c_str(), &file), EISDIR);
  EXPECT_EQ(file_open("/dev/null", &file), ESPIPE);
  const std::string pipe = folder + "/pipe";
  ASSERT_EQ(mkfifo(pipe.c_str(), 0600), 0);
  EXPECT_EQ(file_open(pipe.c_str(), &file), ESPIPE);  // and does not wait for a writer
  unlink(pipe.c_str());
  std::ofstream(path, std::ios::trunc).flush();
  ASSERT_EQ(file_open(path.c_str(), &file), 0);
  EXPECT_EQ(file.size, 0u);
  Mapping mapping;
  EXPECT_EQ(file_map(file, 0, 1, &mapping), ENODATA);
  file_close(&file);
}

TEST(Memory, IsZeroAlignedAndWritable) {
  for (const size_t bytes :
       {size_t{1}, size_t{4096}, size_t{100000}, size_t{2} << 20, (size_t{5} << 20) + 1}) {
    uint8_t* p = static_cast<uint8_t*>(memory_allocate(bytes));
    ASSERT_NE(p, nullptr);
    const size_t align = bytes >= size_t{2} << 20 ? size_t{2} << 20 : memory_page_size();
    EXPECT_EQ(reinterpret_cast<uintptr_t>(p) % align, 0u);
    for (size_t i = 0; i < bytes; i += 997) ASSERT_EQ(p[i], 0);
    std::memset(p, 1, bytes);
    EXPECT_EQ(p[bytes - 1], 1);
    memory_free(p, bytes);
  }
  memory_free(nullptr, 1);
}

TEST(Memory, RefusesWhatCannotBe) {
  EXPECT_EQ(memory_allocate(0), nullptr);
  EXPECT_EQ(memory_allocate(SIZE_MAX), nullptr);
  EXPECT_EQ(memory_allocate(SIZE_MAX / 2), nullptr);
}

TEST(Memory, KnowsTheMachine) {
  const uint64_t total = memory_total(), available = memory_available();
  EXPECT_GT(total, uint64_t{16} << 20);
  EXPECT_GT(available, uint64_t{1} << 20);
  EXPECT_LE(available, total);
}

}  // namespace
}  // namespace mamba_edge
