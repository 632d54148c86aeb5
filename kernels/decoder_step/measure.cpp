// Parts of a step alone, for tests and benchmarks: one product, one token, and the reading of memory that no product can be faster than.
#include <algorithm>
#include <cstring>
#include <new>
#include <numeric>

#include "model.h"
#include "sampler.h"

using namespace decoder_step;

namespace {

const Kernels* checked(int path) { return path >= 0 && path < kPaths ? kernels_of(Path(path)) : nullptr; }

struct Product {
  const Kernels* kernels;
  const Matrix* matrix;
  ds_matrix w;
  const Values* in;
  Values* out;
  int rows;
};

void one_product(void* context, Worker& worker) {
  const auto& job = *static_cast<const Product*>(context);
  worker.each(job.matrix->panels(), [&](int panel) {
    pack(*job.matrix, job.w, panel, panel + 1);
    job.kernels->product(*job.matrix, job.in->activations(job.rows), job.out->x.data(), job.out->stride, panel, panel + 1);
  });
}

struct Reading {
  static constexpr size_t kChunk = 1 << 18;  // floats
  const Kernels* kernels;
  const float* data;
  size_t n;
  std::vector<float> sums;  // of the chunks
};

void read_memory(void* context, Worker& worker) {
  auto& job = *static_cast<Reading*>(context);
  worker.each(static_cast<int>(job.sums.size()), [&](int chunk) {
    const size_t first = chunk * Reading::kChunk;
    job.sums[chunk] = job.kernels->read_all(job.data + first, std::min(Reading::kChunk, job.n - first));
  });
}

}  // namespace

extern "C" {

int ds_product(ds_pool* pool, int path, int bits, int block, int rows, int inputs, int outputs, const float* x, ds_matrix w, float* y) {
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
  Product job = {kernels, &matrix, w, &in, &out, rows};
  pool->pool.run(one_product, &job, 1);
  for (size_t b = 0; b < static_cast<size_t>(rows); b++) std::memcpy(y + b * outputs, out.row(b), outputs * sizeof(float));
  return DS_OK;
}

int64_t ds_sample(const float* logits, const float* without_condition, int vocabulary, const ds_sequence* s, int forbids_last, uint32_t token,
                  const float* noise) {
  const Draw draw = {logits, without_condition, vocabulary, s->scale, s->temperature, s->rules.k, forbids_last != 0, s->seed,
                     static_cast<uint32_t>(s->item), static_cast<uint32_t>(s->rules.stage), token, noise};
  try {
    Drawing room(vocabulary);
    return sample(draw, room);
  } catch (const std::bad_alloc&) {
    return -1;
  }
}

float ds_read(ds_pool* pool, int path, const float* data, size_t n) {
  const Kernels* kernels = checked(path);
  if (!kernels) return 0;
  Reading job = {kernels, data, n, std::vector<float>((n + Reading::kChunk - 1) / Reading::kChunk)};
  pool->pool.run(read_memory, &job, 1);
  return std::accumulate(job.sums.begin(), job.sums.end(), 0.0f);
}

}  // extern "C"
