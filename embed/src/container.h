// Processors that the system allows this process, as Python's runtime/container.py finds them.
#pragma once

#include <filesystem>

namespace musiclm {

// How many this process may keep busy, from 1 to 1024: those that it may run on, or as many as the quotas of its control groups are worth,
// rounded up. root: "/" but in tests. Nothing is thrown but std::bad_alloc: what cannot be read is no limit.
int available_processors(const std::filesystem::path& root = "/");

}  // namespace musiclm
