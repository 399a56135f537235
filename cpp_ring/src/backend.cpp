#include "backend.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>

#include "clock.hpp"
#include "waiter.hpp"

namespace cpp_ring {
namespace {

// Rounds of the spin loop between two looks at the clock, the host's descriptors and the frontend's live byte.
constexpr unsigned spin_rounds = 64;
// A frontend that only raises events gets this many wake-ups for nothing, then its ports stay masked for a while.
constexpr unsigned free_idle_wakes = 16;
constexpr unsigned longest_mask_ms = 16;

}  // namespace

Backend::Backend(Hypervisor& hypervisor, Model& model, DeviceDescription description, BackendOptions options)
    : hypervisor_(hypervisor),
      model_(model),
      options_(std::move(options)),
      device_(std::move(description), *this),
      spin_(options_.spin_us, options_.most_spin_us),
      memory_(hypervisor, options_.frontend, options_.map_budget_pages),
      queues_(device_.queues().size()),
      batch_(batch_size),
      tokens_(batch_size),
      written_(batch_size) {
    if (options_.pulled.size() != queues_.size())
        throw std::invalid_argument("`pulled` and the queues differ in number");
    for (std::size_t i = 0; i < queues_.size(); ++i) queues_[i].pulled = options_.pulled[i];
}

Backend::~Backend() { disconnect(); }

// ---- connection ----

GuestError Backend::connect(const ChannelAddress& address) {
    disconnect();
    channel_error_ = {};
    exit_.reset();
    stop_.store(false, std::memory_order_relaxed);
    try {
        channels_ = hypervisor_.open_event_channels();
        cfg_port_ = channels_->bind_interdomain(options_.frontend, address.event_channel);
        // The frontend's page is mapped read-only: we have no business writing to it.
        fe_page_ = hypervisor_.map(options_.frontend, address.fe_to_be, 1, false);
        be_page_ = hypervisor_.map_notify(options_.frontend, address.be_to_fe, offsetof(vmsg_xen_be_header, live),
                                          *channels_, cfg_port_);
        for (std::size_t i = 0; i < queues_.size() && i < address.queue_event_channels.size(); ++i)
            if (const auto port = address.queue_event_channels[i])
                queues_[i].port = channels_->bind_interdomain(options_.frontend, *port);
        reactor_.use_channels(channels_.get());
        address_ = address;
    } catch (...) {
        disconnect();
        throw;
    }
    ring_.emplace(reinterpret_cast<const vmsg_xen_fe_page*>(fe_page_->bytes().data()),
                  reinterpret_cast<vmsg_xen_be_page*>(be_page_->bytes().data()));
    if (const GuestError error = ring_->open()) {
        channel_error_ = error;
        ring_->set_error(error);
        disconnect();
        return error;
    }
    mirrored_status_ = mirrored_generation_ = 0;
    mirrored_errors_ = device_.guest_errors();
    publish_state();
    return {};
}

void Backend::disconnect() noexcept {
    reset();
    device_.forget_driver();
    publish_state();
    if (ring_) {
        if (channel_error_) ring_->set_error(channel_error_);
        ring_->close();
        notify(cfg_port_);
    }
    ring_.reset();
    reactor_.use_channels(nullptr);
    for (Queue& queue : queues_) queue.port.reset();
    fe_page_.reset();
    be_page_.reset();
    channels_.reset();  // unbinds all ports
    address_ = {};
}

std::size_t Backend::mapped_pages() const noexcept {
    return memory_.mapped_pages() + (fe_page_ ? 1 : 0) + (be_page_ ? 1 : 0);
}

void Backend::notify(Port port) noexcept {
    if (!channels_) return;
    channels_->notify(port);
    ++counters_.notifications;
}

// ---- the loop ----

void Backend::stop() noexcept {
    stop_.store(true, std::memory_order_relaxed);
    wake();
}

void Backend::wake() noexcept {
    // Partner: the exchange in serve_host(); what was posted before is seen by who takes the flag.
    attention_.store(true, std::memory_order_release);
    reactor_.wake();
}

Exit Backend::run() {
    // Also when the host is out of memory and throws: nothing of the guest may stay mapped.
    struct Disconnect {
        Backend& backend;
        ~Disconnect() { backend.disconnect(); }
    } const at_end{*this};
    return loop();
}

Exit Backend::loop() {
    spin_.worked(ticks());
    for (;;) {
        bool worked = false;
        for (unsigned i = 0; i < spin_rounds; ++i) {
            if (poll()) {
                worked = true;
                idle_wakes_ = 0;
                if (exit_) return *exit_;
            } else if (i % looks_between_pauses == looks_between_pauses - 1) {
                cpu_relax();
            }
            if (attention_.load(std::memory_order_relaxed)) break;
        }
        if (stop_.load(std::memory_order_relaxed)) return Exit::stopped;
        if (!ring_->frontend_alive()) return Exit::frontend_gone;
        if (reactor_.has_host_fds() || attention_.load(std::memory_order_relaxed)) {
            reactor_.wait(0);
            worked |= serve_host();
        }
        const std::uint64_t now = ticks();
        if (worked) {
            spin_.worked(now);
        } else if (!spin_.spent(now)) {
            if (spin_.yield_is_due(now)) yield_cpu();
        } else {
            if (sleep()) spin_.worked(ticks());
            if (exit_) return *exit_;
        }
    }
}

bool Backend::poll() {
    bool worked = poll_channel();
    // By index: a request, or a model that fails, may start or stop queues.
    for (std::size_t i = 0; i < running_queues_.size(); ++i) worked |= poll_queue(running_queues_[i]);
    return worked;
}

bool Backend::poll_channel() {
    GuestError error;
    switch (ring_->poll(request_, error)) {
        case Poll::nothing:
            return false;
        case Poll::message:
            error = device_.answer(request_, answer_);
            break;
        case Poll::error:
            break;
    }
    if (error) {
        channel_error_ = error;
        exit_ = Exit::broken;
        return true;
    }
    ++counters_.requests;
    const std::uint32_t before = mirrored_status_;
    publish_state();
    // A queue that cannot be mapped shows in no answer: DEVICE_NEEDS_RESET is news of its own.
    const bool news = (mirrored_status_ & ~before & status_needs_reset) != 0;
    if (ring_->answer(answer_) || news) notify(cfg_port_);
    flush();
    return true;
}

bool Backend::poll_queue(std::uint32_t index) {
    Queue& queue = queues_[index];
    if (queue.pulled) {
        if (!queue.starved || !queue.ring.has_work()) return false;
        queue.starved = false;
        after_model(model_.kicked(index));
        return true;
    }
    if (!queue.ring.has_work()) return false;
    std::size_t count = 0;
    take_batch(index, count);
    if (count != 0) serve_batch(index, count);
    return true;
}

void Backend::take_batch(std::uint32_t index, std::size_t& count) {
    Queue& queue = queues_[index];
    std::uint64_t bytes = 0;
    for (bool found = true; count < batch_size && bytes < batch_bytes;) {
        if (const GuestError error = queue.ring.pop(batch_[count], found)) {
            refuse_batch(error, count);
            return;
        }
        if (!found) break;
        tokens_[count] = token(queue, batch_[count].head);
        bytes += batch_[count].readable_bytes + batch_[count].writable_bytes;
        ++count;
    }
    if (const GuestError error = queue.ring.fetch()) refuse_batch(error, count);
}

// A queue that lied once is not served further, not even what came before the lie.
void Backend::refuse_batch(GuestError error, std::size_t& count) {
    for (std::size_t i = 0; i < count; ++i) batch_[i].clear();
    count = 0;
    needs_reset(error);
}

void Backend::serve_batch(std::uint32_t index, std::size_t count) {
    Queue& queue = queues_[index];
    counters_.buffers += count;
    std::fill_n(written_.begin(), count, Model::held);
    GuestError failure =
        model_.process(index, {batch_.data(), count}, {tokens_.data(), count}, {written_.data(), count});
    for (std::size_t i = 0; i < count; ++i) {
        batch_[i].clear();  // lets go of guest memory
        if (written_[i] == Model::held || !queue.ring.active()) continue;
        // The chain cap keeps writable parts below 2^32; a larger number is the model's nonsense.
        const std::uint64_t written = static_cast<std::uint64_t>(written_[i]);
        const auto head = static_cast<std::uint16_t>(tokens_[i]);
        if (written > UINT32_MAX || queue.ring.push(head, static_cast<std::uint32_t>(written)))
            failure = failure ? failure : GuestError{VMSG_XEN_MODEL, written};
    }
    queue.dirty = true;
    after_model(failure);
}

void Backend::after_model(GuestError failure) {
    flush();
    if (failure) needs_reset(failure);
}

void Backend::flush() {
    for (std::size_t i = 0; i < running_queues_.size(); ++i) {
        Queue& queue = queues_[running_queues_[i]];
        if (!queue.dirty) continue;
        queue.dirty = false;
        if (const GuestError error = queue.ring.write_back()) {
            needs_reset(error);  // stops all queues: what the driver took back is not shown as used
            return;
        }
        queue.ring.publish();
        if (queue.ring.needs_notification() && queue.port) notify(*queue.port);
    }
}

// ---- sleeping ----

bool Backend::arm() {
    bool quiet = ring_->arm();
    for (const std::uint32_t index : running_queues_) {
        Queue& queue = queues_[index];
        if (queue.pulled && !queue.starved) continue;
        if (queue.ring.enable_notifications()) quiet = false;
    }
    return quiet;
}

void Backend::disarm() noexcept {
    ring_->disarm();
    for (const std::uint32_t index : running_queues_) queues_[index].ring.disable_notifications();
}

bool Backend::sleep() {
    const int penalty = std::exchange(penalty_ms_, 0);
    if (penalty == 0) reactor_.unmask_channels();
    if (arm()) {
        ++counters_.sleeps;
        reactor_.wait(penalty == 0 ? -1 : penalty);
    } else {
        reactor_.wait(0);
    }
    const std::uint64_t woken = ticks();
    disarm();
    // The frontend spins for this answer: it comes before the bookkeeping of the event that announced it.
    const bool worked = poll();
    if (exit_) return worked;
    if (reactor_.channels_ready()) {
        reactor_.take_channels();
        ++counters_.kicks;
        idle_wakes_ = worked ? 0 : idle_wakes_ + 1;
        if (idle_wakes_ > free_idle_wakes)
            penalty_ms_ = static_cast<int>(std::min(idle_wakes_ - free_idle_wakes, longest_mask_ms));
    }
    if (!serve_host() && !worked) return false;
    spin_.woken(woken);
    return true;
}

bool Backend::serve_host() {
    const std::uint64_t before = completions_;
    // Partner: the release store in wake().
    if (attention_.exchange(false, std::memory_order_acquire)) after_model(model_.run_posted());
    for (std::size_t i = 0; i < reactor_.ready().size(); ++i) after_model(model_.ready(reactor_.ready()[i]));
    return completions_ != before;  // a packet that the driver does not get is no reason to stay awake
}

// ---- what the model may ask for ----

GuestError Backend::pop(std::uint32_t index, Chain& out, std::uint64_t& chain_token, bool& found) {
    found = false;
    if (index >= queues_.size() || !queues_[index].ring.active()) return {};
    Queue& queue = queues_[index];
    GuestError error = queue.ring.pop(out, found);
    if (!error && found) error = queue.ring.fetch();
    if (error) {
        out.clear();
        found = false;
        needs_reset(error);
        return error;
    }
    if (found) {
        chain_token = token(queue, out.head);
        ++counters_.buffers;
    } else {
        queue.starved = true;
    }
    return {};
}

bool Backend::complete(std::uint32_t index, std::uint64_t chain_token, std::uint32_t written) {
    if (index >= queues_.size()) return false;
    Queue& queue = queues_[index];
    const auto head = static_cast<std::uint16_t>(chain_token);
    // A chain of before a reset: the driver has forgotten it, and so do we.
    if (!queue.ring.active() || chain_token != token(queue, head)) return true;
    if (queue.ring.push(head, written)) return false;
    queue.dirty = true;
    ++completions_;
    return true;
}

void Backend::config_changed() noexcept {
    device_.bump_generation();
    publish_state();
    notify(cfg_port_);
}

void Backend::needs_reset(GuestError error) noexcept {
    device_.needs_reset(error);
    stop_queues();
    publish_state();
    notify(cfg_port_);
}

GuestError Backend::answer(const Message& request, Message& answer) {
    const GuestError error = device_.answer(request, answer);
    publish_state();
    flush();
    return error;
}

void Backend::publish_state() noexcept {
    const GuestError last = error();
    seen_status_.store(device_.status(), std::memory_order_relaxed);
    seen_error_.store(std::uint64_t{last.code} << 32 | (last.detail & 0xffffffffU), std::memory_order_relaxed);
    if (!ring_) return;
    if (mirrored_status_ != device_.status()) ring_->set_status(mirrored_status_ = device_.status());
    if (mirrored_generation_ != device_.generation())
        ring_->set_generation(mirrored_generation_ = device_.generation());
    if (mirrored_errors_ != device_.guest_errors()) {
        mirrored_errors_ = device_.guest_errors();
        ring_->set_error(device_.error());
    }
}

Backend::State Backend::state() const noexcept {
    const std::uint64_t last = seen_error_.load(std::memory_order_relaxed);
    return {seen_status_.load(std::memory_order_relaxed), static_cast<std::uint32_t>(last >> 32),
            static_cast<std::uint32_t>(last)};
}

// ---- DeviceHooks ----

void Backend::config_refresh(std::uint32_t offset, std::uint32_t size) {
    if (const GuestError error = model_.config_refresh(offset, size)) needs_reset(error);
}

bool Backend::config_write(std::uint32_t offset, std::span<const std::byte> data) {
    bool accepted = false;
    if (const GuestError error = model_.config_write(offset, data, accepted)) needs_reset(error);
    return accepted;
}

bool Backend::accepts(std::span<const std::uint32_t> features) {
    bool accepted = false;
    model_in_use_ = true;  // it may keep what it was told, until its reset
    if (const GuestError error = model_.accepts(features, accepted)) needs_reset(error);
    return accepted;
}

bool Backend::has_channel(std::uint32_t index) { return !ring_ || queues_[index].port.has_value(); }

GuestError Backend::activate() {
    GuestError error;
    // Compared in pages: as bytes a large number would wrap.
    if (address_.arena_pages > options_.map_budget_pages)
        error = {VMSG_XEN_MAP_BUDGET, address_.arena_pages};
    else if (address_.arena_pages != 0)
        error = memory_.map_persistent(grant_address(address_.arena_first, 0), address_.arena_pages * page_size, true);
    for (std::uint32_t i = 0; i < queues_.size() && !error; ++i)
        if (device_.queues()[i].set) error = enable_queue(i);
    if (!error) {
        model_in_use_ = true;
        error = model_.activate(device_.driver_features(), running_queues_);
    }
    if (error) stop_queues();
    return error;
}

GuestError Backend::enable_queue(std::uint32_t index) {
    Queue& queue = queues_[index];
    if (const GuestError error = queue.ring.activate(device_.queues()[index].geometry, device_.features64(), memory_)) {
        stop_queues();
        return error;
    }
    ++queue.activation;
    queue.starved = true;  // the model is told of the first buffers
    queue.dirty = false;
    running_queues_.push_back(index);
    queue.ring.disable_notifications();
    return {};
}

void Backend::disable_queue(std::uint32_t index) {
    queues_[index].ring.deactivate();
    std::erase(running_queues_, index);
    if (const GuestError error = model_.queue_reset(index)) needs_reset(error);
}

void Backend::stop_queues() noexcept {
    for (Queue& queue : queues_) queue.ring.deactivate();
    running_queues_.clear();
    memory_.clear();
}

void Backend::reset() {
    stop_queues();
    if (!std::exchange(model_in_use_, false)) return;
    // The status must read 0 after a reset (virtio 1.3 section 2.4.1), so a model that fails in it is only recorded.
    if (const GuestError error = model_.reset()) device_.record(error);
}

}  // namespace cpp_ring
