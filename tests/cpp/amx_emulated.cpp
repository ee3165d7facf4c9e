// The AMX unit once more, its tile instructions emulated in C++: the same kernels run on machines without AMX.
#define SPARSED_AMX_EMULATED
#define kernels_amx kernels_amx_emulated
#include "cpu/isa_amx.cpp"
