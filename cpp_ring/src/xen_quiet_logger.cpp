#include "xen_quiet_logger.hpp"

extern "C" {  // the header itself does not say so
#include <xentoollog.h>
}

namespace cpp_ring {

xentoollog_logger* xen_quiet_logger() noexcept {
    static xentoollog_logger logger{
        .vmessage = [](xentoollog_logger*, xentoollog_level, int, const char*, const char*, va_list) {},
        .progress = [](xentoollog_logger*, const char*, const char*, int, unsigned long, unsigned long) {},
        .destroy = [](xentoollog_logger*) {},
    };
    return &logger;
}

}  // namespace cpp_ring
