// What image decoders print to standard error: one line of each kind instead of one of each file.
#pragma once

namespace sce_fast {

// From now on, of the lines that DALI's threads print through C's stderr or C++'s cerr and clog, print only the first of
// each kind: lines that differ in digits alone are of one kind. Other threads, and whoever writes to descriptor 2
// directly (Python, faulthandler, glibc's abort messages), print as before. Nothing is held back, so nothing is lost in a
// crash. Return whether this C library allows it. Further calls do nothing.
bool filter_decoder_messages();

}  // namespace sce_fast
