// Python face of the CUDA kernels, free of torch: device, stream and the interpreter's lock. Checks of tensors and
// allocation are in sce_fast/native_cuda.py.
#include <cuda_runtime_api.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>

#include "solve.h"

namespace py = pybind11;

namespace {

using namespace sce_fast;

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorName(status) + ", " + cudaGetErrorString(status));
}

// The current device of this thread is `device` as long as this lives.
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

// (address, type, rows) of a tensor.
using Tensor = std::tuple<uintptr_t, int32_t, int64_t>;

Matrix matrix(const Tensor& t) {
  return {reinterpret_cast<const void*>(std::get<0>(t)), static_cast<Type>(std::get<1>(t)), std::get<2>(t)};
}

float* floats(uintptr_t address) { return reinterpret_cast<float*>(address); }

void* stream_of(uintptr_t address) { return reinterpret_cast<void*>(address); }

// A problem and how it is cut; made without a GPU.
struct Call {
  CudaProblem problem{};
  Plan plan;

  Call(const Tensor& query, const Tensor& key, const Tensor& queue, const Tensor& batch_keys,
       const std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>& sizes, int64_t row_offset, bool same_views,
       bool zero_logit, bool needs_target, const std::tuple<float, float, float>& numbers, uintptr_t scalars,
       const std::tuple<int32_t, int32_t, int32_t>& limits, int32_t kernel) {
    CudaProblem& p = problem;
    p.query = matrix(query), p.key = matrix(key), p.queue = matrix(queue), p.batch_keys = matrix(batch_keys);
    std::tie(p.query_views, p.key_views, p.batch, p.dim, p.batch_key_views) = sizes;
    p.row_offset = row_offset;
    p.same_views = same_views, p.zero_logit = zero_logit, p.needs_target = needs_target;
    std::tie(p.temperature, p.target_temperature, p.coefficient) = numbers;
    p.scalars = floats(scalars);
    for (const auto& [m, name] : {std::pair{p.query, "query"}, std::pair{p.key, "key"}, std::pair{p.queue, "queue"},
                                  std::pair{p.batch_keys, "batch_keys"}})
      if (reinterpret_cast<uintptr_t>(m.data) % 16 != 0)
        throw py::value_error(std::string(name) + " starts at an address that is no multiple of 16 bytes");
    const auto [multiprocessors, shared_bytes, capability] = limits;
    plan = make_plan(p, {multiprocessors, shared_bytes, capability}, static_cast<Kernel>(kernel));
  }

  void solve(uintptr_t rows, uintptr_t gradient, uintptr_t target_entropy, uintptr_t positive_probability,
             uintptr_t workspace, int device, uintptr_t stream) const {
    py::gil_scoped_release release;
    const DeviceGuard guard(device);
    sce_solve(problem,
              {floats(rows), reinterpret_cast<void*>(gradient), floats(target_entropy), floats(positive_probability)},
              plan, reinterpret_cast<void*>(workspace), stream_of(stream));
  }
};

void enqueue_rows(const Tensor& keys, int64_t dim, uintptr_t cursor, const Tensor& rows, bool normalize, int device,
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
  result["views"] = pass.views;
  return result;
}

py::dict describe(const Plan& plan, const PassPlan& pass) {
  if (plan.kernel == Kernel::kSm90) return describe(pass, kHopperConfigs[pass.config], kHopperRows);
  return describe(pass, kConfigs[pass.config], kConfigs[pass.config].rows);
}

}  // namespace

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of sce_fast; called by sce_fast/native_cuda.py alone.";
  m.attr("architectures") = SCE_FAST_ARCHITECTURES;
  m.attr("cuda_version") = std::to_string(CUDART_VERSION / 1000) + "." + std::to_string(CUDART_VERSION % 1000 / 10);
  py::class_<Call>(m, "Call", "Loss and gradient of one problem, and how the work is cut.")
      .def(py::init<const Tensor&, const Tensor&, const Tensor&, const Tensor&,
                    const std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>&, int64_t, bool, bool, bool,
                    const std::tuple<float, float, float>&, uintptr_t, const std::tuple<int32_t, int32_t, int32_t>&,
                    int32_t>())
      .def_property_readonly("kernel",
                             [](const Call& call) { return call.plan.kernel == Kernel::kSm90 ? "sm90" : "sm80"; })
      .def_property_readonly("workspace_bytes", [](const Call& call) { return call.plan.workspace_bytes; })
      .def_property_readonly("fixed_shift", [](const Call& call) { return call.plan.fixed_shift; })
      .def_property_readonly("shared", [](const Call& call) { return describe(call.plan, call.plan.shared); })
      .def_property_readonly("per_view", [](const Call& call) { return describe(call.plan, call.plan.per_view); })
      .def("solve", &Call::solve);
  m.def("enqueue", &enqueue_rows, "Newest rows into the ring of past keys.");
  m.def("sm90_tile", &sm90_tile, "Candidates in a tile of the Hopper kernel for rows of so many values.");
  m.def("multiply_one_tile", &multiply_one_tile_at, "The two products of one step of the Hopper kernel, each alone.");
  m.def("limits", &limits,
        "Multiprocessors, bytes of shared memory that a block may ask for, compute capability (90 for 9.0).");
  m.def("choose_splits", &choose_splits, py::arg("blocks"), py::arg("tiles"), py::arg("resident"),
        "Into how many parts the tiles of candidates are cut.");
}
