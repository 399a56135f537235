// Threat 16: illegal status changes and features that were not offered (CVE-2023-6693).
#include <doctest/doctest.h>

#include <array>
#include <optional>

#include "message_harness.hpp"

namespace cpp_ring::test {
namespace {

constexpr std::uint32_t failed = 0x80;
constexpr std::uint32_t needs_reset_bit = 0x40;
// The only ways a driver gets anywhere, in the order in which it gets there (virtio 1.3 section 3.1.1).
constexpr std::array<std::uint32_t, 5> ladder{0, 0x01, 0x03, 0x0b, 0x0f};

std::optional<std::size_t> rung(std::uint32_t bits) {
    for (std::size_t i = 0; i < ladder.size(); ++i)
        if (ladder[i] == bits) return i;
    return std::nullopt;
}

// docs/protocol.md, "Device status", once more and in other words: the driver climbs, never down, the last step only
// from the one below it; FAILED comes at any time and stays; DEVICE_NEEDS_RESET is not the driver's to write.
std::uint32_t oracle(std::uint32_t current, std::uint32_t wanted) {
    if (wanted == 0) return 0;
    const std::uint32_t bits = wanted & ~needs_reset_bit;
    const auto from = rung(current & ~(needs_reset_bit | failed));
    const auto to = rung(bits & ~failed);
    const bool climbs = to && *to >= *from && (*to < 4 || *from >= 3);
    const bool keeps_failed = (current & failed) == 0 || (bits & failed) != 0;
    return climbs && keeps_failed ? bits | (current & needs_reset_bit) : current;
}

// Brings a fresh device to one of the ladder's rungs, by messages alone.
void climb(MessageHarness& harness, std::size_t to) {
    for (std::size_t i = 1; i <= to; ++i) {
        if (ladder[i] == 0x0b) REQUIRE(!harness.set_features(harness.offered));
        REQUIRE(harness.set_status(ladder[i]) == ladder[i]);
    }
}

}  // namespace

TEST_CASE("threat 16: all pairs of status values: what can be reached obeys the oracle") {
    for (std::uint32_t current = 0; current < 256; ++current) {
        if (!rung(current & ~(needs_reset_bit | failed))) continue;
        for (std::uint32_t wanted = 0; wanted < 256; ++wanted) {
            CAPTURE(current);
            CAPTURE(wanted);
            REQUIRE(next_status(current, wanted) == oracle(current, wanted));
        }
    }
}

TEST_CASE("threat 16: all pairs of status values: nothing is lost, nothing comes that was not asked for") {
    for (std::uint32_t current = 0; current < 256; ++current) {
        for (std::uint32_t wanted = 0; wanted < 256; ++wanted) {
            CAPTURE(current);
            CAPTURE(wanted);
            const std::uint32_t next = next_status(current, wanted);
            if (wanted == 0) {
                REQUIRE(next == 0);
                continue;
            }
            if (next == current) continue;
            REQUIRE((next & needs_reset_bit) == (current & needs_reset_bit));
            REQUIRE((current & 0x8f & ~next) == 0);
            REQUIRE((next & ~(current | wanted)) == 0);
            REQUIRE((next & 0x30) == 0);
        }
    }
    for (const std::uint32_t high : {0x100U, 0x10001U, 0x80000000U, UINT32_MAX}) CHECK(next_status(1, high) == 1);
}

TEST_CASE("threat 16: the device's answer to all pairs of status values is the oracle's") {
    for (std::size_t step = 0; step < ladder.size(); ++step) {
        for (const std::uint32_t extra : {0U, failed, needs_reset_bit, failed | needs_reset_bit}) {
            for (std::uint32_t wanted = 0; wanted < 256; ++wanted) {
                MessageHarness harness;
                climb(harness, step);
                if ((extra & failed) != 0) harness.set_status(ladder[step] | failed);
                if ((extra & needs_reset_bit) != 0) harness.device.needs_reset({VMSG_XEN_MODEL, 0});
                const std::uint32_t current = ladder[step] | extra;
                REQUIRE(harness.device.status() == current);
                if (step == 2) REQUIRE(!harness.set_features(harness.offered));
                // A driver that goes to FEATURES_OK in one step from below DRIVER had no chance to write its features.
                const bool no_features = step < 2 && (wanted & ~(needs_reset_bit | failed)) == ladder[3];
                std::uint32_t expected = oracle(current, wanted);
                if (no_features) expected &= ~std::uint32_t{status_features_ok};
                CAPTURE(current);
                CAPTURE(wanted);
                REQUIRE(harness.set_status(wanted) == expected);
                REQUIRE(harness.device.status() == expected);
                REQUIRE(harness.resets == (wanted == 0 ? 1 : 0));
                const bool activates = (wanted & ~failed & ~needs_reset_bit) == 0x0f && expected != current;
                REQUIRE(harness.activations ==
                        (step == 4 || (activates && (extra & needs_reset_bit) == 0 && step == 3) ? 1 : 0));
            }
        }
    }
}

TEST_CASE_FIXTURE(MessageHarness,
                  "threat 16: a feature that was not offered is refused at FEATURES_OK, each of the 64") {
    for (unsigned bit = 0; bit < 64; ++bit) {
        CAPTURE(bit);
        set_status(0);
        set_status(3);
        REQUIRE(!set_features(version_1_bit | std::uint64_t{1} << bit));
        const bool is_offered = (offered >> bit & 1) != 0;
        REQUIRE(set_status(0x0b) == (is_offered ? 0x0b : 3));
        REQUIRE(set_status(0x0f) == (is_offered ? 0x0f : 3));
        if (is_offered) continue;
        REQUIRE(device.error().code == VMSG_XEN_STATUS_ORDER);
        // The driver may mend its ways.
        REQUIRE(!set_features(version_1_bit));
        REQUIRE(set_status(0x0b) == 0x0b);
    }
}

TEST_CASE_FIXTURE(MessageHarness, "threat 16: a feature in a block that the device does not have is refused as well") {
    for (const std::uint32_t index : {2U, 3U, 0x10000U, 0x40000000U, UINT32_MAX}) {
        CAPTURE(index);
        set_status(0);
        set_status(3);
        REQUIRE(!set_features(version_1_bit));
        REQUIRE(!ask(VMSG_SET_DRIVER_FEATURES, vmsg_feature_range{index, 1}, 1U));
        CHECK(device.error() == GuestError{VMSG_XEN_FEATURES, index});
        CHECK(set_status(0x0b) == 3);
        // Zeroes there are what a driver writes that knows more features than the device.
        set_status(0);
        set_status(3);
        REQUIRE(!set_features(version_1_bit));
        REQUIRE(!ask(VMSG_SET_DRIVER_FEATURES, vmsg_feature_range{index, 1}, 0U));
        CHECK(set_status(0x0b) == 0x0b);
    }
    // A range that begins in the device's blocks and ends past 2^32.
    set_status(0);
    set_status(3);
    REQUIRE(!ask(VMSG_SET_DRIVER_FEATURES, vmsg_feature_range{UINT32_MAX, 3}, 0U, 0U, 1U));
    CHECK(device.features64() == 0);
    CHECK(set_status(0x0b) == 3);
}

TEST_CASE_FIXTURE(MessageHarness, "threat 16: without VIRTIO_F_VERSION_1, or if the model objects, no FEATURES_OK") {
    set_status(3);
    REQUIRE(!set_features(offered & ~version_1_bit));
    CHECK(set_status(0x0b) == 3);
    CHECK(device.error().code == VMSG_XEN_FEATURES);
    REQUIRE(!set_features(offered));
    accept_features = false;
    CHECK(set_status(0x0b) == 3);
    accept_features = true;
    CHECK(set_status(0x0b) == 0x0b);
}

TEST_CASE_FIXTURE(MessageHarness, "threat 16: features are frozen at FEATURES_OK, and closed before DRIVER") {
    for (const std::uint32_t status : {0U, 1U}) {
        set_status(status);
        REQUIRE(!set_features(offered));
        CHECK(device.error().code == VMSG_XEN_STATUS_ORDER);
        CHECK(device.features64() == 0);
    }
    set_status(3);
    REQUIRE(!set_features(version_1_bit));
    for (const std::uint32_t status : {0x0bU, 0x0fU, 0x8fU}) {
        CHECK(set_status(status) == status);
        for (const std::uint64_t features : {std::uint64_t{0}, offered, ~std::uint64_t{0}}) {
            REQUIRE(!set_features(features));
            CHECK(device.error().code == VMSG_XEN_STATUS_ORDER);
            CHECK(device.features64() == version_1_bit);
        }
    }
}

TEST_CASE_FIXTURE(MessageHarness, "threat 16: a count that is not that of the blocks closes the channel") {
    set_status(3);
    for (const std::uint32_t count : {0U, 2U, 65U, 0x40000001U, 0x80000001U, UINT32_MAX}) {
        CAPTURE(count);
        CHECK(ask(VMSG_SET_DRIVER_FEATURES, vmsg_feature_range{0, count}, 1U) ==
              GuestError{VMSG_XEN_BAD_PAYLOAD, count});
    }
    for (const std::uint32_t count : {65U, 0x40000000U, UINT32_MAX})
        CHECK(ask(VMSG_GET_DEVICE_FEATURES, vmsg_feature_range{0, count}) == GuestError{VMSG_XEN_BAD_PAYLOAD, count});
    CHECK(device.features64() == 0);
}

}  // namespace cpp_ring::test
