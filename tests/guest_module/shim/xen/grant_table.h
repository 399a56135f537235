/* Grants by their numbers only: the pages are plain memory here. */
#pragma once

#include <linux/types.h>

typedef u16 domid_t;
typedef u32 grant_ref_t;
