/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM virtio_msg_xen

#if !defined(VMSGX_TRACE_H) || defined(TRACE_HEADER_MULTI_READ)
#define VMSGX_TRACE_H

#include <linux/tracepoint.h>

#define VMSGX_NODE 32	/* device/virtio-msg/<n> */

TRACE_EVENT(vmsgx_request,
	TP_PROTO(const char *node, u8 msg_id, u16 token, size_t size),
	TP_ARGS(node, msg_id, token, size),
	TP_STRUCT__entry(
		__array(char, node, VMSGX_NODE)
		__field(u8, msg_id)
		__field(u16, token)
		__field(u32, size)
	),
	TP_fast_assign(
		strscpy(__entry->node, node, VMSGX_NODE);
		__entry->msg_id = msg_id;
		__entry->token = token;
		__entry->size = size;
	),
	TP_printk("%s id=%#x token=%#x payload=%u",
		  __entry->node, __entry->msg_id, __entry->token, __entry->size)
);

TRACE_EVENT(vmsgx_answer,
	TP_PROTO(const char *node, u8 msg_id, u16 token, int got, s64 ns),
	TP_ARGS(node, msg_id, token, got, ns),
	TP_STRUCT__entry(
		__array(char, node, VMSGX_NODE)
		__field(u8, msg_id)
		__field(u16, token)
		__field(int, got)
		__field(s64, ns)
	),
	TP_fast_assign(
		strscpy(__entry->node, node, VMSGX_NODE);
		__entry->msg_id = msg_id;
		__entry->token = token;
		__entry->got = got;
		__entry->ns = ns;
	),
	TP_printk("%s id=%#x token=%#x payload=%d ns=%lld",
		  __entry->node, __entry->msg_id, __entry->token,
		  __entry->got, __entry->ns)
);

TRACE_EVENT(vmsgx_kick,
	TP_PROTO(const char *node, unsigned int queue, u16 avail_idx, bool notified),
	TP_ARGS(node, queue, avail_idx, notified),
	TP_STRUCT__entry(
		__array(char, node, VMSGX_NODE)
		__field(u32, queue)
		__field(u16, avail_idx)
		__field(bool, notified)
	),
	TP_fast_assign(
		strscpy(__entry->node, node, VMSGX_NODE);
		__entry->queue = queue;
		__entry->avail_idx = avail_idx;
		__entry->notified = notified;
	),
	TP_printk("%s queue=%u avail=%u notified=%d",
		  __entry->node, __entry->queue, __entry->avail_idx,
		  __entry->notified)
);

TRACE_EVENT(vmsgx_interrupt,
	TP_PROTO(const char *node, unsigned int queue, u16 used_idx, bool called),
	TP_ARGS(node, queue, used_idx, called),
	TP_STRUCT__entry(
		__array(char, node, VMSGX_NODE)
		__field(u32, queue)
		__field(u16, used_idx)
		__field(bool, called)
	),
	TP_fast_assign(
		strscpy(__entry->node, node, VMSGX_NODE);
		__entry->queue = queue;
		__entry->used_idx = used_idx;
		__entry->called = called;
	),
	TP_printk("%s queue=%u used=%u called=%d", __entry->node, __entry->queue, __entry->used_idx,
		  __entry->called)
);

#endif

#undef TRACE_INCLUDE_PATH
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_PATH .
#define TRACE_INCLUDE_FILE trace
#include <trace/define_trace.h>
