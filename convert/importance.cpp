#include "convert/importance.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <string>

#include "convert/error.h"
#include "engine/little_endian.h"
#include "engine/xxh64.h"

namespace mamba_edge::convert {
namespace {

// Header: magic, u32 version, u32 0, u64 model, text, tokens, u64 XXH64 of the bytes before it.
// Record: u32 kind, u32 tensor, u32 inputs, u32 0, u64 tokens, u64 bytes of payload, payload, u64
// XXH64 of the record so far. Payload of a moment: float32 sums of the lower triangle; of a
// sensitivity: two doubles.
constexpr char kMagic[8] = {'M', 'A', 'M', 'B', 'I', 'M', 'P', '1'};
constexpr uint32_t kVersion = 1;
constexpr size_t kHeader = 48, kRecord = 32, kHash = 8;
constexpr uint32_t kMoment = 1, kSensitivity = 2;

}  // namespace

ImportanceFile::ImportanceFile(const std::filesystem::path& path,
                               const std::filesystem::path& beside)
    : path_(path.string()) {
  if (path_.empty()) {
    path_ = beside.string() + ".importance-XXXXXX";
    file_ = ::mkostemp(path_.data(), O_CLOEXEC);
    if (file_ < 0) fail("cannot create");
    ::unlink(path_.c_str());
    return;
  }
  file_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0666);
  if (file_ < 0 && (errno == EACCES || errno == EROFS)) {  // a complete one need only be read
    read_only_ = errno;
    file_ = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC);
    if (file_ < 0) errno = read_only_;
  }
  if (file_ < 0) fail("cannot open");
  try {
    read_records();
  } catch (...) {
    ::close(file_);  // a constructor that throws has no destructor
    throw;
  }
}

ImportanceFile::~ImportanceFile() {
  if (file_ >= 0) ::close(file_);
}

void ImportanceFile::check_writable() const {
  if (read_only_ == 0) return;
  errno = read_only_;
  fail("cannot write");
}

void ImportanceFile::fail(const char* what) const {
  throw Error(path_ + ": " + what + ": " + std::strerror(errno));
}

void ImportanceFile::damaged(const std::string& what) const {
  throw Error(path_ + ": damaged importance file: " + what +
              "; remove it and calibrate again with --calibration");
}

void ImportanceFile::read(uint64_t offset, void* out, size_t n) const {
  auto* to = static_cast<uint8_t*>(out);
  while (n > 0) {
    const ssize_t got = ::pread(file_, to, n, static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) fail("cannot read");
    if (got == 0) damaged("it ends early");
    to += got;
    offset += static_cast<uint64_t>(got);
    n -= static_cast<size_t>(got);
  }
}

// What a run that was interrupted left behind the last whole record is overwritten by the next one.
void ImportanceFile::read_records() {
  struct stat status = {};
  if (::fstat(file_, &status) != 0) fail("cannot read");
  if (!S_ISREG(status.st_mode)) throw Error(path_ + ": not a regular file");
  const auto size = static_cast<uint64_t>(status.st_size);
  if (size == 0) return;
  uint8_t header[kHeader] = {};
  read(0, header, std::min<uint64_t>(size, kHeader));
  if (std::memcmp(header, kMagic, std::min<uint64_t>(size, sizeof kMagic)) != 0) {
    throw Error(path_ + ": not an importance file of mamba-quantize");
  }
  if (size < kHeader) return;
  if (load_le<uint64_t>(header + 40) != xxh64(header, 40))
    damaged("its header does not match its checksum");
  if (load_le<uint32_t>(header + 8) != kVersion) {
    throw Error(path_ + ": importance file of version " +
                std::to_string(load_le<uint32_t>(header + 8)) + "; this program reads version " +
                std::to_string(kVersion));
  }
  key_ = ImportanceKey{load_le<uint64_t>(header + 16), load_le<uint64_t>(header + 24),
                       load_le<uint64_t>(header + 32)};
  end_ = kHeader;
  std::vector<uint8_t> record;
  while (size - end_ >= kRecord + kHash) {
    uint8_t head[kRecord];
    read(end_, head, kRecord);
    const auto kind = load_le<uint32_t>(head), tensor = load_le<uint32_t>(head + 4);
    const auto inputs = load_le<uint32_t>(head + 8);
    const auto tokens = load_le<uint64_t>(head + 16), bytes = load_le<uint64_t>(head + 24);
    const bool known = (kind == kMoment && inputs > 0 &&
                        bytes == uint64_t{inputs} * (uint64_t{inputs} + 1) / 2 * sizeof(float)) ||
                       (kind == kSensitivity && bytes == 2 * sizeof(double));
    if (!known) damaged("an impossible record at byte " + std::to_string(end_));
    if (bytes > size - end_ - kRecord - kHash) return;
    Xxh64 hash;
    hash.update(head, kRecord);
    constexpr size_t kPiece = 1 << 20;
    record.resize(std::min<uint64_t>(bytes, kPiece));
    for (uint64_t at = 0; at < bytes; at += kPiece) {
      const size_t n = std::min<uint64_t>(kPiece, bytes - at);
      read(end_ + kRecord + at, record.data(), n);
      hash.update(record.data(), n);
    }
    uint8_t stored[kHash];
    read(end_ + kRecord + bytes, stored, kHash);
    if (load_le<uint64_t>(stored) != hash.digest()) {
      damaged("the record at byte " + std::to_string(end_) + " does not match its checksum");
    }
    if (kind == kMoment) {
      moments_[tensor] = {end_ + kRecord, inputs, tokens};
    } else {
      Sensitivity s;
      std::memcpy(&s.divergence, record.data(), sizeof(double));
      std::memcpy(&s.output_error, record.data() + sizeof(double), sizeof(double));
      sensitivities_[tensor] = s;
    }
    end_ += kRecord + bytes + kHash;
  }
}

void ImportanceFile::begin(const ImportanceKey& key) {
  check_writable();
  uint8_t header[kHeader] = {};
  std::memcpy(header, kMagic, sizeof kMagic);
  store_le<uint32_t>(header + 8, kVersion);
  store_le<uint64_t>(header + 16, key.model);
  store_le<uint64_t>(header + 24, key.text);
  store_le<uint64_t>(header + 32, key.tokens);
  store_le<uint64_t>(header + 40, xxh64(header, 40));
  if (::ftruncate(file_, 0) != 0 ||
      ::pwrite(file_, header, kHeader, 0) != static_cast<ssize_t>(kHeader)) {
    fail("cannot write");
  }
  key_ = key;
  end_ = kHeader;
}

void ImportanceFile::append(uint32_t kind, uint32_t tensor, uint32_t inputs, uint64_t tokens,
                            std::span<const uint8_t> payload) {
  check_writable();
  uint8_t head[kRecord] = {}, tail[kHash];
  store_le<uint32_t>(head, kind);
  store_le<uint32_t>(head + 4, tensor);
  store_le<uint32_t>(head + 8, inputs);
  store_le<uint64_t>(head + 16, tokens);
  store_le<uint64_t>(head + 24, payload.size());
  Xxh64 hash;
  hash.update(head, kRecord);
  hash.update(payload.data(), payload.size());
  store_le<uint64_t>(tail, hash.digest());
  uint64_t at = end_;
  const auto write = [&](const uint8_t* from, size_t n) {
    while (n > 0) {
      const ssize_t put = ::pwrite(file_, from, n, static_cast<off_t>(at));
      if (put < 0 && errno == EINTR) continue;
      if (put <= 0) fail("cannot write");
      from += put;
      at += static_cast<uint64_t>(put);
      n -= static_cast<size_t>(put);
    }
  };
  write(head, kRecord);
  write(payload.data(), payload.size());
  write(tail, kHash);
  if (::ftruncate(file_, static_cast<off_t>(at)) != 0) fail("cannot write");
  end_ = at;
}

void ImportanceFile::add_moment(uint32_t tensor, const SecondMoment& moment) {
  const auto* bytes = reinterpret_cast<const uint8_t*>(moment.sums().data());
  moments_[tensor] = {end_ + kRecord, moment.inputs(), moment.tokens()};
  append(kMoment, tensor, moment.inputs(), moment.tokens(),
         {bytes, moment.sums().size() * sizeof(float)});
}

SecondMoment ImportanceFile::moment(uint32_t tensor) const {
  const Place& place = moments_.at(tensor);
  SecondMoment moment(place.inputs);
  read(place.offset, moment.sums().data(), moment.sums().size() * sizeof(float));
  moment.set_tokens(place.tokens);
  return moment;
}

void ImportanceFile::add_sensitivity(uint32_t tensor, const Sensitivity& s) {
  uint8_t payload[2 * sizeof(double)];
  std::memcpy(payload, &s.divergence, sizeof(double));
  std::memcpy(payload + sizeof(double), &s.output_error, sizeof(double));
  append(kSensitivity, tensor, 0, 0, payload);
  sensitivities_[tensor] = s;
}

}  // namespace mamba_edge::convert
