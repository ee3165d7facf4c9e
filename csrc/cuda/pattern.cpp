#include "cuda/pattern.h"

#include "support/error.h"

namespace sparsed::cuda {
namespace {

const cudaStream_t kAlwaysThere = cudaStreamLegacy;

}  // namespace

DeviceBits::DeviceBits(const PatternGeometry& geometry, int64_t max_blocks, cudaStream_t stream)
    : geometry_(geometry), max_blocks_(max_blocks), bits_(nbytes(), stream), device_(current_device()) {
  used_.set(stream);
  bits_.free_on(kAlwaysThere);
}

// Errors are not reported: at the end of a process the driver may be gone.
DeviceBits::~DeviceBits() {
  try {
    const CurrentDevice current(device_);
    used_.wait(kAlwaysThere);
  } catch (const Error&) {
  }
}

std::vector<uint64_t> DeviceBits::read() const {
  const CurrentDevice current(device_);
  std::vector<uint64_t> bits(nbytes() / sizeof(uint64_t));
  use(kAlwaysThere, [&] { to_host(bits.data(), data(), nbytes(), kAlwaysThere); });
  return bits;
}

std::shared_ptr<const DeviceBits> bits_on(const BlockPattern& pattern, int device, cudaStream_t stream) {
  const auto upload = [&](const std::vector<uint64_t>& bits) {
    const auto copy = std::make_shared<DeviceBits>(pattern.geometry(), pattern.geometry().kv_blocks(), stream);
    copy->use(stream, [&] { copy_to_device(copy->data(), bits.data(), copy->nbytes(), stream); });
    return copy;
  };
  // No other backend keeps patterns on devices.
  return std::static_pointer_cast<const DeviceBits>(pattern.on(device, upload));
}

}  // namespace sparsed::cuda
