// A backend is a row in the registry's table: a name, whether it can run here, and its entry points.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "core/ops.h"
#include "core/params.h"
#include "core/pattern.h"

namespace sparsed {

// A pattern in the memory of a device, as its backend keeps it. Any stream of that device may use it, and any thread.
class DevicePattern {
 public:
  virtual ~DevicePattern() = default;
  virtual const PatternGeometry& geometry() const = 0;
  virtual BlockPattern to_host() const = 0;  // waits for the device
};

// Entry points for arrays in the memory of params.device, lse and key_mask too. Work is queued on params.stream:
// nothing comes back to the host, and to_device alone waits. params.lists is not used.
struct DeviceOps {
  // pattern == nullptr: dense.
  void (*attention)(const AttentionParams& params, const DevicePattern* pattern);
  std::shared_ptr<const DevicePattern> (*attention_and_select)(const AttentionParams& params,
                                                               const SelectParams& select);
  std::shared_ptr<const DevicePattern> (*to_device)(const BlockPattern& pattern, int device, void* stream);
};

struct Backend {
  const char* name;
  // Why it cannot run on this machine; empty: it can.
  std::vector<std::string> (*not_supported_reasons)();
  void (*attention)(const AttentionParams& params);
  // One dense pass that also selects. params.out.data == nullptr: the pattern alone.
  BlockPattern (*attention_and_select)(const AttentionParams& params, const SelectParams& select);
  ModelOps ops;
  const DeviceOps* device = nullptr;  // nullptr: host memory only
};

}  // namespace sparsed
