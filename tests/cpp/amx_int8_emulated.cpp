// The AMX unit of int8 weights once more, with emulated tile instructions, as amx_emulated.cpp.
#define SPARSED_AMX_EMULATED
#define int8_amx int8_amx_emulated
#include "cpu/isa_amx_int8.cpp"
