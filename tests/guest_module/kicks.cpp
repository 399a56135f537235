// Events go where they are wanted, and none that is wanted is lost.
#include <functional>

#include "guest.hpp"

namespace guest_module {
namespace {

// What the backend does at a barrier of the module's, once.
struct AtBarrier {
    explicit AtBarrier(std::function<void()> act) : act_(std::move(act)) {
        shim_events.at_argument = this;
        shim_events.at_barrier = [](void* self) {
            shim_events.at_barrier = nullptr;
            static_cast<AtBarrier*>(self)->act_();
        };
    }
    AtBarrier(const AtBarrier&) = delete;
    AtBarrier& operator=(const AtBarrier&) = delete;
    ~AtBarrier() {
        CHECK(!shim_events.at_barrier);  // there was a barrier
        shim_events.at_barrier = nullptr;
    }

  private:
    std::function<void()> act_;
};

const std::vector<Piece> one_byte{{1, true}};

}  // namespace

TEST_CASE("without EVENT_IDX the flag decides over kicks") {
    Queue queue({small_pool, 8, false, false});
    queue.add(one_byte);
    CHECK(shim_events.kicks == 1);
    queue.device.ring.used[0] = VRING_USED_F_NO_NOTIFY;
    queue.add(one_byte);
    CHECK(shim_events.kicks == 1);
    queue.device.ring.used[0] = 0;
    queue.notify();  // nothing new
    CHECK(shim_events.kicks == 1);
    queue.add(one_byte);
    CHECK(shim_events.kicks == 2);
}

TEST_CASE("with EVENT_IDX a kick comes when the index passes the one asked for") {
    Queue queue({small_pool, 16, true, false});
    queue.add(one_byte);
    CHECK(shim_events.kicks == 1);  // 0, as the ring begins
    queue.add(one_byte);
    queue.add(one_byte);
    CHECK(shim_events.kicks == 1);
    *queue.device.ring.avail_event = 4;
    queue.add(one_byte);
    CHECK(shim_events.kicks == 1);
    for (int i = 0; i < 3; ++i) queue.driver.add(one_byte);
    queue.notify();  // past it, in one go
    CHECK(shim_events.kicks == 2);
    queue.add(one_byte);
    CHECK(shim_events.kicks == 2);
    // The flag means nothing then.
    *queue.device.ring.avail_event = 8;
    queue.device.ring.used[0] = VRING_USED_F_NO_NOTIFY;
    queue.add(one_byte);
    CHECK(shim_events.kicks == 3);
}

TEST_CASE("a backend that goes to sleep while a chain is published is kicked") {
    {
        Queue queue({small_pool, 8, false, false});
        queue.device.ring.used[0] = VRING_USED_F_NO_NOTIFY;
        const AtBarrier sleeps([&] { queue.device.ring.used[0] = 0; });
        queue.add(one_byte);
        CHECK(shim_events.kicks == 1);
    }
    Queue queue({small_pool, 8, true, false});
    *queue.device.ring.avail_event = 0x8000;
    const AtBarrier sleeps([&] {
        CHECK(queue.device.available() == 1);
        *queue.device.ring.avail_event = 0;
    });
    queue.add(one_byte);
    CHECK(shim_events.kicks == 1);
}

TEST_CASE("an answer that comes while the module asks for an event is taken at once") {
    Queue queue({small_pool, 8, true, false});
    const auto first = queue.add(one_byte);
    const auto second = queue.add(one_byte);
    queue.device.use(first, 0);
    {
        const AtBarrier answers([&] {
            CHECK(*queue.device.ring.used_event == 1);
            queue.device.use(second, 0);
        });
        queue.interrupt();
    }
    CHECK(heads(queue.driver.answers()) == std::vector{first, second});
    CHECK(*queue.device.ring.used_event == 2);
}

TEST_CASE("a lie that is told while the module asks for an event is found, or at the next look") {
    Queue queue({small_pool, 8, true, false});
    const auto first = queue.add(one_byte);
    queue.device.use(first, 0);
    const AtBarrier lies([&] { queue.device.use(first, 0); });
    queue.interrupt();
    CHECK(module_lied(queue.get()));
    CHECK(queue.driver.answers().size() == 1);
}

TEST_CASE("the driver is called only if it wants that, and for something") {
    Queue queue({small_pool, 8, true, false});
    const auto first = queue.add(one_byte);
    queue.interrupt();
    CHECK(shim_events.calls == 0);
    CHECK(shim_events.spurious_eois == 1);
    queue.device.use(first, 0);
    queue.driver.want_calls(false);
    queue.interrupt();
    CHECK(shim_events.calls == 0);
    CHECK(shim_events.spurious_eois == 1);
    CHECK(queue.driver.answers().size() == 1);
    queue.driver.want_calls(true);
    queue.interrupt();  // for nothing
    CHECK(shim_events.calls == 0);
    CHECK(shim_events.spurious_eois == 2);
    queue.device.use(queue.add(one_byte), 0);
    queue.interrupt();
    CHECK(shim_events.calls == 1);
    CHECK(shim_events.eois == 4);
}

TEST_CASE("an interrupt also carries what was made available without a notification") {
    Queue queue({small_pool, 8, true, false});
    const auto head = queue.driver.add(one_byte);
    queue.interrupt();
    CHECK(heads(queue.device.all()) == std::vector{head});
    CHECK(shim_events.kicks == 1);
}

}  // namespace guest_module
