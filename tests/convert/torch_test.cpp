// torch_zip, torch_legacy and the pickle interpreter under both.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <numeric>

#include "convert/checkpoint.h"
#include "convert/error.h"
#include "convert/pickle.h"
#include "tests/convert/checkpoint_builders.h"

namespace mamba_edge::convert {
namespace {

using testing::bytes_of;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using testing::little_endian;
using testing::one_tensor_pickle;
using testing::PickleWriter;
using testing::TempFolder;
using testing::torch_archive;
using testing::zip;
using testing::ZipOptions;
using testing::ZipRecord;

class Torch : public ::testing::Test {
 protected:
  std::unique_ptr<Checkpoint> open(const std::string& bytes) {
    return Checkpoint::open(folder_.write("pytorch_model.bin", bytes));
  }

  std::vector<float> values(const std::string& bytes, const std::string& name = "t") {
    const auto checkpoint = open(bytes);
    const TensorInfo* tensor = checkpoint->find(name);
    if (tensor == nullptr) throw std::runtime_error("no tensor " + name);
    return checkpoint->read(*tensor);
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

  // Of a pickle in an archive with one storage of 16 bytes.
  std::string pickle_refusal(const std::string& pickle) {
    return refusal(torch_archive(pickle, {std::string(16, '\0')}));
  }

  TempFolder folder_;
};

std::string floats(size_t count) {
  std::vector<float> values(count);
  std::iota(values.begin(), values.end(), 0.0f);
  return bytes_of(values);
}

// ---- tensors ----

TEST_F(Torch, ContiguousTensor) {
  EXPECT_THAT(values(torch_archive(one_tensor_pickle(6, 0, {2, 3}, {3, 1}), {floats(6)})),
              ElementsAre(0, 1, 2, 3, 4, 5));
}

TEST_F(Torch, ViewsAreGathered) {
  const auto view = [&](int64_t offset, const std::vector<int64_t>& shape,
                        const std::vector<int64_t>& strides) {
    return values(torch_archive(one_tensor_pickle(12, offset, shape, strides), {floats(12)}));
  };
  EXPECT_THAT(view(0, {3, 2}, {1, 3}), ElementsAre(0, 3, 1, 4, 2, 5));  // transposed
  EXPECT_THAT(view(5, {2, 2}, {2, 1}), ElementsAre(5, 6, 7, 8));        // offset
  EXPECT_THAT(view(1, {3}, {4}), ElementsAre(1, 5, 9));                 // a column
  EXPECT_THAT(view(3, {2, 3}, {0, 1}), ElementsAre(3, 4, 5, 3, 4, 5));  // expanded
  EXPECT_THAT(view(11, {2, 2}, {0, 0}), ElementsAre(11, 11, 11, 11));   // expanded scalar
  EXPECT_THAT(view(0, {4}, {2}), ElementsAre(0, 2, 4, 6));
  EXPECT_THAT(view(2, {2, 2, 2}, {1, 6, 2}), ElementsAre(2, 4, 8, 10, 3, 5, 9, 11));
  EXPECT_THAT(view(7, {}, {}), ElementsAre(7));
  EXPECT_THAT(view(9, {1, 3}, {1000, 1}), ElementsAre(9, 10, 11));  // the stride of one row is free
  EXPECT_TRUE(view(1000, {0, 3}, {3, 1}).empty());
}

TEST_F(Torch, RowsOfALargeTransposedMatrix) {
  // [700, 900] as a view of a [900, 700] matrix: larger than every buffer, and rows lie far apart.
  constexpr int64_t kRows = 700;
  constexpr int64_t kColumns = 900;
  const auto checkpoint =
      open(torch_archive(one_tensor_pickle(kRows * kColumns, 0, {kRows, kColumns}, {1, kRows}),
                         {floats(kRows * kColumns)}));
  const TensorInfo& tensor = *checkpoint->find("t");
  for (const auto& [begin, end] : {std::pair<int64_t, int64_t>(0, kRows), {3, 4}, {650, 700}}) {
    std::vector<float> rows(static_cast<size_t>((end - begin) * kColumns));
    checkpoint->read_rows(tensor, begin, end, rows.data());
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t c = 0; c < kColumns; ++c) {
        ASSERT_EQ(rows[static_cast<size_t>((r - begin) * kColumns + c)],
                  static_cast<float>(c * kRows + r));
      }
    }
  }
}

TEST_F(Torch, EveryStorageType) {
  const auto read = [&](const std::string& type, const std::string& bytes) {
    return values(torch_archive(one_tensor_pickle(2, 0, {2}, {1}, type), {bytes}));
  };
  EXPECT_THAT(read("HalfStorage", bytes_of<uint16_t>({0x3e00, 0xc000})), ElementsAre(1.5f, -2.0f));
  EXPECT_THAT(read("BFloat16Storage", bytes_of<uint16_t>({0x3fc0, 0xc000})),
              ElementsAre(1.5f, -2.0f));
  EXPECT_THAT(read("DoubleStorage", bytes_of<double>({1.5, -2.0})), ElementsAre(1.5f, -2.0f));
  const auto checkpoint = open(
      torch_archive(one_tensor_pickle(2, 0, {2}, {1}, "LongStorage"), {std::string(16, '\0')}));
  EXPECT_EQ(checkpoint->find("t")->dtype_name, "int64");
  EXPECT_THROW(checkpoint->read(*checkpoint->find("t")), Error);
}

TEST_F(Torch, UntypedStorageWithADtype) {
  PickleWriter writer;
  writer.raw("}").text("t").global("torch._utils", "_rebuild_tensor_v3").raw("((");
  writer.text("storage").global("torch.storage", "UntypedStorage").text("0").text("cpu").integer(8);
  writer.raw("tQ").integer(1).integers({3}).integers({1}).raw("\x89");
  writer.empty_ordered_dict().global("torch", "bfloat16").raw("tRs");
  const std::string pickle = writer.stop();
  EXPECT_THAT(values(torch_archive(pickle, {bytes_of<uint16_t>({0, 0x3f80, 0x4000, 0x4040})})),
              ElementsAre(1, 2, 3));
}

TEST_F(Torch, ParametersAndOldTensors) {
  PickleWriter writer;
  writer.raw("}(").text("parameter").global("torch._utils", "_rebuild_parameter").raw("(");
  writer.tensor("FloatStorage", "0", 4, 0, {2}, {1}).raw("\x88").empty_ordered_dict().raw("tR");
  writer.text("with_state").global("torch._utils", "_rebuild_parameter_with_state").raw("(");
  writer.tensor("FloatStorage", "0", 4, 1, {2}, {1}).raw("\x88").empty_ordered_dict().raw("}tR");
  writer.text("old").global("torch._utils", "_rebuild_tensor").raw("(");
  writer.storage("FloatStorage", "0", 4).integer(2).integers({2}).integers({1}).raw("tRu");
  const std::string archive = torch_archive(writer.stop(), {floats(4)});
  EXPECT_THAT(values(archive, "parameter"), ElementsAre(0, 1));
  EXPECT_THAT(values(archive, "with_state"), ElementsAre(1, 2));
  EXPECT_THAT(values(archive, "old"), ElementsAre(2, 3));
}

TEST_F(Torch, SharedStorageIsTied) {
  PickleWriter writer;
  writer.raw("}(").text("a").tensor("FloatStorage", "0", 4, 0, {2, 2}, {2, 1});
  writer.text("b").tensor("FloatStorage", "0", 4, 0, {2, 2}, {2, 1});
  writer.text("c").tensor("FloatStorage", "0", 4, 0, {2, 2}, {1, 2}).raw("u");
  const auto checkpoint = open(torch_archive(writer.stop(), {floats(4)}));
  EXPECT_TRUE(Checkpoint::same_storage(*checkpoint->find("a"), *checkpoint->find("b")));
  EXPECT_FALSE(Checkpoint::same_storage(*checkpoint->find("a"), *checkpoint->find("c")));
}

TEST_F(Torch, NewProtocolsAndPlainValues) {
  PickleWriter writer(5);
  writer.raw("\x95").raw(std::string("\x10\0\0\0\0\0\0\0", 8));  // FRAME
  writer.empty_ordered_dict().raw("\x94(").text("step").integer(70000);
  writer.text("rate").raw(std::string("G\x3f\xe0\0\0\0\0\0\0", 9)).text("none").raw("N");
  writer.text("list")
      .raw("](")
      .integer(1)
      .raw(
          "\x88"
          "e")
      .text("size")
      .global("torch", "Size")
      .raw("(");
  writer.integer(2).raw("t\x85R").text("t").tensor("FloatStorage", "0", 4, 0, {2}, {1});
  writer.text("long").raw(std::string("\x8a\x0b") + std::string(11, '\x7f')).raw("u}");
  writer.text("_metadata").raw("}sb");
  EXPECT_THAT(values(torch_archive(writer.stop(), {floats(4)})), ElementsAre(0, 1));
}

TEST_F(Torch, OrderedDictOfPython2) {
  PickleWriter writer;
  writer.global("collections", "OrderedDict").raw("](](").raw(std::string("U\x01t", 3));
  writer.tensor("FloatStorage", "0", 4, 0, {2}, {1}).raw("ee\x85R");
  EXPECT_THAT(values(torch_archive(writer.stop(), {floats(4)})), ElementsAre(0, 1));
}

TEST_F(Torch, NestedStateDicts) {
  for (const char* key : {"state_dict", "model_state_dict", "model"}) {
    PickleWriter writer;
    writer.raw("}(").text("epoch").integer(3).text(key).raw("}").text("t");
    writer.tensor("FloatStorage", "0", 4, 0, {1}, {1}).raw("su");
    EXPECT_THAT(values(torch_archive(writer.stop(), {floats(4)})), ElementsAre(0)) << key;
  }
  EXPECT_THAT(pickle_refusal(PickleWriter().raw("}").text("other").raw("}s").stop()),
              HasSubstr("model_state_dict"));
  EXPECT_THAT(pickle_refusal(PickleWriter().raw("]").stop()), HasSubstr("not a dict of tensors"));
}

TEST_F(Torch, ALaterItemReplacesAnEarlierOne) {
  PickleWriter writer;
  writer.raw("}(").text("t").tensor("FloatStorage", "0", 4, 0, {1}, {1});
  writer.text("t").tensor("FloatStorage", "0", 4, 3, {1}, {1}).raw("u");
  EXPECT_THAT(values(torch_archive(writer.stop(), {floats(4)})), ElementsAre(3));
}

TEST_F(Torch, ViewsOutsideTheirStorageAreRefused) {
  const auto message = [&](int64_t offset, const std::vector<int64_t>& shape,
                           const std::vector<int64_t>& strides) {
    return pickle_refusal(one_tensor_pickle(4, offset, shape, strides));
  };
  constexpr int64_t kHuge = INT64_MAX;
  EXPECT_EQ(message(0, {4}, {1}), "");
  EXPECT_THAT(message(0, {5}, {1}), HasSubstr("leaves its storage"));
  EXPECT_THAT(message(1, {4}, {1}), HasSubstr("leaves its storage"));
  EXPECT_THAT(message(4, {1}, {1}), HasSubstr("leaves its storage"));
  EXPECT_THAT(message(0, {2, 2}, {3, 1}), HasSubstr("leaves its storage"));
  EXPECT_THAT(message(0, {2}, {kHuge}), HasSubstr("leaves its storage"));
  EXPECT_THAT(message(kHuge, {2}, {kHuge}), HasSubstr("leaves its storage"));
  EXPECT_THAT(message(0, {3, 3}, {kHuge / 2, kHuge / 2}), HasSubstr("leaves its storage"));
  EXPECT_THAT(message(0, {kHuge, kHuge}, {0, 0}), HasSubstr("leaves its storage"));
  EXPECT_THAT(message(0, {2}, {1, 1}), HasSubstr("leaves its storage"));
  EXPECT_THAT(message(-1, {1}, {1}), HasSubstr("not a count"));
  EXPECT_THAT(message(0, {-1}, {1}), HasSubstr("not a count"));
  EXPECT_THAT(message(3, {2}, {-1}), HasSubstr("not a count"));
  EXPECT_THAT(message(0, std::vector<int64_t>(65, 1), std::vector<int64_t>(65, 1)),
              HasSubstr("65 dimensions"));
  EXPECT_THAT(pickle_refusal(one_tensor_pickle(kHuge, 0, {1}, {1})), HasSubstr("impossible size"));
  EXPECT_THAT(pickle_refusal(one_tensor_pickle(5, 0, {1}, {1})), HasSubstr("should have 20 bytes"));
  EXPECT_THAT(pickle_refusal(one_tensor_pickle(3, 0, {1}, {1})), HasSubstr("should have 12 bytes"));
}

// ---- hostile pickles ----

TEST_F(Torch, NothingIsEverCalled) {
  for (const auto& [module, name] :
       {std::pair("os", "system"), std::pair("posix", "system"), std::pair("builtins", "eval"),
        std::pair("__builtin__", "exec"), std::pair("torch.storage", "_load_from_bytes"),
        std::pair("torch", "load"), std::pair("torch.hub", "load"),
        std::pair("collections.OrderedDict", ""), std::pair("", "collections.OrderedDict")}) {
    for (const int protocol : {2, 4}) {
      const std::string pickle =
          PickleWriter(protocol).global(module, name).text("echo pwned").raw("\x85R").stop();
      EXPECT_THAT(pickle_refusal(pickle), HasSubstr(std::string(module) + "." + name)) << protocol;
      EXPECT_THAT(pickle_refusal(pickle), HasSubstr("asks for")) << protocol;
    }
  }
}

TEST_F(Torch, OtherOpcodesAreRefusedByNumber) {
  // INST, OBJ, NEWOBJ, NEWOBJ_EX, EXT1, REDUCE-like and the text opcodes of protocol 0.
  for (const char opcode :
       {'i',    'o',    '\x81', '\x92', '\x82', 'I',    'L',    'S', 'V', 'P', 'p', 'g',
        '\x8b', '\x8f', '\x90', '\x91', '\x96', '\x97', '\x98', '0', '1', '2', 'F'}) {
    EXPECT_THAT(pickle_refusal(PickleWriter().raw(std::string(1, opcode)).stop()),
                HasSubstr("opcode 0x"));
  }
  EXPECT_THAT(pickle_refusal(PickleWriter(6).raw("N").stop()), HasSubstr("protocol 6"));
}

TEST_F(Torch, MalformedProgramsAreRefused) {
  const auto message = [&](const std::string& code) {
    return pickle_refusal(PickleWriter().raw(code).stop());
  };
  EXPECT_THAT(message(""), HasSubstr("empty stack"));
  EXPECT_THAT(message("t"), HasSubstr("mark"));
  EXPECT_THAT(message("N("), HasSubstr("empty stack"));    // STOP may not take from below a mark
  EXPECT_THAT(message("}N(s"), HasSubstr("empty stack"));  // nor SETITEM
  EXPECT_THAT(message("}(Nu"), HasSubstr("without a value"));
  EXPECT_THAT(message("N(NNu"), HasSubstr("not a dict"));
  EXPECT_THAT(message("}Na"), HasSubstr("not a list"));
  EXPECT_THAT(message("h\x07"), HasSubstr("memo 7"));
  EXPECT_THAT(message("q\x07"), HasSubstr("empty stack"));
  EXPECT_THAT(message("N)R"), HasSubstr("not a known function"));
  EXPECT_THAT(message("ctorch\nSize\nNR"), HasSubstr("not a known function"));
  EXPECT_THAT(message("ctorch\nSize\n)R"), HasSubstr("torch.Size"));
  EXPECT_THAT(message("ctorch\nFloatStorage\n)R"), HasSubstr("calls torch.FloatStorage"));
  EXPECT_THAT(message("ctorch._utils\n_rebuild_tensor_v2\n)R"), HasSubstr("without a storage"));
  EXPECT_THAT(message("ctorch._utils\n_rebuild_parameter\n)R"), HasSubstr("without a tensor"));
  EXPECT_THAT(message("ccollections\nOrderedDict\nN\x85R"), HasSubstr("not a list"));
  EXPECT_THAT(message("ccollections\nOrderedDict\n]Na\x85R"), HasSubstr("list of pairs"));
  EXPECT_THAT(message("NNb"), HasSubstr("not a dict"));
  EXPECT_THAT(message("NQ"), HasSubstr("not a storage"));
  EXPECT_THAT(message(")Q"), HasSubstr("not a storage"));
  EXPECT_THAT(message("NN\x93"), HasSubstr("not text"));
  EXPECT_THAT(pickle_refusal(PickleWriter().text("module").raw("\x85Q").stop()),
              HasSubstr("state_dict()"));
  EXPECT_THAT(pickle_refusal(PickleWriter().text("storage").raw("\x85Q").stop()),
              HasSubstr("without type"));
  EXPECT_THAT(pickle_refusal(PickleWriter()
                                 .raw("}")
                                 .integer(1)
                                 .tensor("FloatStorage", "0", 4, 0, {1}, {1})
                                 .raw("s")
                                 .stop()),
              HasSubstr("name is not text"));
}

TEST_F(Torch, LengthsAreBoundedByTheFile) {
  const auto message = [&](const std::string& code) {
    return pickle_refusal(PickleWriter().raw(code).stop());
  };
  EXPECT_THAT(message("X\xff\xff\xff\xff"), HasSubstr("cut off"));
  EXPECT_THAT(message("T\xff\xff\xff\xff"), HasSubstr("cut off"));
  EXPECT_THAT(message("\x8d\xff\xff\xff\xff\xff\xff\xff\xff"), HasSubstr("cut off"));
  EXPECT_THAT(message("\x8e\xff\xff\xff\xff\xff\xff\xff\x7f"), HasSubstr("cut off"));
  EXPECT_THAT(message("\x8a\xff"), HasSubstr("cut off"));
  EXPECT_THAT(message("cos"), HasSubstr("cut off"));
  EXPECT_THAT(message("\x8a\xff" + std::string(255, '\x7f')),
              HasSubstr("not a dict"));                                    // a huge LONG alone
  EXPECT_THAT(message("\x8b\xff\xff\xff\x7f"), HasSubstr("opcode 0x8b"));  // LONG4
}

TEST_F(Torch, CyclicAndDeepStructuresAreHarmless) {
  const auto message = [&](const std::string& code) {
    return pickle_refusal(PickleWriter().raw(code).stop());
  };
  EXPECT_THAT(message("]q\1h\1a"), HasSubstr("not a dict"));
  EXPECT_THAT(message("}q\1Nh\1s"), HasSubstr("no tensors"));
  PickleWriter cycle;
  cycle.raw("}q\1(").text("model").raw("h\1").text("state_dict").raw("h\1u");
  EXPECT_THAT(pickle_refusal(cycle.stop()), HasSubstr("no tensors"));
  std::string deep;
  for (int i = 0; i < 500000; ++i) deep += ']';
  for (int i = 0; i < 499999; ++i) deep += 'a';
  EXPECT_THAT(message(deep), HasSubstr("not a dict"));
  EXPECT_THAT(message(")" + std::string(500000, '\x85')), HasSubstr("not a dict"));
}

TEST_F(Torch, BombsHitALimit) {
  const auto message = [&](const std::string& code) {
    return pickle_refusal(PickleWriter().raw(code).stop());
  };
  EXPECT_THAT(message(std::string((1u << 20) + 1, 'N')), HasSubstr("too many values"));
  EXPECT_THAT(message(std::string(2u << 20, '(')), HasSubstr("nested too deeply"));
  // Doubling by reference: 2^64 values for a walker, a hundred for an interpreter that does not
  // walk.
  std::string doubling = ")q\1";
  for (int i = 0; i < 64; ++i) doubling += "h\1h\1\x86q\1";
  EXPECT_THAT(message(doubling), HasSubstr("not a dict"));
  // One list of 65536 pairs, copied into a dict again and again.
  std::string copies = "ccollections\nOrderedDict\nq\1](";
  for (int i = 0; i < 65536; ++i) copies += "NN\x86";
  copies += "eq\2";
  for (int i = 0; i < 40; ++i) copies += "h\1h\2\x85R";
  EXPECT_THAT(message(copies), HasSubstr("copies too many items"));
}

TEST_F(Torch, MarksReachOnlyTheirOwnValues) {
  // A dict that is set through a mark below it is not reachable: Python would take it, torch never
  // writes it.
  EXPECT_THAT(pickle_refusal(PickleWriter().raw("}(NNuN").stop()), HasSubstr("not a dict"));
}

// ---- zip ----

std::vector<ZipRecord> records() {
  return {{"m/data.pkl", one_tensor_pickle(4, 0, {4}, {1})}, {"m/data/0", floats(4)}};
}

TEST_F(Torch, ZipVariants) {
  const auto expected = ElementsAre(0, 1, 2, 3);
  std::vector<ZipRecord> varied = records();
  varied[1].local_extra = "FB" + little_endian(9, 2) + "ZZZZZZZZZ";  // torch aligns data so
  for (const bool zip64 : {false, true}) {
    for (const bool descriptor : {false, true}) {
      for (const bool zip64_end : {false, true}) {
        for (ZipRecord& record : varied) {
          record.zip64 = zip64;
          record.descriptor = descriptor;
        }
        EXPECT_THAT(values(zip(varied, {zip64_end, "a comment"})), expected)
            << zip64 << descriptor << zip64_end;
      }
    }
  }
  varied = records();
  varied[0].name = "any other name/data.pkl";
  varied[1].name = "any other name/data/0";
  EXPECT_THAT(values(zip(varied)), expected);
  varied[0].name = "data.pkl";
  varied[1].name = "data/0";
  EXPECT_THAT(values(zip(varied)), expected);
  varied = records();
  varied.push_back({"m/code/x/data.pkl", "not looked at"});
  EXPECT_THAT(values(zip(varied)), expected);
}

TEST_F(Torch, ByteOrder) {
  std::vector<ZipRecord> with = records();
  with.push_back({"m/byteorder", "little"});
  EXPECT_EQ(refusal(zip(with)), "");
  with.back().bytes = "big";
  EXPECT_THAT(refusal(zip(with)), HasSubstr("byte order is \"big\""));
}

TEST_F(Torch, ZipLiesAreRefused) {
  const auto with = [&](auto change) {
    std::vector<ZipRecord> changed = records();
    change(changed);
    return refusal(zip(changed));
  };
  EXPECT_THAT(with([](auto& r) { r[1].method = 8; }), HasSubstr("deflate"));
  EXPECT_THAT(with([](auto& r) { r[0].method = 12; }), HasSubstr("method 12"));
  EXPECT_THAT(with([](auto& r) { r[1].flags = 1; }), HasSubstr("encrypted"));
  EXPECT_THAT(with([](auto& r) { r[1].claimed_size = 1u << 20; }), HasSubstr("leaves the file"));
  EXPECT_THAT(with([](auto& r) { r[1].claimed_size = 8; }), HasSubstr("should have 16 bytes"));
  for (const uint64_t lie : {uint64_t{0}, uint64_t{1} << 40, UINT64_MAX - 1, UINT64_MAX - 40}) {
    EXPECT_NE(with([&](auto& r) { r[1].zip64 = true, r[1].claimed_size = lie; }), "") << lie;
    EXPECT_NE(with([&](auto& r) { r[1].zip64 = true, r[1].claimed_offset = lie; }), "") << lie;
  }
  EXPECT_THAT(with([](auto& r) { r[1].claimed_offset = 3; }), HasSubstr("no local header"));
  EXPECT_THAT(with([](auto& r) { r[1].name = "m/data.pkl"; }), HasSubstr("two records"));
  EXPECT_THAT(with([](auto& r) { r[1].name = "n/data.pkl"; }), HasSubstr("two records data.pkl"));
  EXPECT_THAT(with([](auto& r) { r[1].name = "m/data/1"; }), HasSubstr("no record m/data/0"));
  EXPECT_THAT(with([](auto& r) { r[0].name = "m/else"; }), HasSubstr("no record data.pkl"));
  EXPECT_THAT(refusal(zip(records()).substr(4)), HasSubstr("neither"));
  EXPECT_THAT(refusal("PK\3\4"), HasSubstr("no end record"));
}

std::string small_archive() {
  return zip({{"m/data.pkl", one_tensor_pickle(4, 1, {2}, {2})}, {"m/data/0", floats(4)}},
             ZipOptions{true, ""});
}

// Opens and reads everything; true when nothing was refused.
bool survives(const std::filesystem::path& path) {
  try {
    const auto checkpoint = Checkpoint::open(path);
    for (const TensorInfo& tensor : checkpoint->tensors()) {
      // An expanded tensor may claim any size without owning the bytes; the caller compares shapes
      // first.
      if (tensor.readable_as_float && tensor.elements() < 1000) checkpoint->read(tensor);
    }
    return true;
  } catch (const Error&) {
    return false;
  }
}

TEST_F(Torch, EveryTruncationOfAnArchiveIsRefused) {
  const std::string whole = small_archive();
  EXPECT_TRUE(survives(folder_.write("a", whole)));
  for (size_t length = 0; length < whole.size(); ++length) {
    EXPECT_FALSE(survives(folder_.write("a", whole.substr(0, length)))) << length;
  }
}

TEST_F(Torch, FlippedBytesOfAnArchiveNeverCrash) {
  const std::string whole = small_archive();
  size_t accepted = 0;
  for (size_t at = 0; at < whole.size(); ++at) {
    for (const int flip : {0x01, 0x04, 0x80, 0xff}) {
      std::string bytes = whole;
      bytes[at] = static_cast<char>(bytes[at] ^ flip);
      accepted += survives(folder_.write("a", bytes)) ? 1 : 0;
    }
  }
  EXPECT_GE(accepted, 16u * 4);  // at least every flip in the data
}

// ---- before torch 1.6 ----

std::string legacy_header(bool little = true, int version = 1001) {
  const std::string magic =
      PickleWriter().raw("\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19").stop();
  PickleWriter machine;
  machine.raw("}(").text("protocol_version").integer(1001);
  machine.text("little_endian").raw(little ? "\x88" : "\x89").raw("u");
  return magic + PickleWriter().integer(version).stop() + machine.stop();
}

std::string legacy_keys(const std::vector<std::string>& keys) {
  PickleWriter writer;
  writer.raw("](");
  for (const std::string& key : keys) writer.text(key);
  return writer.raw("e").stop();
}

std::string legacy(const std::string& pickle, const std::vector<std::string>& keys,
                   const std::string& storages) {
  return legacy_header() + pickle + legacy_keys(keys) + storages;
}

TEST_F(Torch, Legacy) {
  PickleWriter writer;
  writer.raw("}(").text("t").tensor("FloatStorage", "93", 4, 1, {3}, {1});
  writer.text("half").tensor("HalfStorage", "7", 1, 0, {1}, {1}).raw("u");
  const std::string storages =
      little_endian(1, 8) + bytes_of<uint16_t>({0x3e00}) + little_endian(4, 8) + floats(4);
  const std::string file = legacy(writer.stop(), {"7", "93"}, storages);
  EXPECT_THAT(values(file), ElementsAre(1, 2, 3));
  EXPECT_THAT(values(file, "half"), ElementsAre(1.5f));
}

TEST_F(Torch, LegacyStorageViews) {
  // ('storage', type, key, location, numel, (view key, offset, size)): the tensor sees elements [3,
  // 7) only.
  const auto file = [](int64_t view_begin, int64_t view_size, int64_t offset, int64_t size) {
    PickleWriter writer;
    writer.raw("}").text("t").global("torch._utils", "_rebuild_tensor_v2").raw("((");
    writer.text("storage")
        .global("torch", "FloatStorage")
        .text("k")
        .text("cpu")
        .integer(8)
        .raw("(");
    writer.text("v").integer(view_begin).integer(view_size).raw("ttQ").integer(offset);
    writer.integers({size}).integers({1}).raw("\x89").empty_ordered_dict().raw("tRs");
    return legacy(writer.stop(), {"k"}, little_endian(8, 8) + floats(8));
  };
  EXPECT_THAT(values(file(3, 4, 1, 3)), ElementsAre(4, 5, 6));
  EXPECT_THAT(refusal(file(3, 4, 1, 4)), HasSubstr("leaves its storage"));
  EXPECT_THAT(refusal(file(3, 6, 0, 1)), HasSubstr("view outside"));
  EXPECT_THAT(refusal(file(9, 0, 0, 0)), HasSubstr("view outside"));
  EXPECT_THAT(refusal(file(-1, 2, 0, 1)), HasSubstr("not a count"));
}

TEST_F(Torch, LegacyLiesAreRefused) {
  const std::string pickle = one_tensor_pickle(4, 0, {4}, {1});
  const std::string data = little_endian(4, 8) + floats(4);
  EXPECT_EQ(refusal(legacy(pickle, {"0"}, data)), "");
  EXPECT_THAT(refusal(legacy(pickle, {}, data)), HasSubstr("is not in the file"));
  EXPECT_THAT(refusal(legacy(pickle, {"1"}, data)), HasSubstr("no tensor uses: 1"));
  EXPECT_THAT(refusal(legacy(pickle, {"0", "0"}, data + data)), HasSubstr("twice"));
  EXPECT_THAT(refusal(legacy(pickle, {"0"}, little_endian(5, 8) + floats(5))),
              HasSubstr("should have 4"));
  EXPECT_THAT(refusal(legacy(pickle, {"0"}, little_endian(4, 8) + floats(3))),
              HasSubstr("cut off"));
  EXPECT_THAT(refusal(legacy_header(false) + pickle), HasSubstr("little-endian"));
  EXPECT_THAT(refusal(legacy_header(true, 1000) + pickle), HasSubstr("1001"));
  EXPECT_THAT(refusal(PickleWriter().raw("N").stop() + pickle), HasSubstr("magic"));
  EXPECT_THAT(refusal(legacy_header() +
                      PickleWriter().global("os", "system").text("id").raw("\x85R").stop()),
              HasSubstr("os.system"));
  PickleWriter two;
  two.raw("}(").text("a").tensor("FloatStorage", "0", 4, 0, {1}, {1});
  two.text("b").tensor("HalfStorage", "0", 4, 0, {1}, {1}).raw("u");
  EXPECT_THAT(refusal(legacy(two.stop(), {"0"}, data)), HasSubstr("two ways"));
}

TEST_F(Torch, EveryTruncationAndFlipOfALegacyFile) {
  const std::string whole =
      legacy(one_tensor_pickle(4, 1, {2}, {2}), {"0"}, little_endian(4, 8) + floats(4));
  for (size_t length = 0; length < whole.size(); ++length) {
    EXPECT_FALSE(survives(folder_.write("a", whole.substr(0, length)))) << length;
  }
  size_t accepted = 0;
  for (size_t at = 0; at < whole.size(); ++at) {
    for (const int flip : {0x01, 0x04, 0x80, 0xff}) {
      std::string bytes = whole;
      bytes[at] = static_cast<char>(bytes[at] ^ flip);
      accepted += survives(folder_.write("a", bytes)) ? 1 : 0;
    }
  }
  EXPECT_GE(accepted, 16u * 4);
}

}  // namespace
}  // namespace mamba_edge::convert
