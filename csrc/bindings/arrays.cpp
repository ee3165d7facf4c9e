#include "bindings/arrays.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <string>
#include <tuple>
#include <utility>

#include "bindings/buffer.h"
#include "core/pattern.h"
#include "registry.h"
#include "support/available_memory.h"
#include "support/error.h"

namespace sparsed::python {
namespace {

std::string type_name(const py::object& object) {
  const py::type type = py::type::of(object);
  const std::string module = py::cast<std::string>(type.attr("__module__"));
  const std::string name = py::cast<std::string>(type.attr("__qualname__"));
  return module == "builtins" ? name : module + "." + name;
}

void require_device(const ArrayView& array, DLDevice device, const char* function, const char* argument,
                    const char* source) {
  check(same_device(array.device, device), function, ": ", argument, " is on ", device_name(array.device),
        ", expected ", device_name(device), source);
}

void require_same(int64_t found, int64_t expected, const char* function, const char* argument, const char* what,
                  const char* source, const Shape4& source_shape) {
  check(found == expected, function, ": ", argument, " has ", what, " ", found, ", expected ", expected, " (from ",
        source, " ", shape_string(source_shape), ")");
}

ArrayView bool_view(const py::object& object, size_t rank, const char* axes, const char* function, const char* argument,
                    const DeviceMemory& memory, const char* source) {
  ArrayView view = array_view(object, function, argument, memory.stream());
  if (view.dtype != "bool")
    fail(ErrorKind::kType, function, ": ", argument, " has dtype ", view.dtype, ", expected bool");
  require_device(view, memory.device(), function, argument, source);
  check(view.shape.size() == rank, function, ": ", argument, " has shape ",
        shape_string(view.shape.data(), view.shape.size()), ", expected ", rank, " axes ", axes);
  return view;
}

py::array contiguous(const ArrayView& view, const char* function, const char* argument) {
  return c_contiguous(py::array(py::dtype::of<bool>(), view.shape, view.strides, view.data, view.owner), function,
                      argument);
}

// [B, S], contiguous, on the device of q.
const uint8_t* key_mask_data(const char* function, const py::object& key_mask, AttentionArguments& arguments) {
  const AttentionParams& params = arguments.params;
  const ArrayView view = bool_view(key_mask, 2, "[batch, keys]", function, "key_mask", arguments.memory, " (from q)");
  check(view.shape[0] == params.batch() && view.shape[1] == params.kv_len(), function, ": key_mask has shape ",
        shape_string(view.shape.data(), view.shape.size()), ", expected [", params.batch(), ", ", params.kv_len(),
        "] (from k ", shape_string(params.k.shape), ")");
  if (arguments.memory.on_host()) {
    const py::array mask = contiguous(view, function, "key_mask");
    arguments.alive.push_back(mask);
    return static_cast<const uint8_t*>(mask.data());
  }
  const bool rows = view.shape[1] <= 1 || view.strides[1] == 1;
  check(view.empty() || (rows && (view.shape[0] == 1 || view.strides[0] == view.shape[1])), function,
        ": key_mask has strides ", shape_string(view.strides.data(), 2), ", expected [", view.shape[1],
        ", 1] (contiguous)");
  arguments.alive.push_back(view.owner);
  return static_cast<const uint8_t*>(view.data);
}

}  // namespace

std::string shape_text(const py::array& array) {
  const std::vector<int64_t> shape(array.shape(), array.shape() + array.ndim());
  return shape_string(shape.data(), shape.size());
}

// A MaskedArray is an ndarray whose mask would be ignored.
py::array numpy_array(const py::object& object, const char* function, const char* argument) {
  if (!py::isinstance<py::array>(object) || py::hasattr(object, "_mask")) {
    wrong_type(object, function, argument, "a numpy array");
  }
  return py::reinterpret_borrow<py::array>(object);
}

size_t nbytes(std::vector<int64_t> shape, int64_t itemsize) {
  shape.push_back(itemsize);
  return saturating_product(shape);
}

py::array c_contiguous(const py::array& array, const char* function, const char* argument) {
  if (array.flags() & py::array::c_style) return array;
  const std::string what = message(function, ": a copy of ", argument);
  require_memory(nbytes({array.shape(), array.shape() + array.ndim()}, array.itemsize()), what.c_str());
  py::array copy = py::array::ensure(array, py::array::c_style);
  if (!copy) fail(ErrorKind::kMemory, what, " does not fit into memory");
  return copy;
}

DType element_type(const std::string& dtype, const char* function, const char* argument, bool float16) {
  if (dtype == "float32") return DType::kFloat32;
  if (dtype == "float16" && float16) return DType::kFloat16;
  if (dtype == "bfloat16") return DType::kBFloat16;
  fail(ErrorKind::kType, function, ": ", argument, " has dtype ", dtype, ", expected float32",
       float16 ? ", float16" : "", " or bfloat16 (ml_dtypes)");
}

DType element_type(const py::array& array, const char* function, const char* argument, bool float16) {
  return element_type(py::cast<std::string>(py::str(array.dtype())), function, argument, float16);
}

void wrong_type(const py::object& object, const char* function, const char* argument, const char* expected) {
  fail(ErrorKind::kType, function, ": ", argument, " is a ", type_name(object), ", expected ", expected);
}

TensorView tensor_view(const ArrayView& array, const char* function, const char* argument) {
  TensorView view;
  view.dtype = element_type(array.dtype, function, argument, true);
  check(array.shape.size() == 4, function, ": ", argument, " has shape ",
        shape_string(array.shape.data(), array.shape.size()), ", expected 4 axes [batch, heads, tokens, head_dim]");
  view.data = array.data;
  std::copy(array.shape.begin(), array.shape.end(), view.shape.begin());
  view.stride = contiguous_strides(view.shape);
  if (array.empty()) return view;

  const int64_t itemsize = array.itemsize;
  check(array.shape[3] == 1 || array.strides[3] == itemsize, function, ": ", argument,
        " has a last axis with a stride of ", array.strides[3], " bytes, expected ", itemsize, " (contiguous)");
  check(reinterpret_cast<uintptr_t>(array.data) % static_cast<uintptr_t>(itemsize) == 0, function, ": ", argument,
        " is not aligned, expected addresses that are multiples of ", itemsize);
  for (size_t axis = 0; axis < 3; ++axis) {
    if (view.shape[axis] == 1) continue;  // any stride may stand there
    check(array.strides[axis] % itemsize == 0, function, ": ", argument, " has a stride of ", array.strides[axis],
          " bytes on axis ", axis, ", expected a multiple of ", itemsize);
    view.stride[axis] = array.strides[axis] / itemsize;
  }
  return view;
}

double real_number(const py::object& object, const char* function, const char* argument) {
  const bool real = PyFloat_Check(object.ptr()) || py::isinstance(object, py::module_::import("numbers").attr("Real"));
  if (!real || PyBool_Check(object.ptr())) wrong_type(object, function, argument, "a number");
  const double value = PyFloat_AsDouble(object.ptr());
  if (value == -1.0 && PyErr_Occurred()) {
    PyErr_Clear();  // OverflowError: an int beyond float64
    fail(ErrorKind::kValue, function, ": ", argument, " is beyond float64, expected a finite number");
  }
  return value;
}

bool boolean(const py::object& object, const char* function, const char* argument) {
  if (!PyBool_Check(object.ptr()) && !py::isinstance(object, py::module_::import("numpy").attr("bool_"))) {
    wrong_type(object, function, argument, "True or False");
  }
  return PyObject_IsTrue(object.ptr()) == 1;
}

int64_t integer(const py::object& object, const char* function, const char* argument) {
  if (!PyIndex_Check(object.ptr()) || PyBool_Check(object.ptr())) wrong_type(object, function, argument, "an int");
  const py::object index = py::reinterpret_steal<py::object>(PyNumber_Index(object.ptr()));
  if (!index) {  // an array of several elements, for instance
    PyErr_Clear();
    wrong_type(object, function, argument, "an int");
  }
  int overflow = 0;
  const int64_t value = PyLong_AsLongLongAndOverflow(index.ptr(), &overflow);
  check(overflow == 0, function, ": ", argument, " is ", py::cast<std::string>(py::str(index)),
        ", expected an int of 64 bits");
  return value;
}

float positive_scale(const py::object& object, const char* function, const char* argument) {
  const double value = real_number(object, function, argument);
  const float scale = static_cast<float>(value);
  check(std::isfinite(scale) && scale > 0.f, function, ": ", argument, " is ", value,
        ", expected a finite number above 0");
  constexpr float kMost = 1e35f;  // the kernels multiply it by log2(e) and a power of two
  check(scale <= kMost, function, ": ", argument, " is ", value, ", expected at most ", kMost);
  return scale;
}

int block_size_number(const py::object& object, const char* function) {
  const int64_t size = integer(object, function, "block_size");
  check(size >= 0 && size <= std::numeric_limits<int>::max(), function, ": block_size is ", size,
        ", expected 16, 32, 64, 128 or 256");
  return static_cast<int>(size);
}

SelectionRule selection_rule(const py::object& object, const char* function) {
  if (!py::isinstance<py::str>(object)) wrong_type(object, function, "selection", "\"paper\" or \"reference\"");
  const std::string name = py::cast<std::string>(object);
  check(name == "paper" || name == "reference", function, ": selection is \"", name,
        "\", expected \"paper\" or \"reference\"");
  return name == "paper" ? SelectionRule::kPaper : SelectionRule::kReference;
}

py::array bool_array(const py::object& object, py::ssize_t rank, const char* axes, const char* function,
                     const char* argument) {
  return contiguous(bool_view(object, static_cast<size_t>(rank), axes, function, argument, DeviceMemory(), ""),
                    function, argument);
}

const Backend& backend_for(const AttentionArguments& arguments) {
  return arguments.memory.on_host() ? active_backend() : cuda_backend();
}

AttentionArguments attention_arguments(const char* function, const py::object& q, const py::object& k,
                                       const py::object* v, const py::object& scale, const py::object& key_mask,
                                       const py::object& memory) {
  AttentionArguments arguments;
  AttentionParams& params = arguments.params;
  params.function = function;
  arguments.memory = DeviceMemory(function, memory);
  if (!arguments.memory.on_host()) params.stream = reinterpret_cast<void*>(*arguments.memory.stream());
  const auto view_of = [&](const py::object& object, const char* argument) {
    const ArrayView array = array_view(object, function, argument, arguments.memory.stream());
    const bool first = arguments.alive.empty();
    require_device(array, arguments.memory.device(), function, argument, first ? " or a CUDA device" : " (from q)");
    if (first) arguments.foreign = array.foreign;
    arguments.alive.push_back(array.owner);
    return tensor_view(array, function, argument);
  };
  params.q = view_of(q, "q");
  params.k = view_of(k, "k");
  if (v) params.v = view_of(*v, "v");

  const int64_t head_dim = params.head_dim();
  check(head_dim >= 16 && head_dim <= 256 && head_dim % 8 == 0, function, ": q has head_dim ", head_dim,
        ", expected a multiple of 8 from 16 to 256 (from q ", shape_string(params.q.shape), ")");
  const auto require_fit = [&](const TensorView& view, const char* argument) {
    if (view.dtype != params.q.dtype) {
      fail(ErrorKind::kType, function, ": ", argument, " has dtype ", dtype_name(view.dtype), ", expected ",
           dtype_name(params.q.dtype), " (from q)");
    }
    require_same(view.shape[0], params.batch(), function, argument, "batch", "q", params.q.shape);
    require_same(view.shape[3], head_dim, function, argument, "head_dim", "q", params.q.shape);
  };
  require_fit(params.k, "k");
  const int64_t heads = params.heads(), kv_heads = params.kv_heads();
  for (const auto& [length, argument, shape] :
       {std::tuple{params.q_len(), "q", params.q.shape}, std::tuple{params.kv_len(), "k", params.k.shape}}) {
    check(length <= kMaxLength, function, ": ", argument, " has length ", length, ", expected at most ", kMaxLength,
          " (from ", argument, " ", shape_string(shape), ")");
  }
  check(kv_heads > 0 ? heads % kv_heads == 0 : heads == 0, function, ": k has heads ", kv_heads,
        ", expected a divisor of ", heads, " (from q ", shape_string(params.q.shape), ")");
  if (v) {
    require_fit(params.v, "v");
    require_same(params.v.shape[1], kv_heads, function, "v", "heads", "k", params.k.shape);
    require_same(params.v.shape[2], params.kv_len(), function, "v", "length", "k", params.k.shape);
  }

  params.scale = scale.is_none() ? static_cast<float>(1.0 / std::sqrt(static_cast<double>(head_dim)))
                                 : positive_scale(scale, function, "scale");
  if (!key_mask.is_none()) {
    params.key_mask = key_mask_data(function, key_mask, arguments);
  }
  return arguments;
}

py::array new_array(const py::dtype& dtype, const std::vector<py::ssize_t>& shape, const char* function,
                    const char* argument) {
  require_memory(nbytes(shape, dtype.itemsize()), message(function, ": ", argument).c_str());
  return py::array(dtype, shape);
}

py::object new_output(const char* function, AttentionArguments& arguments) {
  AttentionParams& params = arguments.params;
  const Shape4& shape = params.q.shape;
  const bool by_token = std::abs(params.q.stride[1]) < std::abs(params.q.stride[2]);  // q is (B, L, H, D) in memory
  params.out = {nullptr, params.q.dtype, shape, contiguous_strides(shape)};
  std::vector<int64_t> in_memory(shape.begin(), shape.end());
  if (by_token) {
    std::swap(in_memory[1], in_memory[2]);
    params.out.stride = {shape[1] * shape[2] * shape[3], shape[3], shape[1] * shape[3], 1};
  }
  if (!arguments.memory.on_host()) {
    const py::object out = arguments.memory.empty(in_memory, params.q.dtype, function, "out", &params.out.data);
    return by_token ? out.attr("swapaxes")(1, 2) : out;
  }
  if (arguments.foreign) {
    Buffer out(params.q.dtype, in_memory, function, "out");
    params.out.data = out.data();
    if (by_token) out.swap_heads_and_tokens();
    return py::cast(std::move(out));
  }
  const py::dtype dtype = py::reinterpret_borrow<py::array>(arguments.alive[0]).dtype();
  py::array out = new_array(dtype, {in_memory.begin(), in_memory.end()}, function, "out");
  params.out.data = out.mutable_data();
  return by_token ? py::object(out.attr("transpose")(0, 2, 1, 3)) : py::object(out);
}

py::object new_lse(const char* function, AttentionArguments& arguments) {
  AttentionParams& params = arguments.params;
  const std::vector<int64_t> shape{params.batch(), params.heads(), params.q_len()};
  if (!arguments.memory.on_host()) {
    void* data = nullptr;
    py::object lse = arguments.memory.empty(shape, DType::kFloat32, function, "lse", &data);
    params.lse = static_cast<float*>(data);
    return lse;
  }
  if (arguments.foreign) {
    Buffer lse(DType::kFloat32, shape, function, "lse");
    params.lse = static_cast<float*>(lse.data());
    return py::cast(std::move(lse));
  }
  py::array lse = new_array(py::dtype::of<float>(), {shape.begin(), shape.end()}, function, "lse");
  params.lse = static_cast<float*>(lse.mutable_data());
  return lse;
}

}  // namespace sparsed::python
