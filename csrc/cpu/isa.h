// What this processor can do.
#pragma once

#include <string>
#include <vector>

namespace sparsed::cpu {

enum class Isa { kScalar, kAvx2, kAvx512, kAvx512Bf16, kAmx };

// Instruction sets that `isa` needs and that the processor or the system lacks; empty: it can run.
std::vector<std::string> missing_features(Isa isa);

}  // namespace sparsed::cpu
