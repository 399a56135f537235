// Threat 14: a queue number out of range (CVE-2011-2512), in every message that takes one.
#include <doctest/doctest.h>

#include <cstring>

#include "message_harness.hpp"

namespace cpp_ring::test {
namespace {

// Every 16-bit number, and 32-bit ones whose low halves are small.
template <class Check>
void for_numbers(Check&& check) {
    for (std::uint32_t index = 0; index < 0x10000; ++index) check(index);
    for (const std::uint32_t high : {0x10000U, 0x7fff0000U, 0x80000000U, 0xffff0000U})
        for (std::uint32_t low = 0; low < 4; ++low) check(high + low);
    for (std::uint32_t below = 1; below < 4; ++below) check(0U - below);
}

}  // namespace

TEST_CASE("threat 14: no queue number but the device's own reaches a queue") {
    for (const std::size_t count : {0, 3}) {
        for (const bool running : {false, true}) {
            CAPTURE(count);
            CAPTURE(running);
            HarnessShape shape;
            shape.queue_sizes.resize(count);  // 256, 64, 1
            MessageHarness harness(shape);
            running ? harness.start() : harness.negotiate();
            std::size_t wrong = 0;
            for_numbers([&](std::uint32_t index) {
                const bool exists = index < count;
                wrong += static_cast<bool>(harness.ask(VMSG_GET_VQUEUE, vmsg_index{index}));
                const auto queue = harness.answer.payload<vmsg_vqueue>();
                wrong += queue.index != index || queue.max_size != (exists ? shape.queue_sizes[index] : 0);
                if (exists) return;  // what it does to an own queue is shown elsewhere
                wrong += queue.size != 0 || queue.descriptor_address != 0;
                for (const std::uint8_t msg_id : {VMSG_SET_VQUEUE, VMSG_RESET_VQUEUE}) {
                    const std::uint64_t errors = harness.device.guest_errors();
                    wrong +=
                        static_cast<bool>(msg_id == VMSG_SET_VQUEUE ? harness.ask(msg_id, plausible_queue(index, 1))
                                                                    : harness.ask(msg_id, vmsg_index{index}));
                    wrong += harness.device.error() != GuestError{VMSG_XEN_QUEUE_INDEX, index};
                    wrong += harness.device.guest_errors() != errors + 1;
                }
                wrong += static_cast<bool>(harness.ask(VMSG_GET_SHM, vmsg_index{index}));
                wrong += harness.answer.payload<vmsg_shm>().index != index;
            });
            CHECK(wrong == 0);
            CHECK(harness.misuses == 0);
            CHECK(harness.running.size() == (running ? count : 0));
        }
    }
}

}  // namespace cpp_ring::test
