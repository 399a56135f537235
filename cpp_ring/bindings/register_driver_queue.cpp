#include <chrono>

#include "bindings.hpp"
#include "driver_queue.hpp"

namespace cpp_ring::bindings {
namespace {

using Piece = SplitQueueDriver::Piece;
using Pieces = std::vector<std::pair<std::uint64_t, std::uint32_t>>;

std::vector<Piece> pieces_of(const Pieces& pairs) {
    std::vector<Piece> pieces;
    pieces.reserve(pairs.size());
    for (const auto& [address, size] : pairs) pieces.push_back({address, size});
    return pieces;
}

[[noreturn]] void raise_lie(std::uint64_t index) { raise_channel_error({VMSG_XEN_DESC_IN_FLIGHT, index}); }

// A DriverQueue and the number of the virtqueue it serves.
struct IndexedQueue {
    std::uint32_t index;
    std::unique_ptr<DriverQueue> queue;
};

std::uint64_t low_features(const py::int_& features) {
    const auto blocks = feature_blocks(features);
    return blocks[0] | std::uint64_t{blocks[1]} << 32;
}

std::uint16_t add(IndexedQueue& self, const Pieces& readable, const Pieces& writable) {
    const auto head = self.queue->ring().add(pieces_of(readable), pieces_of(writable));
    if (!head) raise_queue_full();
    return *head;
}

std::optional<std::pair<std::uint16_t, std::uint32_t>> pop(IndexedQueue& self) {
    SplitQueueDriver::Used used{};
    bool lied = false;
    const bool found = self.queue->ring().pop(used, lied);
    if (lied) raise_lie(self.index);
    if (!found) return std::nullopt;
    return std::pair{used.head, used.written};
}

bool wait(IndexedQueue& self, double timeout) {
    bool got = false;
    {
        const py::gil_scoped_release released;
        got = self.queue->wait(as_duration(timeout));
    }
    if (PyErr_CheckSignals() != 0) throw py::error_already_set();
    return got;
}

void measure(IndexedQueue& self, const Pieces& readable, const Pieces& writable, std::uint64_t count,
             LatencyRecorder& recorder) {
    const auto in = pieces_of(readable);
    const auto out = pieces_of(writable);
    bool lied = false;
    Wait result;
    {
        const py::gil_scoped_release released;
        result = self.queue->measure(in, out, count, recorder, lied);
    }
    if (lied) raise_lie(self.index);
    if (result != Wait::ready) raise_channel_timeout();
}

}  // namespace

void register_driver_queue(py::module_& module) {
    py::class_<IndexedQueue>(module, "DriverQueue")
        .def(py::init([](Hypervisor& hypervisor, DomId backend, std::uint32_t index, std::uint16_t size,
                         const py::int_& features) {
                 return IndexedQueue{index,
                                     std::make_unique<DriverQueue>(hypervisor, backend, size, low_features(features))};
             }),
             py::arg("hypervisor"), py::arg("backend"), py::kw_only(), py::arg("index"), py::arg("size"),
             py::arg("features"), py::keep_alive<1, 2>())
        .def(
            "setup",
            [](IndexedQueue& self, std::uint16_t size, const py::int_& features) {
                self.queue->setup(size, low_features(features));
            },
            py::arg("size"), py::arg("features"))
        .def_property_readonly("event_channel", [](const IndexedQueue& self) { return self.queue->event_channel(); })
        .def_readonly("index", &IndexedQueue::index)
        .def_property_readonly("size", [](const IndexedQueue& self) { return self.queue->ring().size(); })
        .def_property_readonly("descriptor_address",
                               [](const IndexedQueue& self) { return self.queue->ring().descriptor_address(); })
        .def_property_readonly("driver_address",
                               [](const IndexedQueue& self) { return self.queue->ring().driver_address(); })
        .def_property_readonly("device_address",
                               [](const IndexedQueue& self) { return self.queue->ring().device_address(); })
        .def("add", &add, py::arg("readable"), py::arg("writable"))
        .def("kick", [](IndexedQueue& self) { return self.queue->kick(); })
        .def("pop", &pop)
        .def("wait", &wait, py::arg("timeout"))
        .def("fileno", [](const IndexedQueue& self) { return self.queue->fd(); })
        .def_property_readonly("free_descriptors",
                               [](const IndexedQueue& self) { return self.queue->ring().free_descriptors(); })
        .def_property_readonly(
            "memory",
            [](const IndexedQueue& self) { return owned_view(self.queue->memory(), self.queue->shared_ring()); })
        .def("measure", &measure, py::arg("readable"), py::arg("writable"), py::arg("count"), py::arg("recorder"))
        .def("close", [](IndexedQueue& self) { self.queue->close(); });
}

}  // namespace cpp_ring::bindings
