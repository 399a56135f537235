// Xen's libraries write a line on standard error for each call that fails, and a guest decides which calls fail
// (threats row 26). Every failure is an error value here already.
#pragma once

struct xentoollog_logger;

namespace cpp_ring {

[[nodiscard]] xentoollog_logger* xen_quiet_logger() noexcept;

}  // namespace cpp_ring
