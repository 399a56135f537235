// Threat 10, on the config ring and on a backend's queues: a lost wake-up. Each side sleeps only when it was told that
// it may; were an event lost, both would sleep until the deadline. Each of the config ring's four fences, taken out,
// makes the first case fail on x86 (tried by hand); those of the virtqueues: split_queue_threads.cpp.
#include <doctest/doctest.h>

#include <poll.h>

#include <array>
#include <chrono>
#include <memory>
#include <random>
#include <thread>

#include "loopback_device.hpp"
#include "rounds.hpp"

namespace cpp_ring::test {
namespace {

constexpr std::uint32_t fewer = thread_sanitizer ? 10 : 1;

// Some work of random length, of the magnitude that falling asleep takes.
class Delay {
  public:
    explicit Delay(unsigned seed) : random_(seed) {}
    void operator()(std::uint32_t most) {
        for (std::uint32_t i = static_cast<std::uint32_t>(random_()) % most; i != 0; --i) cpu_relax();
    }

  private:
    std::mt19937 random_;
};

// A sleep without a system call, which would order too much: until the other side has said so.
class Sleeper {
  public:
    void notify() noexcept { event_.store(true, std::memory_order_relaxed); }
    // False: nobody notified in a time that no machine is busy for.
    [[nodiscard]] bool wait() noexcept {
        const auto deadline = Clock::now() + for_ever;
        for (std::uint64_t i = 1; !event_.load(std::memory_order_relaxed); ++i) {
            if (i % 1024 != 0) continue;
            if (Clock::now() > deadline) return false;
            std::this_thread::yield();
        }
        event_.store(false, std::memory_order_relaxed);
        return true;
    }

  private:
    Atomic<bool> event_{false};
};

struct Pages {
    alignas(page_size) std::array<std::byte, page_size> fe_bytes{};
    alignas(page_size) std::array<std::byte, page_size> be_bytes{};
    vmsg_xen_fe_page* fe = reinterpret_cast<vmsg_xen_fe_page*>(fe_bytes.data());
    vmsg_xen_be_page* be = reinterpret_cast<vmsg_xen_be_page*>(be_bytes.data());
};

// Looks a random number of times, then sleeps if `ring` says that it may. False: an event was lost.
template <class Ring>
bool next(Ring& ring, Sleeper& sleeper, Delay& delay, std::mt19937& random, Message& message, std::size_t& sleeps) {
    GuestError error;
    for (;;) {
        for (std::uint32_t looks = static_cast<std::uint32_t>(random()) % 4; looks != 0; --looks)
            if (ring.poll(message, error) == Poll::message) return true;
        delay(8);
        if (ring.arm()) {
            ++sleeps;
            if (!sleeper.wait()) return false;
        }
        ring.disarm();
        if (ring.poll(message, error) == Poll::message) return true;
    }
}

// Every read of a hooked byte takes the device a while.
class SlowModel final : public EchoModel {
  public:
    GuestError config_refresh(std::uint32_t, std::uint32_t) noexcept override {
        delay_(longest);
        return {};
    }
    GuestError process(std::uint32_t queue, std::span<Chain> batch, std::span<const std::uint64_t> tokens,
                       std::span<std::int64_t> written) noexcept override {
        delay_(longest);
        return EchoModel::process(queue, batch, tokens, written);
    }
    std::uint32_t longest = 200;

  private:
    Delay delay_{101};
};

// Sleeps on the events alone. Frontend and DriverQueue look up every 100 ms, and would hide an event that was lost.
bool sleep_on(EventChannels& channels) {
    pollfd wanted{.fd = channels.fd(), .events = POLLIN, .revents = 0};
    const int ready = ::poll(&wanted, 1, std::chrono::milliseconds(for_ever).count());
    drain(channels);
    return ready == 1;
}

// However busy the machine is, now and then the backend does fall asleep before it is asked.
template <class Ring>
void let_it_sleep(const Ring& ring) {
    const auto deadline = Clock::now() + for_ever;
    while (!ring.backend_waiting() && Clock::now() < deadline) std::this_thread::yield();
}

void exchange_rounds(double backend_spin, std::uint32_t frontend_spins, std::uint64_t total) {
    CAPTURE(backend_spin);
    CAPTURE(frontend_spins);
    SlowModel model;
    DeviceShape shape;
    shape.spin_us = backend_spin;
    LoopbackDevice device(model, shape);
    RawFrontend frontend(device.front);
    FrontendRing<> ring(frontend.fe, frontend.be);
    REQUIRE(!device.backend.connect(frontend.address()));
    {
        BackendThread thread(device.backend);
        Delay delay(102);
        std::uint64_t done = 0;
        for (bool lost = false; done < total; ++done) {
            if (done % (total / 4) == 0) let_it_sleep(ring);
            const Message request = make_request(VMSG_GET_CONFIG, bytes_of(vmsg_config_range{40, 4}), ring.token());
            if (ring.publish(request)) frontend.channels->notify(frontend.port);
            Message answer;
            GuestError error;
            std::uint32_t spins = frontend_spins;
            while (!lost && ring.poll(answer, error) == Poll::nothing) {
                if (spins != 0) {
                    --spins;
                    continue;
                }
                if (ring.arm()) lost = !sleep_on(*frontend.channels);
                ring.disarm();
            }
            if (lost || error) break;
            delay(400);
        }
        CHECK(done == total);
    }
    CHECK(device.backend.counters().requests == total);
    CHECK(device.backend.counters().sleeps > 0);
}

// A queue with a port of its own, and a driver that sleeps on nothing else.
struct PatientQueue {
    PatientQueue(LoopbackHypervisor& front, std::uint64_t features)
        : channels(front.open_event_channels()),
          port(channels->alloc_unbound(backend_domain)),
          ring(front.share(backend_domain, SplitQueueDriver::pages_needed(16, features), true), 16, features) {}

    // False: an event was lost, or the device lied.
    bool take(std::uint32_t count) {
        SplitQueueDriver::Used used{};
        bool lied = false;
        while (count != 0) {
            if (ring.pop(used, lied))
                --count;
            else if (lied || (!ring.enable_interrupts() && !sleep_on(*channels)))
                return false;
        }
        ring.disable_interrupts();
        return true;
    }

    std::unique_ptr<EventChannels> channels;
    Port port;
    SplitQueueDriver ring;
};

void queue_rounds(std::uint64_t features, double backend_spin, std::uint32_t rounds) {
    CAPTURE(features);
    CAPTURE(backend_spin);
    SlowModel model;
    DeviceShape shape;
    shape.features = features;
    shape.spin_us = backend_spin;
    LoopbackDevice device(model, shape);
    std::array<PatientQueue, 2> queues{PatientQueue(device.front, features), PatientQueue(device.front, features)};
    ChannelAddress address = device.address();
    address.queue_event_channels = {queues[0].port, queues[1].port};
    REQUIRE(!device.backend.connect(address));
    {
        BackendThread thread(device.backend);
        device.negotiate(features);
        for (std::uint32_t i = 0; i < 2; ++i) device.set_queue(i, queues[i].ring);
        REQUIRE(device.set_status(all_status_bits) == all_status_bits);
        Delay delay(103);
        std::mt19937 random(104);
        std::size_t wrong = 0;
        bool lost = false;
        for (std::uint64_t number = 0; number < rounds && !lost; number += 4) {
            if (number % (rounds / 4) == 0) let_it_sleep(device.frontend->ring());
            // A few chains over two queues.
            std::array<std::uint32_t, 2> sent{};
            for (std::uint32_t i = 0; i < 2; ++i) {
                sent[i] = static_cast<std::uint32_t>(random()) % 4;
                for (std::uint32_t chain = 0; chain < sent[i]; ++chain)
                    device.add(queues[i].ring, i * 8 + chain, number + chain);
                queues[i].ring.publish();
                if (queues[i].ring.needs_kick()) queues[i].channels->notify(queues[i].port);
                delay(100);
            }
            for (std::uint32_t i = 0; i < 2 && !lost; ++i) {
                lost = !queues[i].take(sent[i]);
                for (std::uint32_t chain = 0; chain < sent[i]; ++chain)
                    wrong += device.answered(i * 8 + chain) != ~(number + chain);
            }
            delay(400);
        }
        CHECK(!lost);
        CHECK(wrong == 0);
    }
    CHECK(device.backend.counters().sleeps > 0);
}

}  // namespace

TEST_SUITE("threads") {
    TEST_CASE("threat 10: the config ring's two halves, asleep as often as they may be, miss no event") {
        const std::uint64_t total = rounds(300'000 / fewer, 100'000'000);
        const auto pages = std::make_unique<Pages>();
        FrontendRing<> frontend(pages->fe, pages->be);
        BackendRing<> backend(pages->fe, pages->be);
        REQUIRE(!backend.open());
        Sleeper fe_sleeper;
        Sleeper be_sleeper;
        std::size_t be_sleeps = 0;
        std::uint64_t answered = 0;
        std::thread thread([&] {
            Delay delay(1);
            std::mt19937 random(2);
            Message message;
            for (; answered < total && next(backend, be_sleeper, delay, random, message, be_sleeps); ++answered)
                if (backend.answer(message)) fe_sleeper.notify();
        });
        std::size_t fe_sleeps = 0;
        std::uint64_t done = 0;
        Delay delay(3);
        std::mt19937 random(4);
        for (; done < total; ++done) {
            if (frontend.publish(make_request(VMSG_GET_DEVICE_STATUS, {}, frontend.token()))) be_sleeper.notify();
            Message message;
            if (!next(frontend, fe_sleeper, delay, random, message, fe_sleeps)) break;
        }
        thread.join();
        CHECK(done == total);
        CHECK(answered == total);
        CHECK(fe_sleeps > 0);
        CHECK(be_sleeps > 0);
    }

    TEST_CASE("threat 10: exchanges with a backend, both asleep at once, miss no event") {
        exchange_rounds(0, 0, rounds(16'000, 20'000) / fewer);
    }
    TEST_CASE("threat 10: exchanges with a backend that falls asleep while the request comes, miss no event") {
        exchange_rounds(2, 50, rounds(8'000, 20'000) / fewer);
        exchange_rounds(5, 1000, rounds(8'000, 20'000) / fewer);
        exchange_rounds(50, 0, rounds(8'000, 20'000) / fewer);
    }
    TEST_CASE("threat 10: kicks and interrupts of two queues, by flags and by event index, are not lost") {
        for (const std::uint64_t features : {version_1_bit, version_1_bit | event_idx_bit}) {
            queue_rounds(features, 0, 20'000 / fewer);
            queue_rounds(features, 5, 20'000 / fewer);
        }
    }
}

}  // namespace cpp_ring::test
