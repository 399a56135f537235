#include "errors.hpp"

#include <algorithm>
#include <array>
#include <system_error>

namespace cpp_ring {
namespace {

struct ErrorName {
    std::uint32_t code;
    const char* name;
};

// docs/protocol.md, "What happens to a wrong one".
constexpr std::array names{
    ErrorName{VMSG_XEN_OK, "ok"},
    ErrorName{VMSG_XEN_BAD_MAGIC, "bad_magic"},
    ErrorName{VMSG_XEN_BAD_VERSION, "bad_version"},
    ErrorName{VMSG_XEN_BAD_SEQ, "bad_seq"},
    ErrorName{VMSG_XEN_BAD_SIZE, "bad_size"},
    ErrorName{VMSG_XEN_BAD_TYPE, "bad_type"},
    ErrorName{VMSG_XEN_BAD_TOKEN, "bad_token"},
    ErrorName{VMSG_XEN_BAD_MSG_ID, "bad_msg_id"},
    ErrorName{VMSG_XEN_BAD_PAYLOAD, "bad_payload"},
    ErrorName{VMSG_XEN_CONFIG_RANGE, "config_range"},
    ErrorName{VMSG_XEN_CONFIG_READ_ONLY, "config_read_only"},
    ErrorName{VMSG_XEN_STATUS_ORDER, "status_order"},
    ErrorName{VMSG_XEN_FEATURES, "features"},
    ErrorName{VMSG_XEN_QUEUE_INDEX, "queue_index"},
    ErrorName{VMSG_XEN_QUEUE_SIZE, "queue_size"},
    ErrorName{VMSG_XEN_QUEUE_ADDRESS, "queue_address"},
    ErrorName{VMSG_XEN_QUEUE_STATE, "queue_state"},
    ErrorName{VMSG_XEN_CONFIG_VALUE, "config_value"},
    ErrorName{VMSG_XEN_GRANT_MAP, "grant_map"},
    ErrorName{VMSG_XEN_MAP_BUDGET, "map_budget"},
    ErrorName{VMSG_XEN_AVAIL_INDEX, "avail_index"},
    ErrorName{VMSG_XEN_DESC_HEAD, "desc_head"},
    ErrorName{VMSG_XEN_DESC_NEXT, "desc_next"},
    ErrorName{VMSG_XEN_DESC_CYCLE, "desc_cycle"},
    ErrorName{VMSG_XEN_DESC_INDIRECT, "desc_indirect"},
    ErrorName{VMSG_XEN_DESC_ADDRESS, "desc_address"},
    ErrorName{VMSG_XEN_DESC_LENGTH, "desc_length"},
    ErrorName{VMSG_XEN_DESC_ORDER, "desc_order"},
    ErrorName{VMSG_XEN_DESC_IN_FLIGHT, "desc_in_flight"},
    ErrorName{VMSG_XEN_REQUEST, "request"},
    ErrorName{VMSG_XEN_MODEL, "model"},
    ErrorName{VMSG_XEN_HOST, "host"},
};

}  // namespace

const char* error_name(std::uint32_t code) noexcept {
    const auto* const found =
        std::find_if(names.begin(), names.end(), [&](const auto& row) { return row.code == code; });
    return found == names.end() ? "unknown" : found->name;
}

HostError::HostError(int error, const std::string& what)
    : std::runtime_error(what + ": " + std::generic_category().message(error)), error_(error) {}

}  // namespace cpp_ring
