// What this processor can do.
#pragma once

#include <string>
#include <vector>

namespace sparsed::cpu {

// kAvxVnni, kAvx512Vnni and kAmxInt8: of linear layers with int8 weights.
enum class Isa { kScalar, kAvx2, kAvxVnni, kAvx512, kAvx512Vnni, kAvx512Bf16, kAmx, kAmxInt8 };

// Instruction sets that `isa` needs and that the processor or the system lacks; empty: it can run.
std::vector<std::string> missing_features(Isa isa);

}  // namespace sparsed::cpu
