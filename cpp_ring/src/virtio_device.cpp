#include "virtio_device.hpp"

#include <algorithm>
#include <array>
#include <stdexcept>
#include <utility>

namespace cpp_ring {
namespace {

// What must be set for a status bit to be taken: together with it at the latest, and before it.
struct StatusStep {
    std::uint32_t bit;
    std::uint32_t with;
    std::uint32_t before;
};
constexpr std::array status_steps{
    StatusStep{status_acknowledge, 0, 0},
    StatusStep{status_driver, status_acknowledge, 0},
    StatusStep{status_features_ok, status_acknowledge | status_driver, 0},
    // Queues are set up between the two.
    StatusStep{status_driver_ok, status_acknowledge | status_driver, status_features_ok},
    StatusStep{status_failed, 0, 0},
};
constexpr std::uint32_t driver_bits =
    status_acknowledge | status_driver | status_features_ok | status_driver_ok | status_failed;

constexpr std::uint32_t max_feature_blocks = 64;
static_assert(sizeof(vmsg_header) + sizeof(vmsg_feature_range) + std::size_t{max_feature_blocks} * 4 <= VMSG_MAX_SIZE);

std::vector<std::uint32_t> sums_before(const std::vector<std::uint8_t>& mask) {
    std::vector<std::uint32_t> sums(mask.size() + 1);
    for (std::size_t i = 0; i < mask.size(); ++i) sums[i + 1] = sums[i] + (mask[i] != 0 ? 1 : 0);
    return sums;
}

}  // namespace

std::uint32_t next_status(std::uint32_t current, std::uint32_t wanted) noexcept {
    if (wanted == 0) return 0;
    const std::uint32_t kept = current & driver_bits;
    const std::uint32_t asked = wanted & ~std::uint32_t{status_needs_reset};  // the device's own bit
    if ((asked & ~driver_bits) != 0 || (asked & kept) != kept) return current;
    for (const auto& step : status_steps) {
        if ((asked & ~kept & step.bit) == 0) continue;
        if ((asked & step.with) != step.with || (kept & step.before) != step.before) return current;
    }
    return asked | (current & status_needs_reset);
}

// One row per message: its payload's size (least, and whether data follows) and who answers it.
struct VirtioDevice::Row {
    std::uint8_t msg_id;
    std::uint8_t payload_size;
    bool data_follows;
    Handler handler;
};

const VirtioDevice::Row* VirtioDevice::find_row(std::uint8_t msg_id) noexcept {
    static constexpr std::array rows{
        Row{VMSG_GET_DEVICE_INFO, 0, false, &VirtioDevice::get_device_info},
        Row{VMSG_GET_DEVICE_FEATURES, sizeof(vmsg_feature_range), false, &VirtioDevice::get_device_features},
        Row{VMSG_SET_DRIVER_FEATURES, sizeof(vmsg_feature_range), true, &VirtioDevice::set_driver_features},
        Row{VMSG_GET_CONFIG, sizeof(vmsg_config_range), false, &VirtioDevice::get_config},
        Row{VMSG_SET_CONFIG, sizeof(vmsg_config), true, &VirtioDevice::set_config},
        Row{VMSG_GET_DEVICE_STATUS, 0, false, &VirtioDevice::get_device_status},
        Row{VMSG_SET_DEVICE_STATUS, sizeof(vmsg_status), false, &VirtioDevice::set_device_status},
        Row{VMSG_GET_VQUEUE, sizeof(vmsg_index), false, &VirtioDevice::get_vqueue},
        Row{VMSG_SET_VQUEUE, sizeof(vmsg_vqueue), false, &VirtioDevice::set_vqueue},
        Row{VMSG_RESET_VQUEUE, sizeof(vmsg_index), false, &VirtioDevice::reset_vqueue},
        Row{VMSG_GET_SHM, sizeof(vmsg_index), false, &VirtioDevice::get_shm},
    };
    static_assert(rows.front().msg_id == VMSG_GET_DEVICE_INFO &&
                  rows.size() == VMSG_GET_SHM - VMSG_GET_DEVICE_INFO + 1);
    // The ids are consecutive, so the table is indexed; below the first one the subtraction wraps to a large number.
    const std::size_t index = std::size_t{msg_id} - VMSG_GET_DEVICE_INFO;
    return index < rows.size() ? &rows[index] : nullptr;
}

VirtioDevice::VirtioDevice(DeviceDescription description, DeviceHooks& hooks)
    : description_(std::move(description)),
      hooks_(hooks),
      hooked_reads_before_(sums_before(description_.hooked_reads)),
      writable_before_(sums_before(description_.writable)),
      hooked_writes_before_(sums_before(description_.hooked_writes)),
      driver_features_(description_.features.size()),
      queues_(description_.queue_sizes.size()) {
    const std::size_t size = description_.config.size();
    if (description_.hooked_reads.size() != size || description_.writable.size() != size ||
        description_.hooked_writes.size() != size)
        throw std::invalid_argument("the masks and the configuration space differ in length");
    for (const std::uint16_t queue_size : description_.queue_sizes)
        if (!valid_queue_size(queue_size))
            throw std::invalid_argument("a queue size is not a power of two up to 32768");
}

std::uint64_t VirtioDevice::features64() const noexcept {
    std::uint64_t low = driver_features_.empty() ? 0 : driver_features_[0];
    if (driver_features_.size() > 1) low |= std::uint64_t{driver_features_[1]} << 32;
    return low;
}

void VirtioDevice::record(GuestError error) noexcept {
    error_ = error;
    ++guest_errors_;
}

void VirtioDevice::needs_reset(GuestError error) noexcept {
    record(error);
    status_ |= status_needs_reset;
}

void VirtioDevice::forget_driver() noexcept {
    status_ = 0;
    std::fill(driver_features_.begin(), driver_features_.end(), 0);
    unknown_features_ = false;
    std::fill(queues_.begin(), queues_.end(), QueueSetup{});
}

GuestError VirtioDevice::answer(const Message& request, Message& answer) {
    const vmsg_header header = request.header();
    if (header.msg_size != request.size()) return {VMSG_XEN_BAD_SIZE, header.msg_size};
    if ((header.type & (VMSG_TYPE_RESPONSE | VMSG_TYPE_BUS)) != 0 || header.dev_num != 0)
        return {VMSG_XEN_BAD_TYPE, header.type | std::uint64_t{header.dev_num} << 8};
    if (header.token == 0) return {VMSG_XEN_BAD_TOKEN, 0};
    const Row* const row = find_row(header.msg_id);
    if (row == nullptr) return {VMSG_XEN_BAD_MSG_ID, header.msg_id};
    const std::size_t size = request.payload_size();
    if (row->data_follows ? size < row->payload_size : size != row->payload_size) return {VMSG_XEN_BAD_PAYLOAD, size};

    answer.begin();
    const GuestError error = (this->*row->handler)(request, answer);
    if (error) {
        if (closes_channel(error.code)) return error;
        record(error);
    }
    answer.finish(VMSG_TYPE_RESPONSE, header.msg_id, header.token);
    return {};
}

GuestError VirtioDevice::get_device_info(const Message&, Message& answer) {
    answer.append(vmsg_device_info{
        .device_id = description_.device_id,
        .vendor_id = description_.vendor_id,
        .num_feature_bits = static_cast<std::uint32_t>(description_.features.size() * 32),
        .config_size = static_cast<std::uint32_t>(description_.config.size()),
        .max_vqueues = static_cast<std::uint32_t>(queues_.size()),
        .admin_vq_start = 0,
        .admin_vq_count = 0,
    });
    return {};
}

GuestError VirtioDevice::get_device_features(const Message& request, Message& answer) {
    const auto range = request.payload<vmsg_feature_range>();
    if (range.count > max_feature_blocks) return {VMSG_XEN_BAD_PAYLOAD, range.count};
    answer.append(range);
    for (std::uint64_t i = range.index; i < std::uint64_t{range.index} + range.count; ++i)
        answer.append(i < description_.features.size() ? description_.features[i] : std::uint32_t{0});
    return {};
}

GuestError VirtioDevice::set_driver_features(const Message& request, Message&) {
    const auto range = request.payload<vmsg_feature_range>();
    // The count is bounded by the message's size, so the product cannot overflow 64 bits.
    if (request.payload_size() != sizeof range + std::uint64_t{range.count} * 4)
        return {VMSG_XEN_BAD_PAYLOAD, range.count};
    if ((status_ & status_driver) == 0 || (status_ & status_features_ok) != 0) return {VMSG_XEN_STATUS_ORDER, status_};
    GuestError error;
    for (std::uint32_t i = 0; i < range.count; ++i) {
        const auto block = request.payload<std::uint32_t>(sizeof range + std::size_t{i} * 4);
        const std::uint64_t index = std::uint64_t{range.index} + i;
        // Bits that were not offered are kept, so that FEATURES_OK is refused and not silently narrowed.
        if (index < driver_features_.size())
            driver_features_[index] = block;
        else if (block != 0)
            error = {VMSG_XEN_FEATURES, index};
    }
    if (error) unknown_features_ = true;
    return error;
}

bool VirtioDevice::in_config(std::uint32_t offset, std::uint32_t size) const noexcept {
    const std::size_t limit = description_.config.size();
    return size <= VMSG_MAX_CONFIG_DATA && offset <= limit && size <= limit - offset;
}

void VirtioDevice::append_config(std::uint32_t offset, std::uint32_t size, Message& answer) {
    answer.append(vmsg_config{.generation = generation_, .offset = offset, .size = size});
    answer.append_bytes(description_.config.subspan(offset, size));
}

GuestError VirtioDevice::get_config(const Message& request, Message& answer) {
    const auto range = request.payload<vmsg_config_range>();
    if (!in_config(range.offset, range.size)) {
        append_config(0, 0, answer);
        return {VMSG_XEN_CONFIG_RANGE, std::uint64_t{range.offset} + range.size};
    }
    if (hooked_reads_before_[range.offset + range.size] != hooked_reads_before_[range.offset])
        hooks_.config_refresh(range.offset, range.size);
    append_config(range.offset, range.size, answer);
    return {};
}

GuestError VirtioDevice::check_config_write(std::uint32_t offset, std::uint32_t size) const noexcept {
    if (!in_config(offset, size)) return {VMSG_XEN_CONFIG_RANGE, std::uint64_t{offset} + size};
    if ((status_ & status_driver) == 0) return {VMSG_XEN_STATUS_ORDER, status_};
    if (writable_before_[offset + size] - writable_before_[offset] != size) return {VMSG_XEN_CONFIG_READ_ONLY, offset};
    return {};
}

GuestError VirtioDevice::set_config(const Message& request, Message& answer) {
    const auto range = request.payload<vmsg_config>();
    if (request.payload_size() != sizeof range + std::uint64_t{range.size}) return {VMSG_XEN_BAD_PAYLOAD, range.size};
    if (const GuestError error = check_config_write(range.offset, range.size)) {
        append_config(0, 0, answer);
        return error;
    }
    const auto data = request.payload_bytes(sizeof range);
    if (hooked_writes_before_[range.offset + range.size] != hooked_writes_before_[range.offset]) {
        if (!hooks_.config_write(range.offset, data)) {
            append_config(0, 0, answer);
            return {VMSG_XEN_CONFIG_VALUE, range.offset};
        }
    } else {
        std::copy(data.begin(), data.end(), description_.config.begin() + range.offset);
    }
    if (range.size != 0) ++generation_;
    append_config(range.offset, range.size, answer);
    return {};
}

GuestError VirtioDevice::get_device_status(const Message&, Message& answer) {
    answer.append(vmsg_status{status_});
    return {};
}

bool VirtioDevice::features_acceptable() {
    constexpr std::uint32_t version_1_block = 1;  // VIRTIO_F_VERSION_1 is bit 32
    if (unknown_features_) return false;
    if (driver_features_.size() <= version_1_block || (driver_features_[version_1_block] & 1) == 0) return false;
    for (std::size_t i = 0; i < driver_features_.size(); ++i)
        if ((driver_features_[i] & ~description_.features[i]) != 0) return false;
    return hooks_.accepts(driver_features_);
}

GuestError VirtioDevice::set_device_status(const Message& request, Message& answer) {
    const std::uint32_t wanted = request.payload<vmsg_status>().status;
    GuestError error;
    if (wanted == 0) {
        // Stop first, forget then: nothing of the old driver runs when the answer goes out.
        error_ = {};
        hooks_.reset();
        forget_driver();
    } else {
        const std::uint32_t next = next_status(status_, wanted);
        const std::uint32_t added = next & ~status_;
        if (next == status_ && ((wanted ^ status_) & ~std::uint32_t{status_needs_reset}) != 0) {
            error = {VMSG_XEN_STATUS_ORDER, wanted};
        } else if ((added & status_features_ok) != 0 && !features_acceptable()) {
            status_ |= next & ~std::uint32_t{status_features_ok};
            error = {VMSG_XEN_FEATURES, features64()};
        } else if ((added & status_driver_ok) != 0 && (status_ & status_needs_reset) == 0) {
            status_ = next;
            if (const GuestError failed = hooks_.activate()) needs_reset(failed);
        } else {
            // A hook may have set DEVICE_NEEDS_RESET meanwhile.
            status_ |= next;
        }
    }
    answer.append(vmsg_status{status_});
    return error;
}

GuestError VirtioDevice::get_vqueue(const Message& request, Message& answer) {
    const std::uint32_t index = request.payload<vmsg_index>().index;
    if (index >= queues_.size()) {
        vmsg_vqueue none{};
        none.index = index;
        answer.append(none);
        return {};
    }
    const QueueGeometry& geometry = queues_[index].geometry;
    answer.append(vmsg_vqueue{
        .index = index,
        .max_size = description_.queue_sizes[index],
        .size = geometry.size,
        .reserved = 0,
        .descriptor_address = geometry.descriptor_address,
        .driver_address = geometry.driver_address,
        .device_address = geometry.device_address,
    });
    return {};
}

GuestError VirtioDevice::set_vqueue(const Message& request, Message&) {
    const auto wanted = request.payload<vmsg_vqueue>();
    if (wanted.index >= queues_.size()) return {VMSG_XEN_QUEUE_INDEX, wanted.index};
    QueueSetup& queue = queues_[wanted.index];
    const bool running = (status_ & status_driver_ok) != 0;
    // While it runs only a queue that RESET_VQUEUE stopped may be set up anew.
    if ((status_ & status_features_ok) == 0 || (running && queue.set)) return {VMSG_XEN_QUEUE_STATE, status_};
    if (running && !has_feature(features64(), feature_ring_reset)) return {VMSG_XEN_QUEUE_STATE, status_};
    if (!hooks_.has_channel(wanted.index)) return {VMSG_XEN_QUEUE_STATE, wanted.index};
    // Before the narrowing below.
    if (wanted.size > max_queue_size) return {VMSG_XEN_QUEUE_SIZE, wanted.size};
    const QueueGeometry geometry{static_cast<std::uint16_t>(wanted.size), wanted.descriptor_address,
                                 wanted.driver_address, wanted.device_address};
    if (const GuestError error = check_geometry(geometry, description_.queue_sizes[wanted.index])) return error;
    queue.geometry = geometry;
    queue.set = true;
    if (running && (status_ & status_needs_reset) == 0)
        if (const GuestError failed = hooks_.enable_queue(wanted.index)) needs_reset(failed);
    return {};
}

GuestError VirtioDevice::reset_vqueue(const Message& request, Message&) {
    const std::uint32_t index = request.payload<vmsg_index>().index;
    if (index >= queues_.size()) return {VMSG_XEN_QUEUE_INDEX, index};
    if ((status_ & status_driver_ok) == 0 || !has_feature(features64(), feature_ring_reset))
        return {VMSG_XEN_QUEUE_STATE, status_};
    hooks_.disable_queue(index);
    queues_[index] = {};
    return {};
}

GuestError VirtioDevice::get_shm(const Message& request, Message& answer) {
    // No model has shared memory regions; a length of 0 says so.
    vmsg_shm none{};
    none.index = request.payload<vmsg_index>().index;
    answer.append(none);
    return {};
}

}  // namespace cpp_ring
