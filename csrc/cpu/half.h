// Storage types of the 16-bit formats, so that loads and stores overload by element type.
#pragma once

#include <cstdint>

namespace sparsed {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

}  // namespace sparsed
