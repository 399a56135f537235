// A Python device model behind the engine's Model interface. The GIL is taken once per call: once per batch.
#pragma once

#include <map>
#include <vector>

#include "backend.hpp"
#include "bindings.hpp"

namespace cpp_ring::bindings {

// Whether this device's thread has let go of the GIL, and the thread state to take it back with. PyEval_RestoreThread
// on a saved state is half the cost of gil_scoped_acquire, which looks its state up each time.
class GilGate {
  public:
    void release() noexcept { saved_ = PyEval_SaveThread(); }
    void acquire() noexcept { PyEval_RestoreThread(std::exchange(saved_, nullptr)); }
    [[nodiscard]] bool released() const noexcept { return saved_ != nullptr; }

  private:
    PyThreadState* saved_ = nullptr;
};

// Holds the GIL for a scope, if this thread did not hold it already.
class GilHeld {
  public:
    explicit GilHeld(GilGate& gate) noexcept : gate_(gate), taken_(gate.released()) {
        if (taken_) gate_.acquire();
    }
    ~GilHeld() {
        if (taken_) gate_.release();
    }
    GilHeld(const GilHeld&) = delete;
    GilHeld& operator=(const GilHeld&) = delete;

  private:
    GilGate& gate_;
    bool taken_;
};

// Lets go of the GIL for a scope; the callbacks of PyModel take it back through the same gate.
class GilReleased {
  public:
    explicit GilReleased(GilGate& gate) noexcept : gate_(gate) { gate_.release(); }
    ~GilReleased() { gate_.acquire(); }
    GilReleased(const GilReleased&) = delete;
    GilReleased& operator=(const GilReleased&) = delete;

  private:
    GilGate& gate_;
};

class PyModel final : public Model {
  public:
    // `model` has the methods of the Model protocol in _core.pyi; they are looked up once, here.
    explicit PyModel(const py::object& model);

    GuestError config_refresh(std::uint32_t offset, std::uint32_t size) noexcept override;
    GuestError config_write(std::uint32_t offset, std::span<const std::byte> data, bool& accepted) noexcept override;
    GuestError accepts(std::span<const std::uint32_t> features, bool& accepted) noexcept override;
    GuestError activate(std::span<const std::uint32_t> features,
                        std::span<const std::uint32_t> queues) noexcept override;
    GuestError reset() noexcept override;
    GuestError queue_reset(std::uint32_t queue) noexcept override;
    GuestError process(std::uint32_t queue, std::span<Chain> batch, std::span<const std::uint64_t> tokens,
                       std::span<std::int64_t> written) noexcept override;
    GuestError kicked(std::uint32_t queue) noexcept override;
    GuestError ready(int fd) noexcept override;
    GuestError run_posted() noexcept override;

    [[nodiscard]] GilGate& gate() noexcept { return gate_; }
    // With the GIL held.
    void post(py::object callback) { posted_.push_back(std::move(callback)); }
    void set_callback(int fd, py::object callback) { watched_[fd] = std::move(callback); }
    void drop_callback(int fd) { watched_.erase(fd); }

    // (token, copy of the readable part, views of the writable part)
    [[nodiscard]] static py::tuple request_tuple(std::uint64_t token, Chain& chain);

  private:
    template <class Call>
    GuestError guarded(const char* where, Call&& call) noexcept;
    GuestError failed(const char* where) noexcept;

    py::object config_refresh_, config_write_, accepts_, activate_, reset_, queue_reset_, process_, kicked_, failed_;
    std::map<int, py::object> watched_;
    std::vector<py::object> posted_;
    GilGate gate_;
};

}  // namespace cpp_ring::bindings
