/* Included at the end of a header of trace points; linux/tracepoint.h has made all of them already. */
