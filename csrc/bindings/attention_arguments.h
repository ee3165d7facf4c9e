// What attention, selection and the pattern cache are called with.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "bindings/scalars.h"
#include "core/backend.h"
#include "core/params.h"

namespace sparsed::python {

struct AttentionArguments {
  AttentionParams params;         // borrows the arrays' memory
  const Backend* backend;         // of the memory that the arrays lie in
  std::vector<py::object> alive;  // what params points into
};

// The arrays of one call, as Python hands them over; None where a function has no such argument.
struct AttentionArrays {
  py::object q, k, v;
  py::object out;  // written to
  py::object lse;  // written to, or None
  py::object key_mask;
  py::object scale;   // None: 1 / sqrt(D)
  py::object stream;  // of the CUDA device on which q lies, as DLPack counts streams; None: host memory
};

// Arrays that fit together. selects: without v and out, for the selection only.
AttentionArguments attention_arguments(const Arguments& check, const AttentionArrays& arrays, bool selects);
// The memory of an array for the block scores of a selection, [B, H, q_blocks, kv_blocks] float32, in C order, where q
// lies; the arguments keep it alive. None: nullptr.
float* scores_memory(const Arguments& check, const py::object& scores, int block_size, AttentionArguments& arguments);
// q, out, lse and scale of a call whose keys and values are packed in host memory. keys: without data.
AttentionArguments packed_attention_arguments(const Arguments& check, const AttentionArrays& arrays,
                                              const TensorView& keys);
// what: "q has head_dim".
void check_head_dim(const Arguments& check, const std::string& what, int64_t head_dim, const std::string& source);

}  // namespace sparsed::python
