// ONNX Runtime's shared library: where it is looked for, and what opening it gives.
#pragma once

#include <cstdint>
#include <string>

namespace musiclm {

constexpr int kOrtApiVersion = 18;  // of ONNX Runtime 1.18, the first one that has all functions that onnx.cpp calls

struct OrtBase {                                // what the library's only function, OrtGetApiBase, returns
  const void* const* (*api)(uint32_t version);  // the table of functions
  const char* (*version)();                     // such as "1.32.0": its second number is the newest API version that it has
};

// given: a path, or empty for the first library found, as `OnnxRuntime::open` says. Throws Error(ML_NO_RUNTIME). The library is never
// closed: unloading it while its threads end would crash the host, and opening it again gives the same one.
const OrtBase* open_ort_library(const std::string& given);

}  // namespace musiclm
