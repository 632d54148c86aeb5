/* The thread of a musiclm~ object: it opens bundles, starts and frees streams. Commands go to it and reports come back through rings without locks,
 * so that Pd's thread, which computes the audio, never waits for it. */
#ifndef MUSICLM_PD_WORKER_H
#define MUSICLM_PD_WORKER_H

#include <semaphore.h>

#include "musiclm.h"

enum { NOTES = 64 };          /* places of a ring */
enum { COMMANDS_TAKEN = 32 }; /* places that messages may fill; the others are for streams that are to be freed */

typedef struct {
  enum { OPEN, OPTION, PROMPT, PLAY, SAVE, FREE, OPENED, PLAYING, HEARD, SAVED, FAILED } kind; /* commands to FREE, reports from OPENED on */
  unsigned number;                                                                             /* PLAY, PLAYING: counts `play` and `stop` */
  double value;                                                                                /* OPENED: sample rate in Hz; HEARD: second */
  ml_stream *stream;                                                                           /* FREE, PLAYING */
  char *text, *extra; /* both in `bytes`. OPTION: name and value; PLAY: extra is the sample rate; FAILED: text is the error */
  char bytes[];
} Note;

typedef struct { /* for one writing and one reading thread */
  Note *notes[NOTES];
  unsigned written, read;
} Ring;

typedef struct {
  Ring commands, reports;
  sem_t wake;
  unsigned done; /* number of commands that were executed */
  int quit;
  ml_options *options; /* this field and the next ones are used by the thread alone */
  ml_model *model;
  ml_stream *current; /* the stream that was started last */
  char *prompt;
} Worker;

Worker *worker_start(void);                /* NULL without memory or threads */
void worker_quit(Worker *);                /* returns at once; the thread frees everything */
void worker_send(Worker *, Note *command); /* the ring must have a free place */
unsigned worker_done(const Worker *);

Note *note_new(int kind, const char *text, const char *extra); /* NULL without memory */
unsigned ring_size(const Ring *);
Note *ring_take(Ring *); /* NULL: the ring is empty, or holds a NULL */

#endif
