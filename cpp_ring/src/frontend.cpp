#include "frontend.hpp"

#include <poll.h>

#include <algorithm>

#include "waiter.hpp"

namespace cpp_ring {

Frontend::Frontend(Hypervisor& hypervisor, DomId backend)
    : channels_(hypervisor.open_event_channels()),
      port_(channels_->alloc_unbound(backend)),
      // Each page is written by one side only, and granted so.
      fe_page_(hypervisor.share_notify(backend, false, offsetof(vmsg_xen_fe_header, live), *channels_, port_)),
      be_page_(hypervisor.share(backend, 1, true)),
      ring_(reinterpret_cast<vmsg_xen_fe_page*>(fe_page_->bytes().data()),
            reinterpret_cast<const vmsg_xen_be_page*>(be_page_->bytes().data())),
      spin_ticks_(ticks_of_us(spin_us_)) {}

Frontend::~Frontend() { close(); }

void Frontend::close() noexcept {
    if (!open_) return;
    open_ = false;
    ring_.close();
    channels_->notify(port_);
    channels_->unbind(port_);
}

void Frontend::build(std::uint8_t msg_id, std::span<const std::byte> payload) noexcept {
    request_.begin();
    request_.append_bytes(payload);
    request_.finish(0, msg_id, ring_.token());
}

bool Frontend::answer_matches() noexcept {
    const vmsg_header asked = request_.header();
    const vmsg_header got = answer_.header();
    if (got.msg_size != answer_.size()) error_ = {VMSG_XEN_BAD_SIZE, got.msg_size};
    if ((got.type & (VMSG_TYPE_RESPONSE | VMSG_TYPE_BUS)) != VMSG_TYPE_RESPONSE || got.dev_num != 0)
        error_ = {VMSG_XEN_BAD_TYPE, got.type | std::uint64_t{got.dev_num} << 8};
    if (got.msg_id != asked.msg_id) error_ = {VMSG_XEN_BAD_MSG_ID, got.msg_id};
    if (got.token != asked.token) error_ = {VMSG_XEN_BAD_TOKEN, got.token};
    return !error_;
}

ExchangeResult Frontend::await(Clock::duration timeout) {
    Poll got = Poll::nothing;
    const Wait result = wait_for(
        *channels_, spin_ticks_, timeout, [&] { return (got = ring_.poll(answer_, error_)) != Poll::nothing; },
        [&] { return ring_.backend_alive(); }, [&] { return ring_.arm(); },
        [&] {
            ring_.disarm();
            event_seen_ = true;  // the event may have been a configuration change
        });
    switch (result) {
        case Wait::ready:
            return got == Poll::message ? ExchangeResult::ok : ExchangeResult::lied;
        case Wait::peer_dead:
            return ExchangeResult::peer_dead;
        case Wait::timeout:
            break;
    }
    return ExchangeResult::timeout;
}

// The slot belongs to the backend until the answer that timed out has come; that answer is dropped.
ExchangeResult Frontend::settle(Clock::duration timeout) {
    const ExchangeResult result = await(timeout);
    if (result == ExchangeResult::ok) owed_ = false;
    return result;
}

ExchangeResult Frontend::exchange(std::uint8_t msg_id, std::span<const std::byte> payload, Clock::duration timeout) {
    if (error_) return ExchangeResult::lied;
    if (!open_ || !ring_.backend_alive()) return ExchangeResult::peer_dead;
    if (owed_) {
        const auto start = Clock::now();
        if (const ExchangeResult late = settle(timeout); late != ExchangeResult::ok) return late;
        timeout -= std::min(timeout, Clock::now() - start);
    }
    build(msg_id, payload);
    if (ring_.publish(request_)) channels_->notify(port_);
    const ExchangeResult result = await(timeout);
    if (result == ExchangeResult::ok) return answer_matches() ? result : ExchangeResult::lied;
    if (result != ExchangeResult::lied) {
        owed_ = true;
        ring_.new_epoch();
    }
    return result;
}

bool Frontend::wait_event(Clock::duration timeout) {
    const auto deadline = Clock::now() + timeout;
    for (;;) {
        const bool seen = std::exchange(event_seen_, false);
        if (drain(*channels_) || seen) return true;
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline - Clock::now());
        if (left.count() < 0) return false;
        pollfd wanted{.fd = channels_->fd(), .events = POLLIN, .revents = 0};
        if (::poll(&wanted, 1, static_cast<int>(left.count()) + 1) < 0) return false;  // EINTR: let the caller see it
    }
}

ExchangeResult Frontend::spin_exchange(std::uint8_t msg_id, std::span<const std::byte> payload) {
    static const std::uint64_t longest = ticks_of_us(2e6);
    const std::uint64_t start = ticks();
    build(msg_id, payload);
    if (ring_.publish(request_)) channels_->notify(port_);
    Poll got = Poll::nothing;
    for (std::uint64_t spins = 0; (got = ring_.poll(answer_, error_)) == Poll::nothing; ++spins) {
        if (spins % looks_between_pauses == looks_between_pauses - 1) cpu_relax();
        if (spins % 1024 != 1023) continue;
        if (!ring_.backend_alive()) return ExchangeResult::peer_dead;
        if (ticks() - start > longest) {
            owed_ = true;
            ring_.new_epoch();
            return ExchangeResult::timeout;
        }
    }
    return got == Poll::message && answer_matches() ? ExchangeResult::ok : ExchangeResult::lied;
}

ExchangeResult Frontend::measure(std::uint8_t msg_id, std::span<const std::byte> payload, std::uint64_t count,
                                 bool idle, LatencyRecorder& recorder) {
    constexpr auto fall_asleep = std::chrono::seconds(2);
    const double ns = 1.0 / ticks_per_ns();
    if (error_ || owed_ || !open_) return ExchangeResult::lied;
    for (std::uint64_t i = 0; i < count; ++i) {
        if (idle) {
            const auto deadline = Clock::now() + fall_asleep;
            while (!ring_.backend_waiting())
                if (Clock::now() > deadline) return ExchangeResult::timeout;
            // The word is set a little before the backend really sleeps.
            const std::uint64_t settled = ticks() + ticks_of_us(50);
            while (ticks() < settled) cpu_relax();
        }
        const std::uint64_t start = ticks();
        const ExchangeResult result = spin_exchange(msg_id, payload);
        const std::uint64_t end = ticks();
        if (result != ExchangeResult::ok) return result;
        recorder.record(static_cast<std::uint64_t>(static_cast<double>(end - start) * ns));
    }
    return ExchangeResult::ok;
}

ExchangeResult Frontend::measure_burst(std::span<const Request> requests, std::uint64_t count,
                                       LatencyRecorder& recorder) {
    const double ns = 1.0 / ticks_per_ns();
    if (error_ || owed_ || !open_) return ExchangeResult::lied;
    for (std::uint64_t i = 0; i < count; ++i) {
        const std::uint64_t start = ticks();
        for (const Request& request : requests)
            if (const ExchangeResult result = spin_exchange(request.msg_id, request.payload);
                result != ExchangeResult::ok)
                return result;
        recorder.record(static_cast<std::uint64_t>(static_cast<double>(ticks() - start) * ns));
    }
    return ExchangeResult::ok;
}

}  // namespace cpp_ring
