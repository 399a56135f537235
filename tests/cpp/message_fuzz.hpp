// Random messages for the device: mostly well-formed ones of plausible content in any order, some of any bytes.
#pragma once

#include <random>
#include <vector>

#include "message_harness.hpp"

namespace cpp_ring::test {

class MessageFuzz {
  public:
    explicit MessageFuzz(unsigned seed) : random(seed) {}

    [[nodiscard]] Message next() {
        switch (below(16)) {
            case 0:
                return noise();
            case 1:
                return broken(plausible());
            default:
                return plausible();
        }
    }

    [[nodiscard]] std::uint32_t below(std::uint32_t n) { return static_cast<std::uint32_t>(random()) % n; }

    std::mt19937 random;

  private:
    [[nodiscard]] bool one_in(std::uint32_t n) { return below(n) == 0; }
    [[nodiscard]] std::uint32_t number() {
        switch (below(4)) {
            case 0:
                return below(4);
            case 1:
                return below(300);
            case 2:
                return std::uint32_t{1} << below(32);
            default:
                return static_cast<std::uint32_t>(random());
        }
    }
    [[nodiscard]] std::uint32_t status() {
        constexpr std::array<std::uint32_t, 8> steps{0x01, 0x03, 0x0b, 0x0f, 0x0f, 0x0b, 0x03, 0};
        return one_in(8) ? number() : steps[below(8)];
    }
    [[nodiscard]] std::uint64_t address() {
        return one_in(8) ? random() * std::uint64_t{0x100000001} : grant_address(below(64), below(256) * 16);
    }
    [[nodiscard]] std::vector<std::byte> some_bytes(std::size_t size) {
        std::vector<std::byte> bytes(size);
        for (std::byte& value : bytes) value = static_cast<std::byte>(random());
        return bytes;
    }

    [[nodiscard]] Message plausible() {
        const auto msg_id = static_cast<std::uint8_t>(one_in(3) ? static_cast<std::uint32_t>(VMSG_SET_DEVICE_STATUS)
                                                                : VMSG_GET_DEVICE_INFO + below(11));
        const auto make = [&](const auto&... parts) { return make_request(msg_id, bytes_of(parts...), token()); };
        switch (msg_id) {
            case VMSG_GET_DEVICE_FEATURES:
                return make(vmsg_feature_range{number(), below(65)});
            case VMSG_SET_DRIVER_FEATURES:
                if (one_in(4)) return make(vmsg_feature_range{number(), 1}, number());
                return make(vmsg_feature_range{0, 2},
                            one_in(4) ? number() : 0x20000025U & static_cast<std::uint32_t>(random()),
                            one_in(4) ? number() : 0x101U);
            case VMSG_GET_CONFIG:
                return make(vmsg_config_range{number(), number()});
            case VMSG_SET_CONFIG: {
                const std::uint32_t size = below(one_in(4) ? VMSG_MAX_CONFIG_DATA + 1 : 9);
                std::vector<std::byte> payload =
                    bytes_of(vmsg_config{number(), one_in(2) ? below(64) : number(), size});
                const std::vector<std::byte> data = some_bytes(size);
                payload.insert(payload.end(), data.begin(), data.end());
                return make_request(msg_id, payload, token());
            }
            case VMSG_SET_DEVICE_STATUS:
                return make(vmsg_status{status()});
            case VMSG_GET_VQUEUE:
            case VMSG_RESET_VQUEUE:
            case VMSG_GET_SHM:
                return make(vmsg_index{one_in(4) ? number() : below(4)});
            case VMSG_SET_VQUEUE: {
                const std::uint32_t size = one_in(8) ? number() : std::uint32_t{1} << below(10);
                return make(vmsg_vqueue{one_in(8) ? number() : below(3), number(), size, number(), address(), address(),
                                        address()});
            }
            default:
                return make();
        }
    }
    // One byte of a message changed, or its size, or no token, so that it is a lie or merely odd.
    [[nodiscard]] Message broken(Message message) {
        const std::uint32_t kind = below(4);
        if (kind == 0)
            message.resize(sizeof(vmsg_header) + below(VMSG_MAX_SIZE - sizeof(vmsg_header) + 1));
        else if (kind == 1)
            message.finish(0, message.header().msg_id, 0);
        else
            message.data()[below(static_cast<std::uint32_t>(message.size()))] = static_cast<std::byte>(random());
        return message;
    }
    [[nodiscard]] Message noise() {
        Message message;
        message.resize(sizeof(vmsg_header) + below(VMSG_MAX_SIZE - sizeof(vmsg_header) + 1));
        for (std::size_t i = 0; i < message.size(); ++i) message.data()[i] = static_cast<std::byte>(random());
        return message;
    }
    [[nodiscard]] std::uint16_t token() { return static_cast<std::uint16_t>(0x0100 + below(0xff00)); }
};

}  // namespace cpp_ring::test
