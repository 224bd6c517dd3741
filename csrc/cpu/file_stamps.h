// When files were changed and how long they are, for millions of files. No torch header here.
#pragma once

#include <cstdint>
#include <string>

namespace sce_fast {

// Write modification time in nanoseconds and length of `count` files to stamps (count, 2); 0, 0 for an empty file and for
// whatever is no file that can be reached. The name of file i is text[ends[i − 1] : ends[i]], relative to the folder;
// the first one begins at `start`. Threads mostly wait: for the disk or a file server.
void file_stamps(const std::string& folder, const char* text, int64_t start, const int64_t* ends, int64_t count,
                 int64_t* stamps, int threads);

}  // namespace sce_fast
