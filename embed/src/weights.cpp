// See weights.h: a graph's data, mapped; the places of its weights, checked as runtime/step.py and kernels/decoder_step/sizes.py check
// them; and the structures of decoder_step.h, filled as kernels/decoder_step/__init__.py fills them. No pointer leads outside the file.
#include "weights.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <new>
#include <set>
#include <vector>

#include "error.h"
#include "files.h"
#include "json_text.h"

namespace fs = std::filesystem;

namespace musiclm {

struct Transformer::Mapped {
  explicit Mapped(const fs::path& path) {
    const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    struct stat found;
    if (file < 0 || ::fstat(file, &found) != 0) fail(path, errno, file);
    size = static_cast<size_t>(found.st_size);
    void* const address = size ? ::mmap(nullptr, size, PROT_READ, MAP_PRIVATE, file, 0) : MAP_FAILED;
    if (address == MAP_FAILED) fail(path, size ? errno : EINVAL, file);
    ::close(file);
    data = static_cast<const uint8_t*>(address);
  }
  ~Mapped() { ::munmap(const_cast<uint8_t*>(data), size); }
  Mapped(const Mapped&) = delete;
  Mapped& operator=(const Mapped&) = delete;

  // What was packed is not read again; tables and norms come back when they are used.
  void release() const { ::madvise(const_cast<uint8_t*>(data), size, MADV_DONTNEED); }

  const uint8_t* data;
  size_t size;

 private:
  [[noreturn]] static void fail(const fs::path& path, int number, int file) {
    if (file >= 0) ::close(file);
    throw Error(number == ENOMEM ? ML_NO_MEMORY : ML_BAD_BUNDLE, path.string() + ": it cannot be mapped: " + system_message(number));
  }
};

namespace {

using Shape = std::vector<uint64_t>;

[[noreturn]] void refuse(const std::string& why) { throw Error(ML_BAD_BUNDLE, why); }

std::string text_of(const std::string& type, const Shape& shape) {
  std::string text = type + " [";
  for (size_t i = 0; i < shape.size(); i++) text += (i ? ", " : "") + std::to_string(shape[i]);
  return text + "]";
}

size_t bytes_of_type(const std::string& type) { return type == "float32" ? 4 : 1; }

// Beyond 64 bits it is the largest number, also where another dimension is 0.
uint64_t bytes_of(const Place& place) {
  uint64_t bytes = bytes_of_type(place.type);
  bool nothing = false;
  for (uint64_t dimension : place.shape) {
    nothing = nothing || dimension == 0;
    if (__builtin_mul_overflow(bytes, std::max<uint64_t>(dimension, 1), &bytes)) return UINT64_MAX;
  }
  return nothing ? 0 : bytes;
}

// A stage's weights by name, each looked up with the type and shape that it must have.
class Weights {
 public:
  Weights(const Decoder& decoder, const uint8_t* data, size_t size, int bits) : decoder_(decoder), data_(data), bits_(bits) {
    uint64_t together = 0;
    for (const auto& [name, place] : places()) {
      const uint64_t bytes = bytes_of(place), unit = bytes_of_type(place.type);
      if (place.offset % unit || bytes > size || place.offset > size - bytes) {
        refuse("the weight " + python_repr(name) + ", " + text_of(place.type, place.shape) + " at byte " + std::to_string(place.offset) +
               ", does not lie within the " + std::to_string(size) + " bytes, or not at a multiple of " + std::to_string(unit));
      }
      // Packed weights take as much memory as all of these: a small file whose weights overlap could ask for any amount.
      if (__builtin_add_overflow(together, bytes, &together) || together > size) {
        refuse("the weights take more bytes together than the file's " + std::to_string(size) + ": some overlap");
      }
    }
  }

  const std::map<std::string, Place>& places() const { return decoder_.step.weights; }
  bool has(const std::string& name) const { return places().count(name) > 0; }

  // Throws for a weight that no step reads: the manifest describes another model then.
  void refuse_unread() const {
    for (const auto& [name, place] : places()) {
      if (!read_.count(name)) refuse("the weight " + python_repr(name) + " is of another model than the manifest describes");
    }
  }

  const float* floats(const std::string& name, const Shape& shape) const { return static_cast<const float*>(at(name, "float32", shape)); }

  ds_norm norm(const std::string& name, uint64_t width) const {
    return {floats(name + ".gain", {width}), has(name + ".bias") ? floats(name + ".bias", {width}) : nullptr};
  }

  ds_matrix matrix(const std::string& name, uint64_t inputs, uint64_t outputs) const {
    if (bits_ == 32) return {floats(name, {inputs, outputs}), nullptr};
    const uint64_t block = decoder_.step.block, blocks = (inputs + block - 1) / block;
    return {at(name + ".values", "uint8", {outputs, blocks, block * bits_ / 8}), floats(name + ".scales", {outputs, blocks})};
  }

  ds_connection connection(const std::string& name) const {
    const uint64_t dim = decoder_.dim, streams = decoder_.step.streams;
    if (streams == 1) return {};
    return {floats(name + ".norm", {dim}), floats(name + ".dynamic", {dim, streams + 2}), floats(name + ".scale", {streams + 2}),
            floats(name + ".static", {streams, streams + 2})};
  }

 private:
  const void* at(const std::string& name, const std::string& type, const Shape& shape) const {
    const auto found = places().find(name);
    const bool missing = found == places().end();
    if (missing || found->second.type != type || found->second.shape != shape) {
      refuse("the weight " + python_repr(name) + " must be " + text_of(type, shape) + ", got " +
             (missing ? "none" : text_of(found->second.type, found->second.shape)));
    }
    read_.insert(name);
    return data_ + found->second.offset;
  }

  mutable std::set<std::string> read_;
  const Decoder& decoder_;
  const uint8_t* data_;
  int bits_;
};

ds_layer describe_layer(const Weights& weights, const Decoder& decoder, int64_t index) {
  const uint64_t dim = decoder.dim, inner = decoder.step.inner, cache = decoder.cache_head_size;
  const uint64_t wide = decoder.heads * cache, narrow = decoder.heads * static_cast<uint64_t>(decoder.step.dim_head);
  const std::string name = "layers." + std::to_string(index);
  const bool cross = decoder.conditioning == "cross_attention";
  ds_layer layer{};
  for (int branch = 0; branch < 3; branch++) {
    if (branch != 1 || cross) layer.connections[branch] = weights.connection(name + "." + std::to_string(branch) + ".connection");
  }
  layer.attention_norm = weights.norm(name + ".attention.norm", dim);
  layer.attention_q = weights.matrix(name + ".attention.w_q", dim, wide);
  layer.attention_kv = weights.matrix(name + ".attention.w_kv", dim, 2 * cache);
  layer.attention_out = weights.matrix(name + ".attention.w_out", wide, dim);
  if (cross) {
    layer.cross_norm = weights.norm(name + ".cross_attention.norm", dim);
    layer.cross_q = weights.matrix(name + ".cross_attention.w_q", dim, narrow);
    layer.cross_out = weights.matrix(name + ".cross_attention.w_out", narrow, dim);
  }
  layer.feed_norm = weights.norm(name + ".feed_forward.norm", dim);
  layer.feed_in = weights.matrix(name + ".feed_forward.w_in", dim, 2 * inner);
  if (decoder.step.normalised_attention) layer.key_scale = weights.floats(name + ".attention.key_scale", {cache});
  if (decoder.step.convolution) layer.taps = weights.floats(name + ".feed_forward.taps", {3, 2 * inner});
  layer.inner_norm = weights.norm(name + ".feed_forward.inner_norm", inner);
  layer.feed_out = weights.matrix(name + ".feed_forward.w_out", inner, dim);
  return layer;
}

int bits_of(const Decoder& decoder) {
  const std::string& precision = decoder.step.precision;
  const int bits = precision == "fp32" ? 32 : precision == "int8" ? 8 : precision == "int4" ? 4 : 0;
  const int64_t block = decoder.step.block;
  if (!bits) refuse("precision " + python_repr(precision) + ", expected one of fp32, int8, int4: update musiclm-deploy");
  if (bits < 32 && (block % 32 || block > 256)) {
    refuse("weights of " + std::to_string(bits) + " bits in blocks of " + std::to_string(block) + ", expected a multiple of 32 up to 256");
  }
  return bits;
}

ds_model* make_model(const Decoder& decoder, const uint8_t* data, size_t size, ds_pool* pool) {
  const int bits = bits_of(decoder);
  const Weights weights(decoder, data, size, bits);
  // Counts of layers and heads without weights of their own would only take memory.
  if (decoder.depth > static_cast<int64_t>(weights.places().size())) {
    refuse(std::to_string(weights.places().size()) + " weights are too few for " + std::to_string(decoder.depth) + " layers");
  }
  const int64_t outputs = decoder.outputs();
  if (outputs > static_cast<int64_t>(weights.places().size()) || weights.has("head." + std::to_string(outputs) + ".weight")) {
    refuse("the stage predicts " + std::to_string(outputs) + " quantizers, its weights are for another number of them");
  }
  const auto table = weights.places().find("rows");
  const uint64_t table_rows = table == weights.places().end() || table->second.shape.empty() ? 1 : table->second.shape[0];

  std::vector<ds_layer> layers;
  for (int64_t layer = 0; layer < decoder.depth; layer++) layers.push_back(describe_layer(weights, decoder, layer));
  const uint64_t dim = decoder.dim, vocabulary = decoder.vocabulary, entries = decoder.bias ? decoder.bias->entries : 0;
  std::vector<const float*> heads;
  for (int64_t q = 0; q < outputs; q++) heads.push_back(weights.floats("head." + std::to_string(q) + ".weight", {dim, vocabulary}));

  const auto narrowed = [](uint64_t count) { return static_cast<int32_t>(std::min<uint64_t>(count, INT32_MAX)); };
  ds_weights described{};
  described.dim = narrowed(dim);
  described.depth = narrowed(decoder.depth);
  described.heads = narrowed(decoder.heads);
  described.head_dim = narrowed(decoder.step.dim_head);
  described.cache_dim = narrowed(decoder.cache_head_size);
  described.inner = narrowed(decoder.step.inner);
  described.streams = narrowed(decoder.step.streams);
  described.vocabulary = narrowed(vocabulary);
  described.outputs = narrowed(outputs);
  described.table_rows = narrowed(table_rows);
  described.bias_entries = narrowed(entries);
  described.value_residual = decoder.step.value_residual;
  described.normalised = decoder.step.normalised_attention;
  described.convolution = decoder.step.convolution;
  described.positions = narrowed(decoder.step.positions.value_or(0));
  described.bits = bits;
  described.block = narrowed(decoder.step.block);
  described.rows = weights.floats("rows", {table_rows, dim});
  described.bias = entries ? weights.floats("bias_table", {static_cast<uint64_t>(decoder.heads), entries}) : nullptr;
  if (decoder.step.positions) described.positions_table = weights.floats("positions", {static_cast<uint64_t>(*decoder.step.positions), dim});
  described.layers = layers.data();
  described.norm = weights.norm("norm", dim);
  described.heads_out = heads.data();
  described.head_bias = weights.has("head.bias") ? weights.floats("head.bias", {vocabulary}) : nullptr;

  weights.refuse_unread();
  char fault[200] = "";
  ds_model* const model = ds_model_create(pool, &described, -1, fault, sizeof fault);
  if (!model && std::strstr(fault, "not enough memory") == fault) {
    const std::string needed = std::to_string(size / 1000000 + 1);
    throw Error(ML_NO_MEMORY, std::string(fault) + ", which take up to " + needed + " MB. End what else takes memory.");
  }
  if (!model) refuse(std::string("the native step does not take these weights: ") + fault);
  return model;
}

}  // namespace

Transformer::Transformer(const Bundle& bundle, int stage, ds_pool* pool) {
  const Decoder& decoder = bundle.manifest.decoders[stage];
  bundle.path(decoder.graph);  // still the files that were checked
  const fs::path data = bundle.path(decoder.graph + ".data");
  mapped_ = std::make_unique<Mapped>(data);
  try {
    model_ = make_model(decoder, mapped_->data, mapped_->size, pool);
  } catch (const Error& error) {
    throw Error(error.status, data.string() + ": " + error.what());
  }
  mapped_->release();
}

Transformer::~Transformer() { ds_model_free(model_); }

}  // namespace musiclm
