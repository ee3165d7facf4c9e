// What the tensor memory accelerator and the matrix units share.
#pragma once

#include "machine.h"

namespace sparsed::emulator {

// Per agent: the epoch up to which the async proxy sees its ordinary writes to shared memory.
struct AsyncProxy {
  Clock fenced;
  explicit AsyncProxy(Block& block);
};

// The 128-byte swizzle: of an address, not of an offset.
inline uint32_t swizzled_128(uint32_t address) { return address ^ (address >> 7 & 7) << 4; }

}  // namespace sparsed::emulator
