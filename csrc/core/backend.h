// A backend is a row in the registry's table: a name, whether it can run here, and its entry points.
#pragma once

#include <string>
#include <vector>

#include "core/ops.h"
#include "core/params.h"
#include "core/pattern.h"

namespace sparsed {

struct Backend {
  const char* name;
  const char* description;
  // Why it cannot run on this machine; empty: it can.
  std::vector<std::string> (*not_supported_reasons)();
  void (*attention)(const AttentionParams& params);
  // One dense pass that also selects. params.out.data == nullptr: the pattern alone.
  BlockPattern (*attention_and_select)(const AttentionParams& params, const SelectParams& select);
  ModelOps ops;
};

}  // namespace sparsed
