# Warnings for our own sources; errors in CI (PNS_WERROR=ON).
option(PNS_WERROR "Treat compiler warnings as errors" OFF)

function(pns_set_warnings target)
  # -Wpsabi: vector types wider than the baseline never cross a file's border here, so its ABI note is noise.
  target_compile_options(${target} PRIVATE -Wall -Wextra -Wshadow -Wno-psabi)
  if(PNS_WERROR)
    target_compile_options(${target} PRIVATE -Werror)
  endif()
endfunction()
