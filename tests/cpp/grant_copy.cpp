// Payload outside the arena where the hypervisor copies grants: what reaches the device, what reaches the guest, when.
#include <doctest/doctest.h>

#include <array>
#include <cstring>

#include "fake_hypervisor.hpp"
#include "guest_memory.hpp"
#include "loopback_device.hpp"
#include "raw_queue.hpp"

namespace cpp_ring::test {
namespace {

struct Copying {
    Copying() { hypervisor.copies = true; }

    FakeHypervisor hypervisor;
    std::unique_ptr<SharedPages> pages = hypervisor.share(0, 8, true);
    GuestMemory memory{hypervisor, 1, 16};
    std::uint64_t base = grant_address(pages->first_ref(), 0);
};

std::byte value(std::size_t i) { return static_cast<std::byte>(i * 7 + 1); }

}  // namespace

TEST_CASE_FIXTURE(Copying, "grant copy: readable payload is fetched in one call, whatever pages it lies on") {
    for (std::size_t i = 0; i < pages->bytes().size(); ++i) pages->bytes()[i] = value(i);
    Segment one, other;
    REQUIRE(!memory.resolve_payload(base + 4000, 5000, false, one));
    REQUIRE(!memory.resolve_payload(base + 20000, 1, false, other));
    CHECK(hypervisor.copy_calls == 0);
    REQUIRE(!memory.fetch());
    CHECK(hypervisor.copy_calls == 1);
    CHECK(hypervisor.map_calls == 0);
    REQUIRE(one.size == 5000);
    for (std::size_t i = 0; i < one.size; ++i) REQUIRE(one.data[i] == value(4000 + i));
    CHECK(other.data[0] == value(20000));
    REQUIRE(!memory.fetch());
    CHECK(hypervisor.copy_calls == 1);  // nothing was left to do
}

TEST_CASE_FIXTURE(Copying, "grant copy: a private copy does not change when the guest changes its page") {
    Segment segment;
    pages->bytes()[0] = std::byte{1};
    REQUIRE(!memory.resolve_payload(base, 1, false, segment));
    REQUIRE(!memory.fetch());
    pages->bytes()[0] = std::byte{2};
    CHECK(segment.data[0] == std::byte{1});
}

TEST_CASE_FIXTURE(Copying, "grant copy: of what the device wrote only so much as it says reaches the guest") {
    std::memset(pages->bytes().data(), 0xee, pages->bytes().size());
    Segment segment;
    REQUIRE(!memory.resolve_payload(base + 4090, 100, true, segment));
    for (std::size_t i = 0; i < 100; ++i) CHECK(segment.data[i] == std::byte{0});  // nothing of ours, nothing of theirs
    std::memset(segment.data, 0x11, 100);
    memory.put_back(segment, 10);
    CHECK(pages->bytes()[4090] == std::byte{0xee});
    REQUIRE(!memory.store());
    for (std::size_t i = 4080; i < 4110; ++i)
        CHECK(pages->bytes()[i] == (i >= 4090 && i < 4100 ? std::byte{0x11} : std::byte{0xee}));
}

TEST_CASE_FIXTURE(Copying, "grant copy: copies are charged to the map budget until they go") {
    Segment segment;
    REQUIRE(!memory.resolve_payload(base, 8 * page_size, true, segment));
    CHECK(memory.mapped_pages() == 8);
    Segment second, third;
    REQUIRE(!memory.resolve_payload(base, 8 * page_size, false, second));
    CHECK(memory.resolve_payload(base, 1, false, third) == GuestError{VMSG_XEN_MAP_BUDGET, 1});
    memory.drop_fetch();
    segment = second = {};
    CHECK(memory.mapped_pages() == 0);
    for (const std::uint32_t length : {17U * 4096U, 0xffff'ffffU})
        CHECK(memory.resolve_payload(base, length, true, segment).code == VMSG_XEN_MAP_BUDGET);
}

TEST_CASE_FIXTURE(Copying, "grant copy: what is not granted is an error that names the reference") {
    const GrantRef ref = pages->first_ref() + 3;
    hypervisor.withdraw(ref);
    Segment segment;
    REQUIRE(!memory.resolve_payload(base + 2 * page_size, 2 * page_size, false, segment));
    CHECK(memory.fetch() == GuestError{VMSG_XEN_GRANT_MAP, ref});
    REQUIRE(!memory.fetch());  // it is forgotten
    REQUIRE(!memory.resolve_payload(base + 3 * page_size, 5, true, segment));
    memory.put_back(segment, 5);
    CHECK(memory.store() == GuestError{VMSG_XEN_GRANT_MAP, ref});
    REQUIRE(!memory.store());
}

TEST_CASE_FIXTURE(Copying, "grant copy: what lies in a persistent mapping is not copied") {
    REQUIRE(!memory.map_persistent(base, 8 * page_size, true));
    Segment segment;
    REQUIRE(!memory.resolve_payload(base + 100, 5000, true, segment));
    CHECK(segment.copy_of == 0);
    segment.data[0] = std::byte{9};
    CHECK(pages->bytes()[100] == std::byte{9});
    CHECK(memory.mapped_pages() == 8);
}

TEST_CASE(
    "grant copy: a chain of the ring, its indirect table and its payload are copied; used shows it when it is stored") {
    FakeHypervisor hypervisor;
    hypervisor.copies = true;
    RawQueue<> queue(hypervisor, 16, all_ring_features, false);
    const std::uint64_t at = queue.buffer_address;
    std::memcpy(queue.buffers.data(), "question", 8);
    const std::array table{Descriptor{at, 8, desc_next, 1},
                           Descriptor{at + page_size - 4, 8, desc_write | desc_next, 2},
                           Descriptor{at + 3 * page_size, 8, desc_write, 0}};
    const std::uint64_t address = queue.put_table(5 * page_size, std::span<const Descriptor>(table));
    queue.put(3, {address, sizeof table, desc_indirect, 0});
    queue.offer(3);
    hypervisor.map_calls = 0;
    bool found = false;
    REQUIRE(!queue.device.pop(queue.chain, found));
    REQUIRE(found);
    CHECK(hypervisor.map_calls == 0);
    CHECK(hypervisor.copy_calls == 1);  // the table
    REQUIRE(!queue.device.fetch());
    CHECK(hypervisor.copy_calls == 2);  // the payload
    CHECK(std::memcmp(queue.chain.readable[0].data, "question", 8) == 0);
    std::memcpy(queue.chain.writable[0].data, "answer 1", 8);
    std::memcpy(queue.chain.writable[1].data, "answer 2", 8);
    queue.chain.clear();  // as the engine does before it pushes
    REQUIRE(!queue.device.push(3, 11));
    REQUIRE(!queue.device.write_back());
    CHECK(hypervisor.copy_calls == 3);
    CHECK(std::memcmp(queue.buffers.data() + page_size - 4, "answer 1", 8) == 0);
    CHECK(std::memcmp(queue.buffers.data() + 3 * page_size, "ans\0\0\0\0\0", 8) == 0);
    CHECK(*queue.ring.used_idx == 0);
    queue.device.publish();
    CHECK(*queue.ring.used_idx == 1);
    CHECK(queue.memory.mapped_pages() == hypervisor.mapped_pages);  // the ring's own
}

TEST_CASE("grant copy: a page that is withdrawn while its request is in flight is the queue's error") {
    FakeHypervisor hypervisor;
    hypervisor.copies = true;
    RawQueue<> queue(hypervisor, 16, all_ring_features, false);
    queue.put(0, {queue.buffer_address, 8, desc_write, 0});
    queue.offer(0);
    bool found = false;
    REQUIRE(!queue.device.pop(queue.chain, found));
    const auto ref = static_cast<GrantRef>((queue.buffer_address & ~VMSG_XEN_DMA_GRANT) >> VMSG_XEN_DMA_REF_SHIFT);
    hypervisor.withdraw(ref);
    REQUIRE(!queue.device.push(0, 8));
    CHECK(queue.device.write_back() == GuestError{VMSG_XEN_GRANT_MAP, ref});
    // And while it is offered: before the device sees it.
    queue.restart();
    queue.put(0, {queue.buffer_address, 8, 0, 0});
    queue.offer(0);
    REQUIRE(!queue.device.pop(queue.chain, found));
    CHECK(queue.device.fetch() == GuestError{VMSG_XEN_GRANT_MAP, ref});
}

TEST_CASE("grant copy: a reset with chains in flight lets go of their copies and of the arena beside them") {
    FakeHypervisor hypervisor;
    hypervisor.copies = true;
    RawQueue<> queue(hypervisor, 16, all_ring_features);
    const auto outside = hypervisor.share(0, 1, true);
    queue.put(0, {queue.buffer_address, 8, desc_write | desc_next, 1});
    queue.put(1, {grant_address(outside->first_ref(), 0), 8, desc_write, 0});
    queue.offer(0);
    bool found = false;
    REQUIRE(!queue.device.pop(queue.chain, found));
    queue.chain.clear();
    queue.device.deactivate();
    queue.memory.clear();
    CHECK(queue.memory.mapped_pages() == 0);
    CHECK(hypervisor.live_mappings == 0);
    CHECK(queue.device.push(0, 8));  // and it is nobody's any more
}

TEST_CASE("grant copy: chains pushed out of order in an in-order queue are all written back before they are shown") {
    FakeHypervisor hypervisor;
    hypervisor.copies = true;
    RawQueue<> queue(hypervisor, 16, all_ring_features | std::uint64_t{1} << feature_in_order, false);
    std::array<Chain, 2> chains;
    for (std::uint16_t i = 0; i < 2; ++i) {
        queue.put(i, {queue.buffer_address + i * page_size, 4, desc_write, 0});
        queue.offer(i);
    }
    bool found = false;
    for (Chain& chain : chains) REQUIRE(!queue.device.pop(chain, found));
    for (const std::uint16_t i : {std::uint16_t{1}, std::uint16_t{0}}) {
        std::memset(chains[i].writable[0].data, i + 1, 4);
        REQUIRE(!queue.device.push(i, 4));
    }
    REQUIRE(!queue.device.write_back());
    queue.device.publish();
    CHECK(*queue.ring.used_idx == 2);
    CHECK(queue.buffers[3] == std::byte{1});
    CHECK(queue.buffers[page_size + 3] == std::byte{2});
}

TEST_CASE("grant copy: a host that cannot copy is not the guest's fault") {
    FakeHypervisor hypervisor;
    hypervisor.copies = true;
    GuestMemory memory(hypervisor, 1, 16);
    const auto pages = hypervisor.share(0, 1, true);
    Segment segment;
    REQUIRE(!memory.resolve_payload(grant_address(pages->first_ref(), 0), 8, false, segment));
    hypervisor.copy_error = ENOMEM;
    CHECK(memory.fetch() == GuestError{VMSG_XEN_HOST, ENOMEM});
    hypervisor.copy_error = 0;
    REQUIRE(!memory.fetch());  // it is forgotten
}

TEST_SUITE("threads") {
    TEST_CASE("grant copy: a backend serves two queues without an arena, by copies alone") {
        EchoModel model;
        LoopbackDevice device(model);
        device.back.copies = true;
        REQUIRE(!device.backend.connect(device.address(false)));
        BackendThread thread(device.backend);
        REQUIRE(device.start() == all_status_bits);
        const std::size_t mapped = device.back.mappings();
        for (std::uint64_t number = 0; number < 200; ++number) device.echo(number & 1, number);
        CHECK(device.back.mappings() == mapped);
        CHECK(device.back.copy_calls >= 400);
        CHECK(thread.stop() == Exit::stopped);
        CHECK(device.back.mappings() == 0);
    }

    TEST_CASE("grant copy: the n-th call of the hypervisor fails, for every n, and the device starts again") {
        for (std::size_t n = 1; n < 12; ++n) {
            EchoModel model;
            LoopbackDevice device(model);
            device.back.copies = true;
            REQUIRE(!device.backend.connect(device.address(false)));
            device.back.calls = 0;
            device.back.fail_at = n;
            {
                BackendThread thread(device.backend);
                const bool started = device.start() == all_status_bits;
                for (std::uint64_t number = 0; started && number < 4; ++number) {
                    device.offer(0, number, number);
                    device.queues[0]->kick();
                    while (!device.queues[0]->ring().has_used() &&
                           (device.frontend->ring().device_status() & status_needs_reset) == 0)
                        device.ask(VMSG_GET_DEVICE_STATUS);
                }
                device.back.fail_at = 0;
                for (auto& queue : device.queues) queue->setup(64, device.offered);
                REQUIRE(device.start() == all_status_bits);
                device.echo(1, n);
            }
            CHECK(device.back.mappings() == 0);
            CHECK(device.backend.mapped_pages() == 0);
        }
    }

    TEST_CASE("grant copy: a driver that takes its pages back while they are in use gets a device that needs a reset") {
        EchoModel model;
        LoopbackDevice device(model);
        device.back.copies = true;
        REQUIRE(!device.backend.connect(device.address(false)));
        BackendThread thread(device.backend);
        device.start();
        device.echo(0, 1);
        const std::uint64_t gone = grant_address(device.arena->first_ref(), 0);
        device.arena = device.front.share(backend_domain, 16, true);
        const std::array readable{SplitQueueDriver::Piece{gone, 8}};
        REQUIRE(device.queues[0]->ring().add(readable, {}));
        device.queues[0]->kick();
        while ((device.frontend->ring().device_status() & status_needs_reset) == 0) device.ask(VMSG_GET_DEVICE_STATUS);
        CHECK(device.frontend->ring().error().code == VMSG_XEN_GRANT_MAP);
        for (auto& queue : device.queues) queue->setup(64, device.offered);
        CHECK(device.start() == all_status_bits);
        device.echo(1, 2);
    }
}

}  // namespace cpp_ring::test
