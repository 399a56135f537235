// Threat 1: a guest that changes memory between two reads of it (XSA-155). Each byte that decides something is read
// once; what was read is what is checked and what is used.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <random>
#include <thread>
#include <unordered_set>
#include <vector>

#include "raw_queue.hpp"
#include "rounds.hpp"

namespace cpp_ring::test {
namespace {

// Every read destroys what it read, so a second one gets another value, and is counted as a failure. Index and
// suppression words are exempt: they are polled by their nature.
struct HostileMemory {
    static inline std::unordered_set<const void*> polled;
    static inline std::unordered_set<const std::byte*> read;
    static inline int second_reads = 0;

    static void forget() { read.clear(); }

    template <class T>
    static T load_relaxed(const T* p) noexcept {
        if (polled.contains(p)) return SharedMemory::load_relaxed(p);
        T value;
        copy_from(&value, p, sizeof value);
        return value;
    }
    template <class T>
    static T load_acquire(const T* p) noexcept {
        return load_relaxed(p);
    }
    template <class T>
    static void store_relaxed(T* p, T value) noexcept {
        SharedMemory::store_relaxed(p, value);
    }
    template <class T>
    static void store_release(T* p, T value) noexcept {
        SharedMemory::store_release(p, value);
    }
    static void copy_from(void* to, const void* from, std::size_t size) noexcept {
        SharedMemory::copy_from(to, from, size);
        auto* bytes = static_cast<std::byte*>(const_cast<void*>(from));
        for (std::size_t i = 0; i < size; ++i) {
            second_reads += read.insert(bytes + i).second ? 0 : 1;
            bytes[i] ^= std::byte{0xff};
        }
    }
};

struct Expected {
    std::uint64_t address;
    std::uint32_t size;
    bool write;
};

}  // namespace

TEST_CASE("threat 1: the walk reads each descriptor once and uses only its copy, direct and indirect") {
    FakeHypervisor hypervisor(64, true);
    RawQueue<HostileMemory> queue(hypervisor, 16, all_ring_features);
    HostileMemory::polled = {queue.ring.avail_idx, queue.ring.avail_flags, queue.ring.used_event};
    HostileMemory::second_reads = 0;
    const std::size_t payload = 2048;  // behind the indirect table
    const std::byte* first_byte = queue.buffers.data();
    std::mt19937 random(1);
    const auto below = [&](std::size_t n) { return std::uniform_int_distribution<std::size_t>(0, n - 1)(random); };

    for (int round = 0; round < 20000; ++round) {
        // A chain of `direct` descriptors in the ring's table, then `inner` ones in an indirect table.
        const std::size_t direct = below(8);
        const std::size_t inner = below(9);
        if (direct + inner == 0) continue;
        const std::size_t readable = below(direct + inner + 1);
        std::vector<Expected> expected;
        std::array<Descriptor, 16> table{};
        std::vector<std::uint16_t> places(16);
        for (std::uint16_t i = 0; i < 16; ++i) places[i] = i;
        std::shuffle(places.begin(), places.end(), random);
        for (std::size_t i = 0; i < direct + inner; ++i) {
            const bool write = i >= readable;
            const auto size = static_cast<std::uint32_t>(1 + below(5000));
            const std::uint64_t address = queue.buffer_address + payload + below(10000);
            expected.push_back({address, size, write});
            const bool more = i + 1 < direct + inner;
            const auto flags = static_cast<std::uint16_t>((write ? desc_write : 0) | (more ? desc_next : 0));
            if (i < direct)
                queue.put(places[i], {address, size, flags, places[i + 1]});
            else
                table[i - direct] = {address, size, flags, static_cast<std::uint16_t>(i - direct + 1)};
        }
        if (inner != 0) {
            const std::uint64_t address = queue.put_table(below(100), std::span(table).first(inner));
            queue.put(places[direct], {address, static_cast<std::uint32_t>(inner * 16), desc_indirect, 0});
        }
        HostileMemory::forget();
        queue.offer(places[0]);
        bool found = false;
        REQUIRE(!queue.device.pop(queue.chain, found));
        REQUIRE(found);

        REQUIRE(queue.chain.readable.size() == readable);
        REQUIRE(queue.chain.readable.size() + queue.chain.writable.size() == expected.size());
        bool same = queue.chain.head == places[0];
        for (std::size_t i = 0; i < expected.size(); ++i) {
            const Segment& segment = i < readable ? queue.chain.readable[i] : queue.chain.writable[i - readable];
            same = same && segment.size == expected[i].size &&
                   segment.data == first_byte + (expected[i].address - queue.buffer_address);
        }
        REQUIRE(same);
        REQUIRE(!queue.device.push(queue.chain.head, 0));
        queue.device.publish();
        static_cast<void>(queue.device.needs_notification());
    }
    CHECK(HostileMemory::second_reads == 0);
    HostileMemory::polled.clear();
}

TEST_SUITE("threads") {
    TEST_CASE("threat 1: a thread that rewrites ring and tables all the time gets named errors or bounded chains") {
#if defined(__SANITIZE_THREAD__)
        const std::uint64_t pops = rounds(100'000, 10'000'000);
#else
        const std::uint64_t pops = rounds(1'000'000, 10'000'000);
#endif
        FakeHypervisor hypervisor(64, true);
        RawQueue<> queue(hypervisor, 8, all_ring_features);
        const GrantRef ref = FakeHypervisor::first_reference;
        const std::span<std::byte> guest(hypervisor.page(ref),
                                         queue.buffers.data() + queue.buffers.size() - hypervisor.page(ref));
        // Mostly plausible values, so that chains get far before they go wrong.
        Atomic<bool> stop{false};
        std::thread guest_thread([&] {
            std::mt19937 random(2);
            while (!stop.load(std::memory_order_relaxed)) {
                const auto n = static_cast<std::uint16_t>(random());
                const Descriptor desc{queue.buffer_address + (n & 0x1ff0), (random() % 3 == 0) ? n & 0xfffU : n & 0x70U,
                                      static_cast<std::uint16_t>(random() & 7),
                                      static_cast<std::uint16_t>(random() % 9)};
                std::byte* at = (n & 1) != 0 ? reinterpret_cast<std::byte*>(queue.ring.descriptors + random() % 8)
                                             : queue.buffers.data() + (n & 0x1ff0);
                SharedMemory::copy_to(at, &desc, sizeof desc);
                SharedMemory::store_relaxed(queue.ring.avail_ring + random() % 8, static_cast<std::uint16_t>(n % 9));
                SharedMemory::store_relaxed(queue.ring.avail_idx, static_cast<std::uint16_t>(n % 10));
            }
        });
        int chains = 0;
        int errors = 0;
        int wrong = 0;
        // Longer, should the guest's thread have had no time on a busy machine.
        for (std::uint64_t i = 0; i < pops || ((chains == 0 || errors == 0) && i < 100 * pops); ++i) {
            bool found = false;
            const GuestError error = queue.device.pop(queue.chain, found);
            if (error) {
                ++errors;
                wrong += error.code < VMSG_XEN_GRANT_MAP || error.code > VMSG_XEN_DESC_IN_FLIGHT;
                REQUIRE(!queue.device.activate(queue.geometry, all_ring_features, queue.memory));
                continue;
            }
            if (!found) {
                if (i % 64 == 0) std::this_thread::yield();
                continue;
            }
            ++chains;
            std::uint64_t bytes = 0;
            for (const auto* part : {&queue.chain.readable, &queue.chain.writable}) {
                for (const Segment& segment : *part) {
                    bytes += segment.size;
                    wrong += segment.data < guest.data() || segment.size > guest.size() ||
                             segment.data + segment.size > guest.data() + guest.size();
                }
            }
            wrong += bytes != queue.chain.readable_bytes + queue.chain.writable_bytes;
            wrong += queue.chain.readable.size() + queue.chain.writable.size() > 8;
            wrong += queue.device.in_flight() > 8;
            wrong += static_cast<bool>(
                queue.device.push(queue.chain.head, static_cast<std::uint32_t>(queue.chain.writable_bytes)));
            queue.device.publish();
        }
        stop = true;
        guest_thread.join();
        CHECK(wrong == 0);
        CHECK(chains > 0);
        CHECK(errors > 0);
        queue.chain.clear();
        CHECK(hypervisor.live_mappings == 1);
    }
}

}  // namespace cpp_ring::test
