// The backend of one device against a frontend in another thread: connection, traffic, reset, and the ends of both.
#include <doctest/doctest.h>

#include <algorithm>
#include <new>
#include <set>
#include <stdexcept>
#include <vector>

#include "loopback_device.hpp"

namespace cpp_ring::test {
namespace {

constexpr std::size_t header_pages = 2;

// Keeps the chains of its queues until it is told to give them back, from another thread.
class HoldingModel final : public EchoModel {
  public:
    Backend* backend = nullptr;
    struct Held {
        std::uint32_t queue;
        std::uint64_t token;
        Chain chain;
    };
    std::vector<Held> held;
    std::size_t refused = 0;
    Atomic<std::uint64_t> taken{0};
    bool keep_over_reset = false;

    GuestError process(std::uint32_t queue, std::span<Chain> batch, std::span<const std::uint64_t> tokens,
                       std::span<std::int64_t>) noexcept override {
        for (std::size_t i = 0; i < batch.size(); ++i) held.push_back({queue, tokens[i], std::move(batch[i])});
        taken += batch.size();
        return {};
    }
    // Last in, first out.
    GuestError run_posted() noexcept override {
        for (; !held.empty(); held.pop_back()) {
            const Held& last = held.back();
            refused += !backend->complete(last.queue, last.token, echo(last.chain));
        }
        return {};
    }
    GuestError reset() noexcept override {
        if (!keep_over_reset) held.clear();
        return EchoModel::reset();
    }
};

// Takes buffers itself, as a network card's receive queue does.
class PullingModel final : public EchoModel {
  public:
    Backend* backend = nullptr;
    std::uint64_t kicks = 0;
    std::uint64_t empty = 0;

    GuestError kicked(std::uint32_t queue) noexcept override {
        ++kicks;
        for (bool found = true; found;) {
            std::uint64_t token = 0;
            if (const GuestError error = backend->pop(queue, chain_, token, found)) return error;
            if (!found) break;
            if (!backend->complete(queue, token, echo(chain_))) return {VMSG_XEN_MODEL, 0};
            chain_.clear();
        }
        ++empty;
        return {};
    }

  private:
    Chain chain_;
};

}  // namespace

TEST_CASE("backend: as many `pulled` flags as queues") {
    EchoModel model;
    DeviceShape shape;
    shape.pulled = {false};
    CHECK_THROWS_AS(LoopbackDevice(model, shape), std::invalid_argument);
}

TEST_SUITE("threads") {
    TEST_CASE("backend: the life of a device, from connecting to the end, twice") {
        EchoModel model;
        LoopbackDevice device(model);
        for (std::uint64_t life = 1; life <= 2; ++life) {
            device.connect();
            CHECK(device.backend.connected());
            CHECK(!device.frontend->ring().check());
            CHECK(device.back.mapped_pages() == header_pages);
            {
                BackendThread thread(device.backend);
                CHECK(device.start() == all_status_bits);
                CHECK(device.frontend->ring().device_status() == all_status_bits);
                for (std::uint64_t number = 0; number < 100; ++number)
                    for (const std::uint32_t queue : {0U, 1U}) device.echo(queue, number * 0x9e3779b97f4a7c15);
                CHECK(thread.stop() == Exit::stopped);
            }
            CHECK(model.activations == life);
            CHECK(model.resets == life);
            CHECK(!device.backend.connected());
            CHECK(device.back.mappings() == 0);
            CHECK(device.back.ports() == 0);
            CHECK(device.back.open_handles() == 0);
            CHECK(device.backend.mapped_pages() == 0);
            CHECK(!device.frontend->ring().backend_alive());
            CHECK(device.frontend->exchange(VMSG_GET_DEVICE_STATUS, {}, for_ever) == ExchangeResult::peer_dead);
            // The next kernel of that domain begins with fresh pages and rings.
            device.frontend.reset();
            device.frontend.emplace(device.front, backend_domain);
            for (auto& queue : device.queues) queue->setup(64, device.offered);
        }
        CHECK(device.backend.counters().buffers == 400);
        CHECK(model.served == 400);
    }

    TEST_CASE("backend: configuration is read and written, by memory and by hook") {
        EchoModel model;
        LoopbackDevice device(model);
        device.connect();
        BackendThread thread(device.backend);
        device.set_status(status_acknowledge);
        device.set_status(status_acknowledge | status_driver);
        for (const std::uint32_t offset : {0U, 40U}) {
            for (std::uint32_t value = 1; value < 500; ++value) {
                const Message& answer = device.ask(VMSG_SET_CONFIG, vmsg_config{0, offset, 4}, value * 0x01010101);
                REQUIRE(answer.payload<vmsg_config>().generation == device.frontend->ring().config_generation());
                // The RFC's race: a write, and a read at once.
                const Message& read = device.ask(VMSG_GET_CONFIG, vmsg_config_range{offset, 4});
                REQUIRE(read.payload<std::uint32_t>(sizeof(vmsg_config)) == value * 0x01010101);
            }
        }
        CHECK(device.frontend->ring().config_generation() == 998);
    }

    TEST_CASE("backend: a reset through the channel unmaps all but the two pages, and the device starts again") {
        EchoModel model;
        LoopbackDevice device(model);
        device.connect();
        BackendThread thread(device.backend);
        for (std::uint64_t life = 1; life < 50; ++life) {
            REQUIRE(device.start() == all_status_bits);
            REQUIRE(device.back.mapped_pages() > header_pages);
            device.echo(0, life);
            REQUIRE(device.set_status(0) == 0);
            REQUIRE(device.back.mapped_pages() == header_pages);
            for (auto& queue : device.queues) queue->setup(64, device.offered);
        }
        thread.stop();
        CHECK(model.activations == 49);
        CHECK(model.resets == 49);
    }

    TEST_CASE("backend: chains that a model holds are completed from a post, in any order") {
        HoldingModel model;
        LoopbackDevice device(model);
        model.backend = &device.backend;
        device.connect();
        BackendThread thread(device.backend);
        device.start();
        DriverQueue& queue = *device.queues[0];
        for (std::uint64_t cell = 0; cell < 16; ++cell) device.offer(0, cell, cell);
        queue.kick();
        // A post that came before the chains were taken would find nothing to complete.
        while (model.taken < 16) device.ask(VMSG_GET_DEVICE_STATUS);
        std::set<std::uint16_t> heads;
        while (heads.size() < 16) {
            device.backend.wake();
            REQUIRE(queue.wait(for_ever));
            SplitQueueDriver::Used used{};
            bool lied = false;
            while (queue.ring().pop(used, lied)) CHECK(heads.insert(used.head).second);
            REQUIRE(!lied);
        }
        for (std::uint64_t cell = 0; cell < 16; ++cell) CHECK(device.answered(cell) == ~cell);
        CHECK(thread.stop() == Exit::stopped);
        CHECK(model.refused == 0);
    }

    TEST_CASE(
        "backend: chains from before a reset are dropped when they are completed, and keep their memory until then") {
        HoldingModel model;
        model.keep_over_reset = true;
        LoopbackDevice device(model);
        model.backend = &device.backend;
        device.connect();
        {
            BackendThread thread(device.backend);
            device.start();
            device.offer(0, 0, 7);
            device.queues[0]->kick();
            while (model.taken == 0) device.ask(VMSG_GET_DEVICE_STATUS);
            device.set_status(0);
            for (auto& queue : device.queues) queue->setup(64, device.offered);
            device.start();
            device.backend.wake();
            device.ask(VMSG_GET_DEVICE_STATUS);
            CHECK(thread.stop() == Exit::stopped);
        }
        CHECK(model.refused == 0);
        CHECK(model.held.empty());
        CHECK(device.back.mappings() == 0);
    }

    TEST_CASE("backend: a queue that the model pulls from is kicked when it was found empty") {
        PullingModel model;
        DeviceShape shape;
        shape.pulled = {true, true};
        for (const double spin : {0.0, 20.0}) {
            shape.spin_us = spin;
            LoopbackDevice device(model, shape);
            model.backend = &device.backend;
            device.connect();
            BackendThread thread(device.backend);
            device.start();
            for (std::uint64_t number = 0; number < 300; ++number) device.echo(number & 1, number);
            CHECK(thread.stop() == Exit::stopped);
            CHECK(model.kicks == model.empty);
        }
        CHECK(model.kicks >= 600);
    }

    TEST_CASE("backend: a queue that was reset is served again after it was set up anew, the other one all the time") {
        EchoModel model;
        LoopbackDevice device(model);
        device.connect();
        BackendThread thread(device.backend);
        device.start();
        for (std::uint64_t number = 0; number < 30; ++number) {
            device.echo(0, number);
            device.echo(1, number);
            device.ask(VMSG_RESET_VQUEUE, vmsg_index{1});
            device.echo(0, number);
            device.queues[1]->setup(64, device.offered);
            device.set_queue(1);
        }
        CHECK(device.frontend->ring().error().code == 0);
        CHECK(model.resets == 0);
        CHECK(model.queue_resets == 30);
    }

    TEST_CASE("backend: a queue that cannot be set up anew stops all of them, and the driver is told by an event") {
        EchoModel model;
        LoopbackDevice device(model);
        device.connect();
        BackendThread thread(device.backend);
        device.start();
        device.echo(0, 1);
        device.ask(VMSG_RESET_VQUEUE, vmsg_index{1});
        while (device.frontend->wait_event(Clock::duration::zero())) continue;
        device.ask(VMSG_SET_VQUEUE, plausible_queue(1, 8, 0x10000));
        CHECK(device.frontend->wait_event(for_ever));
        CHECK(device.frontend->ring().device_status() == (all_status_bits | status_needs_reset));
        CHECK(device.frontend->ring().error().code == VMSG_XEN_GRANT_MAP);
        CHECK(device.back.mapped_pages() == header_pages);
        for (auto& queue : device.queues) queue->setup(64, device.offered);
        CHECK(device.start() == all_status_bits);
        device.echo(1, 2);
    }

    TEST_CASE("backend: a configuration change is an event and a new generation") {
        class Changing final : public EchoModel {
          public:
            Backend* backend = nullptr;
            GuestError run_posted() noexcept override {
                backend->config_changed();
                return {};
            }
        } model;
        LoopbackDevice device(model);
        model.backend = &device.backend;
        device.connect();
        BackendThread thread(device.backend);
        std::uint32_t generation = device.frontend->ring().config_generation();
        for (int i = 0; i < 20; ++i) {
            device.backend.wake();
            // There may be events for other reasons.
            while (device.frontend->ring().config_generation() == generation)
                REQUIRE(device.frontend->wait_event(for_ever));
            ++generation;
            REQUIRE(device.frontend->ring().config_generation() == generation);
        }
    }

    TEST_CASE("backend: a model that fails sets DEVICE_NEEDS_RESET and an event; a reset heals") {
        class Failing final : public EchoModel {
          public:
            Atomic<bool> fail{true};
            GuestError process(std::uint32_t queue, std::span<Chain> batch, std::span<const std::uint64_t> tokens,
                               std::span<std::int64_t> written) noexcept override {
                if (fail) return {VMSG_XEN_MODEL, 0};
                return EchoModel::process(queue, batch, tokens, written);
            }
        } model;
        LoopbackDevice device(model);
        device.connect();
        BackendThread thread(device.backend);
        device.start();
        device.offer(0, 0, 1);
        device.queues[0]->kick();
        while ((device.frontend->ring().device_status() & status_needs_reset) == 0)
            REQUIRE(device.frontend->wait_event(for_ever));
        CHECK(device.frontend->ring().error().code == VMSG_XEN_MODEL);
        // Another thread of the host sees what the driver sees.
        CHECK(device.backend.state().status == (all_status_bits | status_needs_reset));
        CHECK(device.backend.state().error_code == VMSG_XEN_MODEL);
        CHECK(device.back.mapped_pages() == header_pages);
        CHECK(!device.queues[0]->ring().has_used());
        model.fail = false;
        for (auto& queue : device.queues) queue->setup(64, device.offered);
        CHECK(device.start() == all_status_bits);
        device.echo(0, 5);
    }

    TEST_CASE("backend: nonsense that a model reports as written is the model's failure") {
        class Nonsense final : public EchoModel {
          public:
            std::int64_t value = 0;
            GuestError process(std::uint32_t, std::span<Chain>, std::span<const std::uint64_t>,
                               std::span<std::int64_t> written) noexcept override {
                written[0] = value;
                return {};
            }
        } model;
        for (const std::int64_t value :
             {std::int64_t{9}, std::int64_t{1} << 32, std::int64_t{-2}, INT64_MIN, INT64_MAX}) {
            CAPTURE(value);
            model.value = value;
            LoopbackDevice device(model);
            device.connect();
            BackendThread thread(device.backend);
            device.start();
            device.offer(0, 0, 1);
            device.queues[0]->kick();
            while ((device.frontend->ring().device_status() & status_needs_reset) == 0)
                REQUIRE(device.frontend->wait_event(for_ever));
            CHECK(device.frontend->ring().error().code == VMSG_XEN_MODEL);
            CHECK(!device.queues[0]->ring().has_used());
        }
    }

    TEST_CASE("backend: a batch is bounded by bytes as well as by number, and the rest comes in the next one") {
        class Measuring final : public EchoModel {
          public:
            std::uint64_t most = 0;
            GuestError process(std::uint32_t, std::span<Chain> batch, std::span<const std::uint64_t>,
                               std::span<std::int64_t> written) noexcept override {
                std::uint64_t bytes = 0;
                for (const Chain& chain : batch) bytes += chain.readable_bytes;
                most = std::max(most, bytes);
                std::ranges::fill(written, 0);
                served += batch.size();
                return {};
            }
        } model;
        DeviceShape shape;
        shape.queue_sizes = {256};
        shape.pulled = {false};
        shape.features = version_1_bit;
        LoopbackDevice device(model, shape);
        device.connect();
        BackendThread thread(device.backend);
        device.start();
        // The same pages again and again: 5 chains of 50 times 64 KiB.
        constexpr std::uint32_t piece = 16 * page_size;
        const std::vector pieces(50, SplitQueueDriver::Piece{grant_address(device.arena->first_ref(), 0), piece});
        for (int i = 0; i < 5; ++i) REQUIRE(device.queues[0]->ring().add(pieces, {}));
        device.queues[0]->kick();
        SplitQueueDriver::Used used{};
        bool lied = false;
        for (int got = 0; got < 5; got += device.queues[0]->ring().pop(used, lied) ? 1 : 0)
            REQUIRE(device.queues[0]->wait(for_ever));
        CHECK(thread.stop() == Exit::stopped);
        CHECK(model.served == 5);
        CHECK(model.most <= 2 * pieces.size() * piece);  // 4 MiB, and what the last chain has beyond
    }

    TEST_CASE("backend: host descriptors are served beside the ring, level triggered, until they are unwatched") {
        class Watching final : public EchoModel {
          public:
            Atomic<std::uint64_t> read{0};
            int fd = -1;
            GuestError ready(int which) noexcept override {
                std::uint64_t value = 0;
                if (which == fd && ::read(fd, &value, sizeof value) == sizeof value) read += value;
                return {};
            }
        } model;
        const FileDescriptor event(::eventfd(0, EFD_SEMAPHORE | EFD_NONBLOCK | EFD_CLOEXEC));
        model.fd = event.get();
        for (const double spin : {0.0, 50.0, 1e12}) {
            DeviceShape shape;
            shape.spin_us = spin;
            LoopbackDevice device(model, shape);
            device.backend.watch(event.get());
            device.connect();
            model.read = 0;
            BackendThread thread(device.backend);
            const std::uint64_t ten = 10;
            REQUIRE(::write(event.get(), &ten, sizeof ten) == sizeof ten);
            const auto deadline = Clock::now() + for_ever;
            while (model.read < 10) {
                device.ask(VMSG_GET_DEVICE_STATUS);
                REQUIRE(Clock::now() < deadline);
            }
            thread.stop();
            device.backend.unwatch(event.get());
            CHECK(model.read == 10);
        }
    }

    TEST_CASE("backend: wake() is never lost: each post is run, whether it spins or sleeps") {
        class Posted final : public EchoModel {
          public:
            Atomic<std::uint64_t> runs{0};
            GuestError run_posted() noexcept override {
                ++runs;
                return {};
            }
        } model;
        constexpr std::uint64_t posts = thread_sanitizer ? 300 : 1000;
        for (const double spin : {0.0, 10.0, 1e12}) {
            CAPTURE(spin);
            DeviceShape shape;
            shape.spin_us = spin;
            LoopbackDevice device(model, shape);
            device.connect();
            BackendThread thread(device.backend);
            for (std::uint64_t i = 0; i < posts; ++i) {
                const std::uint64_t before = model.runs;
                device.backend.wake();
                const auto deadline = Clock::now() + for_ever;
                while (model.runs == before && Clock::now() < deadline) std::this_thread::yield();
                REQUIRE(model.runs != before);
            }
        }
    }

    TEST_CASE("backend: an exception of the host unmaps everything on its way out") {
        EchoModel model;
        LoopbackDevice device(model);
        device.back.calls = 0;
        device.back.fail_at = 7;  // after connect()'s six: the arena
        device.back.out_of_memory = true;
        device.connect();
        bool thrown = false;
        std::thread thread([&] {
            try {
                static_cast<void>(device.backend.run());
            } catch (const std::bad_alloc&) {
                thrown = true;
            }
        });
        device.set_status(status_acknowledge);
        device.set_status(status_acknowledge | status_driver);
        device.ask(VMSG_SET_DRIVER_FEATURES, vmsg_feature_range{0, 2}, 0U, 1U);
        device.set_status(status_acknowledge | status_driver | status_features_ok);
        // The frontend waits for an answer that nobody will write, and is told.
        CHECK(device.frontend->exchange(VMSG_SET_DEVICE_STATUS, bytes_of(vmsg_status{all_status_bits}), for_ever) ==
              ExchangeResult::peer_dead);
        thread.join();
        CHECK(thrown);
        CHECK(device.back.mappings() == 0);
        CHECK(device.back.ports() == 0);
    }
}

}  // namespace cpp_ring::test
