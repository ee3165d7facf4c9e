// The loading warpgroup: one warp copies tiles by TMA, and another clears the values of masked keys.
#pragma once

#include "cuda/sm90/query_tile.cuh"
#include "cuda/sm90/tile.cuh"

namespace sparsed::cuda {

// Loads the keys [kKeys] of a tile, by one copy or by one copy per block. Positions beyond the walk become zeros.
template <class Traits>
SPARSED_DEVICE void load_tile(const AttentionArgs& args, const TensorMap& map, const QueryTile<Traits>& tile,
                              int number, bool leader, uint32_t shared, uint32_t empty, uint32_t round, uint32_t full) {
  const int block = tile.walk.listed() ? 1 << args.list_shift : Traits::kKeys;
  const int box = block < Traits::kKeys ? block : Traits::kKeys;
  const int position = number * Traits::kKeys + thread_index() % 32 * box;  // lane i finds the key of copy i
  const int lane_key = position < tile.walk.positions ? tile.walk.key(position) : args.kv_len;
  mbarrier_wait(empty, round ^ 1);
  if (leader) mbarrier_expect(full, Traits::kTileBytes);
  for (int i = 0; i < Traits::kKeys / box; ++i) {
    const int key = shuffle(lane_key, i);
    if (!leader) continue;
    SPARSED_UNROLL
    for (int panel = 0; panel < Traits::kPanels; ++panel) {
      tma_load(shared + panel * Traits::kPanelBytes + static_cast<uint32_t>(i * box * 128), map, full,
               panel * sm90::kPanelColumns, key, tile.h / args.gqa_ratio, tile.b);
    }
  }
}

template <class Traits>
SPARSED_DEVICE void load_tiles(const Sm90Args& sm90) {
  const AttentionArgs& args = sm90.attention;
  const bool leader = elect();
  const uint32_t values_full = args.key_mask ? Traits::kRaw : Traits::kValuesFull;
  uint32_t count = 0, query_tiles = 0;
  for_each_tile<Traits>(args, [&](const QueryTile<Traits>& tile) {
    const int tiles = tile.walk.tiles();
    if (tiles == 0) return;
    const auto load_keys = [&](int number) {
      const Slot<Traits> slot{count + number};
      load_tile(args, sm90.k, tile, number, leader, slot.keys(), slot.barrier(Traits::kKeysEmpty), slot.round(),
                slot.barrier(Traits::kKeysFull));
    };
    mbarrier_wait(Traits::kQueriesEmpty, ~query_tiles++ & 1);
    if (leader) {
      mbarrier_expect(Traits::kQueriesFull, Traits::kQueryBytes);
      SPARSED_UNROLL
      for (int i = 0; i < Traits::kQueryGroups * Traits::kPanels; ++i) {
        const int group = i / Traits::kPanels, panel = i % Traits::kPanels;
        tma_load(i * Traits::kQueryPanelBytes, sm90.q, Traits::kQueriesFull, panel * sm90::kPanelColumns,
                 tile.row + group * sm90::kWarpgroupRows, tile.h, tile.b);
      }
    }
    load_keys(0);
    for (int number = 0; number < tiles; ++number) {
      if (number + 1 < tiles) load_keys(number + 1);
      if constexpr (Traits::kOutput) {
        const Slot<Traits> slot{count + number};
        load_tile(args, sm90.v, tile, number, leader, slot.values(), slot.barrier(Traits::kValuesEmpty), slot.round(),
                  slot.barrier(values_full));
      }
    }
    count += tiles;
  });
}

// Sets the values of keys that the key mask hides to zeros, because a NaN in their memory would spread through P V.
template <class Traits>
SPARSED_DEVICE void clear_values(const AttentionArgs& args) {
  const int lane = thread_index() % 32;
  uint32_t count = 0;
  for_each_tile<Traits>(args, [&](const QueryTile<Traits>& tile) {
    const int tiles = tile.walk.tiles();
    for (int number = 0; number < tiles; ++number, ++count) {
      const Slot<Traits> slot{count};
      mbarrier_wait(slot.barrier(Traits::kRaw), slot.round());
      for (int part = 0; part < Traits::kKeys; part += 32) {
        const uint32_t live = tile.walk.live_bits(number * Traits::kKeys + part);
        for (int i = 0; i < 32; ++i) {
          if (live >> i & 1) continue;
          SPARSED_UNROLL
          for (int panel = 0; panel < Traits::kPanels; ++panel) {
            const uint32_t row = slot.values() + panel * Traits::kPanelBytes + static_cast<uint32_t>(part + i) * 128;
            store_shared(row + static_cast<uint32_t>(lane) * 4, 0u);
          }
        }
      }
      fence_async_proxy();
      sync_warp();
      if (lane == 0) mbarrier_arrive(slot.barrier(Traits::kValuesFull));
    }
  });
}

}  // namespace sparsed::cuda
