// An emulator dies and another comes, a driver resets its device, a device is given up: each request is answered once,
// or is the driver's to take back.
#include "guest.hpp"

namespace guest_module {
namespace {

const std::vector<Piece> in_and_out{{600, false}, {700, true}};

}  // namespace

TEST_CASE("after a restart the unanswered go out again, first and in their order, and the answered do not") {
    for (const bool indirect : {false, true}) {
        Queue queue({large_pool, 32, true, false});
        std::vector<std::uint16_t> sent;
        for (int i = 0; i < 6; ++i) sent.push_back(queue.add(in_and_out, indirect));
        const auto chains = queue.device.all();
        queue.device.answer(chains[4], 1, 700);
        queue.interrupt();
        CHECK(heads(queue.driver.answers()) == std::vector{sent[4]});
        queue.device.answer(chains[1], 2, 10);  // and dies before it says so

        queue.disconnect();
        CHECK(shim_events.calls == 2);
        CHECK(shim_events.process_calls == 1);
        const auto answers = queue.driver.answers();
        REQUIRE(heads(answers) == std::vector{sent[1]});
        CHECK(answers[0].holds(2));
        CHECK(answers[0].length == 10);
        CHECK(queue.used_units() == 0);

        std::vector<std::uint16_t> expected{sent[0], sent[2], sent[3], sent[5]};
        expected.push_back(queue.add(in_and_out, indirect));
        expected.push_back(queue.add(in_and_out, !indirect));
        CHECK(module_running(queue.get()) == false);
        const auto kicks = shim_events.kicks;
        queue.connect();
        CHECK(shim_events.kicks == kicks + 1);
        const auto again = queue.device.all();
        CHECK(heads(again) == expected);
        for (const Chain& chain : again) {
            CHECK(chain.content() == queue.driver.request(chain.head).content(false));
            queue.device.answer(chain, 3, 700);
        }
        queue.interrupt();
        for (const Answer& answer : queue.driver.answers()) CHECK(answer.holds(3));
        CHECK(queue.driver.outstanding() == 0);
        CHECK(queue.used_units() == 0);
    }
}

TEST_CASE("what waited for the pool comes after what was published, again and again") {
    Queue queue({small_pool, 32, true, false});
    std::vector<std::uint16_t> sent;
    for (int i = 0; i < 9; ++i) sent.push_back(queue.add({{3072, false}, {3072, true}}));
    for (int restart = 0; restart < 5; ++restart) {
        const auto chains = queue.device.all();
        REQUIRE(heads(chains) == std::vector(sent.begin(), sent.begin() + 2));
        if (restart % 2 != 0) {
            queue.device.answer(chains[1], 1, 5);
            sent.erase(sent.begin() + 1);
        }
        queue.disconnect();
        queue.connect();
    }
}

TEST_CASE("a chain is copied anew: what a dying backend did to the arena does not matter") {
    Queue queue({small_pool, 8, true, false});
    const auto head = queue.add(in_and_out, true);
    const auto pool = module_pool_of(queue.get());
    std::fill_n(pool.memory, std::size_t{pool.units} * module_unit(), std::uint8_t{0x66});
    queue.disconnect();
    queue.connect();
    const auto chain = queue.device.next();
    REQUIRE(chain);
    CHECK(chain->content() == queue.driver.request(head).content(false));
}

TEST_CASE("what is left of an earlier life is not in the ring when the device begins anew") {
    Queue queue;
    for (int i = 0; i < 3; ++i) queue.device.use(queue.add(in_and_out), 0);
    queue.interrupt();
    CHECK(queue.driver.answers().size() == 3);
    queue.disconnect();
    module_prepare(queue.get());
    const module_ring ring = module_device_ring(queue.get());
    CHECK(ring.avail[1] == 0);
    CHECK(ring.used[1] == 0);
    CHECK(*ring.used_event == 0);
    CHECK(ring.used_entries[0].id == 0);
    queue.device.adopt(queue.get());
    module_start(queue.get());
    CHECK(!queue.device.next());
    queue.interrupt();
    CHECK(queue.driver.answers().empty());
    CHECK(!module_lied(queue.get()));
}

TEST_CASE("while the device is away nothing is published, and its ring is not looked at") {
    Queue queue;
    const auto first = queue.add(in_and_out);
    queue.disconnect();
    const auto kicks = shim_events.kicks;
    const auto available = queue.device.ring.avail[1];
    const auto second = queue.add(in_and_out);
    queue.device.use(first, 0);
    queue.interrupt();
    CHECK(queue.driver.answers().empty());
    CHECK(queue.device.ring.avail[1] == available);
    CHECK(shim_events.kicks == kicks);
    queue.connect();
    CHECK(heads(queue.device.all()) == std::vector{first, second});
}

TEST_CASE("what the driver resets is given back to nobody") {
    Queue queue({small_pool, 8, true, false});
    const auto first = queue.add({{16 * 1024, true}});
    queue.add(in_and_out);
    REQUIRE(heads(queue.device.all()) == std::vector{first});
    queue.device.use(first, 0);
    module_forget(queue.get());
    CHECK(module_queue_is_empty(queue.get()));
    CHECK(queue.used_units() == 0);
    queue.interrupt();
    queue.disconnect();
    CHECK(queue.driver.answers().empty());
    CHECK(shim_events.calls == 0);
    queue.connect();
    CHECK(!queue.device.next());
}

TEST_CASE("RING_RESET: the queue begins anew with another ring, and nothing of the first is left") {
    Queue queue;
    queue.device.use(queue.add(in_and_out), 0);
    queue.interrupt();
    CHECK(queue.driver.answers().size() == 1);
    const auto old = queue.add(in_and_out);
    queue.device.use(old, 700);
    REQUIRE(module_ring_reset(queue.get()));
    // Between the two halves there is no ring of the driver's.
    const auto calls = shim_events.calls;
    queue.notify();
    queue.interrupt();
    CHECK(shim_events.calls == calls);
    queue.driver.take_back();
    REQUIRE(module_ring_enable(queue.get()));
    queue.driver.adopt(queue.get());
    queue.device.adopt(queue.get());
    CHECK(!queue.device.next());
    const auto head = queue.add(in_and_out);
    const auto chain = queue.device.next();
    REQUIRE(chain);
    CHECK(chain->head == head);
    queue.device.answer(*chain, 5, 700);
    queue.interrupt();
    CHECK(queue.driver.answers().at(0).holds(5));
}

TEST_CASE("a device that is given up fails every request, those in flight first, and all that come later") {
    for (const bool restarted : {false, true}) {
        Queue queue({small_pool, 16, true, false});
        std::vector<std::uint16_t> sent;
        for (int i = 0; i < 4; ++i) sent.push_back(queue.add({{3072, false}, {3072, true}}));
        const auto chains = queue.device.all();
        CHECK(chains.size() == 2);
        for (const Chain& chain : chains) queue.device.answer(chain, 1, 1000);
        if (restarted) {
            queue.interrupt();
            CHECK(queue.driver.answers().size() == 2);
            sent.erase(sent.begin(), sent.begin() + 2);
        }
        const auto calls = shim_events.calls;
        module_give_up(queue.get());
        // Also what the device may just have done is not acknowledged.
        const auto answers = queue.driver.answers();
        CHECK(heads(answers) == sent);
        for (const Answer& answer : answers) CHECK(answer.failed());
        CHECK(shim_events.calls == calls + 1);
        CHECK(queue.used_units() == 0);
        module_fire_timer(queue.get());
        CHECK(module_is_broken(queue.get()));

        // One that was on its way when the queue broke: its notification passed the check, or did not.
        for (const bool in_time : {true, false}) {
            const auto before = shim_events.calls;
            queue.driver.add(in_and_out);
            if (in_time)
                module_notify_unchecked(queue.get());
            else
                queue.notify();
            CHECK(module_is_broken(queue.get()) == !in_time);
            module_fire_timer(queue.get());
            CHECK(shim_events.calls == before);
            module_call_late(queue.get());
            CHECK(shim_events.calls == before + 1);
            CHECK(queue.driver.answers().at(0).failed());
            module_fire_timer(queue.get());
            CHECK(module_is_broken(queue.get()));
            CHECK(module_queue_is_empty(queue.get()));
        }
        CHECK(shim_events.process_calls == 3);
    }
}

TEST_CASE("a broken queue's driver is called for what failed, and the queue is broken afterwards") {
    Queue queue;
    queue.add(in_and_out);
    module_break(queue.get());
    module_give_up(queue.get());
    CHECK(shim_events.calls == 1);
    CHECK(queue.driver.answers().at(0).failed());
    module_fire_timer(queue.get());
    CHECK(module_is_broken(queue.get()));
}

// In a broken queue a driver finds nothing, though its ring says that there is something.
TEST_CASE("a queue is not broken while its driver has not taken what came back") {
    for (const bool indirect : {false, true}) {
        Queue queue({large_pool, 32, true, false});
        const auto answered = queue.add(in_and_out, indirect);
        queue.add(in_and_out, indirect);
        queue.device.use(answered, 700);
        queue.interrupt();
        module_give_up(queue.get());
        for (int look = 0; look < 3; ++look) {
            CHECK(!module_is_broken(queue.get()));
            module_fire_timer(queue.get());
        }
        CHECK(queue.driver.answers().size() == 2);
        // It goes on using the queue, and may not have said so yet.
        queue.driver.add(in_and_out, indirect);
        module_fire_timer(queue.get());
        CHECK(!module_is_broken(queue.get()));
        const auto calls = shim_events.calls;
        module_call_late(queue.get());
        CHECK(shim_events.calls == calls + 1);
        CHECK(queue.driver.answers().at(0).failed());
        module_fire_timer(queue.get());
        CHECK(module_is_broken(queue.get()));
    }
}

TEST_CASE("a driver that never takes what came back is looked at seldom in the end") {
    Queue queue;
    queue.add(in_and_out);
    module_give_up(queue.get());
    const auto start = shim_events.now;
    for (int look = 0; look < 110; ++look) module_fire_timer(queue.get());
    CHECK(!module_is_broken(queue.get()));
    CHECK(shim_events.now - start > 5'000'000'000);
    queue.add(in_and_out);
    CHECK(queue.driver.answers().size() == 2);
    module_fire_timer(queue.get());
    CHECK(module_is_broken(queue.get()));
}

// Its driver takes back what is in the ring, and virtio_ring counts the index down for that.
TEST_CASE("the ring of a queue that was reset is not looked at any longer") {
    for (const bool dead_first : {false, true}) {
        Queue queue;
        for (int i = 0; i < 3; ++i) queue.add({{100, true}});
        if (dead_first) module_give_up(queue.get());
        module_forget(queue.get());
        queue.driver.detach_unused();
        queue.interrupt();
        module_give_up(queue.get());
        module_fire_timer(queue.get());
        queue.notify();
        CHECK(module_is_broken(queue.get()));
        CHECK(module_queue_is_empty(queue.get()));
        CHECK(queue.driver.answers().empty());
    }
}

TEST_CASE("buffers for what comes in stay with a device that is given up, and what else is in its queue does not") {
    const std::vector<Piece> buffer{{12, true}, {1500, true}};
    Queue queue({network_card, 16, true, false});
    for (int i = 0; i < 3; ++i) queue.add(buffer);
    queue.device.use(queue.device.next()->head, 60);
    queue.interrupt();
    const auto sent = queue.add({{12, false}, {60, false}});
    const auto calls = shim_events.calls;
    module_give_up(queue.get());
    CHECK(shim_events.calls == calls + 1);
    CHECK(!module_is_broken(queue.get()));
    const auto answers = queue.driver.answers();
    CHECK(answers.size() == 2);
    CHECK(answers.at(1).head == sent);
    queue.add(buffer);  // in place of the one that came back
    CHECK(queue.driver.answers().empty());
    module_fire_timer(queue.get());
    CHECK(module_is_broken(queue.get()));
    CHECK(queue.driver.answers().empty());
    CHECK(queue.driver.outstanding() == 3);
    CHECK(shim_events.calls == calls + 1);
    CHECK(queue.used_units() == 0);
}

TEST_CASE("the end of a queue leaves nothing of what was in it") {
    for (const bool polled : {false, true}) {
        Queue queue({small_pool, 8, true, polled});
        const auto first = queue.add({{16 * 1024, true}});
        queue.add(in_and_out);
        queue.device.use(first, 0);
        CHECK(module_timer_armed(queue.get()) == polled);
        module_del(queue.get());
        CHECK(!module_timer_armed(queue.get()));
        CHECK(module_queue_is_empty(queue.get()));
        CHECK(queue.used_units() == 0);
        CHECK(shim_events.granted_areas == 1);  // the arena
        queue.interrupt();
        module_call_late(queue.get());
        CHECK(shim_events.calls == 0);
    }
}

}  // namespace guest_module
