// cpp_ring._vchan. A module of its own: the library's file name changes with every release of Xen, and the engine must
// load where it has another one or none.
#include <cerrno>

#include "bindings.hpp"
#include "vchan.hpp"

PYBIND11_MODULE(_vchan, module) {
    using namespace cpp_ring;
    using namespace cpp_ring::bindings;

    py::module_::import("cpp_ring._core");  // has LatencyRecorder
    py::register_local_exception_translator([](std::exception_ptr thrown) {
        try {
            std::rethrow_exception(thrown);
        } catch (const HostError& error) {
            py::set_error(PyExc_OSError, py::make_tuple(error.error(), error.what()));
        }
    });
    py::class_<Vchan>(module, "Vchan")
        .def_static("offer", &Vchan::offer, py::arg("peer"), py::arg("path"), py::call_guard<py::gil_scoped_release>())
        .def_static("join", &Vchan::join, py::arg("peer"), py::arg("path"), py::call_guard<py::gil_scoped_release>())
        .def(
            "echo",
            [](Vchan& self, std::uint64_t count, bool asleep, double patience) {
                return self.echo(count, asleep, as_duration(patience));
            },
            py::arg("count"), py::arg("asleep"), py::arg("patience"), py::call_guard<py::gil_scoped_release>())
        .def(
            "measure",
            [](Vchan& self, std::uint64_t count, bool asleep, LatencyRecorder& recorder, double patience) {
                return self.measure(count, asleep, recorder, as_duration(patience));
            },
            py::arg("count"), py::arg("asleep"), py::arg("recorder"), py::arg("patience"),
            py::call_guard<py::gil_scoped_release>());
}
