# PNS_SANITIZE="address,undefined" builds the CPU module under the named sanitizers (see CONTRIBUTING.md).
set(PNS_SANITIZE "" CACHE STRING "Comma-separated list for -fsanitize=")

function(pns_set_sanitizers target)
  if(PNS_SANITIZE)
    target_compile_options(${target} PRIVATE -fsanitize=${PNS_SANITIZE} -fno-omit-frame-pointer -g)
    target_link_options(${target} PRIVATE -fsanitize=${PNS_SANITIZE})
  endif()
endfunction()
