// Python binding of the conversion of video frames: checks and allocation.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <string>
#include <vector>

#include "yuv.h"

namespace sce_fast {

namespace py = pybind11;

inline void require_yuv(bool holds, const std::string& message) {
  if (!holds) throw py::value_error("yuv_to_rgb: " + message);
}

inline py::array_t<uint8_t> yuv_to_rgb_array(const std::vector<py::buffer>& planes,
                                             const std::vector<int64_t>& line_bytes, std::array<int64_t, 2> size,
                                             int bits, std::array<int, 2> shifts, double red, double blue,
                                             bool full_range, std::array<int64_t, 4> edges) {
  const auto [height, width] = size;
  const Box box{edges[0], edges[1], edges[2], edges[3]};
  require_yuv(planes.size() == 1 || planes.size() == 3, "expected 1 or 3 planes, got " + std::to_string(planes.size()));
  require_yuv(line_bytes.size() == planes.size(), "expected one line_bytes for each plane");
  require_yuv(bits >= 8 && bits <= 12, "bits is " + std::to_string(bits) + ", expected 8 to 12");
  require_yuv((shifts[0] | shifts[1] | 1) == 1, "shifts must be 0 or 1");
  require_yuv(0 <= box.top && box.top < box.bottom && box.bottom <= height && 0 <= box.left && box.left < box.right &&
                  box.right <= width,
              "the box must be a non-empty part of the frame");
  YuvFrame frame{{}, {}, height, width, bits, shifts[0], shifts[1]};
  std::vector<py::buffer_info> views;
  for (size_t i = 0; i < planes.size(); ++i) {
    views.push_back(planes[i].request());
    const int shift_y = i ? shifts[0] : 0, shift_x = i ? shifts[1] : 0;
    const int64_t rows = (height + shift_y) >> shift_y;
    const int64_t row_bytes = ((width + shift_x) >> shift_x) * (bits > 8 ? 2 : 1);
    require_yuv(line_bytes[i] >= row_bytes && views[i].size * views[i].itemsize >= rows * line_bytes[i],
                "plane " + std::to_string(i) + " is smaller than the frame");
    frame.planes[i] = static_cast<const uint8_t*>(views[i].ptr);
    frame.line_bytes[i] = line_bytes[i];
  }
  py::array_t<uint8_t> rgb(std::vector<py::ssize_t>{box.bottom - box.top, box.right - box.left, 3});
  {
    uint8_t* const to = rgb.mutable_data();
    py::gil_scoped_release release;
    yuv_to_rgb(frame, {red, blue, full_range}, box, to);
  }
  return rgb;
}

inline void bind_yuv(py::module_& m) {
  m.def("yuv_to_rgb", &yuv_to_rgb_array, py::kw_only(), py::arg("planes"), py::arg("line_bytes"), py::arg("size"),
        py::arg("bits"), py::arg("shifts"), py::arg("red"), py::arg("blue"), py::arg("full_range"), py::arg("box"),
        "Return a part of a video frame as RGB (h, w, 3) uint8. planes are buffers of Y, U, V or of Y alone; size is "
        "the frame's height and width; shifts are 1 where U and V have half the rows or columns; red and blue are "
        "their weights in Y; box is top, left, bottom, right.");
}

}  // namespace sce_fast
