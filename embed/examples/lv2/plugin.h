/* The LV2 plug-in's state and the messages between its two halves. plugin.c runs in the audio thread: it reads ports and events and copies samples.
 * worker.c runs in the host's worker thread: it opens bundles, starts and frees streams. Each half writes only its own struct. */
#ifndef MUSICLM_LV2_PLUGIN_H
#define MUSICLM_LV2_PLUGIN_H

#include <lv2/atom/forge.h>
#include <lv2/core/lv2.h>
#include <lv2/log/log.h>
#include <lv2/worker/worker.h>
#include <pthread.h>

#include "musiclm.h"

#define PLUGIN_URI "urn:musiclm:player"

enum { PROMPT, BUNDLE, TEXTS }; /* parameters that are texts */
enum { TEXT_BYTES = 1024 };     /* of a text and its final 0. Hosts pass messages through rings of 4 KB */
enum { STREAMS = 8 };           /* most streams that exist at once */

typedef struct {
  enum { SET, START, FREE, CHANGED, STREAM, HEARD, FAILED } kind; /* to the worker: SET, START, FREE; from the worker: the others */
  int which;                                                      /* SET, CHANGED: PROMPT or BUNDLE */
  uint32_t number;                                                /* START, STREAM: counts changes of the play port */
  float seed, guidance, ahead;                                    /* START */
  double seconds;                                                 /* HEARD: when a new prompt is heard */
  ml_stream *stream;                                              /* FREE, STREAM */
  char text[TEXT_BYTES];                                          /* SET, CHANGED */
} Message;

typedef struct {
  double rate;
  const LV2_Worker_Schedule *schedule; /* NULL: the host has no worker */
  const LV2_Log_Log *log;              /* NULL: the host has no log */
  struct {                             /* all 0: the host maps no URIs, so there are no events and no state */
    LV2_URID string, path, urid, object, log_error, log_warning, patch_get, patch_set, patch_property, patch_subject, patch_value, plugin,
        texts[TEXTS];
  } uris;

  struct {
    void *ports[17];
    LV2_Atom_Forge forge;
    char texts[TEXTS][TEXT_BYTES];
    int unsent[TEXTS];      /* texts that the worker does not have yet */
    int unannounced[TEXTS]; /* texts to be sent on the port NOTIFY */
    int playing, failed;
    uint32_t number;
    float gain, heard_from;
    ml_stream *stream;
    ml_stream *retired[STREAMS]; /* streams that the worker is to free */
    size_t retired_count;
  } audio;

  struct {
    pthread_mutex_t lock; /* guards texts, which the host may save while the worker runs */
    char texts[TEXTS][TEXT_BYTES];
    char shipped_bundle[TEXT_BYTES]; /* folder beside the plug-in, used while the parameter BUNDLE is empty */
    ml_model *model;
    ml_stream *current;       /* the stream that was started last */
    ml_stream *live[STREAMS]; /* all streams that are not freed */
    Message start;            /* the last START */
    int start_pending;        /* whether starting has failed, to be tried again with another prompt or bundle */
  } worker;
} Plugin;

uint32_t message_size(const Message *); /* without the unused bytes of text */

LV2_Worker_Status work(LV2_Handle, LV2_Worker_Respond_Function, LV2_Worker_Respond_Handle, uint32_t size, const void *message);
LV2_Worker_Status work_response(LV2_Handle, uint32_t size, const void *message);
/* Passes a response on at once, for calls of `work` outside a host's worker. */
LV2_Worker_Status respond_now(LV2_Worker_Respond_Handle, uint32_t size, const void *message);

int worker_open(Plugin *, const char *folder); /* returns 0 without memory */
void worker_close(Plugin *);
const void *state_interface(void);

#endif
