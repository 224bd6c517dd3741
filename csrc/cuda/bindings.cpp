// Python bindings of the CUDA kernels, free of torch: device, stream and the interpreter's lock. sce_fast/loss/cuda.py
// checks and allocates the tensors.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>

#include <mutex>
#include <string>
#include <tuple>

#include "../bind_missing.h"
#include "../bind_problem.h"
#include "solve.h"

namespace py = pybind11;

namespace {

using namespace sce_fast;

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(status) + ", " + cudaGetErrorString(status));
}

// Makes `device` the current device of this thread during its lifetime.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : device_(device) {
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (device_ != before_) check(cudaSetDevice(device_), "cudaSetDevice");
  }
  ~DeviceGuard() {
    if (device_ != before_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int device_, before_ = 0;
};

float* floats(uintptr_t address) { return reinterpret_cast<float*>(address); }

void* stream_of(uintptr_t address) { return reinterpret_cast<void*>(address); }

Plan plan_of(const Problem& problem, const std::tuple<int32_t, int32_t, int32_t>& limits, int32_t kernel, int32_t turns,
             int32_t uneven, int32_t clusters) {
  const auto [multiprocessors, shared_bytes, capability] = limits;
  return plan(problem, {multiprocessors, shared_bytes, capability}, static_cast<Kernel>(kernel), 0,
              {static_cast<Choice>(turns), static_cast<Choice>(uneven), static_cast<Choice>(clusters)});
}

void solve_at(const Problem& problem, const Solution& solution, const Plan& plan, uintptr_t workspace, int device,
              uintptr_t stream) {
  // Threads that share a stream share its workspace, so the launches of a call stay together.
  static std::mutex one_at_a_time;
  py::gil_scoped_release release;
  const std::lock_guard lock(one_at_a_time);
  const DeviceGuard guard(device);
  solve(problem, solution, plan, reinterpret_cast<void*>(workspace), stream_of(stream));
}

void enqueue_at(const Tensor& keys, int64_t dim, uintptr_t cursor, const Tensor& rows, bool normalize, int device,
                uintptr_t stream) {
  const auto [address, type, size] = keys;
  if (size < 1 || dim < 1)
    throw py::value_error("keys has shape (" + std::to_string(size) + ", " + std::to_string(dim) +
                          "), expected at least one row of one value");
  const Ring ring{reinterpret_cast<void*>(address), static_cast<Type>(type), size, dim,
                  reinterpret_cast<int64_t*>(cursor)};
  py::gil_scoped_release release;
  const DeviceGuard guard(device);
  enqueue(ring, matrix(rows), normalize, stream_of(stream));
}

void multiply_one_tile_at(const Tensor& rows, const Tensor& candidates, int32_t dim, uintptr_t weights,
                          uintptr_t products, uintptr_t outputs, int device, uintptr_t stream) {
  py::gil_scoped_release release;
  const DeviceGuard guard(device);
  multiply_one_tile(matrix(rows), matrix(candidates), dim, reinterpret_cast<const void*>(weights), floats(products),
                    floats(outputs), stream_of(stream));
}

std::tuple<int32_t, int32_t, int32_t> limits(int device) {
  const auto ask = [&](cudaDeviceAttr attribute) {
    int value = 0;
    check(cudaDeviceGetAttribute(&value, attribute, device), "cudaDeviceGetAttribute");
    return value;
  };
  return {ask(cudaDevAttrMultiProcessorCount), ask(cudaDevAttrMaxSharedMemoryPerBlockOptin),
          ask(cudaDevAttrComputeCapabilityMajor) * 10 + ask(cudaDevAttrComputeCapabilityMinor)};
}

template <class Shape>
py::dict describe(const PassPlan& pass, const Shape& c, int32_t block_rows) {
  py::dict result;
  result["dim"] = c.dim, result["block_rows"] = block_rows, result["tile"] = c.tile, result["stages"] = c.stages;
  result["shared_bytes"] = c.shared_bytes(), result["splits"] = pass.splits, result["rows"] = pass.rows;
  result["views"] = pass.views, result["blocks"] = pass.blocks, result["cluster"] = pass.cluster;
  return result;
}

py::dict describe(const Plan& plan, const PassPlan& pass) {
  if (plan.kernel == Kernel::kSm90) return describe(pass, kHopperConfigs[pass.config], kHopperRows);
  return describe(pass, kConfigs[pass.config], kConfigs[pass.config].rows);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of sce_fast; called by sce_fast/loss/cuda.py.";
  m.attr("architectures") = SCE_FAST_ARCHITECTURES;
  m.attr("cuda_version") = std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  explain_missing(m);
  bind_problem(m);
  py::class_<Plan>(m, "Plan", "How a problem is cut into launches.")
      .def_property_readonly("kernel", [](const Plan& p) { return p.kernel == Kernel::kSm90 ? "sm90" : "sm80"; })
      .def_readonly("workspace_bytes", &Plan::workspace_bytes)
      .def_readonly("fixed_shift", &Plan::fixed_shift)
      .def_readonly("turns", &Plan::turns)
      .def_property_readonly("shared", [](const Plan& p) { return describe(p, p.shared); })
      .def_property_readonly("per_view", [](const Plan& p) { return describe(p, p.per_view); });
  m.def("plan", &plan_of, py::arg("problem"), py::arg("limits"), py::arg("kernel"), py::arg("turns") = -1,
        py::arg("uneven") = -1, py::arg("clusters") = -1,
        "Cut a problem for a GPU of these limits; needs no GPU. Choices are 0 or 1, or -1 for the default.");
  m.def("solve", &solve_at, "Launch the kernels that compute loss and gradient.");
  m.def("enqueue", &enqueue_at, "Write the newest rows into the ring of past keys.");
  m.def("sm90_tile", &sm90_tile, "Return the number of candidates in a tile of the Hopper kernel.");
  m.def("multiply_one_tile", &multiply_one_tile_at, "Compute the two products of one step of the Hopper kernel.");
  m.def("limits", &limits,
        "Return multiprocessors, bytes of shared memory that a block may request, compute capability (90 for 9.0).");
  m.def("choose_splits", &choose_splits, py::arg("blocks"), py::arg("tiles"), py::arg("resident"),
        "Return into how many parts the tiles of candidates are cut.");
}
