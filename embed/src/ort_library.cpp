// See ort_library.h. A library that was named must be the one; only without a name is there a search.
#include "ort_library.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <vector>

#include "error.h"

namespace musiclm {

namespace {

namespace fs = std::filesystem;

constexpr const char* kVariable = "MUSICLM_ONNXRUNTIME";
constexpr const char* kName = "libonnxruntime.so";

std::string variable(const char* name) {
  const char* value = std::getenv(name);
  return value ? value : "";
}

// The newest first: a name without a version, then the longest, since 1.32 is longer than 1.9.
bool newer(const fs::path& one, const fs::path& other) {
  const std::string a = one.filename().string(), b = other.filename().string();
  if ((a == kName) != (b == kName)) return a == kName;
  return a.size() != b.size() ? a.size() > b.size() : a > b;
}

std::vector<fs::path> entries_of(const fs::path& folder, const std::string& prefix) {
  std::vector<fs::path> found;
  std::error_code error;  // a folder that is not there has no entries
  for (fs::directory_iterator entry(folder, error), end; !error && entry != end; entry.increment(error)) {
    if (entry->path().filename().string().rfind(prefix, 0) == 0) found.push_back(entry->path());
  }
  std::sort(found.begin(), found.end(), newer);
  return found;
}

std::vector<fs::path> libraries_in(const fs::path& folder) {
  std::vector<fs::path> found = entries_of(folder, kName);
  const auto other = [](const fs::path& path) {  // another major version, or not a library
    const std::string name = path.filename().string();
    return name != kName && name.rfind(std::string(kName) + ".1", 0) != 0;
  };
  found.erase(std::remove_if(found.begin(), found.end(), other), found.end());
  return found;
}

// Where pip puts packages: in the active environment, in the user's folder, in the system's.
std::vector<fs::path> package_folders() {
  std::vector<fs::path> prefixes;
  for (const char* name : {"VIRTUAL_ENV", "CONDA_PREFIX"}) {
    if (const std::string prefix = variable(name); !prefix.empty()) prefixes.push_back(prefix);
  }
  if (const std::string home = variable("HOME"); !home.empty()) prefixes.push_back(fs::path(home) / ".local");
  for (const char* prefix : {"/usr/local", "/usr"}) prefixes.push_back(prefix);
  std::vector<fs::path> folders;
  for (const fs::path& prefix : prefixes) {
    for (const fs::path& python : entries_of(prefix / "lib", "python3")) {
      for (const char* packages : {"site-packages", "dist-packages"}) folders.push_back(python / packages / "onnxruntime" / "capi");
    }
  }
  return folders;
}

// The folder of the file that holds this function: of libmusiclm.so, or of a program that it is linked into. Empty if it is not known.
fs::path own_folder() {
  Dl_info info;
  if (!dladdr(reinterpret_cast<void*>(&open_ort_library), &info) || !info.dli_fname) return {};
  return fs::path(info.dli_fname).parent_path();
}

std::string fault_of(const OrtBase* base) {
  if (!base) return "it is not ONNX Runtime: it has no OrtGetApiBase";
  int major = 0, minor = 0;  // looked at first: `api` prints where it has no such version
  std::sscanf(base->version(), "%d.%d", &major, &minor);
  if (major == 1 && minor >= kOrtApiVersion && base->api(kOrtApiVersion)) return "";
  return "it is ONNX Runtime " + std::string(base->version()) + ", expected 1." + std::to_string(kOrtApiVersion) + " or a later 1.x";
}

const OrtBase* try_library(const std::string& name, std::string* fault) {
  void* handle = dlopen(name.c_str(), RTLD_NOW | RTLD_LOCAL);  // local: the host may have another ONNX Runtime of its own
  if (!handle) {
    const char* error = dlerror();
    *fault = error ? error : "it cannot be opened";
    return nullptr;
  }
  const auto get_base = reinterpret_cast<const OrtBase* (*)()>(dlsym(handle, "OrtGetApiBase"));
  const OrtBase* base = get_base ? get_base() : nullptr;
  *fault = fault_of(base);
  if (fault->empty()) return base;
  dlclose(handle);
  return nullptr;
}

std::string advice() {
  return "Install it (pip install onnxruntime), and name its " + std::string(kName) + " in " + kVariable +
         ": pip puts it into onnxruntime/capi, beside the package.";
}

const OrtBase* open_named(const std::string& name, const std::string& by) {
  std::string fault;
  if (const OrtBase* base = try_library(name, &fault)) return base;
  throw Error(ML_NO_RUNTIME, "ONNX Runtime: " + name + ", which " + by + " names, cannot be used: " + fault + ". " + advice());
}

}  // namespace

const OrtBase* open_ort_library(const std::string& given) {
  if (!given.empty()) return open_named(given, "the option onnxruntime");
  if (const std::string named = variable(kVariable); !named.empty()) return open_named(named, kVariable);

  std::vector<fs::path> candidates;
  const fs::path own = own_folder();
  if (!own.empty()) candidates = libraries_in(own);
  for (const char* name : {"libonnxruntime.so.1", kName}) candidates.push_back(name);  // without a folder: the system's loader looks
  for (const fs::path& folder : package_folders()) {
    const std::vector<fs::path> found = libraries_in(folder);
    candidates.insert(candidates.end(), found.begin(), found.end());
  }
  std::string faults;
  for (const fs::path& candidate : candidates) {
    std::string fault;
    if (const OrtBase* base = try_library(candidate.string(), &fault)) return base;
    faults += "\n  - " + candidate.string() + ": " + fault;
  }
  throw Error(ML_NO_RUNTIME, "ONNX Runtime was not found: " + std::string(kVariable) + " is not set, there is no " + kName +
                                 " that can be used beside this library (" + own.string() + "), with the system's, or where pip " +
                                 "installs packages. Tried:" + faults + "\n" + advice());
}

}  // namespace musiclm
