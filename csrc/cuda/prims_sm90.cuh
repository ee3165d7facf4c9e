// Instructions of compute capability 9.0a beside those of prims.cuh: barriers in memory, tile copies by the tensor
// memory accelerator, warpgroup matrix products, register hand-over. Host forms: tests/cpp/emulator/cuda/.
#pragma once

#include "cuda/prims.cuh"
