#include "tools/common.h"

#include <gtest/gtest.h>

#include "tests/tools/programs.h"

namespace mamba_edge::tools {
namespace {

using test::read_bytes;
using test::TemporaryFolder;
using test::write_bytes;

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "(no error)";
}

// A .npy file with any header and data.
std::string npy(const std::string& dict, std::string_view data, char version = 1) {
  std::string bytes = "\x93NUMPY";
  bytes += version;
  bytes += '\0';
  bytes += static_cast<char>(dict.size());
  bytes += '\0';
  if (version > 1) bytes += std::string(2, '\0');
  return bytes + dict + std::string(data);
}

std::string dict(const std::string& dtype, const std::string& shape,
                 const std::string& order = "False") {
  return "{'descr': '" + dtype + "', 'fortran_order': " + order + ", 'shape': " + shape + ", }\n";
}

using namespace std::string_view_literals;

TEST(Npy, HeaderIsWhatNumpyWrites) {
  const std::string header = npy_header("<f4", {3, 2});
  ASSERT_EQ(header.size(), 128u);
  EXPECT_EQ(header.substr(0, 10), "\x93NUMPY\x01\x00\x76\x00"sv);
  EXPECT_EQ(header.substr(10, 59), "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2), }");
  EXPECT_EQ(header.find_first_not_of(' ', 69), 127u);
  EXPECT_EQ(header.back(), '\n');
  EXPECT_NE(npy_header("<i4", {7}).find("'shape': (7,), }"), std::string::npos);
  EXPECT_NE(npy_header("<i4", {1, 2, 3}).find("'shape': (1, 2, 3), }"), std::string::npos);
  EXPECT_NE(npy_header("<i4", {}).find("'shape': (), }"), std::string::npos);
}

TEST(Npy, ReadsIdsOfEveryIntegerType) {
  const TemporaryFolder folder;
  const std::string path = folder / "ids.npy";
  const std::vector<int64_t> expected = {1, 200};
  const std::vector<std::pair<std::string, std::string_view>> cases = {
      {"|u1", "\x01\xC8"sv},
      {"<u2", "\x01\x00\xC8\x00"sv},
      {"<i2", "\x01\x00\xC8\x00"sv},
      {">i2", "\x00\x01\x00\xC8"sv},
      {"<i4", "\x01\x00\x00\x00\xC8\x00\x00\x00"sv},
      {"<u4", "\x01\x00\x00\x00\xC8\x00\x00\x00"sv},
      {"<i8", "\x01\x00\x00\x00\x00\x00\x00\x00\xC8\x00\x00\x00\x00\x00\x00\x00"sv},
      {">u8", "\x00\x00\x00\x00\x00\x00\x00\x01\x00\x00\x00\x00\x00\x00\x00\xC8"sv},
  };
  for (const auto& [type, data] : cases) {
    for (const char version : {'\1', '\2', '\3'}) {
      write_bytes(path, npy(dict(type, "(2,)"), data, version));
      EXPECT_EQ(read_npy_ids(path), expected) << type;
    }
    write_bytes(path, npy(dict(type, "(1, 2)"), data));
    EXPECT_EQ(read_npy_ids(path), expected) << type;
  }
  write_bytes(path, npy(dict("|i1", "(2,)"), "\xFF\x80"));
  EXPECT_EQ(read_npy_ids(path), (std::vector<int64_t>{-1, -128}));
  write_bytes(path, npy(dict("<u8", "(1,)"), "\xFF\xFF\xFF\xFF\xFF\xFF\xFF\xFF"));
  EXPECT_EQ(read_npy_ids(path), std::vector<int64_t>{INT64_MAX});
  write_bytes(path, npy(dict("<i4", "(0,)"), ""));
  EXPECT_TRUE(read_npy_ids(path).empty());
}

TEST(Npy, RefusesWhatItCannotRead) {
  const TemporaryFolder folder;
  const std::string path = folder / "bad.npy";
  const std::string good = npy(dict("<i4", "(1,)"), "\x01\x00\x00\x00"sv);
  const std::vector<std::pair<std::string, std::string>> cases = {
      {"", "not a .npy file"},
      {"PK\x03\x04 something else", "not a .npy file"},
      {good.substr(0, 8), "not a .npy file"},
      {good.substr(0, 30), "ends within its header"},
      {good.substr(0, good.size() - 1), "has 3 bytes of data, its header announces 4"},
      {good + "x", "has 5 bytes of data, its header announces 4"},
      {npy(dict("<i4", "(1,)"), "\x01\x00\x00\x00"sv, 4), "version 4"},
      {npy(dict("<f4", "(1,)"), "\x01\x00\x00\x00"sv), "'<f4'; token ids are integers"},
      {npy(dict("|b1", "(1,)"), "\x01"sv), "'|b1'; token ids are integers"},
      {npy(dict("<i16", "(1,)"), std::string(16, '\0')), "'<i16'; token ids are integers"},
      {npy(dict("<i3", "(1,)"), "\x01\x00\x00"sv), "unknown type '<i3'"},
      {npy(dict("|O", "(1,)"), "\x01"sv), "unknown type '|O'"},
      {npy("{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (1,), }", ""), "records"},
      {npy(dict("<i4", "(1,)", "True"), "\x01\x00\x00\x00"sv), "Fortran order"},
      {npy(dict("<i4", "(2, 1)"), "\x01\x00\x00\x00\x01\x00\x00\x00"sv), "2 dimensions"},
      {npy(dict("<i4", "()"), "\x01\x00\x00\x00"sv), "0 dimensions"},
      {npy(dict("<i4", "(4294967296, 4294967296)"), ""), "announces more than 64 bits"},
      {npy(dict("<i4", "(4611686018427387905,)"), "\x01\x00\x00\x00"sv),
       "announces more than 64 bits"},
      {npy(dict("<i4", "(99999999999999999999,)"), ""), "whole numbers"},
      {npy(dict("<i4", "(-1,)"), ""), "whole numbers"},
      {npy("{'descr': '<i4'}", ""), "lacks"},
      {npy("{'descr': '<i4', 'descr': '<i4'}", ""), "repeated key 'descr'"},
      {npy("{'descr': '<i4", ""), "unfinished string"},
      {npy("{", ""), "not the dict"},
      {npy("", ""), "not the dict"},
      {npy("import os", ""), "not the dict"},
  };
  for (const auto& [bytes, expected] : cases) {
    write_bytes(path, bytes);
    const std::string message = message_of([&] { read_npy_ids(path); });
    EXPECT_NE(message.find(expected), std::string::npos) << message;
    EXPECT_NE(message.find(path), std::string::npos) << message;
  }
}

TEST(ParseIds, AcceptsTheUsualWaysToWriteThem) {
  const std::vector<int64_t> expected = {1, 22, 3};
  for (const char* text :
       {"1,22,3", "1 22 3", "[1,22,3]", " [ 1 , 22\n,3 ] \n", "1\n22\n3\n", "1, 22 3"}) {
    EXPECT_EQ(parse_ids(text, "x"), expected) << text;
  }
  for (const char* text : {"", " ", "[]", "[ ]\n"})
    EXPECT_TRUE(parse_ids(text, "x").empty()) << text;
  EXPECT_EQ(parse_ids("-4 99999999999999999999 -99999999999999999999", "x"),
            (std::vector<int64_t>{-4, INT64_MAX, INT64_MIN}));
}

TEST(ParseIds, RefusesEverythingElse) {
  for (const char* text : {"a", "1,", "1,,2", ",1", "1;2", "1.5", "[1", "1]", "[1] 2", "[1,]",
                           "0x10", "1-2", "[[1]]"}) {
    const std::string message = message_of([&] { parse_ids(text, "--tokens"); });
    EXPECT_TRUE(message.starts_with("--tokens: expected ")) << text << ": " << message;
  }
}

TEST(Utf8, KnowsWholeCharacters) {
  for (const char* good : {"", "a", "\u00e9", "\u20ac", "\U0001f600", "\uffff", "\U0010ffff"})
    EXPECT_TRUE(is_utf8(good));
  for (const char* bad : {"\x80", "\xc3", "a\xc3",
                          "\xc3"
                          "a",
                          "\xc0\x80", "\xe0\x80\x80", "\xed\xa0\x80", "\xf4\x90\x80\x80",
                          "\xf8\x88\x80\x80\x80", "\xff", "\xe2\x82"}) {
    EXPECT_FALSE(is_utf8(bad)) << bad;
  }
}

// What is shown of `text` when it arrives in pieces of `size` bytes.
std::string shown(const std::vector<std::string>& stops, const std::string& text, size_t size,
                  std::string* found) {
  StopFilter filter(stops);
  std::string result;
  for (size_t at = 0; at < text.size(); at += size) result += filter.add(text.substr(at, size));
  result += filter.finish();
  *found = filter.found();
  return result;
}

TEST(StopFilter, FindsStringsHoweverTheTextIsCut) {
  struct Case {
    std::vector<std::string> stops;
    std::string text, expected, found;
  };
  const std::vector<Case> cases = {
      {{}, "abc", "abc", ""},
      {{"x"}, "abc", "abc", ""},
      {{"c"}, "abc", "ab", "c"},
      {{"abc"}, "abc", "", "abc"},
      {{"abd"}, "ababd", "ab", "abd"},       // a start that turns out not to be one
      {{"aab"}, "aaab", "a", "aab"},         // overlaps itself
      {{"abcd", "bc"}, "abcde", "a", "bc"},  // complete first
      {{"bc", "abc"}, "abc", "", "abc"},     // complete together: the longer
      {{"\n\n"}, "a\nb\n\nc", "a\nb", "\n\n"},
      {{"end"}, "the en", "the en", ""},  // held back, then let go
      {{"ab", "cd"}, "xcdab", "x", "cd"},
  };
  for (const Case& one : cases) {
    for (size_t size = 1; size <= one.text.size(); ++size) {
      std::string found;
      EXPECT_EQ(shown(one.stops, one.text, size, &found), one.expected)
          << one.text << " by " << size;
      EXPECT_EQ(found, one.found) << one.text << " by " << size;
    }
  }
}

TEST(StopFilter, HoldsBackNoMoreThanItMust) {
  StopFilter filter({"wolf", "ox"});
  EXPECT_EQ(filter.add("the "), "the ");
  EXPECT_EQ(filter.add("two"), "t");
  EXPECT_EQ(filter.add("o "), "woo ");
  EXPECT_EQ(filter.add("wol"), "");
  EXPECT_EQ(filter.add("fish"), "");
  EXPECT_TRUE(filter.stopped());
  EXPECT_EQ(filter.found(), "wolf");
  EXPECT_EQ(filter.add("more"), "");
  EXPECT_EQ(filter.finish(), "");
  filter.reset();
  EXPECT_EQ(filter.add("more"), "more");
}

TEST(OutputFile, AppearsOnlyWhenComplete) {
  const TemporaryFolder folder;
  const std::string path = folder / "out";
  write_bytes(path, "old");
  {
    OutputFile file(path);
    file.write("new", 3);
    EXPECT_EQ(read_bytes(path), "old");
  }
  EXPECT_EQ(read_bytes(path), "old");
  EXPECT_EQ(folder.files(), 1u);
  {
    OutputFile file(path);
    file.write("new", 3);
    file.commit();
  }
  EXPECT_EQ(read_bytes(path), "new");
  EXPECT_EQ(folder.files(), 1u);
}

TEST(OutputFile, NamesTheFileWhenItFails) {
  EXPECT_NE(message_of([] { OutputFile file("/nonexistent/out"); }).find("'/nonexistent/out'"),
            std::string::npos);
  const std::string message = message_of([] {
    OutputFile file("/dev/full");
    file.write("x", 1);
    file.commit();
  });
  EXPECT_NE(message.find("/dev/full"), std::string::npos) << message;
}

TEST(Format, Numbers) {
  EXPECT_EQ(format_bytes(0), "0 B");
  EXPECT_EQ(format_bytes(999), "999 B");
  EXPECT_EQ(format_bytes(1000), "1.0 kB");
  EXPECT_EQ(format_bytes(999'949), "999.9 kB");
  EXPECT_EQ(format_bytes(999'999), "1.0 MB");
  EXPECT_EQ(format_count(129'135'360), "129.1 M");
  EXPECT_GE(default_threads(), 1);
}

}  // namespace
}  // namespace mamba_edge::tools
