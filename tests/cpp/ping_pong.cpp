// The bare ping-pong that the bench compares with.
#include <doctest/doctest.h>

#include <sys/eventfd.h>
#include <sys/mman.h>

#include <thread>

#include "errors.hpp"
#include "file_descriptor.hpp"
#include "hypervisor.hpp"
#include "ping_pong.hpp"
#include "shared.hpp"

namespace cpp_ring::test {
namespace {

FileDescriptor make_page() {
    FileDescriptor page(::memfd_create("ping-pong", MFD_CLOEXEC));
    REQUIRE(::ftruncate(page.get(), page_size) == 0);
    return page;
}

}  // namespace

TEST_CASE("ping-pong: what is not a memfd is a host error") { CHECK_THROWS_AS(PingPong(-1), HostError); }

TEST_CASE("ping-pong: a silent peer is not waited for longer than a second or so") {
    const FileDescriptor page = make_page();
    PingPong alone(page.get());
    LatencyRecorder recorder;
    CHECK(!alone.measure(1, recorder, -1, 0));
    CHECK(recorder.count() == 0);
}

TEST_SUITE("threads") {
    TEST_CASE("ping-pong: every round trip is counted, spinning and asleep, in more than one run") {
        const FileDescriptor page = make_page();
        const FileDescriptor event(::eventfd(0, EFD_CLOEXEC));
        PingPong client(page.get());
        PingPong server(page.get());
        for (const int fd : {-1, event.get(), -1}) {
            LatencyRecorder recorder;
            Atomic<bool> served{false};
            std::thread thread([&] { served = server.serve(50, fd); });
            const bool measured = client.measure(50, recorder, fd, 1);
            thread.join();
            CHECK(measured);
            CHECK(served);
            CHECK(recorder.count() == 50);
            CHECK(recorder.min() > 0);
        }
    }
}

}  // namespace cpp_ring::test
