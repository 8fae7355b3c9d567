# What `cmake --install` puts where: the library, its one header, and how CMake and pkg-config find them.
include(CMakePackageConfigHelpers)

set(package_dir ${CMAKE_INSTALL_LIBDIR}/cmake/mamba_edge)
install(TARGETS mamba_edge EXPORT mamba_edgeTargets COMPONENT library)
install(FILES engine/include/mamba_edge.h DESTINATION ${CMAKE_INSTALL_INCLUDEDIR} COMPONENT library)
install(EXPORT mamba_edgeTargets NAMESPACE mamba_edge:: DESTINATION ${package_dir} COMPONENT library)

configure_package_config_file(cmake/mamba_edgeConfig.cmake.in ${PROJECT_BINARY_DIR}/mamba_edgeConfig.cmake
  INSTALL_DESTINATION ${package_dir} NO_SET_AND_CHECK_MACRO)
write_basic_package_version_file(${PROJECT_BINARY_DIR}/mamba_edgeConfigVersion.cmake COMPATIBILITY SameMinorVersion)
install(FILES ${PROJECT_BINARY_DIR}/mamba_edgeConfig.cmake ${PROJECT_BINARY_DIR}/mamba_edgeConfigVersion.cmake
  cmake/FindZstd.cmake DESTINATION ${package_dir} COMPONENT library)

# The .pc file finds the rest from where it lies itself, so the tree can be moved.
file(RELATIVE_PATH pc_prefix /${CMAKE_INSTALL_LIBDIR}/pkgconfig /)
string(REGEX REPLACE "/$" "" pc_prefix "${pc_prefix}")
# A program that links the static library needs what that one needs, too.
set(pc_private ".private")
set(pc_static "")
if(NOT BUILD_SHARED_LIBS)
  set(pc_private "")
  set(pc_static " -lstdc++ -lm -pthread")
endif()
configure_file(cmake/mamba_edge.pc.in ${PROJECT_BINARY_DIR}/mamba_edge.pc @ONLY)
install(FILES ${PROJECT_BINARY_DIR}/mamba_edge.pc DESTINATION ${CMAKE_INSTALL_LIBDIR}/pkgconfig COMPONENT library)
