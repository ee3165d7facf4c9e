// Drivers of the model operations: checks, threads and scratch around an instruction set's leaf kernels. The entries of
// ModelOps, with the kernels first.
#pragma once

#include <vector>

#include "cpu/model_ops.h"
#include "cpu/ops_kernels.h"

namespace sparsed::cpu {

PackedWeight pack_weight(const std::vector<WeightRows>& parts, int64_t k, DType dtype);
void quantize_rows(const WeightRows& part, int64_t k, int8_t* values, float* scales);
void linear(const LinearKernels& kernels, const RowsView& x, const std::vector<LinearPart>& parts);
void rms_norm(const OpsKernels& kernels, const RowsView& x, const float* weight, float eps, const RowsView& out);
void rotary(const OpsKernels& kernels, const RowsView& x, int64_t head_dim, const float* cos, const float* sin);
void silu_gate(const OpsKernels& kernels, const RowsView& gate, const RowsView& up);
void token_confidence(const OpsKernels& kernels, const RowsView& logits, Confidence kind, int64_t* ids,
                      float* confidence);

}  // namespace sparsed::cpu
