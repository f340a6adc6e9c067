# Included right after llama-cpp-python's project(): builds libllama alone. Its CMakeLists forces the cache entry of
# LLAMA_BUILD_COMMON to ON; a normal variable of the same name shadows the cache (policy CMP0126). Halves the build.
set(LLAMA_BUILD_COMMON OFF)
