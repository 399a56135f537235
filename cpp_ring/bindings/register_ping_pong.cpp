#include <sched.h>

#include <cerrno>

#include "bindings.hpp"
#include "ping_pong.hpp"

namespace cpp_ring::bindings {
namespace {

void pin_thread(int cpu) {
    cpu_set_t set;
    CPU_ZERO(&set);
    if (cpu < 0 || cpu >= CPU_SETSIZE) throw HostError(EINVAL, "cannot pin to CPU " + std::to_string(cpu));
    CPU_SET(static_cast<unsigned>(cpu), &set);
    if (::sched_setaffinity(0, sizeof set, &set) != 0)
        throw HostError(errno, "cannot pin to CPU " + std::to_string(cpu));
}

}  // namespace

void register_ping_pong(py::module_& module) {
    module.def("pin_thread", &pin_thread, py::arg("cpu"));
    py::class_<PingPong>(module, "PingPong")
        .def(py::init<int>(), py::arg("fd"))
        .def("serve", &PingPong::serve, py::arg("count"), py::arg("eventfd") = -1,
             py::call_guard<py::gil_scoped_release>())
        .def("measure", &PingPong::measure, py::arg("count"), py::arg("recorder"), py::arg("eventfd") = -1,
             py::arg("pause_us") = 100.0, py::call_guard<py::gil_scoped_release>());
}

}  // namespace cpp_ring::bindings
