// What every backend's softmax counts with: probabilities are powers of 2.
#pragma once

namespace sparsed {

constexpr float kLog2e = 1.44269504088896341f;
constexpr float kMinScale = 1e-37f;  // keeps scale * log2(e) a normal number

}  // namespace sparsed
