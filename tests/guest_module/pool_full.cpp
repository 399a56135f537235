// The pool decides how much is in flight: what does not fit waits in its order, what never fits fails alone.
#include "guest.hpp"

namespace guest_module {
namespace {

// Of 32 units, 12.
const std::vector<Piece> third{{3072, false}, {3072, true}};

}  // namespace

TEST_CASE("chains wait for room in the pool in their order, and go when there is some") {
    Queue queue({small_pool, 16, true, false});
    std::vector<std::uint16_t> sent;
    for (int i = 0; i < 6; ++i) sent.push_back(queue.add(third));
    std::vector<std::uint16_t> arrived;
    for (int answered = 0; answered < 6; ++answered) {
        const auto chains = queue.device.all();
        // Two fit, and each answer makes room for one.
        CHECK(chains.size() == (answered == 0 ? 2U : answered < 5 ? 1U : 0U));
        for (const Chain& chain : chains) {
            CHECK(chain.content() == queue.driver.request(chain.head).content(false));
            arrived.push_back(chain.head);
        }
        queue.device.use(arrived[static_cast<std::size_t>(answered)], 0);
        queue.interrupt();
        CHECK(queue.driver.answers().size() == 1);
    }
    CHECK(arrived == sent);
    CHECK(queue.used_units() == 0);
}

TEST_CASE("a small request does not overtake a large one that waits") {
    Queue queue({small_pool, 16, true, false});
    const auto first = queue.add({{12 * 1024, true}});
    const auto large = queue.add({{8 * 1024, true}});
    const auto small = queue.add({{1, true}});
    CHECK(heads(queue.device.all()) == std::vector{first});
    queue.device.use(first, 0);
    queue.interrupt();
    CHECK(heads(queue.device.all()) == std::vector{large, small});
}

TEST_CASE("every queue has a pool, and all of a device together have 16 MiB at most") {
    for (const std::uint32_t device_id : {small_pool, 1U, 3U, 63U})
        for (unsigned queues = 0; queues < 200; ++queues) {
            const unsigned pages = vmsgx_pool_pages(device_id, queues);
            CHECK(pages >= 1);
            CHECK(pages * queues <= 4096);
        }
}

TEST_CASE("the largest request of a disk fits into a queue's pool, however many queues there are") {
    constexpr std::uint32_t disk = 2;
    constexpr unsigned segments = 254, header_and_status = 1;
    for (unsigned queues = 0; queues < 200; ++queues) {
        const unsigned pages = vmsgx_pool_pages(disk, queues);
        CHECK(pages >= segments + header_and_status);
        CHECK((queues > 16 || pages * queues <= 4096));
    }
}

TEST_CASE("what is in the pool at once does not overlap") {
    Queue queue({small_pool, 16, true, false});
    std::vector<Chain> out;
    std::uint8_t value = 1;
    for (int round = 0; round < 2000; ++round) {
        if (queue.driver.free_descriptors() >= 2)
            queue.add({{1 + static_cast<std::uint32_t>(round * 7 % 2000), true},
                       {1 + static_cast<std::uint32_t>(round * 13 % 900), true}},
                      round % 3 == 0);
        for (Chain& chain : queue.device.all()) out.push_back(std::move(chain));
        if (out.empty()) continue;
        const auto chosen = out.begin() + round % static_cast<int>(out.size());
        for (const Chain& chain : out)
            if (chain.head != chosen->head) chain.write(0, 5000);
        const std::uint32_t length = queue.driver.request(chosen->head).writable();
        // What the device writes for others afterwards is not seen here.
        queue.device.answer(*chosen, ++value, length);
        for (const Chain& chain : out)
            if (chain.head != chosen->head) chain.write(0, 5000);
        out.erase(chosen);
        queue.interrupt();
        const auto answers = queue.driver.answers();
        REQUIRE(answers.size() == 1);
        REQUIRE(answers[0].holds(value));
    }
}

TEST_CASE("a request of exactly the pool's size goes through") {
    Queue queue({small_pool, 16, true, false});
    queue.add({{16 * 1024, true}});
    const auto chain = queue.device.next();
    REQUIRE(chain);
    CHECK(queue.used_units() == 32);
    queue.device.answer(*chain, 3, 16 * 1024);
    queue.interrupt();
    CHECK(queue.driver.answers().at(0).holds(3));
}

TEST_CASE("a request larger than the pool fails with a spoiled last byte, and the others go on") {
    for (const bool indirect : {false, true}) {
        Queue queue({small_pool, 16, true, false});
        const auto before = queue.add({{10, true}});
        const auto works = shim_events.works;
        const auto large = queue.add({{16, false}, {16 * 1024, true}, {1, true}}, indirect);
        const auto after = queue.add({{10, true}});
        CHECK(heads(queue.device.all()) == std::vector{before, after});
        const auto answers = queue.driver.answers();
        REQUIRE(heads(answers) == std::vector{large});
        CHECK(answers[0].failed());
        // The driver may hold a lock that its callback takes, so it is called from elsewhere.
        CHECK(shim_events.calls == 0);
        CHECK(shim_events.works > works);
        module_call_late(queue.get());
        CHECK(shim_events.calls == 1);
        module_call_late(queue.get());
        CHECK(shim_events.calls == 1);
        CHECK(module_running(queue.get()));
    }
}

TEST_CASE("a table in the pool counts: with it, a request may be too large") {
    Queue queue({small_pool, 16, true, false});
    const std::vector<Piece> pieces{{512, false}, {31 * 512, true}};
    const auto direct = queue.add(pieces, false);
    CHECK(heads(queue.device.all()) == std::vector{direct});
    queue.device.use(direct, 0);
    queue.interrupt();
    CHECK(queue.driver.answers().size() == 1);
    queue.add(pieces, true);
    CHECK(!queue.device.next());
    CHECK(queue.driver.answers().at(0).failed());
}

TEST_CASE("a request that fails while an interrupt makes room is announced by that interrupt") {
    Queue queue({small_pool, 16, true, false});
    const auto first = queue.add({{16 * 1024, true}});
    queue.add({{16 * 1024, true}});
    const auto large = queue.add({{16 * 1024 + 1, true}});
    REQUIRE(queue.device.all().size() == 1);
    queue.device.use(first, 0);
    queue.interrupt();
    CHECK(shim_events.calls == 1);
    CHECK(heads(queue.driver.answers()) == std::vector{first, large});
}

TEST_CASE("a request that fails and lets nothing be written is left as it is") {
    Queue queue({small_pool, 16, true, false});
    queue.add({{16 * 1024, false}, {1, false}});
    const auto answers = queue.driver.answers();
    REQUIRE(answers.size() == 1);
    CHECK(answers[0].length == 0);
    CHECK(answers[0].request.readable_is_untouched());
}

TEST_CASE("the last byte that is spoiled is the request's, whatever its pages") {
    for (const std::uint32_t size : {1U, 4096U, 4097U, 20000U}) {
        Queue queue({small_pool, 16, true, false});
        queue.add({{16 * 1024, false}, {500, true}, {size, true}, {0, true}});
        CHECK(queue.driver.answers().at(0).failed());
    }
}

}  // namespace guest_module
