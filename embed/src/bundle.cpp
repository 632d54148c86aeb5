// See bundle.h; runtime/bundle.py's Bundle is the reference. Nothing of a bundle is used before its manifest and all its files are checked.
#include "bundle.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <fstream>
#include <new>

#include "error.h"
#include "files.h"
#include "json_text.h"
#include "manifest.h"
#include "sha256.h"

namespace fs = std::filesystem;

namespace musiclm {

namespace {

[[noreturn]] void refuse(const std::string& why) { throw Error(ML_BAD_BUNDLE, why); }

// As a shell does it, which none has where the path was written by a program.
fs::path expanded(const std::string& path) {
  const char* home = std::getenv("HOME");
  if (path.empty()) return ".";
  if (!home || path[0] != '~' || (path.size() > 1 && path[1] != '/')) return path;
  return home + path.substr(1);
}

// Whether `path` is a regular file.
bool is_file(const fs::path& path, const fs::path& root) {
  struct stat found;
  if (::stat(path.c_str(), &found) == 0) return S_ISREG(found.st_mode);
  if (errno != ENOENT && errno != ENOTDIR && errno != ELOOP) {
    refuse(root.string() + " is not a bundle that can be opened: " + system_message(errno) + ".");
  }
  return false;
}

std::string read_manifest_file(const fs::path& root) {
  const fs::path path = root / kManifestName;
  if (root.filename() == kManifestName && is_file(root, root)) {
    refuse(root.string() + " is not a bundle, but the manifest of one. Give its folder.");
  }
  if (!is_file(path, root)) {
    std::error_code none;
    const std::string why = fs::exists(root, none) ? std::string("it has no ") + kManifestName : "there is no such folder";
    refuse(root.string() + " is not a bundle: " + why + ". Make one with export_all.py.");
  }
  std::ifstream file(path, std::ios::binary);
  std::string text(std::min<uintmax_t>(fs::file_size(path), kMostJsonBytes + 1), '\0');
  file.read(text.data(), static_cast<std::streamsize>(text.size()));
  if (!file.is_open() || file.bad()) refuse(path.string() + " cannot be read: " + system_message(errno) + ".");
  text.resize(static_cast<size_t>(file.gcount()));
  return text;
}

Bundle open_checked(const fs::path& root) {
  const std::string text = read_manifest_file(root);
  Faults faults;
  std::vector<std::string> named;
  Bundle bundle{{}, parse_manifest(text, faults, named), {}, {}};
  if (faults.empty()) {
    for (const std::string& name : named) {
      if (!bundle.manifest.files.count(name)) faults.note(name + ": the manifest uses this file but does not list it");
    }
    check_consistency(bundle.manifest, faults);
    check_files(root, bundle.manifest.files, faults);
  }
  if (!faults.empty()) refuse("the bundle " + root.string() + " cannot be used:\n" + faults.text());
  Sha256 hash;
  hash.update(text.data(), text.size());
  bundle.sha256 = hash.hex();
  bundle.root = fs::canonical(root);
  for (const auto& file : bundle.manifest.files) bundle.checked[file.first] = identity_of(bundle.root / file.first);
  return bundle;
}

}  // namespace

Bundle Bundle::open(const std::string& path) {
  try {
    return open_checked(expanded(path));
  } catch (const fs::filesystem_error& error) {  // such as a folder that vanishes meanwhile
    refuse(path + " is not a bundle that can be opened: " + error.code().message() + ".");
  }
}

fs::path Bundle::path(const std::string& name) const {
  for (const std::string& file : {name, name + ".data"}) {
    const auto found = checked.find(file);
    if (found != checked.end() && !(identity_of(root / file) == found->second)) {
      refuse((root / file).string() + " was changed or replaced after the bundle was opened. Load the bundle again.");
    }
  }
  return root / name;
}

}  // namespace musiclm
