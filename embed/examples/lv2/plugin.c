/* The audio thread's half, and the functions that the host calls. `run` copies samples and passes messages on. It waits for music only while the host
 * renders offline. */
#include "plugin.h"

#include <lv2/atom/util.h>
#include <lv2/patch/patch.h>
#include <lv2/state/state.h>
#include <lv2/urid/urid.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

enum {
  CONTROL,
  NOTIFY,
  IN_LEFT,
  IN_RIGHT,
  LEFT,
  RIGHT,
  PLAY,
  SEED,
  GUIDANCE,
  GAIN,
  AHEAD,
  FREEWHEEL,
  STATUS,
  BUFFERED,
  UNDERRUNS,
  LATENCY,
  HEARD_FROM
};
enum { STOPPED, LOADING, PLAYING, FAILURE }; /* values of the port STATUS */
enum { PIECE = 256 };                        /* frames per read */

static float value(const Plugin *self, int port) { return *(const float *)self->audio.ports[port]; }
static void set_output(const Plugin *self, int port, double number) { *(float *)self->audio.ports[port] = (float)number; }

LV2_Worker_Status respond_now(LV2_Worker_Respond_Handle self, uint32_t size, const void *message) { return work_response(self, size, message); }

/* Sends a message to the worker and returns whether it was accepted. Without a worker, messages are handled at once, and only offline, where `run`
 * may take its time. */
static int send(Plugin *self, const Message *message) {
  const uint32_t size = message_size(message);
  if (self->schedule) return self->schedule->schedule_work(self->schedule->handle, size, message) == LV2_WORKER_SUCCESS;
  return value(self, FREEWHEEL) > 0 && work(self, respond_now, self, size, message) == LV2_WORKER_SUCCESS;
}

static void retire(Plugin *self, ml_stream *stream) {
  if (stream) self->audio.retired[self->audio.retired_count++] = stream; /* at most STREAMS exist */
}

LV2_Worker_Status work_response(LV2_Handle handle, uint32_t size, const void *data) {
  Plugin *self = handle;
  Message message = {.kind = FAILED};
  memcpy(&message, data, size);
  switch (message.kind) {
    case CHANGED:
      if (!self->audio.unsent[message.which]) strcpy(self->audio.texts[message.which], message.text);
      self->audio.unannounced[message.which] = 1;
      break;
    case STREAM:
      if (message.number == self->audio.number) {
        retire(self, self->audio.stream);
        self->audio.stream = message.stream, self->audio.failed = 0, self->audio.heard_from = 0;
      } else {
        retire(self, message.stream); /* the play port has changed since it was started */
      }
      break;
    case HEARD:
      self->audio.heard_from = (float)message.seconds, self->audio.failed = 0;
      break;
    default:
      self->audio.failed = 1;
  }
  return LV2_WORKER_SUCCESS;
}

/* --- events: patch:Set and patch:Get of the texts */

static int text_of(const Plugin *self, const LV2_Atom *property) {
  if (!property || property->type != self->uris.urid) return TEXTS;
  int which = 0;
  while (which < TEXTS && ((const LV2_Atom_URID *)property)->body != self->uris.texts[which]) which++;
  return which;
}

static void read_event(Plugin *self, const LV2_Atom_Object *event) {
  const LV2_Atom *subject = NULL, *property = NULL, *text = NULL;
  lv2_atom_object_get(event, self->uris.patch_subject, &subject, self->uris.patch_property, &property, self->uris.patch_value, &text, 0);
  if (subject && (subject->type != self->uris.urid || ((const LV2_Atom_URID *)subject)->body != self->uris.plugin)) return;
  const int which = text_of(self, property);
  if (event->body.otype == self->uris.patch_get) {
    for (int i = 0; i < TEXTS; i++) self->audio.unannounced[i] |= !property || i == which;
  } else if (event->body.otype == self->uris.patch_set && which < TEXTS && text && text->size && text->size <= TEXT_BYTES &&
             (text->type == self->uris.string || text->type == self->uris.path)) {
    memcpy(self->audio.texts[which], text + 1, text->size);
    self->audio.texts[which][text->size - 1] = 0;
    self->audio.unsent[which] = 1;
  }
}

static void read_events(Plugin *self) {
  const LV2_Atom_Sequence *events = self->audio.ports[CONTROL];
  if (!events || !self->uris.object) return;
  LV2_ATOM_SEQUENCE_FOREACH(events, event) {
    if (event->body.type == self->uris.object) read_event(self, (const LV2_Atom_Object *)&event->body);
  }
}

static void write_events(Plugin *self) {
  LV2_Atom_Sequence *events = self->audio.ports[NOTIFY];
  LV2_Atom_Forge *forge = &self->audio.forge;
  LV2_Atom_Forge_Frame sequence, object;
  if (!events || !self->uris.object) return;
  lv2_atom_forge_set_buffer(forge, (uint8_t *)events, events->atom.size);
  lv2_atom_forge_sequence_head(forge, &sequence, 0);
  for (int i = 0; i < TEXTS; i++) {
    const uint32_t length = (uint32_t)strlen(self->audio.texts[i]);
    if (!self->audio.unannounced[i] || forge->size - forge->offset < length + 128) continue; /* in a later cycle */
    lv2_atom_forge_frame_time(forge, 0);
    lv2_atom_forge_object(forge, &object, 0, self->uris.patch_set);
    lv2_atom_forge_key(forge, self->uris.patch_property), lv2_atom_forge_urid(forge, self->uris.texts[i]);
    lv2_atom_forge_key(forge, self->uris.patch_value);
    if (i == BUNDLE) lv2_atom_forge_path(forge, self->audio.texts[i], length);
    else lv2_atom_forge_string(forge, self->audio.texts[i], length);
    lv2_atom_forge_pop(forge, &object);
    self->audio.unannounced[i] = 0;
  }
  lv2_atom_forge_pop(forge, &sequence);
}

/* --- sound */

static void send_messages(Plugin *self) {
  for (int i = TEXTS - 1; i >= 0; i--) { /* the bundle before the prompt */
    Message message = {.kind = SET, .which = i};
    if (!self->audio.unsent[i]) continue;
    strcpy(message.text, self->audio.texts[i]);
    self->audio.unsent[i] = 0;
    self->audio.unsent[i] = !send(self, &message);
  }
  const int play = value(self, PLAY) > 0;
  if (play && !self->audio.playing) {
    const Message message = {
        .kind = START, .number = self->audio.number + 1, .seed = value(self, SEED), .guidance = value(self, GUIDANCE), .ahead = value(self, AHEAD)};
    self->audio.number++, self->audio.failed = 0;
    self->audio.playing = send(self, &message);
  } else if (!play && self->audio.playing) {
    self->audio.number++, self->audio.failed = 0, self->audio.playing = 0;
    retire(self, self->audio.stream), self->audio.stream = NULL;
  }
  if (self->audio.stream && ml_stream_ended(self->audio.stream)) { /* an endless stream ends by an error, which the worker logs */
    retire(self, self->audio.stream), self->audio.stream = NULL;
    self->audio.failed = 1;
  }
  while (self->audio.retired_count) {
    const Message message = {.kind = FREE, .stream = self->audio.retired[self->audio.retired_count - 1]};
    if (!send(self, &message)) break;
    self->audio.retired_count--;
  }
}

/* Reads the next frames of music, and silence in place of missing ones. */
static void read_music(Plugin *self, float *music, size_t frames) {
  size_t got = 0;
  if (self->audio.stream && value(self, FREEWHEEL) > 0) ml_stream_read(self->audio.stream, music, frames, -1, &got);
  else if (self->audio.stream) got = ml_stream_read_rt(self->audio.stream, &music, 1, frames);
  memset(music + got, 0, (frames - got) * sizeof *music);
}

/* Adds the music to the inputs. Inputs and outputs may share buffers, so the music is read into a buffer of its own. */
static void sound(Plugin *self, uint32_t frames) {
  const float gain = powf(10, value(self, GAIN) / 20), step = frames ? (gain - self->audio.gain) / (float)frames : 0;
  float music[PIECE];
  for (uint32_t start = 0; start < frames; start += PIECE) {
    const uint32_t count = frames - start < PIECE ? frames - start : PIECE;
    read_music(self, music, count);
    for (uint32_t i = 0; i < count; i++) music[i] *= self->audio.gain + step * (float)(start + i); /* a sudden change would click */
    for (int channel = 0; channel < 2; channel++) {
      const float *in = self->audio.ports[IN_LEFT + channel];
      float *out = (float *)self->audio.ports[LEFT + channel] + start;
      for (uint32_t i = 0; i < count; i++) out[i] = in ? in[start + i] + music[i] : music[i];
    }
  }
  self->audio.gain = gain;
}

static void run(LV2_Handle handle, uint32_t frames) {
  Plugin *self = handle;
  read_events(self);
  send_messages(self);
  sound(self, frames);
  write_events(self);
  const ml_stream *stream = self->audio.stream;
  const int unable = !self->schedule && value(self, FREEWHEEL) <= 0 && value(self, PLAY) > 0;
  set_output(self, STATUS, self->audio.failed || unable ? FAILURE : stream ? PLAYING : self->audio.playing ? LOADING : STOPPED);
  set_output(self, BUFFERED, stream ? (double)ml_stream_buffered(stream) / self->rate : 0);
  set_output(self, UNDERRUNS, stream ? (double)ml_stream_underruns(stream) : 0);
  set_output(self, LATENCY, stream ? (double)ml_stream_latency(stream) : 0);
  set_output(self, HEARD_FROM, self->audio.heard_from);
}

/* --- functions that the host calls */

static void map_uris(Plugin *self, LV2_URID_Map *map) {
  const struct {
    LV2_URID *urid;
    const char *uri;
  } all[] = {{&self->uris.string, LV2_ATOM__String},
             {&self->uris.path, LV2_ATOM__Path},
             {&self->uris.urid, LV2_ATOM__URID},
             {&self->uris.object, LV2_ATOM__Object},
             {&self->uris.log_error, LV2_LOG__Error},
             {&self->uris.log_warning, LV2_LOG__Warning},
             {&self->uris.patch_get, LV2_PATCH__Get},
             {&self->uris.patch_set, LV2_PATCH__Set},
             {&self->uris.patch_property, LV2_PATCH__property},
             {&self->uris.patch_subject, LV2_PATCH__subject},
             {&self->uris.patch_value, LV2_PATCH__value},
             {&self->uris.plugin, PLUGIN_URI},
             {&self->uris.texts[PROMPT], PLUGIN_URI "#prompt"},
             {&self->uris.texts[BUNDLE], PLUGIN_URI "#bundle"}};
  for (size_t i = 0; i < sizeof all / sizeof *all; i++) *all[i].urid = map->map(map->handle, all[i].uri);
  lv2_atom_forge_init(&self->audio.forge, map);
}

static LV2_Handle instantiate(const LV2_Descriptor *descriptor, double rate, const char *folder, const LV2_Feature *const *features) {
  Plugin *self = calloc(1, sizeof *self);
  (void)descriptor;
  if (!self) return NULL;
  if (!worker_open(self, folder)) return free(self), NULL;
  self->rate = rate, self->audio.gain = 1;
  strcpy(self->worker.texts[PROMPT], "calm piano"), strcpy(self->audio.texts[PROMPT], "calm piano");
  for (; features && *features; features++) {
    if (!strcmp((*features)->URI, LV2_WORKER__schedule)) self->schedule = (*features)->data;
    if (!strcmp((*features)->URI, LV2_LOG__log)) self->log = (*features)->data;
    if (!strcmp((*features)->URI, LV2_URID__map)) map_uris(self, (*features)->data);
  }
  if (!self->schedule && self->log) {
    self->log->printf(self->log->handle, self->uris.log_warning,
                      "musiclm: this host has no worker; it sounds only where the host renders offline.\n");
  }
  return self;
}

static void connect_port(LV2_Handle self, uint32_t port, void *data) { ((Plugin *)self)->audio.ports[port] = data; }

static void cleanup(LV2_Handle self) { worker_close(self), free(self); }

static const void *extension_data(const char *uri) {
  static const LV2_Worker_Interface worker = {work, work_response, NULL};
  if (!strcmp(uri, LV2_WORKER__interface)) return &worker;
  return strcmp(uri, LV2_STATE__interface) ? NULL : state_interface();
}

LV2_SYMBOL_EXPORT const LV2_Descriptor *lv2_descriptor(uint32_t index) {
  static const LV2_Descriptor descriptor = {PLUGIN_URI, instantiate, connect_port, NULL, run, NULL, cleanup, extension_data};
  return index ? NULL : &descriptor;
}
