// The device's half of the device's ring: an honest one, whose parts a test may use to lie. It follows addresses into
// the queue's pool only, and a chain that leads elsewhere fails the test.
#pragma once

#include <doctest/doctest.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "module.h"

namespace guest_module {

struct Part {
    std::uint8_t* memory;
    std::uint32_t size;
    bool writable;
};

struct Chain {
    [[nodiscard]] std::vector<std::uint8_t> content() const {
        std::vector<std::uint8_t> all;
        for (const Part& part : parts)
            if (!part.writable) all.insert(all.end(), part.memory, part.memory + part.size);
        return all;
    }
    // Fills all that may be written, as a device may whatever length it tells afterwards: the first bytes with one
    // value.
    void write(std::uint8_t value, std::uint32_t count) const {
        for (const Part& part : parts)
            for (std::uint32_t i = 0; part.writable && i < part.size; ++i) {
                part.memory[i] = count != 0 ? value : std::uint8_t{0xdd};
                if (count != 0) --count;
            }
    }

    std::uint16_t head = 0;
    bool indirect = false;
    std::vector<Part> parts;
    std::vector<std::uint16_t> descriptors;
};

class Device {
  public:
    explicit Device(const module* queue) { adopt(queue); }

    // Begins at index 0 with the ring that the queue has now.
    void adopt(const module* queue) {
        ring = module_device_ring(queue);
        pool_ = module_pool_of(queue);
        taken_ = 0;
    }

    // The next chain that is available.
    std::optional<Chain> next() {
        if (available() == 0) return {};
        Chain chain;
        chain.head = next_head();
        REQUIRE(chain.head < ring.num);
        const vring_desc* table = ring.desc;
        std::uint32_t index = chain.head;
        std::size_t left = ring.num;
        if ((table[index].flags & VRING_DESC_F_INDIRECT) != 0) {
            REQUIRE(table[index].flags == VRING_DESC_F_INDIRECT);
            chain.indirect = true;
            chain.descriptors.push_back(chain.head);
            left = table[index].len / sizeof(vring_desc);
            table = reinterpret_cast<const vring_desc*>(memory(table[index]));
            index = 0;
        }
        for (bool more = true; more; --left) {
            REQUIRE(left > 0);
            if (!chain.indirect) chain.descriptors.push_back(static_cast<std::uint16_t>(index));
            const vring_desc desc = table[index];
            chain.parts.push_back({memory(desc), desc.len, (desc.flags & VRING_DESC_F_WRITE) != 0});
            more = (desc.flags & VRING_DESC_F_NEXT) != 0;
            index = desc.next;
        }
        if (chain.indirect) REQUIRE(left == 0);
        return chain;
    }

    // All that are available.
    std::vector<Chain> all() {
        std::vector<Chain> chains;
        while (auto chain = next()) chains.push_back(*chain);
        return chains;
    }

    std::uint16_t next_head() { return ring.avail_entries[taken_++ & (ring.num - 1)]; }

    void use(std::uint32_t id, std::uint32_t length) {
        ring.used_entries[ring.used[1] & (ring.num - 1)] = {id, length};
        ring.used[1] = static_cast<std::uint16_t>(ring.used[1] + 1);
    }
    void answer(const Chain& chain, std::uint8_t value, std::uint32_t length) {
        chain.write(value, length);
        use(chain.head, length);
    }
    [[nodiscard]] std::uint16_t available() const { return static_cast<std::uint16_t>(ring.avail[1] - taken_); }

    module_ring ring{};

  private:
    [[nodiscard]] std::uint8_t* memory(const vring_desc& desc) const {
        const std::uint64_t offset = desc.addr - pool_.address;
        const std::uint64_t size = std::uint64_t{pool_.units} * module_unit();
        REQUIRE(offset % module_unit() == 0);
        REQUIRE(desc.len > 0);
        REQUIRE(offset < size);
        REQUIRE(desc.len <= size - offset);
        return pool_.memory + offset;
    }

    module_pool pool_{};
    std::uint16_t taken_ = 0;
};

}  // namespace guest_module
