#include "support/checked_file.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <random>
#include <system_error>

#include "support/error.h"

namespace sparsed {
namespace {

namespace fs = std::filesystem;

[[noreturn]] void fail_system(const std::string& what, const std::error_code& code) {
  const bool missing = code == std::errc::no_such_file_or_directory;
  fail(missing ? ErrorKind::kFileNotFound : ErrorKind::kOs, what, ": ", code.message());
}

std::error_code last_error() { return {errno != 0 ? errno : EIO, std::generic_category()}; }

// The file at `path`, if there is one: it must be a regular file. Others could block, or be replaced by a rename.
bool find_file(const std::string& path, const std::string& function) {
  check(path.find('\0') == std::string::npos, function, ": path has a zero byte, expected none");
  std::error_code code;
  const fs::file_status status = fs::status(path, code);
  if (status.type() == fs::file_type::not_found) return false;
  if (!fs::status_known(status)) fail_system(function + ": " + path, code);
  if (!fs::is_regular_file(status)) {
    fail(ErrorKind::kOs, function, ": ", path, " is a folder or device, expected a regular file");
  }
  return true;
}

// Removes the file that `path` names at its end, if it is still there.
struct RemoveAtEnd {
  const fs::path& path;
  ~RemoveAtEnd() {
    std::error_code ignored;
    fs::remove(path, ignored);
  }
};

}  // namespace

void put(Bytes& bytes, uint64_t value, size_t count) {
  for (size_t i = 0; i < count; ++i) bytes.push_back(static_cast<unsigned char>(value >> (8 * i)));
}

uint64_t get(const Bytes& bytes, size_t at, size_t count) {
  uint64_t value = 0;
  for (size_t i = 0; i < count; ++i) value |= static_cast<uint64_t>(bytes[at + i]) << (8 * i);
  return value;
}

FileReader::FileReader(const std::string& path, const std::string& function) : name_(function + ": " + path) {
  if (!find_file(path, function)) fail(ErrorKind::kFileNotFound, name_, " does not exist");
  errno = 0;
  file_.open(path, std::ios::binary);
  if (!file_) fail_system(name_, last_error());
  std::error_code code;
  size_ = left_ = fs::file_size(path, code);
  if (code) fail_system(name_, code);
}

Bytes FileReader::read(size_t count) {
  require_memory(count, (name_ + ": the file's content").c_str());
  Bytes bytes(count);
  errno = 0;
  if (!file_.read(reinterpret_cast<char*>(bytes.data()), static_cast<std::streamsize>(count))) {
    fail_system(name_, last_error());
  }
  left_ -= count;
  return bytes;
}

void FileReader::check_kind(const Bytes& header, std::string_view magic, uint64_t version, const char* kind) const {
  check(std::equal(magic.begin(), magic.end(), header.begin()), name_, " is not a ", kind, ": it does not begin with ",
        magic);
  const uint64_t found = get(header, magic.size(), 4);
  check(found == version, name_, " has format version ", found, ", expected ", version);
}

void replace_file(const std::string& path, const std::string& function, const Bytes& bytes) {
  const std::string what = function + ": cannot write " + path;
  std::error_code code;
  fs::path target = path;
  if (find_file(path, function)) target = fs::canonical(target, code);
  if (code) fail_system(what, code);
  // In the same folder, so that the rename stays in one file system.
  const fs::path temporary = target.parent_path() / (".sparsed-" + std::to_string(std::random_device{}()) + ".tmp");
  const RemoveAtEnd cleanup{temporary};
  errno = 0;
  std::ofstream file(temporary, std::ios::binary | std::ios::trunc);
  file.write(reinterpret_cast<const char*>(bytes.data()), static_cast<std::streamsize>(bytes.size()));
  file.close();
  if (!file) fail_system(what, last_error());
  fs::rename(temporary, target, code);
  if (code) fail_system(what, code);
}

}  // namespace sparsed
