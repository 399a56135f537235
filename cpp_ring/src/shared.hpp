// Every atomic, fence and copy that touches memory shared with another domain. Nobody else includes <atomic>.
//
// Shared memory is only ever read and written through a memory policy: `SharedMemory` in production; tests
// substitute one that hands out a different value at each read and fails on a second read of the same bytes.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <new>
#include <type_traits>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace cpp_ring {

static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the wire is little-endian and is used in place");

// Private to the process (stop flags, counters read by another thread); not for shared pages.
template <class T>
using Atomic = std::atomic<T>;

inline void cpu_relax() noexcept {
#if defined(__x86_64__)
    _mm_pause();
#elif defined(__aarch64__)
    asm volatile("isb" ::: "memory");
#endif
}

// Dekker's fence: between "publish my word" and "read the other side's word". Its partner is always the other
// side's full_fence() between the same two steps, the words swapped.
inline void full_fence() noexcept {
#if defined(__SANITIZE_THREAD__)
    // ThreadSanitizer knows no fences (gcc 12 rejects them); an RMW on one common word orders the same.
    static std::atomic<int> word{0};
    word.fetch_add(0, std::memory_order_seq_cst);
#else
    std::atomic_thread_fence(std::memory_order_seq_cst);
#endif
}

struct SharedMemory {
    template <class T>
    static constexpr bool is_word = std::is_unsigned_v<T> && (sizeof(T) <= 8);

    // Tears never: aligned and lock-free (RUSTSEC-2020-0157).
    template <class T>
    [[nodiscard]] static T load_relaxed(const T* p) noexcept {
        static_assert(is_word<T> && std::atomic_ref<T>::is_always_lock_free);
        return std::atomic_ref<T>(const_cast<T&>(*p)).load(std::memory_order_relaxed);
    }
    // Partner: store_release of the same word by the other domain.
    template <class T>
    [[nodiscard]] static T load_acquire(const T* p) noexcept {
        static_assert(is_word<T> && std::atomic_ref<T>::is_always_lock_free);
        return std::atomic_ref<T>(const_cast<T&>(*p)).load(std::memory_order_acquire);
    }
    template <class T>
    static void store_relaxed(T* p, T value) noexcept {
        static_assert(is_word<T> && std::atomic_ref<T>::is_always_lock_free);
        std::atomic_ref<T>(*p).store(value, std::memory_order_relaxed);
    }
    // Partner: load_acquire of the same word by the other domain.
    template <class T>
    static void store_release(T* p, T value) noexcept {
        static_assert(is_word<T> && std::atomic_ref<T>::is_always_lock_free);
        std::atomic_ref<T>(*p).store(value, std::memory_order_release);
    }

    // Copies each shared byte exactly once. Relaxed atomics: the compiler may neither read twice nor invent reads
    // (XSA-155), and a peer that writes meanwhile is a race of values, not undefined behaviour.
    static void copy_from(void* to, const void* from, std::size_t size) noexcept {
        auto* out = static_cast<std::byte*>(to);
        auto source = reinterpret_cast<std::uintptr_t>(from);
        while (size != 0 && (source & 7) != 0) copy_one<std::uint8_t>(out, source, size);
        while (size >= 8) copy_one<std::uint64_t>(out, source, size);
        while (size != 0) copy_one<std::uint8_t>(out, source, size);
    }
    static void copy_to(void* to, const void* from, std::size_t size) noexcept {
        const auto* in = static_cast<const std::byte*>(from);
        auto target = reinterpret_cast<std::uintptr_t>(to);
        while (size != 0 && (target & 7) != 0) put_one<std::uint8_t>(target, in, size);
        while (size >= 8) put_one<std::uint64_t>(target, in, size);
        while (size != 0) put_one<std::uint8_t>(target, in, size);
    }

  private:
    template <class T>
    static void copy_one(std::byte*& to, std::uintptr_t& from, std::size_t& size) noexcept {
        const T value = load_relaxed(reinterpret_cast<const T*>(from));
        std::memcpy(to, &value, sizeof value);
        to += sizeof value;
        from += sizeof value;
        size -= sizeof value;
    }
    template <class T>
    static void put_one(std::uintptr_t& to, const std::byte*& from, std::size_t& size) noexcept {
        T value;
        std::memcpy(&value, from, sizeof value);
        store_relaxed(reinterpret_cast<T*>(to), value);
        to += sizeof value;
        from += sizeof value;
        size -= sizeof value;
    }
};

}  // namespace cpp_ring
