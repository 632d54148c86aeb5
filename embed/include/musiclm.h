/* libmusiclm: music from a bundle of musiclm-deploy, made and played by a C or C++ program, without Python.
 *
 * A model is a bundle's weights, shared by any number of streams and threads. A stream is one clip as it is made, by a thread of its own: the same
 * tokens and samples, to the bit, as `musiclm generate` and `MusicLM.stream` make on the same processor. Every call returns a status; what it
 * says in words is in `ml_last_error`. No call throws, aborts, prints, or changes anything of the process that is not the library's.
 *
 * Texts are UTF-8 and end with 0. Waves are float32, mono, between -1 and 1 as a rule. Pointers that a function fills are left alone where it
 * fails. Freeing NULL does nothing; models and streams may be freed in any order.
 */
#ifndef MUSICLM_H
#define MUSICLM_H

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define ML_API __attribute__((visibility("default")))
#else
#define ML_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* major << 16 | minor: programs that were compiled with one major number run with a library of the same one and of no smaller minor number. */
#define ML_ABI_VERSION 0x00010000u
ML_API uint32_t ml_abi_version(void);
ML_API const char *ml_version(void); /* of the library, as "0.1.0" */

typedef enum {
  ML_OK = 0,
  ML_BAD_ARGUMENT = 1, /* something that no model takes, or this one does not */
  ML_BAD_BUNDLE = 2,   /* the bundle is missing, damaged, or of another format */
  ML_NO_RUNTIME = 3,   /* ONNX Runtime was not found, or is too old */
  ML_NO_MEMORY = 4,
  ML_ENDED = 5,   /* the stream has ended, or was cancelled: nothing more comes */
  ML_TIMEOUT = 6, /* some of what was asked for has not been made in time */
  ML_FAILED = 7   /* while music was made */
} ml_status;

ML_API const char *ml_status_name(ml_status); /* such as "bad bundle" */
ML_API const char *ml_last_error(void);       /* of this thread's last call that failed; "" before any. Valid until the thread's next call */

/* --- options: by name, as text, so that this header does not change with models */

typedef struct ml_options ml_options;
ML_API ml_options *ml_options_new(void); /* NULL without memory */
ML_API void ml_options_free(ml_options *);
/* The value replaces one that was set before. The name is checked here, the value where the options are used. */
ML_API ml_status ml_options_set(ml_options *, const char *name, const char *value);

typedef struct {
  const char *name, *type, *bounds, *standard; /* type: "text", "integer", "number", "choice"; bounds: in words; standard: value by default */
  const char *meaning;
} ml_option;
/* The options of `ml_model_open`, then those of `ml_stream_start`; valid for ever. NULL beyond the last. */
ML_API const ml_option *ml_model_option(size_t index);
ML_API const ml_option *ml_stream_option(size_t index);

/* --- models */

typedef struct ml_model ml_model;

typedef struct {
  uint32_t sample_rate;   /* Hz, of the bundle's codec */
  uint32_t latent_size;   /* numbers of a latent */
  double default_seconds; /* of a clip that says no length */
  double chunk_seconds;   /* of what is decoded at once, at most */
} ml_info;

/* options: NULL for all by default. Checks the manifest, and the size and SHA-256 of every file. */
ML_API ml_status ml_model_open(const char *bundle, const ml_options *, ml_model **);
ML_API void ml_model_free(ml_model *); /* the streams that were started keep what they need */
ML_API ml_status ml_model_info(const ml_model *, ml_info *);

/* --- prompts */

typedef struct {
  const char *text;
  float weight;
} ml_part;

/* MuLaN's latent of a text, [latent_size], of length 1. */
ML_API ml_status ml_embed_text(ml_model *, const char *text, float *latent);

/* --- streams */

typedef struct ml_stream ml_stream;

/* Begins to make a clip. parts, count: the prompt, one text or a weighted mixture of several. */
ML_API ml_status ml_stream_start(ml_model *, const ml_part *parts, size_t count, const ml_options *, ml_stream **);
ML_API void ml_stream_free(ml_stream *); /* cancels it, and waits for its thread */

/* A stream is read by one thread at a time, at the rate of its option `output_rate`, by default the bundle's.
 *
 * Copies the next frames of the clip, waiting for them at most `timeout` seconds, for ever if it is negative. got: how many there are. ML_OK: all, or
 * the last ones of the clip, got > 0. ML_ENDED: the clip has ended or was cancelled, got is 0. ML_TIMEOUT: some are missing. ML_FAILED and
 * ML_NO_MEMORY: making it failed; what came before has been read. */
ML_API ml_status ml_stream_read(ml_stream *, float *out, size_t frames, double timeout, size_t *got);

/* For an audio thread: fills every channel with the next frames, the same in all. It never waits, allocates, locks, or calls the system. What has not
 * been made is silence, and counts as an underrun once the stream has sounded. Returns the frames that are music. */
ML_API size_t ml_stream_read_rt(ml_stream *, float *const *out, size_t channels, size_t frames);
ML_API uint32_t ml_stream_rate(const ml_stream *);      /* Hz, of what is read */
ML_API size_t ml_stream_buffered(const ml_stream *);    /* frames that can be read without waiting */
ML_API size_t ml_stream_latency(const ml_stream *);     /* frames that resampling holds back until more is made; 0 at the bundle's rate */
ML_API uint64_t ml_stream_underruns(const ml_stream *); /* calls of `ml_stream_read_rt` that lacked music */
ML_API int ml_stream_ended(const ml_stream *);          /* whether nothing more comes, and all has been read */

/* From any thread but the audio thread, which does not wait for what is being made. Conditions what has not begun yet on another prompt;
 * heard_from: the second of the clip from which it can be heard. ML_ENDED where nothing begins any more. */
ML_API ml_status ml_stream_set_prompt(ml_stream *, const ml_part *parts, size_t count, double *heard_from);
ML_API void ml_stream_cancel(ml_stream *); /* from any thread; its rows are free after at most the frame that is being made */

/* Writes the tokens so far and how they are made, and goes on from them: the same samples, from `start_seconds` of the clip on. */
ML_API ml_status ml_stream_save(ml_stream *, const char *path);
ML_API ml_status ml_stream_resume(ml_model *, const char *path, double start_seconds, ml_stream **);

/* --- a whole clip */

/* The clip's samples, at the rate of the options; free them with `ml_free`. */
ML_API ml_status ml_generate(ml_model *, const ml_part *parts, size_t count, const ml_options *, float **wave, size_t *frames);
ML_API void ml_free(void *);

#ifdef __cplusplus
}
#endif
#endif
