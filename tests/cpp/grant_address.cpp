#include "grant_address.hpp"

#include <doctest/doctest.h>

#include <array>
#include <cstdint>

namespace cpp_ring {

TEST_CASE("grant address: every combination of boundary addresses and lengths agrees with 128-bit arithmetic") {
    __extension__ using Wide = unsigned __int128;
    constexpr Wide end = (Wide{1} << 63) + (Wide{1} << 44);  // one past the last byte of the last reference
    constexpr std::array<std::uint64_t, 14> offsets{0,
                                                    1,
                                                    4095,
                                                    4096,
                                                    4097,
                                                    0xffff'f000,
                                                    1ULL << 32,
                                                    (1ULL << 44) - 4097,
                                                    (1ULL << 44) - 4096,
                                                    (1ULL << 44) - 1,
                                                    1ULL << 44,
                                                    (1ULL << 44) + 1,
                                                    (1ULL << 63) - 1,
                                                    1ULL << 62};
    constexpr std::array<std::uint64_t, 16> lengths{0,
                                                    1,
                                                    2,
                                                    4095,
                                                    4096,
                                                    4097,
                                                    8192,
                                                    0xffff'ffff,
                                                    1ULL << 32,
                                                    (1ULL << 44) - 1,
                                                    1ULL << 44,
                                                    (1ULL << 44) + 1,
                                                    1ULL << 63,
                                                    (1ULL << 63) + 1,
                                                    ~0ULL - 4095,
                                                    ~0ULL};
    for (const std::uint64_t offset : offsets) {
        for (const std::uint64_t high : {std::uint64_t{0}, std::uint64_t{VMSG_XEN_DMA_GRANT}}) {
            const std::uint64_t address = high + offset;
            for (const std::uint64_t length : lengths) {
                CAPTURE(address);
                CAPTURE(length);
                GrantRange range;
                const GuestError error = parse_grant_range(address, length, range);
                if (length == 0) {
                    CHECK(error.code == VMSG_XEN_DESC_LENGTH);
                } else if (high == 0 || Wide{address} + length > end) {
                    CHECK(error == GuestError{VMSG_XEN_DESC_ADDRESS, address});
                } else {
                    REQUIRE(!error);
                    const Wide first = (Wide{address} - (Wide{1} << 63)) / page_size;
                    const Wide last = (Wide{address} + length - 1 - (Wide{1} << 63)) / page_size;
                    CHECK(range.first == first);
                    CHECK(range.offset == address % page_size);
                    CHECK(range.pages == last - first + 1);
                }
            }
        }
    }
}

TEST_CASE("grant address: made and parsed again it is the same reference and offset") {
    for (const GrantRef ref : {GrantRef{0}, GrantRef{1}, GrantRef{0x8000'0000}, GrantRef{0xffff'ffff}}) {
        GrantRange range;
        REQUIRE(!parse_grant_range(grant_address(ref, 4095), 1, range));
        CHECK(range.first == ref);
        CHECK(range.offset == 4095);
        CHECK(range.pages == 1);
    }
}

}  // namespace cpp_ring
