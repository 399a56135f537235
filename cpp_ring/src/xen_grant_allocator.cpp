#include "xen_grant_allocator.hpp"

#include <fcntl.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <xen/gntalloc.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <string>
#include <utility>
#include <vector>

#include "errors.hpp"

namespace cpp_ring {
namespace {

constexpr std::size_t most_shared_pages = 32768;
// References that are allocated, and given back, in search of a run: a domain that has granted and taken back a lot
// gets them in no order.
constexpr std::size_t most_spare_pages = 4096;
constexpr std::size_t spare_batch = 64;
constexpr const char* limit_file = "/sys/module/xen_gntalloc/parameters/limit";

// One granted page: its reference, and where mmap finds it.
struct Page {
    GrantRef ref;
    std::uint64_t index;
};

// Granted pages, withdrawn unless they are taken.
class Pages {
  public:
    Pages(int fd, DomId domain, bool writable) : fd_(fd), domain_(domain), writable_(writable) {}
    Pages(const Pages&) = delete;
    Pages& operator=(const Pages&) = delete;
    ~Pages() {
        sort();
        release(fd_, pages_);
    }

    // False, and nothing is added, if the kernel has no such number left. Throws HostError.
    [[nodiscard]] bool add(std::size_t count) {
        // gref_ids has as many entries as there are pages; the struct declares one.
        const std::size_t bytes = sizeof(ioctl_gntalloc_alloc_gref) + (count - 1) * sizeof(GrantRef);
        std::vector<std::uint64_t> room((bytes + 7) / 8);
        auto* const request = reinterpret_cast<ioctl_gntalloc_alloc_gref*>(room.data());
        request->domid = domain_;
        request->flags = writable_ ? GNTALLOC_FLAG_WRITABLE : 0;
        request->count = static_cast<std::uint32_t>(count);
        if (::ioctl(fd_, IOCTL_GNTALLOC_ALLOC_GREF, request) != 0) {
            if (errno == ENOSPC) return false;
            throw HostError(errno, cannot_grant(count, domain_));
        }
        const auto* const refs =
            reinterpret_cast<const std::byte*>(room.data()) + offsetof(ioctl_gntalloc_alloc_gref, gref_ids);
        for (std::size_t i = 0; i < count; ++i) {
            Page page{0, request->index + i * page_size};
            std::memcpy(&page.ref, refs + i * sizeof page.ref, sizeof page.ref);
            pages_.push_back(page);
        }
        return true;
    }

    // Spare pages in search of a run, as many as are left but no more than a batch. False if none are.
    [[nodiscard]] bool add_spares() {
        for (std::size_t batch = spare_batch; batch != 0; batch /= 2)
            if (add(batch)) return true;
        return false;
    }

    // The lowest run of `count` consecutive references, removed from here; empty if there is none.
    [[nodiscard]] std::vector<Page> take_run(std::size_t count) {
        sort();
        std::size_t start = 0;
        for (std::size_t i = 0; i < pages_.size(); ++i) {
            if (i != 0 && pages_[i].ref != pages_[i - 1].ref + 1) start = i;
            if (i - start + 1 < count) continue;
            const auto first = pages_.begin() + static_cast<std::ptrdiff_t>(start);
            const auto last = first + static_cast<std::ptrdiff_t>(count);
            std::vector<Page> run(first, last);
            pages_.erase(first, last);
            return run;
        }
        return {};
    }
    [[nodiscard]] std::size_t size() const noexcept { return pages_.size(); }

    // The highest reference first: the kernel hands out the last one given back first, so the next search finds a run.
    static void release(int fd, const std::vector<Page>& sorted) noexcept {
        for (auto page = sorted.rbegin(); page != sorted.rend(); ++page) {
            ioctl_gntalloc_dealloc_gref request{};
            request.index = page->index;
            request.count = 1;
            ::ioctl(fd, IOCTL_GNTALLOC_DEALLOC_GREF, &request);
        }
    }

    static std::string cannot_grant(std::size_t count, DomId domain) {
        return "cannot grant " + std::to_string(count) + " pages to domain " + std::to_string(domain);
    }

  private:
    void sort() noexcept {
        std::sort(pages_.begin(), pages_.end(), [](const Page& a, const Page& b) { return a.ref < b.ref; });
    }

    int fd_;
    DomId domain_;
    bool writable_;
    std::vector<Page> pages_;
};

class XenSharedPages final : public SharedPages {
  public:
    XenSharedPages(std::shared_ptr<XenGrantAllocator> allocator, std::vector<Page> pages)
        : allocator_(std::move(allocator)), fd_(allocator_->fd()), pages_(std::move(pages)) {}
    XenSharedPages(const XenSharedPages&) = delete;
    XenSharedPages& operator=(const XenSharedPages&) = delete;
    ~XenSharedPages() override {
        // In this order: the driver frees a page, and raises its notification, when nobody maps it any more.
        if (!bytes_.empty()) ::munmap(bytes_.data(), bytes_.size());
        Pages::release(fd_, pages_);
    }

    // Throws HostError.
    void map() {
        const std::size_t size = pages_.size() * page_size;
        void* const start = ::mmap(nullptr, size, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (start == MAP_FAILED) throw HostError(errno, "cannot reserve " + std::to_string(size) + " bytes");
        bytes_ = {static_cast<std::byte*>(start), size};
        // In order of reference, which need not be that of allocation: as few mappings as there are straight pieces.
        for (std::size_t from = 0; from < pages_.size();) {
            std::size_t to = from + 1;
            while (to < pages_.size() && pages_[to].index == pages_[to - 1].index + page_size) ++to;
            void* const at = bytes_.data() + from * page_size;
            if (::mmap(at, (to - from) * page_size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd_,
                       static_cast<off_t>(pages_[from].index)) == MAP_FAILED)
                throw HostError(errno, "cannot map granted pages");
            from = to;
        }
        first_ref_ = pages_.front().ref;
    }

    // Throws HostError.
    void notify(std::size_t offset, Port port) {
        ioctl_gntalloc_unmap_notify request{};
        request.index = pages_.front().index + offset;
        request.action = UNMAP_NOTIFY_CLEAR_BYTE | UNMAP_NOTIFY_SEND_EVENT;
        request.event_channel_port = port;
        if (::ioctl(fd_, IOCTL_GNTALLOC_SET_UNMAP_NOTIFY, &request) != 0)
            throw HostError(errno, "cannot ask for a notification at port " + std::to_string(port));
    }

  private:
    std::shared_ptr<XenGrantAllocator> allocator_;
    int fd_;  // the allocator's
    std::vector<Page> pages_;
};

// Why there were not enough, and what helps.
HostError exhausted(std::size_t count, DomId domain, std::size_t got) {
    std::string limit;
    std::ifstream(limit_file) >> limit;
    std::string text = Pages::cannot_grant(count, domain) + ": ";
    if (got != 0)
        text += "of the " + std::to_string(got) + " references that were left no " + std::to_string(count) +
                " are consecutive; ";
    text += "the limit of all drivers of this domain is " + (limit.empty() ? "unknown" : limit + " pages") +
            ", write a larger number to " + limit_file;
    return {ENOSPC, text};
}

std::unique_ptr<XenSharedPages> shared(std::shared_ptr<XenGrantAllocator> allocator, DomId domain, std::size_t count,
                                       bool writable) {
    if (count == 0 || count > most_shared_pages) throw HostError(EINVAL, std::to_string(count) + " pages");
    Pages pages(allocator->fd(), domain, writable);
    if (!pages.add(count)) throw exhausted(count, domain, 0);
    std::vector<Page> run;
    while ((run = pages.take_run(count)).empty()) {
        if (pages.size() > count + most_spare_pages)
            throw HostError(ENOSPC, Pages::cannot_grant(count, domain) + ": none of " + std::to_string(pages.size()) +
                                        " grant references are that many in a row; start the domain again");
        if (!pages.add_spares()) throw exhausted(count, domain, pages.size());
    }
    auto result = std::make_unique<XenSharedPages>(std::move(allocator), std::move(run));
    result->map();
    return result;
}

}  // namespace

XenGrantAllocator::XenGrantAllocator() : fd_(::open("/dev/xen/gntalloc", O_RDWR | O_CLOEXEC)) {
    if (!fd_) error_ = errno;
}

int XenGrantAllocator::fd() const {
    if (!fd_) throw HostError(error_, "cannot open /dev/xen/gntalloc");
    return fd_.get();
}

std::unique_ptr<SharedPages> share_pages(std::shared_ptr<XenGrantAllocator> allocator, DomId domain, std::size_t count,
                                         bool writable) {
    return shared(std::move(allocator), domain, count, writable);
}

std::unique_ptr<SharedPages> share_page_notify(std::shared_ptr<XenGrantAllocator> allocator, DomId domain,
                                               bool writable, std::size_t offset, Port port) {
    if (offset >= page_size) throw HostError(EINVAL, "offset " + std::to_string(offset) + " in a page");
    auto pages = shared(std::move(allocator), domain, 1, writable);
    pages->notify(offset, port);
    return pages;
}

}  // namespace cpp_ring
