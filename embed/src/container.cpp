// See container.h. Groups of version 1 and 2, or both; a group is limited by each group above it too. /proc/self/mountinfo says where a
// hierarchy is mounted, and which group is on top there: in a container often its own.
#include "container.h"

#include <sched.h>

#include <algorithm>
#include <cerrno>
#include <fstream>
#include <memory>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

namespace musiclm {

namespace {

namespace fs = std::filesystem;

constexpr int kMost = 1024;  // threads that a pool takes

std::string read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

std::vector<std::string> split(const std::string& text, char by) {
  std::vector<std::string> parts;
  std::istringstream all(text);
  for (std::string part; std::getline(all, part, by);) parts.push_back(part);
  return parts;
}

std::vector<std::string> words(const std::string& text) {
  std::vector<std::string> found;
  std::istringstream all(text);
  for (std::string word; all >> word;) found.push_back(word);
  return found;
}

bool names_cpu(const std::string& controllers) {
  const std::vector<std::string> names = split(controllers, ',');
  return std::find(names.begin(), names.end(), "cpu") != names.end();
}

// Without the escapes \ooo of spaces and the like.
std::string plain(const std::string& field) {
  std::string text;
  for (size_t i = 0; i < field.size(); i++) {
    const auto digit = [&](size_t at) { return at < field.size() && field[at] >= '0' && field[at] <= '7'; };
    if (field[i] == '\\' && digit(i + 1) && digit(i + 2) && digit(i + 3)) {
      text += static_cast<char>((field[i + 1] - '0') * 64 + (field[i + 2] - '0') * 8 + (field[i + 3] - '0'));
      i += 3;
    } else {
      text += field[i];
    }
  }
  return text;
}

// Each mount of a hierarchy that counts processors: the group on its top, and where it is mounted.
std::vector<std::pair<std::string, fs::path>> mounts(const fs::path& root, int version) {
  std::vector<std::pair<std::string, fs::path>> found;
  for (const std::string& line : split(read(root / "proc/self/mountinfo"), '\n')) {
    const size_t end = line.find(" - ");
    if (end == std::string::npos) continue;
    const std::vector<std::string> fields = words(line.substr(0, end)), kind = words(line.substr(end + 3));
    if (fields.size() < 5 || kind.size() < 3 || kind[0] != (version == 2 ? "cgroup2" : "cgroup")) continue;
    if (version == 1 && !names_cpu(kind[2])) continue;
    found.emplace_back(plain(fields[3]), root / fs::path(plain(fields[4])).relative_path());
  }
  return found;
}

// The folders of a group and of those above it, as far as they are mounted. A group outside of what this process may see is shown with
// dots; the one that is mounted is then the nearest known.
std::vector<fs::path> folders(const std::string& group, const std::string& top, const fs::path& mounted) {
  fs::path below = fs::path(group).lexically_normal().lexically_relative(fs::path(top).lexically_normal());
  const bool inside = group == top || group.rfind(top.back() == '/' ? top : top + "/", 0) == 0;
  if (!inside || below == "." || std::find(below.begin(), below.end(), "..") != below.end()) below.clear();
  std::vector<fs::path> found{mounted};
  for (const fs::path& name : below) {
    std::error_code none;
    const fs::path next = found.back() / name;
    if (!fs::is_directory(next, none)) break;
    found.push_back(next);
  }
  return found;
}

// A whole number above 0, or 0: "max" and -1 stand for no limit.
int64_t count(const std::string& text) {
  if (text.empty() || text.size() > 18 || text.find_first_not_of("0123456789") != std::string::npos) return 0;
  return std::stoll(text);
}

int64_t processors_of(int version, const fs::path& folder) {  // 0: no limit
  std::vector<std::string> numbers;
  if (version == 2) {
    numbers = words(read(folder / "cpu.max"));
  } else {
    for (const char* name : {"cpu.cfs_quota_us", "cpu.cfs_period_us"}) {
      const std::vector<std::string> number = words(read(folder / name));
      if (number.size() == 1) numbers.push_back(number[0]);
    }
  }
  const int64_t quota = numbers.size() == 2 ? count(numbers[0]) : 0, period = quota ? count(numbers[1]) : 0;
  return period ? (quota - 1) / period + 1 : 0;
}

int64_t may_run_on() {
  for (int size = 1024; size <= 1 << 20; size *= 2) {  // the kernel refuses a set that is smaller than its own
    const std::unique_ptr<cpu_set_t, void (*)(cpu_set_t*)> set(CPU_ALLOC(size), [](cpu_set_t* made) { CPU_FREE(made); });
    if (!set) break;
    if (sched_getaffinity(0, CPU_ALLOC_SIZE(size), set.get()) == 0) return CPU_COUNT_S(CPU_ALLOC_SIZE(size), set.get());
    if (errno != EINVAL) break;
  }
  return 1;
}

}  // namespace

int available_processors(const fs::path& root) {
  int64_t most = may_run_on();
  for (const std::string& line : split(read(root / "proc/self/cgroup"), '\n')) {
    const size_t first = line.find(':'), second = first == std::string::npos ? first : line.find(':', first + 1);
    if (second == std::string::npos || second + 1 == line.size()) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1), group = line.substr(second + 1);
    const int version = controllers.empty() ? 2 : 1;
    if (version == 1 && !names_cpu(controllers)) continue;
    for (const auto& [top, mounted] : mounts(root, version)) {
      for (const fs::path& folder : folders(group, top, mounted)) {
        if (const int64_t limit = processors_of(version, folder)) most = std::min(most, limit);
      }
    }
  }
  return static_cast<int>(std::clamp<int64_t>(most, 1, kMost));
}

}  // namespace musiclm
