// Python bindings of the CPU kernels: checks, allocation, threads. The kernels themselves do not use Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "../bind_problem.h"
#include "bind_yuv.h"
#include "brgemm.h"
#include "color_jitter.h"
#include "decoder_messages.h"
#include "exponentials.h"
#include "gaussian_blur.h"
#include "solve.h"

namespace py = pybind11;

namespace {

using Image = py::array_t<uint8_t, py::array::c_style>;
template <typename T>
using Rows = py::array_t<T, py::array::c_style>;

void require(bool holds, const std::string& message) {
  if (!holds) throw py::value_error("augment: " + message);
}

// One image of the batch as plain pointers, usable without the interpreter's lock.
struct Task {
  const uint8_t* input;
  uint8_t* output;
  int64_t height, width;
};

void augment_one(const Task& task, const int32_t* operations, const float* factors, int steps, float sigma,
                 bool solarize) {
  const int64_t pixels = task.height * task.width;
  sce_fast::color_jitter(task.input, task.output, pixels, operations, factors, steps);
  if (sigma > 0.f) sce_fast::gaussian_blur(task.output, task.height, task.width, sigma);
  if (solarize)
    for (int64_t i = 0; i < 3 * pixels; ++i) task.output[i] ^= static_cast<uint8_t>(-(task.output[i] >> 7));
}

std::vector<Image> augment(const std::vector<Image>& images, const Rows<int32_t>& operations,
                           const Rows<float>& factors, const Rows<float>& blur_sigma, const Rows<bool>& solarize,
                           int threads) {
  const auto count = static_cast<int64_t>(images.size());
  const std::string n = "N = " + std::to_string(count) + " images";
  require(threads >= 1, "threads is " + std::to_string(threads) + ", expected at least 1");
  require(operations.ndim() == 2 && operations.shape(0) == count, "operations must be (N, S) with " + n);
  require(factors.ndim() == 2 && factors.shape(0) == count && factors.shape(1) == operations.shape(1),
          "factors must have the shape of operations");
  require(blur_sigma.ndim() == 1 && blur_sigma.shape(0) == count, "blur_sigma must be (N,) with " + n);
  require(solarize.ndim() == 1 && solarize.shape(0) == count, "solarize must be (N,) with " + n);
  const int steps = static_cast<int>(operations.shape(1));
  std::vector<Image> outputs;
  std::vector<Task> tasks;
  for (const Image& image : images) {
    require(image.ndim() == 3 && image.shape(2) == 3, "every image must be (H, W, 3) uint8");
    outputs.emplace_back(std::vector<py::ssize_t>{image.shape(0), image.shape(1), 3});
    tasks.push_back({image.data(), outputs.back().mutable_data(), image.shape(0), image.shape(1)});
  }
  {
    const int32_t* operation = operations.data();
    const float *factor = factors.data(), *sigma = blur_sigma.data();
    const bool* inverted = solarize.data();
    py::gil_scoped_release release;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (int64_t i = 0; i < count; ++i)
      augment_one(tasks[i], operation + i * steps, factor + i * steps, steps, sigma[i], inverted[i]);
  }
  return outputs;
}

void solve(const sce_fast::Problem& problem, const sce_fast::Solution& solution, bool brgemm, bool bfloat16,
           int threads) {
  py::gil_scoped_release release;
  sce_fast::solve(problem, solution, {brgemm, bfloat16}, threads);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "CPU kernels of sce_fast.";
  m.def("augment", &augment, py::arg("images"), py::arg("operations"), py::arg("factors"), py::arg("blur_sigma"),
        py::arg("solarize"), py::arg("threads") = 1,
        "Apply colour operations, blur and solarize to N uint8 images (H, W, 3). Image i takes row i of operations and "
        "factors (N, S), blur_sigma[i] in pixels (0 for no blur) and solarize[i].");
  m.def("filter_decoder_messages", &sce_fast::filter_decoder_messages,
        "Print only the first line of each kind that image decoders print; return whether the C library allows it.");
  sce_fast::bind_problem(m);
  sce_fast::bind_yuv(m);
  m.def("solve", &solve, "Compute loss and gradient in one pass over the candidates; called by sce_fast/loss/cpu.py.");
  m.def("vector_instructions", &sce_fast::vector_instructions,
        "Return the name of the vector instructions that the exponentials of the loss use on this processor.");
  m.def("has_brgemm", &sce_fast::has_brgemm, py::arg("bfloat16"),
        "Return whether ATen's brgemm multiplies tiles of float32 or bfloat16 on this processor.");
  m.def(
      "finds_brgemm", [] { return sce_fast::find_brgemm() != nullptr; },
      "Return whether the torch of this process has the brgemm that the kernels know.");
}
