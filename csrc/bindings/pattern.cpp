#include "core/pattern.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <algorithm>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "bindings/register.h"
#include "bindings/views.h"

namespace sparsed::python {
namespace {

// For functions of a pattern's bits, which a device may have to bring to the host first: without the GIL.
template <class Result, class... Args>
auto on_host(Result (*function)(const BlockPattern&, Args...)) {
  return [function](const BlockPattern& pattern, Args... args) {
    {
      const py::gil_scoped_release release;
      pattern.bits();
    }
    return function(pattern, args...);
  };
}

PatternGeometry make_geometry(const Arguments& check, const py::object& batch, const py::object& heads,
                              const py::object& block_size, const py::object& q_len, const py::object& kv_len,
                              const py::object& prompt_length) {
  PatternGeometry geometry;
  geometry.batch = check.integer("batch", batch);
  geometry.heads = check.integer("heads", heads);
  geometry.block = check.block_size(block_size);
  geometry.q_len = check.integer("q_len", q_len);
  geometry.kv_len = check.integer("kv_len", kv_len);
  geometry.prompt_length = check.integer("prompt_length", prompt_length);
  return geometry;
}

BlockPattern full(const py::object& batch, const py::object& heads, const py::object& block_size,
                  const py::object& q_len, const py::object& kv_len, const py::object& prompt_length) {
  const Arguments check("BlockPattern.full");
  return BlockPattern::full(make_geometry(check, batch, heads, block_size, q_len, kv_len, prompt_length));
}

BlockPattern sliding_window(const py::object& batch, const py::object& heads, const py::object& window,
                            const py::object& block_size, const py::object& q_len, const py::object& kv_len,
                            const py::object& prompt_length) {
  const Arguments check("BlockPattern.sliding_window");
  return BlockPattern::streaming(make_geometry(check, batch, heads, block_size, q_len, kv_len, prompt_length),
                                 check.integer("window", window), 0, check);
}

BlockPattern streaming(const py::object& batch, const py::object& heads, const py::object& window,
                       const py::object& sinks, const py::object& block_size, const py::object& q_len,
                       const py::object& kv_len, const py::object& prompt_length) {
  const Arguments check("BlockPattern.streaming");
  return BlockPattern::streaming(make_geometry(check, batch, heads, block_size, q_len, kv_len, prompt_length),
                                 check.integer("window", window), check.integer("sinks", sinks), check);
}

BlockPattern from_mask(const py::object& mask, const py::object& block_size, const py::object& q_len,
                       const py::object& kv_len, const py::object& prompt_length) {
  const Arguments check("BlockPattern.from_mask");
  const py::array array = bool_array(check, "mask", mask, 4, "[batch, heads, q_blocks, kv_blocks]");
  const PatternGeometry geometry = make_geometry(check, py::int_(array.shape(0)), py::int_(array.shape(1)), block_size,
                                                 q_len, kv_len, prompt_length);
  check_geometry(geometry, check);
  check.same("mask has q_blocks", array.shape(2), geometry.q_blocks(),
             message(" (from q_len ", geometry.q_len, ", block_size ", geometry.block.q, ")"));
  check.same("mask has kv_blocks", array.shape(3), geometry.kv_blocks(),
             message(" (from kv_len ", geometry.kv_len, ", block_size ", geometry.block.kv, ")"));
  return BlockPattern::from_mask(geometry, static_cast<const uint8_t*>(array.data()));
}

py::array_t<bool> to_mask(const BlockPattern& pattern) {
  const PatternGeometry& g = pattern.geometry();
  py::array mask = new_array(Arguments("BlockPattern.to_mask"), "the mask", py::dtype::of<bool>(),
                             {g.batch, g.heads, g.q_blocks(), g.kv_blocks()});
  pattern.to_mask(static_cast<uint8_t*>(mask.mutable_data()));
  return mask;
}

// One number per (batch, head).
py::array_t<double> per_head(const BlockPattern& pattern, const std::vector<double>& values) {
  py::array_t<double> result({pattern.geometry().batch, pattern.geometry().heads});
  std::copy(values.begin(), values.end(), result.mutable_data());
  return result;
}

py::array_t<int32_t> row(const BlockPattern& pattern, const py::object& batch, const py::object& head,
                         const py::object& q_block) {
  const PatternGeometry& g = pattern.geometry();
  const Arguments check("BlockPattern.row");
  const auto index = [&](const py::object& object, const char* name, int64_t count) {
    const int64_t value = check.integer(name, object);
    check.range(name, value, 0, count - 1);
    return value;
  };
  const int64_t b = index(batch, "batch", g.batch), h = index(head, "head", g.heads);
  const int64_t r = (b * g.heads + h) * g.q_blocks() + index(q_block, "q_block", g.q_blocks());
  std::vector<int32_t> blocks;
  for_each_block(pattern.row(r), g.row_words(), [&](int64_t block) { blocks.push_back(static_cast<int32_t>(block)); });
  return py::array_t<int32_t>(static_cast<py::ssize_t>(blocks.size()), blocks.data());
}

py::typing::Tuple<py::array_t<int64_t>, py::array_t<int32_t>> to_bsr(const BlockPattern& pattern) {
  const Arguments check("BlockPattern.to_bsr");
  const int64_t rows = pattern.rows(), words = pattern.geometry().row_words();
  py::array indptr = new_array(check, "indptr", py::dtype::of<int64_t>(), {rows + 1});
  py::array indices = new_array(check, "indices", py::dtype::of<int32_t>(), {pattern.num_selected()});
  auto* end = static_cast<int64_t*>(indptr.mutable_data());
  auto* const first = static_cast<int32_t*>(indices.mutable_data());
  int32_t* next = first;
  *end++ = 0;
  for (int64_t r = 0; r < rows; ++r) {
    for_each_block(pattern.bits().data() + r * words, words,
                   [&](int64_t block) { *next++ = static_cast<int32_t>(block); });
    *end++ = next - first;
  }
  return py::make_tuple(indptr, indices);
}

BlockPattern load(const py::object& path) {
  const std::string file = path_string("BlockPattern.load", path);
  const py::gil_scoped_release release;
  return BlockPattern::load(file);
}

void save(const BlockPattern& pattern, const py::object& path) {
  const std::string file = path_string("BlockPattern.save", path);
  const py::gil_scoped_release release;
  pattern.save(file);
}

py::array_t<double> head_density(const BlockPattern& pattern) { return per_head(pattern, pattern.head_density()); }

py::array_t<double> jaccard(const BlockPattern& pattern, const py::object& other) {
  if (!py::isinstance<BlockPattern>(other))
    Arguments("BlockPattern.jaccard").wrong_type("other", other, "a BlockPattern");
  const BlockPattern& theirs = py::cast<const BlockPattern&>(other);
  std::vector<double> values;
  {
    const py::gil_scoped_release release;
    values = pattern.jaccard(theirs);
  }
  return per_head(pattern, values);
}

// operation: the name of Python's method.
BlockPattern combined(const BlockPattern& pattern, const py::object& other, const py::object& operation) {
  constexpr SetOperation kOperations[] = {SetOperation::kUnion, SetOperation::kIntersection, SetOperation::kDifference};
  const size_t number = Arguments("BlockPattern").choice("operation", operation, {"__or__", "__and__", "__sub__"});
  const Arguments check("BlockPattern." + py::cast<std::string>(operation));
  const BlockPattern& theirs = py::cast<const BlockPattern&>(other);
  const py::gil_scoped_release release;
  return pattern.combined(theirs, kOperations[number], check);
}

BlockPattern taken(const BlockPattern& pattern, const std::vector<int64_t>& batch, const std::vector<int64_t>& heads) {
  const py::gil_scoped_release release;
  return pattern.taken(batch, heads);
}

py::object equal(const BlockPattern& pattern, const py::object& other) {
  if (!py::isinstance<BlockPattern>(other)) return py::reinterpret_borrow<py::object>(Py_NotImplemented);
  const BlockPattern& theirs = py::cast<const BlockPattern&>(other);
  bool same = false;
  {
    const py::gil_scoped_release release;
    same = pattern == theirs;
  }
  return py::bool_(same);
}

uint64_t hash(const BlockPattern& pattern) { return pattern.hash(); }

std::string repr(const BlockPattern& pattern) {
  const PatternGeometry& g = pattern.geometry();
  std::ostringstream text;
  text.precision(3);
  text << "BlockPattern(batch=" << g.batch << ", heads=" << g.heads << ", q_blocks=" << g.q_blocks()
       << ", kv_blocks=" << g.kv_blocks() << ", block_size=" << g.block.kv << ", q_len=" << g.q_len
       << ", kv_len=" << g.kv_len << ", prompt_length=" << g.prompt_length << ", density=" << pattern.density() << ")";
  return text.str();
}

}  // namespace

void register_pattern(py::module_& m) {
  const auto geometry = [](auto field) { return [field](const BlockPattern& p) { return p.geometry().*field; }; };
  py::class_<BlockPattern>(m, "BlockPattern", no_constructor(),
                           R"(Which key blocks each (batch, query head, query block) attends to.

B batch, H query heads; queries and keys are cut into blocks of ``block_size`` tokens, the last one may be shorter.
Immutable; compared and hashed by content.)")
      .def_static("full", &full, py::arg("batch") = 1, py::arg("heads") = 1, py::kw_only(), py::arg("block_size"),
                  py::arg("q_len"), py::arg("kv_len"), py::arg("prompt_length") = 0, "Every block.")
      .def_static("sliding_window", &sliding_window, py::arg("batch") = 1, py::arg("heads") = 1, py::kw_only(),
                  py::arg("window"), py::arg("block_size"), py::arg("q_len"), py::arg("kv_len"),
                  py::arg("prompt_length") = 0,
                  "Every block that touches the ``window`` keys centred on one of the block's queries.")
      .def_static("streaming", &streaming, py::arg("batch") = 1, py::arg("heads") = 1, py::kw_only(), py::arg("window"),
                  py::arg("sinks"), py::arg("block_size"), py::arg("q_len"), py::arg("kv_len"),
                  py::arg("prompt_length") = 0, "A sliding window and the blocks of the first ``sinks`` keys.")
      .def_static("from_mask", &from_mask, py::arg("mask"), py::kw_only(), py::arg("block_size"), py::arg("q_len"),
                  py::arg("kv_len"), py::arg("prompt_length") = 0,
                  "From a bool array (B, H, q_blocks, kv_blocks), True where selected.")
      .def_static("load", &load, py::arg("path"),
                  "Reads what ``save`` wrote; a truncated or foreign file is a ValueError.")
      .def("save", on_host(&save), py::arg("path"), "Writes a versioned file.")
      .def_property_readonly("batch", geometry(&PatternGeometry::batch))
      .def_property_readonly("heads", geometry(&PatternGeometry::heads))
      .def_property_readonly("q_blocks", [](const BlockPattern& p) { return p.geometry().q_blocks(); })
      .def_property_readonly("kv_blocks", [](const BlockPattern& p) { return p.geometry().kv_blocks(); })
      .def_property_readonly("block_size", [](const BlockPattern& p) { return p.geometry().block.kv; })
      .def_property_readonly("q_len", geometry(&PatternGeometry::q_len))
      .def_property_readonly("kv_len", geometry(&PatternGeometry::kv_len))
      .def_property_readonly("prompt_length", geometry(&PatternGeometry::prompt_length))
      .def_property_readonly("density",
                             py::cpp_function(&BlockPattern::density, py::call_guard<py::gil_scoped_release>()),
                             "Share of (query block, key block) pairs selected.")
      .def_property_readonly("head_density", on_host(&head_density), "Density of each head, float64 (B, H).")
      .def_property_readonly("nbytes", &BlockPattern::nbytes, "Bytes of the bit rows.")
      .def("to_mask", on_host(&to_mask), "Bool array (B, H, q_blocks, kv_blocks).")
      .def("row", on_host(&row), py::arg("batch"), py::arg("head"), py::arg("q_block"),
           "Sorted key blocks of one query block, int32.")
      .def("to_bsr", on_host(&to_bsr),
           "(indptr int64, indices int32): row r = (batch * heads + head) * q_blocks + q_block selects the key blocks\n"
           "``indices[indptr[r]:indptr[r + 1]]``, ascending.")
      .def("jaccard", on_host(&jaccard), py::arg("other"),
           "``|A and B| / |A or B|`` per head, float64 (B, H); 1 where both are empty.")
      .def("combined", on_host(&combined), py::arg("other"), py::arg("operation"),
           "``__or__``, ``__and__`` or ``__sub__`` with another pattern of the same geometry.")
      .def("taken", on_host(&taken), py::arg("batch"), py::arg("heads"), "The rows and heads at these places.")
      .def("__eq__", on_host(&equal), py::arg("other"), py::pos_only())
      .def("__hash__", on_host(&hash))
      .def("__repr__", on_host(&repr));
}

}  // namespace sparsed::python
