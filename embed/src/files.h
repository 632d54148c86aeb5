// Files of a bundle against the records of its manifest: path, size, SHA-256.
#pragma once

#include <filesystem>
#include <map>
#include <optional>
#include <string>

#include "bundle.h"
#include "manifest.h"

namespace musiclm {

// All files at once, by as many threads as there are processors. root: the bundle's folder.
void check_files(const std::filesystem::path& root, const std::map<std::string, FileRecord>& files, Faults& faults);

// None if there is no such file.
std::optional<Identity> identity_of(const std::filesystem::path& path);

std::string system_message(int number);  // of errno

}  // namespace musiclm
