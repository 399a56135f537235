// Threat 3: a producer index further ahead than the ring is long (the overflow macros of ring.h, blkback). It is an
// error with a name, never reduced modulo the size.
#include <doctest/doctest.h>

#include "raw_queue.hpp"

namespace cpp_ring::test {

TEST_CASE("threat 3: every avail.idx of every queue size, from several places of the ring") {
    FakeHypervisor hypervisor(2048, true);
    for (std::uint32_t n = 1; n <= max_queue_size; n *= 2) {
        const auto size = static_cast<std::uint16_t>(n);
        CAPTURE(size);
        RawQueue<> queue(hypervisor, size);
        queue.put(0, {queue.buffer_address, 1, 0, 0});
        // Every lie is told. What is true costs a new start of the device each time: large rings take a sample of that,
        // and start at 0 only.
        const std::uint32_t step = size > 1024 ? 67 : 1;
        for (const std::uint32_t start : {0U, 1U, 1000U}) {
            if (start != 0 && size > 64) continue;
            int wrong = 0;
            bool fresh = false;
            for (std::uint32_t idx = 0; idx < 65536; ++idx) {
                const auto ahead = static_cast<std::uint16_t>(idx - start);
                if (ahead < size && ahead > 8 && ahead % step != 0) continue;
                if (!fresh) {
                    queue.restart();
                    bool found = false;
                    for (std::uint32_t i = 0; i < start; ++i) {
                        queue.offer(0);
                        wrong += queue.device.pop(queue.chain, found) || !found;
                        wrong += static_cast<bool>(queue.device.push(0, 0));
                    }
                    fresh = true;
                }
                *queue.ring.avail_idx = static_cast<std::uint16_t>(idx);
                bool found = false;
                const GuestError error = queue.device.pop(queue.chain, found);
                wrong += queue.device.has_work() != (ahead != (found ? 1 : 0));
                if (ahead > size) {
                    wrong += error != GuestError{VMSG_XEN_AVAIL_INDEX, idx} || found;
                } else if (ahead == 0) {
                    wrong += error || found;
                } else {
                    wrong += error || !found;
                    fresh = false;
                }
            }
            CHECK(wrong == 0);
        }
    }
}

TEST_CASE("threat 3: the index may stand a whole ring ahead, across its wrap") {
    FakeHypervisor hypervisor(64, true);
    RawQueue<> queue(hypervisor, 4);
    for (std::uint16_t i = 0; i < 4; ++i) queue.put(i, {queue.buffer_address, 1, 0, 0});
    for (int round = 0; round < 20000; ++round) {
        for (std::uint16_t i = 0; i < 4; ++i) queue.offer(i);
        bool found = false;
        for (std::uint16_t i = 0; i < 4; ++i) {
            REQUIRE(!queue.device.pop(queue.chain, found));
            REQUIRE(found);
        }
        for (std::uint16_t i = 0; i < 4; ++i) REQUIRE(!queue.device.push(i, 0));
    }
    CHECK(queue.avail == static_cast<std::uint16_t>(80000));
    *queue.ring.avail_idx = static_cast<std::uint16_t>(queue.avail + 5);
    bool found = false;
    CHECK(queue.device.pop(queue.chain, found).code == VMSG_XEN_AVAIL_INDEX);
}

}  // namespace cpp_ring::test
