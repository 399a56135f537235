// Errors of the engine. A lie of the guest and a failure of the host are different types (design rule 5).
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

#include "virtio_msg_xen.h"

namespace cpp_ring {

// What a frontend can do wrong, as the wire knows it. Returned by value on the hot path, never thrown there.
struct GuestError {
    vmsg_xen_error code = VMSG_XEN_OK;
    std::uint64_t detail = 0;  // the offending number

    explicit constexpr operator bool() const noexcept { return code != VMSG_XEN_OK; }
    friend constexpr bool operator==(const GuestError&, const GuestError&) = default;
};

// "avail_index", "bad_seq", ...: the name of an error code as logs, the store and the docs show it.
[[nodiscard]] const char* error_name(std::uint32_t code) noexcept;

// The lowest code that needs a reset of the device, and the first one above the codes that close the channel.
[[nodiscard]] constexpr bool closes_channel(vmsg_xen_error code) noexcept { return code != VMSG_XEN_OK && code < 16; }
[[nodiscard]] constexpr bool breaks_device(vmsg_xen_error code) noexcept { return code >= 32; }

// A system call or the hypervisor said no. Thrown outside the hot path only.
class HostError : public std::runtime_error {
  public:
    HostError(int error, const std::string& what);
    [[nodiscard]] int error() const noexcept { return error_; }

  private:
    int error_;
};

}  // namespace cpp_ring
