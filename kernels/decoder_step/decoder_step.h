/* Decoding with a token transformer, the C interface: sequences join a batch, are sampled together, and leave. __init__.py binds it; a C++ host
 * can link it.
 *
 * Weights come as they lie in the bundle; `ds_model_create` packs the matrices and the taps, so that only `rows`, the tables, the norms,
 * the keys' scales and the mixing weights must stay where they are as long as the model lives. Caches are the library's.
 * No function throws or aborts: invalid input returns NULL or a status, and the reason is written into `error` where there is one.
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
typedef struct ds_model ds_model; /* weights; unchanged once made, shared by any number of batches */
typedef struct ds_batch ds_batch; /* sequences of one model, their caches, and scratch; one thread at a time uses it */

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
  const float *key_scale; /* [cache_dim], what a normalised key is multiplied by; NULL in a model without */
  const float *taps;      /* [3, 2 * inner], of the convolution, the oldest position's first; NULL in a model without */
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
  int32_t normalised;            /* whether self-attention divides each head's query and the key by their lengths; scores are not scaled */
  int32_t convolution;           /* whether a causal depthwise convolution of three positions follows feed_in */
  int32_t positions;             /* rows of the table of absolute positions, 0 without one */
  const float *positions_table;  /* [positions, dim], of which each position's row is added to its embedding */
} ds_weights;

typedef struct { /* where a sequence's tokens stand, and how they are drawn; a token's index counts from the sequence's first one, known or not */
  int64_t first_row, codebook, quantizers;   /* row of the table: first_row + index % quantizers * codebook + token */
  int64_t origin, per_frame, stride, shift;  /* coordinate: origin + index / per_frame * stride + index % per_frame; the query's is shift more */
  int64_t padding;                           /* not read here */
  int64_t stage;                             /* number of the stage in the noise */
  int64_t frame;                             /* tokens of a frame: the last entry of the vocabulary is forbidden for all but the first of a frame
                                                after the first frame; 0: never, -1: always */
  int64_t end;                               /* token that ends the sequence, -1 for none */
  int64_t k;                                 /* entries that top-k keeps */
} ds_rules;

typedef struct {
  int64_t positions;                                        /* of the prompt, one at least */
  const int64_t *ids, *query_coordinates, *key_coordinates; /* [positions]: rows of the table of embeddings, coordinates */
  int64_t context;                                          /* C, keys of the cross-attention; 0 in a model without */
  const float *const *context_keys;                         /* [depth] of [head_dim, C], scaled; entry 0 is that of no condition */
  const float *const *context_values;                       /* [depth] of [C, head_dim] */
  int64_t prefix_positions;                                 /* P, of a conditioning prefix, which stands before the prompt */
  const float *prefix;                                      /* [P, dim]: embeddings that its keys and values are made of in every layer */
  int32_t guided;                                           /* whether the pass without condition is computed as well */
  ds_rules rules;
  int64_t known, in_frames, steps; /* tokens that the prompt ends with; those that count towards rules.frame, below 0 where the first frame ends later; tokens to sample at most */
  uint64_t seed;                   /* of the noise */
  int64_t item, first;             /* number of the candidate under its seed, and of the first sampled token in its stage: 32 bits */
  float temperature, scale;        /* 0: the most likely token, without noise; of guidance */
  const int64_t *position_ids;     /* [positions + steps - 1]: rows of the table of absolute positions, for the prompt and for every sampled
                                      token that is fed; NULL in a model without */
} ds_sequence;

enum { DS_OK = 0, DS_BAD_FORM = 1, DS_BAD_COUNT = 2, DS_BAD_ID = 3, DS_NO_MEMORY = 4 };

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

/* A token as a batch samples it, for tests: logits [vocabulary], without_condition the same or NULL; noise [vocabulary], or NULL for the seeded
 * noise of `token`, the token's number in its stage. Returns -1 without memory. */
int64_t ds_sample(const float *logits, const float *without_condition, int vocabulary, const ds_sequence *, int forbids_last, uint32_t token,
                  const float *noise);

/* Sequences are sampled together, each with the bits that it has alone. Pool and model must outlive the batch. NULL without memory. */
ds_batch *ds_batch_create(ds_pool *, const ds_model *);
void ds_batch_free(ds_batch *);

/* Adds a sequence; everything is copied. Returns its id, or 0 and the reason: the batch is then as it was. Takes all memory that is needed until
 * the sequence leaves. */
int64_t ds_batch_join(ds_batch *, const ds_sequence *, char *error, size_t error_size);

/* Feeds at most `positions` positions of prompts, in the order of joining, then samples `frames` frames of every sequence whose prompt has been
 * fed: one token by each output projection in turn. A sequence that ends is left out from then on. Of equal prompts under equal conditions one
 * is computed. */
int ds_batch_advance(ds_batch *, int64_t frames, int64_t positions);
/* Makes the advance that runs in another thread, or else the next one, return after a piece of a prompt and a frame. */
void ds_batch_interrupt(ds_batch *);
int64_t ds_batch_waiting(const ds_batch *);  /* positions of prompts that have not been fed; the last one of a prompt is its first step's */
int64_t ds_batch_computed(const ds_batch *); /* positions of prompts that were computed so far, not copied */

/* Takes a sequence's oldest tokens that were not taken yet, `size` at most; the end is not among them. Returns how many, or -1 for an id that is not
 * there. done: whether these were the last ones. */
int64_t ds_batch_collect(ds_batch *, int64_t id, int64_t *tokens, int64_t size, int *done);
int ds_batch_leave(ds_batch *, int64_t id); /* frees a sequence, done or not */

/* The noise of the next `advance`, in place of the seeded noise: [frames * outputs, vocabulary], not copied, read until that call returns. */
int ds_batch_noise(ds_batch *, int64_t id, const float *noise);
int64_t ds_batch_sampled(const ds_batch *, int64_t id); /* tokens sampled so far; -1 if it is not there, is done, or its prompt was not fed */
int ds_batch_logits(const ds_batch *, int64_t id, float *logits); /* [outputs, 1 or, if guided, 2, vocabulary] of its last frame, without condition last */

/* Bytes of a slot, of which a sequence has one, and if guided a second without prefix; and of the scratch of a batch whose steps have so many
 * rows (slots, or positions of prompts, of which 64 are fed at a time) with caches of so many positions. */
size_t ds_slot_bytes(const ds_model *, int64_t positions, int64_t context, int64_t prefix_positions);
size_t ds_scratch_bytes(const ds_pool *, const ds_model *, int64_t rows, int64_t positions, int64_t context);

#ifdef __cplusplus
}
#endif
#ifdef __GNUC__
#pragma GCC visibility pop
#endif
#endif
