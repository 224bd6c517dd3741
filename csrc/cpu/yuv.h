// Conversion of a part of a decoded video frame from YUV to RGB. No torch header here.
#pragma once

#include <cstdint>

namespace sce_fast {

// One plane per component, a byte per sample for 8 bits and two bytes (little-endian) for 9 to 12 bits.
struct YuvFrame {
  const uint8_t* planes[3];  // Y, U, V; the last two are null for a grey frame
  int64_t line_bytes[3];     // from one row of a plane to the next
  int64_t height, width;     // of the plane Y
  int bits;
  int shift_y, shift_x;  // 1 if U and V have half the rows or columns, otherwise 0
};

// The weights of red and blue in Y. With `full_range`, Y goes from 0 to 2^bits - 1, otherwise from 16 to 235 in units
// of 2^(bits - 8), and U and V from 16 to 240.
struct YuvColour {
  double red, blue;
  bool full_range;
};

// Part of a frame: rows [top, bottom) and columns [left, right).
struct Box {
  int64_t top, left, bottom, right;
};

// Writes the RGB pixels of a non-empty box, interleaved and without padding. U and V are interpolated linearly and taken
// to lie in the centre of the pixels that they serve, as FFmpeg does by default; pixels outside the box, but within the
// frame, take part in that. Computed in integers and rounded once.
void yuv_to_rgb(const YuvFrame& frame, const YuvColour& colour, const Box& box, uint8_t* rgb);

}  // namespace sce_fast
