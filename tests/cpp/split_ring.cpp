#include "split_ring.hpp"

#include <doctest/doctest.h>

#include <vector>

namespace cpp_ring {

TEST_CASE("split ring: words stand where virtio 1.3 section 2.7 puts them") {
    for (std::uint32_t size = 1; size <= max_queue_size; size *= 2) {
        const auto n = static_cast<std::uint16_t>(size);
        std::vector<std::uint64_t> storage((descriptor_bytes(n) + driver_bytes(n) + device_bytes(n)) / 8 + 2);
        auto* base = reinterpret_cast<std::byte*>(storage.data());
        std::byte* driver = base + descriptor_bytes(n);
        std::byte* device = driver + (driver_bytes(n) + 3) / 4 * 4;
        const SplitRing ring(n, base, driver, device);
        const auto offset = [](const void* word, const std::byte* area) {
            return reinterpret_cast<const std::byte*>(word) - area;
        };
        CHECK(offset(ring.avail_flags, driver) == 0);
        CHECK(offset(ring.avail_idx, driver) == 2);
        CHECK(offset(ring.avail_ring, driver) == 4);
        CHECK(offset(ring.used_event, driver) + 2 == driver_bytes(n));
        CHECK(offset(ring.used_flags, device) == 0);
        CHECK(offset(ring.used_idx, device) == 2);
        CHECK(offset(ring.used_ring, device) == 4);
        CHECK(offset(ring.avail_event, device) + 2 == device_bytes(n));
    }
}

TEST_CASE("split ring: only powers of two up to 32768 are queue sizes") {
    int valid = 0;
    for (std::uint64_t size = 0; size <= 70000; ++size) valid += valid_queue_size(size) ? 1 : 0;
    CHECK(valid == 16);
    CHECK(valid_queue_size(1));
    CHECK(valid_queue_size(32768));
    CHECK(!valid_queue_size(std::uint64_t{1} << 32));
}

TEST_CASE("split ring: an event is crossed exactly when its entry is among those published") {
    int wrong = 0;
    for (std::uint32_t event = 0; event < 65536; ++event) {
        for (const std::uint32_t start : {0U, 1U, 255U, 32767U, 65530U, 65535U}) {
            for (const std::uint32_t count : {0U, 1U, 2U, 7U, 32768U, 65535U, 65536U, 70000U}) {
                // Entry `event` is published by the step that moves the index from event to event + 1.
                const bool among = static_cast<std::uint16_t>(event - start) < count;
                wrong += crosses_event(static_cast<std::uint16_t>(event), static_cast<std::uint16_t>(start + count),
                                       count) != among;
            }
        }
    }
    CHECK(wrong == 0);
}

}  // namespace cpp_ring
