// Host forms of csrc/cuda/prims_sm90.cuh.
#pragma once

#include "cuda/prims.cuh"
