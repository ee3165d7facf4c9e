// Checks of one function's arguments. Messages read "<function>: <argument> is <found>, expected <what>".
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "support/available_memory.h"
#include "support/error.h"

namespace sparsed {

class Checker {
 public:
  // Without a name: the caller gives it to the errors (named).
  Checker() = default;
  Checker(const char* function) : Checker(std::string(function)) {}  // so that a name may stand for its checker
  Checker(const std::string& function) : prefix_(function + ": ") {}

  // ValueError unless ok.
  template <class... Parts>
  void operator()(bool ok, const Parts&... parts) const {
    if (!ok) fail(ErrorKind::kValue, parts...);
  }

  template <class... Parts>
  [[noreturn]] void fail(ErrorKind kind, const Parts&... parts) const {
    sparsed::fail(kind, prefix_, parts...);
  }

  // "<what> <found>, expected <expected><source>", as in "k has heads 3, expected 4 (from q [1, 4, 10, 64])".
  template <class What, class Source = const char*>
  void same(const What& what, int64_t found, int64_t expected, const Source& source = "") const {
    (*this)(found == expected, what, " ", found, ", expected ", expected, source);
  }

  void range(const std::string& name, int64_t value, int64_t low, int64_t high) const {
    (*this)(value >= low && value <= high, name, " is ", value, ", expected ", low, " ... ", high);
  }

  // MemoryError unless so many bytes fit.
  void memory(size_t bytes, const std::string& what) const { require_memory(bytes, (prefix_ + what).c_str()); }

  // Runs body; what it throws without a name gets this one.
  template <class Body>
  decltype(auto) named(const Body& body) const {
    try {
      return body();
    } catch (const Error& error) {
      fail(error.kind(), error.what());
    }
  }

 private:
  std::string prefix_;
};

}  // namespace sparsed
