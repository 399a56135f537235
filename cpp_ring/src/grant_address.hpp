// Grant-DMA addresses, as Linux's xen-grant-dma-ops makes them: bit 63 set, bits 12..43 the grant reference, the low
// 12 bits the offset in its page. A buffer of n pages stands on n consecutive references.
#pragma once

#include <cstdint>

#include "errors.hpp"
#include "hypervisor.hpp"

namespace cpp_ring {

static_assert(page_size == std::size_t{1} << VMSG_XEN_DMA_REF_SHIFT);

// The address of byte `offset` of the pages that begin at `first`.
[[nodiscard]] constexpr std::uint64_t grant_address(GrantRef first, std::uint64_t offset) noexcept {
    return VMSG_XEN_DMA_GRANT + (std::uint64_t{first} << VMSG_XEN_DMA_REF_SHIFT) + offset;
}

// The references that [address, address + length) stands on.
struct GrantRange {
    GrantRef first = 0;
    std::uint32_t offset = 0;  // of the first byte in its page
    std::uint64_t pages = 0;
};

// The one place where a guest's address and length become references. VMSG_XEN_DESC_ADDRESS: not a grant-DMA address,
// or past the last reference. VMSG_XEN_DESC_LENGTH: length 0.
[[nodiscard]] constexpr GuestError parse_grant_range(std::uint64_t address, std::uint64_t length,
                                                     GrantRange& out) noexcept {
    constexpr std::uint64_t references = std::uint64_t{1} << 32;
    if (length == 0) return {VMSG_XEN_DESC_LENGTH, 0};
    if ((address & VMSG_XEN_DMA_GRANT) == 0) return {VMSG_XEN_DESC_ADDRESS, address};
    const std::uint64_t first = (address & ~VMSG_XEN_DMA_GRANT) >> VMSG_XEN_DMA_REF_SHIFT;
    const std::uint64_t offset = address & VMSG_XEN_DMA_OFFSET_MASK;
    // Compared by subtraction: first < 2^32 and offset < 2^12, so nothing here wraps.
    if (first >= references || length > (references - first) * page_size - offset)
        return {VMSG_XEN_DESC_ADDRESS, address};
    out = {static_cast<GrantRef>(first), static_cast<std::uint32_t>(offset),
           (offset + length + page_size - 1) / page_size};
    return {};
}

}  // namespace cpp_ring
