// How long a device's thread stays awake, by a clock that the test moves.
#include <doctest/doctest.h>

#include <limits>

#include "spin_budget.hpp"

namespace cpp_ring::test {
namespace {

std::uint64_t us(double microseconds) { return ticks_of_us(microseconds); }

}  // namespace

TEST_CASE("spin budget: a fixed one is spent after so long, whatever happens") {
    SpinBudget spin(50, 0);
    spin.worked(1000);
    CHECK(!spin.spent(1000 + us(50) - 1));
    CHECK(spin.spent(1000 + us(50)));
    spin.woken(1000 + us(60));
    CHECK(spin.budget() == us(50));
    spin.woken(1000 + us(1e6));
    CHECK(spin.budget() == us(50));
}

TEST_CASE("spin budget: 0 is spent at once, infinity never") {
    SpinBudget none(0, 0);
    none.worked(7);
    CHECK(none.spent(7));
    SpinBudget always(std::numeric_limits<double>::infinity(), 0);
    always.worked(7);
    CHECK(!always.spent(us(1e12)));
}

TEST_CASE("spin budget: work soon after falling asleep is waited for awake the next time") {
    SpinBudget spin(50, 800);
    std::uint64_t now = 1000;
    spin.worked(now);
    spin.woken(now += us(700));
    spin.worked(now += us(300));  // however long it takes
    CHECK(spin.budget() == us(800));
    CHECK(!spin.spent(now + us(700)));
    CHECK(spin.spent(now + us(800)));
}

TEST_CASE("spin budget: work that comes late halves it down to the least, and costs twice the most together") {
    SpinBudget spin(50, 800);
    std::uint64_t now = 1000;
    spin.worked(now);
    spin.woken(now += us(100));
    spin.worked(now);
    std::uint64_t spent = 0;
    for (int i = 0; i < 10; ++i) {
        if (spin.budget() > us(50)) spent += spin.budget();
        spin.woken(now += us(801));
        spin.worked(now);
    }
    CHECK(spin.budget() == us(50));
    CHECK(spent < us(1600));
}

TEST_CASE("spin budget: work that is met awake leaves it as it is") {
    SpinBudget spin(50, 800);
    spin.worked(0);
    spin.worked(us(49));
    CHECK(spin.budget() == us(50));
    spin.woken(us(100));
    spin.worked(us(800));
    CHECK(spin.budget() == us(800));
    CHECK(!spin.spent(us(1599)));
    CHECK(spin.spent(us(1601)));
}

TEST_CASE("spin budget: others get the CPU first after a request's time, then less often, but at all times") {
    SpinBudget spin(1e9, 0);
    spin.worked(0);
    CHECK(!spin.yield_is_due(us(alone_us) - 1));
    std::uint64_t last = 0;
    int yields = 0;
    for (std::uint64_t now = 0; now < us(20000); now += us(1)) {
        if (!spin.yield_is_due(now)) continue;
        ++yields;
        CHECK(now - last <= us(101 * alone_us));
        last = now;
    }
    CHECK(yields >= 20);
    CHECK(yields <= 30);
    spin.worked(us(20000));  // and anew
    CHECK(!spin.yield_is_due(us(20000)));
    CHECK(spin.yield_is_due(us(20000 + alone_us) + 1));
}

}  // namespace cpp_ring::test
