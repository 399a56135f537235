// Every error code of the protocol has its own name, and falls in the kind that docs/protocol.md gives it.
#include <doctest/doctest.h>

#include <cerrno>
#include <cstring>
#include <set>
#include <string>

#include "errors.hpp"

namespace cpp_ring::test {

TEST_CASE("errors: no two codes share a name, and only the protocol's codes have one") {
    std::set<std::string> names;
    std::size_t known = 0;
    for (std::uint32_t code = 0; code < 300; ++code) {
        const std::string name = error_name(code);
        if (name == "unknown") continue;
        ++known;
        CHECK(names.insert(name).second);
    }
    CHECK(known == 1 + 8 + 9 + 12 + 2);
    CHECK(std::strcmp(error_name(VMSG_XEN_BAD_SEQ), "bad_seq") == 0);
    CHECK(std::strcmp(error_name(VMSG_XEN_HOST), "host") == 0);
    CHECK(std::strcmp(error_name(UINT32_MAX), "unknown") == 0);
}

TEST_CASE("errors: only those of the channel close it") {
    CHECK(!closes_channel(VMSG_XEN_OK));
    CHECK(closes_channel(VMSG_XEN_BAD_MAGIC));
    CHECK(closes_channel(VMSG_XEN_BAD_PAYLOAD));
    for (const vmsg_xen_error code : {VMSG_XEN_CONFIG_RANGE, VMSG_XEN_GRANT_MAP, VMSG_XEN_MODEL, VMSG_XEN_HOST})
        CHECK(!closes_channel(code));
}

TEST_CASE("errors: a host error carries its errno and says what failed") {
    const HostError error(ENOENT, "cannot map grant 7");
    CHECK(error.error() == ENOENT);
    CHECK(std::string(error.what()) == std::string("cannot map grant 7: ") + std::strerror(ENOENT));
}

}  // namespace cpp_ring::test
