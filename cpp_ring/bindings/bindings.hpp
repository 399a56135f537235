// What the register_*.cpp files share: one function each, exceptions, and small conversions.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <chrono>
#include <memory>
#include <span>
#include <vector>

#include "clock.hpp"
#include "errors.hpp"
#include "hypervisor.hpp"

namespace cpp_ring::bindings {

namespace py = pybind11;

void register_errors(py::module_& module);
void register_hypervisor(py::module_& module);
void register_backend(py::module_& module);
void register_frontend(py::module_& module);
void register_driver_queue(py::module_& module);
void register_latency(py::module_& module);
void register_ping_pong(py::module_& module);

// Raise the Python exceptions of register_errors.
[[noreturn]] void raise_channel_error(GuestError error);
[[noreturn]] void raise_channel_timeout();
[[noreturn]] void raise_peer_dead(std::uint32_t code, std::uint32_t detail);
[[noreturn]] void raise_queue_full();

// A Python int of any width as 32-bit blocks, two at least, and back.
[[nodiscard]] std::vector<std::uint32_t> feature_blocks(const py::int_& features);
[[nodiscard]] py::int_ feature_int(std::span<const std::uint32_t> blocks);

// Bytes with an owner, as a Python memoryview: the owner lives as long as the view or any slice of it does.
[[nodiscard]] py::object owned_view(std::span<std::byte> bytes, std::shared_ptr<const void> owner,
                                    bool writable = true);

// A Python object as the owner of a view of its memory.
[[nodiscard]] inline std::shared_ptr<const void> python_owner(const py::object& object) {
    return {object.inc_ref().ptr(), [](const void* held) {
                const py::gil_scoped_acquire acquired;
                Py_DECREF(static_cast<PyObject*>(const_cast<void*>(held)));
            }};
}

// For the end of pages, which is the hypervisor's work and may take a while: without the GIL, if this thread has it.
template <class Last>
void end_without_gil(Last last) noexcept {
    if (PyGILState_Check() == 0) return;  // `last` goes here, as it does below
    const py::gil_scoped_release released;
    [[maybe_unused]] const Last gone = std::move(last);
}

// What Python holds of pages that were granted, or mapped.
template <class Pages>
struct Held {
    explicit Held(std::unique_ptr<Pages> owned)
        : pages(owned.release(), [](Pages* last) { end_without_gil(std::unique_ptr<Pages>(last)); }) {}

    std::shared_ptr<Pages> pages;
    [[nodiscard]] Pages& get() const {
        if (!pages) throw py::value_error("the pages were closed");
        return *pages;
    }
};

[[nodiscard]] inline std::span<const std::byte> as_bytes(const py::bytes& data) {
    char* start = nullptr;
    py::ssize_t size = 0;
    if (PyBytes_AsStringAndSize(data.ptr(), &start, &size) != 0) throw py::error_already_set();
    return {reinterpret_cast<const std::byte*>(start), static_cast<std::size_t>(size)};
}

// A day is for ever here, and keeps the conversion in range.
[[nodiscard]] inline Clock::duration as_duration(double seconds) {
    return std::chrono::duration_cast<Clock::duration>(
        std::chrono::duration<double>(std::clamp(seconds, 0.0, 86400.0)));
}

[[nodiscard]] inline py::bytes to_bytes(std::span<const std::byte> data) {
    return {reinterpret_cast<const char*>(data.data()), data.size()};
}

}  // namespace cpp_ring::bindings
