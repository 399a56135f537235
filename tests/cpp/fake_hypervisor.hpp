// A hypervisor inside one process, for tests of what stands on grants: counts what is mapped, fails on demand.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <stdexcept>
#include <vector>

#include "errors.hpp"
#include "grant_address.hpp"
#include "hypervisor.hpp"
#include "shared.hpp"

namespace cpp_ring::test {

class FakeHypervisor final : public Hypervisor {
  public:
    // The ordinary kind maps as a real one does: a view of its own, read-only if asked so, gone when unmapped; a stray
    // access is a SIGSEGV. With one_view the frontend's own memory is handed out, since ThreadSanitizer sees no race
    // between two views of a page.
    explicit FakeHypervisor(std::size_t pages = 2048, bool one_view = false,
                            std::size_t map_budget = default_map_budget)
        : Hypervisor(map_budget),
          granted_(pages, no_grant),
          one_view_(one_view),
          fd_(memfd_create("fake-hypervisor", MFD_CLOEXEC)) {
        if (fd_ < 0 || ftruncate(fd_, static_cast<off_t>(pages * page_size)) != 0) throw HostError(errno, "memfd");
        base_ = view(0, pages, PROT_READ | PROT_WRITE);
    }
    ~FakeHypervisor() override {
        munmap(base_, granted_.size() * page_size);
        close(fd_);
    }

    // What happened. A test may set map_calls to 0 and fail_at to n: the n-th map from here fails.
    std::size_t map_calls = 0;
    std::size_t fail_at = 0;
    int map_error = EIO;  // errno that it fails with
    std::size_t writable_maps = 0;
    std::size_t mapped_pages = 0;  // now
    std::size_t live_mappings = 0;
    bool copies = false;  // as Xen does
    std::size_t copy_calls = 0;
    int copy_error = 0;  // errno that a copy as a whole fails with

    static constexpr GrantRef first_reference = 0x1000;

    [[nodiscard]] std::byte* page(GrantRef ref) const { return base_ + (ref - first_reference) * page_size; }

    [[nodiscard]] DomId domid() const noexcept override { return 0; }

    [[nodiscard]] std::unique_ptr<Mapping> map(DomId, GrantRef first, std::size_t count, bool writable) override {
        if (++map_calls == fail_at) throw HostError(map_error, "told to fail");
        if (count == 0) throw HostError(EINVAL, "count 0");
        for (std::uint64_t ref = first; ref < std::uint64_t{first} + count; ++ref) {
            if (ref < first_reference || ref - first_reference >= granted_.size() ||
                granted_[ref - first_reference] == no_grant)
                throw HostError(ENOENT, "no grant");
            if (writable && granted_[ref - first_reference] == read_only) throw HostError(EACCES, "read-only");
        }
        writable_maps += writable ? 1 : 0;
        return std::make_unique<View>(*this, first - first_reference, count, writable);
    }

    [[nodiscard]] bool can_copy() const noexcept override { return copies; }
    [[nodiscard]] std::size_t copy(DomId, std::span<const GrantCopy> pieces, CopyDirection direction) override {
        ++copy_calls;
        if (copy_error != 0) throw HostError(copy_error, "told to fail");
        for (std::size_t i = 0; i < pieces.size(); ++i) {
            const GrantCopy& piece = pieces[i];
            const std::size_t index = std::size_t{piece.ref} - first_reference;
            const bool to = direction == CopyDirection::to_domain;
            if (piece.size > page_size || piece.offset > page_size - piece.size) throw std::logic_error("two pages");
            if (piece.ref < first_reference || index >= granted_.size() || granted_[index] == no_grant) return i;
            if (to && granted_[index] == read_only) return i;
            std::byte* const theirs = page(piece.ref) + piece.offset;
            if (to)
                SharedMemory::copy_to(theirs, piece.ours, piece.size);
            else
                SharedMemory::copy_from(piece.ours, theirs, piece.size);
        }
        return pieces.size();
    }

    // The frontend withdraws a page.
    void withdraw(GrantRef ref) { granted_[ref - first_reference] = no_grant; }

    [[nodiscard]] std::unique_ptr<SharedPages> share(DomId, std::size_t count, bool writable) override {
        if (count > granted_.size() - next_) throw HostError(ENOSPC, "out of pages");
        for (std::size_t i = 0; i < count; ++i) granted_[next_ + i] = writable ? read_write : read_only;
        auto pages = std::make_unique<Pages>(*this, next_, count);
        next_ += count;
        return pages;
    }

    [[nodiscard]] std::unique_ptr<EventChannels> open_event_channels() override { throw HostError(ENOSYS, "events"); }
    [[nodiscard]] std::unique_ptr<Mapping> map_notify(DomId, GrantRef, std::size_t, EventChannels&, Port) override {
        throw HostError(ENOSYS, "events");
    }
    [[nodiscard]] std::unique_ptr<SharedPages> share_notify(DomId, bool, std::size_t, EventChannels&, Port) override {
        throw HostError(ENOSYS, "events");
    }

  private:
    enum Access : std::uint8_t { no_grant, read_only, read_write };

    class View final : public Mapping {
      public:
        View(FakeHypervisor& owner, std::size_t first, std::size_t count, bool writable) : owner_(owner) {
            auto* data = owner.one_view_ ? owner.base_ + first * page_size
                                         : owner.view(first, count, writable ? PROT_READ | PROT_WRITE : PROT_READ);
            bytes_ = {data, count * page_size};
            writable_ = writable;
            owner_.mapped_pages += count;
            ++owner_.live_mappings;
        }
        ~View() override {
            if (!owner_.one_view_) munmap(bytes_.data(), bytes_.size());
            owner_.mapped_pages -= bytes_.size() / page_size;
            --owner_.live_mappings;
        }

      private:
        FakeHypervisor& owner_;
    };

    class Pages final : public SharedPages {
      public:
        Pages(FakeHypervisor& owner, std::size_t first, std::size_t count) : owner_(owner), first_(first) {
            bytes_ = {owner.base_ + first * page_size, count * page_size};
            first_ref_ = first_reference + static_cast<GrantRef>(first);
        }
        ~Pages() override {
            for (std::size_t i = 0; i < bytes_.size() / page_size; ++i) owner_.granted_[first_ + i] = no_grant;
        }

      private:
        FakeHypervisor& owner_;
        std::size_t first_;
    };

    [[nodiscard]] std::byte* view(std::size_t first, std::size_t count, int protection) const {
        void* data =
            mmap(nullptr, count * page_size, protection, MAP_SHARED, fd_, static_cast<off_t>(first * page_size));
        if (data == MAP_FAILED) throw HostError(errno, "mmap");
        return static_cast<std::byte*>(data);
    }

    std::vector<std::uint8_t> granted_;
    std::size_t next_ = 0;
    bool one_view_;
    int fd_;
    std::byte* base_ = nullptr;
};

}  // namespace cpp_ring::test
