/* SPDX-License-Identifier: MIT */
/*
 * Wire layout and constants of virtio-msg over Xen grants and event channels.
 *
 * One header for both ends: the C++ engine and the guest's kernel module. Everything is little-endian;
 * every size and offset is asserted by whoever includes it. docs/protocol.md explains what stands here.
 *
 * Messages follow virtio-msg revision 1 (OASIS draft of 2025-10-23 as changed by its 2026 review).
 */
#ifndef VIRTIO_MSG_XEN_H
#define VIRTIO_MSG_XEN_H

#ifdef __KERNEL__
#include <linux/types.h>
typedef __u8 vmsg_u8;
typedef __le16 vmsg_le16;
typedef __le32 vmsg_le32;
typedef __le64 vmsg_le64;
#else
#include <stdint.h>
typedef uint8_t vmsg_u8;
typedef uint16_t vmsg_le16;
typedef uint32_t vmsg_le32;
typedef uint64_t vmsg_le64;
#endif

/* ---- The two pages ------------------------------------------------------------------------------- */

#define VMSG_XEN_PROTOCOL_VERSION 1
#define VMSG_XEN_REVISION 1 /* of virtio-msg */
#define VMSG_XEN_PAGE_SIZE 4096
#define VMSG_XEN_CACHE_LINE 64

#define VMSG_XEN_MAGIC_FE 0x45466d76 /* "vmFE", in the fe-to-be page */
#define VMSG_XEN_MAGIC_BE 0x45426d76 /* "vmBE", in the be-to-fe page */

/* Live bytes. 0 must mean dead: the kernel writes 0 for a process that dies with the page mapped. */
#define VMSG_XEN_DEAD 0
#define VMSG_XEN_ALIVE 1

/* Line 0 of fe-to-be. Written by the frontend only. */
struct vmsg_xen_fe_header {
	vmsg_le32 magic;
	vmsg_le32 version;
	vmsg_u8 live;
	vmsg_u8 reserved0[3];
	vmsg_le32 fe_waiting; /* 1: the frontend sleeps, or is about to; answers must be notified */
	vmsg_u8 reserved1[48];
};

/* Line 0 of be-to-fe. Written by the backend only. */
struct vmsg_xen_be_header {
	vmsg_le32 magic;
	vmsg_le32 version;
	vmsg_u8 live;
	vmsg_u8 reserved0[3];
	vmsg_le32 be_waiting;        /* 1: the backend sleeps, or is about to; requests must be notified */
	vmsg_le32 device_status;     /* mirror of the virtio device status */
	vmsg_le32 config_generation; /* mirror of the configuration generation */
	vmsg_le32 error_code;        /* enum vmsg_xen_error: the last thing the device objected to */
	vmsg_le32 error_detail;      /* low 32 bits of the offending value */
	vmsg_u8 reserved1[32];
};

#define VMSG_MAX_SIZE 276 /* the longest message of this bus: a SET_CONFIG or GET_CONFIG answer of 256 bytes */
#define VMSG_MAX_CONFIG_DATA 256

/* Lines 1 and up of either page. seq, size and the first 56 message bytes share one cache line. */
struct vmsg_xen_slot {
	vmsg_le32 seq;  /* published last, by a store with release order */
	vmsg_le32 size; /* bytes of message */
	vmsg_u8 message[VMSG_MAX_SIZE];
};

struct vmsg_xen_fe_page {
	struct vmsg_xen_fe_header header;
	struct vmsg_xen_slot request;
};

struct vmsg_xen_be_page {
	struct vmsg_xen_be_header header;
	struct vmsg_xen_slot answer;
};

/* ---- virtio-msg: header -------------------------------------------------------------------------- */

struct vmsg_header {
	vmsg_u8 type;
	vmsg_u8 msg_id;
	vmsg_le16 dev_num;  /* 0: a channel carries one device */
	vmsg_le16 token;    /* epoch in the high byte (1..255), low byte of seq in the low byte; never 0 */
	vmsg_le16 msg_size; /* header included */
};

#define VMSG_TYPE_RESPONSE 0x01
#define VMSG_TYPE_BUS 0x02

enum vmsg_id {
	VMSG_GET_DEVICE_INFO = 0x02,
	VMSG_GET_DEVICE_FEATURES = 0x03,
	VMSG_SET_DRIVER_FEATURES = 0x04,
	VMSG_GET_CONFIG = 0x05,
	VMSG_SET_CONFIG = 0x06,
	VMSG_GET_DEVICE_STATUS = 0x07,
	VMSG_SET_DEVICE_STATUS = 0x08,
	VMSG_GET_VQUEUE = 0x09,
	VMSG_SET_VQUEUE = 0x0a,
	VMSG_RESET_VQUEUE = 0x0b,
	VMSG_GET_SHM = 0x0c,
	/* Events are out of band on this bus (event channels); the numbers are here so that nobody reuses them. */
	VMSG_EVENT_CONFIG = 0x40,
	VMSG_EVENT_AVAIL = 0x41,
	VMSG_EVENT_USED = 0x42,
};

/* ---- virtio-msg: payloads ------------------------------------------------------------------------ */

struct vmsg_device_info { /* GET_DEVICE_INFO answer */
	vmsg_le32 device_id;
	vmsg_le32 vendor_id;
	vmsg_le32 num_feature_bits; /* a multiple of 32 */
	vmsg_le32 config_size;
	vmsg_le32 max_vqueues;
	vmsg_le16 admin_vq_start;
	vmsg_le16 admin_vq_count;
};

struct vmsg_feature_range { /* GET_DEVICE_FEATURES both ways, SET_DRIVER_FEATURES request; le32 blocks follow */
	vmsg_le32 index;
	vmsg_le32 count;
};

struct vmsg_config_range { /* GET_CONFIG request */
	vmsg_le32 offset;
	vmsg_le32 size;
};

struct vmsg_config { /* GET_CONFIG answer, SET_CONFIG both ways; data follows */
	vmsg_le32 generation;
	vmsg_le32 offset;
	vmsg_le32 size;
};

struct vmsg_status { /* GET_DEVICE_STATUS answer, SET_DEVICE_STATUS both ways */
	vmsg_le32 status;
};

struct vmsg_index { /* GET_VQUEUE, RESET_VQUEUE, GET_SHM request */
	vmsg_le32 index;
};

struct vmsg_vqueue { /* GET_VQUEUE answer, SET_VQUEUE request */
	vmsg_le32 index;
	vmsg_le32 max_size; /* 0 in the answer: no such queue; 0 in the request */
	vmsg_le32 size;
	vmsg_le32 reserved;
	vmsg_le64 descriptor_address;
	vmsg_le64 driver_address;
	vmsg_le64 device_address;
};

struct vmsg_shm { /* GET_SHM answer; le64s are not naturally aligned on the wire, hence the halves */
	vmsg_le32 index;
	vmsg_le32 length_low;
	vmsg_le32 length_high;
	vmsg_le32 address_low;
	vmsg_le32 address_high;
};

/* ---- Grant-DMA addresses (as Linux xen-grant-dma-ops) -------------------------------------------- */

#define VMSG_XEN_DMA_GRANT (1ULL << 63)
#define VMSG_XEN_DMA_REF_SHIFT 12
#define VMSG_XEN_DMA_OFFSET_MASK 0xfffULL

/* ---- Error codes: one for each way a frontend can lie -------------------------------------------- */

enum vmsg_xen_error {
	VMSG_XEN_OK = 0,
	/* The channel: the backend stops serving it and clears its live byte; only a reconnect helps. */
	VMSG_XEN_BAD_MAGIC = 1,
	VMSG_XEN_BAD_VERSION = 2,
	VMSG_XEN_BAD_SEQ = 3,
	VMSG_XEN_BAD_SIZE = 4,
	VMSG_XEN_BAD_TYPE = 5,
	VMSG_XEN_BAD_TOKEN = 6,
	VMSG_XEN_BAD_MSG_ID = 7,
	VMSG_XEN_BAD_PAYLOAD = 8,
	/* A request that is refused: it gets its answer, the device goes on. */
	VMSG_XEN_CONFIG_RANGE = 16,
	VMSG_XEN_CONFIG_READ_ONLY = 17,
	VMSG_XEN_STATUS_ORDER = 18,
	VMSG_XEN_FEATURES = 19,
	VMSG_XEN_QUEUE_INDEX = 20,
	VMSG_XEN_QUEUE_SIZE = 21,
	VMSG_XEN_QUEUE_ADDRESS = 22,
	VMSG_XEN_QUEUE_STATE = 23,
	VMSG_XEN_CONFIG_VALUE = 24,
	/* The rings and guest memory: DEVICE_NEEDS_RESET; a reset through the channel helps. */
	VMSG_XEN_GRANT_MAP = 32,
	VMSG_XEN_MAP_BUDGET = 33,
	VMSG_XEN_AVAIL_INDEX = 34,
	VMSG_XEN_DESC_HEAD = 35,
	VMSG_XEN_DESC_NEXT = 36,
	VMSG_XEN_DESC_CYCLE = 37,
	VMSG_XEN_DESC_INDIRECT = 38,
	VMSG_XEN_DESC_ADDRESS = 39,
	VMSG_XEN_DESC_LENGTH = 40,
	VMSG_XEN_DESC_ORDER = 41,
	VMSG_XEN_DESC_IN_FLIGHT = 42,
	VMSG_XEN_REQUEST = 43, /* the model refused a request that no driver would make */
	/* The device side: DEVICE_NEEDS_RESET; not the guest's doing. */
	VMSG_XEN_MODEL = 64, /* the device model failed */
	VMSG_XEN_HOST = 65,  /* the host failed; detail is the errno */
};

#endif
