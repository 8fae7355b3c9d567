# Helpers for the rooms' CMakeLists.txt.

# What the on-device code is compiled with: it neither throws nor asks for a type at run time, and exports only what
# the C header marks.
function(mamba_edge_on_device target)
  target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CXX>:-fno-exceptions;-fno-rtti>)
  set_target_properties(${target} PROPERTIES CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
  if(BUILD_SHARED_LIBS)
    target_compile_definitions(${target} PRIVATE MAMBA_EDGE_SHARED)
  endif()
endfunction()

# mamba_edge_library(<target> <source>...): a static library, or with no sources yet an interface library, so that
# the rooms that depend on it configure.
function(mamba_edge_library target)
  if(ARGN)
    add_library(${target} STATIC ${ARGN})
  else()
    message(STATUS "${target}: no sources yet")
    add_library(${target} INTERFACE)
  endif()
endfunction()
