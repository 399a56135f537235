#include <thread>

#include "bindings.hpp"
#include "py_model.hpp"

namespace cpp_ring::bindings {
namespace {

// The writable memory of a Python buffer of bytes: a numpy array, a memoryview. Exported for as long as this lives, so
// that Python can neither move nor resize it.
class ConfigMemory {
  public:
    explicit ConfigMemory(const py::buffer& buffer) : info_(buffer.request(true)) {
        if (info_.ndim != 1 || info_.itemsize != 1 || (info_.size > 1 && info_.strides[0] != 1))
            throw py::value_error("config is a one-dimensional contiguous buffer of bytes");
    }
    [[nodiscard]] std::span<std::byte> bytes() const noexcept {
        return {static_cast<std::byte*>(info_.ptr), static_cast<std::size_t>(info_.size)};
    }

  private:
    py::buffer_info info_;
};

std::vector<std::uint8_t> mask_of(const py::bytes& raw) {
    const auto bytes = as_bytes(raw);
    std::vector<std::uint8_t> mask(bytes.size());
    std::memcpy(mask.data(), bytes.data(), bytes.size());
    return mask;
}

// The engine's Backend with what Python objects it stands on, in the order they must outlive each other.
class PyBackend {
  public:
    PyBackend(py::object hypervisor, DomId frontend, const py::object& model, std::uint32_t device_id,
              std::uint32_t vendor_id, const py::int_& features, const py::buffer& config,
              const py::bytes& hooked_reads, const py::bytes& writable, const py::bytes& hooked_writes,
              std::vector<std::uint16_t> queue_sizes, std::vector<bool> pulled, double spin_us, double most_spin_us)
        : hypervisor_(std::move(hypervisor)), config_(config), model_(model) {
        DeviceDescription description{
            .device_id = device_id,
            .vendor_id = vendor_id,
            .features = feature_blocks(features),
            .config = config_.bytes(),
            .hooked_reads = mask_of(hooked_reads),
            .writable = mask_of(writable),
            .hooked_writes = mask_of(hooked_writes),
            .queue_sizes = std::move(queue_sizes),
        };
        auto& host = hypervisor_.cast<Hypervisor&>();
        BackendOptions options{.frontend = frontend,
                               .pulled = std::move(pulled),
                               .spin_us = spin_us,
                               .most_spin_us = most_spin_us,
                               .map_budget_pages = host.map_budget()->pages()};
        backend_ = std::make_unique<Backend>(host, model_, std::move(description), std::move(options));
    }

    void connect(GrantRef fe_to_be, GrantRef be_to_fe, Port event_channel,
                 const std::vector<std::optional<Port>>& queue_event_channels,
                 std::optional<std::pair<GrantRef, std::size_t>> arena) {
        require_idle();
        const ChannelAddress address{fe_to_be,
                                     be_to_fe,
                                     event_channel,
                                     queue_event_channels,
                                     arena ? arena->first : 0,
                                     arena ? arena->second : 0};
        GuestError error;
        {
            const Busy busy(*this);
            const GilReleased released(model_.gate());  // the hypervisor's answers may take a while
            error = backend_->connect(address);
        }
        if (error) raise_channel_error(error);
    }

    const char* run() {
        require_idle();
        if (!backend_->connected()) throw std::runtime_error("the backend is not connected; call connect() first");
        const Busy busy(*this);
        Exit exit;
        {
            const GilReleased released(model_.gate());
            exit = backend_->run();
        }
        return exit == Exit::stopped ? "stopped" : exit == Exit::broken ? "broken" : "frontend-gone";
    }

    py::bytes handle(const py::bytes& raw) {
        require_idle();
        const Busy busy(*this);
        const auto bytes = as_bytes(raw);
        if (bytes.size() < sizeof(vmsg_header) || bytes.size() > VMSG_MAX_SIZE)
            raise_channel_error({VMSG_XEN_BAD_SIZE, bytes.size()});
        Message request, answer;
        std::memcpy(request.data(), bytes.data(), bytes.size());
        request.resize(bytes.size());
        if (const GuestError error = backend_->answer(request, answer)) raise_channel_error(error);
        return to_bytes({answer.data(), answer.size()});
    }

    std::optional<py::tuple> pop(std::uint32_t queue) {
        require_own_thread();
        std::uint64_t token = 0;
        bool found = false;
        Chain chain;
        if (backend_->pop(queue, chain, token, found) || !found) return std::nullopt;
        return PyModel::request_tuple(token, chain);
    }

    void complete(std::uint32_t queue, std::uint64_t token, std::uint32_t written) {
        require_own_thread();
        if (!backend_->complete(queue, token, written))
            throw py::value_error("no such buffer in flight, or more written than it had room for");
    }

    void config_changed() {
        require_own_thread();
        backend_->config_changed();
    }

    void needs_reset(std::uint32_t code, std::uint64_t detail) {
        require_own_thread();
        backend_->needs_reset({static_cast<vmsg_xen_error>(code), detail});
    }

    void watch(int fd, py::object callback) {
        require_own_thread();
        backend_->watch(fd);
        model_.set_callback(fd, std::move(callback));
    }

    void unwatch(int fd) {
        require_own_thread();
        backend_->unwatch(fd);
        model_.drop_callback(fd);
    }

    void post(py::object callback) {
        model_.post(std::move(callback));
        backend_->wake();
    }

    void stop() { backend_->stop(); }

    [[nodiscard]] const Backend& backend() const noexcept { return *backend_; }
    [[nodiscard]] const VirtioDevice& device() const noexcept { return backend_->device(); }

    py::dict counters() const {
        const Counters& counters = backend_->counters();
        py::dict result;
        result["requests"] = counters.requests;
        result["kicks"] = counters.kicks;
        result["sleeps"] = counters.sleeps;
        result["notifications"] = counters.notifications;
        result["buffers"] = counters.buffers;
        result["guest_errors"] = device().guest_errors();
        return result;
    }

  private:
    // Marks the thread that is in run() or handle(). Written and read with the GIL held.
    class Busy {
      public:
        explicit Busy(PyBackend& backend) : backend_(backend) { backend_.owner_ = std::this_thread::get_id(); }
        ~Busy() { backend_.owner_ = {}; }
        Busy(const Busy&) = delete;
        Busy& operator=(const Busy&) = delete;

      private:
        PyBackend& backend_;
    };

    // A model that calls back into run() or handle() (CVE-2024-3446), or a second thread that does.
    void require_idle() const {
        if (owner_ != std::thread::id()) throw std::runtime_error("the backend is being served already");
    }
    void require_own_thread() const {
        if (owner_ != std::thread::id() && owner_ != std::this_thread::get_id())
            throw std::runtime_error("only the device's own thread may do this; use post()");
    }

    py::object hypervisor_;
    ConfigMemory config_;
    PyModel model_;
    std::unique_ptr<Backend> backend_;
    std::thread::id owner_;
};

}  // namespace

void register_backend(py::module_& module) {
    py::class_<PyBackend>(module, "Backend")
        .def(py::init<py::object, DomId, const py::object&, std::uint32_t, std::uint32_t, const py::int_&,
                      const py::buffer&, const py::bytes&, const py::bytes&, const py::bytes&,
                      std::vector<std::uint16_t>, std::vector<bool>, double, double>(),
             py::arg("hypervisor"), py::arg("frontend"), py::arg("model"), py::kw_only(), py::arg("device_id"),
             py::arg("vendor_id"), py::arg("features"), py::arg("config"), py::arg("hooked_reads"), py::arg("writable"),
             py::arg("hooked_writes"), py::arg("queue_sizes"), py::arg("pulled"), py::arg("spin_us") = 50.0,
             py::arg("most_spin_us") = 0.0)
        .def("connect", &PyBackend::connect, py::arg("fe_to_be_ref"), py::arg("be_to_fe_ref"), py::arg("event_channel"),
             py::arg("queue_event_channels"), py::arg("arena") = py::none())
        .def("run", &PyBackend::run)
        .def("stop", &PyBackend::stop)
        .def("post", &PyBackend::post, py::arg("callback"))
        .def("handle", &PyBackend::handle, py::arg("message"))
        .def("pop", &PyBackend::pop, py::arg("queue"))
        .def("complete", &PyBackend::complete, py::arg("queue"), py::arg("head"), py::arg("written"))
        .def("config_changed", &PyBackend::config_changed)
        .def("needs_reset", &PyBackend::needs_reset, py::arg("code"), py::arg("detail") = 0)
        .def("watch", &PyBackend::watch, py::arg("fd"), py::arg("callback"))
        .def("unwatch", &PyBackend::unwatch, py::arg("fd"))
        .def_property_readonly("device_status", [](const PyBackend& self) { return self.backend().state().status; })
        .def_property_readonly("driver_features",
                               [](const PyBackend& self) { return feature_int(self.device().driver_features()); })
        .def_property_readonly("error_code", [](const PyBackend& self) { return self.backend().state().error_code; })
        .def_property_readonly("error_detail",
                               [](const PyBackend& self) { return self.backend().state().error_detail; })
        .def_property_readonly("connected", [](const PyBackend& self) { return self.backend().connected(); })
        .def_property_readonly("mapped_pages", [](const PyBackend& self) { return self.backend().mapped_pages(); })
        .def("counters", &PyBackend::counters);
}

}  // namespace cpp_ring::bindings
