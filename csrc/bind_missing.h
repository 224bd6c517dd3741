// What an extension module says of a name that it lacks: most likely it was built before the name came into being.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

namespace sce_fast {

inline void explain_missing(pybind11::module_& m) {
  const auto refuse = [](const std::string& name) -> pybind11::object {
    throw pybind11::attribute_error(
        "the kernels lack '" + name +
        "': they were built from other sources than these; build them again (make venv, or pip install)");
  };
  m.attr("__getattr__") = pybind11::cpp_function(refuse, pybind11::name("__getattr__"));
}

}  // namespace sce_fast
