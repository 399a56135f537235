#include "local_broker.hpp"

#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstddef>
#include <cstring>
#include <utility>

#include "errors.hpp"

namespace cpp_ring {
namespace {

constexpr std::size_t max_arguments = 7;
constexpr std::size_t max_runs = 64;
constexpr timeval patience{.tv_sec = 10, .tv_usec = 0};

struct Request {
    std::uint32_t op = 0;
    std::array<std::uint32_t, max_arguments> arguments{};
};
static_assert(sizeof(Request) == 32);

struct Reply {
    std::uint32_t error = 0;
    std::uint32_t value = 0;
    std::uint32_t count = 0;
    std::uint32_t reserved = 0;
    std::array<LocalRun, max_runs> runs{};
};
static_assert(sizeof(LocalRun) == 8 && offsetof(Reply, runs) == 16);

std::string socket_path(const std::string& directory, DomId domid) {
    return directory + "/dom" + std::to_string(domid) + "/hypervisor";
}

FileDescriptor connect_to(const std::string& directory, DomId domid) {
    const std::string path = socket_path(directory, domid);
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path) throw HostError(ENAMETOOLONG, path);
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);

    FileDescriptor fd(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    if (!fd) throw HostError(errno, "cannot create a socket");
    for (const int option : {SO_RCVTIMEO, SO_SNDTIMEO}) {
        if (::setsockopt(fd.get(), SOL_SOCKET, option, &patience, sizeof patience) != 0)
            throw HostError(errno, "cannot set the time-out of a socket");
    }
    if (::connect(fd.get(), reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
        const int error = errno;
        if (error == ENOENT && ::access(socket_path(directory, 0).c_str(), F_OK) == 0)
            throw HostError(ENOENT, "no such domain " + std::to_string(domid) + " on this local machine, " + directory);
        if (error == ENOENT) throw HostError(ENOENT, "no local machine at " + directory + "; start one");
        if (error == ECONNREFUSED) throw HostError(error, "the broker of " + directory + " has died; start it again");
        throw HostError(error, "cannot connect to " + path);
    }
    return fd;
}

std::vector<FileDescriptor> take_descriptors(const msghdr& message) {
    std::vector<FileDescriptor> fds;
    // CMSG_NXTHDR wants a pointer to what it does not change.
    auto* const header = const_cast<msghdr*>(&message);
    for (cmsghdr* part = CMSG_FIRSTHDR(header); part != nullptr; part = CMSG_NXTHDR(header, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
        const std::size_t count = (part->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        for (std::size_t i = 0; i < count; ++i) {
            int fd = -1;
            std::memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
            fds.emplace_back(fd);
        }
    }
    return fds;
}

}  // namespace

LocalBroker::LocalBroker(const std::string& directory, DomId domid) : socket_(connect_to(directory, domid)) {
    call(LocalOp::hello, {local_version}, "cannot use the broker of " + directory);
}

LocalReply LocalBroker::call(LocalOp op, std::initializer_list<std::uint32_t> arguments, const std::string& what) {
    LocalReply reply;
    if (const int error = exchange(op, arguments, reply); error != 0) throw HostError(error, what);
    return reply;
}

void LocalBroker::tell(LocalOp op, std::uint32_t argument) noexcept {
    try {
        LocalReply reply;
        [[maybe_unused]] const int error = exchange(op, {argument}, reply);
    } catch (...) {  // out of memory: the broker still has what is let go of here, until this process ends
        return;
    }
}

int LocalBroker::exchange(LocalOp op, std::initializer_list<std::uint32_t> arguments, LocalReply& reply) {
    Request request;
    request.op = static_cast<std::uint32_t>(op);
    std::copy(arguments.begin(), arguments.end(), request.arguments.begin());
    Reply answer;
    alignas(cmsghdr) std::array<std::byte, CMSG_SPACE(max_runs * sizeof(int))> control{};
    iovec buffer{&answer, sizeof answer};
    msghdr message{};
    message.msg_iov = &buffer;
    message.msg_iovlen = 1;
    message.msg_control = control.data();
    message.msg_controllen = control.size();

    const std::lock_guard lock(mutex_);
    if (!socket_) return ENOTCONN;
    int error = 0;
    if (::send(socket_.get(), &request, sizeof request, MSG_NOSIGNAL) != sizeof request) error = errno;
    ssize_t got = 0;
    while (error == 0 && (got = ::recvmsg(socket_.get(), &message, MSG_CMSG_CLOEXEC)) < 0) {
        if (errno != EINTR) error = errno;
    }
    if (error == 0) {
        reply.fds = take_descriptors(message);
        const std::size_t expected = offsetof(Reply, runs) + std::size_t{answer.count} * sizeof(LocalRun);
        if (got == 0)
            error = ENOTCONN;
        else if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) != 0 || static_cast<std::size_t>(got) != expected)
            error = EPROTO;
    }
    if (error != 0) {
        // What the broker did or will do is not known; closing makes it take everything back.
        socket_ = FileDescriptor();
        return error == EAGAIN ? ETIMEDOUT : error == EPIPE || error == ECONNRESET ? ENOTCONN : error;
    }
    reply.value = answer.value;
    reply.runs.assign(answer.runs.begin(), answer.runs.begin() + answer.count);
    return static_cast<int>(answer.error);
}

}  // namespace cpp_ring
