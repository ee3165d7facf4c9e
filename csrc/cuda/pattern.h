// Bit rows of a pattern in device memory: upload, download, and the order of the streams that use them.
#pragma once

#include <memory>
#include <mutex>
#include <vector>

#include "core/pattern.h"
#include "cuda/runtime.h"

namespace sparsed::cuda {

// On the device that is current when it is made. The streams that use the bits may be gone before the pattern is: they
// are read and freed on the stream that is always there.
class DeviceBits final : public PatternCopy {
 public:
  // max_blocks: no row selects more.
  DeviceBits(const PatternGeometry& geometry, int64_t max_blocks, cudaStream_t stream);
  ~DeviceBits() override;

  std::vector<uint64_t> read() const override;

  // Gives `stream` work on the bits: one after the other, whatever the streams and threads.
  template <class Work>
  void use(cudaStream_t stream, const Work& work) const {
    const std::lock_guard lock(mutex_);
    used_.wait(stream);
    work();
    used_.set(stream);
  }

  const PatternGeometry& geometry() const { return geometry_; }
  int64_t rows() const { return geometry_.rows(); }
  int words() const { return static_cast<int>(geometry_.row_words() * 2); }  // of 32 bits, per row
  size_t nbytes() const { return static_cast<size_t>(rows() * words()) * sizeof(uint32_t); }
  uint32_t* data() const { return bits_.as<uint32_t>(); }
  int64_t max_blocks() const { return max_blocks_; }

 private:
  PatternGeometry geometry_;
  int64_t max_blocks_;
  DeviceMemory bits_;
  int device_;
  mutable std::mutex mutex_;
  StreamMark used_;
};

// The bits of `pattern` on a device, uploaded where they are not there yet. An upload waits for the stream.
std::shared_ptr<const DeviceBits> bits_on(const BlockPattern& pattern, int device, cudaStream_t stream);

}  // namespace sparsed::cuda
