// Latency recorder: counts in log-linear buckets, 128 to an octave, so that a value is known to better than 1 %.
#pragma once

#include <algorithm>
#include <array>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <utility>
#include <vector>

namespace cpp_ring {

class LatencyRecorder {
  public:
    // Does not allocate. Values are nanoseconds, any 64-bit number.
    void record(std::uint64_t value) noexcept {
        ++counts_[index_of(value)];
        ++count_;
        min_ = std::min(min_, value);
        max_ = std::max(max_, value);
    }

    void merge(const LatencyRecorder& other) noexcept {
        for (std::size_t i = 0; i < bucket_count; ++i) counts_[i] += other.counts_[i];
        count_ += other.count_;
        min_ = std::min(min_, other.min_);
        max_ = std::max(max_, other.max_);
    }

    // Adds `count` values of a bucket by its upper bound, as buckets() gave it.
    void add_bucket(std::uint64_t upper, std::uint64_t count) noexcept {
        counts_[index_of(upper)] += count;
        count_ += count;
    }
    void set_extremes(std::uint64_t min, std::uint64_t max) noexcept {
        min_ = min;
        max_ = max;
    }

    [[nodiscard]] std::uint64_t count() const noexcept { return count_; }
    [[nodiscard]] std::uint64_t min() const noexcept { return count_ == 0 ? 0 : min_; }
    [[nodiscard]] std::uint64_t max() const noexcept { return max_; }

    // The upper bound of the bucket that holds the percentile (0..100), never above max(); 0 when empty.
    [[nodiscard]] std::uint64_t percentile(double percent) const noexcept {
        if (count_ == 0) return 0;
        const double rank = std::max(1.0, percent / 100.0 * static_cast<double>(count_) + 0.5);
        // Compared as doubles first: a count near 2^64 rounds up to it, out of the conversion's range.
        const auto wanted = rank < static_cast<double>(count_) ? static_cast<std::uint64_t>(rank) : count_;
        std::uint64_t seen = 0;
        for (std::size_t i = 0; i < bucket_count; ++i) {
            seen += counts_[i];
            if (seen >= wanted) return std::min(upper_bound(i), max_);
        }
        return max_;
    }

    // (upper bound, count) of every bucket that is not empty, ascending.
    [[nodiscard]] std::vector<std::pair<std::uint64_t, std::uint64_t>> buckets() const {
        std::vector<std::pair<std::uint64_t, std::uint64_t>> result;
        for (std::size_t i = 0; i < bucket_count; ++i)
            if (counts_[i] != 0) result.emplace_back(upper_bound(i), counts_[i]);
        return result;
    }

  private:
    static constexpr unsigned sub_bits = 7;
    static constexpr std::size_t sub_count = std::size_t{1} << sub_bits;
    static constexpr std::size_t bucket_count = (64 - sub_bits + 1) * sub_count;

    // Values below 2 * sub_count have a bucket each; above, the top sub_bits + 1 bits choose it.
    [[nodiscard]] static constexpr std::size_t index_of(std::uint64_t value) noexcept {
        const auto width = static_cast<unsigned>(std::bit_width(value));
        const unsigned shift = width > sub_bits + 1 ? width - (sub_bits + 1) : 0;
        return shift * sub_count + static_cast<std::size_t>(value >> shift);
    }
    [[nodiscard]] static constexpr std::uint64_t upper_bound(std::size_t index) noexcept {
        if (index < 2 * sub_count) return index;
        const std::size_t shift = index / sub_count - 1;
        const std::uint64_t lower = (index - shift * sub_count);
        return ((lower + 1) << shift) - 1;
    }

    std::array<std::uint64_t, bucket_count> counts_{};
    std::uint64_t count_ = 0;
    std::uint64_t min_ = std::numeric_limits<std::uint64_t>::max();
    std::uint64_t max_ = 0;
};

}  // namespace cpp_ring
