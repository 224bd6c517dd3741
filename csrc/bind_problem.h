// The Python classes Problem and Solution of both extension modules. They are built from keywords, so each field is
// named once here and once in sce_fast/loss/pack.py.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <string>
#include <tuple>
#include <type_traits>

#include "problem.h"

namespace sce_fast {

namespace py = pybind11;

// (address, type, rows) of a tensor.
using Tensor = std::tuple<uintptr_t, int32_t, int64_t>;

inline Matrix matrix(const Tensor& tensor) {
  const auto [address, type, rows] = tensor;
  return {reinterpret_cast<const void*>(address), static_cast<Type>(type), rows};
}

template <class Value>
Value from_python(py::handle value) {
  if constexpr (std::is_same_v<Value, Matrix>)
    return matrix(value.cast<Tensor>());
  else if constexpr (std::is_pointer_v<Value>)
    return reinterpret_cast<Value>(value.cast<uintptr_t>());
  else if constexpr (std::is_enum_v<Value>)
    return static_cast<Value>(value.cast<int32_t>());
  else
    return value.cast<Value>();
}

template <class Struct, class Value>
struct Field {
  const char* name;
  Value Struct::* member;
  // Interned and never freed: looking up a keyword then makes no string. A call of the loss may take 30 µs in all.
  PyObject* key = PyUnicode_InternFromString(name);

  void read(const py::kwargs& given, Struct& to) const {
    PyObject* value = PyDict_GetItemWithError(given.ptr(), key);
    if (value == nullptr) throw py::type_error("missing field '" + std::string(name) + "'");
    try {
      to.*member = from_python<Value>(value);
    } catch (const py::cast_error&) {
      throw py::type_error("field '" + std::string(name) + "' is " + std::string(py::repr(value)));
    }
  }
};

template <class Struct, class... Values>
void bind_struct(py::module_& m, const char* name, const char* doc, Field<Struct, Values>... fields) {
  py::class_<Struct>(m, name, doc, py::module_local()).def(py::init([fields...](const py::kwargs& given) {
    Struct result;
    (fields.read(given, result), ...);
    if (given.size() != sizeof...(fields))
      throw py::type_error("expected " + std::to_string(sizeof...(fields)) + " fields, got " +
                           std::string(py::repr(given)));
    return result;
  }));
}

template <class Struct, class Value>
Field<Struct, Value> field(const char* name, Value Struct::* member) {
  return {name, member};
}

inline void bind_problem(py::module_& m) {
  bind_struct(m, "Problem", "A call of the loss; see csrc/problem.h. Every field is a required keyword.",
              field("query", &Problem::query), field("key", &Problem::key), field("queue", &Problem::queue),
              field("batch_keys", &Problem::batch_keys), field("query_views", &Problem::query_views),
              field("key_views", &Problem::key_views), field("batch_key_views", &Problem::batch_key_views),
              field("batch", &Problem::batch), field("dim", &Problem::dim), field("row_offset", &Problem::row_offset),
              field("same_views", &Problem::same_views), field("zero_logit", &Problem::zero_logit),
              field("needs_gradient", &Problem::needs_gradient), field("needs_target", &Problem::needs_target),
              field("temperature", &Problem::temperature), field("target_temperature", &Problem::target_temperature),
              field("coefficient", &Problem::coefficient), field("scalars", &Problem::scalars));
  bind_struct(m, "Solution", "Where the results of a call go; see csrc/problem.h. Every field is a required keyword.",
              field("rows", &Solution::rows), field("gradient", &Solution::gradient),
              field("gradient_type", &Solution::gradient_type), field("target_entropy", &Solution::target_entropy),
              field("positive_probability", &Solution::positive_probability), field("mean", &Solution::mean));
}

}  // namespace sce_fast
