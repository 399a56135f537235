#include "loopback_device.hpp"

#include <algorithm>
#include <array>
#include <cstring>

namespace cpp_ring::test {

// Out of line, as all here that is not small: a dozen files of tests would compile a copy each, under every sanitizer.
EchoModel::EchoModel() = default;
EchoModel::~EchoModel() = default;

GuestError EchoModel::config_write(std::uint32_t offset, std::span<const std::byte> data, bool& accepted) noexcept {
    std::memcpy(config.data() + offset, data.data(), data.size());
    accepted = true;
    return {};
}

GuestError EchoModel::process(std::uint32_t, std::span<Chain> batch, std::span<const std::uint64_t>,
                              std::span<std::int64_t> written) noexcept {
    for (std::size_t i = 0; i < batch.size(); ++i) written[i] = echo(batch[i]);
    served += batch.size();
    return {};
}

std::uint32_t EchoModel::echo(const Chain& chain) {
    buffer_.resize(chain.readable_bytes);
    std::byte* at = buffer_.data();
    for (const Segment& segment : chain.readable) {
        SharedMemory::copy_from(at, segment.data, segment.size);
        at += segment.size;
    }
    for (std::byte& value : buffer_) value = ~value;
    std::size_t done = 0;
    for (const Segment& segment : chain.writable) {
        const std::size_t size = std::min<std::size_t>(segment.size, buffer_.size() - done);
        SharedMemory::copy_to(segment.data, buffer_.data() + done, size);
        done += size;
    }
    return static_cast<std::uint32_t>(done);
}

LoopbackDevice::LoopbackDevice(EchoModel& model, const DeviceShape& shape)
    : config(shape.config_size), backend(back, model, describe(shape), options(shape)), offered(shape.features) {
    model.config = config;
    frontend.emplace(front, backend_domain);
    // Any granted pages will do; tests write their requests there.
    arena = front.share(backend_domain, 16, true);
    for (const std::uint16_t size : shape.queue_sizes)
        queues.push_back(std::make_unique<DriverQueue>(front, backend_domain, size, shape.features));
}

LoopbackDevice::~LoopbackDevice() = default;

ChannelAddress LoopbackDevice::address(bool with_arena) const {
    ChannelAddress result{frontend->fe_to_be_ref(), frontend->be_to_fe_ref(), frontend->event_channel(), {}, 0, 0};
    for (const auto& queue : queues) result.queue_event_channels.emplace_back(queue->event_channel());
    if (with_arena) {
        result.arena_first = arena->first_ref();
        result.arena_pages = arena->bytes().size() / page_size;
    }
    return result;
}

std::uint32_t LoopbackDevice::set_status(std::uint32_t status) {
    const std::uint32_t result = ask(VMSG_SET_DEVICE_STATUS, vmsg_status{status}).payload<vmsg_status>().status;
    if (status == 0) frontend->new_epoch();
    return result;
}

void LoopbackDevice::set_queue(std::uint32_t index, const SplitQueueDriver& ring) {
    ask(VMSG_SET_VQUEUE,
        vmsg_vqueue{index, 0, ring.size(), 0, ring.descriptor_address(), ring.driver_address(), ring.device_address()});
}

void LoopbackDevice::negotiate(std::uint64_t features) {
    set_status(0);
    set_status(status_acknowledge);
    set_status(status_acknowledge | status_driver);
    ask(VMSG_SET_DRIVER_FEATURES, vmsg_feature_range{0, 2}, feature_blocks(features)[0], feature_blocks(features)[1]);
    set_status(status_acknowledge | status_driver | status_features_ok);
}

std::uint32_t LoopbackDevice::start() {
    negotiate(offered);
    for (std::uint32_t i = 0; i < queues.size(); ++i) set_queue(i);
    return set_status(all_status_bits);
}

void LoopbackDevice::add(SplitQueueDriver& ring, std::size_t cell, std::uint64_t number) {
    SharedMemory::store_relaxed(word(cell), number);
    const std::uint64_t at = grant_address(arena->first_ref(), cell * 16);
    const std::array readable{SplitQueueDriver::Piece{at, 8}};
    const std::array writable{SplitQueueDriver::Piece{at + 8, 8}};
    REQUIRE(ring.add(readable, writable));
}

void LoopbackDevice::echo(std::uint32_t queue, std::uint64_t number, std::size_t cell) {
    offer(queue, cell, number);
    queues[queue]->kick();
    REQUIRE(queues[queue]->wait(for_ever));
    SplitQueueDriver::Used used{};
    bool lied = false;
    REQUIRE(queues[queue]->ring().pop(used, lied));
    REQUIRE(used.written == 8);
    REQUIRE(answered(cell) == ~number);
}

DeviceDescription LoopbackDevice::describe(const DeviceShape& shape) {
    DeviceDescription description;
    description.device_id = 42;
    description.features = feature_blocks(shape.features);
    description.config = config;
    description.queue_sizes = shape.queue_sizes;
    description.writable.assign(shape.config_size, 1);
    description.hooked_reads.assign(shape.config_size, 0);
    for (std::size_t i = 32; i < std::min<std::size_t>(48, shape.config_size); ++i) description.hooked_reads[i] = 1;
    description.hooked_writes = description.hooked_reads;
    return description;
}

// ---- a frontend without rules ----

RawFrontend::~RawFrontend() = default;

RawFrontend::RawFrontend(Hypervisor& hypervisor)
    : channels(hypervisor.open_event_channels()),
      port(channels->alloc_unbound(backend_domain)),
      fe_page(hypervisor.share_notify(backend_domain, false, offsetof(vmsg_xen_fe_header, live), *channels, port)),
      be_page(hypervisor.share(backend_domain, 1, true)),
      fe(reinterpret_cast<vmsg_xen_fe_page*>(fe_page->bytes().data())),
      be(reinterpret_cast<vmsg_xen_be_page*>(be_page->bytes().data())) {
    write_header();
}

void RawFrontend::write_header() {
    SharedMemory::store_relaxed(&fe->header.version, std::uint32_t{VMSG_XEN_PROTOCOL_VERSION});
    SharedMemory::store_relaxed(&fe->header.live, std::uint8_t{VMSG_XEN_ALIVE});
    SharedMemory::store_release(&fe->header.magic, std::uint32_t{VMSG_XEN_MAGIC_FE});
}

void RawFrontend::publish(std::uint32_t seq, std::span<const std::byte> message, std::uint32_t size) {
    SharedMemory::copy_to(fe->request.message, message.data(), message.size());
    SharedMemory::store_relaxed(&fe->request.size, size);
    SharedMemory::store_release(&fe->request.seq, seq);
    channels->notify(port);
}

}  // namespace cpp_ring::test
