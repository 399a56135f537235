#include "py_model.hpp"

#include "shared.hpp"

namespace cpp_ring::bindings {
namespace {

py::object checked(PyObject* result) {
    if (result == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(result);
}

// A guest may change its buffers at any time: the model reads a private copy, made once.
py::bytes copy_readable(const Chain& chain) {
    // At most the chain cap, so the narrowing keeps the value.
    py::object copy = checked(PyBytes_FromStringAndSize(nullptr, static_cast<py::ssize_t>(chain.readable_bytes)));
    char* at = PyBytes_AS_STRING(copy.ptr());
    for (const Segment& segment : chain.readable) {
        SharedMemory::copy_from(at, segment.data, segment.size);
        at += segment.size;
    }
    return py::reinterpret_steal<py::bytes>(copy.release());
}

}  // namespace

PyModel::PyModel(const py::object& model)
    : config_refresh_(model.attr("config_refresh")),
      config_write_(model.attr("config_write")),
      accepts_(model.attr("accepts")),
      activate_(model.attr("activate")),
      reset_(model.attr("reset")),
      queue_reset_(model.attr("queue_reset")),
      process_(model.attr("process")),
      kicked_(model.attr("kicked")),
      failed_(model.attr("failed")) {}

// With the GIL held and a Python error set. Whatever the model raised, SystemExit and KeyboardInterrupt included, ends
// here; the error's code is the model's own word on whose fault it was.
GuestError PyModel::failed(const char* where) noexcept {
    try {
        const py::error_already_set error;
        // The log is to say where in the model it was raised.
        if (error.trace()) PyException_SetTraceback(error.value().ptr(), error.trace().ptr());
        const auto code = failed_(where, error.value()).cast<std::uint32_t>();
        const auto known = static_cast<vmsg_xen_error>(code);
        return {breaks_device(known) && std::string_view(error_name(code)) != "unknown" ? known : VMSG_XEN_MODEL, 0};
    } catch (py::error_already_set& second) {
        second.discard_as_unraisable(where);
    } catch (...) {
        PyErr_Clear();
    }
    return {VMSG_XEN_MODEL, 0};
}

template <class Call>
GuestError PyModel::guarded(const char* where, Call&& call) noexcept {
    const GilHeld gil(gate_);
    try {
        call();
        return {};
    } catch (py::error_already_set& error) {
        error.restore();
    } catch (const std::exception& error) {
        PyErr_SetString(PyExc_TypeError, error.what());
    }
    return failed(where);
}

GuestError PyModel::config_refresh(std::uint32_t offset, std::uint32_t size) noexcept {
    return guarded("config_refresh", [&] { config_refresh_(offset, size); });
}

GuestError PyModel::config_write(std::uint32_t offset, std::span<const std::byte> data, bool& accepted) noexcept {
    return guarded("config_write", [&] { accepted = py::bool_(config_write_(offset, to_bytes(data))); });
}

GuestError PyModel::accepts(std::span<const std::uint32_t> features, bool& accepted) noexcept {
    return guarded("accepts", [&] { accepted = py::bool_(accepts_(feature_int(features))); });
}

GuestError PyModel::activate(std::span<const std::uint32_t> features, std::span<const std::uint32_t> queues) noexcept {
    return guarded("activate",
                   [&] { activate_(feature_int(features), std::vector<std::uint32_t>(queues.begin(), queues.end())); });
}

GuestError PyModel::reset() noexcept {
    return guarded("reset", [&] { reset_(); });
}

GuestError PyModel::queue_reset(std::uint32_t queue) noexcept {
    return guarded("queue_reset", [&] { queue_reset_(queue); });
}

py::tuple PyModel::request_tuple(std::uint64_t token, Chain& chain) {
    py::list writable(chain.writable.size());
    for (std::size_t i = 0; i < chain.writable.size(); ++i) {
        Segment& segment = chain.writable[i];
        const std::span bytes(segment.data, segment.size);
        PyList_SET_ITEM(writable.ptr(), static_cast<py::ssize_t>(i),
                        owned_view(bytes, std::move(segment.keep)).release().ptr());
    }
    return py::make_tuple(token, copy_readable(chain), std::move(writable));
}

GuestError PyModel::process(std::uint32_t queue, std::span<Chain> batch, std::span<const std::uint64_t> tokens,
                            std::span<std::int64_t> written) noexcept {
    return guarded("process", [&] {
        py::list requests(batch.size());
        for (std::size_t i = 0; i < batch.size(); ++i)
            PyList_SET_ITEM(requests.ptr(), static_cast<py::ssize_t>(i),
                            request_tuple(tokens[i], batch[i]).release().ptr());
        const py::object results = process_(queue, std::move(requests));
        const py::object fast = checked(PySequence_Fast(results.ptr(), "process() returns a sequence"));
        if (PySequence_Fast_GET_SIZE(fast.ptr()) != static_cast<py::ssize_t>(batch.size()))
            throw py::value_error("process() returns one number for each request");
        for (std::size_t i = 0; i < batch.size(); ++i) {
            const long long value =
                PyLong_AsLongLong(PySequence_Fast_GET_ITEM(fast.ptr(), static_cast<py::ssize_t>(i)));
            if (value == -1 && PyErr_Occurred() != nullptr) throw py::error_already_set();
            if (value < held) throw py::value_error("process() returned a negative number of bytes");
            written[i] = value;
        }
    });
}

GuestError PyModel::kicked(std::uint32_t queue) noexcept {
    return guarded("kicked", [&] { kicked_(queue); });
}

GuestError PyModel::ready(int fd) noexcept {
    return guarded("ready", [&] {
        const auto found = watched_.find(fd);
        if (found == watched_.end()) return;
        const py::object callback = found->second;  // the call may unwatch the descriptor
        callback();
    });
}

GuestError PyModel::run_posted() noexcept {
    GuestError first;
    const GilHeld gil(gate_);
    std::vector<py::object> due;
    due.swap(posted_);
    for (const py::object& callback : due) {
        const GuestError error = guarded("post", [&] { callback(); });
        if (!first) first = error;
    }
    return first;
}

}  // namespace cpp_ring::bindings
