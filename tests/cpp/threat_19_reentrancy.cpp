// Threat 19: re-entrancy (CVE-2024-3446). A model that calls back into its backend from each of its methods, and a
// guest that has a device write into the rings that the device reads.
#include <doctest/doctest.h>

#include <array>
#include <random>

#include "loopback_device.hpp"

namespace cpp_ring::test {
namespace {

enum class Call { needs_reset, config_changed, pop, complete, wake };

// Does one thing in every method that the engine calls.
class CallingModel final : public EchoModel {
  public:
    CallingModel(Call call, bool complete_in_process) : call_(call), complete_(complete_in_process) {}
    Backend* backend = nullptr;

    GuestError config_refresh(std::uint32_t, std::uint32_t) noexcept override { return call_back(); }
    GuestError config_write(std::uint32_t offset, std::span<const std::byte> data, bool& accepted) noexcept override {
        const GuestError error = call_back();
        static_cast<void>(EchoModel::config_write(offset, data, accepted));
        return error;
    }
    GuestError accepts(std::span<const std::uint32_t>, bool& accepted) noexcept override {
        accepted = true;
        return call_back();
    }
    GuestError activate(std::span<const std::uint32_t>, std::span<const std::uint32_t> queues) noexcept override {
        static_cast<void>(EchoModel::activate({}, queues));
        return call_back();
    }
    GuestError reset() noexcept override {
        static_cast<void>(EchoModel::reset());
        return call_back();
    }
    GuestError process(std::uint32_t queue, std::span<Chain> batch, std::span<const std::uint64_t> tokens,
                       std::span<std::int64_t> written) noexcept override {
        // Completed here, and not once more by what is returned.
        if (complete_) {
            for (std::size_t i = 0; i < batch.size(); ++i)
                static_cast<void>(backend->complete(queue, tokens[i], echo(batch[i])));
            return call_back();
        }
        const GuestError error = EchoModel::process(queue, batch, tokens, written);
        static_cast<void>(call_back());
        return error;
    }
    GuestError kicked(std::uint32_t) noexcept override { return call_back(); }
    GuestError run_posted() noexcept override { return call_back(); }

  private:
    GuestError call_back() noexcept {
        Chain chain;
        std::uint64_t token = 0;
        bool found = false;
        switch (call_) {
            case Call::needs_reset:
                backend->needs_reset({VMSG_XEN_MODEL, 1});
                break;
            case Call::config_changed:
                backend->config_changed();
                break;
            case Call::pop:
                for (std::uint32_t queue = 0; queue < 4; ++queue) {
                    if (backend->pop(queue, chain, token, found) || !found) continue;
                    if (!backend->complete(queue, token, echo(chain))) return {VMSG_XEN_MODEL, 0};
                }
                break;
            case Call::complete:
                for (std::uint64_t i = 0; i < 70; ++i) static_cast<void>(backend->complete(0, i << 13, 0));
                break;
            case Call::wake:
                if (++wakes_ < 100) backend->wake();
                break;
        }
        return {};
    }

    Call call_;
    bool complete_;
    int wakes_ = 0;
};

}  // namespace

TEST_SUITE("threads") {
    TEST_CASE("threat 19: a model that calls back into the engine from each of its methods hurts nobody else") {
        for (const Call call : {Call::needs_reset, Call::config_changed, Call::pop, Call::complete, Call::wake}) {
            for (const bool complete_in_process : {false, true}) {
                for (const bool pulled : {false, true}) {
                    CAPTURE(static_cast<int>(call));
                    CAPTURE(pulled);
                    CallingModel model(call, complete_in_process);
                    DeviceShape shape;
                    shape.pulled = {false, pulled};
                    LoopbackDevice device(model, shape);
                    model.backend = &device.backend;
                    device.connect();
                    BackendThread thread(device.backend);
                    for (int life = 0; life < 3; ++life) {
                        for (auto& queue : device.queues) queue->setup(64, device.offered);
                        device.start();
                        for (std::size_t cell = 0; cell < 64; ++cell)
                            device.offer(static_cast<std::uint32_t>(cell & 1), cell, cell);
                        for (auto& queue : device.queues) queue->kick();
                        device.backend.wake();
                        device.ask(VMSG_SET_CONFIG, vmsg_config{0, 32, 4}, 1U);
                        device.ask(VMSG_GET_CONFIG, vmsg_config_range{0, 64});
                        device.ask(VMSG_RESET_VQUEUE, vmsg_index{1});
                        device.set_queue(1);
                        device.ask(VMSG_GET_DEVICE_STATUS);
                    }
                    // It is alive, and a reset gives it back.
                    CHECK(device.set_status(0) == 0);
                    CHECK(device.back.mapped_pages() == 2);
                    CHECK(thread.stop() == Exit::stopped);
                    CHECK(model.resets.load() >= model.activations.load());
                }
            }
        }
    }

    TEST_CASE("threat 19: buffers that lie in the ring itself: the device rewrites what it reads, and stays in hand") {
        for (const std::uint64_t seed : {1, 2, 3, 4, 5, 6, 7, 8}) {
            CAPTURE(seed);
            EchoModel model;
            LoopbackDevice device(model);
            device.connect();
            BackendThread thread(device.backend);
            device.start();
            SplitQueueDriver& ring = device.queues[0]->ring();
            const std::uint64_t base = ring.descriptor_address();
            const std::uint64_t end = ring.device_address() + device_bytes(ring.size());
            std::mt19937_64 random(seed);
            // Every write of the device lands in descriptors, avail ring or used ring: it kicks itself.
            for (std::size_t i = 0; i < 30; ++i) {
                const std::uint64_t at = base + random() % (end - base - 64);
                const std::array readable{SplitQueueDriver::Piece{base + random() % (end - base - 64), 64}};
                const std::array writable{SplitQueueDriver::Piece{at, 64}};
                if (!ring.add(readable, writable)) break;
            }
            device.queues[0]->kick();
            // Whatever it has read there, the channel answers, and the device stops and starts.
            for (int i = 0; i < 20; ++i) device.ask(VMSG_GET_DEVICE_STATUS);
            CHECK(device.set_status(0) == 0);
            CHECK(device.back.mapped_pages() == 2);
            for (auto& queue : device.queues) queue->setup(64, device.offered);
            CHECK(device.start() == all_status_bits);
            device.echo(0, seed);
            CHECK(thread.stop() == Exit::stopped);
        }
    }
}

}  // namespace cpp_ring::test
