// A queue whose driver has no callback: it looks for its answer in a loop, so a timer looks for it in the ring of the
// device.
#include "guest.hpp"

namespace guest_module {
namespace {

constexpr std::int64_t ms = 1'000'000;
constexpr std::int64_t timeout = 2000 * ms;  // vmsgx_timeout_ms
const std::vector<Piece> command{{100, false}, {10, true}};
constexpr module_options polled{small_pool, 8, true, true};

}  // namespace

TEST_CASE("a queue with a callback is not looked at by a timer") {
    Queue queue;
    queue.add(command);
    CHECK(!module_timer_armed(queue.get()));
    CHECK(shim_events.timer_starts == 0);
}

TEST_CASE("the timer finds the answer, and runs only while there is a request without one") {
    Queue queue(polled);
    queue.add(command);
    queue.add(command);
    REQUIRE(module_timer_armed(queue.get()));
    const auto start = shim_events.now;
    module_fire_timer(queue.get());
    CHECK(shim_events.now - start == ms);
    CHECK(queue.driver.answers().empty());
    const auto chains = queue.device.all();
    queue.device.answer(chains[1], 1, 10);
    module_fire_timer(queue.get());
    CHECK(queue.driver.answers().at(0).holds(1));
    REQUIRE(module_timer_armed(queue.get()));
    queue.device.answer(chains[0], 2, 10);
    module_fire_timer(queue.get());
    CHECK(queue.driver.answers().at(0).holds(2));
    CHECK(!module_timer_armed(queue.get()));
    CHECK(!module_late(queue.get()));
    CHECK(shim_events.calls == 0);
    queue.add(command);
    CHECK(module_timer_armed(queue.get()));
}

TEST_CASE("an interrupt is as good as the timer") {
    Queue queue(polled);
    queue.device.use(queue.add(command), 0);
    queue.interrupt();
    CHECK(queue.driver.answers().size() == 1);
    module_fire_timer(queue.get());
    CHECK(!module_timer_armed(queue.get()));
}

TEST_CASE("the timer carries chains that had to wait for the pool") {
    Queue queue(polled);
    const auto first = queue.add({{16 * 1024, true}});
    const auto second = queue.add(command);
    queue.device.use(first, 0);
    module_fire_timer(queue.get());
    CHECK(queue.driver.answers().size() == 1);
    CHECK(heads(queue.device.all()) == std::vector{first, second});
    CHECK(module_timer_armed(queue.get()));
}

TEST_CASE("at the deadline every request fails, and only a backend that lives is late") {
    for (const bool alive : {false, true}) {
        Queue queue(polled);
        const auto first = queue.add({{16 * 1024, true}});
        const auto second = queue.add(command);
        const auto deadline = shim_events.now + timeout;
        module_backend_alive(queue.get(), alive);
        const auto works = shim_events.works;
        shim_events.now = deadline;
        module_fire_timer(queue.get());
        CHECK(queue.driver.answers().empty());
        CHECK(!module_late(queue.get()));
        shim_events.now = deadline + 1;
        module_fire_timer(queue.get());
        const auto answers = queue.driver.answers();
        CHECK(heads(answers) == std::vector{first, second});
        for (const Answer& answer : answers) CHECK(answer.failed());
        CHECK(module_late(queue.get()) == alive);
        CHECK(!module_lied(queue.get()));
        CHECK(shim_events.works == works + 1);
        CHECK(!module_timer_armed(queue.get()));
        CHECK(queue.used_units() == 0);

        // What the device answers now is too late, and what comes now waits for another connection.
        queue.device.use(first, 0);
        queue.interrupt();
        CHECK(queue.driver.answers().empty());
        const auto third = queue.add(command);
        CHECK(module_timer_armed(queue.get()));
        queue.disconnect();
        queue.connect();
        CHECK(heads(queue.device.all()) == std::vector{third});
    }
}

TEST_CASE("each new request has the whole time") {
    Queue queue(polled);
    queue.add(command);
    shim_events.now += timeout;
    queue.add(command);
    shim_events.now += timeout - 2 * ms;
    module_fire_timer(queue.get());
    CHECK(queue.driver.answers().empty());
    CHECK(module_timer_armed(queue.get()));
}

TEST_CASE("an answer at the last moment counts") {
    Queue queue(polled);
    const auto head = queue.add(command);
    queue.device.use(head, 10);
    shim_events.now += 2 * timeout;
    module_fire_timer(queue.get());
    const auto answers = queue.driver.answers();
    REQUIRE(answers.size() == 1);
    CHECK(answers[0].length == 10);
    CHECK(!module_late(queue.get()));
}

TEST_CASE("a request that never got to the device fails in time, and nobody is late") {
    Queue queue(polled);
    queue.disconnect();
    queue.add(command);
    shim_events.now += timeout + 1;
    module_fire_timer(queue.get());
    CHECK(queue.driver.answers().at(0).failed());
    CHECK(!module_late(queue.get()));
}

TEST_CASE("threat 30: a lie that the timer finds fails every request at once") {
    Queue queue(polled);
    const auto first = queue.add(command);
    const auto second = queue.add(command);
    queue.device.use(first, 11);
    const auto works = shim_events.works;
    module_fire_timer(queue.get());
    const auto answers = queue.driver.answers();
    CHECK(heads(answers) == std::vector{first, second});
    for (const Answer& answer : answers) CHECK(answer.failed());
    CHECK(module_lied(queue.get()));
    CHECK(!module_late(queue.get()));
    CHECK(!module_running(queue.get()));
    CHECK(shim_events.works == works + 1);
    CHECK(!module_timer_armed(queue.get()));
}

// In a queue with a callback, what the device can only write to is a buffer that nobody waits for.
TEST_CASE("a polled request that the device only writes to fails at its deadline, too") {
    Queue queue({large_pool, 8, true, true});
    queue.add({{10, true}});
    shim_events.now += timeout + ms;
    module_fire_timer(queue.get());
    CHECK(queue.driver.answers().at(0).failed());
    CHECK(!module_timer_armed(queue.get()));
    CHECK(module_late(queue.get()));
}

TEST_CASE("a polled request of a device that is given up fails at once") {
    Queue queue(polled);
    queue.add(command);
    module_give_up(queue.get());
    queue.add(command);
    const auto answers = queue.driver.answers();
    CHECK(answers.size() == 2);
    for (const Answer& answer : answers) CHECK(answer.failed());
    module_fire_timer(queue.get());
    CHECK(module_is_broken(queue.get()));
}

}  // namespace guest_module
