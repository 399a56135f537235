// The driver's half of the driver's ring, as virtio_ring.c drives it. Each buffer is a block of its own with exactly
// its size, and is freed with its request: whatever the module touches beside it or afterwards is a finding of the
// sanitizer.
#pragma once

#include <doctest/doctest.h>

#include <algorithm>
#include <cstdint>
#include <map>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#include "module.h"

namespace guest_module {

inline constexpr std::uint8_t untouched = 0xee;
inline constexpr std::uint8_t spoiled = 0xff;

struct Piece {
    std::uint32_t size;
    bool writable;
};

struct Buffer {
    explicit Buffer(Piece piece)
        : size(piece.size), writable(piece.writable), bytes(std::make_unique<std::uint8_t[]>(piece.size)) {}
    std::uint32_t size;
    bool writable;
    std::unique_ptr<std::uint8_t[]> bytes;
};

struct Request {
    [[nodiscard]] std::vector<std::uint8_t> content(bool writable) const {
        std::vector<std::uint8_t> all;
        for (const Buffer& buffer : buffers)
            if (buffer.writable == writable)
                all.insert(all.end(), buffer.bytes.get(), buffer.bytes.get() + buffer.size);
        return all;
    }
    [[nodiscard]] std::uint32_t writable() const {
        return std::accumulate(buffers.begin(), buffers.end(), 0U, [](std::uint32_t sum, const Buffer& buffer) {
            return sum + (buffer.writable ? buffer.size : 0);
        });
    }

    // What the driver put into its readable buffers, each of them alike.
    [[nodiscard]] std::uint8_t content_byte(std::uint32_t at) const {
        return static_cast<std::uint8_t>(serial * 31 + at);
    }
    [[nodiscard]] bool readable_is_untouched() const {
        for (const Buffer& buffer : buffers)
            for (std::uint32_t i = 0; !buffer.writable && i < buffer.size; ++i)
                if (buffer.bytes[i] != content_byte(i)) return false;
        return true;
    }

    unsigned serial = 0;  // counts the driver's requests
    std::vector<Buffer> buffers;
    std::vector<std::uint16_t> descriptors;
    std::vector<vring_desc> table;
};

struct Answer {
    // The first bytes are what the device wrote, and behind them nothing was touched.
    [[nodiscard]] bool holds(std::uint8_t value) const {
        const auto bytes = request.content(true);
        for (std::size_t i = 0; i < bytes.size(); ++i)
            if (bytes[i] != (i < length ? value : untouched)) return false;
        return true;
    }
    [[nodiscard]] bool rest_is_untouched() const {
        const auto bytes = request.content(true);
        return std::all_of(bytes.begin() + length, bytes.end(), [](std::uint8_t each) { return each == untouched; });
    }
    // Nothing was written but a last byte that is no success.
    [[nodiscard]] bool failed() const {
        auto bytes = request.content(true);
        if (length != 0 || bytes.empty() || bytes.back() != spoiled) return false;
        bytes.pop_back();
        return std::ranges::all_of(bytes, [](std::uint8_t byte) { return byte == untouched; });
    }

    std::uint16_t head;
    std::uint32_t length;
    Request request;
};

class Driver {
  public:
    explicit Driver(const module* queue) { adopt(queue); }

    // The queue's ring is another one, and nothing is in it.
    void adopt(const module* queue) {
        ring_ = module_driver_ring(queue);
        used_ = 0;
        outstanding_.clear();
        free_.resize(ring_.num);
        std::iota(free_.rbegin(), free_.rend(), std::uint16_t{0});
        count();
    }

    // Makes a request available, without a notification; returns its head.
    std::uint16_t add(const std::vector<Piece>& pieces, bool indirect = false) {
        Request request;
        request.serial = serial_++;
        const std::size_t needed = indirect ? 1 : pieces.size();
        REQUIRE(free_.size() >= needed);
        for (std::size_t i = 0; i < needed; ++i) {
            request.descriptors.push_back(free_.back());
            free_.pop_back();
        }
        count();
        for (const Piece& piece : pieces) {
            Buffer& buffer = request.buffers.emplace_back(piece);
            for (std::uint32_t i = 0; i < piece.size; ++i)
                buffer.bytes[i] = piece.writable ? untouched : request.content_byte(i);
        }
        if (indirect) request.table.resize(pieces.size());
        for (std::size_t i = 0; i < pieces.size(); ++i) {
            const bool more = i + 1 < pieces.size();
            const auto next = static_cast<std::uint16_t>(indirect ? i + 1 : more ? request.descriptors[i + 1] : 0);
            vring_desc& desc = indirect ? request.table[i] : ring_.desc[request.descriptors[i]];
            desc = {reinterpret_cast<std::uintptr_t>(request.buffers[i].bytes.get()), pieces[i].size,
                    static_cast<std::uint16_t>((pieces[i].writable ? VRING_DESC_F_WRITE : 0) |
                                               (more ? VRING_DESC_F_NEXT : 0)),
                    next};
        }
        const std::uint16_t head = request.descriptors.front();
        if (indirect)
            ring_.desc[head] = {reinterpret_cast<std::uintptr_t>(request.table.data()),
                                static_cast<std::uint32_t>(request.table.size() * sizeof(vring_desc)),
                                VRING_DESC_F_INDIRECT, 0};
        ring_.avail_entries[ring_.avail[1] & (ring_.num - 1)] = head;
        ring_.avail[1] = static_cast<std::uint16_t>(ring_.avail[1] + 1);
        outstanding_.emplace(head, std::move(request));
        return head;
    }

    // What came back, each of it a request that was out, with a length that could be written.
    std::vector<Answer> answers() {
        std::vector<Answer> all;
        while (used_ != ring_.used[1]) {
            const vring_used_elem element = ring_.used_entries[used_++ & (ring_.num - 1)];
            REQUIRE(element.id < ring_.num);
            const auto head = static_cast<std::uint16_t>(element.id);
            auto found = outstanding_.find(head);
            REQUIRE(found != outstanding_.end());
            REQUIRE(element.len <= found->second.writable());
            free_.insert(free_.end(), found->second.descriptors.begin(), found->second.descriptors.end());
            all.push_back({head, element.len, std::move(found->second)});
            outstanding_.erase(found);
        }
        count();
        return all;
    }

    // As virtqueue_detach_unused_buf: what is out is the driver's again, and its index counts down.
    void detach_unused() {
        ring_.avail[1] = static_cast<std::uint16_t>(ring_.avail[1] - outstanding_.size());
        for (const auto& [head, request] : outstanding_)
            free_.insert(free_.end(), request.descriptors.begin(), request.descriptors.end());
        outstanding_.clear();
        count();
    }

    // Everything that is out is the driver's again and freed, and its ring begins at index 0.
    void take_back() {
        outstanding_.clear();
        ring_.avail[1] = 0;
        ring_.used[1] = 0;
    }

    void want_calls(bool wanted) { ring_.avail[0] = wanted ? 0 : VRING_AVAIL_F_NO_INTERRUPT; }
    [[nodiscard]] const Request& request(std::uint16_t head) const { return outstanding_.at(head); }
    [[nodiscard]] std::size_t outstanding() const { return outstanding_.size(); }
    [[nodiscard]] std::size_t free_descriptors() const { return free_.size(); }

  private:
    void count() { *ring_.num_free = static_cast<unsigned>(free_.size()); }

    module_ring ring_{};
    std::uint16_t used_ = 0;
    unsigned serial_ = 0;
    std::vector<std::uint16_t> free_;
    std::map<std::uint16_t, Request> outstanding_;
};

}  // namespace guest_module
