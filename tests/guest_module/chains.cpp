// What is in a chain arrives at the device as the driver put it there, and comes back as the device wrote it.
#include "guest.hpp"

namespace guest_module {
namespace {

std::vector<std::uint32_t> part_sizes(const Chain& chain) {
    std::vector<std::uint32_t> sizes;
    for (const Part& part : chain.parts) sizes.push_back(part.size);
    return sizes;
}

using Sizes = std::vector<std::uint32_t>;

}  // namespace

TEST_CASE("a chain arrives as it was and comes back with what the device wrote and no more") {
    const std::vector<Piece> pieces{{16, false}, {5000, false}, {100, true}, {9000, true}, {1, true}};
    for (const bool indirect : {false, true})
        for (const bool event_idx : {false, true})
            for (const std::uint32_t written : {0U, 1U, 99U, 100U, 101U, 4195U, 9099U, 9100U, 9101U}) {
                Queue queue({large_pool, 8, event_idx, false});
                const std::uint16_t head = queue.add(pieces, indirect);
                const auto chain = queue.device.next();
                REQUIRE(chain);
                CHECK(chain->head == head);
                CHECK(chain->indirect == indirect);
                CHECK(chain->content() == queue.driver.request(head).content(false));
                queue.device.answer(*chain, 0x5a, written);
                queue.interrupt();
                CHECK(shim_events.calls == 1);
                const auto answers = queue.driver.answers();
                REQUIRE(answers.size() == 1);
                CHECK(answers[0].length == written);
                CHECK(answers[0].holds(0x5a));
                CHECK(queue.used_units() == 0);
                CHECK(module_completed(queue.get()) == 1);
            }
}

TEST_CASE("direct chains that are out at once use their own descriptors") {
    Queue queue;
    const std::vector<Piece> pieces{{10, false}, {10, true}};
    const auto first = queue.add(pieces);
    const auto second = queue.add(pieces);
    const auto chains = queue.device.all();
    queue.device.answer(chains[1], 1, 10);
    queue.interrupt();
    REQUIRE(heads(queue.driver.answers()) == std::vector{second});
    queue.add({{10, false}, {10, true}, {10, true}});
    queue.add(pieces, true);
    queue.add(pieces);
    for (const Chain& chain : queue.device.all())
        for (const std::uint16_t descriptor : chain.descriptors) {
            const auto& own = queue.driver.request(chain.head).descriptors;
            CHECK(std::ranges::find(own, descriptor) != own.end());
        }
    // Nothing of the later chains has changed the one that is still out.
    CHECK(chains[0].content() == queue.driver.request(first).content(false));
    CHECK(queue.device.ring.desc[first].next == queue.driver.request(first).descriptors[1]);
}

TEST_CASE("segments that touch in the pool are one piece for the device") {
    std::vector<Piece> pieces{{16, false}};
    pieces.insert(pieces.end(), 16, {4096, true});
    pieces.push_back({1, true});
    for (const bool indirect : {false, true}) {
        Queue queue({large_pool, 32, true, false});
        queue.add(pieces, indirect);
        const auto chain = queue.device.next();
        REQUIRE(chain);
        CHECK(part_sizes(*chain) == Sizes{16, 16 * 4096 + 1});
        queue.device.answer(*chain, 7, 16 * 4096);
        queue.interrupt();
        const auto answers = queue.driver.answers();
        REQUIRE(answers.size() == 1);
        CHECK(answers[0].holds(7));
    }
}

TEST_CASE("segments are apart where the direction changes or one ends within a unit") {
    struct Case {
        std::vector<Piece> pieces;
        Sizes expected;
    };
    const std::vector<Case> cases{
        {{{512, false}, {512, true}}, {512, 512}},
        {{{512, false}, {512, false}, {100, true}, {512, true}}, {1024, 100, 512}},
        {{{511, false}, {512, false}, {513, false}, {1, false}}, {511, 1025, 1}},
        {{{1, true}, {1, true}, {1, true}}, {1, 1, 1}},
        {{{1024, false}, {24, false}, {2, true}}, {1048, 2}},
    };
    for (const Case& each : cases)
        for (const bool indirect : {false, true}) {
            Queue queue;
            const auto head = queue.add(each.pieces, indirect);
            const auto chain = queue.device.next();
            REQUIRE(chain);
            CHECK(part_sizes(*chain) == each.expected);
            CHECK(chain->content() == queue.driver.request(head).content(false));
        }
}

TEST_CASE("what becomes one piece needs no table") {
    Queue queue;
    queue.add({{512, true}, {100, true}}, true);
    const auto chain = queue.device.next();
    REQUIRE(chain);
    CHECK(!chain->indirect);
    CHECK(part_sizes(*chain) == Sizes{612});
    CHECK(queue.used_units() == 2);
}

TEST_CASE("empty buffers are left out, and a chain of nothing else fails") {
    const std::vector<Piece> pieces{{0, false}, {10, false}, {0, false}, {0, true}, {20, true}, {0, true}};
    for (const bool indirect : {false, true}) {
        Queue queue({large_pool, 16, true, false});
        const auto head = queue.add(pieces, indirect);
        const auto chain = queue.device.next();
        REQUIRE(chain);
        CHECK(chain->head == head);
        CHECK(part_sizes(*chain) == Sizes{10, 20});
        queue.device.answer(*chain, 9, 20);
        queue.interrupt();
        REQUIRE(queue.driver.answers().at(0).holds(9));

        queue.add({{0, false}, {0, true}}, indirect);
        CHECK(!queue.device.next());
        const auto answers = queue.driver.answers();
        REQUIRE(answers.size() == 1);
        CHECK(answers[0].length == 0);
    }
}

TEST_CASE("answers in another order than the requests, and indices that wrap") {
    Queue queue({small_pool, 4, true, false});
    for (int round = 0; round < 17000; ++round) {
        for (int i = 0; i < 4; ++i) queue.driver.add({{1, true}});
        queue.notify();
        auto chains = queue.device.all();
        REQUIRE(chains.size() == 4);
        const auto shift = std::next(chains.begin(), round % 4);
        std::rotate(chains.begin(), shift, chains.end());
        for (const Chain& chain : chains) queue.device.answer(chain, static_cast<std::uint8_t>(chain.head), 1);
        queue.interrupt();
        const auto answers = queue.driver.answers();
        REQUIRE(heads(answers) == heads(chains));
        for (const Answer& answer : answers) REQUIRE(answer.holds(static_cast<std::uint8_t>(answer.head)));
    }
    CHECK(queue.used_units() == 0);
}

}  // namespace guest_module
