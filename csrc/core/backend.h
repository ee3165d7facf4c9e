// A backend is a row in the registry's table: a name, whether it can run here, and its two entry points.
#pragma once

#include <string>
#include <vector>

#include "core/params.h"
#include "core/pattern.h"

namespace sparsed {

// Its calls take arrays in the memory that the backend computes in. On a device, work is queued on params.stream and
// nothing comes back to the host. Errors have no function in front: the caller gives its name (Checker::named).
struct Backend {
  const char* name;
  // Why it cannot run on this machine; empty: it can.
  std::vector<std::string> (*not_supported_reasons)();
  // pattern == nullptr: dense. A row without a key gives 0, and -infinity as its log-sum-exp.
  void (*attention)(const AttentionParams& params, const BlockPattern* pattern);
  // One dense pass that also selects. params.out.data == nullptr: the pattern alone.
  BlockPattern (*attention_and_select)(const AttentionParams& params, const SelectParams& select);
};

}  // namespace sparsed
