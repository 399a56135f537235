// Threat 30, the guest's kernel: each lie of a backend in the used ring is found before anything follows from it, and
// nothing of that queue is believed until it is connected anew.
#include <functional>

#include "guest.hpp"

namespace guest_module {
namespace {

struct Lie {
    const char* name;
    std::function<void(Device&, const std::vector<std::uint16_t>&)> tell;
    std::size_t believed;  // entries that are true before it
};

// Three chains of 8 writable bytes are out, and their heads come with the device.
const std::vector<Lie> lies{
    {"an id past the ring", [](Device& device, const auto&) { device.use(device.ring.num, 0); }, 0},
    {"an id of more than 16 bits", [](Device& device, const auto& out) { device.use(0x10000U | out[0], 0); }, 0},
    {"the largest id", [](Device& device, const auto&) { device.use(0xffff'ffffU, 0); }, 0},
    {"an id that is not in flight", [](Device& device, const auto&) { device.use(device.ring.num - 1, 0); }, 0},
    {"an id that is no head", [](Device& device, const auto& out) { device.use(device.ring.desc[out[0]].next, 0); }, 0},
    {"an id twice at once",
     [](Device& device, const auto& out) {
         device.use(out[1], 8);
         device.use(out[1], 8);
     },
     1},
    {"more written than was writable", [](Device& device, const auto& out) { device.use(out[0], 9); }, 0},
    {"the largest length", [](Device& device, const auto& out) { device.use(out[0], 0xffff'ffffU); }, 0},
    {"an index ahead of what is in flight",
     [](Device& device, const auto& out) {
         for (const auto head : out) device.use(head, 0);
         device.use(out[0], 0);
     },
     0},
    {"an index that goes back", [](Device& device, const auto&) { --device.ring.used[1]; }, 0},
    {"an index half a turn ahead", [](Device& device, const auto&) { device.ring.used[1] ^= 0x8000; }, 0},
};

std::vector<std::uint16_t> send_three(Queue& queue) {
    std::vector<std::uint16_t> out;
    for (int i = 0; i < 3; ++i) out.push_back(queue.add({{100, false}, {8, true}}));
    return out;
}

}  // namespace

TEST_CASE("threat 30: every lie in the used ring is found, and the queue is not served further") {
    for (const Lie& lie : lies)
        for (const bool event_idx : {false, true}) {
            CAPTURE(lie.name);
            Queue queue({large_pool, 16, event_idx, false});
            const auto out = send_three(queue);
            REQUIRE(queue.device.all().size() == 3);
            const auto works = shim_events.works;
            lie.tell(queue.device, out);
            queue.interrupt();
            CHECK(module_lied(queue.get()));
            CHECK(!module_running(queue.get()));
            CHECK(shim_events.works == works + 1);
            CHECK(queue.driver.answers().size() == lie.believed);
            CHECK(shim_events.calls == lie.believed);

            // Whatever the device says now, true or not, and whatever the driver wants.
            const auto kicks = shim_events.kicks;
            queue.device.ring.used[1] = static_cast<std::uint16_t>(lie.believed);
            queue.device.use(out[2], 0);
            queue.add({{1, true}});
            queue.interrupt();
            CHECK(queue.driver.answers().empty());
            CHECK(!queue.device.next());
            CHECK(shim_events.kicks == kicks);

            queue.disconnect();
            CHECK(queue.driver.answers().empty());
            queue.connect();
            const auto again = queue.device.all();
            CHECK(again.size() == 4 - lie.believed);
            for (const Chain& chain : again) queue.device.answer(chain, 0x11, 1);
            queue.interrupt();
            const auto answers = queue.driver.answers();
            CHECK(heads(answers) == heads(again));
            for (const Answer& answer : answers) CHECK(answer.holds(0x11));
            CHECK(queue.driver.outstanding() == 0);
        }
}

TEST_CASE("threat 30: an id that came back is not in flight any longer") {
    Queue queue;
    const auto head = queue.add({{8, true}});
    queue.device.use(head, 0);
    queue.interrupt();
    REQUIRE(queue.driver.answers().size() == 1);
    queue.add({{512, false}, {8, true}}, true);
    queue.add({{8, true}});
    queue.device.use(head, 0);
    queue.interrupt();
    CHECK(!module_lied(queue.get()));  // the driver has used its number again
    REQUIRE(queue.driver.answers().size() == 1);
    queue.device.use(head, 0);
    queue.interrupt();
    CHECK(module_lied(queue.get()));
    CHECK(queue.driver.answers().empty());
}

TEST_CASE("threat 30: a chain that waits for the pool is not in flight") {
    Queue queue({small_pool, 8, true, false});
    const auto first = queue.add({{16 * 1024, true}});
    const auto waits = queue.add({{1, true}});
    queue.device.use(waits, 0);
    queue.interrupt();
    CHECK(module_lied(queue.get()));
    CHECK(queue.driver.answers().empty());
    queue.disconnect();
    queue.connect();
    CHECK(heads(queue.device.all()) == std::vector{first});
}

TEST_CASE("threat 30: a chain that an earlier device had is not in flight with this one") {
    Queue queue({small_pool, 8, true, false});
    queue.add({{8, true}});
    const auto forgotten = queue.add({{8, true}});
    REQUIRE(module_ring_reset(queue.get()));
    queue.driver.take_back();
    REQUIRE(module_ring_enable(queue.get()));
    queue.driver.adopt(queue.get());
    queue.connect();
    const auto head = queue.add({{8, true}});
    REQUIRE(head != forgotten);
    queue.device.use(forgotten, 0);
    queue.interrupt();
    CHECK(module_lied(queue.get()));
    queue.disconnect();
    queue.connect();
    queue.device.use(head, 8);
    queue.interrupt();
    CHECK(heads(queue.driver.answers()) == std::vector{head});
}

TEST_CASE("threat 30: every index with three chains out") {
    Queue queue({small_pool, 8, false, false});
    int wrong = 0;
    for (int i = 0; i < 3; ++i) queue.add({{1, true}});
    for (unsigned idx = 4; idx < 0x10000; idx += idx < 0x100 || idx > 0xff00 ? 1 : 61) {
        queue.device.ring.used[1] = static_cast<std::uint16_t>(idx);
        queue.interrupt();
        wrong += module_running(queue.get()) || !queue.driver.answers().empty();
        queue.disconnect();
        queue.connect();
    }
    CHECK(wrong == 0);
    CHECK(queue.device.all().size() == 3);
}

TEST_CASE("threat 30: a lie that is told while the connection ends gives nothing") {
    Queue queue;
    const auto out = send_three(queue);
    queue.device.use(out[0], 9);
    queue.device.use(out[1], 8);
    queue.disconnect();
    CHECK(queue.driver.answers().empty());
    queue.connect();
    CHECK(heads(queue.device.all()) == out);
}

TEST_CASE("threat 30: what the backend writes over its descriptors and avail ring confuses only itself") {
    // They are granted read-only; this is what would follow if they were not.
    Queue queue({small_pool, 8, true, false});
    const auto out = send_three(queue);
    auto& ring = queue.device.ring;
    for (unsigned i = 0; i < ring.num; ++i) {
        ring.desc[i] = {~0ULL, ~0U, 0xffff, 0xffff};
        ring.avail_entries[i] = 0xffff;
    }
    for (const auto head : out) queue.device.use(head, 8);
    queue.interrupt();
    CHECK(!module_lied(queue.get()));
    CHECK(heads(queue.driver.answers()) == out);
}

TEST_CASE("threat 30: an index that goes to and fro keeps no CPU under the queue's lock") {
    Queue queue({small_pool, 8, true, false});
    queue.add({{8, true}});
    struct ToAndFro {
        Device& device;
        int looks;
    } to_and_fro{queue.device, 0};
    shim_events.at_argument = &to_and_fro;
    // There is something new whenever the module would otherwise be done, and nothing when it looks what.
    shim_events.at_barrier = [](void* self) { static_cast<ToAndFro*>(self)->device.ring.used[1] = 1; };
    shim_events.at_load = [](void* self) {
        auto& state = *static_cast<ToAndFro*>(self);
        state.device.ring.used[1] = ++state.looks > 1000 ? 1 : 0;
    };
    queue.interrupt();
    CHECK(to_and_fro.looks < 10);
}

TEST_CASE("threat 30: a table in the pool that the backend rewrites is not read again") {
    Queue queue({small_pool, 8, true, false});
    queue.add({{100, false}, {8, true}, {8, true}}, true);
    const auto chain = queue.device.next();
    REQUIRE(chain);
    REQUIRE(chain->indirect);
    const auto pool = module_pool_of(queue.get());
    std::fill_n(pool.memory, std::size_t{pool.units} * module_unit(), std::uint8_t{0xff});
    queue.device.answer(*chain, 4, 12);
    queue.interrupt();
    CHECK(queue.driver.answers().at(0).holds(4));
}

}  // namespace guest_module
