/* A xenbus device, as far as the ring half knows it. */
#pragma once

#include <linux/device.h>
#include <xen/grant_table.h>

typedef u32 evtchn_port_t;

struct xenbus_device {
    const char* nodename;
    domid_t otherend_id;
    struct device dev;
};
