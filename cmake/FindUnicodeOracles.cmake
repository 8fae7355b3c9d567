# utf8proc and PCRE2, which know Unicode better than we do: the generator of our tables asks them and the tests compare
# with them. Defines the target mamba_edge_unicode_oracles. Never a dependency of the library.
find_path(UTF8PROC_INCLUDE_DIR utf8proc.h)
find_path(PCRE2_INCLUDE_DIR pcre2.h)
find_library(UTF8PROC_LIBRARY utf8proc)
find_library(PCRE2_LIBRARY NAMES pcre2-8 libpcre2-8.so.0)  # the cross build has the library without its -dev package
include(FindPackageHandleStandardArgs)
find_package_handle_standard_args(UnicodeOracles REQUIRED_VARS UTF8PROC_LIBRARY PCRE2_LIBRARY UTF8PROC_INCLUDE_DIR
                                  PCRE2_INCLUDE_DIR)
mark_as_advanced(UTF8PROC_INCLUDE_DIR PCRE2_INCLUDE_DIR UTF8PROC_LIBRARY PCRE2_LIBRARY)
if(UnicodeOracles_FOUND AND NOT TARGET mamba_edge_unicode_oracles)
  add_library(mamba_edge_unicode_oracles INTERFACE)
  target_link_libraries(mamba_edge_unicode_oracles INTERFACE ${UTF8PROC_LIBRARY} ${PCRE2_LIBRARY})
endif()
