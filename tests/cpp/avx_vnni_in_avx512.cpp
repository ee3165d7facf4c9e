// The AVX-VNNI unit once more, its instruction encoded as that of AVX-512 VNNI: the same kernels run on machines that
// have only the latter.
#include <immintrin.h>
#undef _mm256_dpbusd_avx_epi32
#define _mm256_dpbusd_avx_epi32 _mm256_dpbusd_epi32
#define int8_avx_vnni int8_avx_vnni_in_avx512
#include "cpu/isa_avx_vnni.cpp"
