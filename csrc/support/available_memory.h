// What memory there is, and refusals of what cannot fit before it is tried: Linux would grant it and kill the process
// later.
#pragma once

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <span>
#include <string>

namespace sparsed {

// Bytes that this process can still take: the machine's available memory, or less where a control group (v2 or v1)
// limits it. nullopt where the system does not say.
std::optional<uint64_t> available_memory();

// The same, read from files under `root` instead of "/": for tests.
std::optional<uint64_t> available_memory(const std::string& root);

// MemoryError unless `bytes` fit. The message reads "<what> needs 12.0 GiB, available are 3.2 GiB".
// Small requests (< 16 MiB) pass unseen.
void require_memory(size_t bytes, const char* what);

// The product of counts >= 0, or the largest size_t where that is more.
size_t saturating_product(std::span<const int64_t> factors);
inline size_t saturating_product(std::initializer_list<int64_t> factors) {
  return saturating_product(std::span(factors.begin(), factors.size()));
}

}  // namespace sparsed
