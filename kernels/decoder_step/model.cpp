// From the bundle's weights to a model: checks of sizes, packing by all threads, the mixing columns of the hyper-connections, and the
// convolution's taps.
#include "model.h"

#include <sys/mman.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

namespace decoder_step {

Arena::~Arena() { std::free(data_); }

void Arena::allocate(size_t bytes) {
  constexpr size_t kHuge = size_t{1} << 21;
  const size_t whole = (bytes + kHuge - 1) / kHuge * kHuge;
  void* data = nullptr;
  if (posix_memalign(&data, kHuge, whole) != 0) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
  madvise(data, whole, MADV_HUGEPAGE);
#endif
  std::memset(data, 0, whole);
  data_ = static_cast<uint8_t*>(data);
}

namespace {

const char* fault_of(const ds_weights& w) {
  const int32_t counts[] = {w.dim, w.depth, w.heads, w.head_dim, w.cache_dim, w.inner, w.streams, w.vocabulary, w.outputs, w.table_rows};
  for (int32_t count : counts) {
    if (count < 1 || count > 1 << 24) return "a size is below 1 or beyond 2^24";
  }
  if (w.streams > kMaxStreams) return "more residual streams than are covered";
  if (w.cache_dim % 8 || w.head_dim > w.cache_dim) return "the cache's head size is no multiple of 8, or smaller than the model's";
  if (w.bias_entries < 0 || (w.bias_entries > 0) != (w.bias != nullptr)) return "a bias table and its entries go together";
  if (w.positions < 0 || w.positions > 1 << 24 || (w.positions > 0) != (w.positions_table != nullptr)) {
    return "a table of positions and its rows go together";
  }
  for (int l = 0; l < w.depth; l++) {
    if ((w.normalised != 0) != (w.layers[l].key_scale != nullptr)) return "normalised keys and their scales go together";
    if ((w.convolution != 0) != (w.layers[l].taps != nullptr)) return "a convolution and its taps go together";
  }
  if (w.bits != 32 && w.bits != 8 && w.bits != 4) return "weights have 32, 8 or 4 bits";
  if (w.bits != 32 && (w.block < 32 || w.block % 32 || w.block > kMostBlock)) return "a block is a multiple of 32, up to 256";
  return nullptr;
}

struct Job {
  Matrix* matrix;
  ds_matrix w;
};

// Every matrix of the model with the weights it is packed from.
std::vector<Job> lay_out(const ds_weights& w, ds_model* model) {
  std::vector<Job> jobs;
  const auto add = [&](Matrix* matrix, ds_matrix weights, int inputs, int outputs, int bits) {
    *matrix = shape_matrix(inputs, outputs, bits, w.block);
    jobs.push_back({matrix, weights});
  };
  const int wide = w.heads * w.cache_dim, narrow = w.heads * w.head_dim;
  for (int l = 0; l < w.depth; l++) {
    const ds_layer& from = w.layers[l];
    Layer& layer = model->layers[l];
    add(&layer.q, from.attention_q, w.dim, wide, w.bits);
    add(&layer.kv, from.attention_kv, w.dim, 2 * w.cache_dim, w.bits);
    if (w.normalised) layer.kv.together = (w.cache_dim + kPanel - 1) / kPanel;
    add(&layer.out, from.attention_out, wide, w.dim, w.bits);
    if (from.cross_q.data) {
      add(&layer.cross_q, from.cross_q, w.dim, narrow, w.bits);
      add(&layer.cross_out, from.cross_out, narrow, w.dim, w.bits);
    }
    add(&layer.feed_in, from.feed_in, w.dim, 2 * w.inner, w.bits);
    add(&layer.feed_out, from.feed_out, w.inner, w.dim, w.bits);
    layer.attention_norm = {from.attention_norm.gain, from.attention_norm.bias};
    layer.cross_norm = {from.cross_norm.gain, from.cross_norm.bias};
    layer.feed_norm = {from.feed_norm.gain, from.feed_norm.bias};
    layer.inner_norm = {from.inner_norm.gain, from.inner_norm.bias};
    layer.key_scale = from.key_scale;
  }
  for (int head = 0; head < w.outputs; head++) add(&model->heads[head], {w.heads_out[head], nullptr}, w.dim, w.vocabulary, 32);
  return jobs;
}

// The norm's gain goes into the columns, which are read one after the other.
void transpose_connections(const ds_weights& w, ds_model* model) {
  if (w.streams == 1) return;
  const size_t columns = static_cast<size_t>(w.streams) + 2, dim = w.dim;
  model->columns.resize(columns * dim * 3 * w.depth);
  float* to = model->columns.data();
  for (int l = 0; l < w.depth; l++) {
    for (int branch = 0; branch < 3; branch++) {
      const ds_connection& from = w.layers[l].connections[branch];
      if (!from.gain) continue;
      model->layers[l].connections[branch] = {to, from.scale, from.offset};
      for (size_t c = 0; c < columns; c++) {
        for (size_t d = 0; d < dim; d++) *to++ = from.gain[d] * from.dynamic[d * columns + c];
      }
    }
  }
}

size_t taps_size(const ds_weights& w) { return w.convolution ? 3 * up(2 * static_cast<size_t>(w.inner)) : 0; }  // floats, of a layer

// The taps of a panel stand together, as they are read.
void spread_taps(const ds_weights& w, ds_model* model, float* to) {
  const size_t width = 2 * static_cast<size_t>(w.inner);
  for (int l = 0; l < w.depth && w.convolution; l++, to += taps_size(w)) {
    model->layers[l].taps = to;
    for (size_t c = 0; c < width; c++) {
      for (size_t tap = 0; tap < 3; tap++) to[c / kPanel * 3 * kPanel + tap * kPanel + c % kPanel] = w.layers[l].taps[tap * width + c];
    }
  }
}

void pack_all(void* context, Worker& worker) {
  for (const Job& job : *static_cast<const std::vector<Job>*>(context)) {
    worker.each(job.matrix->panels(), [&](int panel) { pack(*job.matrix, job.w, panel, panel + 1); });
  }
}

}  // namespace

}  // namespace decoder_step

using decoder_step::Path;

extern "C" {

int ds_paths(void) {
  int found = 0;
  for (int path = 0; path < decoder_step::kPaths; path++) found |= (decoder_step::kernels_of(Path(path)) != nullptr) << path;
  return found;
}

const char* ds_path_name(int path) {
  const char* names[] = {"portable", "AVX2", "AVX-VNNI", "AVX-512 VNNI"};
  return path >= 0 && path < decoder_step::kPaths ? names[path] : "none";
}

ds_pool* ds_pool_create(int threads, size_t least_bytes) {
  if (threads < 1 || threads > 1024) return nullptr;
  try {
    return new ds_pool(threads, least_bytes);
  } catch (...) {
    return nullptr;
  }
}

void ds_pool_free(ds_pool* pool) { delete pool; }

ds_model* ds_model_create(ds_pool* pool, const ds_weights* weights, int path, char* error, size_t error_size) {
  const char* fault = decoder_step::fault_of(*weights);
  if (path < 0) {
    for (path = decoder_step::kPaths - 1; !decoder_step::kernels_of(Path(path));) path--;
  }
  if (!fault && (path >= decoder_step::kPaths || !decoder_step::kernels_of(Path(path)))) fault = "this processor does not have that path";
  if (!fault) {
    try {
      std::unique_ptr<ds_model> model(new ds_model());
      model->sizes = *weights;
      model->path = path;
      model->kernels = decoder_step::kernels_of(Path(path));
      model->layers.resize(weights->depth);
      model->heads.resize(weights->outputs);
      auto jobs = decoder_step::lay_out(*weights, model.get());
      size_t bytes = decoder_step::taps_size(*weights) * weights->depth * sizeof(float);
      for (const auto& job : jobs) bytes += decoder_step::matrix_bytes(*job.matrix);
      model->arena.allocate(bytes);
      uint8_t* at = model->arena.data();
      for (const auto& job : jobs) at = decoder_step::place_matrix(job.matrix, at);
      decoder_step::transpose_connections(*weights, model.get());
      decoder_step::spread_taps(*weights, model.get(), reinterpret_cast<float*>(at));
      pool->pool.run(decoder_step::pack_all, &jobs, static_cast<int>(jobs.size()));
      return model.release();
    } catch (const std::bad_alloc&) {
      fault = "not enough memory for the packed weights";
    }
  }
  std::snprintf(error, error_size, "%s", fault);
  return nullptr;
}

size_t ds_model_bytes(const ds_model* model) {
  using decoder_step::matrix_bytes;
  size_t bytes = matrix_bytes(model->heads[0]) + decoder_step::taps_size(model->sizes) * model->layers.size() * sizeof(float);
  for (const auto& layer : model->layers) {
    for (const auto* matrix : {&layer.q, &layer.kv, &layer.out, &layer.cross_q, &layer.cross_out, &layer.feed_in, &layer.feed_out}) {
      if (matrix->data) bytes += matrix_bytes(*matrix);
    }
  }
  return bytes;
}

int ds_model_path(const ds_model* model) { return model->path; }

void ds_model_free(ds_model* model) { delete model; }

}  // extern "C"
