// Threat 30, the guest's kernel: a device that writes anything at any time into what it was granted. Nothing is touched
// that is not the request's, and each request comes back once at most; when an honest device follows, once.
#include <random>

#include "guest.hpp"

namespace guest_module {
namespace {

class Hostile {
  public:
    explicit Hostile(module_options options, unsigned seed) : random_(seed), queue_(options) {
        shim_events.at_argument = this;
        shim_events.at_barrier = [](void* self) { static_cast<Hostile*>(self)->at_any_time(); };
        shim_events.at_load = shim_events.at_barrier;
    }

    void step() {
        switch (below(16)) {
            case 0:
            case 1:
            case 2:
            case 3:
                add();
                break;
            case 4:
                queue_.notify();
                break;
            case 5:
            case 6:
            case 7:
            case 8:
                answer();
                break;
            case 9:
                scribble();
                break;
            case 10:
            case 11:
            case 12:
                queue_.interrupt();
                break;
            case 13:
                shim_events.now += below(100) == 0 ? 3'000'000'000 : below(1'000'000);
                if (module_timer_armed(queue_.get())) module_fire_timer(queue_.get());
                break;
            case 14:
                module_call_late(queue_.get());
                break;
            default:
                life();
                break;
        }
        lies += module_lied(queue_.get()) && running_ && !module_running(queue_.get());
        running_ = module_running(queue_.get());
        take();
    }

    // An honest device ends it: all that is out comes back, once.
    void finish() {
        shim_events.at_barrier = shim_events.at_load = nullptr;
        queue_.disconnect();
        queue_.connect();
        take();
        while (queue_.driver.outstanding() != 0) {
            const auto chains = queue_.device.all();
            REQUIRE(!chains.empty());
            for (const Chain& chain : chains) {
                REQUIRE(chain.content() == queue_.driver.request(chain.head).content(false));
                queue_.device.answer(chain, 1, queue_.driver.request(chain.head).writable());
            }
            queue_.interrupt();
            take();
        }
        CHECK(queue_.used_units() == 0);
    }

    int lies = 0;
    int written = 0;
    int failed = 0;

  private:
    unsigned below(unsigned limit) { return static_cast<unsigned>(random_() % limit); }

    void add() {
        std::vector<Piece> pieces;
        const unsigned readable = below(3);
        const unsigned writable = 1 + below(3);
        const unsigned limit = below(50) == 0 ? 20000 : 3000;
        for (unsigned i = 0; i < readable; ++i) pieces.push_back({size(limit), false});
        for (unsigned i = 0; i < writable; ++i) pieces.push_back({1 + size(limit), true});
        if (queue_.driver.free_descriptors() < pieces.size()) return;
        queue_.driver.add(pieces, below(2) == 0);
        if (below(4) != 0) queue_.notify();
    }
    std::uint32_t size(unsigned limit) { return below(4) == 0 ? 512 * below(limit / 512) : below(limit); }

    // Mostly what could be true.
    void answer() {
        while (queue_.device.available() != 0 && out_.size() < 64) out_.push_back(queue_.device.next_head());
        if (out_.empty()) return;
        const auto chosen = out_.begin() + below(static_cast<unsigned>(out_.size()));
        const std::uint32_t id = below(100) == 0 ? below(queue_.device.ring.num + 2) : *chosen;
        const std::uint32_t length = below(200) == 0 ? static_cast<std::uint32_t>(random_()) : below(30);
        if (below(100) != 0) out_.erase(chosen);
        queue_.device.use(id, length);
        if (below(500) == 0) queue_.device.ring.used[1] = static_cast<std::uint16_t>(random_());
    }

    // The arena's part of the queue at any place, the rings now and then.
    void scribble() {
        const auto pool = module_pool_of(queue_.get());
        write(pool.memory, std::size_t{pool.units} * module_unit(), 64);
        if (below(20) != 0) return;
        const auto& ring = queue_.device.ring;
        write(reinterpret_cast<std::uint8_t*>(ring.used), 6 + 8 * std::size_t{ring.num}, 1 + below(64));
        write(reinterpret_cast<std::uint8_t*>(ring.desc), (16 + 2) * std::size_t{ring.num} + 6, 1 + below(64));
    }
    void write(std::uint8_t* memory, std::size_t bytes, unsigned count) {
        for (; count != 0; --count) memory[random_() % bytes] = static_cast<std::uint8_t>(random_());
    }

    void at_any_time() {
        if (away_) return;
        if (below(8) == 0) answer();
        if (below(8) == 0) scribble();
    }

    void life() {
        switch (below(8)) {
            case 0:
                queue_.disconnect();
                take();
                if (below(4) == 0) add();
                connect();
                break;
            case 1:
                if (below(4) != 0) break;
                REQUIRE(module_ring_reset(queue_.get()));
                take();
                queue_.driver.take_back();
                away_ = true;  // the old ring is freed, and the device does not know of the new one yet
                REQUIRE(module_ring_enable(queue_.get()));
                queue_.driver.adopt(queue_.get());
                queue_.device.adopt(queue_.get());
                away_ = false;
                out_.clear();
                break;
            default:
                if (module_running(queue_.get())) break;
                queue_.disconnect();
                connect();
        }
    }
    void connect() {
        out_.clear();
        queue_.connect();
    }

    void take() {
        for (const Answer& answer : queue_.driver.answers()) {
            // Whatever the device said it wrote; the rest is as it was, or the request has failed.
            REQUIRE((answer.rest_is_untouched() || answer.failed()));
            REQUIRE(answer.request.readable_is_untouched());
            ++(answer.failed() ? failed : written);
        }
    }

    std::mt19937 random_;
    Queue queue_;
    std::vector<std::uint16_t> out_;  // heads that the device has not told of
    bool running_ = true;
    bool away_ = false;
};

}  // namespace

TEST_CASE("threat 30: anything in the used ring and the arena at any time") {
    for (const bool polled_too : {false, true})
        for (const bool event_idx : {false, true}) {
            Hostile hostile({small_pool, 16, event_idx, polled_too}, 30);
            for (int step = 0; step < 50'000; ++step) hostile.step();
            hostile.finish();
            // It was neither found out at once nor believed all the time.
            CHECK(hostile.lies > 300);
            CHECK(hostile.written > 2000);
            CHECK(hostile.failed > 50);
        }
}

}  // namespace guest_module
