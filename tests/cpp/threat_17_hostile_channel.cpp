// Threat 17, through the pages and with real grants: a frontend that writes anything ends with its own device broken
// and a named error, while another device of the same machine goes on.
#include <doctest/doctest.h>

#include <cstring>

#include "loopback_device.hpp"
#include "message_fuzz.hpp"

namespace cpp_ring::test {

TEST_CASE("threat 17: random messages to a backend with real grants: named errors, memory within the budget") {
    EchoModel model;
    DeviceShape shape;
    shape.map_budget_pages = 24;
    LoopbackDevice device(model, shape);
    MessageFuzz fuzz(170);
    std::size_t wrong = 0;
    std::size_t most = 0;
    for (int i = 0; i < 300'000; ++i) {
        Message answer = stale_message();
        const Message request = fuzz.next();
        if (const GuestError error = device.backend.answer(request, answer))
            wrong += !closes_channel(error.code);
        else
            wrong += answer.header().msg_size != answer.size();
        const std::size_t mapped = device.backend.mapped_pages();
        most = std::max(most, mapped);
        wrong += mapped > shape.map_budget_pages || mapped != device.back.mapped_pages();
        const std::uint32_t status = device.backend.device().status();
        const bool runs = (status & status_driver_ok) != 0 && (status & status_needs_reset) == 0;
        wrong += !runs && mapped != 0;
    }
    CHECK(wrong == 0);
    CHECK(most > 0);
    CHECK(model.activations > 100);
    device.backend.disconnect();
    CHECK(device.back.mappings() == 0);
}

TEST_CASE("threat 17: any bytes in the frontend's page: an answer, or a broken channel with a name") {
    EchoModel model;
    LoopbackDevice device(model);
    MessageFuzz fuzz(171);
    std::size_t wrong = 0;
    std::size_t answered = 0;
    std::size_t broken = 0;
    std::size_t refused = 0;
    for (int i = 0; i < 5'000; ++i) {
        RawFrontend frontend(device.front);
        if (fuzz.below(2) == 0) {
            // Noise everywhere, a header that passes more often than not.
            for (std::byte& value : frontend.fe_page->bytes().first(512))
                value = static_cast<std::byte>(fuzz.below(256));
            if (fuzz.below(8) != 0) frontend.write_header();
            if (fuzz.below(4) != 0) frontend.fe->request.seq = fuzz.below(3);
        } else {
            const Message message = fuzz.next();
            frontend.publish(1, {message.data(), message.size()}, static_cast<std::uint32_t>(message.size()));
        }
        // It serves what is there, then finds that nobody lives there.
        frontend.fe->header.live = VMSG_XEN_DEAD;
        if (device.backend.connect(frontend.address())) {
            ++refused;
            continue;
        }
        const Exit exit = device.backend.run();
        if (exit == Exit::broken) {
            ++broken;
            const std::uint32_t code = frontend.error();
            wrong +=
                !closes_channel(static_cast<vmsg_xen_error>(code)) || std::strcmp(error_name(code), "unknown") == 0;
            wrong += frontend.answered() != 0;
        } else {
            wrong += exit != Exit::frontend_gone;
            answered += frontend.answered();
        }
        wrong += frontend.backend_alive() || device.back.mappings() != 0 || device.back.ports() != 0;
    }
    CHECK(wrong == 0);
    CHECK(answered > 1000);
    CHECK(broken > 1000);
    CHECK(refused > 100);
}

TEST_SUITE("threads") {
    TEST_CASE("threat 17: a hostile frontend breaks its own device only") {
        EchoModel model;
        LoopbackDevice good(model);
        good.connect();
        BackendThread good_thread(good.backend);
        good.start();
        EchoModel victim;
        LoopbackDevice bad(victim);
        MessageFuzz fuzz(172);
        std::size_t wrong = 0;
        for (std::uint64_t i = 0; i < (thread_sanitizer ? 50U : 300U); ++i) {
            RawFrontend frontend(bad.front);
            REQUIRE(!bad.backend.connect(frontend.address()));
            BackendThread thread(bad.backend);
            const auto deadline = Clock::now() + for_ever;
            for (std::uint32_t seq = 1; frontend.backend_alive(); ++seq) {
                const Message message = fuzz.next();
                frontend.publish(seq, {message.data(), message.size()}, static_cast<std::uint32_t>(message.size()));
                while (frontend.backend_alive() && frontend.answered() != seq && Clock::now() < deadline)
                    std::this_thread::yield();
                REQUIRE(Clock::now() < deadline);
            }
            wrong += thread.join() != Exit::broken;
            wrong += bad.back.mappings();
            good.echo(i & 1, i);
            good.ask(VMSG_GET_DEVICE_STATUS);
        }
        CHECK(wrong == 0);
        CHECK(good.frontend->ring().error().code == 0);
        CHECK(good_thread.stop() == Exit::stopped);
    }
}

}  // namespace cpp_ring::test
