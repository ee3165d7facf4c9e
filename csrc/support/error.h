// Errors that cross the library boundary; bindings turn each kind into the Python exception of the same name.
#pragma once

#include <charconv>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace sparsed {

enum class ErrorKind { kValue, kType, kMemory, kFileNotFound, kOs };

class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, const std::string& message) : std::runtime_error(message), kind_(kind) {}
  ErrorKind kind() const { return kind_; }

 private:
  ErrorKind kind_;
};

template <class Part>
void write_part(std::ostringstream& out, const Part& part) {
  if constexpr (std::is_floating_point_v<Part>) {
    char digits[32];  // the shortest that is no other number
    const auto end = std::to_chars(digits, digits + sizeof digits, part).ptr;
    out.write(digits, end - digits);
  } else {
    out << part;
  }
}

// Joins its arguments into one string: message("k has head_dim ", 64).
template <class... Parts>
std::string message(const Parts&... parts) {
  std::ostringstream out;
  (write_part(out, parts), ...);
  return out.str();
}

template <class... Parts>
[[noreturn]] void fail(ErrorKind kind, const Parts&... parts) {
  throw Error(kind, message(parts...));
}

// ValueError unless ok. The message reads "function: argument is <found>, expected <what>".
template <class... Parts>
void check(bool ok, const Parts&... parts) {
  if (!ok) fail(ErrorKind::kValue, parts...);
}

}  // namespace sparsed
