// Attention for compute capability 9.0a. One warpgroup of a block loads tiles and two compute: while one uses the
// matrix units, the other computes its softmax. Blocks are persistent and take work items in turn.
#pragma once

#include "cuda/sm90/consumer.cuh"
#include "cuda/sm90/loader.cuh"

namespace sparsed::cuda {

template <class Traits>
SPARSED_DEVICE void attention_sm90(const Sm90Args& sm90) {
  if (thread_index() == 0) {
    make_barriers<Traits>();
    tma_prefetch(sm90.q);
    tma_prefetch(sm90.k);
    if constexpr (Traits::kOutput) tma_prefetch(sm90.v);
  }
  sync_threads();
  if (thread_index() >= sm90::kComputingThreads) {
    release_registers<Traits::kProducerRegisters>();
    const int warp = thread_index() / 32 - sm90::kComputingThreads / 32;
    if (warp == 0) load_tiles<Traits>(sm90);
    if (Traits::kOutput && warp == 1 && sm90.attention.key_mask) clear_values<Traits>(sm90.attention);
  } else {
    claim_registers<Traits::kConsumerRegisters>();
    compute_tiles<Traits>(sm90.attention);
  }
}

}  // namespace sparsed::cuda
