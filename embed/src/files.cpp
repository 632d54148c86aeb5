// See files.h; runtime/bundle.py's fault_of_file is the reference. A manifest from elsewhere must not make anybody learn the size or the
// hash of a file outside its folder: a link may leave it, but only to the very file that the manifest describes.
#include "files.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <exception>
#include <memory>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "container.h"
#include "json_text.h"
#include "sha256.h"
#include "signals.h"

namespace fs = std::filesystem;

namespace musiclm {

namespace {

constexpr size_t kPiece = size_t{1} << 18;  // bytes that are read together

class File {  // open for reading
 public:
  explicit File(const fs::path& path) : descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (descriptor_ < 0) throw std::system_error(errno, std::generic_category());
  }
  ~File() { ::close(descriptor_); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;

  size_t read(void* to, size_t bytes) {
    ssize_t got;
    do got = ::read(descriptor_, to, bytes);
    while (got < 0 && errno == EINTR);
    if (got < 0) throw std::system_error(errno, std::generic_category());
    return static_cast<size_t>(got);
  }

 private:
  const int descriptor_;
};

// Of at most `bytes` bytes: a file that grows meanwhile has another hash anyway.
std::string hash_of(const fs::path& path, uint64_t bytes) {
  File file(path);
  Sha256 hash;
  const std::unique_ptr<char[]> piece(new char[kPiece]);
  while (bytes > 0) {
    const size_t got = file.read(piece.get(), static_cast<size_t>(std::min<uint64_t>(bytes, kPiece)));
    if (got == 0) break;
    hash.update(piece.get(), got);
    bytes -= got;
  }
  return hash.hex();
}

// Git leaves a text that begins so in place of a file that its extension LFS has not fetched.
bool is_lfs_pointer(const fs::path& path) {
  const std::string mark = "version https://git-lfs";
  std::string begin(mark.size(), '\0');
  begin.resize(File(path).read(begin.data(), begin.size()));
  return begin == mark;
}

bool is_within(const fs::path& path, const fs::path& folder) {  // both without links
  return std::mismatch(folder.begin(), folder.end(), path.begin(), path.end()).first == folder.end();
}

// Empty if nothing is wrong. May throw the standard library's errors, which name what the system says.
std::string fault_of(const fs::path& root, const std::string& name, const FileRecord& record) {
  if (name.find('\0') != std::string::npos) return "embedded null byte";
  const fs::path relative = name;
  if (relative.is_absolute() || std::find(relative.begin(), relative.end(), "..") != relative.end()) return "this path leaves the bundle";
  const fs::path path = root / relative;
  struct stat found;
  if (::stat(path.c_str(), &found) != 0) {
    if (errno != ENOENT && errno != ENOTDIR && errno != ELOOP) return system_message(errno);
    found.st_mode = 0;
  }
  if (!S_ISREG(found.st_mode)) {
    std::error_code none;
    const fs::path leads_to = fs::read_symlink(path, none);
    return none ? "the file is missing" : "it is a link to " + leads_to.string() + ", where there is no file";
  }
  const auto bytes = static_cast<uint64_t>(found.st_size);
  if (bytes == record.bytes && hash_of(path, bytes) == record.sha256) return {};
  if (!is_within(fs::canonical(path), fs::canonical(root))) {
    return "it is a link that leaves the bundle, to another file than the manifest describes";
  }
  if (bytes == record.bytes) return "its content was changed after the export (SHA-256 differs)";
  if (is_lfs_pointer(path)) return "a pointer of Git LFS, in place of the file itself. Fetch it with: git lfs pull.";
  return std::to_string(bytes) + " bytes, the manifest says " + std::to_string(record.bytes) + ": it was cut short or changed";
}

}  // namespace

std::string system_message(int number) { return std::error_code(number, std::generic_category()).message(); }

bool Identity::operator==(const Identity& other) const {
  return device == other.device && inode == other.inode && bytes == other.bytes && changed_s == other.changed_s && changed_ns == other.changed_ns;
}

std::optional<Identity> identity_of(const fs::path& path) {
  struct stat found;
  if (::stat(path.c_str(), &found) != 0) return std::nullopt;
  return Identity{found.st_dev, found.st_ino, static_cast<uint64_t>(found.st_size), found.st_mtim.tv_sec, found.st_mtim.tv_nsec};
}

void check_files(const fs::path& root, const std::map<std::string, FileRecord>& files, Faults& faults) {
  struct Job {
    const std::string& name;
    const FileRecord& record;
    std::string fault;
  };
  std::vector<Job> jobs;
  for (const auto& [name, record] : files) jobs.push_back({name, record, {}});
  // The largest first: one that begins last would be waited for alone.
  std::vector<Job*> order;
  for (Job& job : jobs) order.push_back(&job);
  std::stable_sort(order.begin(), order.end(), [](const Job* a, const Job* b) { return a->record.bytes > b->record.bytes; });

  std::atomic<size_t> next{0};
  std::mutex failing;
  std::exception_ptr failure;  // of any thread: out of a thread nothing may be thrown
  const auto work = [&] {
    try {
      for (size_t i; (i = next++) < order.size();) {
        try {
          order[i]->fault = fault_of(root, order[i]->name, order[i]->record);
        } catch (const std::system_error& error) {  // of the file system, too
          order[i]->fault = error.code().message();
        }
      }
    } catch (...) {
      std::lock_guard<std::mutex> lock(failing);
      failure = std::current_exception();
    }
  };
  std::vector<std::thread> threads;
  const size_t most = std::min<size_t>(available_processors(), order.size());
  threads.reserve(most);
  try {
    const SignalsBlocked in_the_threads;
    while (threads.size() + 1 < most) threads.emplace_back(work);
  } catch (const std::exception&) {  // no more threads, or no memory for one: those that there are do it, at least this one
  }
  work();
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
  for (const Job& job : jobs) {
    if (!job.fault.empty()) faults.note(python_repr(job.name) + ": " + job.fault);
  }
}

}  // namespace musiclm
