// Message: what goes in comes out, and nothing else.
#include <doctest/doctest.h>

#include "message_harness.hpp"

namespace cpp_ring::test {

TEST_CASE("message: header and payload come out as they went in, little-endian") {
    Message message = stale_message();
    message.begin();
    message.append(vmsg_config{0x11223344, 0x55667788, 2});
    message.append_bytes(bytes_of(std::uint8_t{0xaa}, std::uint8_t{0xbb}));
    message.finish(VMSG_TYPE_RESPONSE, VMSG_GET_CONFIG, 0x0201);

    constexpr std::array<std::uint8_t, 22> wire{0x01, 0x05, 0,    0,    0x01, 0x02, 22, 0, 0x44, 0x33, 0x22,
                                                0x11, 0x88, 0x77, 0x66, 0x55, 2,    0,  0, 0,    0xaa, 0xbb};
    REQUIRE(message.size() == wire.size());
    CHECK(std::memcmp(message.data(), wire.data(), wire.size()) == 0);

    Message copy;
    std::memcpy(copy.data(), message.data(), message.size());
    copy.resize(message.size());
    CHECK(copy.header().type == VMSG_TYPE_RESPONSE);
    CHECK(copy.header().msg_id == VMSG_GET_CONFIG);
    CHECK(copy.header().dev_num == 0);
    CHECK(copy.header().token == 0x0201);
    CHECK(copy.header().msg_size == 22);
    CHECK(copy.payload_size() == 14);
    CHECK(copy.payload<vmsg_config>().offset == 0x55667788);
    CHECK(copy.payload<std::uint16_t>(12) == 0xbbaa);
    CHECK(copy.payload_bytes(12).size() == 2);
}

TEST_CASE("message: the longest payload fits, an empty one is a header") {
    Message message;
    message.begin();
    message.append_bytes({});
    message.finish(0, VMSG_GET_DEVICE_STATUS, 1);
    CHECK(message.size() == sizeof(vmsg_header));
    CHECK(message.payload_bytes().empty());

    const std::vector<std::byte> longest(VMSG_MAX_SIZE - sizeof(vmsg_header), std::byte{7});
    message.begin();
    message.append_bytes(longest);
    message.finish(0, VMSG_SET_CONFIG, 1);
    CHECK(message.size() == VMSG_MAX_SIZE);
    CHECK(message.header().msg_size == VMSG_MAX_SIZE);
    CHECK(message.payload_bytes().back() == std::byte{7});
}

}  // namespace cpp_ring::test
