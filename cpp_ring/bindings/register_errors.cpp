#include "bindings.hpp"

#include <string>

namespace cpp_ring::bindings {
namespace {

// The exception types live as long as the process, as the module that owns them does.
struct ErrorTypes {
    py::object host, channel, timeout, dead, full;
};
PYBIND11_CONSTINIT py::gil_safe_call_once_and_store<ErrorTypes> storage;

const ErrorTypes& types() { return storage.get_stored(); }

[[noreturn]] void raise(const py::object& type, const std::string& text, const std::string& name,
                        std::uint64_t detail) {
    const py::object error = type(text);
    error.attr("name") = name;
    error.attr("detail") = detail;
    PyErr_SetObject(type.ptr(), error.ptr());
    throw py::error_already_set();
}

}  // namespace

void raise_channel_error(GuestError error) {
    const std::string name = error_name(error.code);
    raise(types().channel, name + " (" + std::to_string(error.detail) + ")", name, error.detail);
}

void raise_channel_timeout() {
    raise(types().timeout, "no answer before the deadline; the device is broken until it answers or is connected anew",
          "timeout", 0);
}

void raise_peer_dead(std::uint32_t code, std::uint32_t detail) {
    const std::string name = code == 0 ? "dead" : error_name(code);
    const std::string why = code == 0 ? "" : ": " + name + " (" + std::to_string(detail) + ")";
    raise(types().dead, "the backend is gone" + why, name, detail);
}

void raise_queue_full() {
    PyErr_SetString(types().full.ptr(), "the ring has no room for these buffers; take used ones back first");
    throw py::error_already_set();
}

void register_errors(py::module_& module) {
    storage.call_once_and_store_result([&] {
        ErrorTypes made;
        made.host = py::exception<HostError>(module, "HostError", PyExc_OSError);
        made.channel = py::exception<GuestError>(module, "ChannelError");
        made.timeout = py::exception<ErrorTypes>(module, "ChannelTimeout", made.channel);
        made.dead = py::exception<ErrorTypes>(module, "PeerDead", made.channel);
        made.full = py::exception<ErrorTypes>(module, "QueueFull");
        return made;
    });
    py::register_exception_translator([](std::exception_ptr thrown) {
        try {
            if (thrown) std::rethrow_exception(thrown);
        } catch (const HostError& error) {
            // OSError takes (errno, text).
            PyErr_SetObject(types().host.ptr(), py::make_tuple(error.error(), error.what()).ptr());
        }
    });
    module.def("error_name", &error_name, py::arg("code"));
}

std::vector<std::uint32_t> feature_blocks(const py::int_& features) {
    if (features < py::int_(0)) throw py::value_error("features are not negative");
    const auto bits = features.attr("bit_length")().cast<std::size_t>();
    std::vector<std::uint32_t> blocks(std::max<std::size_t>(2, (bits + 31) / 32));
    const py::bytes raw = features.attr("to_bytes")(blocks.size() * 4, "little");
    const auto data = as_bytes(raw);
    std::memcpy(blocks.data(), data.data(), data.size());
    return blocks;
}

py::int_ feature_int(std::span<const std::uint32_t> blocks) {
    const py::object type = py::reinterpret_borrow<py::object>(reinterpret_cast<PyObject*>(&PyLong_Type));
    return type.attr("from_bytes")(to_bytes(std::as_bytes(blocks)), "little");
}

}  // namespace cpp_ring::bindings
