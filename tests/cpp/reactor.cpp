// What a device's thread sleeps on, and how it is woken.
#include <doctest/doctest.h>

#include <fcntl.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <thread>

#include "loopback_hypervisor.hpp"
#include "reactor.hpp"

namespace cpp_ring::test {
namespace {

FileDescriptor make_event(unsigned value) { return FileDescriptor(::eventfd(value, EFD_NONBLOCK | EFD_CLOEXEC)); }

bool is_ready(const Reactor& reactor, int fd) { return std::ranges::count(reactor.ready(), fd) == 1; }

}  // namespace

TEST_CASE("file descriptor: closed once, by the last owner") {
    int number = -1;
    {
        FileDescriptor first = make_event(0);
        number = first.get();
        FileDescriptor second = std::move(first);
        CHECK(!first);  // NOLINT(bugprone-use-after-move): what moving leaves is the point
        CHECK(second.get() == number);
        FileDescriptor third;
        CHECK(!third);
        third = std::move(second);
        CHECK(third.get() == number);
        CHECK(::fcntl(number, F_GETFD) >= 0);
    }
    CHECK(::fcntl(number, F_GETFD) == -1);
}

TEST_CASE("reactor: host descriptors are reported while they are readable, and not after remove()") {
    Reactor reactor;
    const FileDescriptor quiet = make_event(0);
    const FileDescriptor loud = make_event(1);
    CHECK(!reactor.has_host_fds());
    reactor.add(quiet.get());
    reactor.add(loud.get());
    CHECK(reactor.has_host_fds());
    for (int i = 0; i < 3; ++i) {
        reactor.wait(-1);
        CHECK(reactor.ready().size() == 1);
        CHECK(is_ready(reactor, loud.get()));
        CHECK(!reactor.channels_ready());
    }
    reactor.remove(loud.get());
    CHECK(reactor.ready().empty());  // also of what was reported already
    reactor.wait(0);
    CHECK(reactor.ready().empty());
    reactor.remove(quiet.get());
    CHECK(!reactor.has_host_fds());
}

TEST_CASE("reactor: a descriptor that cannot be watched is a host error, one that was closed first is let go of") {
    Reactor reactor;
    CHECK_THROWS_AS(reactor.add(-1), HostError);
    CHECK(!reactor.has_host_fds());
    int number = -1;
    {
        const FileDescriptor event = make_event(1);
        number = event.get();
        reactor.add(number);
        CHECK_THROWS_AS(reactor.add(number), HostError);
    }
    reactor.wait(0);
    CHECK(reactor.ready().empty());
    const FileDescriptor again = make_event(1);
    REQUIRE(again.get() == number);
    reactor.add(number);
    reactor.wait(0);
    CHECK(is_ready(reactor, number));
    reactor.remove(number);
    CHECK(!reactor.has_host_fds());
}

TEST_CASE("reactor: removing what was never added touches neither the wake-up nor the channels") {
    LoopbackMachine machine;
    LoopbackHypervisor back(machine, 0);
    Reactor reactor;
    const auto channels = back.open_event_channels();
    reactor.use_channels(channels.get());
    for (int fd = -1; fd < 200; ++fd) reactor.remove(fd);
    const Port port = channels->alloc_unbound(0);
    CHECK(channels->bind_interdomain(0, port) != port);  // pending at once
    reactor.wait(-1);
    CHECK(reactor.channels_ready());
    reactor.take_channels();
    reactor.wake();
    reactor.wait(-1);
    CHECK(!reactor.channels_ready());
    reactor.use_channels(nullptr);
}

TEST_CASE("reactor: ports stay masked from take_channels() to unmask_channels(), and no event is lost between") {
    LoopbackMachine machine;
    LoopbackHypervisor back(machine, 0);
    LoopbackHypervisor front(machine, 1);
    const auto ours = back.open_event_channels();
    const auto theirs = front.open_event_channels();
    const Port remote = theirs->alloc_unbound(0);
    const Port local = ours->bind_interdomain(1, remote);
    CHECK(local != 0);
    Reactor reactor;
    reactor.use_channels(ours.get());
    const auto pending = [&] {
        reactor.wait(0);
        return reactor.channels_ready();
    };
    CHECK(pending());
    CHECK(pending());  // until it is taken
    reactor.take_channels();
    CHECK(!pending());
    for (int i = 0; i < 100; ++i) theirs->notify(remote);
    CHECK(!pending());
    reactor.unmask_channels();
    CHECK(pending());
    reactor.take_channels();
    reactor.unmask_channels();
    CHECK(!pending());  // a hundred events are one
    theirs->notify(remote);
    CHECK(pending());
    reactor.use_channels(nullptr);
    CHECK(!pending());
    reactor.take_channels();
    reactor.unmask_channels();
}

TEST_SUITE("threads") {
    TEST_CASE("reactor: wake() ends the present wait or the next one") {
        Reactor reactor;
        reactor.wake();
        reactor.wake();
        reactor.wait(-1);
        for (int i = 0; i < 200; ++i) {
            std::thread waker([&] { reactor.wake(); });
            reactor.wait(-1);
            waker.join();
        }
        reactor.wait(0);
    }
}

}  // namespace cpp_ring::test
