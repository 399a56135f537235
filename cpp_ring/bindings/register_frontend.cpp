#include <string>
#include <utility>
#include <vector>

#include "bindings.hpp"
#include "frontend.hpp"

namespace cpp_ring::bindings {
namespace {

[[noreturn]] void raise_failure(const Frontend& frontend, ExchangeResult result) {
    if (result == ExchangeResult::timeout) raise_channel_timeout();
    if (result == ExchangeResult::peer_dead) {
        const auto objection = frontend.ring().error();
        raise_peer_dead(objection.code, objection.detail);
    }
    raise_channel_error(frontend.error());
}

std::span<const std::byte> checked_payload(const py::bytes& payload) {
    const auto bytes = as_bytes(payload);
    if (bytes.size() > VMSG_MAX_SIZE - sizeof(vmsg_header))
        throw py::value_error("a payload of " + std::to_string(bytes.size()) + " bytes is longer than a message");
    return bytes;
}

py::bytes exchange(Frontend& self, std::uint8_t msg_id, const py::bytes& payload, double timeout) {
    const auto bytes = checked_payload(payload);
    ExchangeResult result;
    {
        const py::gil_scoped_release released;
        result = self.exchange(msg_id, bytes, as_duration(timeout));
    }
    if (result != ExchangeResult::ok) raise_failure(self, result);
    return to_bytes(self.answer().payload_bytes());
}

void measure(Frontend& self, std::uint8_t msg_id, const py::bytes& payload, std::uint64_t count,
             LatencyRecorder& recorder, bool idle) {
    const auto bytes = checked_payload(payload);
    ExchangeResult result;
    {
        const py::gil_scoped_release released;
        result = self.measure(msg_id, bytes, count, idle, recorder);
    }
    if (result != ExchangeResult::ok) raise_failure(self, result);
}

void measure_burst(Frontend& self, const std::vector<std::pair<std::uint8_t, py::bytes>>& requests, std::uint64_t count,
                   LatencyRecorder& recorder) {
    std::vector<Frontend::Request> burst;
    for (const auto& [msg_id, payload] : requests) {
        const auto bytes = checked_payload(payload);
        burst.push_back({msg_id, {bytes.begin(), bytes.end()}});
    }
    ExchangeResult result;
    {
        const py::gil_scoped_release released;
        result = self.measure_burst(burst, count, recorder);
    }
    if (result != ExchangeResult::ok) raise_failure(self, result);
}

}  // namespace

void register_frontend(py::module_& module) {
    py::class_<Frontend>(module, "Frontend")
        .def(py::init<Hypervisor&, DomId>(), py::arg("hypervisor"), py::arg("backend"), py::keep_alive<1, 2>(),
             py::call_guard<py::gil_scoped_release>())
        .def_property_readonly("fe_to_be_ref", &Frontend::fe_to_be_ref)
        .def_property_readonly("be_to_fe_ref", &Frontend::be_to_fe_ref)
        .def_property_readonly("event_channel", &Frontend::event_channel)
        .def("check_header",
             [](const Frontend& self) {
                 const auto objection = self.ring().error();
                 if (const GuestError error = self.ring().check()) raise_channel_error(error);
                 if (!self.ring().backend_alive()) raise_peer_dead(objection.code, objection.detail);
             })
        .def("exchange", &exchange, py::arg("msg_id"), py::arg("payload") = py::bytes(), py::arg("timeout") = 2.0)
        .def("new_epoch", &Frontend::new_epoch)
        .def(
            "wait_event",
            [](Frontend& self, double timeout) {
                bool got = false;
                {
                    const py::gil_scoped_release released;
                    got = self.wait_event(as_duration(timeout));
                }
                if (PyErr_CheckSignals() != 0) throw py::error_already_set();
                return got;
            },
            py::arg("timeout"))
        .def("fileno", &Frontend::fd)
        .def_property("spin_us", &Frontend::spin_us, &Frontend::set_spin)
        .def_property_readonly("device_status", [](const Frontend& self) { return self.ring().device_status(); })
        .def_property_readonly("config_generation",
                               [](const Frontend& self) { return self.ring().config_generation(); })
        .def_property_readonly("error_code", [](const Frontend& self) { return self.ring().error().code; })
        .def_property_readonly("error_detail", [](const Frontend& self) { return self.ring().error().detail; })
        .def_property_readonly("backend_alive", [](const Frontend& self) { return self.ring().backend_alive(); })
        .def_property_readonly("backend_waiting", [](const Frontend& self) { return self.ring().backend_waiting(); })
        .def_property_readonly("broken", &Frontend::broken)
        .def_property_readonly(
            "fe_page",
            [](const py::object& self) { return owned_view(self.cast<Frontend&>().fe_page(), python_owner(self)); })
        .def_property_readonly(
            "be_page",
            [](const py::object& self) { return owned_view(self.cast<Frontend&>().be_page(), python_owner(self)); })
        .def("measure", &measure, py::arg("msg_id"), py::arg("payload"), py::arg("count"), py::arg("recorder"),
             py::arg("idle") = false)
        .def("measure_burst", &measure_burst, py::arg("requests"), py::arg("count"), py::arg("recorder"))
        .def("close", &Frontend::close, py::call_guard<py::gil_scoped_release>());
}

}  // namespace cpp_ring::bindings
