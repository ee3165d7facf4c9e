#include "support/available_memory.h"

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <limits>
#include <sstream>

#include "support/error.h"

namespace sparsed {
namespace {

constexpr size_t kSmall = size_t{16} << 20;

// The number in a file that holds one; nullopt: no such file, or "max".
std::optional<uint64_t> read_number(const std::string& path) {
  std::ifstream file(path);
  uint64_t value;
  if (file >> value) return value;
  return std::nullopt;
}

// Value of a line "key value" or "key: value kB"; 0 where there is none.
uint64_t read_field(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  std::string line;
  while (std::getline(file, line)) {
    if (line.compare(0, key.size(), key) != 0) continue;
    std::istringstream rest(line.substr(key.size()));
    uint64_t value = 0;
    if (line.size() > key.size() && (line[key.size()] == ' ' || line[key.size()] == '\t') && rest >> value)
      return value;
  }
  return 0;
}

struct GroupFiles {
  const char *limit, *usage, *active_file, *inactive_file;
};
constexpr GroupFiles kVersion2{"memory.max", "memory.current", "active_file", "inactive_file"};
constexpr GroupFiles kVersion1{"memory.limit_in_bytes", "memory.usage_in_bytes", "total_active_file",
                               "total_inactive_file"};

// What a group's limit leaves: page cache counts as usage, but makes room when asked to.
std::optional<uint64_t> group_room(const std::string& folder, const GroupFiles& names) {
  const auto limit = read_number(folder + "/" + names.limit);
  const auto usage = read_number(folder + "/" + names.usage);
  if (!limit || !usage) return std::nullopt;
  const std::string stat = folder + "/memory.stat";
  const uint64_t cache = read_field(stat, names.active_file) + read_field(stat, names.inactive_file);
  const uint64_t held = *usage - std::min(*usage, cache);
  return *limit - std::min(*limit, held);
}

// Path of this process's group: the line "0::path" (v2) or "n:...memory...:path" (v1) of /proc/self/cgroup.
std::optional<std::string> group_path(const std::string& root, bool version2) {
  std::ifstream file(root + "/proc/self/cgroup");
  std::string line;
  while (std::getline(file, line)) {
    const size_t first = line.find(':');
    const size_t second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos) continue;
    const std::string controllers = message(",", line.substr(first + 1, second - first - 1), ",");
    if (version2 ? controllers == ",," : controllers.find(",memory,") != std::string::npos) {
      return line.substr(second + 1);
    }
  }
  return std::nullopt;
}

// The tightest limit on the way from the process's group up to the mounted root. In a container the path may name
// folders that exist outside only; the root is then the container's own group.
uint64_t group_limit(const std::string& root, bool version2) {
  uint64_t room = std::numeric_limits<uint64_t>::max();
  std::optional<std::string> path = group_path(root, version2);
  if (!path) return room;
  const std::string mount = root + (version2 ? "/sys/fs/cgroup" : "/sys/fs/cgroup/memory");
  while (true) {
    const bool top = path->empty() || *path == "/";
    const auto here = group_room(top ? mount : mount + *path, version2 ? kVersion2 : kVersion1);
    if (here) room = std::min(room, *here);
    if (top) return room;
    path->resize(path->find_last_of('/') == std::string::npos ? 0 : path->find_last_of('/'));
  }
}

std::string size_text(uint64_t bytes) {
  char text[32];
  const double value = static_cast<double>(bytes);
  if (bytes >= uint64_t{1} << 30) {
    std::snprintf(text, sizeof text, "%.1f GiB", value / (1 << 30));
  } else {
    std::snprintf(text, sizeof text, "%.1f MiB", value / (1 << 20));
  }
  return text;
}

}  // namespace

std::optional<uint64_t> available_memory(const std::string& root) {
  const uint64_t kilobytes = read_field(root + "/proc/meminfo", "MemAvailable:");
  if (kilobytes == 0) return std::nullopt;
  return std::min({kilobytes * 1024, group_limit(root, true), group_limit(root, false)});
}

std::optional<uint64_t> available_memory() { return available_memory(""); }

void require_memory(size_t bytes, const char* what) {
  if (bytes < kSmall) return;
  const auto available = available_memory();
  if (available && bytes > *available) {
    fail(ErrorKind::kMemory, what, " needs ", size_text(bytes), ", available are ", size_text(*available));
  }
}

size_t saturating_product(std::span<const int64_t> factors) {
  constexpr size_t kMost = std::numeric_limits<size_t>::max();
  size_t product = 1;
  bool beyond = false;
  for (const int64_t factor : factors) {
    if (factor == 0) return 0;
    beyond = beyond || product > kMost / static_cast<size_t>(factor);
    product *= static_cast<size_t>(factor);
  }
  return beyond ? kMost : product;
}

}  // namespace sparsed
