/* Trace points that trace nothing, with their arguments checked all the same. */
#pragma once

#include <linux/types.h>

#define TP_PROTO(...) __VA_ARGS__
#define TRACE_EVENT(name, proto, ...) \
    static inline void trace_##name(proto) {}
