#include "decoder_messages.h"

#include <pthread.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <iostream>
#include <mutex>
#include <set>
#include <streambuf>
#include <string>

namespace sce_fast {
namespace {

constexpr int STDERR = 2;

void write_all(const char* text, size_t length) {
  while (length > 0) {
    const ssize_t written = ::write(STDERR, text, length);
    if (written < 0 && errno != EINTR) return;
    if (written > 0) text += written, length -= static_cast<size_t>(written);
  }
}

bool is_decoder_thread() {
  char name[16] = "";  // the longest name of a thread
  return pthread_getname_np(pthread_self(), name, sizeof name) == 0 && std::strncmp(name, "[DALI]", 6) == 0;
}

// The line without escape sequences for colours.
std::string plain(const std::string& line) {
  std::string text;
  for (size_t i = 0; i < line.size(); ++i) {
    if (line[i] == '\x1b') {
      while (i + 1 < line.size() && line[i] != 'm') ++i;
    } else {
      text += line[i];
    }
  }
  return text;
}

std::string kind_of(const std::string& text) {
  std::string kind;
  for (const char letter : text)
    if (letter < '0' || letter > '9') kind += letter;
  return kind;
}

void print_if_new(const std::string& line) {
  // Never destroyed: DALI's threads may outlive the destructors at the end of the program.
  static auto& seen = *new std::set<std::string>;
  static auto& guard = *new std::mutex;
  std::string text = plain(line);
  const size_t start = text.find_first_not_of(" \t\r");
  if (start == std::string::npos) return;
  text.erase(0, start);
  const std::lock_guard<std::mutex> lock(guard);
  if (!seen.insert(kind_of(text)).second) return;
  // In a terminal, a progress bar may stand in this line: it draws itself again below.
  const std::string whole = (isatty(STDERR) ? "\r\x1b[K" : "") + ("Image decoder: " + text + "\n");
  write_all(whole.data(), whole.size());
}

// The beginning of a thread's line: decoders print a line in pieces.
struct Line {
  std::string begun;
  void add(const char* text, size_t length) {
    for (; length > 0; ++text, --length) {
      if (*text == '\n') {
        print_if_new(begun);
        begun.clear();
      } else {
        begun += *text;
      }
    }
  }
  ~Line() {
    if (!begun.empty()) print_if_new(begun);
  }
};

void print(const char* text, size_t length) {
  thread_local Line line;
  if (is_decoder_thread())
    line.add(text, length);
  else
    write_all(text, length);
}

ssize_t print_from_c(void*, const char* text, size_t length) {
  print(text, length);
  return static_cast<ssize_t>(length);
}

class Buffer : public std::streambuf {
  std::streamsize xsputn(const char* text, std::streamsize length) override {
    print(text, static_cast<size_t>(length));
    return length;
  }
  int_type overflow(int_type letter) override {
    if (traits_type::eq_int_type(letter, traits_type::eof())) return traits_type::not_eof(letter);
    const char text = traits_type::to_char_type(letter);
    print(&text, 1);
    return letter;
  }
};

bool install() {
#ifdef __GLIBC__
  cookie_io_functions_t functions{};
  functions.write = print_from_c;
  FILE* filtered = fopencookie(nullptr, "w", functions);
  if (filtered == nullptr) return false;
  setvbuf(filtered, nullptr, _IONBF, 0);
  filtered->_fileno = STDERR;  // Python asks for the descriptor of stderr when it reports a fatal error
  stderr = filtered;
  static auto& buffer = *new Buffer;  // never destroyed: cerr may be used at the very end
  std::cerr.rdbuf(&buffer);
  std::clog.rdbuf(&buffer);
  return true;
#else
  return false;
#endif
}

}  // namespace

bool filter_decoder_messages() {
  static const bool installed = install();
  return installed;
}

}  // namespace sce_fast
