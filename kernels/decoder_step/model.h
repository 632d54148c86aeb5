// A model in memory: matrices packed for the products (kernels.h), small tensors where the caller keeps them.
#pragma once

#include <memory>
#include <vector>

#include "decoder_step.h"
#include "kernels.h"
#include "pool.h"

namespace decoder_step {

// Memory for packed weights, in huge pages where the system grants them: a step reads all of it once, through few address translations.
class Arena {
 public:
  Arena() = default;
  ~Arena();
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  void allocate(size_t bytes);  // zeroed; std::bad_alloc
  uint8_t* data() const { return data_; }

 private:
  uint8_t* data_ = nullptr;
};

// Rows of activations, with room for their quantized form.
struct Values {
  size_t stride = 0;
  Floats x, scale;
  std::vector<int8_t> q;
  std::vector<int32_t> offset;

  void resize(size_t rows, size_t width) {
    stride = up(width);
    x.assign(rows * stride, 0.0f);
  }
  // Room for what products with `matrix` read.
  void resize_quantized(size_t rows, const Matrix& matrix) {
    if (matrix.bits == 32) return;
    q.assign(rows * matrix.padded_inputs(), 0);
    scale.assign(rows * matrix.blocks, 0.0f);
    offset.assign(rows * matrix.blocks, 0);
  }
  float* row(size_t b) { return x.data() + b * stride; }
  Activations activations(int rows) const { return {rows, x.data(), stride, q.data(), scale.data(), offset.data()}; }
};

struct Layer {
  Connection connections[3];
  Norm attention_norm, cross_norm, feed_norm, inner_norm;
  const float *key_scale, *taps;  // nullptr where the model has none; taps [panels of feed_in][3][kPanel]
  Matrix q, kv, out, cross_q, cross_out, feed_in, feed_out;
};

// The shape of a matrix and the bytes that it takes, data and scales, each rounded up to a cache line.
Matrix shape_matrix(int inputs, int outputs, int bits, int block);
size_t matrix_bytes(const Matrix& matrix);
// Gives the matrix its place; returns the end of it.
uint8_t* place_matrix(Matrix* matrix, uint8_t* at);
// Packs panels first to last of w.
void pack(const Matrix& matrix, const ds_matrix& w, int first, int last);

}  // namespace decoder_step

struct ds_pool {
  ds_pool(int threads, size_t least) : pool(threads), least_bytes(least) {}
  decoder_step::Pool pool;
  const size_t least_bytes;
};

struct ds_model {
  ds_weights sizes;  // its pointers into layers and heads are not used once the model is made
  int path;
  const decoder_step::Kernels* kernels;
  std::vector<decoder_step::Layer> layers;
  std::vector<decoder_step::Matrix> heads;
  decoder_step::Floats columns;  // of all connections
  decoder_step::Arena arena;     // the matrices, then the taps
};
