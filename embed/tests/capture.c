/* A JACK client that records: capture OUT.f32 FRAMES PORT. It connects itself to the port, says so, keeps the next FRAMES frames in memory and writes
 * them as floats. "quit" on standard input ends it sooner. Its last line says how many frames and how many xruns there were. */
#define _POSIX_C_SOURCE 200809L
#include <jack/jack.h>
#include <poll.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
  jack_port_t *port;
  float *frames;
  size_t size, kept;
  int xruns;
} Capture;

static int process(jack_nframes_t frames, void *argument) {
  Capture *capture = argument;
  const size_t kept = capture->kept, count = frames < capture->size - kept ? frames : capture->size - kept;
  if (jack_port_connected(capture->port)) {
    memcpy(capture->frames + kept, jack_port_get_buffer(capture->port, frames), count * sizeof(float));
    __atomic_store_n(&capture->kept, kept + count, __ATOMIC_RELEASE);
  }
  return 0;
}

static int xrun(void *argument) { return __atomic_fetch_add(&((Capture *)argument)->xruns, 1, __ATOMIC_RELAXED), 0; }

int main(int count, char **arguments) {
  Capture capture = {NULL, NULL, 0, 0, 0};
  if (count != 4 || !(capture.size = strtoul(arguments[2], NULL, 10))) return fprintf(stderr, "usage: capture OUT.f32 FRAMES PORT\n"), 2;
  capture.frames = malloc(capture.size * sizeof(float));
  jack_status_t status;
  jack_client_t *client = jack_client_open("capture", JackNoStartServer, &status);
  if (!client || !capture.frames) return fprintf(stderr, "no server, or no memory\n"), 1;
  memset(capture.frames, 0, capture.size * sizeof(float)); /* the callback then meets no page that is not there yet */
  capture.port = jack_port_register(client, "in", JACK_DEFAULT_AUDIO_TYPE, JackPortIsInput, 0);
  jack_set_process_callback(client, process, &capture), jack_set_xrun_callback(client, xrun, &capture);
  if (jack_activate(client)) return fprintf(stderr, "not activated\n"), 1;
  int tries = 500; /* the other client may not be active yet */
  while (jack_connect(client, arguments[3], "capture:in") && tries--) poll(NULL, 0, 20);
  if (tries < 0) return fprintf(stderr, "%s: no such port\n", arguments[3]), 1;
  printf("connected\n"), fflush(stdout);
  struct pollfd input = {0, POLLIN, 0};
  while (__atomic_load_n(&capture.kept, __ATOMIC_ACQUIRE) < capture.size && poll(&input, 1, 20) == 0) continue;
  jack_client_close(client);
  FILE *file = fopen(arguments[1], "wb");
  const size_t written = file ? fwrite(capture.frames, sizeof(float), capture.kept, file) : 0;
  if (!file || fclose(file) || written != capture.kept) return perror(arguments[1]), 1;
  printf("%zu frames, %d xruns\n", capture.kept, capture.xruns);
  free(capture.frames);
  return 0;
}
