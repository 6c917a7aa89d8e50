# The instruction sets that the compiler and its target have: one source file each, with its own flags, and a
# macro that tells isa_select.cpp of it. qcore_cpu_add_isas(TARGET) adds them, or those among the names that
# follow; the plugin and the harness of its tests (tests/isa_harness) use it.

include(CheckCXXCompilerFlag)
include(CheckCXXSourceCompiles)

# Contraction would let the compiler choose which sums are fused, one way in one kernel, another way in
# the next; results that must agree bit for bit say fma where they mean it.
set(QCORE_CPU_OPTIONS -O3 -Wall -Wextra -ffp-contract=off)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
  # These passes pull the inner loops apart: accumulators are copied in every turn, sums are put off until they
  # no longer fit in registers, which costs up to half the speed; unswitching makes many times the code.
  list(APPEND QCORE_CPU_OPTIONS
    -fno-tree-pre -fno-tree-ter -fno-tree-reassoc -fno-unswitch-loops)
endif()

set(QCORE_CPU_CSRC ${CMAKE_CURRENT_LIST_DIR})

function(qcore_cpu_add_isa target name)
  target_sources(${target} PRIVATE ${QCORE_CPU_CSRC}/isa_${name}.cpp)
  set_source_files_properties(${QCORE_CPU_CSRC}/isa_${name}.cpp PROPERTIES COMPILE_OPTIONS "${ARGN}")
  string(TOUPPER QCORE_CPU_${name} macro)
  target_compile_definitions(${target} PRIVATE ${macro})
endfunction()

function(qcore_cpu_add_isas target)
  target_sources(${target} PRIVATE ${QCORE_CPU_CSRC}/isa_select.cpp)
  target_compile_options(${target} PRIVATE ${QCORE_CPU_OPTIONS})
  set(isas)  # that can be compiled; the flags of each in a variable of its name
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    list(APPEND isas avx2 avx512 avx512_bf16)
    set(avx2 -mavx2 -mfma -mf16c)
    set(avx512 ${avx2} -mavx512f -mavx512bw -mavx512vl -mavx512dq -mavx512vnni)
    if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
      # GCC's own header of AVX-512 intrinsics reads registers that it leaves undefined on purpose.
      list(APPEND avx512 -Wno-maybe-uninitialized -Wno-uninitialized)
    endif()
    set(avx512_bf16 ${avx512} -mavx512bf16)
    check_cxx_compiler_flag(-mavxvnni QCORE_CPU_HAS_AVXVNNI)
    if(QCORE_CPU_HAS_AVXVNNI)
      list(APPEND isas avxvnni)
      set(avxvnni ${avx2} -mavxvnni)
    endif()
    # Its instructions are written as assembly: what must know them is the assembler.
    check_cxx_source_compiles("int main() { asm volatile(\"tilerelease\"); }" QCORE_CPU_HAS_AMX)
    if(QCORE_CPU_HAS_AMX)
      list(APPEND isas amx)
      set(amx ${avx512_bf16})
    endif()
  elseif(CMAKE_SYSTEM_PROCESSOR MATCHES "aarch64|arm64|ARM64")
    list(APPEND isas neon)
    set(neon -march=armv8.2-a+dotprod)
  endif()
  # Sets that leave something out need the one that has it.
  set(wanted ${ARGN})
  if("avxvnni" IN_LIST wanted)
    list(APPEND wanted avx2)
  endif()
  if("amx" IN_LIST wanted)
    list(APPEND wanted avx512_bf16)
  endif()
  if("avx512_bf16" IN_LIST wanted)
    list(APPEND wanted avx512)
  endif()
  qcore_cpu_add_isa(${target} scalar)
  foreach(name ${isas})
    if(NOT wanted OR name IN_LIST wanted)
      qcore_cpu_add_isa(${target} ${name} ${${name}})
    endif()
  endforeach()
endfunction()
