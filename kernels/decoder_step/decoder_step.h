/* One decode step of a token transformer, for B ragged rows: the C interface. __init__.py binds it; a C++ host can link it.
 * A prefill is such a step too: its rows are the positions of a prompt.
 *
 * Weights come as they lie in the bundle; `ds_model_create` packs the large ones, so that only
 * `rows`, the tables, the norms and the mixing weights must stay where they are as long as the model lives. Buffers are the caller's,
 * the same that the ONNX graph is bound to: what a prefill by the graph left in the caches, a step goes on from, and the other way round.
 * No function throws or aborts: what cannot be is answered with NULL or a status, and the reason is written into `error` where there is one.
 */
#ifndef DECODER_STEP_H
#define DECODER_STEP_H

#include <stddef.h>
#include <stdint.h>

#ifdef __GNUC__
#pragma GCC visibility push(default)
#endif
#ifdef __cplusplus
extern "C" {
#endif

typedef struct ds_pool ds_pool;   /* threads; shared by any number of models, one step at a time */
typedef struct ds_model ds_model; /* weights; unchanged once made, shared by any number of runs */
typedef struct ds_run ds_run;     /* one request: its buffers, and scratch */

typedef struct {
  const float *gain, *bias; /* [n]; a bias of NULL is zero */
} ds_norm;

typedef struct { /* a matrix of `inputs` and `outputs`, which are said where it stands */
  const void *data;    /* float32 [inputs, outputs]; at 8 and 4 bits bytes [outputs, blocks, block * bits / 8], blocks of inputs, the last
                          one filled up, zero at 128 or 8; at 4 bits input 2i of a block in the low half of byte i */
  const float *scales; /* [outputs, blocks], that bfloat16 holds exactly; NULL at 32 bits */
} ds_matrix;

typedef struct { /* of a branch's hyper-connection; s streams; all NULL where s is 1 */
  const float *gain;    /* [dim] */
  const float *dynamic; /* [dim, s + 2]: s + 1 columns of alpha, one of beta */
  const float *scale;   /* [s + 2] */
  const float *offset;  /* [s, s + 2] */
} ds_connection;

typedef struct {
  ds_connection connections[3]; /* of self-attention, cross-attention, feed-forward */
  ds_norm attention_norm;
  ds_matrix attention_q;   /* [dim, heads * cache_dim] */
  ds_matrix attention_kv;  /* [dim, 2 * cache_dim]; the value half already halved where layer 0's values are averaged in */
  ds_matrix attention_out; /* [heads * cache_dim, dim] */
  ds_norm cross_norm;
  ds_matrix cross_q;   /* [dim, heads * head_dim]; data NULL in a model without cross-attention */
  ds_matrix cross_out; /* [heads * head_dim, dim] */
  ds_norm feed_norm;
  ds_matrix feed_in; /* [dim, 2 * inner]: values, then gates */
  ds_norm inner_norm;
  ds_matrix feed_out; /* [inner, dim] */
} ds_layer;

typedef struct {
  int32_t dim, depth, heads, head_dim, cache_dim, inner, streams, vocabulary;
  int32_t outputs;        /* output projections, of which a step reads one */
  int32_t table_rows;     /* rows of the table of input embeddings */
  int32_t bias_entries;   /* of the attention bias, 0 without one */
  int32_t value_residual; /* whether half of layer 0's value is added in the later layers */
  int32_t bits, block;    /* of the layers' matrices: 32, 8 or 4; inputs that share a scale, a multiple of 32 (8 and 4 bits) */
  const float *rows;      /* [table_rows, dim] */
  const float *bias;      /* [heads, bias_entries] */
  const ds_layer *layers; /* [depth] */
  ds_norm norm;
  const float *const *heads_out; /* [outputs] of [dim, vocabulary] */
  const float *head_bias;        /* [vocabulary] or NULL */
} ds_weights;

typedef struct {
  int32_t rows;                     /* that a step computes at most: new positions */
  int32_t sequences, capacity;      /* that have a cache, and positions of one */
  int32_t context;                  /* keys of the cross-attention, 0 without */
  int32_t prefix_rows;
  const int64_t *sequence_ids;      /* [rows]: whose position a row is; never less than in the row before */
  const int64_t *row_ids;           /* [rows]: which row is fed, of the table or, counted on from its end, of the prefix */
  const int64_t *query_coordinates; /* [rows] */
  const int64_t *lengths;           /* [rows]: positions up to this one: 1 to capacity; of one sequence each one more than in the row before */
  const int64_t *key_coordinates;   /* [sequences, capacity] */
  float *const *keys, *const *values; /* [depth] of [sequences, capacity, cache_dim]; position lengths - 1 is written */
  const float *const *context_keys;   /* [depth] of [sequences, head_dim, context], scaled */
  const float *const *context_values; /* [depth] of [sequences, context, head_dim] */
  const float *prefix;                /* [prefix_rows, dim] */
  float *logits;                      /* [rows, vocabulary] */
} ds_buffers;

enum { DS_OK = 0, DS_BAD_ROW = 1, DS_BAD_LENGTH = 2, DS_BAD_HEAD = 3, DS_BAD_FORM = 4, DS_BAD_COUNT = 5, DS_NO_MEMORY = 6 };
enum { DS_NO_HEAD = -1 };

/* Which forms of the code this processor runs: bit 0 portable, 1 AVX2, 2 AVX-VNNI, 3 AVX-512 VNNI. */
int ds_paths(void);
const char *ds_path_name(int path);

/* least_bytes: of weights, times rows; a step that reads fewer is run by its caller alone, since it takes less time than its barriers. */
ds_pool *ds_pool_create(int threads, size_t least_bytes);
void ds_pool_free(ds_pool *);

/* path: -1 for the best that this processor has. The weights are packed by the pool's threads. */
ds_model *ds_model_create(ds_pool *, const ds_weights *, int path, char *error, size_t error_size);
size_t ds_model_bytes(const ds_model *); /* that a step of one row reads of packed weights, of one output projection */
int ds_model_path(const ds_model *);
void ds_model_free(ds_model *);

/* y [rows, outputs] = x [rows, inputs] @ w [inputs, outputs], packed on the way: for tests of the products alone. Returns a status. */
int ds_product(ds_pool *, int path, int bits, int block, int rows, int inputs, int outputs, const float *x, ds_matrix w, float *y);

/* Reads n floats by all threads with the widest loads of the path, and returns their sum: what memory allows at best. */
float ds_read(ds_pool *, int path, const float *data, size_t n);

/* The pointers are kept, not copied, but for the context's keys; model and pool must outlive the run. */
ds_run *ds_run_create(ds_pool *, const ds_model *, const ds_buffers *, char *error, size_t error_size);
void ds_run_free(ds_run *);

/* One step of the first `rows` rows: reads their numbers and the key coordinates, appends to the caches, writes the logits, but with
 * DS_NO_HEAD. Checked before anything is written; a status but DS_OK says what was out of range,
 * or that there is no memory to begin. */
int ds_step(ds_run *, int rows, int head);

#ifdef __cplusplus
}
#endif
#ifdef __GNUC__
#pragma GCC visibility pop
#endif
#endif
