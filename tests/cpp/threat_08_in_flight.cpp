// Threat 8: more requests in flight than the ring has heads, by offering one twice (CVE-2016-5403).
#include <doctest/doctest.h>

#include <deque>
#include <random>
#include <set>
#include <vector>

#include "raw_queue.hpp"

namespace cpp_ring::test {

TEST_CASE("threat 8: random offers, pops and completions: a head is in flight once, all of them never above the size") {
    FakeHypervisor hypervisor(64, true);
    for (const std::uint64_t features : {std::uint64_t{0}, std::uint64_t{1} << feature_in_order}) {
        for (const std::uint16_t size : std::vector<std::uint16_t>{1, 2, 4, 16}) {
            CAPTURE(size);
            FakeHypervisor own(64, true);
            RawQueue<> queue(own, size, features);
            for (std::uint16_t i = 0; i < size; ++i) queue.put(i, {queue.buffer_address, 8, desc_write, 0});
            std::mt19937 random(size);
            std::deque<std::uint16_t> offered;
            std::vector<std::uint16_t> popped;   // not yet pushed
            std::deque<std::uint16_t> in_order;  // in flight as the driver may count it
            std::set<std::uint16_t> done;
            int refused = 0;
            for (int step = 0; step < 50000; ++step) {
                const auto head = static_cast<std::uint16_t>(random() % size);
                switch (random() % 3) {
                    case 0:
                        if (offered.size() < size) {
                            queue.offer(head);
                            offered.push_back(head);
                        }
                        break;
                    case 1: {
                        bool found = false;
                        const GuestError error = queue.device.pop(queue.chain, found);
                        if (offered.empty()) {
                            REQUIRE(!error);
                            REQUIRE(!found);
                            break;
                        }
                        const std::uint16_t next = offered.front();
                        bool twice = false;
                        for (const std::uint16_t other : in_order) twice = twice || other == next;
                        REQUIRE(error == (twice ? GuestError{VMSG_XEN_DESC_IN_FLIGHT, next} : GuestError{}));
                        REQUIRE(found == !twice);
                        if (twice) {  // the device is broken until its reset
                            ++refused;
                            queue.restart();
                            offered.clear();
                            popped.clear();
                            in_order.clear();
                            done.clear();
                            break;
                        }
                        offered.pop_front();
                        popped.push_back(next);
                        in_order.push_back(next);
                        break;
                    }
                    default: {
                        if (popped.empty()) break;
                        const std::size_t which = random() % popped.size();
                        const std::uint16_t done_head = popped[which];
                        REQUIRE(!queue.device.push(done_head, 8));
                        REQUIRE(queue.device.push(done_head, 8).code == VMSG_XEN_MODEL);
                        popped.erase(popped.begin() + static_cast<std::ptrdiff_t>(which));
                        if (features == 0) {
                            std::erase(in_order, done_head);
                        } else {
                            done.insert(done_head);
                            while (!in_order.empty() && done.erase(in_order.front()) != 0) in_order.pop_front();
                        }
                        break;
                    }
                }
                REQUIRE(queue.device.in_flight() == in_order.size());
                REQUIRE(queue.device.in_flight() <= size);
            }
            CHECK(refused > 0);
        }
    }
}

}  // namespace cpp_ring::test
