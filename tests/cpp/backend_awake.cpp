// What keeps a device's thread awake: the driver's requests and what is completed for it, not what others send.
#include <doctest/doctest.h>

#include <sys/eventfd.h>
#include <unistd.h>

#include <thread>

#include "file_descriptor.hpp"
#include "loopback_device.hpp"

namespace cpp_ring::test {
namespace {

// At each event of a descriptor it completes one of the buffers that the driver made available, or does nothing.
class PacketModel final : public EchoModel {
  public:
    Backend* backend = nullptr;
    FileDescriptor event{::eventfd(0, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC)};
    bool drops = false;
    Atomic<int> packets{0};

    GuestError ready(int fd) noexcept override {
        std::uint64_t one = 0;
        if (::read(fd, &one, sizeof one) != sizeof one) return {};
        if (!drops) {
            std::uint64_t token = 0;
            bool found = false;
            if (const GuestError error = backend->pop(0, chain_, token, found)) return error;
            if (!found || !backend->complete(0, token, echo(chain_))) return {VMSG_XEN_MODEL, 0};
            chain_.clear();
        }
        ++packets;
        return {};
    }
    void send() const {
        const std::uint64_t one = 1;
        REQUIRE(::write(event.get(), &one, sizeof one) == sizeof one);
    }

  private:
    Chain chain_;
};

}  // namespace

TEST_SUITE("threads") {
    TEST_CASE("backend: once a request came soon after it fell asleep it is awake for those that follow") {
        EchoModel model;
        DeviceShape shape;
        shape.spin_us = 0;
        for (const double most : {0.0, 1e12}) {
            shape.most_spin_us = most;
            LoopbackDevice device(model, shape);
            device.connect();
            BackendThread thread(device.backend);
            device.start();
            for (std::uint64_t number = 0; number < 200; ++number) {
                // Time to fall asleep in.
                if (number % 10 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
                device.echo(number & 1, number);
            }
            CHECK(thread.stop() == Exit::stopped);
            const std::uint64_t sleeps = device.backend.counters().sleeps;
            if (most == 0)
                CHECK(sleeps >= 10);
            else
                CHECK(sleeps <= 5);  // at the start, and when woken for nothing
        }
    }

    TEST_CASE("backend: packets that reach the driver keep it awake, packets that are dropped do not") {
        constexpr int packets = 60;
        for (const bool drops : {false, true}) {
            PacketModel model;
            model.drops = drops;
            DeviceShape shape;
            shape.queue_sizes = {128, 64};
            shape.pulled = {true, false};
            shape.spin_us = 0;
            shape.most_spin_us = 20'000;
            LoopbackDevice device(model, shape);
            model.backend = &device.backend;
            device.backend.watch(model.event.get());
            device.connect();
            BackendThread thread(device.backend);
            device.start();
            for (std::size_t cell = 0; cell < packets; ++cell) device.offer(0, cell, cell);
            device.queues[0]->kick();
            for (int i = 1; i <= packets; ++i) {
                model.send();
                const auto deadline = Clock::now() + for_ever;
                while (model.packets < i && Clock::now() < deadline) std::this_thread::yield();
                REQUIRE(model.packets == i);
                std::this_thread::sleep_for(std::chrono::milliseconds(1));
            }
            CHECK(thread.stop() == Exit::stopped);
            device.backend.unwatch(model.event.get());
            const std::uint64_t sleeps = device.backend.counters().sleeps;
            if (drops)
                CHECK(sleeps >= 10);
            else
                CHECK(sleeps <= packets / 2);
        }
    }
}

}  // namespace cpp_ring::test
