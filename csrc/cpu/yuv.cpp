#include "yuv.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "clones.h"

namespace sce_fast {
namespace {

// Interpolated chroma is 16 times the samples: the weights of two rows and of two columns are 1/4 and 3/4.
constexpr int kChromaScale = 16;
constexpr int kShift = 20;  // of the fixed-point numbers below; sums stay under 2^31 for up to 12 bits

// red = (y · Y + red_v · V + red) >> kShift, and so on, with 16-fold U and V.
struct Coefficients {
  int32_t y, red_v, green_u, green_v, blue_u;
  int32_t red, green, blue;
};

Coefficients coefficients(const YuvColour& colour, int bits) {
  const double unit = std::ldexp(1., bits - 8), top = std::ldexp(1., bits) - 1;
  const double luma_range = colour.full_range ? top : 219 * unit, chroma_range = colour.full_range ? top : 224 * unit;
  const double green = 1 - colour.red - colour.blue;
  const auto fixed = [](double x) { return static_cast<int32_t>(std::lround(std::ldexp(x, kShift))); };
  const auto chroma = [&](double x) { return fixed(2 * 255 * x / (chroma_range * kChromaScale)); };
  Coefficients c{};
  c.y = fixed(255 / luma_range);
  c.red_v = chroma(1 - colour.red);
  c.blue_u = chroma(1 - colour.blue);
  c.green_u = chroma(-(1 - colour.blue) * colour.blue / green);
  c.green_v = chroma(-(1 - colour.red) * colour.red / green);
  const auto middle = static_cast<int32_t>(128 * unit) * kChromaScale;
  const auto black = colour.full_range ? 0 : static_cast<int32_t>(16 * unit);
  const int32_t constant = (1 << (kShift - 1)) - c.y * black;
  c.red = constant - c.red_v * middle;
  c.green = constant - (c.green_u + c.green_v) * middle;
  c.blue = constant - c.blue_u * middle;
  return c;
}

// to[i] = 3 near[i] + far[i]; with near = far four times the sample
template <typename T>
inline void mix_rows(const T* near, const T* far, uint16_t* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<uint16_t>(3 * near[i] + far[i]);
}

SCE_FAST_CLONES void mix_rows_of(const uint8_t* near, const uint8_t* far, uint16_t* to, int64_t count) {
  mix_rows(near, far, to, count);
}

SCE_FAST_CLONES void mix_rows_of(const uint16_t* near, const uint16_t* far, uint16_t* to, int64_t count) {
  mix_rows(near, far, to, count);
}

// to[2i] and to[2i + 1] lie a quarter to the left and to the right of from[i]; from[-1] and from[count] exist.
SCE_FAST_CLONES void double_columns(const uint16_t* from, uint16_t* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    to[2 * i] = static_cast<uint16_t>(3 * from[i] + from[i - 1]);
    to[2 * i + 1] = static_cast<uint16_t>(3 * from[i] + from[i + 1]);
  }
}

SCE_FAST_CLONES void scale_columns(const uint16_t* from, uint16_t* to, int64_t count) {
  for (int64_t i = 0; i < count; ++i) to[i] = static_cast<uint16_t>(4 * from[i]);
}

inline uint8_t clamped(int32_t x) { return static_cast<uint8_t>(std::min(std::max(x >> kShift, 0), 255)); }

template <typename T>
inline void convert(const T* y, const uint16_t* u, const uint16_t* v, Coefficients c, uint8_t* rgb, int64_t count) {
  for (int64_t i = 0; i < count; ++i) {
    const int32_t luma = c.y * y[i];
    rgb[3 * i] = clamped(luma + c.red_v * v[i] + c.red);
    rgb[3 * i + 1] = clamped(luma + c.green_u * u[i] + c.green_v * v[i] + c.green);
    rgb[3 * i + 2] = clamped(luma + c.blue_u * u[i] + c.blue);
  }
}

SCE_FAST_CLONES void convert_row(const uint8_t* y, const uint16_t* u, const uint16_t* v, const Coefficients& c,
                                 uint8_t* rgb, int64_t count) {
  convert(y, u, v, c, rgb, count);
}

SCE_FAST_CLONES void convert_row(const uint16_t* y, const uint16_t* u, const uint16_t* v, const Coefficients& c,
                                 uint8_t* rgb, int64_t count) {
  convert(y, u, v, c, rgb, count);
}

// Interpolates rows of U or V to the columns of a box.
class ChromaRow {
 public:
  ChromaRow(const YuvFrame& frame, const Box& box)
      : shift_y_(frame.shift_y), shift_x_(frame.shift_x), rows_((frame.height + frame.shift_y) >> frame.shift_y),
        columns_((frame.width + frame.shift_x) >> frame.shift_x), first_(box.left >> frame.shift_x),
        count_(((box.right - 1) >> frame.shift_x) + 1 - first_), skipped_(box.left - (first_ << frame.shift_x)),
        mixed_(static_cast<size_t>(count_ + 2)), row_(static_cast<size_t>(count_ << frame.shift_x)) {}

  // Returns the values at row `row` of the frame, from the box's left edge on.
  template <typename T>
  const uint16_t* at(const uint8_t* plane, int64_t line_bytes, int64_t row) {
    const int64_t near = row >> shift_y_;
    const int64_t far = shift_y_ ? std::clamp<int64_t>(near + (row & 1 ? 1 : -1), 0, rows_ - 1) : near;
    const auto line = [&](int64_t r) { return reinterpret_cast<const T*>(plane + r * line_bytes); };
    // with one more column on each side, repeated at the frame's edges
    const int64_t left = std::max<int64_t>(first_ - 1, 0), right = std::min(first_ + count_ + 1, columns_);
    uint16_t* const mixed = mixed_.data();
    mix_rows_of(line(near) + left, line(far) + left, mixed + (left - first_ + 1), right - left);
    if (first_ == 0) mixed[0] = mixed[1];
    if (first_ + count_ == columns_) mixed[count_ + 1] = mixed[count_];
    if (shift_x_)
      double_columns(mixed + 1, row_.data(), count_);
    else
      scale_columns(mixed + 1, row_.data(), count_);
    return row_.data() + skipped_;
  }

 private:
  int shift_y_, shift_x_;
  int64_t rows_, columns_, first_, count_, skipped_;
  std::vector<uint16_t> mixed_, row_;
};

template <typename T>
void convert_box(const YuvFrame& frame, const YuvColour& colour, const Box& box, uint8_t* rgb) {
  const Coefficients c = coefficients(colour, frame.bits);
  const int64_t width = box.right - box.left;
  const bool grey = frame.planes[1] == nullptr;
  ChromaRow u(frame, box), v(frame, box);
  const std::vector<uint16_t> neutral(static_cast<size_t>(grey ? width : 0), (128 << (frame.bits - 8)) * kChromaScale);
  for (int64_t row = box.top; row < box.bottom; ++row, rgb += 3 * width) {
    const auto* y = reinterpret_cast<const T*>(frame.planes[0] + row * frame.line_bytes[0]) + box.left;
    const uint16_t* const us = grey ? neutral.data() : u.at<T>(frame.planes[1], frame.line_bytes[1], row);
    const uint16_t* const vs = grey ? neutral.data() : v.at<T>(frame.planes[2], frame.line_bytes[2], row);
    convert_row(y, us, vs, c, rgb, width);
  }
}

}  // namespace

void yuv_to_rgb(const YuvFrame& frame, const YuvColour& colour, const Box& box, uint8_t* rgb) {
  if (frame.bits == 8)
    convert_box<uint8_t>(frame, colour, box, rgb);
  else
    convert_box<uint16_t>(frame, colour, box, rgb);
}

}  // namespace sce_fast
