// The config ring: two pages, one request, one answer (docs/protocol.md section 1). Pure shared-memory protocol: it
// neither waits nor notifies; its callers do.
#pragma once

#include <cstdint>

#include "errors.hpp"
#include "shared.hpp"
#include "wire.hpp"

namespace cpp_ring {

enum class Poll { nothing, message, error };

// The backend's half: reads fe-to-be, writes be-to-fe.
template <class Mem = SharedMemory>
class BackendRing {
  public:
    BackendRing(const vmsg_xen_fe_page* from, vmsg_xen_be_page* to) noexcept : from_(from), to_(to) {}

    // Checks the frontend's header, then writes our own. A request that is in the page already stays to be answered.
    [[nodiscard]] GuestError open() noexcept {
        const std::uint32_t magic = Mem::load_acquire(&from_->header.magic);
        if (magic != VMSG_XEN_MAGIC_FE) return {VMSG_XEN_BAD_MAGIC, magic};
        const std::uint32_t version = Mem::load_relaxed(&from_->header.version);
        if (version != VMSG_XEN_PROTOCOL_VERSION) return {VMSG_XEN_BAD_VERSION, version};
        auto& header = to_->header;
        Mem::store_relaxed(&header.be_waiting, 0U);
        Mem::store_relaxed(&header.device_status, 0U);
        Mem::store_relaxed(&header.config_generation, 0U);
        Mem::store_relaxed(&header.error_code, 0U);
        Mem::store_relaxed(&header.error_detail, 0U);
        Mem::store_relaxed(&to_->answer.seq, 0U);
        Mem::store_relaxed(&header.version, std::uint32_t{VMSG_XEN_PROTOCOL_VERSION});
        Mem::store_relaxed(&header.live, std::uint8_t{VMSG_XEN_ALIVE});
        // Partner: the frontend's load_acquire of magic in FrontendRing::check.
        Mem::store_release(&header.magic, std::uint32_t{VMSG_XEN_MAGIC_BE});
        answered_ = 0;
        return {};
    }
    void close() noexcept { Mem::store_release(&to_->header.live, std::uint8_t{VMSG_XEN_DEAD}); }

    // The next request into `out`, each shared byte read once.
    [[nodiscard]] Poll poll(Message& out, GuestError& error) noexcept {
        // Partner: store_release of seq in FrontendRing::publish; the message is whole once its seq is seen.
        const std::uint32_t seq = Mem::load_acquire(&from_->request.seq);
        if (seq == answered_) return Poll::nothing;
        if (seq != answered_ + 1) {
            error = {VMSG_XEN_BAD_SEQ, seq};
            return Poll::error;
        }
        const std::uint32_t size = Mem::load_relaxed(&from_->request.size);
        if (size < sizeof(vmsg_header) || size > VMSG_MAX_SIZE) {
            error = {VMSG_XEN_BAD_SIZE, size};
            return Poll::error;
        }
        Mem::copy_from(out.data(), from_->request.message, size);
        out.resize(size);
        return Poll::message;
    }

    // Publishes the answer to the request poll() gave. True: the frontend sleeps, notify it.
    [[nodiscard]] bool answer(const Message& message) noexcept {
        Mem::copy_to(to_->answer.message, message.data(), message.size());
        Mem::store_relaxed(&to_->answer.size, static_cast<std::uint32_t>(message.size()));
        // Partner: load_acquire of seq in FrontendRing::poll.
        Mem::store_release(&to_->answer.seq, ++answered_);
        full_fence();  // Partner: FrontendRing::arm. Either it sees this answer or we see its waiting word.
        return Mem::load_relaxed(&from_->header.fe_waiting) != 0;
    }

    // Before sleeping. False: a request came meanwhile, do not sleep. Call disarm() in either case.
    [[nodiscard]] bool arm() noexcept {
        Mem::store_relaxed(&to_->header.be_waiting, 1U);
        full_fence();  // Partner: FrontendRing::publish. Either it sees the word or we see its request.
        return Mem::load_relaxed(&from_->request.seq) == answered_;
    }
    void disarm() noexcept { Mem::store_relaxed(&to_->header.be_waiting, 0U); }

    // Partner: FrontendRing::close.
    [[nodiscard]] bool frontend_alive() const noexcept {
        return Mem::load_acquire(&from_->header.live) != VMSG_XEN_DEAD;
    }

    // Out-of-band words. The event channel that follows orders them for the frontend.
    void set_status(std::uint32_t status) noexcept { Mem::store_release(&to_->header.device_status, status); }
    void set_generation(std::uint32_t generation) noexcept {
        Mem::store_release(&to_->header.config_generation, generation);
    }
    void set_error(GuestError error) noexcept {
        Mem::store_relaxed(&to_->header.error_detail, static_cast<std::uint32_t>(error.detail));
        // Partner: the frontend's load_acquire in FrontendRing::error; the detail is there when the code is.
        Mem::store_release(&to_->header.error_code, static_cast<std::uint32_t>(error.code));
    }

  private:
    const vmsg_xen_fe_page* from_;
    vmsg_xen_be_page* to_;
    std::uint32_t answered_ = 0;
};

// The frontend's half: writes fe-to-be, reads be-to-fe. Trusts nothing it reads (threats row 30).
template <class Mem = SharedMemory>
class FrontendRing {
  public:
    // Pages are zeroed, as shared pages are.
    FrontendRing(vmsg_xen_fe_page* to, const vmsg_xen_be_page* from) noexcept : to_(to), from_(from) {
        Mem::store_relaxed(&to_->header.version, std::uint32_t{VMSG_XEN_PROTOCOL_VERSION});
        Mem::store_relaxed(&to_->header.live, std::uint8_t{VMSG_XEN_ALIVE});
        // Partner: load_acquire of magic in BackendRing::open.
        Mem::store_release(&to_->header.magic, std::uint32_t{VMSG_XEN_MAGIC_FE});
    }
    void close() noexcept { Mem::store_release(&to_->header.live, std::uint8_t{VMSG_XEN_DEAD}); }

    [[nodiscard]] GuestError check() const noexcept {
        const std::uint32_t magic = Mem::load_acquire(&from_->header.magic);  // Partner: BackendRing::open.
        if (magic != VMSG_XEN_MAGIC_BE) return {VMSG_XEN_BAD_MAGIC, magic};
        const std::uint32_t version = Mem::load_relaxed(&from_->header.version);
        if (version != VMSG_XEN_PROTOCOL_VERSION) return {VMSG_XEN_BAD_VERSION, version};
        return {};
    }

    // The token of the next request.
    [[nodiscard]] std::uint16_t token() const noexcept {
        return static_cast<std::uint16_t>((unsigned{epoch_} << 8) | ((published_ + 1) & 0xff));
    }
    void new_epoch() noexcept { epoch_ = epoch_ == 0xff ? std::uint8_t{1} : static_cast<std::uint8_t>(epoch_ + 1); }

    // Publishes a request. True: the backend sleeps, notify it. Not while an answer is outstanding.
    [[nodiscard]] bool publish(const Message& message) noexcept {
        Mem::copy_to(to_->request.message, message.data(), message.size());
        Mem::store_relaxed(&to_->request.size, static_cast<std::uint32_t>(message.size()));
        // Partner: load_acquire of seq in BackendRing::poll.
        Mem::store_release(&to_->request.seq, ++published_);
        full_fence();  // Partner: BackendRing::arm. Either it sees this request or we see its waiting word.
        return Mem::load_relaxed(&from_->header.be_waiting) != 0;
    }

    // The answer to the last request into `out`, each shared byte read once.
    [[nodiscard]] Poll poll(Message& out, GuestError& error) noexcept {
        // Partner: store_release of seq in BackendRing::answer.
        const std::uint32_t seq = Mem::load_acquire(&from_->answer.seq);
        if (seq != published_) {
            if (seq == published_ - 1) return Poll::nothing;
            error = {VMSG_XEN_BAD_SEQ, seq};
            return Poll::error;
        }
        const std::uint32_t size = Mem::load_relaxed(&from_->answer.size);
        if (size < sizeof(vmsg_header) || size > VMSG_MAX_SIZE) {
            error = {VMSG_XEN_BAD_SIZE, size};
            return Poll::error;
        }
        Mem::copy_from(out.data(), from_->answer.message, size);
        out.resize(size);
        return Poll::message;
    }

    // Before sleeping. False: something is there, do not sleep. Call disarm() in either case.
    [[nodiscard]] bool arm() noexcept {
        Mem::store_relaxed(&to_->header.fe_waiting, 1U);
        full_fence();  // Partner: BackendRing::answer. Either it sees the word or we see its answer.
        return Mem::load_relaxed(&from_->answer.seq) == published_ - 1;
    }
    void disarm() noexcept { Mem::store_relaxed(&to_->header.fe_waiting, 0U); }

    // Partner: BackendRing::close. What a backend wrote before it went, an answer or its error, is seen with the death.
    [[nodiscard]] bool backend_alive() const noexcept {
        return Mem::load_acquire(&from_->header.live) != VMSG_XEN_DEAD;
    }
    [[nodiscard]] bool backend_waiting() const noexcept { return Mem::load_relaxed(&from_->header.be_waiting) != 0; }
    [[nodiscard]] std::uint32_t device_status() const noexcept {
        return Mem::load_acquire(&from_->header.device_status);  // Partner: BackendRing::set_status.
    }
    [[nodiscard]] std::uint32_t config_generation() const noexcept {
        return Mem::load_acquire(&from_->header.config_generation);  // Partner: BackendRing::set_generation.
    }
    struct Objection {
        std::uint32_t code;
        std::uint32_t detail;
    };
    [[nodiscard]] Objection error() const noexcept {
        const std::uint32_t code = Mem::load_acquire(&from_->header.error_code);  // Partner: BackendRing::set_error.
        return {code, Mem::load_relaxed(&from_->header.error_detail)};
    }

  private:
    vmsg_xen_fe_page* to_;
    const vmsg_xen_be_page* from_;
    std::uint32_t published_ = 0;
    std::uint8_t epoch_ = 1;
};

}  // namespace cpp_ring
