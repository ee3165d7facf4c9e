#include "core/placed_pattern.h"

#include <utility>

#include "core/selection.h"

namespace sparsed {

PlacedPattern::PlacedPattern(BlockPattern pattern) : geometry_(pattern.geometry()), host_(std::move(pattern)) {}

PlacedPattern::PlacedPattern(std::shared_ptr<const DevicePattern> pattern, int device, double most_density)
    : geometry_(pattern->geometry()), most_density_(most_density), devices_{{device, std::move(pattern)}} {}

const BlockPattern& PlacedPattern::host() const {
  const std::lock_guard lock(mutex_);
  return locked_host();
}

const BlockPattern& PlacedPattern::locked_host() const {
  if (!host_) host_ = devices_.begin()->second->to_host();
  return *host_;
}

std::shared_ptr<const DevicePattern> PlacedPattern::on(const DeviceOps& ops, int device, void* stream) const {
  const std::lock_guard lock(mutex_);
  const auto found = devices_.find(device);
  if (found != devices_.end()) return found->second;
  return devices_.emplace(device, ops.to_device(locked_host(), device, stream)).first->second;
}

double PlacedPattern::density() const {
  const std::lock_guard lock(mutex_);
  if (!density_) density_ = locked_host().density();
  return *density_;
}

bool PlacedPattern::denser_than(double share) const { return most_density_ > share && density() > share; }

void attend(const Backend& backend, AttentionParams params, const PlacedPattern* pattern) {
  params.lists = nullptr;
  if (params.device >= 0) {
    const auto there = pattern ? pattern->on(*backend.device, params.device, params.stream) : nullptr;
    backend.device->attention(params, there.get());
    return;
  }
  BlockLists lists;
  if (pattern) {
    lists = pattern->host().expand();
    params.lists = &lists;
  }
  backend.attention(params);
}

std::shared_ptr<PlacedPattern> attend_and_select(const Backend& backend, AttentionParams params,
                                                 const SelectParams& select) {
  params.lists = nullptr;
  if (params.device < 0) return std::make_shared<PlacedPattern>(backend.attention_and_select(params, select));
  const double blocks = static_cast<double>(num_blocks(params.kv_len(), select.block_size));
  return std::make_shared<PlacedPattern>(backend.device->attention_and_select(params, select), params.device,
                                         static_cast<double>(most_kept(select, params.kv_len())) / blocks);
}

}  // namespace sparsed
