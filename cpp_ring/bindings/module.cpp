// cpp_ring._core: table of contents. One register_*.cpp for each concept.
#include "bindings.hpp"
#include "split_ring.hpp"
#include "wire.hpp"

PYBIND11_MODULE(_core, module) {
    using namespace cpp_ring;
    using namespace cpp_ring::bindings;

    module.attr("PROTOCOL_VERSION") = VMSG_XEN_PROTOCOL_VERSION;
    module.attr("MAX_MESSAGE") = VMSG_MAX_SIZE;
    module.attr("TRANSPORT_FEATURES") = 1ULL << feature_indirect_desc | 1ULL << feature_event_idx |
                                        1ULL << feature_version_1 | 1ULL << feature_access_platform |
                                        1ULL << feature_in_order | 1ULL << feature_ring_reset;
    register_errors(module);
    register_hypervisor(module);
    register_latency(module);
    register_backend(module);
    register_frontend(module);
    register_driver_queue(module);
    register_ping_pong(module);
}
