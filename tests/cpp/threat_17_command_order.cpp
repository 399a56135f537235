// Threat 17: commands out of order (nbdkit, CVE-2019-14851), and messages that are none. A million of them: refusals
// that are named, answers that are whole, and a device that is never in a state that no driver could have led it to.
#include <doctest/doctest.h>

#include <cstring>

#include "message_fuzz.hpp"

namespace cpp_ring::test {
namespace {

// What must hold of a message that the device took.
std::size_t malformed(const Message& request, const Message& answer) {
    const vmsg_header asked = request.header();
    const vmsg_header got = answer.header();
    std::size_t size = answer_size(asked.msg_id);
    if (asked.msg_id == VMSG_GET_DEVICE_FEATURES) size += request.payload<vmsg_feature_range>().count * 4;
    if (asked.msg_id == VMSG_GET_CONFIG || asked.msg_id == VMSG_SET_CONFIG) size += answer.payload<vmsg_config>().size;
    return got.type != VMSG_TYPE_RESPONSE || got.msg_id != asked.msg_id || got.dev_num != 0 ||
           got.token != asked.token || got.msg_size != answer.size() || answer.size() != size;
}

// What must hold of the device after every message.
std::size_t impossible(const MessageHarness& harness) {
    const VirtioDevice& device = harness.device;
    const std::uint32_t status = device.status();
    const auto has = [&](std::uint32_t bits) { return (status & bits) == bits; };
    std::size_t wrong = 0;
    if (has(status_driver_ok)) wrong += !has(status_features_ok);
    if (has(status_features_ok)) {
        wrong += !has(status_acknowledge | status_driver);
        wrong += (device.features64() & ~harness.offered) != 0;
        wrong += (device.features64() & version_1_bit) == 0;
    }
    if (!has(status_driver)) wrong += device.features64() != 0;
    wrong += (status & ~0xcfU) != 0;
    for (std::uint32_t i = 0; i < device.queues().size(); ++i) {
        const auto& queue = device.queues()[i];
        if (queue.set) wrong += !has(status_features_ok) || check_geometry(queue.geometry, 256);
        if (!queue.set) wrong += queue.geometry.size != 0;
        if (harness.running.contains(i)) wrong += !queue.set || !has(status_driver_ok);
    }
    return wrong;
}

}  // namespace

TEST_CASE("threat 17: a million messages in any order leave the device in a state that a driver could reach") {
    MessageHarness harness(
        {.config_size = 60, .queue_sizes = {256, 64, 1}, .features = version_1_bit | ring_reset_bit | 0x25});
    MessageFuzz fuzz(17);
    std::size_t wrong = 0;
    std::array<std::size_t, 256> taken{};
    std::array<std::size_t, 16> closed{};
    std::uint32_t states = 0;
    for (int i = 0; i < 1'000'000 && wrong == 0; ++i) {
        harness.accept_features = fuzz.below(8) != 0;
        harness.accept_write = fuzz.below(4) != 0;
        harness.channels = fuzz.below(8) != 0;
        harness.activation = fuzz.below(4) == 0 ? GuestError{VMSG_XEN_GRANT_MAP, 1} : GuestError{};
        if (fuzz.below(64) == 0) {
            harness.running.clear();  // as Backend does
            harness.device.needs_reset({VMSG_XEN_DESC_NEXT, 9});
        }
        const Message request = fuzz.next();
        const std::uint32_t before = harness.device.status();
        if (const GuestError error = harness.send(request)) {
            wrong += !closes_channel(error.code) || std::strcmp(error_name(error.code), "unknown") == 0;
            wrong += harness.device.status() != before;
            ++closed[error.code];
        } else {
            wrong += malformed(request, harness.answer);
            ++taken[request.header().msg_id];
        }
        wrong += impossible(harness);
        states |= harness.device.status();
    }
    CHECK(wrong == 0);
    CHECK(harness.misuses == 0);
    // The fuzz got everywhere.
    for (std::size_t id = VMSG_GET_DEVICE_INFO; id <= VMSG_GET_SHM; ++id) CHECK(taken[id] > 1000);
    for (const vmsg_xen_error code :
         {VMSG_XEN_BAD_SIZE, VMSG_XEN_BAD_TYPE, VMSG_XEN_BAD_TOKEN, VMSG_XEN_BAD_MSG_ID, VMSG_XEN_BAD_PAYLOAD})
        CHECK(closed[code] > 0);
    CHECK(states == 0xcf);
    CHECK(harness.activations > 1000);
    CHECK(harness.hooked_writes > 100);
    CHECK(harness.refreshes > 100);
}

TEST_CASE_FIXTURE(MessageHarness, "threat 17: each message before its time is refused by name and does nothing") {
    const auto refused = [&](vmsg_xen_error code, const Message& request) {
        const std::uint64_t errors = device.guest_errors();
        CHECK(!send(request));
        CHECK(device.error().code == code);
        CHECK(device.guest_errors() == errors + 1);
    };
    const auto set_vqueue = make_request(VMSG_SET_VQUEUE, bytes_of(plausible_queue(0, 8)));
    const auto reset_vqueue = make_request(VMSG_RESET_VQUEUE, bytes_of(vmsg_index{0}));
    for (const std::uint32_t status : {0U, 1U, 3U}) {
        set_status(status);
        refused(VMSG_XEN_QUEUE_STATE, set_vqueue);
        refused(VMSG_XEN_QUEUE_STATE, reset_vqueue);
    }
    negotiate();
    refused(VMSG_XEN_QUEUE_STATE, reset_vqueue);
    CHECK(!send(set_vqueue));
    set_status(0x0f);
    refused(VMSG_XEN_QUEUE_STATE, set_vqueue);
    CHECK(running == std::set<std::uint32_t>{0});
}

TEST_CASE_FIXTURE(MessageHarness,
                  "threat 17: every type, device number and message id that is not a request of the bus") {
    const auto with = [](std::size_t byte, unsigned value) {
        Message message = make_request(VMSG_GET_DEVICE_STATUS, {});
        message.data()[byte] = static_cast<std::byte>(value);
        return message;
    };
    for (unsigned value = 0; value < 256; ++value) {
        CAPTURE(value);
        // Reserved type bits are ignored; the answer and bus bits are not.
        CHECK(send(with(0, value)).code == ((value & 3) == 0 ? VMSG_XEN_OK : VMSG_XEN_BAD_TYPE));
        const bool known = value >= VMSG_GET_DEVICE_INFO && value <= VMSG_GET_SHM;
        const bool empty = value == VMSG_GET_DEVICE_INFO || value == VMSG_GET_DEVICE_STATUS;
        CHECK(send(with(1, value)).code == (!known ? VMSG_XEN_BAD_MSG_ID : empty ? VMSG_XEN_OK : VMSG_XEN_BAD_PAYLOAD));
        CHECK(send(with(2, value)).code == (value == 0 ? VMSG_XEN_OK : VMSG_XEN_BAD_TYPE));
        CHECK(send(with(3, value)).code == (value == 0 ? VMSG_XEN_OK : VMSG_XEN_BAD_TYPE));
    }
    Message no_token = make_request(VMSG_GET_DEVICE_STATUS, {}, 0);
    CHECK(send(no_token).code == VMSG_XEN_BAD_TOKEN);
}

TEST_CASE_FIXTURE(MessageHarness, "threat 17: every message at every size but its own closes the channel") {
    for (std::uint8_t msg_id = VMSG_GET_DEVICE_INFO; msg_id <= VMSG_GET_SHM; ++msg_id) {
        std::size_t accepted = 0;
        for (std::size_t size = 0; size <= VMSG_MAX_SIZE - sizeof(vmsg_header); ++size) {
            const GuestError error = send(make_request(msg_id, std::vector<std::byte>(size)));
            accepted += error ? 0 : 1;
            if (error) REQUIRE(error.code == VMSG_XEN_BAD_PAYLOAD);
        }
        CAPTURE(msg_id);
        CHECK(accepted == 1);  // those with data: data of size 0, as their count says
    }
}

}  // namespace cpp_ring::test
