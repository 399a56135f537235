// A buffer exporter of a few words: cheaper than a bound class, and the reason why a memoryview that a model keeps
// can never point at pages that are gone.
#include <new>
#include <utility>

#include "bindings.hpp"

namespace cpp_ring::bindings {
namespace {

struct Exporter {
    PyObject_HEAD std::byte* data;
    Py_ssize_t size;
    bool writable;
    std::shared_ptr<const void> owner;
};

void destroy(PyObject* self) {
    auto* const exporter = reinterpret_cast<Exporter*>(self);
    PyTypeObject* const type = Py_TYPE(self);
    // Asked first, for the GIL costs something: other views, or the engine, keep most mappings.
    if (exporter->owner.use_count() == 1) end_without_gil(std::move(exporter->owner));
    exporter->owner.~shared_ptr();
    type->tp_free(self);
    Py_DECREF(type);
}

int get_buffer(PyObject* self, Py_buffer* view, int flags) {
    const auto* const exporter = reinterpret_cast<Exporter*>(self);
    return PyBuffer_FillInfo(view, self, exporter->data, exporter->size, exporter->writable ? 0 : 1, flags);
}

PyTypeObject* make_type() {
    static PyType_Slot slots[] = {
        {Py_tp_dealloc, reinterpret_cast<void*>(&destroy)},
        {Py_bf_getbuffer, reinterpret_cast<void*>(&get_buffer)},
        {0, nullptr},
    };
    static PyType_Spec spec = {"cpp_ring._core.OwnedBytes", sizeof(Exporter), 0,
                               Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, slots};
    auto* const type = reinterpret_cast<PyTypeObject*>(PyType_FromSpec(&spec));
    if (type == nullptr) throw py::error_already_set();
    return type;
}

}  // namespace

py::object owned_view(std::span<std::byte> bytes, std::shared_ptr<const void> owner, bool writable) {
    PYBIND11_CONSTINIT static py::gil_safe_call_once_and_store<PyTypeObject*> storage;
    PyTypeObject* const type = storage.call_once_and_store_result(make_type).get_stored();
    auto* const self = type->tp_alloc(type, 0);
    if (self == nullptr) throw py::error_already_set();
    auto* const exporter = reinterpret_cast<Exporter*>(self);
    exporter->data = bytes.data();
    exporter->size = static_cast<Py_ssize_t>(bytes.size());
    exporter->writable = writable;
    new (&exporter->owner) std::shared_ptr<const void>(std::move(owner));
    PyObject* const view = PyMemoryView_FromObject(self);
    Py_DECREF(self);  // the view holds it
    if (view == nullptr) throw py::error_already_set();
    return py::reinterpret_steal<py::object>(view);
}

}  // namespace cpp_ring::bindings
