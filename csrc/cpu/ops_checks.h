// Checks of the arguments that the drivers of the model operations share.
#pragma once

#include <cstdint>
#include <string>

#include "cpu/model_ops.h"
#include "support/checker.h"

namespace sparsed::cpu {

inline std::string shape_of(const RowsView& view) { return message("[", view.rows, ", ", view.cols, "]"); }

inline void check_dtype(const Checker& check, const std::string& argument, const RowsView& view) {
  if (view.dtype != DType::kFloat32 && view.dtype != DType::kBFloat16) {
    check.fail(ErrorKind::kType, argument, " has dtype ", dtype_name(view.dtype), ", expected float32 or bfloat16");
  }
}

inline void check_shape(const Checker& check, const std::string& argument, const RowsView& view, int64_t rows,
                        int64_t cols, const char* source) {
  check_dtype(check, argument, view);
  check(view.rows == rows && view.cols == cols, argument, " has shape ", shape_of(view), ", expected [", rows, ", ",
        cols, "] (from ", source, ")");
}

}  // namespace sparsed::cpu
