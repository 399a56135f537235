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

// The words, and the object of Python's whose memory they are in.
struct HeldPingPong {
    HeldPingPong(const py::buffer& memory, double patience)
        : buffer(memory.request(true)),
          words({static_cast<std::byte*>(buffer.ptr), static_cast<std::size_t>(buffer.size * buffer.itemsize)},
                as_duration(patience)) {}

    py::buffer_info buffer;
    PingPong words;
};

}  // namespace

void register_ping_pong(py::module_& module) {
    module.def("pin_thread", &pin_thread, py::arg("cpu"));
    py::class_<HeldPingPong>(module, "PingPong")
        .def(py::init<const py::buffer&, double>(), py::arg("memory"), py::arg("patience") = 1.0)
        .def(
            "serve",
            [](HeldPingPong& self, std::uint64_t count, int eventfd) { return self.words.serve(count, eventfd); },
            py::arg("count"), py::arg("eventfd") = -1, py::call_guard<py::gil_scoped_release>())
        .def(
            "measure",
            [](HeldPingPong& self, std::uint64_t count, LatencyRecorder& recorder, int eventfd, double pause_us) {
                return self.words.measure(count, recorder, eventfd, pause_us);
            },
            py::arg("count"), py::arg("recorder"), py::arg("eventfd") = -1, py::arg("pause_us") = 100.0,
            py::call_guard<py::gil_scoped_release>());
}

}  // namespace cpp_ring::bindings
