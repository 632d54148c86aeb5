/* Music live through JACK: jack BUNDLE [OPTION=VALUE ...]. A line that is typed is a prompt: "calm piano", or "0.3 calm piano + 0.7 brass band". The
 * first begins the music, the later ones change it while it plays. "save FILE" writes the tokens so far, "quit" ends. */
#define _POSIX_C_SOURCE 200809L
#include <jack/jack.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "musiclm.h"
#include "prompt.h"

typedef struct {
  jack_port_t *ports[2];
  ml_stream *stream; /* published by the main thread, read by JACK's */
  uint64_t waited, played, xruns,
      lost; /* counted by JACK's threads: frames of silence before the first sound, frames of music; lost: JACK has ended */
} Player;

static uint64_t get(const uint64_t *count) { return __atomic_load_n(count, __ATOMIC_ACQUIRE); }
static void add(uint64_t *count, uint64_t more) { __atomic_fetch_add(count, more, __ATOMIC_RELEASE); }

static int process(jack_nframes_t frames, void *argument) {
  Player *player = argument;
  float *out[2];
  for (int i = 0; i < 2; i++) out[i] = jack_port_get_buffer(player->ports[i], frames);
  ml_stream *stream = __atomic_load_n(&player->stream, __ATOMIC_ACQUIRE);
  if (stream) {
    const size_t got = ml_stream_read_rt(stream, out, 2, frames);
    add(got || player->played ? &player->played : &player->waited, got || player->played ? got : frames);
  } else {
    for (int i = 0; i < 2; i++) memset(out[i], 0, frames * sizeof(float));
  }
  return 0;
}

static int xrun(void *argument) { return add(&((Player *)argument)->xruns, 1), 0; }
static void shutdown(void *argument) { add(&((Player *)argument)->lost, 1); }

static double now(void) {
  struct timespec time;
  clock_gettime(CLOCK_MONOTONIC, &time);
  return (double)time.tv_sec + 1e-9 * (double)time.tv_nsec;
}

static int failed(ml_status status) { return fprintf(stderr, "%s: %s\n", ml_status_name(status), ml_last_error()), 1; }

static jack_client_t *connect(Player *player) {
  jack_status_t status;
  jack_client_t *client = jack_client_open("musiclm", JackNoStartServer, &status);
  if (!client) return fprintf(stderr, "No JACK server is running. Start one: jackd -d alsa, or jackd -d dummy to try.\n"), NULL;
  for (int i = 0; i < 2; i++) {
    player->ports[i] = jack_port_register(client, i ? "right" : "left", JACK_DEFAULT_AUDIO_TYPE, JackPortIsOutput | JackPortIsTerminal, 0);
  }
  jack_set_process_callback(client, process, player), jack_set_xrun_callback(client, xrun, player), jack_on_shutdown(client, shutdown, player);
  if (!player->ports[0] || !player->ports[1] || jack_activate(client))
    return fprintf(stderr, "JACK takes no ports.\n"), jack_client_close(client), NULL;
  const char **speakers = jack_get_ports(client, NULL, JACK_DEFAULT_AUDIO_TYPE, JackPortIsInput | JackPortIsPhysical);
  for (int i = 0; i < 2 && speakers && speakers[i]; i++) jack_connect(client, jack_port_name(player->ports[i]), speakers[i]);
  jack_free(speakers);
  return client;
}

/* Begins the music with the first prompt, changes it with the others. */
static void take_prompt(Player *player, char *line, ml_model *model, const ml_options *options, double rate) {
  ml_part parts[PROMPT_PARTS];
  const size_t count = prompt_parts(line, parts);
  ml_status status;
  if (player->stream) {
    double heard = 0;
    status = ml_stream_set_prompt(player->stream, parts, count, &heard);
    if (status == ML_OK) printf("heard from second %.2f on; now at %.2f\n", heard, (double)get(&player->played) / rate);
  } else {
    const double asked = now();
    ml_stream *stream = NULL;
    status = ml_stream_start(model, parts, count, options, &stream);
    if (status == ML_OK) {
      __atomic_store_n(&player->stream, stream, __ATOMIC_RELEASE);
      const double began = now();
      while (!get(&player->played) && !get(&player->lost) && !ml_stream_ended(stream)) poll(NULL, 0, 5);
      printf("first sound after %.3f s\n", began - asked + (double)get(&player->waited) / rate);
    }
  }
  if (status != ML_OK) failed(status);
}

int main(int count, char **arguments) {
  if (count < 2) return fprintf(stderr, "usage: jack BUNDLE [OPTION=VALUE ...]\n"), 2;
  setvbuf(stdout, NULL, _IOLBF, 0), setvbuf(stdin, NULL, _IONBF, 0); /* unbuffered: `poll` knows nothing of what stdio has read ahead */
  ml_options *options = ml_options_new();
  ml_model *model = NULL;
  Player player = {{NULL, NULL}, NULL, 0, 0, 0, 0};
  jack_client_t *client = connect(&player);
  if (!client) return ml_options_free(options), 1;
  char line[4096], rate[16];
  snprintf(rate, sizeof rate, "%u", (unsigned)jack_get_sample_rate(client));
  const char *standard[][2] = {{"output_rate", rate}, {"seconds", "endless"}, {"plan", "low_latency"}, {"ahead_s", "2"}};
  ml_status status = options ? ML_OK : ML_NO_MEMORY;
  for (size_t i = 0; i < sizeof standard / sizeof *standard && status == ML_OK; i++) status = ml_options_set(options, standard[i][0], standard[i][1]);
  for (int i = 2; i < count && status == ML_OK; i++) {
    char *value = strchr(arguments[i], '=');
    if (value) *value++ = 0;
    status = ml_options_set(options, arguments[i], value);
  }
  const double begun = now();
  if (status == ML_OK) status = ml_model_open(arguments[1], options, &model);
  if (status == ML_OK) printf("opened in %.3f s; %s Hz, %u frames; type a prompt\n", now() - begun, rate, (unsigned)jack_get_buffer_size(client));
  uint64_t underruns = 0, xruns = 0;
  while (status == ML_OK && !get(&player.lost) && !(player.stream && ml_stream_ended(player.stream))) {
    const uint64_t missed = player.stream ? ml_stream_underruns(player.stream) : 0, late = get(&player.xruns);
    if (missed != underruns || late != xruns) printf("%llu underruns, %llu xruns\n", (unsigned long long)missed, (unsigned long long)late);
    underruns = missed, xruns = late;
    struct pollfd input = {0, POLLIN, 0};
    if (poll(&input, 1, 100) <= 0) continue;
    if (!fgets(line, sizeof line, stdin)) break;
    line[strcspn(line, "\n")] = 0;
    if (!strcmp(line, "quit")) break;
    if (!strncmp(line, "save ", 5)) printf("%s\n", ml_stream_save(player.stream, line + 5) == ML_OK ? "saved" : ml_last_error());
    else take_prompt(&player, line, model, options, jack_get_sample_rate(client));
  }
  const double played = (double)player.played / jack_get_sample_rate(client);
  jack_client_close(client); /* the callback runs no more: the stream is this thread's now */
  if (status == ML_OK && player.stream && ml_stream_ended(player.stream)) {
    float sample;
    size_t got;
    status = ml_stream_read(player.stream, &sample, 1, 0, &got);
  }
  if (status != ML_OK && status != ML_ENDED) failed(status);
  if (player.stream)
    printf("%.2f s, %llu underruns, %llu xruns\n", played, (unsigned long long)ml_stream_underruns(player.stream), (unsigned long long)player.xruns);
  ml_stream_free(player.stream), ml_model_free(model), ml_options_free(options);
  return status != ML_OK && status != ML_ENDED;
}
