/* Device types whose queues have pools of their own sizes (virtio 1.3 section 5). */
#pragma once

#define VIRTIO_ID_NET 1
#define VIRTIO_ID_BLOCK 2
#define VIRTIO_ID_RNG 4
