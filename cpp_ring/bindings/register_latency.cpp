#include <pybind11/numpy.h>

#include <cstring>

#include "bindings.hpp"
#include "latency.hpp"
#include "wake_cost.hpp"

namespace cpp_ring::bindings {
namespace {

using Bucket = std::pair<std::uint64_t, std::uint64_t>;

py::bytes to_bytes_of(const LatencyRecorder& recorder) {
    std::vector<std::uint64_t> words{recorder.min(), recorder.max()};
    for (const auto& [upper, count] : recorder.buckets()) {
        words.push_back(upper);
        words.push_back(count);
    }
    return to_bytes(std::as_bytes(std::span(words)));
}

std::unique_ptr<LatencyRecorder> from_bytes(const py::bytes& raw) {
    const auto data = as_bytes(raw);
    if (data.size() < 16 || data.size() % 16 != 0) throw py::value_error("not the bytes of a LatencyRecorder");
    std::vector<std::uint64_t> words(data.size() / 8);
    std::memcpy(words.data(), data.data(), data.size());
    auto recorder = std::make_unique<LatencyRecorder>();
    for (std::size_t i = 2; i < words.size(); i += 2) recorder->add_bucket(words[i], words[i + 1]);
    if (recorder->count() != 0) recorder->set_extremes(words[0], words[1]);
    return recorder;
}

}  // namespace

void register_latency(py::module_& module) {
    module.def("clock_ns", [] { return static_cast<std::uint64_t>(static_cast<double>(ticks()) / ticks_per_ns()); });
    module.def("measure_wake_us", &measure_wake_us, py::call_guard<py::gil_scoped_release>());
    py::class_<LatencyRecorder>(module, "LatencyRecorder")
        .def(py::init<>())
        .def("record", &LatencyRecorder::record, py::arg("nanoseconds"))
        .def("merge", &LatencyRecorder::merge, py::arg("other"))
        .def("clear", [](LatencyRecorder& self) { self = LatencyRecorder(); })
        .def_property_readonly("count", &LatencyRecorder::count)
        .def_property_readonly("min", &LatencyRecorder::min)
        .def_property_readonly("max", &LatencyRecorder::max)
        .def(
            "percentile",
            [](const LatencyRecorder& self, double percent) {
                if (!(percent >= 0 && percent <= 100)) throw py::value_error("a percentile is between 0 and 100");
                return self.percentile(percent);
            },
            py::arg("percent"))
        .def("buckets",
             [](const LatencyRecorder& self) {
                 const auto rows = self.buckets();
                 py::array_t<std::uint64_t> upper(static_cast<py::ssize_t>(rows.size()));
                 py::array_t<std::uint64_t> count(static_cast<py::ssize_t>(rows.size()));
                 for (std::size_t i = 0; i < rows.size(); ++i) {
                     upper.mutable_at(static_cast<py::ssize_t>(i)) = rows[i].first;
                     count.mutable_at(static_cast<py::ssize_t>(i)) = rows[i].second;
                 }
                 return py::make_tuple(upper, count);
             })
        .def("to_bytes", &to_bytes_of)
        .def_static("from_bytes", &from_bytes, py::arg("data"));
}

}  // namespace cpp_ring::bindings
