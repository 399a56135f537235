// Threat 18: reset or close while requests run (XSA-350, XSA-374). Stop, forget, unmap, in that order, as often as the
// guest likes; the sanitizer guards what was unmapped.
#include <doctest/doctest.h>

#include <random>
#include <thread>

#include "loopback_device.hpp"
#include "rounds.hpp"

namespace cpp_ring::test {
namespace {

constexpr std::size_t header_pages = 2;

// One more chain in a ring whose driver keeps no account of it, and a kick; now and then an index that is a lie.
void fill(LoopbackDevice& device, DriverQueue& queue, std::mt19937& random) {
    const std::uint16_t size = queue.ring().size();
    std::byte* base = queue.memory().data();
    const std::uint64_t start = queue.ring().descriptor_address();
    const SplitRing ring(size, base, base + (queue.ring().driver_address() - start),
                         base + (queue.ring().device_address() - start));
    const std::uint64_t at = grant_address(device.arena->first_ref(), random() % 1024 * 16);
    const auto head = static_cast<std::uint16_t>(random() % size & ~1U);
    const Descriptor readable{at, 8, desc_next, static_cast<std::uint16_t>(head + 1)};
    const Descriptor writable{at + 8, 8, desc_write, 0};
    SharedMemory::copy_to(ring.descriptors + head, &readable, sizeof readable);
    SharedMemory::copy_to(ring.descriptors + head + 1, &writable, sizeof writable);
    const std::uint16_t idx = SharedMemory::load_relaxed(ring.used_idx);
    const std::uint32_t next = idx + 1U + (random() % 64 == 0 ? size : 0U);
    SharedMemory::store_relaxed(ring.avail_ring + idx % size, head);
    SharedMemory::store_release(ring.avail_idx, static_cast<std::uint16_t>(next));
    queue.kick();
}

// A second CPU of the guest: fills the rings of a device that the first one resets.
class Traffic {
  public:
    Traffic(LoopbackDevice& device, unsigned seed)
        : thread_([&device, seed, this] {
              std::mt19937 random(seed);
              while (!stop_.load(std::memory_order_relaxed)) {
                  for (const auto& queue : device.queues) fill(device, *queue, random);
                  std::this_thread::yield();
              }
          }) {}
    ~Traffic() {
        stop_ = true;
        thread_.join();
    }
    Traffic(const Traffic&) = delete;
    Traffic& operator=(const Traffic&) = delete;

  private:
    Atomic<bool> stop_{false};
    std::thread thread_;
};

// As LoopbackDevice::start, but with the fewest messages.
void restart(LoopbackDevice& device) {
    device.set_status(0);
    device.set_status(status_acknowledge | status_driver);
    device.ask(VMSG_SET_DRIVER_FEATURES, vmsg_feature_range{0, 2}, 0U, 0x101U);
    device.set_status(status_acknowledge | status_driver | status_features_ok);
    for (std::uint32_t i = 0; i < device.queues.size(); ++i) device.set_queue(i);
    device.set_status(all_status_bits);
}

}  // namespace

TEST_SUITE("threads") {
    TEST_CASE("threat 18: resets again and again with requests in the rings") {
        const std::uint64_t total = rounds(thread_sanitizer ? 500 : 2'000, 100'000);
        EchoModel model;
        DeviceShape shape;
        shape.spin_us = 0;
        LoopbackDevice device(model, shape);
        device.connect();
        device.frontend->set_spin(0);
        std::size_t mapped_after_reset = 0;
        {
            BackendThread thread(device.backend);
            std::mt19937 random(17);
            for (std::uint64_t i = 0; i < total; ++i) {
                restart(device);
                for (std::uint32_t chains = static_cast<std::uint32_t>(random()) % 4; chains != 0; --chains)
                    fill(device, *device.queues[random() % 2], random);
                device.set_status(0);
                mapped_after_reset += device.back.mapped_pages() - header_pages;
            }
            CHECK(thread.stop() == Exit::stopped);
        }
        CHECK(mapped_after_reset == 0);
        CHECK(model.activations == total);
        CHECK(model.resets == total);
        CHECK(model.served > 0);
        CHECK(device.back.mappings() == 0);
    }

    TEST_CASE("threat 18: resets while another CPU of the guest fills the rings") {
        constexpr std::uint64_t rounds = thread_sanitizer ? 100 : 300;
        EchoModel model;
        LoopbackDevice device(model);
        device.connect();
        std::size_t mapped_after_reset = 0;
        {
            BackendThread thread(device.backend);
            const Traffic traffic(device, 18);
            for (std::uint64_t i = 0; i < rounds; ++i) {
                restart(device);
                device.set_status(0);
                mapped_after_reset += device.back.mapped_pages() - header_pages;
            }
            CHECK(thread.stop() == Exit::stopped);
        }
        CHECK(mapped_after_reset == 0);
        CHECK(model.activations == rounds);
        CHECK(model.resets == rounds);
        CHECK(model.served > 0);
        CHECK(device.back.mappings() == 0);
    }

    TEST_CASE("threat 18: single queues are reset and set up anew while they run") {
        constexpr std::uint32_t rounds = thread_sanitizer ? 200 : 500;
        EchoModel model;
        LoopbackDevice device(model);
        device.connect();
        {
            BackendThread thread(device.backend);
            const Traffic traffic(device, 19);
            for (std::uint32_t i = 0; i < rounds; ++i) {
                if ((device.frontend->ring().device_status() & status_needs_reset) != 0 || i == 0) restart(device);
                device.ask(VMSG_RESET_VQUEUE, vmsg_index{i & 1});
                device.set_queue(i & 1);
            }
        }
        CHECK(device.back.mappings() == 0);
    }

    TEST_CASE("threat 18: connected, started and stopped again and again, by either side, with requests in the rings") {
        constexpr std::uint64_t rounds = thread_sanitizer ? 20 : 100;
        EchoModel model;
        LoopbackDevice device(model);
        std::size_t left = 0;
        for (std::uint64_t i = 0; i < rounds; ++i) {
            device.connect();
            BackendThread thread(device.backend);
            const Traffic traffic(device, 20);
            restart(device);
            if (i % 2 == 0) {
                left += thread.stop() != Exit::stopped;
            } else {
                device.frontend->close();
                left += thread.join() != Exit::frontend_gone;
            }
            left += device.back.mappings() + device.back.ports() + device.back.open_handles();
            device.frontend.emplace(device.front, backend_domain);
        }
        CHECK(left == 0);
        CHECK(model.activations == rounds);
        CHECK(model.resets == rounds);
    }

    TEST_CASE("threat 18: disconnecting twice, or without a connection, does nothing more") {
        EchoModel model;
        LoopbackDevice device(model);
        device.backend.disconnect();
        device.connect();
        device.backend.disconnect();
        device.backend.disconnect();
        CHECK(model.resets == 0);  // it was never activated
        CHECK(device.back.mappings() == 0);
        device.connect();  // and again, over the pages as they are
        device.connect();
        CHECK(device.back.mapped_pages() == header_pages);
    }
}

}  // namespace cpp_ring::test
