// The frontend of one device: the two pages it grants, the event channel it offers, and the synchronous exchange.
#pragma once

#include <chrono>
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "clock.hpp"
#include "config_ring.hpp"
#include "hypervisor.hpp"
#include "latency.hpp"

namespace cpp_ring {

enum class ExchangeResult { ok, timeout, peer_dead, lied };

class Frontend {
  public:
    // Allocates, zeroes and grants the pages; writes the fe-to-be header. Throws HostError.
    Frontend(Hypervisor& hypervisor, DomId backend);
    ~Frontend();
    Frontend(const Frontend&) = delete;
    Frontend& operator=(const Frontend&) = delete;

    [[nodiscard]] GrantRef fe_to_be_ref() const noexcept { return fe_page_->first_ref(); }
    [[nodiscard]] GrantRef be_to_fe_ref() const noexcept { return be_page_->first_ref(); }
    [[nodiscard]] Port event_channel() const noexcept { return port_; }
    [[nodiscard]] const FrontendRing<>& ring() const noexcept { return ring_; }
    [[nodiscard]] int fd() const noexcept { return channels_->fd(); }
    [[nodiscard]] std::span<std::byte> fe_page() const noexcept { return fe_page_->bytes(); }
    [[nodiscard]] std::span<std::byte> be_page() const noexcept { return be_page_->bytes(); }

    void set_spin(double microseconds) noexcept {
        spin_us_ = microseconds;
        spin_ticks_ = ticks_of_us(microseconds);
    }
    [[nodiscard]] double spin_us() const noexcept { return spin_us_; }

    // One request, one answer (docs/protocol.md section 1). `payload` fits a message: checked by the caller. The
    // answer is checked against the request; lied: it does not match, error() says how, and the frontend stays broken.
    [[nodiscard]] ExchangeResult exchange(std::uint8_t msg_id, std::span<const std::byte> payload,
                                          Clock::duration timeout);
    [[nodiscard]] const Message& answer() const noexcept { return answer_; }
    [[nodiscard]] GuestError error() const noexcept { return error_; }
    // A request timed out and its answer has not come yet, or the backend lied.
    [[nodiscard]] bool broken() const noexcept { return owed_ || error_; }
    void new_epoch() noexcept { ring_.new_epoch(); }

    // Sleeps until the backend notifies cfg. False: the timeout passed.
    [[nodiscard]] bool wait_event(Clock::duration timeout);

    // `count` exchanges of one request, each round trip recorded in ns, spinning only. `idle`: each after the backend
    // has gone to sleep. Ends early, with the reason, when an exchange fails.
    [[nodiscard]] ExchangeResult measure(std::uint8_t msg_id, std::span<const std::byte> payload, std::uint64_t count,
                                         bool idle, LatencyRecorder& recorder);

    // One request of a burst; the payload fits a message.
    struct Request {
        std::uint8_t msg_id;
        std::vector<std::byte> payload;
    };
    // As measure(), for `requests` one right after the other, each burst recorded as a whole.
    [[nodiscard]] ExchangeResult measure_burst(std::span<const Request> requests, std::uint64_t count,
                                               LatencyRecorder& recorder);

    void close() noexcept;

  private:
    // One exchange that only spins, for two seconds at most.
    [[nodiscard]] ExchangeResult spin_exchange(std::uint8_t msg_id, std::span<const std::byte> payload);
    [[nodiscard]] ExchangeResult await(Clock::duration timeout);
    [[nodiscard]] ExchangeResult settle(Clock::duration timeout);
    void build(std::uint8_t msg_id, std::span<const std::byte> payload) noexcept;
    [[nodiscard]] bool answer_matches() noexcept;

    std::unique_ptr<EventChannels> channels_;
    Port port_;
    std::unique_ptr<SharedPages> fe_page_;
    std::unique_ptr<SharedPages> be_page_;
    FrontendRing<> ring_;
    double spin_us_ = 50;
    std::uint64_t spin_ticks_;
    Message request_;
    Message answer_;
    GuestError error_;
    bool owed_ = false;        // the answer to a request that timed out is still to come
    bool event_seen_ = false;  // cfg was notified while an exchange waited on it
    bool open_ = true;
};

}  // namespace cpp_ring
