// Parts of a step alone, for tests and benchmarks: one product, and the reading of memory that no product can be faster than.
#include <cstring>
#include <numeric>

#include "model.h"

using namespace decoder_step;

namespace {

const Kernels* checked(int path) { return path >= 0 && path < kPaths ? kernels_of(Path(path)) : nullptr; }

struct Product {
  const Kernels* kernels;
  const Matrix* matrix;
  const float* w;
  const Values* in;
  Values* out;
  int rows, threads;
};

void product_share(void* context, int thread) {
  const auto& job = *static_cast<const Product*>(context);
  const Share panels(job.matrix->panels(), thread, job.threads);
  pack(*job.matrix, job.w, panels.first, panels.last);
  job.kernels->product(*job.matrix, job.in->activations(job.rows), job.out->x.data(), job.out->stride, panels.first, panels.last);
}

struct Reading {
  const Kernels* kernels;
  const float* data;
  size_t n;
  int threads;
  std::vector<float> sums;
};

void read_share(void* context, int thread) {
  auto& job = *static_cast<Reading*>(context);
  const size_t first = job.n * thread / job.threads, last = job.n * (thread + 1) / job.threads;
  job.sums[thread] = job.kernels->read_all(job.data + first, last - first);
}

}  // namespace

extern "C" {

int ds_product(ds_pool* pool, int path, int bits, int block, int rows, int inputs, int outputs, const float* x, const float* w, float* y) {
  const Kernels* kernels = checked(path);
  if (!kernels || (bits != 32 && bits != 8 && bits != 4) || block < 32 || block % 32 || block > kMostBlock) return DS_BAD_FORM;
  Matrix matrix = shape_matrix(inputs, outputs, bits, block);
  Arena arena;
  arena.allocate(matrix_bytes(matrix));
  place_matrix(&matrix, arena.data());
  Values in, out;
  in.resize(rows, inputs);
  in.resize_quantized(rows, matrix);
  out.resize(rows, outputs);
  for (size_t b = 0; b < static_cast<size_t>(rows); b++) {
    std::memcpy(in.row(b), x + b * inputs, inputs * sizeof(float));
    if (bits == 32) continue;
    kernels->quantize(in.row(b), matrix, &in.q[b * matrix.padded_inputs()], &in.scale[b * matrix.blocks], &in.offset[b * matrix.blocks]);
  }
  Product job = {kernels, &matrix, w, &in, &out, rows, pool->pool.threads()};
  pool->pool.run(product_share, &job);
  for (size_t b = 0; b < static_cast<size_t>(rows); b++) std::memcpy(y + b * outputs, out.row(b), outputs * sizeof(float));
  return DS_OK;
}

float ds_read(ds_pool* pool, int path, const float* data, size_t n) {
  const Kernels* kernels = checked(path);
  if (!kernels) return 0;
  Reading job = {kernels, data, n, pool->pool.threads(), std::vector<float>(pool->pool.threads())};
  pool->pool.run(read_share, &job);
  return std::accumulate(job.sums.begin(), job.sums.end(), 0.0f);
}

}  // extern "C"
