// The bare ping-pong that the bench compares with.
#include <doctest/doctest.h>

#include <sys/eventfd.h>

#include <array>
#include <stdexcept>
#include <thread>

#include "file_descriptor.hpp"
#include "ping_pong.hpp"
#include "shared.hpp"

namespace cpp_ring::test {
namespace {

struct Memory {
    alignas(64) std::array<std::byte, 128> bytes{};
};

}  // namespace

TEST_CASE("ping-pong: memory without room for two cache lines is refused") {
    Memory memory;
    CHECK_THROWS_AS(PingPong(std::span(memory.bytes).first(127)), std::invalid_argument);
    CHECK_THROWS_AS(PingPong(std::span(memory.bytes).subspan(8)), std::invalid_argument);
    CHECK_NOTHROW(PingPong(memory.bytes));
}

TEST_CASE("ping-pong: a silent peer is not waited for longer than patience lasts") {
    Memory memory;
    PingPong alone(memory.bytes, std::chrono::milliseconds(10));
    LatencyRecorder recorder;
    CHECK(!alone.measure(1, recorder, -1, 0));
    CHECK(!alone.serve(1, -1));
    CHECK(recorder.count() == 0);
}

TEST_SUITE("threads") {
    TEST_CASE("ping-pong: every round trip is counted, spinning and asleep, in more than one run") {
        Memory memory;
        const FileDescriptor event(::eventfd(0, EFD_CLOEXEC));
        PingPong client(memory.bytes);
        PingPong server(memory.bytes);
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
