// A block pattern wherever it is needed: on the host, in the memory of devices. It is brought there at its first use
// and kept, so that patterns which a device selects and uses never leave it.
#pragma once

#include <cstddef>
#include <map>
#include <memory>
#include <mutex>
#include <optional>

#include "core/backend.h"
#include "core/params.h"
#include "core/pattern.h"

namespace sparsed {

// Immutable; any thread may ask.
class PlacedPattern {
 public:
  explicit PlacedPattern(BlockPattern pattern);
  // What a device has selected. most_density: no row keeps a larger share of the blocks.
  PlacedPattern(std::shared_ptr<const DevicePattern> pattern, int device, double most_density);

  const PatternGeometry& geometry() const { return geometry_; }
  size_t nbytes() const { return bit_bytes(geometry_); }  // in one place
  // Waits for the device where the pattern lies on none but that.
  const BlockPattern& host() const;
  std::shared_ptr<const DevicePattern> on(const DeviceOps& ops, int device, void* stream) const;
  double density() const;  // waits as host()
  // density() > share; waits only where the most that the rule keeps does not tell.
  bool denser_than(double share) const;

 private:
  const BlockPattern& locked_host() const;

  PatternGeometry geometry_;
  double most_density_ = 1.0;
  mutable std::mutex mutex_;
  mutable std::optional<BlockPattern> host_;
  mutable std::map<int, std::shared_ptr<const DevicePattern>> devices_;
  mutable std::optional<double> density_;
};

// Attention where the arrays lie, over a pattern's blocks or, without one, dense. params.lists is chosen here.
void attend(const Backend& backend, AttentionParams params, const PlacedPattern* pattern);
// The same, dense, with the selection; the pattern stays where the arrays lie.
std::shared_ptr<PlacedPattern> attend_and_select(const Backend& backend, AttentionParams params,
                                                 const SelectParams& select);

}  // namespace sparsed
