// SPDX-License-Identifier: GPL-2.0
/* The module's tracepoints: events/virtio_msg_xen in tracefs. */
#include <linux/string.h>
#include <linux/types.h>

#define CREATE_TRACE_POINTS
#include "trace.h"
