/* A host that does to the LV2 plug-in what jalv and lv2apply do not: lv2_host FOLDER BUNDLE OUT.f32. It sets and asks for parameters by messages,
 * saves a state and restores it into an instance that has no worker, and ends the process where `run` allocates, frees or locks. What the plug-in
 * answers, stores and logs is printed; OUT gets a second of the restored instance, rendered offline at 16 kHz. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <lv2/atom/forge.h>
#include <lv2/atom/util.h>
#include <lv2/core/lv2.h>
#include <lv2/log/log.h>
#include <lv2/patch/patch.h>
#include <lv2/state/state.h>
#include <lv2/urid/urid.h>
#include <lv2/worker/worker.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define PLAYER "urn:musiclm:player"
enum { CONTROL, NOTIFY, IN_LEFT, IN_RIGHT, LEFT, RIGHT, PLAY, SEED, GUIDANCE, GAIN, AHEAD, FREEWHEEL, STATUS, BUFFERED, HEARD_FROM = 16, PORTS };
enum { FRAMES = 256, BYTES = 8192, KEPT = 64 };

/* --- traps: memory and locks while `run` runs */

static __thread int in_run;

static void trap(const char *what) {
  if (!in_run) return;
  in_run = 0;
  fprintf(stderr, "run() called %s\n", what);
  abort();
}

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void __libc_free(void *);
void *malloc(size_t size) { return trap("malloc"), __libc_malloc(size); }
void *calloc(size_t count, size_t size) { return trap("calloc"), __libc_calloc(count, size); }
void *realloc(void *memory, size_t size) { return trap("realloc"), __libc_realloc(memory, size); }
void free(void *memory) { trap("free"), __libc_free(memory); }
int pthread_mutex_lock(pthread_mutex_t *mutex) {
  static int (*next)(pthread_mutex_t *);
  trap("pthread_mutex_lock");
  if (!next) *(void **)&next = dlsym(RTLD_NEXT, "pthread_mutex_lock");
  return next(mutex);
}
#endif

/* --- what a host gives */

static char uris[KEPT][128];

static LV2_URID map(LV2_URID_Map_Handle handle, const char *uri) {
  LV2_URID urid = 0;
  (void)handle;
  while (urid < KEPT && *uris[urid] && strcmp(uris[urid], uri)) urid++;
  return strcpy(uris[urid], uri), urid + 1;
}

static LV2_URID urid_of(const char *uri) { return map(NULL, uri); }

static int log_line(LV2_Log_Handle handle, LV2_URID type, const char *format, va_list arguments) {
  (void)handle;
  printf("log %s: ", strrchr(uris[type - 1], '#') + 1);
  return vprintf(format, arguments);
}

static int log_print(LV2_Log_Handle handle, LV2_URID type, const char *format, ...) {
  va_list arguments;
  va_start(arguments, format);
  const int written = log_line(handle, type, format, arguments);
  va_end(arguments);
  return written;
}

typedef struct { /* messages on their way, copied; nothing is allocated */
  char data[16][2048];
  uint32_t sizes[16];
  int count;
} Queue;

static LV2_Worker_Status push(Queue *queue, uint32_t size, const void *data) {
  if (queue->count == 16 || size > sizeof queue->data[0]) return LV2_WORKER_ERR_NO_SPACE;
  memcpy(queue->data[queue->count], data, size), queue->sizes[queue->count++] = size;
  return LV2_WORKER_SUCCESS;
}

static Queue asked, answered;
static LV2_Worker_Status schedule(LV2_Worker_Schedule_Handle handle, uint32_t size, const void *data) {
  return (void)handle, push(&asked, size, data);
}
static LV2_Worker_Status respond(LV2_Worker_Respond_Handle handle, uint32_t size, const void *data) {
  return (void)handle, push(&answered, size, data);
}

typedef struct {
  const LV2_Descriptor *plugin;
  LV2_Handle handle;
  const LV2_Worker_Interface *worker;
  float values[PORTS], left[FRAMES], right[FRAMES];
  union {
    LV2_Atom_Sequence sequence;
    uint8_t bytes[BYTES];
  } in, out;
  LV2_Atom_Forge forge;
} Instance;

static LV2_URID_Map mapping = {NULL, map};

static Instance *instance_of(const LV2_Descriptor *plugin, const char *folder, int with_worker) {
  static LV2_Log_Log logging = {NULL, log_print, log_line};
  static LV2_Worker_Schedule scheduling = {NULL, schedule};
  static const LV2_Feature features[] = {{LV2_URID__map, &mapping}, {LV2_LOG__log, &logging}, {LV2_WORKER__schedule, &scheduling}};
  const LV2_Feature *const given[] = {&features[0], &features[1], with_worker ? &features[2] : NULL, NULL};
  Instance *self = calloc(1, sizeof *self);
  self->plugin = plugin;
  self->handle = plugin->instantiate(plugin, 16000, folder, given);
  self->worker = plugin->extension_data(LV2_WORKER__interface);
  self->values[AHEAD] = 0.5f;
  lv2_atom_forge_init(&self->forge, &mapping);
  for (uint32_t port = 0; port < PORTS; port++) plugin->connect_port(self->handle, port, &self->values[port]);
  plugin->connect_port(self->handle, CONTROL, &self->in), plugin->connect_port(self->handle, NOTIFY, &self->out);
  plugin->connect_port(self->handle, IN_LEFT, NULL), plugin->connect_port(self->handle, IN_RIGHT, NULL);
  plugin->connect_port(self->handle, LEFT, self->left), plugin->connect_port(self->handle, RIGHT, self->right);
  return self;
}

/* One cycle with a message: a parameter and its value, a parameter that is asked for (value NULL), or none. Then the worker's turn. */
static void cycle(Instance *self, const char *parameter, const char *value) {
  LV2_Atom_Forge_Frame sequence, object;
  lv2_atom_forge_set_buffer(&self->forge, self->in.bytes, BYTES);
  lv2_atom_forge_sequence_head(&self->forge, &sequence, 0);
  if (parameter) {
    lv2_atom_forge_frame_time(&self->forge, 0);
    lv2_atom_forge_object(&self->forge, &object, 0, urid_of(value ? LV2_PATCH__Set : LV2_PATCH__Get));
    lv2_atom_forge_key(&self->forge, urid_of(LV2_PATCH__property)), lv2_atom_forge_urid(&self->forge, urid_of(parameter));
    if (value) lv2_atom_forge_key(&self->forge, urid_of(LV2_PATCH__value)), lv2_atom_forge_string(&self->forge, value, (uint32_t)strlen(value));
    lv2_atom_forge_pop(&self->forge, &object);
  }
  lv2_atom_forge_pop(&self->forge, &sequence);
  self->out.sequence.atom.size = BYTES - sizeof(LV2_Atom);
  in_run = self->values[FREEWHEEL] == 0;
  self->plugin->run(self->handle, FRAMES);
  for (int i = 0; i < answered.count; i++) self->worker->work_response(self->handle, answered.sizes[i], answered.data[i]);
  in_run = 0, answered.count = 0;
  for (int i = 0; i < asked.count; i++) self->worker->work(self->handle, respond, NULL, asked.sizes[i], asked.data[i]);
  asked.count = 0;
  LV2_ATOM_SEQUENCE_FOREACH(&self->out.sequence, event) {
    const LV2_Atom *property = NULL, *text = NULL;
    lv2_atom_object_get((const LV2_Atom_Object *)&event->body, urid_of(LV2_PATCH__property), &property, urid_of(LV2_PATCH__value), &text, 0);
    printf("told %s %s\n", strrchr(uris[((const LV2_Atom_URID *)property)->body - 1], '#') + 1, (const char *)(text + 1));
  }
}

/* --- a state, kept by this process */

static struct {
  LV2_URID key, type;
  char text[2048];
} state[8];

static LV2_State_Status store(LV2_State_Handle handle, uint32_t key, const void *value, size_t size, uint32_t type, uint32_t flags) {
  int place = 0;
  (void)handle, (void)flags;
  while (state[place].key) place++;
  state[place].key = key, state[place].type = type, memcpy(state[place].text, value, size);
  printf("stored %s %s %s\n", strrchr(uris[key - 1], '#') + 1, strrchr(uris[type - 1], '#') + 1, state[place].text);
  return LV2_STATE_SUCCESS;
}

static const void *retrieve(LV2_State_Handle handle, uint32_t key, size_t *size, uint32_t *type, uint32_t *flags) {
  (void)handle;
  for (int i = 0; i < 8; i++) {
    if (state[i].key == key) return *size = strlen(state[i].text) + 1, *type = state[i].type, *flags = LV2_STATE_IS_POD, state[i].text;
  }
  return NULL;
}

static void wait_for(Instance *self, int port) {
  const float was = self->values[port];
  const struct timespec pause = {0, 2000000};
  for (int i = 0; i < 5000 && self->values[port] == was; i++) cycle(self, NULL, NULL), nanosleep(&pause, NULL);
}

int main(int count, char **arguments) {
  char path[4096];
  if (count != 4) return fprintf(stderr, "usage: lv2_host FOLDER BUNDLE OUT.f32\n"), 2;
  snprintf(path, sizeof path, "%s/musiclm.so", arguments[1]);
  void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) return fprintf(stderr, "%s\n", dlerror()), 1;
  LV2_Descriptor_Function find;
  *(void **)&find = dlsym(library, "lv2_descriptor");
  const LV2_Descriptor *plugin = find(0);
  const LV2_State_Interface *states = plugin->extension_data(LV2_STATE__interface);
  Instance *live = instance_of(plugin, arguments[1], 1);
  cycle(live, PLAYER "#bundle", "/nowhere"), cycle(live, NULL, NULL), cycle(live, NULL, NULL);
  printf("status %g\n", live->values[STATUS]);
  cycle(live, PLAYER "#bundle", arguments[2]), cycle(live, PLAYER "#prompt", "12 bar blues");
  live->values[PLAY] = 1;
  wait_for(live, BUFFERED); /* before anything is made, another prompt is heard from the beginning */
  printf("status %g\n", live->values[STATUS]);
  cycle(live, PLAYER "#prompt", "loud drums"), wait_for(live, HEARD_FROM);
  printf("heard %d\n", live->values[HEARD_FROM] > 0);
  cycle(live, PLAYER "#prompt", NULL), cycle(live, NULL, NULL);
  states->save(live->handle, store, NULL, LV2_STATE_IS_POD, NULL);

  Instance *offline = instance_of(plugin, arguments[1], 0);
  states->restore(offline->handle, retrieve, NULL, 0, NULL);
  offline->values[PLAY] = offline->values[FREEWHEEL] = 1;
  FILE *out = fopen(arguments[3], "wb");
  for (int i = 0; i < 16000 / FRAMES; i++) cycle(offline, NULL, NULL), fwrite(offline->left, sizeof(float), FRAMES, out);
  fclose(out);
  plugin->cleanup(live->handle), plugin->cleanup(offline->handle); /* both still play */
  free(live), free(offline);
  return 0;
}
