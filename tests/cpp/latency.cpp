// The latency recorder: every 64-bit value has a bucket, and is known to better than 1 %.
#include <doctest/doctest.h>

#include <algorithm>
#include <memory>
#include <random>
#include <vector>

#include "latency.hpp"

namespace cpp_ring::test {
namespace {

constexpr std::uint64_t largest = std::numeric_limits<std::uint64_t>::max();

// Powers of two and their neighbours, and values of every magnitude.
std::vector<std::uint64_t> interesting_values() {
    std::vector<std::uint64_t> values{0, largest};
    for (unsigned bit = 0; bit < 64; ++bit)
        for (const std::uint64_t near : {-1, 0, 1}) values.push_back((std::uint64_t{1} << bit) + near);
    std::mt19937_64 random(1);
    for (int i = 0; i < 2000; ++i) values.push_back(random() >> random() % 64);
    return values;
}

}  // namespace

TEST_CASE("latency: a value lies in its bucket, whose bounds are less than 1 % apart") {
    const auto recorder = std::make_unique<LatencyRecorder>();
    for (const std::uint64_t value : interesting_values()) {
        CAPTURE(value);
        *recorder = LatencyRecorder();
        recorder->record(value);
        const auto buckets = recorder->buckets();
        REQUIRE(buckets.size() == 1);
        const std::uint64_t upper = buckets[0].first;
        REQUIRE(buckets[0].second == 1);
        REQUIRE(upper >= value);
        REQUIRE(upper - value <= value / 100);
        REQUIRE(recorder->min() == value);
        REQUIRE(recorder->max() == value);
        for (const double percent : {0.0, 50.0, 100.0}) REQUIRE(recorder->percentile(percent) == value);
        // A bucket's bound falls in that bucket again: files of buckets can be read back.
        LatencyRecorder read_back;
        read_back.add_bucket(upper, 5);
        REQUIRE(read_back.buckets() == std::vector{std::pair{upper, std::uint64_t{5}}});
        // The next value is in the next bucket.
        if (upper != largest) {
            recorder->record(upper + 1);
            REQUIRE(recorder->buckets().size() == 2);
        }
    }
}

TEST_CASE("latency: an empty recorder answers 0") {
    const auto recorder = std::make_unique<LatencyRecorder>();
    CHECK(recorder->count() == 0);
    CHECK(recorder->min() == 0);
    CHECK(recorder->max() == 0);
    CHECK(recorder->percentile(99) == 0);
    CHECK(recorder->buckets().empty());
}

TEST_CASE("latency: percentiles never fall, stay between the extremes and within 1 % of the sorted values") {
    std::mt19937_64 random(2);
    const auto recorder = std::make_unique<LatencyRecorder>();
    std::vector<std::uint64_t> values;
    for (int i = 0; i < 5000; ++i) values.push_back(random() >> random() % 64);
    for (const std::uint64_t value : values) recorder->record(value);
    std::sort(values.begin(), values.end());
    std::uint64_t last = 0;
    for (int thousandth = 0; thousandth <= 100000; thousandth += 50) {
        const double percent = thousandth / 1000.0;
        CAPTURE(percent);
        const std::uint64_t value = recorder->percentile(percent);
        REQUIRE(value >= last);
        REQUIRE(value >= recorder->min());
        REQUIRE(value <= recorder->max());
        last = value;
        const auto rank = static_cast<std::size_t>(percent / 100 * 5000 + 0.5);
        const std::uint64_t exact = values[std::max<std::size_t>(rank, 1) - 1];
        REQUIRE(value >= exact);
        REQUIRE(value - exact <= exact / 100);
    }
    CHECK(recorder->percentile(100) == values.back());
}

TEST_CASE("latency: merging is recording in one") {
    std::mt19937_64 random(3);
    const auto one = std::make_unique<LatencyRecorder>();
    const auto two = std::make_unique<LatencyRecorder>();
    const auto both = std::make_unique<LatencyRecorder>();
    for (int i = 0; i < 1000; ++i) {
        const std::uint64_t value = random() >> random() % 64;
        (i % 3 == 0 ? one : two)->record(value);
        both->record(value);
    }
    const auto empty = std::make_unique<LatencyRecorder>();
    one->merge(*two);
    one->merge(*empty);
    CHECK(one->count() == both->count());
    CHECK(one->min() == both->min());
    CHECK(one->max() == both->max());
    CHECK(one->buckets() == both->buckets());
    empty->merge(*both);
    CHECK(empty->min() == both->min());
    CHECK(empty->percentile(50) == both->percentile(50));
}

TEST_CASE("latency: counts near 2^64, as a file may hold them, overflow no percentile") {
    const auto recorder = std::make_unique<LatencyRecorder>();
    recorder->add_bucket(10, 1);
    recorder->add_bucket(20, largest - 1);
    recorder->set_extremes(10, 20);
    CHECK(recorder->percentile(0) == 10);
    CHECK(recorder->percentile(99.99) == 20);
    CHECK(recorder->percentile(100) == 20);
}

}  // namespace cpp_ring::test
