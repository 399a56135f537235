// The clock that spin budgets are counted in, and waiting with a spin budget, an event and a deadline.
#include <doctest/doctest.h>

#include <limits>
#include <thread>

#include "loopback_hypervisor.hpp"
#include "waiter.hpp"

namespace cpp_ring::test {
namespace {

constexpr auto second = std::chrono::seconds(1);
constexpr std::uint64_t always = std::numeric_limits<std::uint64_t>::max() / 2;

struct Channel {
    LoopbackMachine machine;
    LoopbackHypervisor back{machine, 0};
    LoopbackHypervisor front{machine, 1};
    std::unique_ptr<EventChannels> ours = back.open_event_channels();
    std::unique_ptr<EventChannels> theirs = front.open_event_channels();
    Port remote = theirs->alloc_unbound(0);
    Port local = ours->bind_interdomain(1, remote);

    // What was asked of the callbacks.
    int arms = 0;
    int disarms = 0;

    template <class Ready, class Alive>
    Wait wait(std::uint64_t spin, Clock::duration timeout, Ready&& ready, Alive&& alive) {
        return wait_for(*ours, spin, timeout, ready, alive, [&] { return ++arms, true; }, [&] { ++disarms; });
    }
};

bool yes() { return true; }
bool no() { return false; }

}  // namespace

TEST_CASE("clock: ticks of a time and back") {
    CHECK(ticks_per_ns() > 0);
    CHECK(ticks_of_us(0) == 0);
    CHECK(ticks_of_us(-5) == 0);
    for (const double large :
         {std::numeric_limits<double>::infinity(), std::numeric_limits<double>::quiet_NaN(), 1e300})
        CHECK(ticks_of_us(large) == always);
    CHECK(ticks_of(Clock::duration::max()) > ticks_of(std::chrono::hours(24)));
    CHECK(ticks_of(-second) == 0);
    for (const auto span : {std::chrono::nanoseconds(100), std::chrono::nanoseconds(second)}) {
        const double back = std::chrono::duration<double, std::nano>(time_of(ticks_of(span))).count();
        CHECK(back == doctest::Approx(static_cast<double>(span.count())).epsilon(0.02));
    }
    // A time stamp counter that jumped is a long time, not undefined.
    CHECK(time_of(std::numeric_limits<std::uint64_t>::max()) > std::chrono::hours(24));
    const std::uint64_t before = ticks();
    CHECK(ticks() - before < ticks_of(60 * second));
}

TEST_CASE_FIXTURE(Channel, "wait: what is there is found without arming") {
    CHECK(wait(0, second, yes, yes) == Wait::ready);
    int looks = 0;
    CHECK(wait(ticks_of(second), second, [&] { return ++looks == 1000; }, yes) == Wait::ready);
    CHECK(wait(0, second, yes, no) == Wait::ready);
    CHECK(arms == 0);
}

TEST_CASE_FIXTURE(Channel, "wait: a dead peer is seen while spinning, and what it left is taken") {
    CHECK(wait(always, 60 * second, no, no) == Wait::peer_dead);
    bool alive = true;
    // It answers and dies between two looks.
    CHECK(wait(always, 60 * second, [&] { return !alive; }, [&] { return alive = false; }) == Wait::ready);
    CHECK(arms == 0);
}

TEST_CASE_FIXTURE(Channel,
                  "wait: a peer that dies without an event while we sleep is noticed, and what it left is taken") {
    CHECK(wait(0, 60 * second, no, [&] { return arms == 0; }) == Wait::peer_dead);
    CHECK(arms == disarms);
    arms = disarms = 0;
    bool died = false;
    CHECK(wait(0, 60 * second, [&] { return died; }, [&] { return !(died = arms != 0); }) == Wait::ready);
    CHECK(arms == disarms);
}

TEST_CASE_FIXTURE(Channel, "wait: no spin budget makes it longer than the timeout") {
    for (const std::uint64_t spin : {std::uint64_t{0}, ticks_of_us(1000), always}) {
        const auto start = Clock::now();
        CHECK(wait(spin, std::chrono::milliseconds(20), no, yes) == Wait::timeout);
        const auto taken = Clock::now() - start;
        CHECK(taken >= std::chrono::milliseconds(19));
        CHECK(taken < 30 * second);
        CHECK(arms == disarms);
    }
    CHECK(wait(always, Clock::duration::zero(), no, yes) == Wait::timeout);
}

TEST_CASE_FIXTURE(Channel, "wait: an event without what is waited for ends nothing") {
    // The first event, of binding, is pending; later ones come as if by a peer that storms.
    int looks = 0;
    const auto ready = [&] {
        theirs->notify(remote);
        return ++looks > 500;
    };
    CHECK(wait(0, 60 * second, ready, yes) == Wait::ready);
    CHECK(arms == disarms);
}

TEST_CASE_FIXTURE(Channel, "drain: bounded, even if each unmask finds a new event") {
    struct Storm final : EventChannels {
        int taken = 0;
        [[nodiscard]] int fd() const noexcept override { return -1; }
        [[nodiscard]] Port alloc_unbound(DomId) override { return 1; }
        [[nodiscard]] Port bind_interdomain(DomId, Port) override { return 1; }
        void unbind(Port) noexcept override {}
        void notify(Port) noexcept override {}
        [[nodiscard]] std::optional<Port> pending() noexcept override { return ++taken, Port{1}; }
        void unmask(Port) noexcept override {}
    } storm;
    CHECK(drain(storm));
    CHECK(storm.taken <= 64);
    CHECK(drain(*ours));
    CHECK(!drain(*ours));
    theirs->notify(remote);
    CHECK(drain(*ours));
}

TEST_SUITE("threads") {
    TEST_CASE_FIXTURE(Channel, "wait: a sleeper is woken by the event") {
        Atomic<bool> there{false};
        for (int i = 0; i < 100; ++i) {
            there = false;
            std::thread peer([&] {
                there = true;
                theirs->notify(remote);
            });
            CHECK(wait(0, 60 * second, [&] { return there.load(); }, yes) == Wait::ready);
            peer.join();
        }
    }
}

}  // namespace cpp_ring::test
