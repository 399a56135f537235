// Threat 11: stale bytes that leak the host's memory (XSA-216). Every byte of every answer is the device's own word.
#include <doctest/doctest.h>

#include <cstring>

#include "message_harness.hpp"

namespace cpp_ring::test {
namespace {

// Answers one request over two kinds of stale bytes; a byte that differs was not written.
void check_defined(MessageHarness& device_of, const Message& request) {
    Message one = stale_message(std::byte{0xa5});
    Message two = stale_message(std::byte{0x5a});
    const GuestError first = device_of.device.answer(request, one);
    const GuestError second = device_of.device.answer(request, two);
    REQUIRE(first == second);
    if (first) return;
    REQUIRE(one.size() == two.size());
    REQUIRE(one.size() <= VMSG_MAX_SIZE);
    // A write to the configuration raises the generation; that word alone may differ.
    if (request.header().msg_id == VMSG_SET_CONFIG)
        std::memset(one.data() + 8, 0, 4), std::memset(two.data() + 8, 0, 4);
    REQUIRE(std::memcmp(one.data(), two.data(), one.size()) == 0);
    REQUIRE(one.header().type == VMSG_TYPE_RESPONSE);
    REQUIRE(one.header().dev_num == 0);
    REQUIRE(one.header().msg_size == one.size());
}

void check_all(MessageHarness& harness) {
    const auto ask = [&](std::uint8_t msg_id, const auto&... parts) {
        check_defined(harness, make_request(msg_id, bytes_of(parts...)));
    };
    ask(VMSG_GET_DEVICE_INFO);
    ask(VMSG_GET_DEVICE_STATUS);
    for (std::uint32_t count = 0; count <= 64; ++count)
        for (const std::uint32_t index : {0U, 1U, 2U, 100U, UINT32_MAX})
            ask(VMSG_GET_DEVICE_FEATURES, vmsg_feature_range{index, count});
    ask(VMSG_SET_DRIVER_FEATURES, vmsg_feature_range{0, 2}, 1U, 1U);
    ask(VMSG_SET_DRIVER_FEATURES, vmsg_feature_range{9, 1}, 1U);
    for (std::uint32_t size = 0; size <= 300; ++size) {
        for (const std::uint32_t offset : {0U, 1U, 59U, 60U, 61U, 255U, 300U}) {
            ask(VMSG_GET_CONFIG, vmsg_config_range{offset, size});
            if (size > VMSG_MAX_CONFIG_DATA) continue;
            std::vector<std::byte> payload = bytes_of(vmsg_config{0, offset, size});
            payload.resize(payload.size() + size, std::byte{3});
            check_defined(harness, make_request(VMSG_SET_CONFIG, payload));
        }
    }
    for (const std::uint32_t index : {0U, 1U, 2U, 3U, 0x10000U, UINT32_MAX}) {
        ask(VMSG_GET_VQUEUE, vmsg_index{index});
        ask(VMSG_SET_VQUEUE, plausible_queue(index, 1));
        ask(VMSG_RESET_VQUEUE, vmsg_index{index});
        ask(VMSG_GET_SHM, vmsg_index{index});
    }
    for (std::uint32_t status = 255; status != UINT32_MAX; --status) ask(VMSG_SET_DEVICE_STATUS, vmsg_status{status});
}

}  // namespace

TEST_CASE("threat 11: no answer carries a byte that the device did not write") {
    for (const std::size_t config_size : {0, 1, 60, 300}) {
        CAPTURE(config_size);
        HarnessShape shape;
        shape.config_size = config_size;
        MessageHarness fresh(shape);
        check_all(fresh);
        MessageHarness with_driver(shape);
        with_driver.set_status(status_acknowledge | status_driver);
        check_all(with_driver);
        MessageHarness negotiated(shape);
        negotiated.negotiate();
        check_all(negotiated);
        MessageHarness started(shape);
        started.start();
        check_all(started);
    }
}

TEST_CASE_FIXTURE(MessageHarness, "threat 11: reserved words are 0") {
    start();
    for (const std::uint32_t index : {0U, 2U, 3U, UINT32_MAX}) {
        REQUIRE(!ask(VMSG_GET_VQUEUE, vmsg_index{index}));
        CHECK(answer.payload<vmsg_vqueue>().reserved == 0);
    }
    REQUIRE(!ask(VMSG_GET_VQUEUE, vmsg_index{3}));
    vmsg_vqueue none{};
    none.index = 3;
    CHECK(std::memcmp(answer.payload_bytes().data(), &none, sizeof none) == 0);
    REQUIRE(!ask(VMSG_GET_SHM, vmsg_index{1}));
    vmsg_shm no_region{};
    no_region.index = 1;
    CHECK(std::memcmp(answer.payload_bytes().data(), &no_region, sizeof no_region) == 0);
}

TEST_CASE("threat 11: what a request carries in its reserved and unused bytes does not come back") {
    MessageHarness harness;
    harness.negotiate();
    vmsg_vqueue queue = plausible_queue(0, 4);
    queue.max_size = queue.reserved = 0xa5a5a5a5;
    REQUIRE(!harness.ask(VMSG_SET_VQUEUE, queue));
    REQUIRE(!harness.ask(VMSG_GET_VQUEUE, vmsg_index{0}));
    CHECK(harness.answer.payload<vmsg_vqueue>().max_size == 256);
    CHECK(harness.answer.payload<vmsg_vqueue>().reserved == 0);
    Message odd = make_request(VMSG_GET_DEVICE_STATUS, {});
    odd.data()[0] = std::byte{0xfc};  // reserved type bits are ignored, and not echoed
    REQUIRE(!harness.send(odd));
    CHECK(harness.answer.header().type == VMSG_TYPE_RESPONSE);
}

}  // namespace cpp_ring::test
