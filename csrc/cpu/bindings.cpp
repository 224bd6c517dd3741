// Python face of the CPU kernels: checks, allocation, threads. The kernels themselves know neither Python nor torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "color_jitter.h"

namespace py = pybind11;

namespace {

using Image = py::array_t<uint8_t, py::array::c_style>;
template <typename T>
using Rows = py::array_t<T, py::array::c_style>;

void require(bool holds, const std::string& message) {
  if (!holds) throw py::value_error("color_jitter: " + message);
}

std::vector<Image> color_jitter(const std::vector<Image>& images, const Rows<int32_t>& operations,
                                const Rows<float>& factors, int threads) {
  const auto count = static_cast<int64_t>(images.size());
  require(threads >= 1, "threads is " + std::to_string(threads) + ", expected at least 1");
  require(operations.ndim() == 2 && operations.shape(0) == count,
          "operations must be (N, S) with N = " + std::to_string(count) + " images");
  require(factors.ndim() == 2 && factors.shape(0) == count && factors.shape(1) == operations.shape(1),
          "factors must have the shape of operations");
  const int steps = static_cast<int>(operations.shape(1));
  std::vector<Image> outputs;
  std::vector<const uint8_t*> from;
  std::vector<uint8_t*> to;
  std::vector<int64_t> pixels;
  for (const Image& image : images) {
    require(image.ndim() == 3 && image.shape(2) == 3, "every image must be (H, W, 3) uint8");
    outputs.emplace_back(std::vector<py::ssize_t>{image.shape(0), image.shape(1), 3});
    from.push_back(image.data());
    to.push_back(outputs.back().mutable_data());
    pixels.push_back(image.shape(0) * image.shape(1));
  }
  {
    const int32_t* operation = operations.data();
    const float* factor = factors.data();
    py::gil_scoped_release release;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (int64_t i = 0; i < count; ++i)
      sce_fast::color_jitter(from[i], to[i], pixels[i], operation + i * steps, factor + i * steps, steps);
  }
  return outputs;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "CPU kernels of sce_fast.";
  m.def("color_jitter", &color_jitter, py::arg("images"), py::arg("operations"), py::arg("factors"),
        py::arg("threads") = 1,
        "Colour operations on a list of (H, W, 3) uint8 images, one row of (N, S) operations and factors each.");
}
