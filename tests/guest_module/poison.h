/* Memory that nobody may touch, while the address sanitizer watches. */
#pragma once

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define poison(memory, size) __asan_poison_memory_region((memory), (size))
#define unpoison(memory, size) __asan_unpoison_memory_region((memory), (size))
#else
#define poison(memory, size) ((void)(memory), (void)(size))
#define unpoison(memory, size) ((void)(memory), (void)(size))
#endif
