// The client of the local hypervisor against a broker that does as it is told, lies included.
#include "local_hypervisor.hpp"

#include <doctest/doctest.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstring>
#include <deque>
#include <filesystem>
#include <functional>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "errors.hpp"
#include "file_descriptor.hpp"

using namespace cpp_ring;

namespace {

using Words = std::vector<std::uint32_t>;

constexpr std::uint32_t hello = 0, grant_share = 1, grant_unshare = 2, grant_map = 3, grant_unmap = 4,
                        alloc_unbound = 5, evtchn_close = 7;

struct Answer {
    Words words;
    std::vector<int> fds;  // sent, not closed
};

// Listens as dom1 in a directory of its own; `answer` gets the eight words of each request. Empty words: hangs up.
class FakeBroker {
  public:
    using Answerer = std::function<Answer(const Words&)>;

    explicit FakeBroker(Answerer answer) : answer_(std::move(answer)) {
        std::string name = (std::filesystem::temp_directory_path() / "vdm-XXXXXX").string();
        REQUIRE(mkdtemp(name.data()) != nullptr);
        directory_ = name;
        std::filesystem::create_directory(directory_ / "dom1");
        listener_ = FileDescriptor(socket(AF_UNIX, SOCK_SEQPACKET, 0));
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        std::strncpy(address.sun_path, (directory_ / "dom1" / "hypervisor").c_str(), sizeof address.sun_path - 1);
        REQUIRE(bind(listener_.get(), reinterpret_cast<sockaddr*>(&address), sizeof address) == 0);
        REQUIRE(listen(listener_.get(), 1) == 0);
        thread_ = std::thread([this] { serve(); });
    }
    ~FakeBroker() {
        shutdown(listener_.get(), SHUT_RDWR);
        thread_.join();
        std::filesystem::remove_all(directory_);
    }

    [[nodiscard]] std::string directory() const { return directory_.string(); }
    [[nodiscard]] std::vector<Words> requests() {
        const std::lock_guard lock(mutex_);
        return requests_;
    }

  private:
    void serve() {
        const FileDescriptor client(accept(listener_.get(), nullptr, nullptr));
        std::array<std::uint32_t, 8> request{};
        while (client && recv(client.get(), request.data(), sizeof request, 0) == sizeof request) {
            const Words words(request.begin(), request.end());
            {
                const std::lock_guard lock(mutex_);
                requests_.push_back(words);
            }
            const Answer answer = words[0] == hello ? Answer{{0, 0, 0, 0}, {}} : answer_(words);
            if (answer.words.empty()) return;
            reply(client.get(), answer);
        }
    }
    static void reply(int client, const Answer& answer) {
        Words words = answer.words;
        iovec buffer{words.data(), words.size() * sizeof words[0]};
        alignas(cmsghdr) std::array<char, CMSG_SPACE(8 * sizeof(int))> control{};
        msghdr message{};
        message.msg_iov = &buffer;
        message.msg_iovlen = 1;
        if (!answer.fds.empty()) {
            message.msg_control = control.data();
            message.msg_controllen = CMSG_SPACE(answer.fds.size() * sizeof(int));
            cmsghdr* const part = CMSG_FIRSTHDR(&message);
            part->cmsg_level = SOL_SOCKET;
            part->cmsg_type = SCM_RIGHTS;
            part->cmsg_len = CMSG_LEN(answer.fds.size() * sizeof(int));
            std::memcpy(CMSG_DATA(part), answer.fds.data(), answer.fds.size() * sizeof(int));
        }
        sendmsg(client, &message, MSG_NOSIGNAL);
    }

    Answerer answer_;
    std::filesystem::path directory_;
    FileDescriptor listener_;
    std::mutex mutex_;
    std::vector<Words> requests_;
    std::thread thread_;
};

FileDescriptor pages(std::size_t count, char fill) {
    FileDescriptor fd(memfd_create("pages", MFD_CLOEXEC));
    const std::string data(count * page_size, fill);
    REQUIRE(write(fd.get(), data.data(), data.size()) == static_cast<ssize_t>(data.size()));
    return fd;
}

int error_of(const std::function<void()>& call) {
    try {
        call();
    } catch (const HostError& error) {
        return error.error();
    }
    return 0;
}

bool readable(int fd) {
    pollfd poller{fd, POLLIN, 0};
    return poll(&poller, 1, 0) == 1;
}

}  // namespace

TEST_CASE("pages of several grants lie side by side and are let go once") {
    const FileDescriptor one = pages(3, 'a');
    const FileDescriptor two = pages(1, 'b');
    FakeBroker broker([&](const Words& request) -> Answer {
        if (request[0] == grant_map) return {{0, 77, 2, 0, /* page, pages */ 1, 2, 0, 1}, {one.get(), two.get()}};
        return {{0, 0, 0, 0}, {}};
    });
    LocalHypervisor hypervisor(broker.directory(), 1);
    {
        const auto mapping = hypervisor.map(0, 40, 3, true);
        REQUIRE(mapping->bytes().size() == 3 * page_size);
        CHECK(mapping->bytes()[0] == std::byte{'a'});
        CHECK(mapping->bytes()[2 * page_size] == std::byte{'b'});
        mapping->bytes()[page_size] = std::byte{'c'};
        char seen = 0;
        REQUIRE(pread(one.get(), &seen, 1, 2 * page_size) == 1);
        CHECK(seen == 'c');
    }
    CHECK(broker.requests() == std::vector<Words>{{hello, 1, 0, 0, 0, 0, 0, 0},
                                                  {grant_map, 0, 40, 3, 1, 0, 0, 0},
                                                  {grant_unmap, 77, 0, 0, 0, 0, 0, 0}});
}

TEST_CASE("what the hypervisor outlives is still let go") {
    const FileDescriptor memory = pages(1, 0);
    FakeBroker broker([&](const Words& request) -> Answer {
        if (request[0] == grant_share) return {{0, 8, 0, 0}, {memory.get()}};
        return {{0, 0, 0, 0}, {}};
    });
    auto hypervisor = std::make_unique<LocalHypervisor>(broker.directory(), 1);
    auto shared = hypervisor->share(0, 1, false);
    CHECK(shared->first_ref() == 8);
    hypervisor.reset();
    shared.reset();
    CHECK(broker.requests().back() == Words{grant_unshare, 8, 0, 0, 0, 0, 0, 0});
}

TEST_CASE("a refusal carries the broker's errno and the connection goes on") {
    FakeBroker broker([](const Words&) -> Answer { return {{EACCES, 0, 0, 0}, {}}; });
    LocalHypervisor hypervisor(broker.directory(), 1);
    for (int i = 0; i < 3; ++i) CHECK(error_of([&] { (void)hypervisor.map(0, 8, 1, true); }) == EACCES);
    CHECK(error_of([&] { (void)hypervisor.share(0, 1, true); }) == EACCES);
}

TEST_CASE("counts that no grant has are refused before the broker is asked") {
    FakeBroker broker([](const Words&) -> Answer { return {{0, 0, 0, 0}, {}}; });
    LocalHypervisor hypervisor(broker.directory(), 1);
    for (const std::size_t count :
         {std::size_t{0}, (std::size_t{1} << 20) + 1, std::size_t{1} << 32, ~std::size_t{0}}) {
        CHECK(error_of([&] { (void)hypervisor.map(0, 8, count, true); }) == EINVAL);
        CHECK(error_of([&] { (void)hypervisor.share(0, count, true); }) == EINVAL);
    }
    CHECK(broker.requests().size() == 1);
}

TEST_CASE("a map reply that does not add up maps nothing and is let go") {
    const FileDescriptor memory = pages(4, 0);
    const int fd = memory.get();
    const std::vector<Answer> lies{
        {{0, 5, 1, 0, 0, 2}, {}},              // no descriptor
        {{0, 5, 1, 0, 0, 2}, {fd, fd}},        // one too many
        {{0, 5, 1, 0, 0, 1}, {fd}},            // too few pages
        {{0, 5, 1, 0, 0, 3}, {fd}},            // too many
        {{0, 5, 2, 0, 0, 1, 0, 2}, {fd, fd}},  // too many in the second run
        {{0, 5, 1, 0, 0, 0xFFFFFFFF}, {fd}},   // far too many
        {{0, 5, 0, 0}, {}},                    // none at all
    };
    for (const Answer& lie : lies) {
        FakeBroker broker(
            [&](const Words& request) -> Answer { return request[0] == grant_map ? lie : Answer{{0, 0, 0, 0}, {}}; });
        LocalHypervisor hypervisor(broker.directory(), 1);
        CHECK(error_of([&] { (void)hypervisor.map(0, 8, 2, true); }) == EPROTO);
        CHECK(broker.requests().back() == Words{grant_unmap, 5, 0, 0, 0, 0, 0, 0});
    }
}

TEST_CASE("a reply of the wrong size ends the connection for good") {
    for (const Words& reply : {Words{0}, Words{0, 0, 0}, Words{0, 0, 0, 0, 0}, Words{0, 0, 1, 0},
                               Words{0, 0, 0xFFFFFFFF, 0}, Words(4 + 2 * 65, 65)}) {
        FakeBroker broker([&](const Words&) -> Answer { return {reply, {}}; });
        LocalHypervisor hypervisor(broker.directory(), 1);
        CHECK(error_of([&] { (void)hypervisor.share(0, 1, true); }) == EPROTO);
        CHECK(error_of([&] { (void)hypervisor.share(0, 1, true); }) == ENOTCONN);
    }
}

TEST_CASE("a broker that hangs up means an error at every call and quiet destructors") {
    const FileDescriptor memory = pages(1, 'x');
    FakeBroker broker([&](const Words& request) -> Answer {
        if (request[0] == grant_share) return {{0, 8, 0, 0}, {memory.get()}};
        return {};
    });
    LocalHypervisor hypervisor(broker.directory(), 1);
    auto shared = hypervisor.share(0, 1, true);
    const auto channels = hypervisor.open_event_channels();
    CHECK(error_of([&] { (void)channels->alloc_unbound(0); }) == ENOTCONN);
    CHECK(error_of([&] { (void)hypervisor.share(0, 1, true); }) == ENOTCONN);
    CHECK(shared->bytes()[0] == std::byte{'x'});
    shared.reset();
}

TEST_CASE("a port is pending once, masked until unmasked, and silent after its peer has shut it down") {
    std::array<int, 2> ends{};
    REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, ends.data()) == 0);
    const FileDescriptor ours(ends[0]);
    const FileDescriptor peer(ends[1]);
    FakeBroker broker([&](const Words& request) -> Answer {
        if (request[0] == alloc_unbound) return {{0, 6, 0, 0}, {ours.get()}};
        return {{0, 0, 0, 0}, {}};
    });
    LocalHypervisor hypervisor(broker.directory(), 1);
    {
        const auto channels = hypervisor.open_event_channels();
        REQUIRE(channels->alloc_unbound(0) == 6);
        CHECK_FALSE(channels->pending());
        REQUIRE(send(peer.get(), "xyz", 3, 0) == 3);
        CHECK(readable(channels->fd()));
        CHECK(channels->pending() == 6);
        REQUIRE(send(peer.get(), "x", 1, 0) == 1);
        CHECK_FALSE(readable(channels->fd()));
        CHECK_FALSE(channels->pending());
        channels->unmask(6);
        CHECK(channels->pending() == 6);
        channels->unmask(6);
        CHECK_FALSE(readable(channels->fd()));

        for (int i = 0; i < 100'000; ++i) channels->notify(6);  // nobody reads, and nobody waits
        CHECK(readable(peer.get()));

        REQUIRE(shutdown(peer.get(), SHUT_RDWR) == 0);
        CHECK(channels->pending() == 6);
        channels->unmask(6);
        CHECK_FALSE(readable(channels->fd()));
        channels->notify(6);
        channels->notify(7);
        channels->unmask(7);
        channels->unbind(7);
    }
    CHECK(broker.requests().back() == Words{evtchn_close, 6, 0, 0, 0, 0, 0, 0});
}

TEST_CASE("a port reply without its socket is given back") {
    FakeBroker broker([](const Words&) -> Answer { return {{0, 6, 0, 0}, {}}; });
    LocalHypervisor hypervisor(broker.directory(), 1);
    const auto channels = hypervisor.open_event_channels();
    CHECK(error_of([&] { (void)channels->alloc_unbound(0); }) == EPROTO);
    CHECK(broker.requests().back() == Words{evtchn_close, 6, 0, 0, 0, 0, 0, 0});
    channels->unbind(6);
    CHECK(broker.requests().size() == 3);
}

TEST_CASE("a machine that is not there is an error that says so") {
    CHECK(error_of([] { const LocalHypervisor none("/nonexistent", 1); }) == ENOENT);
    CHECK(error_of([] { const LocalHypervisor none(std::string(200, 'x'), 1); }) == ENAMETOOLONG);
    FakeBroker broker([](const Words&) -> Answer { return {}; });
    CHECK(error_of([&] { const LocalHypervisor none(broker.directory(), 2); }) == ENOENT);
    const LocalHypervisor used(broker.directory(), 1);
}
