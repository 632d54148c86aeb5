/* Saves and restores the prompt and the bundle's folder with a host's session. */
#include <lv2/state/state.h>
#include <stdlib.h>
#include <string.h>

#include "plugin.h"

static const void *data_of(const LV2_Feature *const *features, const char *uri) {
  for (; features && *features; features++) {
    if (!strcmp((*features)->URI, uri)) return (*features)->data;
  }
  return NULL;
}

static void free_path(const LV2_Feature *const *features, char *path) {
  const LV2_State_Free_Path *own = data_of(features, LV2_STATE__freePath);
  if (own) own->free_path(own->handle, path);
  else free(path);
}

static LV2_State_Status save(LV2_Handle handle, LV2_State_Store_Function store, LV2_State_Handle to, uint32_t flags,
                             const LV2_Feature *const *features) {
  Plugin *self = handle;
  const LV2_State_Map_Path *paths = data_of(features, LV2_STATE__mapPath);
  LV2_State_Status status = LV2_STATE_SUCCESS;
  char texts[TEXTS][TEXT_BYTES];
  (void)flags;
  if (!self->uris.string) return LV2_STATE_ERR_NO_FEATURE;
  pthread_mutex_lock(&self->worker.lock);
  memcpy(texts, self->worker.texts, sizeof texts);
  pthread_mutex_unlock(&self->worker.lock);
  for (int i = 0; i < TEXTS && status == LV2_STATE_SUCCESS; i++) {
    if (!*texts[i]) continue; /* the bundle beside the plug-in */
    const LV2_URID type = i == BUNDLE ? self->uris.path : self->uris.string;
    char *mapped = i == BUNDLE && paths ? paths->abstract_path(paths->handle, texts[i]) : NULL;
    const char *text = mapped ? mapped : texts[i];
    status = store(to, self->uris.texts[i], text, strlen(text) + 1, type, LV2_STATE_IS_POD | LV2_STATE_IS_PORTABLE);
    if (mapped) free_path(features, mapped);
  }
  return status;
}

/* Runs concurrently with `run` only if the host passes a worker (state:threadSafeRestore). */
static LV2_State_Status restore(LV2_Handle handle, LV2_State_Retrieve_Function retrieve, LV2_State_Handle from, uint32_t flags,
                                const LV2_Feature *const *features) {
  Plugin *self = handle;
  const LV2_Worker_Schedule *schedule = data_of(features, LV2_WORKER__schedule);
  const LV2_State_Map_Path *paths = data_of(features, LV2_STATE__mapPath);
  (void)flags;
  if (!self->uris.string) return LV2_STATE_ERR_NO_FEATURE;
  for (int i = TEXTS - 1; i >= 0; i--) { /* the bundle before the prompt */
    size_t size = 0;
    uint32_t type = 0, stored = 0;
    Message message = {.kind = SET, .which = i};
    const char *text = retrieve(from, self->uris.texts[i], &size, &type, &stored);
    if (!text || (type != self->uris.string && type != self->uris.path)) continue;
    char *mapped = i == BUNDLE && paths ? paths->absolute_path(paths->handle, text) : NULL;
    strncpy(message.text, mapped ? mapped : text, TEXT_BYTES - 1);
    if (mapped) free_path(features, mapped);
    if (schedule) schedule->schedule_work(schedule->handle, message_size(&message), &message);
    else work(self, respond_now, self, message_size(&message), &message);
  }
  return LV2_STATE_SUCCESS;
}

const void *state_interface(void) {
  static const LV2_State_Interface interface = {save, restore};
  return &interface;
}
