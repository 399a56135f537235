// Threat 13: configuration space out of bounds (CVE-2013-2016). The sanitizer guards the array; the oracle the answers.
#include <doctest/doctest.h>

#include <algorithm>
#include <cstring>
#include <set>

#include "message_harness.hpp"

namespace cpp_ring::test {
namespace {

constexpr std::array<std::size_t, 6> config_sizes{0, 1, 8, 60, 256, 300};

// Everything around the end of the space, around 256, 2^16, 2^31 and 2^32.
std::vector<std::uint32_t> interesting_numbers(std::size_t config_size) {
    std::set<std::uint32_t> numbers;
    for (std::uint32_t i = 0; i < 12; ++i) {
        for (const std::uint64_t around : std::initializer_list<std::uint64_t>{
                 0, config_size, VMSG_MAX_CONFIG_DATA, VMSG_MAX_SIZE, 0x10000, 0x10000 + config_size, 0x80000000,
                 0x100000000, 0x100000000 - config_size})
            numbers.insert(static_cast<std::uint32_t>(around + i - 6));
    }
    return {numbers.begin(), numbers.end()};
}

bool in_range(std::uint64_t offset, std::uint64_t size, std::uint64_t config_size) {
    return offset + size <= config_size && size <= VMSG_MAX_CONFIG_DATA;
}

std::size_t read(MessageHarness& harness, std::uint32_t offset, std::uint32_t size) {
    if (harness.ask(VMSG_GET_CONFIG, vmsg_config_range{offset, size})) return 1;
    const auto range = harness.answer.payload<vmsg_config>();
    const auto data = harness.answer.payload_bytes(sizeof range);
    if (!in_range(offset, size, harness.config.size())) return range.size != 0 || !data.empty();
    return range.offset != offset || range.size != size || data.size() != size ||
           !std::ranges::equal(data, std::span(harness.config).subspan(offset, size));
}

std::size_t write(MessageHarness& harness, std::uint32_t offset, std::uint32_t size) {
    std::vector<std::byte> payload = bytes_of(vmsg_config{0, offset, size});
    payload.resize(sizeof(vmsg_config) + size, std::byte{0xcc});
    const std::vector<std::byte> before = harness.config;
    const GuestError error = harness.send(make_request(VMSG_SET_CONFIG, payload));
    if (error) return 1;
    const auto range = harness.answer.payload<vmsg_config>();
    const bool taken = in_range(offset, size, harness.config.size()) && [&] {
        for (std::size_t i = offset; i < std::size_t{offset} + size; ++i)
            if (i % 16 / 4 < 2) return false;  // read-only
        return true;
    }();
    if (!taken) return range.size != 0 || harness.config != before;
    for (std::size_t i = 0; i < before.size(); ++i) {
        const bool inside = i >= offset && i - offset < size;
        if (harness.config[i] != (inside ? std::byte{0xcc} : before[i])) return 1;
        harness.config[i] = before[i];
    }
    return range.size != size || range.offset != offset;
}

}  // namespace

TEST_CASE("threat 13: every offset and length in and around the configuration space") {
    for (const std::size_t config_size : config_sizes) {
        CAPTURE(config_size);
        HarnessShape shape;
        shape.config_size = config_size;
        MessageHarness harness(shape);
        harness.set_status(status_acknowledge | status_driver);
        std::size_t wrong = 0;
        const auto end = static_cast<std::uint32_t>(config_size + 3);
        for (std::uint32_t offset = 0; offset < end; ++offset) {
            for (std::uint32_t size = 0; size < end; ++size) wrong += read(harness, offset, size);
            for (std::uint32_t size = 0; size < std::min(end, 40U); ++size) wrong += write(harness, offset, size);
        }
        CHECK(wrong == 0);
        CHECK(harness.misuses == 0);
    }
}

TEST_CASE("threat 13: offsets and lengths near 2^16, 2^31 and 2^32") {
    for (const std::size_t config_size : config_sizes) {
        CAPTURE(config_size);
        HarnessShape shape;
        shape.config_size = config_size;
        MessageHarness harness(shape);
        harness.set_status(status_acknowledge | status_driver);
        std::size_t wrong = 0;
        const auto numbers = interesting_numbers(config_size);
        for (const std::uint32_t offset : numbers) {
            for (const std::uint32_t size : numbers) {
                wrong += read(harness, offset, size);
                if (size <= VMSG_MAX_CONFIG_DATA) wrong += write(harness, offset, size);
            }
        }
        CHECK(wrong == 0);
        CHECK(harness.misuses == 0);
    }
}

TEST_CASE_FIXTURE(MessageHarness, "threat 13: a write whose length is not that of its data closes the channel") {
    set_status(status_acknowledge | status_driver);
    const std::vector<std::byte> before = config;
    for (const std::uint32_t size : interesting_numbers(60)) {
        CAPTURE(size);
        if (size == 4) continue;
        CHECK(ask(VMSG_SET_CONFIG, vmsg_config{0, 8, size}, std::uint32_t{0xcccccccc}) ==
              GuestError{VMSG_XEN_BAD_PAYLOAD, size});
    }
    CHECK(config == before);
}

}  // namespace cpp_ring::test
