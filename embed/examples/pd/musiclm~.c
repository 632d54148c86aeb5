/* A Pure Data external, [musiclm~ BUNDLE]: music from a prompt on the left outlet, status messages on the right one. Pd handles messages and computes
 * audio in one thread, so everything that takes time is a command to the object's own thread (worker.h). */
#define _POSIX_C_SOURCE 200809L
#include <m_pd.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "worker.h"

typedef struct {
  t_object object;
  t_canvas *canvas;
  t_outlet *status_outlet;
  t_clock *clock;
  Worker *worker;
  ml_stream *stream; /* what `perform` reads */
  unsigned number;   /* counts `play` and `stop` */
  unsigned sent;     /* number of commands */
  uint64_t underruns;
  int waits; /* set by `wait 1`: messages and `perform` wait for the worker */
  enum { SILENT, SOUNDS, REPORTED } state;
} t_musiclm;

static t_class *musiclm_class;

/* --- to and from the worker */

static void send(t_musiclm *x, Note *note) {
  if (!note || (note->kind != FREE && ring_size(&x->worker->commands) >= COMMANDS_TAKEN)) {
    pd_error(x, "musiclm~: too many messages at once, one is left out");
    free(note);
    return;
  }
  worker_send(x->worker, note), x->sent++;
}

static void send_free(t_musiclm *x, ml_stream *stream) {
  Note *note = stream ? note_new(FREE, "", "") : NULL;
  if (note) note->stream = stream, send(x, note);
}

static void output(t_musiclm *x, const char *what) { outlet_anything(x->status_outlet, gensym(what), 0, NULL); }

static void output_number(t_musiclm *x, const char *what, double number) {
  t_atom atom;
  SETFLOAT(&atom, (t_float)number);
  outlet_anything(x->status_outlet, gensym(what), 1, &atom);
}

static void output_error(t_musiclm *x, const char *why) {
  t_atom atom;
  pd_error(x, "musiclm~: %s", why);
  SETSYMBOL(&atom, gensym(why));
  outlet_anything(x->status_outlet, gensym("failed"), 1, &atom);
}

static void take_stream(t_musiclm *x, const Note *report) {
  if (report->number != x->number) { /* it has been stopped in the meantime */
    send_free(x, report->stream);
    return;
  }
  send_free(x, x->stream);
  x->stream = report->stream, x->underruns = 0, x->state = SILENT;
  output(x, "playing");
}

static void handle_report(t_musiclm *x, const Note *report) {
  switch (report->kind) {
    case PLAYING:
      take_stream(x, report);
      break;
    case OPENED:
      output_number(x, "opened", report->value);
      break;
    case HEARD:
      output_number(x, "heard_from", report->value);
      break;
    case SAVED:
      output(x, "saved");
      break;
    default:
      output_error(x, report->text);
  }
}

static void handle_reports(t_musiclm *x) {
  for (Note *report; (report = ring_take(&x->worker->reports)); free(report)) handle_report(x, report);
  if (!x->stream) return;
  const uint64_t underruns = ml_stream_underruns(x->stream);
  if (x->state == SOUNDS) x->state = REPORTED, output(x, "sounds");
  if (underruns != x->underruns) x->underruns = underruns, output_number(x, "underruns", (double)underruns);
  if (x->stream && ml_stream_ended(x->stream)) {
    send_free(x, x->stream), x->stream = NULL;
    output(x, "ended");
  }
}

static void tick(t_musiclm *x) {
  handle_reports(x);
  clock_delay(x->clock, 10);
}

static void wait_for_worker(t_musiclm *x) {
  const struct timespec millisecond = {0, 1000000};
  while (x->waits && worker_done(x->worker) != x->sent) nanosleep(&millisecond, NULL), handle_reports(x);
}

static void command(t_musiclm *x, Note *note) { send(x, note), wait_for_worker(x); }

/* --- audio */

static t_int *perform(t_int *w) {
  t_musiclm *x = (t_musiclm *)w[1];
  t_sample *out = (t_sample *)w[2];
  const size_t frames = (size_t)w[3];
  size_t got = 0;
  if (x->stream && x->waits) ml_stream_read(x->stream, out, frames, -1, &got);
  else if (x->stream) got = ml_stream_read_rt(x->stream, &out, 1, frames);
  memset(out + got, 0, (frames - got) * sizeof *out);
  if (got && x->state == SILENT) x->state = SOUNDS;
  return w + 4;
}

static void dsp(t_musiclm *x, t_signal **signals) { dsp_add(perform, 3, x, signals[0]->s_vec, (t_int)signals[0]->s_n); }

/* --- messages */

/* Joins the words of a message with spaces. */
static char *join(int count, t_atom *atoms, char text[MAXPDSTRING]) {
  size_t length = 0;
  text[0] = 0;
  for (int i = 0; i < count; i++) {
    char number[64];
    const char *word = atoms[i].a_type == A_SYMBOL ? atom_getsymbol(atoms + i)->s_name : number;
    if (word == number) atom_string(atoms + i, number, sizeof number);
    if (length + strlen(word) + 2 > MAXPDSTRING) break;
    length += (size_t)sprintf(text + length, "%s%s", i ? " " : "", word);
  }
  return text;
}

static void prompt(t_musiclm *x, t_symbol *selector, int count, t_atom *atoms) {
  char text[MAXPDSTRING];
  (void)selector;
  command(x, note_new(PROMPT, join(count, atoms, text), ""));
}

static void option(t_musiclm *x, t_symbol *selector, int count, t_atom *atoms) {
  char value[MAXPDSTRING];
  (void)selector;
  if (count < 2 || atoms->a_type != A_SYMBOL) pd_error(x, "musiclm~: option takes a name and a value");
  else command(x, note_new(OPTION, atom_getsymbol(atoms)->s_name, join(count - 1, atoms + 1, value)));
}

static void seed(t_musiclm *x, t_floatarg number) {
  char value[32];
  snprintf(value, sizeof value, "%.0f", (double)number);
  command(x, note_new(OPTION, "seed", value));
}

static void command_with_path(t_musiclm *x, int kind, const t_symbol *name) {
  char path[MAXPDSTRING];
  canvas_makefilename(x->canvas, name->s_name, path, sizeof path);
  command(x, note_new(kind, path, ""));
}

static void open_bundle(t_musiclm *x, t_symbol *name) { command_with_path(x, OPEN, name); }
static void save(t_musiclm *x, t_symbol *name) { command_with_path(x, SAVE, name); }

static void play(t_musiclm *x) {
  char rate[32];
  snprintf(rate, sizeof rate, "%.0f", (double)sys_getsr());
  Note *note = note_new(PLAY, "", rate);
  x->number++;
  if (note) note->number = x->number;
  command(x, note);
}

static void stop(t_musiclm *x) {
  x->number++;
  send_free(x, x->stream), x->stream = NULL;
  output(x, "stopped");
}

static void status(t_musiclm *x) {
  output_number(x, "buffered", x->stream ? (double)ml_stream_buffered(x->stream) / ml_stream_rate(x->stream) : 0);
  output_number(x, "underruns", x->stream ? (double)ml_stream_underruns(x->stream) : 0);
}

static void set_waits(t_musiclm *x, t_floatarg waits) { x->waits = waits != 0, wait_for_worker(x); }

/* --- the object */

static void destroy(t_musiclm *x) {
  clock_free(x->clock);
  send_free(x, x->stream);
  worker_quit(x->worker);
}

static void *create(t_symbol *bundle) {
  static const char *const options[][2] = {{"seconds", "endless"}, {"plan", "low_latency"}, {"ahead_s", "2"}};
  Worker *worker = worker_start();
  if (!worker) return pd_error(NULL, "musiclm~: no memory, or no thread, left"), NULL;
  t_musiclm *x = (t_musiclm *)pd_new(musiclm_class);
  x->worker = worker, x->canvas = canvas_getcurrent();
  outlet_new(&x->object, &s_signal);
  x->status_outlet = outlet_new(&x->object, NULL);
  x->clock = clock_new(x, (t_method)tick);
  clock_delay(x->clock, 0);
  for (size_t i = 0; i < sizeof options / sizeof *options; i++) send(x, note_new(OPTION, options[i][0], options[i][1]));
  if (*bundle->s_name) open_bundle(x, bundle);
  return x;
}

__attribute__((visibility("default"))) void musiclm_tilde_setup(void);
void musiclm_tilde_setup(void) {
  if (sizeof(t_sample) != sizeof(float)) {
    pd_error(NULL, "musiclm~: built for a Pd whose samples are floats");
    return;
  }
  musiclm_class = class_new(gensym("musiclm~"), (t_newmethod)create, (t_method)destroy, sizeof(t_musiclm), CLASS_DEFAULT, A_DEFSYMBOL, 0);
  class_addmethod(musiclm_class, (t_method)dsp, gensym("dsp"), A_CANT, 0);
  class_addmethod(musiclm_class, (t_method)open_bundle, gensym("open"), A_SYMBOL, 0);
  class_addmethod(musiclm_class, (t_method)prompt, gensym("prompt"), A_GIMME, 0);
  class_addmethod(musiclm_class, (t_method)option, gensym("option"), A_GIMME, 0);
  class_addmethod(musiclm_class, (t_method)seed, gensym("seed"), A_FLOAT, 0);
  class_addmethod(musiclm_class, (t_method)play, gensym("play"), 0);
  class_addmethod(musiclm_class, (t_method)stop, gensym("stop"), 0);
  class_addmethod(musiclm_class, (t_method)status, gensym("status"), 0);
  class_addmethod(musiclm_class, (t_method)save, gensym("save"), A_SYMBOL, 0);
  class_addmethod(musiclm_class, (t_method)set_waits, gensym("wait"), A_FLOAT, 0);
}
