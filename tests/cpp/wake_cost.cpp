// How long a sleeper takes to be woken, which is measured on whatever machine this is.
#include <doctest/doctest.h>

#include <fcntl.h>
#include <sys/resource.h>

#include "file_descriptor.hpp"
#include "wake_cost.hpp"

namespace cpp_ring::test {
namespace {

int lowest_free_descriptor() {
    const FileDescriptor next(::open("/dev/null", O_RDONLY | O_CLOEXEC));
    return next.get();
}

}  // namespace

TEST_CASE("wake cost: some time, less than the patience of a round trip, and nothing stays open") {
    const int before = lowest_free_descriptor();
    const double cost = measure_wake_us();
    CHECK(cost > 0);
    CHECK(cost < 1e6);
    CHECK(lowest_free_descriptor() == before);
}

TEST_CASE("wake cost: 0 where the host has no descriptors to give") {
    const auto lowest = static_cast<rlim_t>(lowest_free_descriptor());
    rlimit limit{};
    REQUIRE(::getrlimit(RLIMIT_NOFILE, &limit) == 0);
    for (const rlim_t left : {0, 1}) {  // it takes two
        const rlimit few{.rlim_cur = lowest + left, .rlim_max = limit.rlim_max};
        REQUIRE(::setrlimit(RLIMIT_NOFILE, &few) == 0);
        CHECK(measure_wake_us() == 0);
    }
    CHECK(::setrlimit(RLIMIT_NOFILE, &limit) == 0);
    CHECK(measure_wake_us() > 0);
}

}  // namespace cpp_ring::test
