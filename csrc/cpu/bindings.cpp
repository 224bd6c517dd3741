// Python bindings of the CPU kernels: checks, allocation, threads. The kernels themselves do not use Python.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <vector>

#include "../bind_missing.h"
#include "../bind_problem.h"
#include "bind_yuv.h"
#include "brgemm.h"
#include "color_jitter.h"
#include "decoder_messages.h"
#include "exponentials.h"
#include "file_stamps.h"
#include "gaussian_blur.h"
#include "philox.h"
#include "solve.h"
#include "temporal_difference.h"

namespace py = pybind11;

namespace {

using Pixels = py::array_t<uint8_t, py::array::c_style>;
template <typename T>
using Rows = py::array_t<T, py::array::c_style>;

void require(bool holds, const std::string& message) {
  if (!holds) throw py::value_error(message);
}

// One frame of the batch as plain pointers, usable without the interpreter's lock. An image is a clip of one frame.
struct Task {
  const uint8_t* input;
  uint8_t* output;
  int64_t height, width;
  int64_t sample;  // whose parameters the frame takes
};

void augment_one(const Task& task, const int32_t* operations, const float* factors, int steps, float sigma,
                 bool solarize) {
  const int64_t pixels = task.height * task.width;
  sce_fast::color_jitter(task.input, task.output, pixels, operations, factors, steps);
  if (sigma > 0.f) sce_fast::gaussian_blur(task.output, task.height, task.width, sigma);
  if (solarize)
    for (int64_t i = 0; i < 3 * pixels; ++i) task.output[i] ^= static_cast<uint8_t>(-(task.output[i] >> 7));
}

std::vector<Pixels> augment(const std::vector<Pixels>& images, const Rows<int32_t>& operations,
                            const Rows<float>& factors, const Rows<float>& blur_sigma, const Rows<bool>& solarize,
                            int threads) {
  const auto count = static_cast<int64_t>(images.size());
  const std::string n = "N = " + std::to_string(count) + " images";
  require(threads >= 1, "augment: threads is " + std::to_string(threads) + ", expected at least 1");
  require(operations.ndim() == 2 && operations.shape(0) == count, "augment: operations must be (N, S) with " + n);
  require(factors.ndim() == 2 && factors.shape(0) == count && factors.shape(1) == operations.shape(1),
          "augment: factors must have the shape of operations");
  require(blur_sigma.ndim() == 1 && blur_sigma.shape(0) == count, "augment: blur_sigma must be (N,) with " + n);
  require(solarize.ndim() == 1 && solarize.shape(0) == count, "augment: solarize must be (N,) with " + n);
  const int steps = static_cast<int>(operations.shape(1));
  std::vector<Pixels> outputs;
  std::vector<Task> tasks;
  for (int64_t i = 0; i < count; ++i) {
    const Pixels& image = images[i];
    const py::ssize_t rank = image.ndim();
    require((rank == 3 || rank == 4) && image.shape(rank - 1) == 3,
            "augment: every image must be (H, W, 3) uint8, every clip (F, H, W, 3) uint8");
    outputs.emplace_back(std::vector<py::ssize_t>(image.shape(), image.shape() + rank));
    const int64_t frames = rank == 4 ? image.shape(0) : 1;
    const int64_t height = image.shape(rank - 3), width = image.shape(rank - 2);
    for (int64_t f = 0; f < frames; ++f) {
      const int64_t offset = f * height * width * 3;
      tasks.push_back({image.data() + offset, outputs.back().mutable_data() + offset, height, width, i});
    }
  }
  {
    const int32_t* operation = operations.data();
    const float *factor = factors.data(), *sigma = blur_sigma.data();
    const bool* inverted = solarize.data();
    const auto frames = static_cast<int64_t>(tasks.size());
    py::gil_scoped_release release;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (int64_t t = 0; t < frames; ++t) {
      const int64_t i = tasks[t].sample;
      augment_one(tasks[t], operation + i * steps, factor + i * steps, steps, sigma[i], inverted[i]);
    }
  }
  return outputs;
}

std::vector<Pixels> temporal_difference(const std::vector<Pixels>& clips, int threads) {
  require(threads >= 1, "temporal_difference: threads is " + std::to_string(threads) + ", expected at least 1");
  struct Pair {
    const uint8_t *frame, *neighbour;
    uint8_t* output;
    int64_t pixels;
  };
  std::vector<Pixels> outputs;
  std::vector<Pair> pairs;
  for (const Pixels& clip : clips) {
    require(clip.ndim() == 4 && clip.shape(0) % 2 == 0 && clip.shape(3) == 3,
            "temporal_difference: every clip must be (2F, H, W, 3) uint8");
    const int64_t frames = clip.shape(0) / 2, pixels = clip.shape(1) * clip.shape(2);
    outputs.emplace_back(std::vector<py::ssize_t>{frames, clip.shape(1), clip.shape(2), 3});
    const uint8_t *frame = clip.data(), *neighbour = frame + frames * pixels * 3;
    uint8_t* output = outputs.back().mutable_data();
    for (int64_t offset = 0; offset < frames * pixels * 3; offset += pixels * 3)
      pairs.push_back({frame + offset, neighbour + offset, output + offset, pixels});
  }
  {
    const auto count = static_cast<int64_t>(pairs.size());
    py::gil_scoped_release release;
#pragma omp parallel for num_threads(threads) schedule(dynamic) if (threads > 1)
    for (int64_t i = 0; i < count; ++i)
      sce_fast::temporal_difference(pairs[i].frame, pairs[i].neighbour, pairs[i].output, pairs[i].pixels);
  }
  return outputs;
}

Rows<int64_t> file_stamps(const std::string& folder, const Pixels& text, int64_t start, const Rows<int64_t>& ends,
                          int threads) {
  require(threads >= 1, "file_stamps: threads is " + std::to_string(threads) + ", expected at least 1");
  require(text.ndim() == 1 && ends.ndim() == 1, "file_stamps: text and ends must have one dimension");
  const py::ssize_t count = ends.shape(0);
  int64_t before = start;
  for (py::ssize_t i = 0; i < count; before = ends.data()[i++])
    require(0 <= before && before <= ends.data()[i] && ends.data()[i] <= text.size(),
            "file_stamps: ends must rise from start to the length of text");
  Rows<int64_t> stamps({count, py::ssize_t{2}});
  const char* names = reinterpret_cast<const char*>(text.data());
  const int64_t* stops = ends.data();
  int64_t* output = stamps.mutable_data();
  {
    py::gil_scoped_release release;
    sce_fast::file_stamps(folder, names, start, stops, count, output, threads);
  }
  return stamps;
}

Rows<uint64_t> random_words(uint64_t seed, uint64_t epoch, const Rows<int64_t>& samples, const Rows<int64_t>& views,
                            const Rows<int64_t>& purposes, const Rows<int64_t>& numbers) {
  const int64_t count = samples.size(), blocks = purposes.size();
  require(views.size() == 1 || views.size() == count, "random_words: views must be one number, or one for each sample");
  require(numbers.size() == blocks, "random_words: expected one number for each of the purposes");
  Rows<uint64_t> words({2 * blocks, count});
  const int64_t *sample = samples.data(), *view = views.data(), *purpose = purposes.data(), *number = numbers.data();
  uint64_t* first = words.mutable_data();
  py::gil_scoped_release release;
  for (int64_t b = 0; b < blocks; ++b, first += 2 * count) {
    const sce_fast::RandomBlock block{static_cast<uint32_t>(seed), static_cast<uint32_t>(epoch),
                                      static_cast<uint32_t>(purpose[b]), static_cast<uint32_t>(number[b])};
    sce_fast::random_words(block, sample, view, views.size() > 1, count, first, first + count);
  }
  return words;
}

void solve(const sce_fast::Problem& problem, const sce_fast::Solution& solution, bool brgemm, bool bfloat16,
           int threads) {
  py::gil_scoped_release release;
  sce_fast::solve(problem, solution, {brgemm, bfloat16}, threads);
}

// A call of the mean like an earlier one, whose Problem has other addresses of query, key and queue alone. It takes
// numbers by position and its own memory for the statistics, since a call for a few rows takes little longer than these.
void solve_mean_again(const sce_fast::Problem& known, uintptr_t query, uintptr_t key, uintptr_t queue, uintptr_t mean,
                      uintptr_t gradient, bool brgemm, bool bfloat16, int threads) {
  py::gil_scoped_release release;
  sce_fast::Problem problem = known;
  problem.query.data = reinterpret_cast<const void*>(query);
  problem.key.data = reinterpret_cast<const void*>(key);
  problem.queue.data = reinterpret_cast<const void*>(queue);
  std::vector<float> statistics((2 + problem.key_views) * problem.batch);
  sce_fast::Solution solution;
  solution.rows = statistics.data();
  solution.positive_probability = solution.rows + problem.batch;
  solution.target_entropy = solution.positive_probability + problem.batch;
  solution.gradient = reinterpret_cast<void*>(gradient);
  solution.mean = reinterpret_cast<float*>(mean);
  sce_fast::solve(problem, solution, {brgemm, bfloat16}, threads);
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "CPU kernels of sce_fast.";
  m.def("augment", &augment, py::arg("images"), py::arg("operations"), py::arg("factors"), py::arg("blur_sigma"),
        py::arg("solarize"), py::arg("threads") = 1,
        "Apply colour operations, blur and solarize to N uint8 images (H, W, 3) or clips (F, H, W, 3). Image or clip i "
        "takes row i of operations and factors (N, S), blur_sigma[i] in pixels (0 for no blur) and solarize[i]. Each "
        "frame of a clip becomes what it would become as an image.");
  m.def("temporal_difference", &temporal_difference, py::arg("clips"), py::arg("threads") = 1,
        "Turn uint8 clips (2F, H, W, 3), F frames and then the frame to subtract from each, into (F, H, W, 3).");
  m.def("filter_decoder_messages", &sce_fast::filter_decoder_messages,
        "Print only the first line of each kind that image decoders print; return whether the C library allows it.");
  m.def("file_stamps", &file_stamps, py::arg("folder"), py::arg("text"), py::arg("start"), py::arg("ends"),
        py::arg("threads"), "Return modification time and length (n, 2) of files; see file_stamps.h.");
  m.def("random_words", &random_words, py::arg("seed"), py::arg("epoch"), py::arg("samples"), py::arg("views"),
        py::arg("purposes"), py::arg("numbers"),
        "Return random words (2B, N) for N samples and B blocks; called by sce_fast/util/philox.py.");
  sce_fast::explain_missing(m);
  sce_fast::bind_problem(m);
  sce_fast::bind_yuv(m);
  m.def("solve", &solve, "Compute loss and gradient in one pass over the candidates; called by sce_fast/loss/cpu.py.");
  m.def("solve_mean_again", &solve_mean_again,
        "Compute mean and gradient of a known Problem for other addresses of query, key and queue; called by "
        "sce_fast/loss/repeat.py.");
  m.def("vector_instructions", &sce_fast::vector_instructions,
        "Return the name of the vector instructions that the exponentials of the loss use on this processor.");
  m.def("has_brgemm", &sce_fast::has_brgemm, py::arg("bfloat16"),
        "Return whether ATen's brgemm multiplies tiles of float32 or bfloat16 on this processor.");
  m.def(
      "finds_brgemm", [] { return sce_fast::find_brgemm() != nullptr; },
      "Return whether the torch of this process has the brgemm that the kernels know.");
  m.def("has_amx", &sce_fast::has_amx, "Return whether this processor offers AMX tiles of bfloat16.");
  m.def("is_amd", &sce_fast::is_amd, "Return whether AMD made this processor.");
}
