/* A prompt as one types it: a text, "calm piano", or texts with weights, "0.3 calm piano + 0.7 brass band". */
#ifndef MUSICLM_PROMPT_H
#define MUSICLM_PROMPT_H

#include <string.h>

#include "musiclm.h"

enum { PROMPT_PARTS = 16 };

/* Reads a weight before *text and moves *text behind it. Without a weight it returns 1. Not strtof: its decimal point is the locale's. */
static inline float prompt_weight(const char **text) {
  const char *at = *text;
  const double sign = *at == '-' ? -1 : 1;
  double digits = 0, scale = 1;
  int any = 0, point = 0;
  if (*at == '-') at++;
  for (; (*at >= '0' && *at <= '9') || (*at == '.' && !point); at++) {
    if (*at == '.') {
      point = 1;
    } else {
      digits = 10 * digits + (*at - '0'), any = 1;
      if (point) scale *= 10;
    }
  }
  if (!any || *at != ' ') return 1;
  *text = at + strspn(at, " ");
  return (float)(sign * digits / scale);
}

/* Cuts `text` at each " + " and returns the number of parts, which point into it. A number is a weight only where there are several parts: "12 bar
 * blues" is a text. */
static inline size_t prompt_parts(char *text, ml_part parts[PROMPT_PARTS]) {
  size_t count = 0;
  for (char *rest = text; rest; count++) {
    char *end = count + 1 < PROMPT_PARTS ? strstr(rest, " + ") : NULL;
    parts[count].text = rest + strspn(rest, " "), parts[count].weight = 1;
    if (end) *end = 0;
    rest = end ? end + 3 : NULL;
  }
  for (size_t i = 0; count > 1 && i < count; i++) parts[i].weight = prompt_weight(&parts[i].text);
  return count;
}

#endif
