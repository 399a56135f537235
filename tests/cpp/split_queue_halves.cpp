// Driver half and device half against each other, in random order with fixed seeds: whatever the features, the size and
// the interleaving, every chain comes back once, with the device's bytes, and nobody sleeps through an event.
#include <doctest/doctest.h>

#include <algorithm>
#include <array>
#include <random>
#include <source_location>
#include <vector>

#include "fake_hypervisor.hpp"
#include "split_queue_device.hpp"
#include "split_queue_driver.hpp"

namespace cpp_ring::test {
namespace {

using Piece = SplitQueueDriver::Piece;

// A macro of doctest's costs more than a step of the machine.
void require(bool held, std::source_location where = std::source_location::current()) {
    if (!held) FAIL("line " << where.line());
}

class Machine {
  public:
    Machine(std::uint16_t size, std::uint64_t features, std::size_t max_piece, unsigned seed)
        : random_(seed),
          max_piece_(max_piece),
          arena_(hypervisor_.share(0, slots, true)),
          outside_(hypervisor_.share(0, slots, true)),
          memory_(hypervisor_, 1, 1024),
          driver_(hypervisor_.share(0, SplitQueueDriver::pages_needed(size, features), true), size, features) {
        require(!memory_.map_persistent(grant_address(arena_->first_ref(), 0), slots * page_size, true));
        const QueueGeometry geometry{size, driver_.descriptor_address(), driver_.driver_address(),
                                     driver_.device_address()};
        require(!device_.activate(geometry, features, memory_));
        requests_.resize(size);
        for (std::uint16_t i = 0; i < slots; ++i) free_slots_.push_back(i);
    }

    void step() {
        const bool drivers_turn = device_asleep_ || (!driver_asleep_ && below(2) == 0);
        if (drivers_turn)
            driver_step();
        else
            device_step();
        require(device_.in_flight() <= driver_.outstanding());
        if (driver_asleep_ && device_asleep_) {
            // Both were told that they may sleep, so nothing may be under way.
            require(driver_.outstanding() == 0);
            driver_asleep_ = false;  // the application has more
        }
    }

    // Runs both sides dry.
    void finish() {
        stopping_ = true;
        for (int i = 0; i < 1'000'000 && driver_.outstanding() != 0; ++i) step();
        require(driver_.outstanding() == 0);
        require(driver_.free_descriptors() == driver_.size());
        require(device_.in_flight() == 0);
        require(std::ranges::none_of(requests_, &Request::under_way));
        chain_.clear();
        device_.deactivate();
        memory_.clear();
        require(hypervisor_.live_mappings == 0);
    }

    std::size_t completed = 0;
    std::size_t sleeps = 0;

  private:
    static constexpr std::uint16_t slots = 32;  // a page of payload for each request under way
    static constexpr std::size_t half = page_size / 2;

    struct Request {
        bool under_way = false;
        std::uint16_t slot = 0;
        std::byte* page = nullptr;
        std::uint32_t number = 0;
        std::uint32_t readable = 0;
        std::uint32_t writable = 0;
    };
    struct Pending {
        std::uint16_t head;
        std::uint32_t written;
    };

    std::size_t below(std::size_t n) { return random_() % n; }

    static std::byte payload(std::uint32_t number, std::size_t i) { return static_cast<std::byte>(number * 31 + i); }

    // How many bytes the device writes, and which: a function of what it read, so that the driver can check it.
    static std::uint32_t answer_size(std::size_t read, std::uint64_t writable) {
        return static_cast<std::uint32_t>(writable - (read % 3 == 0 ? std::min<std::uint64_t>(writable, read) : 0));
    }
    static std::byte answer_byte(std::byte read) { return read ^ std::byte{0x5a}; }

    std::uint32_t pieces(std::vector<Piece>& made, std::uint64_t address, std::size_t count) {
        made.clear();
        std::uint32_t bytes = 0;
        for (std::size_t i = 0; i < count; ++i) {
            const auto size = static_cast<std::uint32_t>(1 + below(max_piece_));
            made.push_back({address + bytes, size});
            bytes += size;
        }
        return bytes;
    }

    void add() {
        if (stopping_ || free_slots_.empty()) return;
        const std::size_t most = std::min<std::size_t>(driver_.size(), 8);
        const std::size_t count = 1 + below(most);
        const std::size_t readable = below(count + 1);
        const std::uint16_t slot = free_slots_.back();
        SharedPages& pages = below(64) == 0 ? *outside_ : *arena_;
        std::byte* page = pages.bytes().data() + slot * page_size;
        const std::uint64_t address = grant_address(pages.first_ref(), slot * page_size);
        const std::uint32_t number = ++number_;
        const std::uint32_t read = pieces(to_read_, address, readable);
        const std::uint32_t writable = pieces(to_write_, address + half, count - readable);
        for (std::uint32_t i = 0; i < read; ++i) page[i] = payload(number, i);
        const auto head = driver_.add(to_read_, to_write_);
        if (!head) {
            require(count > driver_.free_descriptors());
            return;
        }
        free_slots_.pop_back();
        require(!requests_.at(*head).under_way);
        requests_[*head] = {true, slot, page, number, read, writable};
    }

    void pop_used() {
        SplitQueueDriver::Used used{};
        bool lied = false;
        const bool expected = driver_.has_used();
        const bool got = driver_.pop(used, lied);
        require(!lied);
        require(got == expected);
        if (!got) return;
        Request& request = requests_.at(used.head);
        require(request.under_way);
        require(used.written == answer_size(request.readable, request.writable));
        bool same = true;
        for (std::uint32_t i = 0; i < used.written; ++i)
            same = same &&
                   request.page[half + i] ==
                       answer_byte(request.readable == 0 ? std::byte{} : payload(request.number, i % request.readable));
        require(same);
        free_slots_.push_back(request.slot);
        request.under_way = false;
        ++completed;
    }

    void driver_step() {
        switch (below(8)) {
            case 0:
            case 1:
            case 2:
                add();
                break;
            case 3:
            case 4:
            case 5:
                pop_used();
                break;
            case 6:
                driver_.disable_interrupts();
                break;
            default:
                driver_.publish();
                if (driver_.needs_kick()) device_asleep_ = false;
                if (below(3) != 0) break;
                if (!driver_.enable_interrupts()) {
                    driver_asleep_ = true;
                    ++sleeps;
                }
        }
    }

    void take() {
        bool found = false;
        require(!device_.pop(chain_, found));
        if (!found) return;
        std::size_t at = 0;
        for (const Segment& segment : chain_.readable) {
            SharedMemory::copy_from(buffer_.data() + at, segment.data, segment.size);
            at += segment.size;
        }
        require(at == chain_.readable_bytes);
        const std::size_t read = at;
        const std::uint32_t written = answer_size(read, chain_.writable_bytes);
        at = 0;
        for (const Segment& segment : chain_.writable) {
            for (std::size_t i = 0; i < segment.size && at < written; ++i, ++at)
                segment.data[i] = answer_byte(read == 0 ? std::byte{} : buffer_[at % read]);
        }
        pending_.push_back({chain_.head, written});
    }

    void device_step() {
        switch (below(8)) {
            case 0:
            case 1:
            case 2:
                take();
                break;
            case 3:
            case 4:
            case 5: {
                if (pending_.empty()) break;
                std::swap(pending_[below(pending_.size())], pending_.back());
                require(!device_.push(pending_.back().head, pending_.back().written));
                pending_.pop_back();
                break;
            }
            case 6:
                device_.disable_notifications();
                break;
            default:
                device_.publish();
                if (device_.needs_notification()) driver_asleep_ = false;
                if (pending_.empty() && !device_.enable_notifications()) {
                    device_asleep_ = true;
                    ++sleeps;
                }
        }
    }

    std::mt19937 random_;
    std::size_t max_piece_;
    FakeHypervisor hypervisor_{512};
    std::unique_ptr<SharedPages> arena_;
    std::unique_ptr<SharedPages> outside_;
    GuestMemory memory_;
    SplitQueueDriver driver_;
    SplitQueueDevice device_;
    Chain chain_;
    std::vector<Request> requests_;  // by head
    std::uint32_t number_ = 0;
    std::vector<Piece> to_read_;
    std::vector<Piece> to_write_;
    std::array<std::byte, half> buffer_{};
    std::vector<std::uint16_t> free_slots_;
    std::vector<Pending> pending_;
    bool driver_asleep_ = false;
    bool device_asleep_ = false;
    bool stopping_ = false;
};

// Every combination of indirect, event index and in-order.
std::uint64_t features(unsigned combination) {
    return std::uint64_t{1} << feature_version_1 | std::uint64_t{combination & 1} << feature_indirect_desc |
           std::uint64_t{combination >> 1 & 1} << feature_event_idx |
           std::uint64_t{combination >> 2 & 1} << feature_in_order;
}

}  // namespace

TEST_CASE("split queue: both halves agree on every chain, for every feature and size") {
    for (unsigned combination = 0; combination < 8; ++combination) {
        for (const std::uint16_t size : std::array<std::uint16_t, 6>{1, 2, 4, 8, 64, 256}) {
            CAPTURE(combination);
            CAPTURE(size);
            Machine machine(size, features(combination), 100, combination * 1000 + size);
            for (int i = 0; i < 20'000; ++i) machine.step();
            machine.finish();
            CHECK(machine.completed > 500);
            CHECK(machine.sleeps > 10);
        }
    }
}

TEST_CASE("split queue: both halves agree on every chain when the 16-bit indices wrap") {
    for (const unsigned combination : {0U, 2U, 7U}) {
        CAPTURE(combination);
        Machine machine(8, features(combination), 4, combination);
        while (machine.completed < 65536 + 1000) machine.step();
        machine.finish();
    }
}

}  // namespace cpp_ring::test
