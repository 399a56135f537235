#include "bindings.hpp"
#include "event_echo.hpp"
#include "grant_address.hpp"
#include "local_hypervisor.hpp"
#ifdef CPP_RING_XEN
#include "xen_hypervisor.hpp"
#endif

namespace cpp_ring::bindings {
namespace {

using HeldShared = Held<SharedPages>;
using HeldMapping = Held<Mapping>;

struct HeldChannels {
    std::unique_ptr<EventChannels> channels;
};

}  // namespace

void register_hypervisor(py::module_& module) {
    py::class_<HeldShared>(module, "SharedPages")
        .def_property_readonly("first_ref", [](const HeldShared& self) { return self.get().first_ref(); })
        .def_property_readonly("pages", [](const HeldShared& self) { return self.get().bytes().size() / page_size; })
        .def_property_readonly("memory",
                               [](const HeldShared& self) { return owned_view(self.get().bytes(), self.pages); })
        .def(
            "address",
            [](const HeldShared& self, std::size_t offset) {
                if (offset >= self.get().bytes().size()) throw py::value_error("the offset is outside the pages");
                return grant_address(self.get().first_ref(), offset);
            },
            py::arg("offset") = 0)
        .def("close", [](HeldShared& self) { self.pages.reset(); });

    py::class_<HeldMapping>(module, "MappedPages")
        .def_property_readonly(
            "memory",
            [](const HeldMapping& self) { return owned_view(self.get().bytes(), self.pages, self.get().writable()); })
        .def("close", [](HeldMapping& self) { self.pages.reset(); });

    py::class_<Hypervisor>(module, "Hypervisor")
        .def_property_readonly("domid", &Hypervisor::domid)
        .def(
            "share",
            [](Hypervisor& self, DomId domid, std::size_t pages, bool writable) {
                const py::gil_scoped_release released;  // the hypervisor's answer may take a while
                return HeldShared{self.share(domid, pages, writable)};
            },
            py::arg("domid"), py::arg("pages"), py::arg("writable") = true, py::keep_alive<0, 1>())
        .def(
            "map",
            [](Hypervisor& self, DomId domid, GrantRef first, std::size_t count, bool writable) {
                const py::gil_scoped_release released;
                return HeldMapping{self.map(domid, first, count, writable)};
            },
            py::arg("domid"), py::arg("first_ref"), py::arg("count"), py::arg("writable") = true,
            py::keep_alive<0, 1>());

    py::class_<LocalHypervisor, Hypervisor>(module, "LocalHypervisor")
        .def(py::init([](const std::string& directory, DomId domid, std::size_t map_budget) {
                 const py::gil_scoped_release released;
                 return std::make_unique<LocalHypervisor>(directory, domid, map_budget);
             }),
             py::arg("directory"), py::arg("domid"), py::arg("map_budget") = default_map_budget);

#ifdef CPP_RING_XEN
    py::class_<XenHypervisor, Hypervisor>(module, "XenHypervisor")
        .def(py::init<DomId, std::size_t>(), py::arg("domid"), py::arg("map_budget") = default_map_budget);
#endif

    py::class_<HeldChannels>(module, "EventChannels")
        .def(py::init([](Hypervisor& hypervisor) { return HeldChannels{hypervisor.open_event_channels()}; }),
             py::arg("hypervisor"), py::keep_alive<1, 2>(), py::call_guard<py::gil_scoped_release>())
        .def("fileno", [](const HeldChannels& self) { return self.channels->fd(); })
        .def(
            "alloc_unbound", [](HeldChannels& self, DomId remote) { return self.channels->alloc_unbound(remote); },
            py::arg("remote"), py::call_guard<py::gil_scoped_release>())
        .def(
            "bind_interdomain",
            [](HeldChannels& self, DomId remote, Port port) { return self.channels->bind_interdomain(remote, port); },
            py::arg("remote"), py::arg("remote_port"), py::call_guard<py::gil_scoped_release>())
        .def(
            "unbind", [](HeldChannels& self, Port port) { self.channels->unbind(port); }, py::arg("port"),
            py::call_guard<py::gil_scoped_release>())
        .def(
            "notify", [](HeldChannels& self, Port port) { self.channels->notify(port); }, py::arg("port"))
        .def("pending", [](HeldChannels& self) { return self.channels->pending(); })
        .def(
            "unmask", [](HeldChannels& self, Port port) { self.channels->unmask(port); }, py::arg("port"))
        .def(
            "echo",
            [](HeldChannels& self, Port port, std::uint64_t count, double patience) {
                return echo_events(*self.channels, port, count, as_duration(patience));
            },
            py::arg("port"), py::arg("count"), py::arg("patience") = 1.0, py::call_guard<py::gil_scoped_release>())
        .def(
            "measure",
            [](HeldChannels& self, Port port, std::uint64_t count, LatencyRecorder& recorder, double patience) {
                return measure_events(*self.channels, port, count, recorder, as_duration(patience));
            },
            py::arg("port"), py::arg("count"), py::arg("recorder"), py::arg("patience") = 1.0,
            py::call_guard<py::gil_scoped_release>());
}

}  // namespace cpp_ring::bindings
