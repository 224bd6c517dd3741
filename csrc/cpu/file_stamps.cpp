#include "file_stamps.h"

#include <sys/stat.h>

#include <algorithm>
#include <atomic>
#include <system_error>
#include <thread>
#include <vector>

namespace sce_fast {
namespace {

constexpr int64_t BLOCK = 64;  // files that a thread takes at a time

void stamp(const std::string& path, int64_t* stamps) {
  struct stat found;
  // A name that holds a zero byte is that of no file, and must not be taken for the name before it.
  const bool is_name = path.find('\0') == std::string::npos;
  const bool is_file = is_name && stat(path.c_str(), &found) == 0 && S_ISREG(found.st_mode) && found.st_size > 0;
  stamps[0] = is_file ? found.st_mtim.tv_sec * int64_t{1'000'000'000} + found.st_mtim.tv_nsec : 0;
  stamps[1] = is_file ? found.st_size : 0;
}

}  // namespace

void file_stamps(const std::string& folder, const char* text, int64_t start, const int64_t* ends, int64_t count,
                 int64_t* stamps, int threads) {
  std::atomic<int64_t> next{0};
  const auto work = [&] {
    std::string path;
    for (int64_t first; (first = next.fetch_add(BLOCK)) < count;) {
      for (int64_t i = first; i < std::min(first + BLOCK, count); ++i) {
        const int64_t begin = i ? ends[i - 1] : start;
        path.clear();
        if (ends[i] == begin || text[begin] != '/') path = folder + '/';
        path.append(text + begin, ends[i] - begin);
        stamp(path, stamps + 2 * i);
      }
    }
  };
  std::vector<std::thread> others;
  try {
    for (int t = 1; t < std::min<int64_t>(threads, (count + BLOCK - 1) / BLOCK); ++t) others.emplace_back(work);
  } catch (const std::system_error&) {  // the limit of threads is reached; those that have started do the work
  }
  work();
  for (std::thread& other : others) other.join();
}

}  // namespace sce_fast
