# Fails if an ISA unit defines a weak symbol: the linker could hand that copy, compiled for AVX-512, to baseline code.
#   cmake -DNM=nm -DOBJECTS=a.o;b.o -P isa_symbols.cmake
foreach(object ${OBJECTS})
  if(NOT object MATCHES "/isa_(avx2|avx_vnni|avx512|avx512_vnni|avx512_bf16|amx|amx_int8)\\.cpp")
    continue()
  endif()
  execute_process(COMMAND ${NM} -C --defined-only ${object} OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
  string(REGEX MATCHALL "[^\n]* [VvWwu] [^\n]*" weak "${symbols}")
  if(weak)
    list(JOIN weak "\n" weak)
    message(FATAL_ERROR "${object} defines weak symbols:\n${weak}")
  endif()
endforeach()
